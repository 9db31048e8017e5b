//! Writes the book to `target/book`, or to the directory that is named.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("the package is inside the workspace")?;
    let out = std::env::args_os().nth(1).map_or_else(|| root.join("target/book"), PathBuf::from);
    firkin_book::write(&root.join("docs"), &std::path::absolute(out)?)
}
