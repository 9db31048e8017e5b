//! The result of an earlier probe, and when it may be believed.
//!
//! That guests run is proven by one that ran, and holds for as long as the host, its files and its KVM are what they were. That
//! they do not run is never proven: a deadline is missed on a busy host, an administrator repairs what no file shows. But there are
//! hosts whose guests hang, and each start would wait for the deadline. So a failure is believed once it has come twice in a row, for
//! an hour, and by nobody who gives a guest more time; and forgotten like everything else when KVM changes. A device that cannot be
//! opened is no failure: there is nothing to try.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use super::{Found, ProbeRequest, Requested};
use crate::{Compatibility, qemu::KVM};

/// Raised when a verdict's meaning changes.
const VERSION: u32 = 5;
/// Failures in a row that are believed.
const FAILURES_BELIEVED: u32 = 2;
/// How long they are.
const FAILURE_LASTS: Duration = Duration::from_secs(3600);
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
    pub(super) compatibility: Compatibility,
    /// Why guests are emulated although KVM was to be used if possible.
    pub(super) fallback: Option<Fallback>,
}

/// A failure of KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fallback {
    pub(super) reason: String,
    /// How often in a row it has failed.
    failures: u32,
    /// When it did last, in seconds since 1970.
    at: u64,
    /// How long the guest was given.
    deadline: Duration,
}

impl Fallback {
    /// A failure of now, after the one that is known.
    pub(super) fn of(reason: String, known: Option<&Self>, deadline: Duration) -> Self {
        Self { reason, failures: known.map_or(1, |known| known.failures.saturating_add(1)), at: now(), deadline }
    }

    /// Whether another try with this deadline would be in vain. A clock that was set back shows no age, and nothing is believed.
    fn is_believed(&self, deadline: Duration) -> bool {
        let age = now().checked_sub(self.at).map(Duration::from_secs);
        self.failures >= FAILURES_BELIEVED && deadline <= self.deadline && age.is_some_and(|age| age < FAILURE_LASTS)
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Verdict {
    pub(super) fn new(key: Key, found: Found, fallback: Option<Fallback>) -> Self {
        let Found { program, compatibility } = found;
        Self { version: VERSION, key, program, compatibility, fallback }
    }

    /// Whether nothing would be learned by trying again: a guest ran as asked for, there is no KVM to try, or it has failed often
    /// enough.
    pub(super) fn is_believed(&self, deadline: Duration) -> bool {
        let there_is_kvm = self.key.kvm.as_ref().is_some_and(Kvm::opens);
        self.fallback.as_ref().is_none_or(|fallback| !there_is_kvm || fallback.is_believed(deadline))
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
        let mut file = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        fs_err::rename(temporary, path)
    }
}

/// Why the last start that wrote to `path` emulated its guests, if KVM has not changed since.
pub fn last_fallback(path: &Path) -> Option<String> {
    let verdict = Verdict::read(path)?;
    verdict.fallback.filter(|_| verdict.key.kvm == Some(Kvm::of_host())).map(|fallback| fallback.reason)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{Acceleration, Fingerprint};

    fn verdict(dir: &Path, kvm: Kvm, fallback: Option<Fallback>) -> Verdict {
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
            devices: None,
            program: None,
            announces: false,
        };
        let found = Found { program: "/usr/bin/qemu".into(), compatibility: fingerprint.into() };
        Verdict::new(key, found, fallback)
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

    const DEADLINE: Duration = Duration::from_secs(20);

    fn failure(known: Option<&Fallback>) -> Fallback {
        Fallback::of("the guest did not power off within 20 s".into(), known, DEADLINE)
    }

    #[test]
    fn one_missed_deadline_does_not_stick() {
        let (dir, device, modules) = host();
        let absent = Kvm::of(&device, &modules);
        fs_err::write(&device, b"").unwrap();
        let there = Kvm::of(&device, &modules);
        let believed = |kvm: &Kvm, fallback| verdict(dir.path(), kvm.clone(), fallback).is_believed(DEADLINE);
        assert!(believed(&there, None), "a guest ran");
        assert!(believed(&absent, Some(failure(None))), "there is nothing to try");
        assert!(!believed(&there, Some(failure(None))), "it is tried again");
    }

    #[test]
    fn failures_in_a_row_are_believed_for_an_hour_by_those_who_are_as_patient() {
        let twice = failure(Some(&failure(None)));
        assert!(twice.is_believed(DEADLINE));
        assert!(twice.is_believed(DEADLINE / 2));
        assert!(!twice.is_believed(DEADLINE * 2), "who gives it more time may see another thing");
        let aged = |seconds: i64| Fallback { at: now().saturating_add_signed(-seconds), ..twice.clone() };
        assert!(aged(3500).is_believed(DEADLINE));
        assert!(!aged(3601).is_believed(DEADLINE));
        assert!(!aged(-60).is_believed(DEADLINE), "the clock was set back");
    }
}
