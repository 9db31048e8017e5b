//! Files that clients bring for `COPY`: kept by the digest that the client names them with, for as long as builds may want them.
//!
//! A digest is the client's, over what it copies and not over the archive, so it proves nothing here; the archive is a stranger's
//! until the build that copies it has looked at all of it.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use fs_err as fs;
use tokio::io::AsyncWriteExt;

use crate::{ground::team::TeamId, host::disk::DiskPressure};

/// One archive. A build's context is some MiB, with models in it some GiB.
const MAX_FILE_BYTES: u64 = 8 << 30;

/// All archives together; the ones not used for the longest time go first.
const MAX_TOTAL_BYTES: u64 = 16 << 30;

/// Files that nobody has used for so long are removed: the client uploads them again.
const MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A client asks for its build when all archives are here: so long after the last it does not come any more.
const SETTLED: Duration = Duration::from_secs(3600);

/// Why a file was not received.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// Not a digest.
    #[error("`{0}` is not a SHA-256 digest in lower-case hexadecimal")]
    Hash(String),
    /// More than is taken.
    #[error("the files are more than {max} bytes")]
    TooLarge {
        /// The most.
        max: u64,
    },
    /// It cannot be stored.
    #[error("cannot store the files of a build in `{}`", path.display())]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk is too full.
    #[error("the disk is too full for files of a build")]
    DiskPressure(#[source] DiskPressure),
}

/// The archives of one state directory.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    dir: PathBuf,
    /// Whose archives are looked for.
    team: TeamId,
    builds: Arc<AtomicUsize>,
}

/// A build that may come to a step that copies any of the archives: as long as it lives, the disk budget lets none go.
#[derive(Debug)]
pub(crate) struct FilesInUse {
    builds: Arc<AtomicUsize>,
}

impl Drop for FilesInUse {
    fn drop(&mut self) {
        self.builds.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An archive that is arriving. What has not been finished is gone when this is dropped.
#[derive(Debug)]
pub struct FileUpload {
    file: tokio::fs::File,
    temporary: tempfile::TempPath,
    target: PathBuf,
    left: u64,
}

impl Files {
    /// Opens the directory, without what a crash left half.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join("uploads");
        crate::ground::private::private_dir(&dir)?;
        let files = Self { dir, team: TeamId::first(), builds: Arc::default() };
        for entry in fs::read_dir(&files.dir)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(files)
    }

    fn path(&self, hash: &str) -> Result<PathBuf, FilesError> {
        let digest = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !digest {
            return Err(FilesError::Hash(hash.chars().take(64).collect()));
        }
        if self.team.is_first() {
            return Ok(self.dir.join(hash));
        }
        let name = blake3::hash(format!("{} {hash}", self.team).as_bytes());
        Ok(self.dir.join(name.to_hex().as_str()))
    }

    /// Those of a team: another's are not there, whoever knows their digest.
    pub(crate) fn of(&self, team: &TeamId) -> Self {
        Self { team: team.clone(), ..self.clone() }
    }

    /// Whether there is an archive of this digest.
    pub(crate) fn contains(&self, hash: &str) -> Result<bool, FilesError> {
        Ok(self.path(hash)?.exists())
    }

    /// The archive of this digest, if it is there. Counts as use.
    pub(crate) fn get(&self, hash: &str) -> Result<Option<fs::File>, FilesError> {
        let path = self.path(hash)?;
        match fs::File::open(&path) {
            Ok(file) => {
                if let Err(error) = file.file().set_modified(SystemTime::now()) {
                    tracing::debug!(%error, "cannot note the use of a build's files");
                }
                Ok(Some(file))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(FilesError::Store { path, source }),
        }
    }

    /// Begins to receive an archive.
    pub(crate) fn receive(&self, hash: &str) -> Result<FileUpload, FilesError> {
        let target = self.path(hash)?;
        let failed = |source| FilesError::Store { path: self.dir.clone(), source };
        self.prune().map_err(failed)?;
        let (file, temporary) = tempfile::Builder::new().prefix(".").tempfile_in(&self.dir).map_err(failed)?.into_parts();
        Ok(FileUpload { file: tokio::fs::File::from_std(file), temporary, target, left: MAX_FILE_BYTES })
    }

    /// A file of our own, which has no name.
    pub(crate) fn scratch(&self) -> io::Result<std::fs::File> {
        tempfile::tempfile_in(&self.dir)
    }

    /// Keeps all archives for a build that begins.
    pub(crate) fn for_build(&self) -> FilesInUse {
        self.builds.fetch_add(1, Ordering::Relaxed);
        FilesInUse { builds: Arc::clone(&self.builds) }
    }

    fn in_use(&self) -> bool {
        self.builds.load(Ordering::Relaxed) > 0
    }

    /// Archives that nobody has brought or used just now, with their last use; none while anything is built.
    pub(crate) fn at_rest(&self) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let mut found = Vec::new();
        if self.in_use() {
            return Ok(found);
        }
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let used = entry.metadata()?.modified()?;
            if !entry.file_name().to_string_lossy().starts_with('.') && used.elapsed().is_ok_and(|age| age > SETTLED) {
                found.push((used, entry.path()));
            }
        }
        Ok(found)
    }

