//! The book is made without a warning, has every page, and leads nobody out of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use fs_err as fs;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// The files that links of a page name.
fn links(markdown: &str) -> impl Iterator<Item = &str> {
    let targets = markdown.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target));
    targets.filter(|target| !target.contains("://")).filter_map(|target| target.split('#').next()).filter(|file| !file.is_empty())
}

fn pages() -> BTreeSet<String> {
    let found = fs::read_dir(docs()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    found.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "md") && name != "SUMMARY.md").collect()
}

#[test]
fn every_page_is_in_the_book() {
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    let named: Vec<String> = links(&summary).map(str::to_owned).collect();
    assert_eq!(named.iter().cloned().collect::<BTreeSet<_>>(), pages());
    assert_eq!(named.len(), pages().len(), "a page is there twice");
}

#[test]
fn links_of_a_page_lead_to_pages_and_pictures_of_the_book() {
    for page in pages() {
        let text = fs::read_to_string(docs().join(&page)).unwrap();
        for target in links(&text) {
            assert!(
                pages().contains(target) || (target.starts_with("images/") && docs().join(target).exists()),
                "{page}: {target}"
            );
        }
    }
}

#[test]
fn it_is_written_without_a_warning() {
    let out = tempfile::tempdir().unwrap();
    firkin_book::write(&docs(), out.path()).unwrap();
    for page in pages() {
        let html = fs::read_to_string(out.path().join(&page).with_extension("html")).unwrap();
        assert!(html.contains("<h1"), "{page}");
    }
    assert!(fs::read(out.path().join("images/host.png")).unwrap().starts_with(b"\x89PNG"));
}

#[test]
fn a_page_that_is_not_there_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(docs().join("book.toml"), dir.path().join("book.toml")).unwrap();
    fs::write(dir.path().join("SUMMARY.md"), "# Summary\n\n- [Gone](gone.md)\n").unwrap();
    let error = firkin_book::write(dir.path(), &dir.path().join("out")).unwrap_err();
    assert!(format!("{error:#}").contains("gone.md"), "{error:#}");
}
