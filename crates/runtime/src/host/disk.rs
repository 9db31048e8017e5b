//! The free-space floor: no sandbox is started, and no snapshot taken, on a disk that is nearly full.

use std::{
    fmt, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::Serialize;

/// The floor for work on a large disk, MiB.
pub const WORK_FLOOR_MIB: u64 = 10 * 1024;

/// Work that nobody has asked for yet, such as filling the warm pool, stops at this many times the floor: 20 GiB on a large disk.
pub const REFILL_FACTOR: u64 = 2;

/// Bytes of a block as `stat` counts them, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// On a disk where [`WORK_FLOOR_MIB`] would be more than this part, the floor is this part of the disk instead.
const SMALL_DISK_DIVISOR: u64 = 20;

/// Of what the floor holds back, this part is never taken for pauses of those who write below it.
const RESERVE_DIVISOR: u64 = 2;

/// What one sandbox or one volume may hold unless the operator says how much is this part of the disk: so that none fills it alone.
const SHARE_DIVISOR: u64 = 4;

/// The free-space floor is not met, or could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DiskPressure {
    /// Less is free than the floor.
    #[error("`{}` has {free_mib} MiB free, the floor is {floor_mib} MiB", path.display())]
    BelowFloor {
        /// A path on the file system.
        path: PathBuf,
        /// Free space.
        free_mib: u64,
        /// The floor.
        floor_mib: u64,
    },
    /// More is held than the budget, and nothing of it can be made again.
    #[error("`{}` holds {held_mib} MiB that are needed, the disk budget is {budget_mib} MiB", path.display())]
    OverBudget {
        /// The state directory.
        path: PathBuf,
        /// Its use.
        held_mib: u64,
        /// Its budget.
        budget_mib: u64,
    },
    /// The probe failed, which is not the same as a full disk.
    #[error("cannot measure the free space of `{}`", path.display())]
    ProbeFailed {
        /// A path on the file system.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Measures free space. Injected, so that a full disk and a failing probe can be tested.
pub trait DiskPressureProbe: Send + Sync + fmt::Debug {
    /// Free and total bytes of the file system that holds `path`, for unprivileged users.
    fn probe(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// Size of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// Free bytes.
    pub free: u64,
    /// All bytes.
    pub total: u64,
}

/// `statvfs`.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatvfsProbe;

impl DiskPressureProbe for StatvfsProbe {
    fn probe(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let unit = stat.fragment_size();
        Ok(DiskSpace { free: stat.blocks_available() * unit, total: stat.blocks() * unit })
    }
}

/// Refuses work on a file system with less free space than the floor.
#[derive(Debug, Clone)]
pub struct DiskPressureGuard {
    path: PathBuf,
    floor_mib: Option<u64>,
    probe: Arc<dyn DiskPressureProbe>,
    /// Bytes that are about to be written below the floor. Clones share them.
    promised: Arc<AtomicU64>,
}

/// A disk beside its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DiskView {
    /// Free for unprivileged users, MiB.
    pub free_mib: u64,
    /// All of it, MiB.
    pub total_mib: u64,
    /// Nothing is started while less is free, MiB.
    pub floor_mib: u64,
}

/// Room below the floor that is kept for somebody until this is dropped.
#[derive(Debug)]
pub struct Promise {
    promised: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.promised.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

impl DiskPressureGuard {
    /// Guards the file system of `path`. Without a floor, [`WORK_FLOOR_MIB`], scaled down on a small disk.
    pub fn new(path: PathBuf, floor_mib: Option<u64>, probe: Arc<dyn DiskPressureProbe>) -> Self {
        Self { path, floor_mib, probe, promised: Arc::default() }
    }

    /// What is free, and what has to be.
    pub fn view(&self) -> Result<DiskView, DiskPressure> {
        let space = self.space()?;
        Ok(DiskView { free_mib: space.free >> 20, total_mib: space.total >> 20, floor_mib: self.floor_mib(space) })
    }

    /// Free space at or above the floor passes; a probe that fails does not.
    pub fn check(&self) -> Result<(), DiskPressure> {
        self.check_floor(1)
    }

    /// As [`DiskPressureGuard::check`], when so many bytes more are written.
    pub fn check_with(&self, bytes: u64) -> Result<(), DiskPressure> {
        let space = self.space()?;
        self.demand(space.free.saturating_sub(bytes), self.floor_mib(space))
    }

    /// Whether half of the floor is free.
    pub fn check_reserve(&self) -> Result<(), DiskPressure> {
        self.check_reserve_without(0)
    }

    /// Promises room for so many bytes where half of the floor stays free when they are written, and all that is promised already: who
    /// is kept from writing at the same time as others finds the same free space as they do. Of two who ask at once, both may be refused.
    pub fn promise_reserve(&self, bytes: u64) -> Result<Promise, DiskPressure> {
        let others = self.promised.fetch_add(bytes, Ordering::SeqCst);
        let promise = Promise { promised: Arc::clone(&self.promised), bytes };
        self.check_reserve_without(others.saturating_add(bytes))?;
        Ok(promise)
    }

    fn check_reserve_without(&self, bytes: u64) -> Result<(), DiskPressure> {
        let space = self.space()?;
        self.demand(space.free.saturating_sub(bytes), self.floor_mib(space) / RESERVE_DIVISOR)
    }

    /// As [`DiskPressureGuard::check`] with [`REFILL_FACTOR`] times the floor.
    pub fn check_for_refill(&self) -> Result<(), DiskPressure> {
        self.check_floor(REFILL_FACTOR)
    }

    /// What one sandbox or volume may hold, bytes: what was `given`, else a quarter of the disk.
    pub fn share(&self, given_mib: Option<u64>) -> Result<u64, DiskPressure> {
        match given_mib {
            Some(mib) => Ok(mib.saturating_mul(1 << 20)),
            None => Ok(self.space()?.total / SHARE_DIVISOR),
        }
    }

    fn space(&self) -> Result<DiskSpace, DiskPressure> {
        self.probe.probe(&self.path).map_err(|source| DiskPressure::ProbeFailed { path: self.path.clone(), source })
    }

    fn check_floor(&self, factor: u64) -> Result<(), DiskPressure> {
        let space = self.space()?;
        self.demand(space.free, self.floor_mib(space).saturating_mul(factor))
    }

    fn floor_mib(&self, space: DiskSpace) -> u64 {
        self.floor_mib.unwrap_or_else(|| WORK_FLOOR_MIB.min((space.total >> 20) / SMALL_DISK_DIVISOR))
    }

    fn demand(&self, free: u64, floor_mib: u64) -> Result<(), DiskPressure> {
        let free_mib = free >> 20;
        if free_mib < floor_mib {
            return Err(DiskPressure::BelowFloor { path: self.path.clone(), free_mib, floor_mib });
        }
        Ok(())
    }
}

/// As [`bytes_below`], also of what is no directory.
pub(crate) fn bytes_at(path: &Path) -> io::Result<u64> {
    match fs_err::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => bytes_below(path),
        Ok(metadata) => Ok(metadata.blocks() * BLOCK_BYTES),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

/// Bytes of all files below a directory, as they lie on the disk. What goes meanwhile counts nothing, and links lead nowhere. Blocks.
pub(crate) fn bytes_below(dir: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let (mut bytes, mut dirs) = (0, vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        let entries = match fs_err::read_dir(dir) {
            Err(error) if gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            match fs_err::symlink_metadata(&path) {
                Ok(metadata) if metadata.is_dir() => dirs.push(path),
                Ok(metadata) => bytes += metadata.blocks() * BLOCK_BYTES,
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_below_a_directory_counts_as_it_lies_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(dir.path().join("a/b")).unwrap();
        fs_err::write(dir.path().join("a/b/c"), vec![1; 1 << 20]).unwrap();
        fs_err::File::create(dir.path().join("a/hole")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("a/link")).unwrap();
        assert!((1 << 20..2 << 20).contains(&bytes_below(dir.path()).unwrap()));
        assert_eq!(bytes_below(&dir.path().join("absent")).unwrap(), 0);
    }

    #[derive(Debug)]
    struct Fixed(io::Result<DiskSpace>);

    impl DiskPressureProbe for Fixed {
        fn probe(&self, _: &Path) -> io::Result<DiskSpace> {
            match &self.0 {
                Ok(space) => Ok(*space),
                Err(error) => Err(error.kind().into()),
            }
        }
    }

    fn guard(floor_mib: Option<u64>, probe: io::Result<DiskSpace>) -> DiskPressureGuard {
        DiskPressureGuard::new("/x".into(), floor_mib, Arc::new(Fixed(probe)))
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn free_space_equal_to_the_floor_passes_and_one_mib_less_does_not() {
        let space = |free| Ok(DiskSpace { free, total: 1000 * GIB });
        assert!(guard(None, space(10 * GIB)).check().is_ok());
        let error = guard(None, space(10 * GIB - 1)).check().unwrap_err();
        assert!(matches!(error, DiskPressure::BelowFloor { free_mib: 10239, floor_mib: 10240, .. }), "{error}");
        assert!(guard(Some(1), space(GIB)).check().is_ok());
    }

    #[test]
    fn a_share_is_what_was_given_or_a_quarter_of_the_disk() {
        let space = || Ok(DiskSpace { free: 0, total: 20 * GIB });
        assert_eq!(guard(None, space()).share(None).unwrap(), 5 * GIB);
        assert_eq!(guard(None, space()).share(Some(3)).unwrap(), 3 << 20);
        assert!(guard(None, Err(io::ErrorKind::PermissionDenied.into())).share(None).is_err());
    }

    #[test]
    fn a_small_disk_has_a_small_floor() {
        assert!(guard(None, Ok(DiskSpace { free: GIB, total: 20 * GIB })).check().is_ok());
    }

    #[test]
    fn refills_stop_at_twice_the_floor() {
        let space = |free| Ok(DiskSpace { free, total: 1000 * GIB });
        assert!(guard(None, space(20 * GIB)).check_for_refill().is_ok());
        let error = guard(None, space(20 * GIB - 1)).check_for_refill().unwrap_err();
        assert!(matches!(error, DiskPressure::BelowFloor { free_mib: 20479, floor_mib: 20480, .. }), "{error}");
        assert!(guard(Some(100), space(GIB)).check_for_refill().is_ok());
        assert!(guard(None, Ok(DiskSpace { free: 2 * GIB, total: 20 * GIB })).check_for_refill().is_ok());
    }

    #[test]
    fn half_of_the_floor_is_left_by_who_is_paused_for_it() {
        let space = || Ok(DiskSpace { free: 8 * GIB, total: 1000 * GIB });
        assert!(guard(None, space()).check_reserve().is_ok());
        assert!(guard(None, space()).promise_reserve(3 * GIB).is_ok());
        let error = guard(None, space()).promise_reserve(4 * GIB).unwrap_err();
        assert!(matches!(error, DiskPressure::BelowFloor { free_mib: 4096, floor_mib: 5120, .. }), "{error}");
    }

    #[test]
    fn the_same_room_is_not_promised_twice() {
        let guard = guard(None, Ok(DiskSpace { free: 8 * GIB, total: 1000 * GIB }));
        let first = guard.promise_reserve(2 * GIB).unwrap();
        let error = guard.clone().promise_reserve(2 * GIB).unwrap_err();
        assert!(matches!(error, DiskPressure::BelowFloor { free_mib: 4096, floor_mib: 5120, .. }), "{error}");
        let second = guard.promise_reserve(GIB).expect("a refusal keeps nothing");
        drop((first, second));
        assert!(guard.promise_reserve(3 * GIB).is_ok());
    }

    #[test]
    fn a_probe_that_fails_refuses_and_says_so() {
        let error = guard(None, Err(io::ErrorKind::PermissionDenied.into())).check().unwrap_err();
        assert!(matches!(error, DiskPressure::ProbeFailed { .. }));
        assert!(!error.to_string().contains("0 MiB"));
    }
}
