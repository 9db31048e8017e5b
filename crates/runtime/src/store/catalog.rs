//! Which catalogue a state directory goes with, and that it is used with no other.
//!
//! What no catalogue names is collected: with another catalogue than its own, or an empty one, every snapshot of a state directory would
//! be. So whoever has its catalogue elsewhere says so in a file beside the artifacts, before anything is recorded there. A directory
//! without that file has its catalogue in itself.
//!
//! ```text
//!   catalog.json   installation   by which the catalogue knows this directory
//!                  address        where the catalogue is, without a password
//!                  began          whether it has been opened: it cannot be empty from then on
//!                  term           the last that this directory had it in: in a lower one it went back, in a higher one another copy of
//!                                 this directory had it
//!                  taking         whether it is being taken, so that the term may have risen
//! ```

use std::{
    fmt::Debug,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError,
    database::Database,
    sqlite::Sqlite,
    state_dir::{DATABASE, OpenError},
};
use crate::ground::random::alphanumeric;

/// The file that says so.
const MARKER: &str = "catalog.json";

/// The form of the file.
const FORMAT: u32 = 1;

/// Far more than it has.
const MAX_BYTES: u64 = 64 << 10;

/// Characters of an installation's name.
const INSTALLATION: usize = 20;

/// A catalogue that is not part of a state directory.
pub trait Catalog: Debug + Send + Sync {
    /// Where it is, without a password: for people, and to be remembered.
    fn address(&self) -> String;

    /// Takes it for a state directory, against other servers, until what is given is closed. Only with [`StoreError::Unknown`] it may have
    /// been taken although this failed.
    fn open(&self, holder: Holder) -> BoxFuture<'_, Result<Opened, StoreError>>;

    /// One to read, which takes it from nobody: it has to be this installation's, and up to date.
    fn look<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>>;
}

/// Who takes a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The state directory's name: a catalogue is one installation's.
    pub installation: String,
    /// How it left it.
    pub left: Left,
}

/// How a state directory left its catalogue. In any other state that is another one, an old copy of it, or that of another copy of the
/// directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It never had it.
    Never,
    /// It had it last in this term, and nobody can have had it since.
    In(i64),
    /// It had it in this term, and was stopped while it took it in a later one.
    After(i64),
}

/// A catalogue that was taken.
#[derive(Debug)]
pub struct Opened {
    /// Its database.
    pub database: Arc<dyn Database>,
    /// Rises with each who takes it.
    pub term: i64,
}

/// What is in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marker {
    format: u32,
    pub(crate) installation: String,
    pub(crate) address: String,
    pub(crate) began: bool,
    pub(crate) term: i64,
    #[serde(default)]
    taking: bool,
}

impl Marker {
    /// That of a directory whose catalogue is to be at `address`.
    pub(crate) fn new(address: String) -> Self {
        Self { format: FORMAT, installation: alphanumeric(INSTALLATION), address, began: false, term: 0, taking: false }
    }

