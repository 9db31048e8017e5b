//! A directory that is the server's alone: what lies there is opened by what it is, and no link leads elsewhere.
//!
//! A directory that anybody else could have written to is refused, and nothing in it is opened.

use std::{
    fs::{File, FileType},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::fcntl::OFlag;
use tokio::net::UnixStream;

/// Opens a regular file. What is not one, a link, a pipe or a device, is looked at and never opened.
pub(crate) fn open_unfollowed(path: &Path, write: bool) -> io::Result<File> {
    open_if(path, write, FileType::is_file, "it is not a regular file")
}

/// Opens a layer of a disk to be read: a regular file, or a disk of the host, as the lowest one may be. Whether it is such a disk.
pub(crate) fn open_layer(path: &Path) -> io::Result<(File, bool)> {
    let fits = |found: &FileType| found.is_file() || found.is_block_device();
    let file = open_if(path, false, fits, "it is neither a regular file nor a disk")?;
    let is_device = file.metadata()?.file_type().is_block_device();
    Ok((file, is_device))
}

fn open_if(path: &Path, write: bool, fits: impl Fn(&FileType) -> bool, otherwise: &'static str) -> io::Result<File> {
    let looked = look(path, fits, otherwise)?;
    Ok(fs_err::OpenOptions::new().read(true).write(write).open(itself(&looked))?.into_parts().0)
}

/// Looks at what is at `path`, a link itself and not where it leads, without opening it.
pub(crate) fn look(path: &Path, fits: impl Fn(&FileType) -> bool, otherwise: &'static str) -> io::Result<File> {
    let looked = fs_err::OpenOptions::new().read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_PATH).bits()).open(path)?;
    if fits(&looked.metadata()?.file_type()) {
        Ok(looked.into_parts().0)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, otherwise))
    }
}

/// A path to what was looked at, whatever stands in its place by now. Leads nowhere once `looked` is closed.
pub(crate) fn itself(looked: &File) -> String {
    format!("/proc/self/fd/{}", looked.as_raw_fd())
}

/// Opens an instance directory, which nobody else may have written to.
pub(crate) fn enter(dir: &Path) -> io::Result<File> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY).bits();
    let file = fs_err::OpenOptions::new().read(true).custom_flags(flags).open(dir)?.into_parts().0;
    let found = file.metadata()?;
    if found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0 {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "the instance directory is not the server's alone"))
    }
}

/// Listens in `dir`. The descriptor is QEMU's to accept from; what connects meanwhile waits in the backlog.
pub(crate) fn listen(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let held = enter(dir)?;
    Ok(UnixListener::bind(within(&held, name))?.into())
}

/// Connects to a socket in `dir`: to the one that is there, and to none that a link leads to.
pub(crate) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let held = enter(dir)?;
    let socket = look(&within(&held, name), FileType::is_socket, "it is not a socket")?;
    UnixStream::connect(itself(&socket)).await
}

/// A name in a directory, by the directory's descriptor, which must be held while the path is used: what was looked at is what
/// is used, and a socket's address, which has room for 107 bytes, need not hold the path of the directory.
pub(crate) fn within(dir: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

/// The name of a file of the instance, by which whoever adopts the machine finds it again.
pub(crate) fn own_name<'a>(dir: &Path, file: &'a Path) -> std::io::Result<&'a str> {
    let name = file.file_name().and_then(|name| name.to_str()).filter(|_| file.parent() == Some(dir));
    name.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file of the instance's directory"))
}

/// Runs what reads or writes files on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}
