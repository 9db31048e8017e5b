//! The messages of FUSE that a guest's kernel sends, as far as they are understood here (`linux/fuse.h`, protocol 7.31).
//!
//! A message is of one length, which it says first, so a stream of them needs no frames around it. Numbers are little-endian: guests
//! have the byte order of their host. What a guest sends is hostile: a message is taken apart with every length checked, and a name
//! that is none is refused here, so that nothing behind this module sees a `/`, a `..` or a NUL.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use firkin_wire::fuse::{INTERRUPT, MAX_IO_BYTES, REPLY_HEAD_BYTES};
use rustix::io::Errno;

/// The longest name that file systems of hosts take.
const MAX_NAME_BYTES: usize = 255;

/// The longest target of a symbolic link, as Linux has it.
const MAX_TARGET_BYTES: usize = 4095;

/// What stands in place of nanoseconds for the present time, and for none (utimensat(2)).
const TIME_NOW: u32 = 0x3fff_ffff;
const TIME_OMITTED: u32 = 0x3fff_fffe;

/// Who asks, and of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Repeated in the reply.
    pub(crate) unique: u64,
    pub(crate) node: u64,
    /// The user of the guest that asks, by its number there.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A name of an entry in its directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name<'a>(&'a OsStr);

impl<'a> Name<'a> {
    fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        if bytes.len() > MAX_NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.iter().any(|byte| matches!(byte, b'/' | 0)) {
            return Err(Errno::INVAL);
        }
        Ok(Self(OsStr::from_bytes(bytes)))
    }

    pub(crate) fn as_os_str(self) -> &'a OsStr {
        self.0
    }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    Now,
    At { seconds: i64, nanoseconds: u32 },
}

/// What is to be changed of an entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Option<Time>,
    pub(crate) modified: Option<Time>,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Init {
        major: u32,
        minor: u32,
        readahead: u32,
        flags: u32,
    },
    Lookup(Name<'a>),
    GetAttributes,
    SetAttributes(Changes),
    ReadLink,
    Symlink {
        name: Name<'a>,
        target: &'a OsStr,
    },
    MakeNode {
        name: Name<'a>,
        mode: u32,
    },
    MakeDirectory {
        name: Name<'a>,
        mode: u32,
    },
    Unlink(Name<'a>),
    RemoveDirectory(Name<'a>),
    Rename {
        name: Name<'a>,
        to: u64,
        new: Name<'a>,
        flags: u32,
    },
    Link {
        of: u64,
        name: Name<'a>,
    },
    Open {
        flags: u32,
    },
    Create {
        name: Name<'a>,
        flags: u32,
        mode: u32,
    },
    Read {
        offset: u64,
        size: u32,
    },
    Write {
        offset: u64,
        flags: u32,
        data: &'a [u8],
    },
    Allocate {
        offset: u64,
        length: u64,
        mode: u32,
    },
    Sync {
        data_only: bool,
    },
    Release,
    OpenDirectory,
    ListDirectory {
        offset: u64,
        size: u32,
        with_entries: bool,
    },
    Figures,
    /// Nothing has to be done for it, and it is answered.
    Nothing,
    /// Nobody waits for an answer.
    Unanswered,
    /// It is not offered.
    Unknown,
}

/// Takes fields off the front of a message.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, Errno> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Errno> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// What stands before the next NUL.
    fn text(&mut self) -> Result<&'a [u8], Errno> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Errno::INVAL)?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        Ok(text)
    }

    fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.text()?)
    }
}

/// Takes a request apart. `None` for what is not even a head; an error is the answer to a request that makes no sense.
pub(crate) fn read(message: &[u8]) -> Option<(Head, Result<Operation<'_>, Errno>)> {
    let mut fields = Fields(message);
    let mut head = || -> Result<(u32, Head), Errno> {
        let _length = fields.u32()?;
        let opcode = fields.u32()?;
        let head = Head { unique: fields.u64()?, node: fields.u64()?, uid: fields.u32()?, gid: fields.u32()? };
        let _process_and_padding = fields.u64()?;
        Ok((opcode, head))
    };
    let (opcode, head) = head().ok()?;
    Some((head, operation(opcode, &mut fields)))
}

