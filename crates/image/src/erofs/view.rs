//! The files of a root image as a directory that may be changed, while the image is not.
//!
//! The mounts are in a mount namespace of their own, which ends with the thread that made it: however a build ends, also by the death
//! of the process, nothing of them stays, and the loop device goes with its mount. What stands in the image was made by strangers,
//! so that its links must not lead anywhere: it is changed by a thread whose root it is.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statvfs::statvfs,
};

use crate::command::{CommandError, SBIN_PATH, command, run};

/// Where a process asks for a loop device.
const LOOP_CONTROL: &str = "/dev/loop-control";
/// A mount reads some blocks of the image.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// A host's settings for overlays in general have no say. Links keep their identity without an index, since none is written to.
const OVERLAY: &str = "lowerdir=image,upperdir=changes/upper,workdir=changes/work,index=off,metacopy=off,redirect_dir=off";
/// The directories that [`View`] makes, or finds made.
const PLACES: [&str; 3] = ["image", "changes", "files"];
/// What is seen over an image's files, within the directory of changes.
const UPPER: &str = "upper";

/// What an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A machine's.
    Ext4,
    /// A container's.
    Erofs,
}

/// What is over the files of an image.
#[derive(Debug, Clone, Copy)]
pub(super) enum Changes {
    /// Nothing yet. It is kept in memory, up to so many bytes.
    None(u64),
    /// What was put where [`upper`] says.
    Made,
}

/// Where what is to be seen over an image's files is put, before they are seen: its own root and all below, in the language of the
/// kernel's overlay.
pub(super) fn upper(work: &Path) -> PathBuf {
    work.join(PLACES[1]).join(UPPER)
}

/// Why the files of an image cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no mount namespace to be had.
    #[error("cannot mount anything in private: root is needed, with CAP_SYS_ADMIN")]
    Namespace(#[source] Errno),
    /// The host has no loop devices.
    #[error(
        "cannot read the files of a root image: the host has no loop devices (`{LOOP_CONTROL}`); `modprobe loop`, or give the container \
         the host's"
    )]
    NoLoop,
    /// The image is not mounted.
    #[error(
        "cannot read the files of `{image}`: loop devices are needed, and the kernel's ext4, or EROFS for what a sandbox has changed"
    )]
    Image {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The host has no overlay file system.
    #[error("cannot add files over those of a root image: the kernel's overlay file system is needed; `modprobe overlay`")]
    Overlay(#[source] Errno),
    /// A directory to mount at cannot be made or entered, or not be looked into.
    #[error("cannot prepare the files of a root image in `{dir}`")]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The files cannot be changed.
    #[error("cannot change the files of a root image")]
    Change(#[source] io::Error),
}

/// Gives the calling thread mounts and a working directory of its own, and `work` as that. The thread must end soon after.
pub(super) fn apart(work: &Path) -> Result<(), ViewError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(ViewError::Namespace)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(ViewError::Namespace)?;
    let directory = |source| ViewError::Directory { dir: work.to_path_buf(), source };
    nix::unistd::chdir(work).map_err(|errno| directory(errno.into()))
}

/// The files. Dropped, nothing is mounted any more.
#[derive(Debug)]
pub(super) struct View {
    work: PathBuf,
    /// What is mounted, below `work`.
    mounted: Vec<&'static str>,
}

/// What an image takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// Blocks in use.
    pub(super) bytes: u64,
    /// Files of any type.
    pub(super) files: u64,
}

