//! Whose copies these are, and which of them go: those of artifacts that nothing names here since some days, then blobs that nothing there
//! names.
//!
//! What says that an artifact is there goes before its members, so that nobody finds half of one. Records here are read after copies were
//! listed there, and once more before anything goes: what has come meanwhile is named by then, or was not listed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use firkin_copies::{Blob, Copies, CopyError, Digest, Name, Record};
use firkin_files::private::{PRIVATE, read, replace};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    RoundError, name_of,
    records::{Backup, Files, Installation, from_json, to_json},
};
use crate::{
    artifact::{ArtifactStore, MemoryMember},
    ground::{blocking::blocking, ids::ArtifactId},
    shared::Shared,
    store::InUse,
};

/// What is remembered here of copies.
const BOOK: &str = "copies.json";

/// The longest book.
const MAX_BOOK_BYTES: u64 = 64 << 20;

/// A blob that no record names is of a copy that was broken off, or is being made by an earlier server of this state directory that has
/// not ended yet.
const YOUNG: Duration = Duration::from_secs(3600);

/// The newest backups, all of which stay.
const BACKUPS: usize = 48;

/// What the name of a backup begins with: its day.
const DAY: usize = "20260101".len();

/// What is going.
#[derive(Debug)]
pub(super) struct Going {
    path: PathBuf,
    book: Book,
    /// The blobs of artifacts that are there, which never change.
    known: HashMap<Name, Vec<Blob>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Book {
    #[serde(flatten)]
    installation: Installation,
    /// Copies whose artifacts nothing names here, since when.
    #[serde(default)]
    gone: BTreeMap<ArtifactId, Timestamp>,
}

/// Notes that the copies of `installation` are this state directory's.
pub(crate) fn take_over(state_dir: &Path, installation: &Installation) -> io::Result<()> {
    let book = Book { installation: installation.clone(), gone: BTreeMap::new() };
    replace(&state_dir.join(BOOK), &to_json(&book), PRIVATE)
}

impl Going {
    /// What is remembered. Fails where the copies are another's.
    pub(super) async fn open(state_dir: &Path, copies: &Copies) -> Result<Self, RoundError> {
        let path = state_dir.join(BOOK);
        let book = match read(&path, MAX_BOOK_BYTES)? {
            Some(text) => from_json(&Record::Installation, &text)?,
            None => {
                let book = Book { installation: Installation::generate(), gone: BTreeMap::new() };
                replace(&path, &to_json(&book), PRIVATE)?;
                book
            }
        };
        match copies.record(&Record::Installation).await {
            Ok(text) if from_json::<Installation>(&Record::Installation, &text)?.id == book.installation.id => {}
            Ok(_) => return Err(RoundError::Foreign),
            Err(CopyError::Absent { .. }) => {
                copies.put_record(&Record::Installation, to_json(&book.installation)).await?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Self { path, book, known: HashMap::new() })
    }

    /// Removes what has been gone for as long as `keep`. Gives the artifacts whose copies went.
    pub(super) async fn clean(
        &mut self,
        shared: &Shared,
        copies: &Copies,
        keep: Duration,
    ) -> Result<HashSet<ArtifactId>, RoundError> {
        let there: BTreeSet<ArtifactId> =
            copies.artifacts().await?.iter().filter_map(|name| name.as_str().parse().ok()).collect();
        let now = Timestamp::now();
        let needed = needed(shared).await?;
        let before = self.book.clone();
        self.book.gone.retain(|id, _| there.contains(id) && !needed.contains(id));
        for id in there.iter().filter(|id| !needed.contains(*id)) {
            self.book.gone.entry(id.clone()).or_insert(now);
        }
        let old = |since: &Timestamp| now.duration_since(*since).unsigned_abs() >= keep;
        let due: Vec<ArtifactId> = self.book.gone.iter().filter(|(_, since)| old(since)).map(|(id, _)| id.clone()).collect();
        let mut gone = HashSet::new();
        if !due.is_empty() {
            let needed = self::needed(shared).await?;
            for id in due.into_iter().filter(|id| !needed.contains(id)) {
                let name = name_of(&id);
                for record in [Record::Manifest(name.clone()), Record::Integrity(name.clone()), Record::Files(name.clone())] {
                    copies.remove_record(&record).await?;
                }
                self.known.remove(&name);
                self.book.gone.remove(&id);
                tracing::info!(artifact = %id, "removed a copy of what has been gone for long");
                gone.insert(id);
            }
        }
        if self.book != before {
            replace(&self.path, &to_json(&self.book), PRIVATE)?;
        }
        let backups = thin_out(copies, keep).await?;
        let left = there.into_iter().filter(|id| !gone.contains(id));
        self.remove_unnamed(copies, left.collect(), backups).await?;
        Ok(gone)
    }

    /// Removes blobs that neither an artifact nor a backup names. Where one of these cannot be read, nothing is removed.
    async fn remove_unnamed(&mut self, copies: &Copies, there: Vec<ArtifactId>, backups: Vec<Name>) -> Result<(), RoundError> {
        let blobs = copies.blobs().await?;
        let mut named: HashSet<Digest> = HashSet::new();
        for id in there {
            let name = name_of(&id);
            if !self.known.contains_key(&name) {
                let record = Record::Files(name.clone());
                let files: Files = from_json(&record, &copies.record(&record).await?)?;
                self.known.insert(name.clone(), files.blobs().collect());
            }
            named.extend(self.known[&name].iter().map(|blob| blob.blake3));
        }
        for name in backups {
            let record = Record::Catalogue(name);
            let backup: Backup = from_json(&record, &copies.record(&record).await?)?;
            named.extend(backup.blobs().map(|blob| blob.blake3));
        }
        let young = Timestamp::now().as_second() - YOUNG.as_secs().cast_signed();
        for (digest, _) in blobs.into_iter().filter(|(digest, since)| !named.contains(digest) && *since < young) {
            copies.remove_blob(&digest).await?;
        }
        Ok(())
    }
}

/// Everything that records name here, with what it stands on: also what is only in use.
async fn needed(shared: &Shared) -> Result<HashSet<ArtifactId>, RoundError> {
    let InUse { artifacts: used, layers: _, states } = shared.store.in_use().await?;
    let artifacts: ArtifactStore = shared.artifacts.clone();
    let base = move |id: &ArtifactId| match artifacts.load(id).ok()?.manifest.memory {
        MemoryMember::Diff { base } => Some(base),
        MemoryMember::Full | MemoryMember::InState | MemoryMember::Absent => None,
    };
    Ok(blocking(move || {
        let mut needed: HashSet<ArtifactId> = used.into_iter().chain(states.into_iter().map(|state| state.artifact)).collect();
        let bases: Vec<ArtifactId> = needed.iter().filter_map(base).collect();
        needed.extend(bases);
        needed
    })
    .await)
}

/// Removes backups of the catalogue but the newest, and one of each day for as long as copies stay. Gives those that are there then.
async fn thin_out(copies: &Copies, keep: Duration) -> Result<Vec<Name>, RoundError> {
    let names = copies.catalogues().await?;
    let oldest = (Timestamp::now() - keep).strftime("%Y%m%d").to_string();
    let staying = staying(&names, &oldest);
    for name in names.iter().filter(|name| !staying.contains(name)) {
        copies.remove_record(&Record::Catalogue(name.clone())).await?;
    }
    Ok(staying)
}

/// Of these, oldest first, the newest, and the last of each day since `oldest`.
fn staying(names: &[Name], oldest: &str) -> Vec<Name> {
    let day = |name: &Name| name.as_str().get(..DAY).unwrap_or_default().to_owned();
    let newest = names.len().saturating_sub(BACKUPS);
    let stays = |(at, name): &(usize, &Name)| {
        let last_of_day = names.get(at + 1).is_none_or(|next| day(next) != day(name));
        *at >= newest || (last_of_day && day(name).as_str() >= oldest)
    };
    names.iter().enumerate().filter(stays).map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_backups_stay_and_one_of_each_day() {
        let name = |day: u32, hour: u32| format!("202601{day:02}T{hour:02}0000000Z").parse::<Name>().unwrap();
        let names: Vec<Name> = (1..=10).flat_map(|day| (0..24).map(move |hour| (day, hour))).map(|(d, h)| name(d, h)).collect();
        let stay = staying(&names, "20260104");
        let days: Vec<Name> = (4..=8).map(|day| name(day, 23)).collect();
        assert_eq!(stay[..5], days);
        assert_eq!(stay[5..], names[192..], "the last 48");
        assert_eq!(staying(&names[..3], "20270101"), &names[..3], "few of them stay however old they are");
    }
}
