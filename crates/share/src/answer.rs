//! One request and its answer.

use std::sync::Arc;

use firkin_wire::fuse::MAX_IO_BYTES;
use rustix::{
    fs::{OFlags, Statx, readlinkat},
    io::Errno,
};

use crate::{
    message::{Head, Name, Operation, Reply, read},
    opened::OpenHere,
    tree::{Share, stat_at, stat_of},
};

/// How long a guest trusts what it was told of an entry, seconds. Whoever opens a file is told anew whatever he trusts.
const TRUST_SECONDS: u64 = 1;

/// The protocol that is spoken, 7.31: of Linux 5.4, and of gVisor.
const MAJOR: u32 = 7;
const MINOR: u32 = 31;

/// What is taken of what a kernel offers: reads at once, truncation with the opening, looking again at what has changed, listings with
/// entries where they are wanted, changes in one directory at once, requests of more than 32 pages.
/// Writes are not collected in the guest: then nobody else would see them.
const FLAGS: u32 = (1 << 0) | (1 << 3) | (1 << 12) | (1 << 13) | (1 << 14) | (1 << 18) | (1 << 22);

/// Writes of more than a page, said whether a kernel offers them or not: gVisor's offers next to nothing, and yet writes page by page where
/// it is not told, a message for each.
const BIG_WRITES: u32 = 1 << 5;

/// Requests of one guest that it has under way without a program that waits for them: read ahead.
const BACKGROUND: u16 = 16;

/// What a guest may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whatever its own permissions let it.
    Write,
    /// As that, but nothing changes.
    Read,
}

/// One guest at a directory.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) share: Arc<Share>,
    pub(crate) access: Access,
    pub(crate) here: OpenHere,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let owed = self.share.opened.close_all(&self.here);
        if let Err(error) = owed.into_iter().try_for_each(|file| self.share.give_back(file)) {
            tracing::warn!(%error, "a guest's removed files count until the volume is counted again");
        }
    }
}

impl Guest {
    /// What is to be sent for a message: nothing, or messages. Blocks.
    pub(crate) fn answer(&self, message: &[u8]) -> Vec<Vec<u8>> {
        let Some((head, operation)) = read(message) else { return Vec::new() };
        if operation == Ok(Operation::Unanswered) {
            return Vec::new();
        }
        let mut reply = Reply::to(head.unique);
        match operation.and_then(|operation| self.perform(&head, operation, &mut reply)) {
            Ok(()) => {
                let first = matches!(operation, Ok(Operation::Open { .. })).then(|| Reply::forget_attributes(head.node));
                first.into_iter().chain([reply.finish()]).collect()
            }
            Err(error) => vec![Reply::refusing(head.unique, error)],
        }
    }

    fn perform(&self, head: &Head, operation: Operation<'_>, reply: &mut Reply) -> Result<(), Errno> {
        if self.access == Access::Read && changes(&operation) {
            return Err(Errno::ROFS);
        }
        let share = &*self.share;
        match operation {
            Operation::Init { major, minor, readahead, flags } => init((major, minor), readahead, flags, reply),
            Operation::Lookup(name) => share.lookup(head.node, name, reply),
            Operation::GetAttributes => share.attributes_of(head.node, reply),
            Operation::SetAttributes(changes) => {
                share.set(head.node, changes)?;
                share.attributes_of(head.node, reply)
            }
            Operation::ReadLink => {
                let entry = share.open(head.node, OFlags::PATH)?;
                let target = readlinkat(&entry.fd, "", Vec::new())?;
                reply.bytes(target.as_bytes());
                Ok(())
            }
            Operation::Symlink { name, target } => share.symlink(head, name, target, reply),
            Operation::MakeNode { name, mode } => share.make_node(head, name, mode, reply),
            Operation::MakeDirectory { name, mode } => share.make_directory(head, name, mode, reply),
            Operation::Unlink(name) => share.unlink(head.node, name),
            Operation::RemoveDirectory(name) => share.remove_directory(head.node, name),
            Operation::Rename { name, to, new, flags } => share.rename((head.node, name), (to, new), flags),
            Operation::Link { of, name } => share.link(head.node, of, name, reply),
            Operation::Open { flags } => self.open(head.node, flags, reply),
            Operation::Create { name, flags, mode } => self.create(head, name, (flags, mode), reply),
            Operation::Read { offset, size } => share.read(head.node, offset, size, reply),
            Operation::Write { offset, flags, data } => share.write(head.node, (offset, flags), data, reply),
            Operation::Allocate { offset, length, mode } => share.allocate(head.node, offset, length, mode),
            Operation::Sync { data_only } => share.sync(head.node, data_only),
            Operation::Release => self.close(head.node),
            Operation::ListDirectory { offset, size, with_entries } => share.list(head.node, offset, (size, with_entries), reply),
            Operation::Figures => {
                share.figures(reply);
                Ok(())
            }
            Operation::OpenDirectory => {
                opened(reply);
                Ok(())
            }
            Operation::Nothing => Ok(()),
            Operation::Unanswered => Ok(()),
            Operation::Unknown => Err(Errno::NOSYS),
        }
    }
}

