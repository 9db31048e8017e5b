//! What is done with a catalogue as a whole: a state directory gets one that is not in itself, it is backed up, and a copy of it is held
//! against the files that are there.
//!
//! Bringing a catalogue elsewhere is one transaction there and one file here, the marker of the state directory (`store/catalog.rs`), in
//! this order: whoever is killed in between has its catalogue where it was, and does it again.

use std::{
    collections::HashSet,
    io::{self, BufRead, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;
use serde::Serialize;

use super::verify::needed_by;
pub use crate::store::copy::{Copied, CopyError};
use crate::{
    artifact::ArtifactStore,
    ground::{ids::ArtifactId, team::Scope},
    store::{
        RecordedPhase, Store, StoreError,
        catalog::{Catalog, Left, Marker, Opened, begun},
        copy::Rows,
        database::Database,
        sqlite::Sqlite,
        state_dir::{DATABASE, OpenError, whole_state_dir},
    },
};

/// What the database of a state directory is called after its records went elsewhere.
const MOVED: &str = "firkin.db.moved";

/// Why a catalogue was not moved, backed up or looked at.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The state directory or a catalogue cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The state directory has its catalogue elsewhere already.
    #[error("what is on record of `{}` is in the catalogue at {address} already", path.display())]
    Moved {
        /// The directory.
        path: PathBuf,
        /// Where.
        address: String,
    },
    /// There is nothing in the state directory.
    #[error("nothing is on record of `{}`", path.display())]
    Nothing {
        /// The directory.
        path: PathBuf,
    },
    /// Its files cannot be looked at.
    #[error("cannot look at what is in `{}`", path.display())]
    Files {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl From<StoreError> for CatalogueError {
    fn from(error: StoreError) -> Self {
        Self::Open(OpenError::Store(error))
    }
}

/// Where what is to be in a catalogue comes from.
#[expect(missing_debug_implementations, reason = "a stream shows nothing")]
pub enum Source<'a> {
    /// The state directory's own database.
    Own,
    /// A backup: the catalogue that it is of is lost.
    Backup(&'a mut (dyn BufRead + Send)),
}

/// Has a state directory, which no server uses, have its catalogue in `catalog`, with everything that is on record. A backup is taken by an
/// empty catalogue only.
pub async fn init(state_dir: &Path, catalog: &dyn Catalog, source: Source<'_>) -> Result<Copied, CatalogueError> {
    let _lock = whole_state_dir(state_dir)?;
    let marker = Marker::read(state_dir)?;
    let own = state_dir.join(DATABASE);
    let (rows, retried) = match source {
        Source::Own => {
            if let Some(marker) = begun(marker.as_ref()) {
                let address = marker.address.clone();
                return Err(CatalogueError::Moved { path: state_dir.to_owned(), address });
            }
            if !is_there(&own)? {
                return Err(CatalogueError::Nothing { path: state_dir.to_owned() });
            }
            // Brought up to date by this.
            let database = Sqlite::open(&own).await?;
            let rows = Rows::of(&database).await;
            database.close().await?;
            // A try before this one may have left half of what it had in there: it was never used.
            (rows?, marker.is_some())
        }
        Source::Backup(backup) => (Rows::read(backup)?, false),
    };
    let marker = marker.unwrap_or_else(|| Marker::new(catalog.address()));
    let Opened { database, term } = marker.take(state_dir, catalog, Left::Never).await?;
    let put = rows.put(&*database, retried).await;
    let settled = put.map_err(CatalogueError::from).and_then(|copied| {
        marker.settle(state_dir, (catalog.address(), term))?;
        Ok(copied)
    });
    // It is given up for the server that comes, whatever came of it.
    database.close().await?;
    let copied = settled?;
    if is_there(&own)? {
        // Nobody takes it for what holds.
        let renamed = fs::rename(&own, state_dir.join(MOVED));
        renamed.map_err(|source| CatalogueError::Files { path: state_dir.to_owned(), source })?;
    }
    Ok(copied)
}

fn is_there(path: &Path) -> Result<bool, CatalogueError> {
    path.try_exists().map_err(|source| CatalogueError::Files { path: path.to_owned(), source })
}

/// The database of a state directory, to be read while a server may use it.
async fn look(state_dir: &Path, catalog: Option<&dyn Catalog>) -> Result<Arc<dyn Database>, CatalogueError> {
    let marker = Marker::read(state_dir)?;
    let path = || state_dir.to_owned();
    match (begun(marker.as_ref()), catalog) {
        (Some(marker), Some(catalog)) => Ok(catalog.look(&marker.installation).await?),
        (Some(marker), None) => Err(OpenError::CatalogElsewhere { path: path(), address: marker.address.clone() }.into()),
        (None, Some(catalog)) => Err(OpenError::CatalogHere { path: path(), address: catalog.address() }.into()),
        (None, None) if !is_there(&state_dir.join(DATABASE))? => Err(CatalogueError::Nothing { path: path() }),
        (None, None) => Ok(Arc::new(Sqlite::another(&state_dir.join(DATABASE)).await?)),
    }
}

/// Writes all that is on record of a state directory, as it is at one moment. A server may use it meanwhile.
pub async fn backup(
    state_dir: &Path,
    catalog: Option<&dyn Catalog>,
    to: &mut (dyn Write + Send),
) -> Result<Copied, CatalogueError> {
    let database = look(state_dir, catalog).await?;
    let rows = Rows::of(&*database).await;
    database.close().await?;
    let rows = rows?;
    rows.write(to).map_err(CopyError::File)?;
    Ok(rows.copied())
}

/// What a catalogue says, beside the files that are there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Held {
    /// What it holds.
    pub copied: Copied,
    /// Sandboxes that it has as running.
    pub running: usize,
    /// Sandboxes that it has as paused.
    pub paused: usize,
    /// Artifacts that it needs and that are not there, with who needs them.
    pub missing: Vec<Missing>,
    /// Artifacts that are there and that it does not name: a server would remove them.
    pub unnamed: Vec<String>,
}

/// An artifact that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// It.
    pub artifact: String,
    /// Sandboxes, templates and snapshots that cannot be restored without it.
    pub needed_by: Vec<String>,
}

impl Held {
    /// Whether everything is there that the catalogue needs.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Loads a backup as a server would, and holds it against the files of a state directory. Nothing is changed.
pub async fn check_backup(state_dir: &Path, backup: &mut (dyn BufRead + Send)) -> Result<Held, CatalogueError> {
    held(state_dir, Rows::read(backup)?).await
}

/// Holds the catalogue of a state directory against its files: after the catalogue itself came out of a backup. Nothing is changed.
pub async fn check(state_dir: &Path, catalog: Option<&dyn Catalog>) -> Result<Held, CatalogueError> {
    let database = look(state_dir, catalog).await?;
    let rows = Rows::of(&*database).await;
    database.close().await?;
    held(state_dir, rows?).await
}

/// Has a state directory, which no server uses, go on with its catalogue although that is in an earlier state than it was left in: what was
/// recorded since is lost, and what is named no more will be removed.
pub async fn accept(state_dir: &Path, catalog: &dyn Catalog) -> Result<(), CatalogueError> {
    let _lock = whole_state_dir(state_dir)?;
    let Some(marker) = Marker::read(state_dir)? else { return Err(CatalogueError::Nothing { path: state_dir.to_owned() }) };
    let Opened { database, term } = marker.take(state_dir, catalog, Left::Never).await?;
    let settled = marker.settle(state_dir, (catalog.address(), term));
    database.close().await?;
    Ok(settled?)
}

async fn held(state_dir: &Path, rows: Rows) -> Result<Held, CatalogueError> {
    // References that lead nowhere and records that this version cannot read are found by this.
    let database = Arc::new(Sqlite::in_memory().await?);
    let copied = rows.put(&*database, true).await?;
    let store = Store::of(database);
    let (sandboxes, templates) = (store.sandboxes(Scope::Host).await?, store.templates(Scope::Host).await?);
    let named: HashSet<ArtifactId> = store.in_use().await?.artifacts.into_iter().collect();
    let here = here(state_dir)?;
    let files = |source| CatalogueError::Files { path: state_dir.to_owned(), source };
    let mut over = Vec::new();
    for id in named.intersection(&here) {
        // Who cannot be read is found by `verify`, with what is wrong with it.
        if let Some(base) = ArtifactStore::base_below(state_dir, id).map_err(files)? {
            over.push((id.clone(), base));
        }
    }
    let needed: HashSet<ArtifactId> = named.into_iter().chain(over.iter().map(|(_, base)| base.clone())).collect();
    let mut missing: Vec<Missing> = needed
        .difference(&here)
        .map(|id| Missing { artifact: id.to_string(), needed_by: needed_by(id, &sandboxes, &templates, &over) })
        .collect();
    missing.sort_by(|one, other| one.artifact.cmp(&other.artifact));
    let mut unnamed: Vec<String> = here.difference(&needed).map(ToString::to_string).collect();
    unnamed.sort();
    let paused = sandboxes.iter().filter(|sandbox| matches!(sandbox.phase, RecordedPhase::Paused(_))).count();
    Ok(Held { copied, running: sandboxes.len() - paused, paused, missing, unnamed })
}

/// Ids of artifacts that are there.
fn here(state_dir: &Path) -> Result<HashSet<ArtifactId>, CatalogueError> {
    match ArtifactStore::ids_below(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        found => Ok(found.map_err(|source| CatalogueError::Files { path: state_dir.to_owned(), source })?.into_iter().collect()),
    }
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;
    use crate::store::{
        catalog::{self, Holder},
        contract,
    };

    /// A catalogue elsewhere: a file of SQLite, of which each who takes it has one more term.
    #[derive(Debug)]
    struct Elsewhere {
        path: PathBuf,
        holders: std::sync::Mutex<Vec<Holder>>,
        /// It is not there.
        away: std::sync::atomic::AtomicBool,
    }

    impl Catalog for Elsewhere {
        fn address(&self) -> String {
            "elsewhere".to_owned()
        }

        fn open(&self, holder: Holder) -> BoxFuture<'_, Result<Opened, StoreError>> {
            Box::pin(async move {
                if self.away.load(std::sync::atomic::Ordering::Relaxed) {
                    return Err(StoreError::Away { operation: "open", source: "nobody answers".into() });
                }
                let term = {
                    let mut holders = self.holders.lock().unwrap();
                    holders.push(holder);
                    i64::try_from(holders.len()).unwrap()
                };
                Ok(Opened { database: Arc::new(Sqlite::open(&self.path).await?), term })
            })
        }

        fn look<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>> {
            Box::pin(async move { Ok(Arc::new(Sqlite::another(&self.path).await?) as Arc<dyn Database>) })
        }
    }

    struct Scene {
        dir: tempfile::TempDir,
        catalog: Elsewhere,
    }

    impl Scene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("elsewhere.db");
            Self { dir, catalog: Elsewhere { path, holders: Default::default(), away: Default::default() } }
        }

        fn state(&self) -> PathBuf {
            let state = self.dir.path().join("state");
            fs::create_dir_all(&state).unwrap();
            state
        }

        fn left(&self) -> Vec<Left> {
            self.catalog.holders.lock().unwrap().iter().map(|holder| holder.left).collect()
        }
    }

    async fn saved(state: &Path, catalog: Option<&dyn Catalog>) -> Result<String, CatalogueError> {
        let mut lines = Vec::new();
        backup(state, catalog, &mut lines).await?;
        Ok(String::from_utf8(lines).unwrap())
    }

    /// Without the moment at which it was read.
    fn rows(lines: &str) -> Vec<&str> {
        lines.lines().filter(|line| line.starts_with('[')).collect()
    }

    #[tokio::test]
    async fn a_catalogue_is_moved_whole_and_its_directory_goes_with_no_other() {
        let scene = Scene::new();
        let (state, catalog) = (scene.state(), &scene.catalog);
        contract::leave_behind(&state).await.unwrap();
        let before = saved(&state, None).await.unwrap();
        assert!(matches!(catalog::open(&state, Some(catalog)).await, Err(OpenError::CatalogHere { .. })));

        let copied = init(&state, catalog, Source::Own).await.unwrap();
        assert_eq!((copied.of("sandboxes"), copied.of("deliveries")), (1, 1));
        assert_eq!(rows(&saved(&state, Some(catalog)).await.unwrap()), rows(&before));
        assert!(!state.join(DATABASE).exists() && state.join(MOVED).exists());
        assert!(matches!(init(&state, catalog, Source::Own).await, Err(CatalogueError::Moved { .. })));
        let without = catalog::open(&state, None).await;
        assert!(matches!(&without, Err(OpenError::CatalogElsewhere { address, .. }) if address == "elsewhere"), "{without:?}");
        assert!(!state.join(DATABASE).exists(), "no empty one was made, by which all files would be collected");
        let store = catalog::open(&state, Some(catalog)).await.unwrap();
        assert_eq!(store.sandboxes(Scope::Host).await.unwrap().len(), 1);
        store.close().await.unwrap();
        // Whoever cannot reach it has it still, and is told so.
        catalog.away.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(catalog::open(&state, Some(catalog)).await, Err(OpenError::Store(StoreError::Away { .. }))));
        catalog.away.store(false, std::sync::atomic::Ordering::Relaxed);
        catalog::open(&state, Some(catalog)).await.unwrap().close().await.unwrap();
        assert_eq!(scene.left(), [Left::Never, Left::In(1), Left::In(2)]);
    }

    #[tokio::test]
    async fn a_new_directory_has_its_catalogue_where_it_was_first_opened() {
        let scene = Scene::new();
        let (state, catalog) = (scene.state(), &scene.catalog);
        catalog.away.store(true, std::sync::atomic::Ordering::Relaxed);
        catalog::open(&state, Some(catalog)).await.unwrap_err();
        assert_eq!(catalog::elsewhere(&state).unwrap(), None, "nothing was recorded there yet");
        catalog.away.store(false, std::sync::atomic::Ordering::Relaxed);
        catalog::open(&state, Some(catalog)).await.unwrap().close().await.unwrap();
        assert_eq!(catalog::elsewhere(&state).unwrap().as_deref(), Some("elsewhere"));
        assert!(matches!(catalog::open(&state, None).await, Err(OpenError::CatalogElsewhere { .. })));
        fs::write(Marker::path(&state), r#"{"format": 9}"#).unwrap();
        assert!(
            matches!(catalog::open(&state, None).await, Err(OpenError::Directory { .. })),
            "what is not understood is no reason to begin anew"
        );
    }

    #[tokio::test]
    async fn a_backup_brings_back_what_was_lost_and_a_damaged_one_is_refused_whole() {
        let scene = Scene::new();
        let (state, catalog) = (scene.state(), &scene.catalog);
        contract::leave_behind(&state).await.unwrap();
        init(&state, catalog, Source::Own).await.unwrap();
        let lines = saved(&state, Some(catalog)).await.unwrap();

        let held = check_backup(&state, &mut lines.as_bytes()).await.unwrap();
        assert_eq!((held.running, held.paused, held.is_whole()), (0, 1, false));
        let missing = held.missing.iter().find(|missing| missing.artifact == "artifactofi1").unwrap();
        assert_eq!(missing.needed_by, ["sandbox i1"]);
        assert_eq!(held, Held { copied: held.copied.clone(), ..check(&state, Some(catalog)).await.unwrap() });

        let whole = lines.as_bytes();
        let at = lines.find("artifactofi1").unwrap();
        let flipped = [&whole[..at], b"b", &whole[at + 1..]].concat();
        let without_one: String =
            lines.lines().filter(|line| !line.contains("artifactofi1")).map(|line| format!("{line}\n")).collect();
        let newer = lines.replacen("\"format\":1", "\"format\":2", 1);
        let doubled = format!("{lines}{lines}");
        for damaged in
            [&whole[..whole.len() / 2], b"", b"\xff\n", &flipped, without_one.as_bytes(), newer.as_bytes(), doubled.as_bytes()]
        {
            let refused = check_backup(&state, &mut &*damaged).await;
            let refused = refused.expect_err("a damaged one");
            assert!(matches!(refused, CatalogueError::Copy(CopyError::Damaged(_) | CopyError::Version { .. })), "{refused:?}");
        }

        // What is there is not written over; an empty one takes it.
        let refused = init(&state, catalog, Source::Backup(&mut lines.as_bytes())).await;
        assert!(matches!(refused, Err(CatalogueError::Copy(CopyError::NotEmpty { .. }))), "{refused:?}");
        let other = Elsewhere { path: scene.dir.path().join("other.db"), holders: Default::default(), away: Default::default() };
        init(&state, &other, Source::Backup(&mut lines.as_bytes())).await.unwrap();
        assert_eq!(rows(&saved(&state, Some(&other)).await.unwrap()), rows(&lines));
        accept(&state, &other).await.unwrap();
        catalog::open(&state, Some(&other)).await.unwrap().close().await.unwrap();
    }

    #[tokio::test]
    async fn what_no_catalogue_names_is_said_before_it_is_removed() {
        let scene = Scene::new();
        let state = scene.state();
        assert!(matches!(check(&state, None).await, Err(CatalogueError::Nothing { .. })));
        contract::leave_behind(&state).await.unwrap();
        fs::create_dir_all(state.join("artifacts/nobodys")).unwrap();
        fs::create_dir_all(state.join("artifacts/artifactofi1")).unwrap();
        let held = check(&state, None).await.unwrap();
        assert_eq!(held.unnamed, ["nobodys"]);
        assert!(held.missing.iter().all(|missing| missing.artifact != "artifactofi1"), "{:?}", held.missing);
    }

    #[tokio::test]
    async fn who_has_files_and_no_records_begins_nothing() {
        let scene = Scene::new();
        let (state, catalog) = (scene.state(), &scene.catalog);
        fs::create_dir_all(state.join("artifacts/.draft")).unwrap();
        catalog::open(&state, None).await.unwrap().close().await.unwrap();
        fs::remove_file(state.join(DATABASE)).unwrap();
        fs::create_dir_all(state.join("artifacts/somebodys")).unwrap();
        for catalog in [None, Some(catalog as &dyn Catalog)] {
            let refused = catalog::open(&state, catalog).await;
            assert!(matches!(refused, Err(OpenError::CatalogLost { .. })), "{refused:?}");
        }
        assert!(!state.join(DATABASE).exists() && scene.left().is_empty(), "nothing was made, and nothing taken");
    }
}
