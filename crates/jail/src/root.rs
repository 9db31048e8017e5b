//! The root: all that a jailed program can name.
//!
//! A file system in memory with copies of the program's files, alone in a mount namespace that no process is in: it has no path
//! on the host, so nobody reaches or changes it there, and it goes away with the last descriptor and process that is in it. A
//! process joins the namespace and makes itself a copy of it, which costs as much as two mounts, however many the host has.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, umask},
    unistd::{chdir, pivot_root},
};

/// Where the root is put together: on every host, and never the place of a program.
const SITE: &str = "/proc";
/// Room for the largest program and its libraries; 60 MB are usual.
const OPTIONS: &str = "mode=0755,size=1g";
/// From a fork to its exec, on a busy host with room.
const FREEZE_DEADLINE: Duration = Duration::from_secs(5);
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// A root that is ready.
#[derive(Debug)]
pub(crate) struct Root {
    /// Its mount namespace.
    pub(crate) namespace: OwnedFd,
    /// Its uppermost directory.
    pub(crate) top: OwnedFd,
}

/// Makes a root of these files and devices of the host, under the names they have there.
pub(crate) fn make(files: &[PathBuf], devices: &[PathBuf]) -> io::Result<Root> {
    // A mount namespace is a thread's, and this one leaves the host's for good.
    thread::scope(|scope| {
        let maker = thread::Builder::new().name("firkin-root".into()).spawn_scoped(scope, || make_here(files, devices))?;
        maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn make_here(files: &[PathBuf], devices: &[PathBuf]) -> io::Result<Root> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    umask(Mode::from_bits_truncate(0o022));
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let namespace = fs_err::File::open("/proc/thread-self/ns/mnt")?.into_parts().0.into();
    mount(Some("firkin-jail"), SITE, Some("tmpfs"), FLAGS, Some(OPTIONS))?;
    for file in files {
        let copy = place(file)?;
        fs_err::copy(file, &copy)?;
        fs_err::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o555))?;
    }
    for device in devices {
        let point = place(device)?;
        fs_err::File::create(&point)?;
        mount(Some(device), &point, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    }
    // Where each process mounts its own.
    fs_err::create_dir_all(Path::new(SITE).join("proc"))?;
    // The host's root comes to lie on the new one, and off it.
    chdir(SITE)?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    freeze()?;
    let top = fs_err::OpenOptions::new().read(true).custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits()).open("/")?;
    Ok(Root { namespace, top: top.into_parts().0.into() })
}

/// Nothing in it is written any more, nor open to be written: a child of another thread has all of our descriptors until it runs its
/// program, and the kernel neither freezes nor runs what is open so.
fn freeze() -> io::Result<()> {
    let begun = Instant::now();
    loop {
        match mount(None::<&str>, "/", None::<&str>, FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>) {
            Err(Errno::EBUSY) if begun.elapsed() < FREEZE_DEADLINE => thread::yield_now(),
            frozen => return Ok(frozen?),
        }
    }
}

/// The place of a file of the host in the root under construction, with the directories above it.
fn place(file: &Path) -> io::Result<PathBuf> {
    let mut place = PathBuf::from(SITE);
    for component in file.components() {
        match component {
            Component::RootDir => {}
            Component::Normal(name) => place.push(name),
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => return Err(io::ErrorKind::InvalidInput.into()),
        }
    }
    if let Some(parent) = place.parent() {
        fs_err::create_dir_all(parent)?;
    }
    Ok(place)
}
