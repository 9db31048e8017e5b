//! Can this version go on with what another one left, or still runs? Asked before the other is stopped.
//!
//! Everything is read and nothing is taken, written or brought up to date: the server on the state directory may go on. What is not looked at,
//! because it needs the engine itself: whether a state was made by a QEMU or a gVisor that this host still has. A start says that, and leaves alone what it
//! cannot bring back.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use firkin_wire::control;
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;

use crate::{
    artifact::{FORMAT, SEALED_FORMAT},
    storage::volumes,
    store::{
        StoreError, catalog, look,
        state_dir::{DATABASE, OpenError},
    },
};

/// The largest sidecar that is read.
const MAX_BYTES: u64 = 1 << 20;

/// As many are named of what cannot be read.
const NAMED: usize = 10;

/// What becomes of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is read as it is.
    Readable,
    /// It is brought up to date at the start, and earlier versions read it no more.
    Migrated,
    /// This version cannot go on with it.
    Refused,
    /// It is elsewhere, and is looked at by the start.
    Elsewhere,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Look {
    /// What it is.
    pub what: &'static str,
    /// How many there are.
    pub count: usize,
    /// Versions that were found.
    pub found: String,
    /// Versions that are known.
    pub known: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// Those that cannot be read, a few of them.
    pub refused: Vec<String>,
}

/// What was found in a state directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpgradeReport {
    /// Everything that was looked at; nothing where there is no state yet.
    pub looks: Vec<Look>,
}

impl UpgradeReport {
    /// Whether this version can go on with all of it.
    pub fn is_adoptable(&self) -> bool {
        self.looks.iter().all(|look| look.verdict != Verdict::Refused)
    }
}

