//! What changes a directory: entries that come, go and move, and what is set of them.

use std::{
    ffi::OsStr,
    os::fd::{AsFd, AsRawFd},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chownat,
        fchmod, ftruncate, linkat, mkdirat, openat, renameat_with, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    answer::entry,
    message::{Changes, Head, Name, Reply, Time},
    room::Sizes,
    tree::{Entry, Share, is_directory, kind, number, stat_at, stat_of},
};

/// Permissions that an entry may have: no program of a shared directory runs as another user.
const MAX_MODE: u32 = 0o1777;

/// What a directory grows by for a name.
const DIRECTORY_BLOCK_BYTES: u64 = 4096;

/// Bytes of a block as the system counts them, whatever the file system's own are.
const STAT_BLOCK_BYTES: u64 = 512;

impl Share {
    /// What an entry counts as.
    pub(crate) fn size(&self, stat: &Statx) -> u64 {
        self.room.size(stat.stx_blocks.saturating_mul(STAT_BLOCK_BYTES))
    }

    /// What is given back once this name of an entry is gone: nothing while it has another, or is open.
    fn given_back(&self, number: u64, stat: &Statx) -> u64 {
        let stays = !is_directory(stat) && (stat.stx_nlink > 1 || self.opened.put_off(number));
        if stays { 0 } else { self.size(stat) }
    }