impl Share {
    pub(crate) fn lookup(&self, parent: u64, name: Name<'_>, reply: &mut Reply) -> Result<(), Errno> {
        let directory = self.directory(parent)?;
        let stat = stat_at(&directory.fd, name.as_os_str())?;
        entry(self.learn(parent, name.as_os_str(), &stat), &stat, reply);
        Ok(())
    }

    /// Of a file that is open also once it was removed.
    pub(crate) fn attributes_of(&self, node: u64, reply: &mut Reply) -> Result<(), Errno> {
        let stat = if self.opened.holds(node) {
            stat_of(&*self.file(node)?)?
        } else {
            match self.open(node, OFlags::PATH) {
                Err(Errno::STALE) => self.successor(node)?.1,
                found => found?.stat,
            }
        };
        reply.u64(TRUST_SECONDS).u32(0).u32(0);
        attributes(&stat, reply);
        Ok(())
    }
}

/// Whether it is refused to who may only read. Opening to write is not: nothing comes of it.
fn changes(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::SetAttributes(_)
        | Operation::Symlink { .. }
        | Operation::MakeNode { .. }
        | Operation::MakeDirectory { .. }
        | Operation::Unlink(_)
        | Operation::RemoveDirectory(_)
        | Operation::Rename { .. }
        | Operation::Link { .. }
        | Operation::Create { .. }
        | Operation::Write { .. }
        | Operation::Allocate { .. } => true,
        Operation::Open { flags } => OFlags::from_bits_retain(*flags).contains(OFlags::TRUNC),
        Operation::Init { .. }
        | Operation::Lookup(_)
        | Operation::GetAttributes
        | Operation::ReadLink
        | Operation::Read { .. }
        | Operation::Sync { .. }
        | Operation::Release
        | Operation::OpenDirectory
        | Operation::ListDirectory { .. }
        | Operation::Figures
        | Operation::Nothing
        | Operation::Unanswered
        | Operation::Unknown => false,
    }
}

/// The first thing that a kernel asks. Nothing of it is remembered: what is answered later is the same for all.
fn init((major, minor): (u32, u32), readahead: u32, flags: u32, reply: &mut Reply) -> Result<(), Errno> {
    if major < MAJOR || (major == MAJOR && minor < MINOR) {
        return Err(Errno::PROTO);
    }
    reply.u32(MAJOR).u32(MINOR).u32(readahead).u32((flags & FLAGS) | BIG_WRITES);
    reply.u16(BACKGROUND).u16(BACKGROUND).u32(MAX_IO_BYTES);
    // Times are told to the nanosecond.
    reply.u32(1);
    reply.u16(u16::try_from(MAX_IO_BYTES / 4096).unwrap_or(u16::MAX)).u16(0);
    reply.bytes(&[0; 32]);
    Ok(())
}

/// An opened file or directory. It has no handle: it is known by its number.
pub(crate) fn opened(reply: &mut Reply) {
    reply.u64(0).u32(0).u32(0);
}

/// An entry, as a lookup and a creation answer.
pub(crate) fn entry(node: u64, stat: &Statx, reply: &mut Reply) {
    // No generation: the number is never another's.
    reply.u64(node).u64(0).u64(TRUST_SECONDS).u64(TRUST_SECONDS).u32(0).u32(0);
    attributes(stat, reply);
}

fn attributes(stat: &Statx, reply: &mut Reply) {
    reply.u64(stat.stx_ino).u64(stat.stx_size).u64(stat.stx_blocks);
    for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
        reply.u64(time.tv_sec.cast_unsigned());
    }
    for time in [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime] {
        reply.u32(time.tv_nsec);
    }
    reply.u32(u32::from(stat.stx_mode)).u32(stat.stx_nlink).u32(stat.stx_uid).u32(stat.stx_gid);
    reply.u32(0).u32(stat.stx_blksize).u32(0);
}