/// Why nobody can tell.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The database cannot be looked at.
    #[error("cannot look at the database")]
    Store(#[from] StoreError),
    /// It cannot be told where what is on record is.
    #[error("cannot tell where what is on record is")]
    Catalog(#[from] OpenError),
    /// A directory cannot be.
    #[error("cannot look at `{}`", path.display())]
    File {
        /// The directory, or a file in it.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Looks at everything below `state_dir` that has a version.
pub fn look_at(state_dir: &Path) -> Result<UpgradeReport, UpgradeError> {
    let database = state_dir.join(DATABASE);
    let elsewhere = catalog::elsewhere(state_dir)?;
    let is_own = database.try_exists().map_err(|source| UpgradeError::File { path: database.clone(), source })?;
    if !is_own && elsewhere.is_none() {
        return Ok(UpgradeReport::default());
    }
    let manifests = sidecars(&state_dir.join("artifacts"), "manifest.json")?;
    let keys = sidecars(&state_dir.join("artifacts"), "key")?;
    let volumes = sidecars(&state_dir.join("volumes"), "volume.json")?;
    let number = |pointer: &'static str| move |sidecar: &Value| sidecar.pointer(pointer).and_then(Value::as_u64);
    let mut looks = match elsewhere {
        Some(address) => vec![Look {
            what: "catalogue",
            count: 1,
            found: address,
            known: String::new(),
            verdict: Verdict::Elsewhere,
            refused: Vec::new(),
        }],
        None => records(look::look(&database)?).to_vec(),
    };
    looks.push(judged("artifacts", &manifests, number("/format"), (FORMAT, SEALED_FORMAT)));
    looks.push(judged("guest agents", &manifests, number("/guest/agent_generation"), (0, control::GENERATION)));
    looks.push(judged("keys of sealed artifacts", &keys, number("/format"), (1, 1)));
    looks.push(judged("volumes", &volumes, number("/format"), (volumes::FORMAT, volumes::FORMAT)));
    Ok(UpgradeReport { looks })
}

/// The database, and what is in it.
fn records(seen: look::Seen) -> [Look; 2] {
    let verdict = match seen.schema {
        schema if schema == seen.known => Verdict::Readable,
        schema if (1..seen.known).contains(&schema) => Verdict::Migrated,
        _ => Verdict::Refused,
    };
    let known = format!("1 to {}", seen.known);
    let schema = Look { what: "database", count: 1, found: seen.schema.to_string(), known, verdict, refused: Vec::new() };
    let refused: Vec<String> = seen.unreadable.iter().take(NAMED).map(|(id, why)| format!("{id}: {why}")).collect();
    let verdict = if refused.is_empty() { verdict } else { Verdict::Refused };
    let sandboxes = Look {
        what: "sandboxes",
        count: seen.sandboxes,
        found: schema.found.clone(),
        known: schema.known.clone(),
        verdict,
        refused,
    };
    [schema, sandboxes]
}

/// Whether versions of sidecars are among the known ones.
fn judged(
    what: &'static str,
    sidecars: &[(String, Value)],
    version: impl Fn(&Value) -> Option<u64>,
    (least, most): (u32, u32),
) -> Look {
    let known = if least == most || least == 0 { format!("up to {most}") } else { format!("{least} to {most}") };
    let (mut versions, mut refused) = (BTreeMap::<String, usize>::new(), Vec::new());
    for (name, sidecar) in sidecars {
        let found = version(sidecar);
        *versions.entry(found.map_or_else(|| "none".to_owned(), |found| found.to_string())).or_default() += 1;
        if found.is_none_or(|found| !(u64::from(least)..=u64::from(most)).contains(&found)) && refused.len() < NAMED {
            refused.push(name.clone());
        }
    }
    let verdict = if refused.is_empty() { Verdict::Readable } else { Verdict::Refused };
    let found = versions.into_keys().collect::<Vec<_>>().join(", ");
    Look { what, count: sidecars.len(), found, known, verdict, refused }
}

/// The file of this name in each directory below `dir`, by the directory's name. What is no JSON has no version; what is just being
/// made has a name with a dot, and what is removed meanwhile is not there.
fn sidecars(dir: &Path, name: &str) -> Result<Vec<(String, Value)>, UpgradeError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| UpgradeError::File { path, source }
    };
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed(dir))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed(dir))?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path().join(name);
        let small = match fs::metadata(&path) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            meta => meta.map_err(failed(&path))?.len() <= MAX_BYTES,
        };
        let text = match small.then(|| fs::read(&path)).transpose() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.map_err(failed(&path))?.unwrap_or_default(),
        };
        found.push((entry.file_name().to_string_lossy().into_owned(), serde_json::from_slice(&text).unwrap_or_default()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn verdicts(report: &UpgradeReport) -> Vec<(&str, usize, Verdict)> {
        report.looks.iter().map(|look| (look.what, look.count, look.verdict)).collect()
    }

    #[tokio::test]
    async fn what_this_version_reads_is_told_from_what_it_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look_at(dir.path()).unwrap(), UpgradeReport::default(), "where nothing is, nothing is in the way");
        let store = Store::open(&dir.path().join("firkin.db")).await.unwrap();
        let put = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("artifacts/a/manifest.json", r#"{"format": 1, "guest": {"agent_generation": 1}}"#);
        put("artifacts/b/manifest.json", r#"{"format": 2, "guest": {"agent_generation": 2}}"#);
        put("artifacts/b/key", r#"{"format": 1}"#);
        put("volumes/v/volume.json", r#"{"format": 1}"#);
        let report = look_at(dir.path()).unwrap();
        assert!(report.is_adoptable(), "{report:?}");
        let readable = Verdict::Readable;
        assert_eq!(
            verdicts(&report),
            [
                ("database", 1, readable),
                ("sandboxes", 0, readable),
                ("artifacts", 2, readable),
                ("guest agents", 2, readable),
                ("keys of sealed artifacts", 1, readable),
                ("volumes", 1, readable)
            ]
        );
        put("artifacts/c/manifest.json", r#"{"format": 3, "guest": {"agent_generation": 99}}"#);
        put("artifacts/d/manifest.json", "half a fi");
        put("volumes/w/volume.json", r#"{"format": 2}"#);
        let report = look_at(dir.path()).unwrap();
        assert!(!report.is_adoptable());
        let mut refused = report.looks[2].refused.clone();
        refused.sort();
        assert_eq!(refused, ["c", "d"]);
        assert_eq!((report.looks[2].found.as_str(), report.looks[2].known.as_str()), ("1, 2, 3, none", "1 to 2"));
        assert_eq!(report.looks[5].refused, ["w"]);
        drop(store);
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.db");
        Store::open(&path).await.unwrap().close().await.unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch("INSERT INTO sandboxes VALUES ('i1', '{\"new\": 1}')").unwrap();
        let report = look_at(dir.path()).unwrap();
        assert_eq!(report.looks[1].verdict, Verdict::Refused);
        assert!(report.looks[1].refused[0].starts_with("i1: a row of `sandboxes` cannot be read"), "{report:?}");
        connection.execute_batch("PRAGMA user_version = 99").unwrap();
        let report = look_at(dir.path()).unwrap();
        assert_eq!((report.looks[0].verdict, report.looks[0].found.as_str()), (Verdict::Refused, "99"));
        connection.execute_batch("PRAGMA user_version = 2").unwrap();
        assert_eq!(look_at(dir.path()).unwrap().looks[0].verdict, Verdict::Migrated);
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        assert_eq!(version, 2, "nothing was brought up to date");
    }
}
