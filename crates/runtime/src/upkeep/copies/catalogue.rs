//! Backups of the catalogue: the database at one moment, with what of the state directory has no other copy and is small.
//!
//! Keys of the installation stay here: who has the copies alone opens neither secrets nor what is encrypted at rest. What is in the database
//! (tokens of sandboxes, digests of API keys) is as it is there.

use std::{
    io,
    path::{Path, PathBuf},
};

use firkin_copies::{Blob, Copies, Digest, Record};
use fs_err as fs;
use jiff::Timestamp;

use super::{
    RoundError,
    records::{Backup, FORMAT, KEY_FILES, to_json},
};
use crate::{
    ground::{blocking::blocking, private::private_dir},
    shared::Shared,
    store::state_dir::DATABASE,
};

/// Where a backup is made, in the state directory, until it has been sent.
const PLACE: &str = "copying";

/// Secrets, where there are any.
const SECRETS: &str = "secrets";

/// The most that secrets have.
const MAX_SECRETS_BYTES: u64 = 64 << 20;

/// What was backed up last.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    last: Option<Backup>,
}

impl Catalogue {
    /// Sends a backup, if anything has changed since the last one.
    pub(super) async fn back_up(&mut self, shared: &Shared, copies: &Copies) -> Result<(), RoundError> {
        let (state_dir, artifacts) = (shared.config.state_dir.clone(), shared.artifacts.clone());
        // Before the database: what it names by then has its key.
        let (place, keys) = blocking(move || Ok::<_, RoundError>((emptied(&state_dir)?, artifacts.keys_to_copy()?))).await?;
        let taken_at = Timestamp::now();
        shared.store.back_up(&shared.config.state_dir, &place.join(DATABASE)).await?;
        let state_dir = shared.config.state_dir.clone();
        let made = blocking(move || make(&state_dir, place, &keys, taken_at)).await?;
        let Made { backup, files, place } = made;
        if !self.last.as_ref().is_some_and(|last| last.is_as(&backup)) {
            for (blob, path) in &files {
                copies.put(blob, path).await?;
            }
            let name = backup.taken_at.strftime("%Y%m%dT%H%M%S%3fZ").to_string();
            let name = name.parse().expect("a time has digits and letters");
            copies.put_record(&Record::Catalogue(name), to_json(&backup)).await?;
            tracing::debug!(at = %backup.taken_at, "backed up the catalogue");
            self.last = Some(backup);
        }
        blocking(move || firkin_files::remove_tree(&place)).await?;
        Ok(())
    }
}

/// A backup that is not sent.
struct Made {
    backup: Backup,
    files: Vec<(Blob, PathBuf)>,
    place: PathBuf,
}

/// Where it is made, with nothing in it.
fn emptied(state_dir: &Path) -> Result<PathBuf, RoundError> {
    let place = state_dir.join(PLACE);
    // What was broken off.
    match firkin_files::remove_tree(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    private_dir(&place)?;
    Ok(place)
}

fn make(state_dir: &Path, place: PathBuf, keys: &[(String, String)], taken_at: Timestamp) -> Result<Made, RoundError> {
    let mut files = Vec::new();
    let mut file = |path: PathBuf| -> io::Result<Blob> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(fs::File::open(&path)?)?;
        let blob = Blob { bytes: hasher.count(), blake3: Digest::from(hasher.finalize()) };
        files.push((blob, path));
        Ok(blob)
    };
    let mut small = |name: &str, content: Option<Vec<u8>>| -> io::Result<Option<Blob>> {
        let Some(content) = content else { return Ok(None) };
        crate::ground::private::private_file(&place.join(name), &content)?;
        file(place.join(name)).map(Some)
    };
    let secrets = small(SECRETS, firkin_files::private::read(&state_dir.join(SECRETS), MAX_SECRETS_BYTES)?)?;
    let keys = small("keys", (!keys.is_empty()).then(|| to_json(&keys)))?;
    let database = file(place.join(DATABASE))?;
    let volumes = volumes(state_dir)?;
    let key_files = KEY_FILES.iter().filter(|name| state_dir.join(name).exists()).map(|name| (*name).to_owned()).collect();
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Ok(Made { backup: Backup { format: FORMAT, taken_at, version, database, secrets, keys, key_files, volumes }, files, place })
}

fn volumes(state_dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(state_dir.join("volumes")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
