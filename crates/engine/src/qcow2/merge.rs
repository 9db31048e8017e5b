//! Many layers become one, so that a disk which is cut again and again does not lie over ever more files.
//!
//! Layers are immutable and shared, so none of them is touched: their union is written to a new file, which holds of each cluster
//! what the topmost layer holds that has it. Zeros stay zeros even where nothing is known to lie below: they hide what does.
//!
//! ```text
//!   | header | first table | second-level tables and clusters as they come | refcount blocks | refcount table |
//! ```
//!
//! QEMU's own jobs (commit, stream) were rejected: they write into an existing layer, and need a running machine or a process.

use std::{
    fs::File,
    io,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;

use super::{
    Backing, CLUSTER, InspectError, L1_ENTRY_BYTES, Layout, MAX_NAME_BYTES, header,
    map::{Cluster, L2_ENTRIES, Layer, ZERO},
};
use crate::memory::is_zero;

/// A cluster that nothing else refers to may be written in place.
const COPIED: u64 = 1 << 63;
/// Two bytes for each cluster.
const REFCOUNTS_PER_BLOCK: u64 = CLUSTER / 2;

/// The result of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merged {
    /// Bytes of clusters that it copied.
    pub data_bytes: u64,
}

/// Why layers could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of them cannot be read.
    #[error("cannot merge the layers of a disk")]
    Layer(#[from] InspectError),
    /// They are of different disks.
    #[error("cannot merge `{}`: its disk has {found} bytes, that of the layers over it {expected}", path.display())]
    Size {
        /// The layer.
        path: PathBuf,
        /// The size that its header states.
        found: u64,
        /// The size that the topmost states.
        expected: u64,
    },
    /// They refer to more than they hold.
    #[error("cannot merge the layers of a disk: they refer to a cluster more than once")]
    Shared,
    /// The name of the backing file does not fit into a header.
    #[error("cannot name `{}` as backing file", path.display())]
    Name {
        /// The backing file.
        path: PathBuf,
    },
    /// The merged layer could not be written.
    #[error("cannot write the merged layer `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The caller did not want it any more.
    #[error("the merge of layers was cancelled")]
    Stopped,
}

/// Writes the union of `layers`, lowest first, to `out` (mode 0600, must not exist) as one layer over `backing`, which is what
/// the lowest lies over. Given up as soon as `goes_on` says no. Not synced. On failure `out` may exist.
pub fn merge(layers: &[PathBuf], backing: &Backing, out: &Path, goes_on: &dyn Fn() -> bool) -> Result<Merged, MergeError> {
    let layers = layers.iter().map(|path| Layer::open(path)).collect::<Result<Vec<_>, _>>()?;
    let expected = layers.last().expect("a merge has layers").virtual_bytes;
    if let Some(other) = layers.iter().find(|layer| layer.virtual_bytes != expected) {
        return Err(MergeError::Size { path: other.path().to_path_buf(), found: other.virtual_bytes, expected });
    }
    if backing.path.as_os_str().len() > MAX_NAME_BYTES {
        return Err(MergeError::Name { path: backing.path.clone() });
    }
    let mut writer = Writer::create(out, expected)?;
    // Each cluster of a layer is used once, so the result is never larger than all of them.
    writer.most_data = layers.iter().map(|layer| layer.bytes / CLUSTER + 1).sum();
    for index in 0..writer.l1.len() {
        let tables = layers.iter().rev().map(|layer| layer.table(index).map(|table| Some((layer, table?)))).collect::<Vec<_>>();
        let tables: Vec<_> = tables.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        if !tables.is_empty() {
            writer.table(index, &tables, goes_on)?;
        }
    }
    writer.finish(backing)
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    virtual_bytes: u64,
    l1: Vec<u64>,
    /// Clusters of the file so far.
    clusters: u64,
    data: u64,
    most_data: u64,
}