    /// Removes an archive unless it has been brought or used since `used`, or anything is built. Whether it is gone.
    pub(crate) fn remove_unused(&self, path: &Path, used: SystemTime) -> io::Result<bool> {
        if self.in_use() {
            return Ok(false);
        }
        let remove = || {
            if fs::metadata(path)?.modified()? != used {
                return Ok(false);
            }
            fs::remove_file(path).map(|()| true)
        };
        match remove() {
            // A client that brings another tidies up too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            removed => removed,
        }
    }

    /// Removes what is old, and the oldest of what is too much.
    fn prune(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with('.') {
                let metadata = entry.metadata()?;
                found.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        found.sort();
        let mut total: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (modified, bytes, path) in found {
            let old = modified.elapsed().is_ok_and(|age| age > MAX_AGE);
            if !old && total <= MAX_TOTAL_BYTES {
                continue;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

impl FileUpload {
    fn failed(&self) -> impl FnOnce(io::Error) -> FilesError + use<> {
        let path = self.target.clone();
        |source| FilesError::Store { path, source }
    }

    /// Takes the next bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(FilesError::TooLarge { max: MAX_FILE_BYTES })?;
        let failed = self.failed();
        self.file.write_all(bytes).await.map_err(failed)
    }

    /// All of it has arrived.
    pub async fn finish(mut self) -> Result<(), FilesError> {
        let failed = self.failed();
        self.file.flush().await.map_err(failed)?;
        let failed = self.failed();
        self.temporary.persist(&self.target).map_err(|error| failed(error.error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_archive_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let hash = "a".repeat(64);
        let mut cut_off = files.receive(&hash).unwrap();
        cut_off.write(b"half").await.unwrap();
        drop(cut_off);
        assert!(!files.contains(&hash).unwrap());
        let mut whole = files.receive(&hash).unwrap();
        whole.write(b"whole").await.unwrap();
        whole.finish().await.unwrap();
        assert!(files.contains(&hash).unwrap() && files.get(&hash).unwrap().is_some());
        assert_eq!(fs::read_dir(dir.path().join("uploads")).unwrap().count(), 1);
    }

    #[test]
    fn what_was_used_meanwhile_stays() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let hash = "a".repeat(64);
        let path = files.path(&hash).unwrap();
        fs::write(&path, b"archive").unwrap();
        let used = SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&path).unwrap().file().set_modified(used).unwrap();
        files.get(&hash).unwrap().unwrap();
        assert!(!files.remove_unused(&path, used).unwrap() && path.exists());
        let used = fs::metadata(&path).unwrap().modified().unwrap();
        let build = files.for_build();
        assert!(!files.remove_unused(&path, used).unwrap() && path.exists());
        drop(build);
        assert!(files.remove_unused(&path, used).unwrap() && !path.exists());
        assert!(files.remove_unused(&path, used).unwrap(), "somebody else removed it");
    }

    #[test]
    fn each_team_has_archives_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        let hash = "a".repeat(64);
        fs::write(files.path(&hash).unwrap(), b"of the first").unwrap();
        let other = files.of(&"b".parse().unwrap());
        assert!(files.contains(&hash).unwrap() && !other.contains(&hash).unwrap());
        assert!(other.get(&hash).unwrap().is_none());
        fs::write(other.path(&hash).unwrap(), b"of the other").unwrap();
        assert_eq!(fs::read(files.path(&hash).unwrap()).unwrap(), b"of the first");
    }

    #[test]
    fn only_a_digest_is_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(dir.path()).unwrap();
        for bad in ["", "../../etc/passwd", &"A".repeat(64), &"a".repeat(63)] {
            assert!(matches!(files.contains(bad), Err(FilesError::Hash(_))), "{bad}");
        }
    }
}
