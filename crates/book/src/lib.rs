//! The pages of `docs` as a book of HTML.
//!
//! mdBook makes it, as a library, so that its version is that of the lock file and nobody has to install it. What it warns of is an error here: a
//! page that the summary names and that is not there would else be made as an empty one.

use std::{
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, bail};
use mdbook_driver::{MDBook, config::Config};
use tracing_subscriber::fmt::MakeWriter;

/// Makes the book of the pages in `docs` and writes it into the directory `out`.
///
/// # Errors
/// If a page cannot be read, the book cannot be written, or anything about it deserved a warning: then all of these are said.
pub fn write(docs: &Path, out: &Path) -> anyhow::Result<()> {
    let heard = Heard::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .without_time()
        .with_writer(heard.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let mut config = Config::from_disk(docs.join("book.toml")).context("cannot read `book.toml`")?;
        out.clone_into(&mut config.build.build_dir);
        // An empty page is worse than none.
        config.build.create_missing = false;
        let book = MDBook::load_with_config(docs, config).context("cannot read the book's pages")?;
        book.build().context("cannot write the book")
    })?;
    let warnings = heard.text();
    if !warnings.is_empty() {
        bail!("the book was made with warnings:\n{warnings}");
    }
    Ok(())
}

/// What was warned of.
#[derive(Debug, Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Heard {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Heard {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(buffer);
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Heard {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
