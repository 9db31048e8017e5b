//! What an earlier probe found, and when it may be believed.
//!
//! That guests run is proven by one that ran, and holds for as long as the host, its files and its KVM are what they were. That
//! they do not run is never proven: a deadline is missed on a busy host, an administrator loads a module or repairs a permission
//! that no file shows. So a failure is written down for people, and KVM is tried again at the next start. A host whose device
//! cannot even be opened loses nothing by that; one whose guests hang waits for the deadline each time, and is told how to spare it.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use super::{ProbeRequest, Requested};
use crate::{Fingerprint, qemu::KVM};

/// Raised when a verdict's meaning changes.
const VERSION: u32 = 3;
/// A verdict has some 1,500 bytes.
const MAX_BYTES: u64 = 64 << 10;
/// Where the kernel shows its modules.
const MODULES: &str = "/sys/module";

/// A file as it was when it was probed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    modified_ns: i128,
}

impl Seen {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs_err::metadata(path)?;
        let modified_ns = nanoseconds(metadata.mtime(), metadata.mtime_nsec());
        Ok(Self { path: path.to_path_buf(), bytes: metadata.len(), inode: metadata.ino(), modified_ns })
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// The host's KVM as it was when it was probed: a device that was made anew, given to others, or has other modules behind it is
/// another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kvm {
    device: Option<Device>,
    /// Each module's directory, which has another inode when the module is loaded again.
    modules: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Device {
    number: u64,
    inode: u64,
    mode: u32,
    owner: (u32, u32),
    changed_ns: i128,
    opens: bool,
}

impl Kvm {
    fn of_host() -> Self {
        Self::of(Path::new(KVM), Path::new(MODULES))
    }

    fn of(device: &Path, modules: &Path) -> Self {
        let opens = || fs_err::OpenOptions::new().read(true).write(true).open(device).is_ok();
        let device = fs_err::metadata(device).ok().map(|metadata| Device {
            number: metadata.rdev(),
            inode: metadata.ino(),
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            opens: opens(),
        });
        let modules = fs_err::read_dir(modules).into_iter().flatten().flatten();
        let modules = modules.filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| name.starts_with("kvm"))?;
            Some((name, entry.metadata().ok()?.ino()))
        });
        Self { device, modules: modules.collect() }
    }

    /// Whether there is anything to try.
    fn opens(&self) -> bool {
        self.device.as_ref().is_some_and(|device| device.opens)
    }
}

/// What a verdict depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    boot_id: String,
    programs: Vec<Seen>,
    kernel: Seen,
    initrd: Seen,
    requested: Requested,
    /// Absent where emulation was asked for, which does not depend on it.
    kvm: Option<Kvm>,
}

impl Key {
    pub(super) fn of(request: &ProbeRequest, programs: &[PathBuf]) -> io::Result<Self> {
        Ok(Self {
            boot_id: fs_err::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            programs: programs.iter().map(|program| Seen::of(program)).collect::<io::Result<_>>()?,
            kernel: Seen::of(&request.kernel)?,
            initrd: Seen::of(&request.initrd)?,
            requested: request.requested,
            kvm: match request.requested {
                Requested::Auto | Requested::Kvm => Some(Kvm::of_host()),
                Requested::Tcg => None,
            },
        })
    }
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verdict {
    version: u32,
    key: Key,
    pub(super) program: PathBuf,
    pub(super) fingerprint: Fingerprint,
    /// Why guests are emulated although KVM was to be used if possible.
    pub(super) fallback: Option<String>,
}

impl Verdict {
    pub(super) fn new(key: Key, program: PathBuf, fingerprint: Fingerprint, fallback: Option<String>) -> Self {
        Self { version: VERSION, key, program, fingerprint, fallback }
    }

    /// Whether nothing would be learned by trying again: a guest ran as asked for, or there is no KVM to try.
    pub(super) fn is_proven(&self) -> bool {
        self.fallback.is_none() || !self.key.kvm.as_ref().is_some_and(Kvm::opens)
    }

    /// The verdict in `path`, if it is about the same host, files and wish. A damaged one is none.
    pub(super) fn recall(path: &Path, key: &Key) -> Option<Self> {
        Self::read(path).filter(|verdict| verdict.key == *key)
    }

