//! An upload into a volume: it goes to the disk as it comes, aside, and has its place once it is whole.

use std::{os::fd::OwnedFd, sync::Arc};

use rustix::fs::{Mode, OFlags, RenameFlags, openat, renameat_with};
use tokio::io::AsyncWriteExt;

use super::{
    Attributes, Clean, Entry, Root, VolumeError, blocking,
    usage::{self, Taken},
};

/// Between two looks at the disk during an upload.
const LOOK_AT_DISK_EVERY: u64 = 64 << 20;

const NEW_FILE: u32 = 0o644;

/// Where an upload goes, and as what.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) root: Arc<Root>,
    pub(super) path: Clean,
    pub(super) attributes: Attributes,
    pub(super) force: bool,
}

/// A file that is being written. Dropped before it was finished, nothing of it stays.
#[derive(Debug)]
pub struct Upload {
    target: Target,
    file: tokio::fs::File,
    aside: tempfile::TempPath,
    unlooked: u64,
    length: u64,
    taken: Taken,
}

impl Upload {
    pub(super) fn new(target: Target, (file, aside): (tokio::fs::File, tempfile::TempPath), taken: Taken) -> Self {
        Self { target, file, aside, unlooked: 0, length: 0, taken }
    }

    /// Refuses a file of which it is known that the volume has no room for it, before any of it has come.
    pub fn announce(&self, length: u64) -> Result<(), VolumeError> {
        let more = usage::of_length(length).saturating_sub(usage::LEAST_BYTES);
        Ok(self.target.root.account.has_room(more)?)
    }

    /// Appends bytes, if the volume has room for them.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), VolumeError> {
        self.length += bytes.len() as u64;
        self.taken.grow_to(usage::of_length(self.length))?;
        self.unlooked += bytes.len() as u64;
        if self.unlooked >= LOOK_AT_DISK_EVERY {
            self.unlooked = 0;
            self.target.root.disk.check().map_err(VolumeError::Disk)?;
        }
        self.file.write_all(bytes).await.map_err(|error| self.target.path.failed(error))
    }

    /// Puts the file in its place. Durable when this returns.
    pub async fn finish(mut self) -> Result<Entry, VolumeError> {
        self.file.flush().await.map_err(|error| self.target.path.failed(error))?;
        let file = self.file.into_std().await;
        let (Target { root, path, attributes, force }, aside, taken) = (self.target, self.aside, self.taken);
        blocking(move || {
            let attributes = Attributes { mode: Some(attributes.mode.unwrap_or(NEW_FILE)), ..attributes };
            attributes.apply(&file).map_err(|error| path.failed(error))?;
            file.sync_all().map_err(|error| path.failed(error))?;
            let (parent, name) = path.split().ok_or_else(|| path.not_found())?;
            let parent = root.open(&parent, OFlags::RDONLY | OFlags::DIRECTORY).map_err(|_| path.not_found())?;
            let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
            let from = aside.file_name().unwrap_or_default();
            let bytes = rustix::fs::fstat(&file).map(|stat| usage::of(&stat)).map_err(|error| path.failed(error))?;
            let place = || {
                let replaced = openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).ok();
                renameat_with(&root.aside, from, &parent, name, flags)?;
                Ok(replaced.map_or(0, |replaced| freed(&root, &replaced)))
            };
            let replaced = root.changing(&parent, place).map_err(|error| path.failed(error))?;
            taken.keep(bytes);
            root.account.became(replaced, 0);
            rustix::fs::fsync(&parent).map_err(|error| path.failed(error))?;
            // It has its place: there is nothing to remove.
            drop(aside.keep().map_err(|error| path.failed(error.error))?);
            root.entry(&path)
        })
        .await
    }
}

/// What is free now that a file was replaced: nothing while it has another name, or guests have it open.
fn freed(root: &Root, replaced: &OwnedFd) -> u64 {
    match rustix::fs::fstat(replaced) {
        Ok(stat) if stat.st_nlink == 0 && matches!(root.account.is_put_off(replaced), Ok(false)) => usage::of(&stat),
        // Nobody is given room that there may not be.
        Ok(_) | Err(_) => 0,
    }
}
