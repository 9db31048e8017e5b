//! Rules about the text of the project, as tests: what a reviewer would otherwise have to remember.

use std::path::{Path, PathBuf};

use fs_err as fs;

mod dependencies;
mod documents;
mod floors;
mod rings;
mod sources;

/// Directories that are made, not written.
const MADE: [&str; 5] = ["target", ".git", "__pycache__", ".venv", "node_modules"];

/// The root of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is inside the workspace").to_owned()
}

/// One file of the project, named as seen from the root.
struct Text {
    path: PathBuf,
    text: String,
}

/// Every file with this extension that people write.
fn files(extension: &str) -> Vec<Text> {
    let root = root();
    let mut found = Vec::new();
    let mut dirs = vec![root.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("the project can be read") {
            let path = entry.expect("the project can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() && !MADE.contains(&name) {
                dirs.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).expect("the project's texts are UTF-8");
                found.push(Text { path: path.strip_prefix(&root).expect("it is below the root").to_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Fails with every offence at once, so that one run names all there is to do.
fn assert_none(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}
