//! Listings of directories, in parts that each begin where the host's file system says that the last one ended: nothing is kept between
//! two of them.

use std::{
    ffi::OsStr,
    mem::MaybeUninit,
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use rustix::{
    fs::{FileType, OFlags, RawDir, RawDirEntry, SeekFrom, seek},
    io::Errno,
};

use crate::{
    answer::entry,
    message::Reply,
    places::Place,
    tree::{Share, kind, number, stat_at},
};

/// What the host's file system is asked for at a time.
const BUFFER_BYTES: usize = 32 << 10;

/// Of an entry in a listing, before its name.
const HEAD_BYTES: usize = 24;

/// What precedes that in a listing with entries.
const ENTRY_BYTES: usize = 128;

impl Share {
    /// As many entries as `size` bytes have room for, each with what a lookup would answer if that is wanted.
    pub(crate) fn list(&self, node: u64, offset: u64, (size, with_entries): (u32, bool), reply: &mut Reply) -> Result<(), Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        let directory = self.open(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        seek(&directory.fd, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut listed = RawDir::new(&directory.fd, &mut buffer);
        let mut learnt = Vec::new();
        while let Some(found) = listed.next() {
            let found = found?;
            let name_bytes = found.file_name().to_bytes().len();
            let bytes = (HEAD_BYTES + name_bytes).next_multiple_of(8) + if with_entries { ENTRY_BYTES } else { 0 };
            if reply.length() + bytes > size {
                break;
            }
            let before = reply.length();
            let written = if with_entries {
                write_with_entry(node, &directory.fd, (&found, &mut learnt), reply)
            } else {
                write(&found, found.ino(), found.file_type(), reply);
                Ok(())
            };
            match written {
                Ok(()) => {}
                // It went while we looked.
                Err(Errno::NOENT) => reply.shorten(before),
                Err(error) => return Err(error),
            }
        }
        self.learn_all(&learnt);
        Ok(())
    }
}

fn write_with_entry(
    parent: u64,
    at: impl AsFd,
    (found, learnt): (&RawDirEntry<'_>, &mut Vec<(u64, Place)>),
    reply: &mut Reply,
) -> Result<(), Errno> {
    let name = OsStr::from_bytes(found.file_name().to_bytes());
    if name == "." || name == ".." {
        // Without a number nothing is learnt of it.
        reply.bytes(&[0; ENTRY_BYTES]);
        write(found, found.ino(), FileType::Directory, reply);
        return Ok(());
    }
    let stat = stat_at(at, name)?;
    entry(number(&stat), &stat, reply);
    learnt.push((number(&stat), Place { parent, name: name.to_owned() }));
    write(found, stat.stx_ino, kind(&stat), reply);
    Ok(())
}

fn write(found: &RawDirEntry<'_>, inode: u64, kind: FileType, reply: &mut Reply) {
    let name = found.file_name().to_bytes();
    let name_bytes = u32::try_from(name.len()).expect("a name of the host's has 255 bytes at most");
    // The type as `d_type` has it: the mode's upper bits.
    reply.u64(inode).u64(found.next_entry_cookie()).u32(name_bytes).u32(kind.as_raw_mode() >> 12).bytes(name);
    reply.bytes(&[0; 8][..(8 - name.len() % 8) % 8]);
}