fn operation<'a>(opcode: u32, fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    Ok(match opcode {
        1 => Operation::Lookup(fields.name()?),
        2 | INTERRUPT | 42 => Operation::Unanswered,
        3 => Operation::GetAttributes,
        4 => Operation::SetAttributes(changes(fields)?),
        5 => Operation::ReadLink,
        6 => {
            let (name, target) = (fields.name()?, fields.text()?);
            if target.is_empty() || target.len() > MAX_TARGET_BYTES {
                return Err(Errno::NAMETOOLONG);
            }
            Operation::Symlink { name, target: OsStr::from_bytes(target) }
        }
        8 => {
            let (mode, _device, _umask_and_padding) = (fields.u32()?, fields.u32()?, fields.u64()?);
            Operation::MakeNode { mode, name: fields.name()? }
        }
        9 => {
            let (mode, _umask) = (fields.u32()?, fields.u32()?);
            Operation::MakeDirectory { mode, name: fields.name()? }
        }
        10 => Operation::Unlink(fields.name()?),
        11 => Operation::RemoveDirectory(fields.name()?),
        12 => Operation::Rename { to: fields.u64()?, flags: 0, name: fields.name()?, new: fields.name()? },
        45 => {
            let (to, flags, _padding) = (fields.u64()?, fields.u32()?, fields.u32()?);
            Operation::Rename { to, flags, name: fields.name()?, new: fields.name()? }
        }
        13 => Operation::Link { of: fields.u64()?, name: fields.name()? },
        14 => Operation::Open { flags: fields.u32()? },
        16 => write(fields)?,
        15 | 28 | 44 => {
            let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?.min(MAX_IO_BYTES));
            match opcode {
                15 => Operation::Read { offset, size },
                _ => Operation::ListDirectory { offset, size, with_entries: opcode == 44 },
            }
        }
        17 => Operation::Figures,
        18 => Operation::Release,
        20 | 30 => {
            let (_handle, flags) = (fields.u64()?, fields.u32()?);
            Operation::Sync { data_only: flags & 1 != 0 }
        }
        26 => Operation::Init { major: fields.u32()?, minor: fields.u32()?, readahead: fields.u32()?, flags: fields.u32()? },
        35 => {
            let (flags, mode, _umask, _open_flags) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
            Operation::Create { flags, mode, name: fields.name()? }
        }
        43 => {
            let (_handle, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
            Operation::Allocate { offset, length, mode: fields.u32()? }
        }
        27 => Operation::OpenDirectory,
        // What is written is here before the write is answered, directories are opened for each part of a listing, and nobody here
        // keeps anything at the end.
        25 | 29 | 38 => Operation::Nothing,
        _ => Operation::Unknown,
    })
}

fn write<'a>(fields: &mut Fields<'a>) -> Result<Operation<'a>, Errno> {
    let (_handle, offset, size, _write_flags) = (fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?);
    let (_lock_owner, flags, _padding) = (fields.u64()?, fields.u32()?, fields.u32()?);
    let length = usize::try_from(size).map_err(|_| Errno::INVAL)?;
    let data = fields.0.get(..length).filter(|_| size <= MAX_IO_BYTES).ok_or(Errno::INVAL)?;
    Ok(Operation::Write { offset, flags, data })
}

