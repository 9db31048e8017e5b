//! File systems: the kernel's own, the root disk, and the change from the initramfs to it.
//!
//! What is mounted is what programs find on a machine that systemd brought up, and `/` is shared between mount namespaces as it
//! is there: container engines need control groups, ask the security modules what they are, and hand mounts on.

use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

use firkin_causes::chain;
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

/// The root disk.
const DISK: &str = "/dev/vda";

/// Where it is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";

/// How long the disk may take to appear: its driver probes in the background. Emulated machines are slow.
const DISK_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked for; devtmpfs has no event that is cheaper than looking.
const DISK_POLL_MS: u16 = 10;

/// File systems that an initramfs is unpacked into: ramfs or tmpfs (`linux/magic.h`).
const INITRAMFS_MAGICS: [i64; 2] = [0x8584_58f6, 0x0102_1994];

/// Why the file systems are not in place.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    /// PID 1, but not of a machine that was booted for this.
    #[error("cannot be PID 1 outside an initramfs")]
    NoInitramfs,
    /// A mount failed.
    #[error("cannot mount `{target}`")]
    Mount {
        /// Where.
        target: &'static str,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// A directory to mount on cannot be made.
    #[error("cannot make directory `{path}`")]
    Directory {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk did not appear.
    #[error("cannot find the root disk `{DISK}` within {} s", DISK_LIMIT.as_secs())]
    NoDisk,
    /// The root cannot be changed.
    #[error("cannot make `{NEW_ROOT}` the root")]
    Switch(#[source] nix::Error),
}

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
    /// Whether a kernel or image without it still makes a usable machine.
    optional: bool,
}

const fn plain(kind: &'static str, target: &'static str, options: &'static str) -> Mount {
    let flags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);
    Mount { kind, target, flags, options, optional: false }
}

/// File systems that the initramfs needs; moved to the new root later.
const EARLY: [Mount; 3] = [
    plain("proc", "/proc", ""),
    plain("sysfs", "/sys", ""),
    Mount { kind: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=755", optional: false },
];

/// File systems that programs expect.
const LATE: [Mount; 8] = [
    Mount {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        options: "gid=5,mode=620,ptmxmode=666",
        optional: false,
    },
    Mount {
        kind: "tmpfs",
        target: "/dev/shm",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=1777",
        optional: false,
    },
    Mount {
        kind: "tmpfs",
        target: "/run",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        options: "mode=755",
        optional: false,
    },
    Mount { optional: true, ..plain("cgroup2", "/sys/fs/cgroup", "nsdelegate") },
    Mount { optional: true, ..plain("mqueue", "/dev/mqueue", "") },
    Mount { optional: true, ..plain("securityfs", "/sys/kernel/security", "") },
    Mount { optional: true, ..plain("bpf", "/sys/fs/bpf", "mode=700") },
    Mount { optional: true, ..plain("tracefs", "/sys/kernel/tracing", "") },
];

/// Devices that are for every user, as udev has it on other machines; devtmpfs makes them root's.
const FOR_EVERYONE: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

/// Names that devtmpfs does not make and scripts rely on.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what the initramfs needs. Refuses to begin anywhere else: in a container this program would take the host's disk.
pub(super) fn early() -> Result<(), MountError> {
    let in_memory = |system: nix::sys::statfs::Statfs| INITRAMFS_MAGICS.contains(&system.filesystem_type().0);
    if !nix::sys::statfs::statfs("/").is_ok_and(in_memory) {
        return Err(MountError::NoInitramfs);
    }
    EARLY.iter().try_for_each(put)
}

/// Mounts the rest, on the new root.
pub(super) fn late() -> Result<(), MountError> {
    LATE.iter().try_for_each(put)?;
    for (target, link) in LINKS {
        if let Err(error) = fs_err::os::unix::fs::symlink(target, link)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            tracing::warn!(%error, "cannot link a standard device");
        }
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
        .map_err(|source| MountError::Mount { target: "/", source })
}

/// Lets every user open what other machines let every user open.
pub(super) fn open_to_everyone() {
    for device in FOR_EVERYONE {
        if let Err(error) = fs_err::set_permissions(device, std::fs::Permissions::from_mode(0o666)) {
            // A kernel without it still makes a usable machine.
            tracing::warn!(%error, "cannot open a device to every user");
        }
    }
}

fn put(wanted: &Mount) -> Result<(), MountError> {
    let Mount { kind, target, flags, options, optional } = *wanted;
    let made = make_dir(target);
    let result = made.and_then(|()| match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        // The kernel may have mounted it itself.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(MountError::Mount { target, source }),
    });
    match result {
        Err(error) if optional => {
            tracing::warn!(error = chain(&error), "going on without a file system");
            Ok(())
        }
        other => other,
    }
}

fn make_dir(path: &'static str) -> Result<(), MountError> {
    match fs_err::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(|source| MountError::Directory { path, source }),
    }
}

/// Mounts the disk, moves the kernel's file systems onto it, makes it the root and frees the initramfs.
pub(super) fn switch_root() -> Result<(), MountError> {
    wait_for_disk()?;
    make_dir(NEW_ROOT)?;
    mount(Some(DISK), NEW_ROOT, Some("ext4"), MsFlags::MS_NOATIME, None::<&str>)
        .map_err(|source| MountError::Mount { target: NEW_ROOT, source })?;
    for Mount { target, .. } in EARLY {
        let inside = format!("{NEW_ROOT}{target}");
        if let Err(error) = fs_err::create_dir_all(&inside) {
            tracing::warn!(%error, "cannot make a mount point on the root disk");
        }
        mount(Some(target), inside.as_str(), None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(|source| MountError::Mount { target, source })?;
    }
    free_initramfs(Path::new("/"));
    let switch = || {
        chdir(NEW_ROOT)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        chroot(".")?;
        chdir("/")
    };
    switch().map_err(MountError::Switch)
}

fn wait_for_disk() -> Result<(), MountError> {
    let deadline = Instant::now() + DISK_LIMIT;
    loop {
        if fs_err::metadata(DISK).is_ok_and(|found| found.file_type().is_block_device()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(MountError::NoDisk);
        }
        if let Err(error) = nix::poll::poll(&mut [], DISK_POLL_MS) {
            tracing::debug!(%error, "waiting was interrupted");
        }
    }
}

/// Removes the initramfs's files: its memory would stay in every snapshot. Stays on its file system, so mounts are safe.
fn free_initramfs(root: &Path) {
    let Ok(device) = fs_err::symlink_metadata(root).map(|found| found.dev()) else { return };
    let Ok(entries) = fs_err::read_dir(root) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(found) = fs_err::symlink_metadata(&path) else { continue };
        if found.dev() != device {
            continue;
        }
        let removed = if found.is_dir() {
            free_initramfs(&path);
            fs_err::remove_dir(&path)
        } else {
            fs_err::remove_file(&path)
        };
        if let Err(error) = removed {
            // Mount points cannot go and cost nothing.
            tracing::debug!(%error, "cannot free a part of the initramfs");
        }
    }
}