impl Writer {
    fn create(path: &Path, virtual_bytes: u64) -> Result<Self, MergeError> {
        let file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|source| MergeError::Write { path: path.to_path_buf(), source })?.into_parts().0;
        let entries = usize::try_from(virtual_bytes.div_ceil(L1_ENTRY_BYTES)).expect("bounded when the layer was opened");
        let clusters = 1 + (entries as u64 * 8).div_ceil(CLUSTER);
        Ok(Self { path: path.to_path_buf(), file, virtual_bytes, l1: vec![0; entries], clusters, data: 0, most_data: 0 })
    }

    fn write(&self, bytes: &[u8], cluster: u64) -> Result<(), MergeError> {
        let written = self.file.write_all_at(bytes, cluster * CLUSTER);
        written.map_err(|source| MergeError::Write { path: self.path.clone(), source })
    }

    fn next(&mut self) -> u64 {
        self.clusters += 1;
        self.clusters - 1
    }

    /// One second-level table and its clusters. `tables` are those of the layers that have one, topmost first.
    fn table(&mut self, index: usize, tables: &[(&Layer, Vec<Cluster>)], goes_on: &dyn Fn() -> bool) -> Result<(), MergeError> {
        let mut entries = vec![0u64; L2_ENTRIES];
        let mut buffer = vec![0; usize::try_from(CLUSTER).expect("64 KiB")];
        for (at, entry) in entries.iter_mut().enumerate() {
            let held = tables.iter().map(|(layer, table)| (layer, table[at])).find(|(_, cluster)| *cluster != Cluster::Absent);
            let Some((layer, cluster)) = held else { continue };
            let Cluster::At(offset) = cluster else {
                *entry = ZERO;
                continue;
            };
            if !goes_on() {
                return Err(MergeError::Stopped);
            }
            layer.read(&mut buffer, offset)?;
            if is_zero(&buffer) {
                *entry = ZERO;
                continue;
            }
            self.data += 1;
            if self.data > self.most_data {
                return Err(MergeError::Shared);
            }
            let target = self.next();
            self.write(&buffer, target)?;
            *entry = (target * CLUSTER) | COPIED;
        }
        if entries.iter().any(|&entry| entry != 0) {
            let target = self.next();
            self.write(&bytes_of(&entries), target)?;
            self.l1[index] = (target * CLUSTER) | COPIED;
        }
        Ok(())
    }

    /// Refcounts, the first table, and at last the header: what is not finished is no layer.
    fn finish(self, backing: &Backing) -> Result<Merged, MergeError> {
        let (blocks, table) = refcount_clusters(self.clusters);
        let total = self.clusters + blocks + table;
        let counts: Vec<u8> = (0..total).flat_map(|_| 1u16.to_be_bytes()).collect();
        self.write(&counts, self.clusters)?;
        let offsets: Vec<u64> = (0..blocks).map(|block| (self.clusters + block) * CLUSTER).collect();
        self.write(&bytes_of(&offsets), self.clusters + blocks)?;
        let sized = self.file.set_len(total * CLUSTER);
        sized.map_err(|source| MergeError::Write { path: self.path.clone(), source })?;
        self.write(&bytes_of(&self.l1), 1)?;
        let layout = Layout {
            l1_offset: CLUSTER,
            refcount_offset: (self.clusters + blocks) * CLUSTER,
            refcount_clusters: u32::try_from(table).expect("bounded by MAX_VIRTUAL_BYTES"),
        };
        self.write(&header(backing.path.as_os_str().as_bytes(), backing.format, self.virtual_bytes, layout), 0)?;
        Ok(Merged { data_bytes: self.data * CLUSTER })
    }
}

/// Refcount blocks and clusters of their table for a file of so many clusters before them.
fn refcount_clusters(clusters: u64) -> (u64, u64) {
    let (mut blocks, mut table) = (1, 1);
    while blocks * REFCOUNTS_PER_BLOCK < clusters + blocks + table {
        blocks += 1;
        table = (blocks * 8).div_ceil(CLUSTER);
    }
    (blocks, table)
}

fn bytes_of(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests;
