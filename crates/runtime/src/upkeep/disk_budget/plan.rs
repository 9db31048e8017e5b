//! The use of the state directory, part by part, and the order in which things that can be made again are removed.
//!
//! A part is a directory of an artifact, a layer of a disk or an uploaded file. Artifacts share parts, so letting one go frees
//! what nobody else has: the plan counts who has what, as collection will find it.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use fs_err as fs;

use crate::store::LayerRecord;

/// The directory that is not counted.
const VOLUMES: &str = "volumes";

/// Bytes of a block as `stat` counts them, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// Where the parts of a state directory are: a directory in it, and what is in that.
const PART_DEPTH: usize = 2;

/// The space that a state directory takes, part by part.
#[derive(Debug, Default)]
pub(super) struct DiskUse {
    /// All of it.
    pub(super) bytes: u64,
    parts: HashMap<PathBuf, u64>,
}

impl DiskUse {
    /// Bytes of all files below `root`, as they lie on the disk; files with several names once. What goes meanwhile counts nothing.
    /// Blocks.
    pub(super) fn below(root: &Path) -> io::Result<Self> {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let volumes = root.join(VOLUMES);
        let mut seen = HashSet::new();
        let mut held = Self::default();
        let mut dirs = vec![root.to_owned()];
        while let Some(dir) = dirs.pop() {
            let entries = match fs::read_dir(&dir) {
                Err(error) if gone(&error) => continue,
                entries => entries?,
            };
            for entry in entries {
                let path = entry?.path();
                let metadata = match fs::symlink_metadata(&path) {
                    Err(error) if gone(&error) => continue,
                    metadata => metadata?,
                };
                if metadata.is_dir() && path != volumes {
                    dirs.push(path);
                } else if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
                    let bytes = metadata.blocks() * BLOCK_BYTES;
                    held.bytes += bytes;
                    *held.parts.entry(part(root, &path)).or_default() += bytes;
                }
            }
        }
        Ok(held)
    }

    /// The removals, one after the other, each with the space that it frees when those before it are gone.
    pub(super) fn plan(&self, needed: &HashSet<PathBuf>, mut candidates: Vec<Candidate>) -> Vec<Spare> {
        let mut holders: HashMap<PathBuf, usize> = needed.iter().map(|part| (part.clone(), 1)).collect();
        for part in candidates.iter().flat_map(|candidate| &candidate.parts) {
            *holders.entry(part.clone()).or_default() += 1;
        }
        candidates.sort_by_key(|candidate| candidate.used);
        let spare = |candidate: Candidate| {
            let mut bytes = 0;
            for part in &candidate.parts {
                let left = holders.get_mut(part).expect("every part of a candidate was counted");
                *left -= 1;
                if *left == 0 {
                    bytes += self.parts.get(part).copied().unwrap_or_default();
                }
            }
            Spare { what: candidate.what, bytes }
        };
        candidates.into_iter().map(spare).collect()
    }
}

/// The part that a file belongs to.
fn part(root: &Path, file: &Path) -> PathBuf {
    let within = file.strip_prefix(root).unwrap_or(file);
    root.join(within.components().take(PART_DEPTH).collect::<PathBuf>())
}

/// Something that can be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// A state between steps of a build, as it was on record.
    Layer(LayerRecord),
    /// An archive that a client can bring again, and when it was used last.
    Upload(PathBuf, SystemTime),
}

/// A thing that may be removed.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) used: SystemTime,
    pub(super) what: What,
    /// Each once, shared ones included.
    pub(super) parts: HashSet<PathBuf>,
}

/// The next thing to remove.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spare {
    pub(super) what: What,
    /// The space that it frees.
    pub(super) bytes: u64,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_held_is_counted_once_and_without_volumes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["layers", VOLUMES] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), vec![1; 1 << 20]).unwrap();
        }
        fs::create_dir_all(dir.path().join("artifacts/a/b")).unwrap();
        fs::write(dir.path().join("artifacts/a/b/c"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(dir.path().join("layers/file"), dir.path().join("layers/again")).unwrap();
        let held = DiskUse::below(dir.path()).unwrap();
        assert!((2 << 20..3 << 20).contains(&held.bytes), "{held:?}");
        assert_eq!(held.parts[&dir.path().join("artifacts/a")] * 2, held.bytes);
        assert_eq!(held.parts.values().sum::<u64>(), held.bytes);
    }

    fn candidate(name: &str, age: u64, parts: &[&str]) -> Candidate {
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(100 - age);
        Candidate { used, what: What::Upload(name.into(), used), parts: parts.iter().map(PathBuf::from).collect() }
    }

    #[test]
    fn the_oldest_goes_first_and_frees_what_nobody_else_has() {
        let parts = [("base", 100), ("shared", 10), ("old", 1), ("new", 2), ("held", 1000)];
        let held = DiskUse { bytes: 1113, parts: parts.map(|(name, bytes)| (name.into(), bytes)).into() };
        let needed = HashSet::from(["held".into()]);
        let candidates = vec![
            candidate("new", 1, &["new", "shared", "base"]),
            candidate("old", 3, &["old", "shared", "held"]),
            candidate("base", 2, &["base"]),
        ];
        let plan = held.plan(&needed, candidates);
        let told: Vec<(String, u64)> = plan
            .into_iter()
            .map(|spare| match spare.what {
                What::Upload(path, _) => (path.display().to_string(), spare.bytes),
                What::Layer(layer) => panic!("{layer:?}"),
            })
            .collect();
        assert_eq!(told, [("old".to_owned(), 1), ("base".to_owned(), 0), ("new".to_owned(), 112)]);
    }
}