impl View {
    /// Shows the files of an image in the thread's working directory, `work`, with changes over them.
    pub(super) async fn open(
        work: &Path,
        (image, format): (&Path, Format),
        changes: Changes,
        log: &Path,
    ) -> Result<Self, ViewError> {
        let directory = |source| ViewError::Directory { dir: work.to_path_buf(), source };
        for place in PLACES {
            fs::create_dir_all(work.join(place)).map_err(directory)?;
        }
        if !Path::new(LOOP_CONTROL).exists() {
            return Err(ViewError::NoLoop);
        }
        let mut view = Self { work: work.to_path_buf(), mounted: Vec::new() };
        view.mount_image(image, format, log).await?;
        if let Changes::None(bytes) = changes {
            let room = format!("mode=0700,size={bytes}");
            mount(Some("tmpfs"), PLACES[1], Some("tmpfs"), MsFlags::empty(), Some(room.as_str()))
                .map_err(|errno| directory(errno.into()))?;
            view.mounted.push(PLACES[1]);
            like(&work.join(PLACES[0]), &upper(work)).map_err(directory)?;
        }
        fs::create_dir(work.join(PLACES[1]).join("work")).map_err(directory)?;
        let opened = mount(Some("overlay"), PLACES[2], Some("overlay"), MsFlags::empty(), Some(OVERLAY));
        opened.map_err(ViewError::Overlay)?;
        view.mounted.push(PLACES[2]);
        Ok(view)
    }

    async fn mount_image(&mut self, image: &Path, format: Format, log: &Path) -> Result<(), ViewError> {
        // A loop device that `mount` makes is let go with its last user. No journal is replayed: the image was never mounted.
        let (kind, options) = match format {
            Format::Ext4 => ("ext4", "ro,loop,noload,nodev,nosuid,noexec"),
            Format::Erofs => ("erofs", "ro,loop,nodev,nosuid,noexec"),
        };
        let mut lower = command("mount");
        lower.args(["-n", "-t", kind, "-o", options, "--"]).arg(image).arg(self.work.join(PLACES[0])).env("PATH", SBIN_PATH);
        let mounted = run(lower, MOUNT_DEADLINE, log, &mut |_| ()).await;
        mounted.map_err(|source| ViewError::Image { image: image.to_path_buf(), source })?;
        self.mounted.push(PLACES[0]);
        Ok(())
    }

    /// Where the files are.
    pub(super) fn files(&self) -> PathBuf {
        self.work.join(PLACES[2])
    }

    /// What the image takes.
    pub(super) fn size(&self) -> Result<Size, ViewError> {
        let dir = self.work.join(PLACES[0]);
        let stat = statvfs(&dir).map_err(|errno| ViewError::Directory { dir, source: errno.into() })?;
        Ok(Size { bytes: (stat.blocks() - stat.blocks_free()) * stat.fragment_size(), files: stat.files() - stat.files_free() })
    }

    /// Has `change` done by a thread that has the files as its root and nothing beside them.
    pub(super) fn change<T: Send>(&self, change: impl FnOnce() -> io::Result<T> + Send) -> Result<T, ViewError> {
        let files = self.files();
        let inside = || {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chroot(&files)?;
            nix::unistd::chdir("/")?;
            change()
        };
        let changed = std::thread::scope(|scope| scope.spawn(inside).join());
        changed.unwrap_or_else(|_| Err(io::Error::other("the thread that changes them has panicked"))).map_err(ViewError::Change)
    }

    /// Takes the mounts away and the directories that they were at.
    pub(super) fn close(mut self) -> Result<(), ViewError> {
        self.unmount();
        let remove = |place| firkin_files::remove_tree(&self.work.join(place));
        PLACES.into_iter().try_for_each(remove).map_err(|source| ViewError::Directory { dir: self.work.clone(), source })
    }

    fn unmount(&mut self) {
        while let Some(place) = self.mounted.pop() {
            // A program that was killed a moment ago may still be in it.
            if let Err(errno) = umount2(&self.work.join(place), MntFlags::MNT_DETACH) {
                tracing::warn!(place, %errno, "cannot unmount a part of a root image; it goes with the thread that mounted it");
            }
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// Makes a directory with the attributes of another: of an overlay's root, those of the upper directory are seen.
fn like(other: &Path, directory: &Path) -> io::Result<()> {
    let attributes = fs::metadata(other)?;
    fs::create_dir(directory)?;
    fs::set_permissions(directory, attributes.permissions())?;
    std::os::unix::fs::chown(directory, Some(attributes.uid()), Some(attributes.gid()))?;
    set_modified(directory, attributes.modified()?)
}

/// Sets a file's time, which for a directory is that of the last change of its entries.
pub(super) fn set_modified(path: &Path, time: std::time::SystemTime) -> io::Result<()> {
    let file: File = fs::File::open(path)?.into_parts().0;
    file.set_modified(time)
}