    /// Makes an entry by `make`, gives it to who asked, and counts it.
    fn add(
        &self,
        head: &Head,
        name: Name<'_>,
        make: impl Fn(&Entry, &OsStr) -> Result<(), Errno>,
    ) -> Result<(u64, Statx), Errno> {
        let name = name.as_os_str();
        let parent = self.directory(head.node)?;
        self.has_room_for_name(head.node, name)?;
        let mut made = None;
        self.room.change(self.room.size(0) + DIRECTORY_BLOCK_BYTES, &mut || {
            self.still(head.node)?;
            make(&parent, name)?;
            let owned = chownat(
                &parent.fd,
                name,
                Some(Uid::from_raw(head.uid)),
                Some(Gid::from_raw(head.gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            );
            let stat = stat_at(&parent.fd, name)?;
            let sizes = Sizes { before: self.size(&parent.stat), after: self.size(&stat_of(&parent.fd)?) + self.size(&stat) };
            made = Some(owned.map(|()| stat));
            Ok(sizes)
        })?;
        let stat = made.ok_or(Errno::IO)??;
        Ok((self.learn(head.node, name, &stat), stat))
    }

    pub(crate) fn symlink(&self, head: &Head, name: Name<'_>, target: &OsStr, reply: &mut Reply) -> Result<(), Errno> {
        let (node, stat) = self.add(head, name, |parent, name| symlinkat(target, &parent.fd, name))?;
        entry(node, &stat, reply);
        Ok(())
    }

    pub(crate) fn make_directory(&self, head: &Head, name: Name<'_>, mode: u32, reply: &mut Reply) -> Result<(), Errno> {
        let mode = Mode::from_raw_mode(mode & MAX_MODE);
        let (node, stat) = self.add(head, name, |parent, name| {
            mkdirat(&parent.fd, name, mode)?;
            // Whatever this process masks.
            let made = openat(&parent.fd, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            fchmod(made, mode)
        })?;
        entry(node, &stat, reply);
        Ok(())
    }

    pub(crate) fn make_node(&self, head: &Head, name: Name<'_>, mode: u32, reply: &mut Reply) -> Result<(), Errno> {
        if mode & 0o170_000 != 0 && FileType::from_raw_mode(mode) != FileType::RegularFile {
            return Err(Errno::PERM);
        }
        let (node, stat) = self.make_file(head, name, mode)?;
        entry(node, &stat, reply);
        Ok(())
    }

    /// Makes a file that is not there.
    pub(crate) fn make_file(&self, head: &Head, name: Name<'_>, mode: u32) -> Result<(u64, Statx), Errno> {
        let mode = Mode::from_raw_mode(mode & MAX_MODE);
        self.add(head, name, |parent, name| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            fchmod(openat(&parent.fd, name, flags, mode)?, mode)
        })
    }

    pub(crate) fn unlink(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::empty())
    }

    pub(crate) fn remove_directory(&self, parent: u64, name: Name<'_>) -> Result<(), Errno> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn remove(&self, parent_node: u64, name: Name<'_>, flags: AtFlags) -> Result<(), Errno> {
        let name = name.as_os_str();
        let parent = self.directory(parent_node)?;
        self.room.change(0, &mut || {
            self.still(parent_node)?;
            let stat = stat_at(&parent.fd, name)?;
            unlinkat(&parent.fd, name, flags)?;
            self.forget(parent_node, name, &stat);
            self.vacated.note(number(&stat), parent_node, name);
            let given_back = self.given_back(number(&stat), &stat);
            Ok(Sizes { before: self.size(&parent.stat) + given_back, after: self.size(&stat_of(&parent.fd)?) })
        })
    }

    pub(crate) fn rename(&self, from: (u64, Name<'_>), to: (u64, Name<'_>), flags: u32) -> Result<(), Errno> {
        let flags = RenameFlags::from_bits(flags).filter(|flags| !flags.contains(RenameFlags::WHITEOUT)).ok_or(Errno::INVAL)?;
        let ((from_node, name), (to_node, new)) = ((from.0, from.1.as_os_str()), (to.0, to.1.as_os_str()));
        let (source, target) = (self.directory(from_node)?, self.directory(to_node)?);
        self.has_room_for_name(to_node, new)?;
        let is_one = from_node == to_node;
        let above = |source: &Statx, target: &Statx| self.size(source) + if is_one { 0 } else { self.size(target) };
        // No more than removing asks for: who is full may still tidy up. What the directory grows by is counted.
        self.room.change(0, &mut || {
            self.still(from_node)?;
            self.still(to_node)?;
            let moved = stat_at(&source.fd, name)?;
            let replaced = stat_at(&target.fd, new).ok();
            let is_swapped = flags.contains(RenameFlags::EXCHANGE);
            renameat_with(&source.fd, name, &target.fd, new, flags)?;
            let given_back = match &replaced {
                Some(stat) if !is_swapped && stat.stx_ino != moved.stx_ino => self.given_back(number(stat), stat),
                Some(_) | None => 0,
            };
            let is_same = replaced.as_ref().is_some_and(|stat| number(stat) == number(&moved));
            // Two names of one entry stay what they are.
            if !is_same {
                self.learn(to_node, new, &moved);
                self.forget(from_node, name, &moved);
            }
            if let Some(other) = replaced.filter(|_| !is_same) {
                self.forget(to_node, new, &other);
                self.vacated.note(number(&other), to_node, new);
                if is_swapped {
                    self.learn(from_node, name, &other);
                    self.moved(&other);
                }
            }
            // What is below it moves along, and may be what is being looked for.
            self.moved(&moved);
            let before = above(&source.stat, &target.stat) + given_back;
            Ok(Sizes { before, after: above(&stat_of(&source.fd)?, &stat_of(&target.fd)?) })
        })
    }

    pub(crate) fn link(&self, parent_node: u64, of: u64, name: Name<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let name = name.as_os_str();
        let parent = self.directory(parent_node)?;
        self.has_room_for_name(parent_node, name)?;
        let mut linked = None;
        let linked_to = self.open(of, OFlags::PATH)?;
        // The entry itself, whatever its names are by now. One that has none any more is refused.
        let old = format!("/proc/self/fd/{}", linked_to.fd.as_raw_fd());
        self.room.change(DIRECTORY_BLOCK_BYTES, &mut || {
            self.still(parent_node)?;
            self.still(of)?;
            linkat(CWD, &old, &parent.fd, name, AtFlags::SYMLINK_FOLLOW)?;
            let stat = stat_at(&parent.fd, name)?;
            linked = Some((self.learn(parent_node, name, &stat), stat));
            self.moved(&stat);
            Ok(Sizes { before: self.size(&parent.stat), after: self.size(&stat_of(&parent.fd)?) })
        })?;
        let (number, stat) = linked.ok_or(Errno::IO)?;
        entry(number, &stat, reply);
        Ok(())
    }

    /// Sets what is given.
    pub(crate) fn set(&self, node: u64, changes: Changes) -> Result<(), Errno> {
        if changes.mode.is_some_and(|mode| mode & 0o7777 & !MAX_MODE != 0) {
            return Err(Errno::PERM);
        }
        if let Some(size) = changes.size {
            self.truncate(node, size)?;
        }
        if self.opened.holds(node) {
            return apply(&*self.file(node)?, changes);
        }
        let found = self.open(node, OFlags::PATH)?;
        if kind(&found.stat) == FileType::Symlink {
            return apply_to_link(&found, changes);
        }
        apply(self.open(node, OFlags::RDONLY)?.fd, changes)
    }

    pub(crate) fn truncate(&self, node: u64, size: u64) -> Result<(), Errno> {
        let file = self.file(node)?;
        self.room.change(0, &mut || {
            self.still_counts(node)?;
            let before = self.size(&stat_of(&*file)?);
            ftruncate(&*file, size)?;
            Ok(Sizes { before, after: self.size(&stat_of(&*file)?) })
        })
    }
}

/// Of a link, which cannot be opened. It has no mode.
fn apply_to_link(link: &Entry, changes: Changes) -> Result<(), Errno> {
    own(&link.fd, changes)?;
    match times(changes) {
        Some(times) => utimensat(&link.fd, "", &times, AtFlags::EMPTY_PATH),
        None => Ok(()),
    }
}

/// Owner first: a change of it may take permissions away.
fn apply(file: impl AsFd, changes: Changes) -> Result<(), Errno> {
    own(&file, changes)?;
    if let Some(mode) = changes.mode {
        fchmod(&file, Mode::from_raw_mode(mode & MAX_MODE))?;
    }
    match times(changes) {
        Some(times) => rustix::fs::futimens(&file, &times),
        None => Ok(()),
    }
}

fn own(file: impl AsFd, Changes { uid, gid, .. }: Changes) -> Result<(), Errno> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    chownat(file, "", uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::EMPTY_PATH)
}

fn times(changes: Changes) -> Option<Timestamps> {
    let spec = |time: Option<Time>| match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(Time::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(Time::At { seconds, nanoseconds }) => Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    };
    let asked = changes.accessed.is_some() || changes.modified.is_some();
    asked.then(|| Timestamps { last_access: spec(changes.accessed), last_modification: spec(changes.modified) })
}