fn changes(fields: &mut Fields<'_>) -> Result<Changes, Errno> {
    let (valid, _padding, _handle, size, _lock_owner) =
        (fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?, fields.u64()?);
    let (accessed, modified, _changed) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let (accessed_ns, modified_ns, _changed_ns) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (mode, _unused, uid, gid) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
    let has = |bit: u32| valid & (1 << bit) != 0;
    let time = |bit: u32, now: u32, seconds: u64, nanoseconds: u32| match nanoseconds {
        _ if has(now) => Ok(Some(Time::Now)),
        _ if !has(bit) => Ok(None),
        // As programs say it to their kernel, which gVisor hands on as it is.
        TIME_NOW => Ok(Some(Time::Now)),
        TIME_OMITTED => Ok(None),
        1_000_000_000.. => Err(Errno::INVAL),
        nanoseconds => Ok(Some(Time::At { seconds: seconds.cast_signed(), nanoseconds })),
    };
    Ok(Changes {
        mode: has(0).then_some(mode),
        uid: has(1).then_some(uid),
        gid: has(2).then_some(gid),
        size: has(3).then_some(size),
        accessed: time(4, 7, accessed, accessed_ns)?,
        modified: time(5, 8, modified, modified_ns)?,
    })
}

/// A reply that is being written.
#[derive(Debug)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    /// What was asked for, which is still empty.
    pub(crate) fn to(unique: u64) -> Self {
        let mut bytes = Vec::with_capacity(REPLY_HEAD_BYTES + 160);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&unique.to_le_bytes());
        Self(bytes)
    }

    /// Why it was not done.
    pub(crate) fn refusing(unique: u64, error: Errno) -> Vec<u8> {
        let mut reply = Self::to(unique);
        reply.0[4..8].copy_from_slice(&(-error.raw_os_error()).to_le_bytes());
        reply.finish()
    }

    /// For the kernel to look at a file's size and times again before it trusts those that it has. Nobody has asked for it, so it
    /// has no number, and says its own where an error would stand.
    pub(crate) fn forget_attributes(node: u64) -> Vec<u8> {
        const INVALIDATE_INODE: i32 = 2;
        let mut reply = Self::to(0);
        reply.0[4..8].copy_from_slice(&INVALIDATE_INODE.to_le_bytes());
        // Of its content, nothing: what a negative offset says.
        reply.u64(node).u64((-1_i64).cast_unsigned()).u64(0).finished()
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// So many bytes of content, which `fill` puts there; it answers how many there were.
    pub(crate) fn content(&mut self, most: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
        let start = self.0.len();
        self.0.resize(start + most, 0);
        let filled = fill(&mut self.0[start..])?;
        self.0.truncate(start + filled.min(most));
        Ok(())
    }

    /// Bytes after the head.
    pub(crate) fn length(&self) -> usize {
        self.0.len() - REPLY_HEAD_BYTES
    }

    pub(crate) fn shorten(&mut self, length: usize) {
        self.0.truncate(REPLY_HEAD_BYTES + length);
    }

    fn finished(&mut self) -> Vec<u8> {
        Self(std::mem::take(&mut self.0)).finish()
    }

    /// The whole message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).expect("a reply is bounded by what may be asked for");
        self.0[..4].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_two_ways() {
        let changed = |valid: u32, nanoseconds: u32| {
            let mut body = [0; 88];
            body[..4].copy_from_slice(&valid.to_le_bytes());
            body[32..40].copy_from_slice(&7_u64.to_le_bytes());
            body[56..60].copy_from_slice(&nanoseconds.to_le_bytes());
            changes(&mut Fields(&body)).map(|changes| changes.accessed)
        };
        assert_eq!(changed(1 << 4, 5), Ok(Some(Time::At { seconds: 7, nanoseconds: 5 })));
        assert_eq!(changed(1 << 4 | 1 << 7, 5), Ok(Some(Time::Now)));
        assert_eq!(changed(0, 5), Ok(None));
        assert_eq!(changed(1 << 4, TIME_NOW), Ok(Some(Time::Now)));
        assert_eq!(changed(1 << 4, TIME_OMITTED), Ok(None));
        assert_eq!(changed(1 << 4, 1_000_000_000), Err(Errno::INVAL));
    }
}