    fn read(path: &Path) -> Option<Self> {
        if fs_err::metadata(path).ok()?.len() > MAX_BYTES {
            return None;
        }
        let verdict: Self = serde_json::from_slice(&fs_err::read(path).ok()?).ok()?;
        (verdict.version == VERSION).then_some(verdict)
    }

    pub(super) fn remember(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension(format!("new-{}", std::process::id()));
        let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        fs_err::rename(temporary, path)
    }
}

/// Why the last start that wrote to `path` emulated its guests, if KVM has not changed since.
pub fn last_fallback(path: &Path) -> Option<String> {
    let verdict = Verdict::read(path)?;
    verdict.fallback.filter(|_| verdict.key.kvm == Some(Kvm::of_host()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Acceleration;

    fn verdict(dir: &Path, kvm: Kvm, fallback: Option<&str>) -> Verdict {
        let seen = Seen::of(dir).unwrap();
        let key = Key {
            boot_id: "b".into(),
            programs: vec![seen.clone()],
            kernel: seen.clone(),
            initrd: seen,
            requested: Requested::Auto,
            kvm: Some(kvm),
        };
        let fingerprint = Fingerprint {
            engine: "qemu".into(),
            version: "10.0.2".into(),
            machine: "pc-q35-10.0".into(),
            acceleration: Acceleration::Tcg,
            cpu: "c".into(),
        };
        Verdict::new(key, "/usr/bin/qemu".into(), fingerprint, fallback.map(str::to_owned))
    }

    /// A directory with a device, which is a file here, and modules.
    fn host() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let (device, modules) = (dir.path().join("kvm"), dir.path().join("module"));
        fs_err::create_dir_all(modules.join("kvm")).unwrap();
        (dir, device, modules)
    }

    #[test]
    fn a_verdict_is_recalled_until_something_changes() {
        let (dir, device, modules) = host();
        let path = dir.path().join("verdict.json");
        let verdict = verdict(dir.path(), Kvm::of(&device, &modules), None);
        verdict.remember(&path).unwrap();
        assert_eq!(Verdict::recall(&path, &verdict.key), Some(verdict.clone()));
        let rebooted = Key { boot_id: "c".into(), ..verdict.key.clone() };
        assert_eq!(Verdict::recall(&path, &rebooted), None);
        fs_err::write(&path, b"{").unwrap();
        assert_eq!(Verdict::recall(&path, &verdict.key), None);
    }

    #[test]
    fn kvm_that_is_repaired_is_another() {
        let (_dir, device, modules) = host();
        let absent = Kvm::of(&device, &modules);
        assert!(!absent.opens());
        fs_err::create_dir(modules.join("kvm_amd")).unwrap();
        let loaded = Kvm::of(&device, &modules);
        assert_ne!(absent, loaded);
        fs_err::write(&device, b"").unwrap();
        let there = Kvm::of(&device, &modules);
        assert!(there.opens());
        assert_ne!(loaded, there);
        assert_eq!(there, Kvm::of(&device, &modules));
        fs_err::set_permissions(&device, std::fs::Permissions::from_mode(0o600)).unwrap();
        let permitted = Kvm::of(&device, &modules);
        assert_ne!(there, permitted);
        // Loaded again: a file that takes the other's place, so that it cannot have the same inode.
        let anew = device.with_extension("anew");
        fs_err::write(&anew, b"").unwrap();
        fs_err::set_permissions(&anew, std::fs::Permissions::from_mode(0o600)).unwrap();
        fs_err::rename(&anew, &device).unwrap();
        assert_ne!(permitted, Kvm::of(&device, &modules));
    }

    #[test]
    fn a_failure_is_not_proven_while_there_is_kvm_to_try() {
        let (dir, device, modules) = host();
        let absent = Kvm::of(&device, &modules);
        fs_err::write(&device, b"").unwrap();
        let there = Kvm::of(&device, &modules);
        let late = Some("the guest did not power off within 20 s");
        assert!(verdict(dir.path(), there.clone(), None).is_proven(), "a guest ran");
        assert!(verdict(dir.path(), absent, late).is_proven(), "there is nothing to try");
        assert!(!verdict(dir.path(), there, late).is_proven(), "one missed deadline does not stick");
    }
}
