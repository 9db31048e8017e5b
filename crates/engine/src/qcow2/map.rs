//! Reading a layer: which of a disk's clusters it holds, and their bytes.
//!
//! The layer was written by an engine whose guest may have taken it over, so its tables may say anything. What no layer of ours
//! has (encryption, compression, internal snapshots, other cluster sizes, files beside it) is refused; an offset is only ever
//! used to read from the layer itself, and what lies beyond its end reads as zeros, as it does for QEMU.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;

use super::{CLUSTER, CLUSTER_BITS, InspectError, L1_ENTRY_BYTES, MAX_VIRTUAL_BYTES, first_cluster, libc_nofollow, parse};

/// Entries of a second-level table.
pub(super) const L2_ENTRIES: usize = 8192;
/// Where an entry points to, without its flags.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, wherever the entry points to.
pub(super) const ZERO: u64 = 1;
/// Refcounts may be behind; they are not read.
const INCOMPATIBLE_DIRTY: u64 = 1;

/// A layer's entry for one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Nothing: what lies below shows.
    Absent,
    /// Zeros.
    Zero,
    /// The bytes at this offset of the file.
    At(u64),
}

/// A layer with its first-level table.
#[derive(Debug)]
pub(super) struct Layer {
    path: PathBuf,
    file: File,
    pub(super) bytes: u64,
    pub(super) virtual_bytes: u64,
    l1: Vec<u64>,
}

impl Layer {
    pub(super) fn open(path: &Path) -> Result<Self, InspectError> {
        let read = |source| InspectError::Read { path: path.to_path_buf(), source };
        let malformed = |problem| InspectError::Malformed { path: path.to_path_buf(), problem };
        let file = fs_err::OpenOptions::new().read(true).custom_flags(libc_nofollow()).open(path).map_err(read)?;
        let file = file.into_parts().0;
        let bytes = file.metadata().map_err(read)?.len();
        let head = first_cluster(&file).map_err(read)?;
        let virtual_bytes = parse(&head).map_err(malformed)?.virtual_bytes;
        let l1_offset = plain(&head, virtual_bytes).map_err(malformed)?;
        let entries = usize::try_from(virtual_bytes.div_ceil(L1_ENTRY_BYTES)).expect("bounded by MAX_VIRTUAL_BYTES");
        let mut l1 = vec![0; entries * 8];
        read_padded(&file, &mut l1, l1_offset).map_err(read)?;
        Ok(Self { path: path.to_path_buf(), file, bytes, virtual_bytes, l1: words(&l1) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The entries of a second-level table, or nothing where the layer has none.
    pub(super) fn table(&self, index: usize) -> Result<Option<Vec<Cluster>>, InspectError> {
        let malformed = |problem| InspectError::Malformed { path: self.path.clone(), problem };
        let offset = self.l1[index] & OFFSET;
        if offset == 0 {
            return Ok(None);
        }
        if !offset.is_multiple_of(CLUSTER) {
            return Err(malformed("a table does not lie at a cluster"));
        }
        let mut table = vec![0; L2_ENTRIES * 8];
        self.read(&mut table, offset)?;
        words(&table).into_iter().map(cluster).collect::<Result<_, _>>().map(Some).map_err(malformed)
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), InspectError> {
        read_padded(&self.file, buffer, offset).map_err(|source| InspectError::Read { path: self.path.clone(), source })
    }
}

/// Refuses what none of our layers has. Gives where the first-level table is.
fn plain(head: &[u8], virtual_bytes: u64) -> Result<u64, &'static str> {
    const SHORT: &str = "it ends within its header";
    let be32 = |at: usize| {
        let word = head.get(at..at + 4).ok_or(SHORT)?;
        Ok::<u32, &'static str>(u32::from_be_bytes(word.try_into().map_err(|_| SHORT)?))
    };
    let be64 = |at: usize| Ok::<u64, &'static str>(u64::from(be32(at)?) << 32 | u64::from(be32(at + 4)?));
    if virtual_bytes == 0 || virtual_bytes > MAX_VIRTUAL_BYTES {
        return Err("its size is out of range");
    }
    if be32(20)? != CLUSTER_BITS {
        return Err("its clusters are of another size");
    }
    if be32(32)? != 0 {
        return Err("it is encrypted");
    }
    if be32(60)? != 0 {
        return Err("it has internal snapshots");
    }
    if be64(72)? & !INCOMPATIBLE_DIRTY != 0 {
        return Err("it has features that no layer of ours has, or is marked as damaged");
    }
    if u64::from(be32(36)?) < virtual_bytes.div_ceil(L1_ENTRY_BYTES) {
        return Err("its first table is shorter than its disk");
    }
    let offset = be64(40)?;
    if offset == 0 || !offset.is_multiple_of(CLUSTER) {
        return Err("its first table does not lie at a cluster");
    }
    Ok(offset)
}

fn cluster(entry: u64) -> Result<Cluster, &'static str> {
    let offset = entry & OFFSET;
    if entry & COMPRESSED != 0 {
        return Err("a cluster of it is compressed");
    }
    if entry & ZERO != 0 {
        return Ok(Cluster::Zero);
    }
    match offset {
        0 => Ok(Cluster::Absent),
        at if at.is_multiple_of(CLUSTER) => Ok(Cluster::At(at)),
        _ => Err("a cluster of it does not lie at a cluster"),
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("eight bytes"))).collect()
}

/// What lies beyond the end of a file is zeros.
fn read_padded(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        // An offset beyond what a file can have is beyond its end.
        let at = offset.saturating_add(filled as u64).min(i64::MAX.cast_unsigned());
        match file.read_at(&mut buffer[filled..], at) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}