    pub(crate) fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(MARKER)
    }

    /// That of a directory, if its catalogue is elsewhere.
    pub(crate) fn read(state_dir: &Path) -> Result<Option<Self>, OpenError> {
        let path = Self::path(state_dir);
        let failed = |source| OpenError::Directory { path: path.clone(), source };
        let Some(bytes) = firkin_files::private::read(&path, MAX_BYTES).map_err(failed)? else { return Ok(None) };
        let marker: Self = serde_json::from_slice(&bytes).map_err(|error| failed(io::Error::other(error)))?;
        if marker.format != FORMAT {
            let text = format!("it has format {}, this version reads {FORMAT}", marker.format);
            return Err(failed(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Ok(Some(marker))
    }

    /// Has a directory say so. Durable when this returns.
    pub(crate) fn write(&self, state_dir: &Path) -> Result<(), OpenError> {
        let path = Self::path(state_dir);
        let failed = |source| OpenError::Directory { path: path.clone(), source };
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| failed(io::Error::other(error)))?;
        firkin_files::private::replace(&path, &bytes, firkin_files::private::PRIVATE).map_err(failed)
    }

    /// How the directory left its catalogue.
    pub(crate) fn left(&self) -> Left {
        match (self.began, self.taking) {
            (false, _) => Left::Never,
            (true, false) => Left::In(self.term),
            (true, true) => Left::After(self.term),
        }
    }

    /// Takes the catalogue as one that was left so. Only [`Marker::settle`] says that it was.
    pub(crate) async fn take(&self, state_dir: &Path, catalog: &dyn Catalog, left: Left) -> Result<Opened, OpenError> {
        Self { taking: true, ..self.clone() }.write(state_dir)?;
        let holder = Holder { installation: self.installation.clone(), left };
        let opened = catalog.open(holder).await;
        if let Err(error) = &opened
            && !matches!(error, StoreError::Unknown { .. })
        {
            // It was not taken. Whoever has it in a later term from here on is another copy of this directory.
            self.write(state_dir)?;
        }
        opened.map_err(OpenError::Store)
    }

    /// Has a directory remember that its catalogue was taken, and in which term.
    pub(crate) fn settle(mut self, state_dir: &Path, (address, term): (String, i64)) -> Result<(), OpenError> {
        (self.address, self.began, self.term, self.taking) = (address, true, term, false);
        self.write(state_dir)
    }
}

/// A file of SQLite, made if it is not there: what a state directory has in itself, for catalogues of one's own.
pub async fn sqlite(path: &Path) -> Result<Arc<dyn Database>, StoreError> {
    Ok(Arc::new(Sqlite::open(path).await?))
}

/// Where the catalogue of a state directory is, if it is not in itself, without a password.
pub fn elsewhere(state_dir: &Path) -> Result<Option<String>, OpenError> {
    Ok(begun(Marker::read(state_dir)?.as_ref()).map(|marker| marker.address.clone()))
}

/// Who a state directory is to a catalogue at `address`, and how it left the one that it goes with. A directory that has its catalogue in itself
/// gets its name by this, and goes on as it was.
pub fn holder(state_dir: &Path, address: String) -> Result<Holder, OpenError> {
    let marker = match Marker::read(state_dir)? {
        Some(marker) => marker,
        None => {
            let marker = Marker::new(address);
            marker.write(state_dir)?;
            marker
        }
    };
    Ok(Holder { left: marker.left(), installation: marker.installation })
}

/// A marker without a catalogue that was ever opened says nothing yet: something failed before anything was recorded there.
pub(crate) fn begun(marker: Option<&Marker>) -> Option<&Marker> {
    marker.filter(|marker| marker.began)
}

/// Opens the catalogue of a state directory that is locked: the one that it goes with, and no other.
pub(crate) async fn open(state_dir: &Path, catalog: Option<&dyn Catalog>) -> Result<Store, OpenError> {
    let own = state_dir.join(DATABASE);
    let marker = Marker::read(state_dir)?;
    match (begun(marker.as_ref()), catalog) {
        (None, None) => {
            if !is_there(&own)? {
                demand_no_files(state_dir)?;
            }
            Store::open(&own).await.map_err(OpenError::Store)
        }
        (Some(marker), None) => Err(OpenError::CatalogElsewhere { path: state_dir.to_owned(), address: marker.address.clone() }),
        (Some(marker), Some(catalog)) => taken(marker.clone(), state_dir, catalog).await,
        (None, Some(catalog)) => {
            if is_there(&own)? {
                return Err(OpenError::CatalogHere { path: state_dir.to_owned(), address: catalog.address() });
            }
            demand_no_files(state_dir)?;
            // The name by which a catalogue may know this directory already.
            let marker = marker.unwrap_or_else(|| Marker::new(catalog.address()));
            taken(marker, state_dir, catalog).await
        }
    }
}

fn is_there(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(|source| OpenError::Directory { path: path.to_owned(), source })
}

/// Refuses to begin anew where there are artifacts: no record would name them.
fn demand_no_files(state_dir: &Path) -> Result<(), OpenError> {
    let path = state_dir.join("artifacts");
    let entries = match fs_err::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| OpenError::Directory { path, source })?,
    };
    // Drafts, and what was being removed, have hidden names.
    let is_whole = |entry: &fs_err::DirEntry| !entry.file_name().to_string_lossy().starts_with('.');
    if entries.filter_map(Result::ok).any(|entry| is_whole(&entry)) {
        return Err(OpenError::CatalogLost { path: state_dir.to_owned() });
    }
    Ok(())
}

async fn taken(marker: Marker, state_dir: &Path, catalog: &dyn Catalog) -> Result<Store, OpenError> {
    let Opened { database, term } = marker.take(state_dir, catalog, marker.left()).await?;
    let store = Store::of(database);
    let settled = match marker.settle(state_dir, (catalog.address(), term)) {
        Ok(()) => store.ensure_first_team().await.map_err(OpenError::Store),
        failed => failed,
    };
    if let Err(error) = settled {
        // The next finds it free.
        drop(store.close().await);
        return Err(error);
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_its_name_before_it_has_a_catalogue_and_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = holder(dir.path(), "there".to_owned()).unwrap();
        assert_eq!((first.installation.len(), first.left), (INSTALLATION, Left::Never));
        assert_eq!(elsewhere(dir.path()).unwrap(), None);
        let marker = Marker::read(dir.path()).unwrap().unwrap();
        marker.settle(dir.path(), ("there".to_owned(), 4)).unwrap();
        let then = holder(dir.path(), "elsewhere".to_owned()).unwrap();
        assert_eq!(then, Holder { left: Left::In(4), ..first });
    }
}
