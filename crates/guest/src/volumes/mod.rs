//! Volumes of the host, mounted at the places that an identity names.
//!
//! What programs ask of them the kernel asks this agent, through `/dev/fuse`, and it hands that on to the host and back (`relay.rs`). It
//! understands nothing of it. Mounting asks the host for nothing, so an identity is in force whether or not the host is connected yet;
//! until it is, programs wait. A snapshot holds the mounts: whoever is restored from it has them already, and keeps those that it has
//! still.
//!
//! All of it is in threads of its own, with calls that block. In envd's, whoever waits for a volume could hold up those that the volume
//! is to be answered by.

mod listener;
mod relay;

#[cfg(any(test, feature = "fuzzing"))]
pub use listener::volume_hello;

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firkin_wire::{control::GuestVolume, nonce::Bond};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use self::relay::Relay;

/// The kernel's door.
const DEVICE: &str = "/dev/fuse";

/// Why a guest does not have its volumes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    /// The host cannot be waited for.
    #[error("cannot wait for the host of volumes")]
    Listen(#[source] io::Error),
    /// This kernel has no file systems of programs.
    #[error("cannot open `{DEVICE}`: without it no volume can be mounted")]
    Device(#[source] io::Error),
    /// There is no directory, and none can be made.
    #[error("cannot make the directory `{path}` to mount a volume on")]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel does not mount it.
    #[error("cannot mount a volume at `{path}`")]
    Mount {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// No thread can be had.
    #[error("cannot start a thread for the volume at `{path}`")]
    Thread {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is mounted, and for which machine.
#[derive(Debug, Default)]
struct Mounted {
    bond: Bond,
    volumes: Vec<(GuestVolume, Arc<Relay>)>,
}

/// The volumes of this guest.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    mounted: Arc<Mutex<Mounted>>,
    is_listening: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder makes one change, so a poisoned value is a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Volumes {
    /// Mounts what is wanted and not there, and unmounts what is there and not wanted. Returns how many there are.
    pub(crate) fn set(&mut self, wanted: &[GuestVolume]) -> Result<usize, VolumeError> {
        if !wanted.is_empty() && !self.is_listening {
            listener::start(Arc::clone(&self.mounted)).map_err(VolumeError::Listen)?;
            self.is_listening = true;
        }
        let mut mounted = locked(&self.mounted);
        let (kept, gone) = std::mem::take(&mut mounted.volumes).into_iter().partition(|(volume, _)| wanted.contains(volume));
        mounted.volumes = kept;
        gone.iter().for_each(|(volume, relay): &(GuestVolume, Arc<Relay>)| unmount(volume, relay));
        for volume in wanted {
            if !mounted.volumes.iter().any(|(known, _)| known == volume) {
                let relay = put(volume)?;
                mounted.volumes.push((volume.clone(), relay));
            }
        }
        Ok(mounted.volumes.len())
    }

    /// By which the host proves from now on that it means this machine.
    pub(crate) fn set_bond(&self, bond: &Bond) {
        locked(&self.mounted).bond = bond.clone();
    }
}

fn put(volume: &GuestVolume) -> Result<Arc<Relay>, VolumeError> {
    let path = Path::new(&volume.path);
    fs_err::create_dir_all(path).map_err(|source| VolumeError::Directory { path: path.to_owned(), source })?;
    let device = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE).map_err(VolumeError::Device)?;
    // Everybody in the guest may come; what each may do the kernel decides by modes and owners.
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", device.as_raw_fd());
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, volume.read_only);
    mount(Some("volume"), path, Some("fuse"), flags, Some(options.as_str()))
        .map_err(|source| VolumeError::Mount { path: path.to_owned(), source })?;
    Relay::start(device).map_err(|source| VolumeError::Thread { path: path.to_owned(), source })
}

/// Takes a volume away from its place. Who has files of it open is told that it is gone.
fn unmount(volume: &GuestVolume, relay: &Relay) {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    if let Err(error) = umount2(Path::new(&volume.path), flags) {
        // Whoever is root here may have done so before.
        tracing::warn!(%error, path = volume.path, "cannot unmount a volume");
    }
    relay.end();
}
