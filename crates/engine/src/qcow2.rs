//! Overlays: the few kilobytes of a fresh qcow2 file, written in-process.
//!
//! Every machine writes to its own overlay over a disk that it shares with others. Starting `qemu-img` for it would cost more
//! than the rest of a restore's disk work, and a fresh overlay is only a header, an empty mapping table and a refcount block.
//! [`inspect`] reads back what an overlay says of itself; the file was in the hands of an engine, so nothing in it is
//! believed unchecked. [`merge`] makes one layer of several, and [`rebase`] puts a layer over another. Format: the qcow2 section of QEMU's interoperability documents, version 3.

use std::{
    fs::File,
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

mod format;
mod map;
mod merge;

pub use format::Qcow2;
pub(crate) use format::chain;
pub use merge::{MergeError, Merged, merge};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes that one entry of the first-level table maps: a whole second-level table of 8-byte entries.
const L1_ENTRY_BYTES: u64 = CLUSTER * (CLUSTER / 8);
const HEADER_BYTES: u32 = 104;
const BACKING_FORMAT_EXTENSION: u32 = 0xE279_2ACA;
/// Longest backing file name that the format allows.
const MAX_NAME_BYTES: usize = 1023;
/// 64 TiB: the first-level table of a larger disk would not fit the one refcount block that a fresh overlay has.
const MAX_VIRTUAL_BYTES: u64 = 64 << 40;

/// How a disk file is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes, nothing else.
    Raw,
    /// Another overlay.
    Qcow2,
}

impl Format {
    /// The name that QEMU gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// The file that an overlay lies over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// Path of the file. Relative paths count from the overlay's directory.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
}

/// The header of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Size of the disk as the guest sees it.
    pub virtual_bytes: u64,
    /// The file that it lies over, if any.
    pub backing: Option<Backing>,
}

/// Why an overlay could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The name of the backing file does not fit into a header.
    #[error("cannot name `{}` as backing file: {bytes} bytes, the format allows {MAX_NAME_BYTES}", path.display())]
    NameTooLong {
        /// The backing file.
        path: PathBuf,
        /// Length of its name.
        bytes: usize,
    },
    /// The size is not a multiple of a sector, zero, or too large.
    #[error("cannot create a disk of {bytes} bytes: it must be a positive multiple of 512, at most {MAX_VIRTUAL_BYTES}")]
    Size {
        /// The size.
        bytes: u64,
    },
    /// The file could not be written.
    #[error("cannot write overlay `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Creates `path` (mode 0600) as an empty overlay of `virtual_bytes` over `backing`. An existing file is not touched.
pub fn create(path: &Path, backing: &Backing, virtual_bytes: u64) -> Result<(), CreateError> {
    let name = backing.path.as_os_str().as_bytes();
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(CreateError::NameTooLong { path: backing.path.clone(), bytes: name.len() });
    }
    if virtual_bytes == 0 || !virtual_bytes.is_multiple_of(512) || virtual_bytes > MAX_VIRTUAL_BYTES {
        return Err(CreateError::Size { bytes: virtual_bytes });
    }
    let header = header(name, backing.format, virtual_bytes, FRESH);
    write(path, &header, virtual_bytes).map_err(|source| CreateError::Write { path: path.to_path_buf(), source })
}

/// Where the tables of a file are.
#[derive(Debug, Clone, Copy)]
struct Layout {
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u32,
}

/// As [`write`] lays a fresh overlay out.
const FRESH: Layout = Layout { l1_offset: 3 * CLUSTER, refcount_offset: CLUSTER, refcount_clusters: 1 };

/// First cluster of the file: header, the backing format extension, the end extension, the backing name.
fn header(name: &[u8], format: Format, virtual_bytes: u64, layout: Layout) -> Vec<u8> {
    let format = format.name().as_bytes();
    let padded = format.len().next_multiple_of(8);
    let name_offset = u64::from(HEADER_BYTES) + 8 + padded as u64 + 8;
    let be32 = |n: usize| u32::try_from(n).expect("bounded by MAX_NAME_BYTES or MAX_VIRTUAL_BYTES").to_be_bytes();
    let l1_entries = virtual_bytes.div_ceil(L1_ENTRY_BYTES);

    let mut bytes = Vec::with_capacity(512);
    bytes.extend(MAGIC);
    bytes.extend(3u32.to_be_bytes());
    bytes.extend(name_offset.to_be_bytes());
    bytes.extend(be32(name.len()));
    bytes.extend(CLUSTER_BITS.to_be_bytes());
    bytes.extend(virtual_bytes.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // no encryption
    bytes.extend(u32::try_from(l1_entries).expect("bounded by MAX_VIRTUAL_BYTES").to_be_bytes());
    bytes.extend(layout.l1_offset.to_be_bytes()); // first-level table
    bytes.extend(layout.refcount_offset.to_be_bytes());
    bytes.extend(layout.refcount_clusters.to_be_bytes());
    bytes.extend(0u32.to_be_bytes()); // no internal snapshots
    bytes.extend(0u64.to_be_bytes());
    bytes.extend([0; 24]); // no incompatible, compatible or autoclear features
    bytes.extend(4u32.to_be_bytes()); // refcounts of 2^4 bits
    bytes.extend(HEADER_BYTES.to_be_bytes());
    bytes.extend(BACKING_FORMAT_EXTENSION.to_be_bytes());
    bytes.extend(be32(format.len()));
    bytes.extend(format);
    bytes.resize(bytes.len() + padded - format.len(), 0);
    bytes.extend([0; 8]); // end of extensions
    bytes.extend(name);
    bytes
}

/// Clusters: header, refcount table, refcount block, first-level table. All but the first two words of them are zero.
fn write(path: &Path, header: &[u8], virtual_bytes: u64) -> io::Result<()> {
    let l1_clusters = (virtual_bytes.div_ceil(L1_ENTRY_BYTES) * 8).div_ceil(CLUSTER);
    let clusters = 3 + l1_clusters;
    let refcounts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    let file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let file = file.into_parts().0;
    file.set_len(clusters * CLUSTER)?;
    file.write_all_at(header, 0)?;
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    file.write_all_at(&refcounts, 2 * CLUSTER)
}

/// Why an overlay could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The file could not be read.
    #[error("cannot read overlay `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a qcow2 image, or not one that this product makes.
    #[error("cannot use `{}` as an overlay: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The fault.
        problem: &'static str,
    },
}

/// Reads the header of `path`. At most one cluster is read.
pub fn inspect(path: &Path) -> Result<Overlay, InspectError> {
    let read = |source| InspectError::Read { path: path.to_path_buf(), source };
    let file = fs_err::OpenOptions::new().read(true).custom_flags(libc_nofollow()).open(path).map_err(read)?;
    let bytes = first_cluster(file.file()).map_err(read)?;
    parse(&bytes).map_err(|problem| InspectError::Malformed { path: path.to_path_buf(), problem })
}

/// Has the layer `path` lie over `backing`, of the same format as what it lies over now. Nothing else of it changes, so what
/// `backing` holds must be what was under it. One write, none where it lies over that already.
///
/// The caller sees to it that nobody writes to the file meanwhile, except a machine that never writes its header.
pub fn rebase(path: &Path, backing: &Backing) -> Result<(), InspectError> {
    let malformed = |problem| InspectError::Malformed { path: path.to_path_buf(), problem };
    let read = |source| InspectError::Read { path: path.to_path_buf(), source };
    let file = fs_err::OpenOptions::new().read(true).write(true).custom_flags(libc_nofollow()).open(path).map_err(read)?;
    // Whoever else could have written to its directory could have put a second name of another file there.
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() || metadata.nlink() != 1 {
        return Err(malformed("it is not a plain file of one name"));
    }
    let mut bytes = first_cluster(file.file()).map_err(read)?;
    let now = parse(&bytes).map_err(malformed)?.backing.ok_or(malformed("it lies over nothing"))?;
    if now == *backing {
        return Ok(());
    }
    if now.format != backing.format {
        return Err(malformed("it lies over a file of another format"));
    }
    let changed = put_name(&mut bytes, &now, &backing.path).map_err(malformed)?;
    file.file().write_all_at(&bytes[..changed], 0).map_err(read)
}

/// Puts the name of another backing file in place of that of `now` into the first cluster of a file. The bytes up to which it has changed.
fn put_name(bytes: &mut [u8], now: &Backing, path: &Path) -> Result<usize, &'static str> {
    let name = path.as_os_str().as_bytes();
    let word: [u8; 8] = bytes[8..16].try_into().map_err(|_| "it ends within its header")?;
    let start = usize::try_from(u64::from_be_bytes(word)).map_err(|_| "its backing file's name lies elsewhere")?;
    let (old, new) = (now.path.as_os_str().len(), name.len());
    // The name is the last thing in the header's cluster, so that a longer one overwrites nothing.
    if new > MAX_NAME_BYTES
        || start + new > bytes.len()
        || bytes[start + old..(start + new).max(start + old)].iter().any(|&b| b != 0)
    {
        return Err("its header has no room for the name of its backing file");
    }
    bytes[16..20].copy_from_slice(&u32::try_from(new).expect("at most MAX_NAME_BYTES").to_be_bytes());
    bytes[start..start + old].fill(0);
    bytes[start..start + new].copy_from_slice(name);
    Ok(start + old.max(new))
}

/// The name that stands for any backing file in what [`carried`] gives.
const ANY_NAME: &str = "-";

/// The first cluster of the layer `path` as it is on every host: a name that names nothing stands for that of its backing file.
pub(crate) fn carried(path: &Path) -> Result<Vec<u8>, InspectError> {
    let malformed = |problem| InspectError::Malformed { path: path.to_path_buf(), problem };
    let read = |source| InspectError::Read { path: path.to_path_buf(), source };
    let file = fs_err::OpenOptions::new().read(true).custom_flags(libc_nofollow()).open(path).map_err(read)?;
    let mut bytes = first_cluster(file.file()).map_err(read)?;
    let now = parse(&bytes).map_err(malformed)?.backing.ok_or(malformed("it lies over nothing"))?;
    put_name(&mut bytes, &now, Path::new(ANY_NAME)).map_err(malformed)?;
    Ok(bytes)
}

/// Refuses the layer `path`, which came from outside, where it needs what this product never writes: a file of another name for its
/// data is such a thing.
pub(crate) fn vet(path: &Path) -> Result<(), InspectError> {
    map::Layer::open(path).map(drop)
}

/// A layer is a file that we made, never a link to one.
fn libc_nofollow() -> i32 {
    (nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK).bits()
}

fn first_cluster(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 1 << CLUSTER_BITS];
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], length as u64)? {
            0 => break,
            n => length += n,
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Overlay, &'static str> {
    const SHORT: &str = "it ends within its header";
    let be32 = |at: usize| {
        let word = bytes.get(at..at + 4).ok_or(SHORT)?;
        Ok::<u32, &'static str>(u32::from_be_bytes(word.try_into().map_err(|_| SHORT)?))
    };
    let be64 = |at: usize| Ok::<u64, &'static str>(u64::from(be32(at)?) << 32 | u64::from(be32(at + 4)?));
    if bytes.get(..4) != Some(&MAGIC[..]) {
        return Err("it does not begin with the qcow2 magic");
    }
    if be32(4)? != 3 {
        return Err("it is not of qcow2 version 3");
    }
    let virtual_bytes = be64(24)?;
    let (name_offset, name_bytes) = (be64(8)?, be32(16)? as usize);
    if name_offset == 0 {
        return Ok(Overlay { virtual_bytes, backing: None });
    }
    if name_bytes == 0 || name_bytes > MAX_NAME_BYTES {
        return Err("the length of its backing file's name is out of range");
    }
    let name_offset = usize::try_from(name_offset).map_err(|_| "its backing file's name lies outside the header")?;
    let end = name_offset.checked_add(name_bytes).ok_or("its backing file's name lies outside the header")?;
    let name = bytes.get(name_offset..end).ok_or("its backing file's name lies outside the header")?;
    let mut at = be32(100)? as usize;
    loop {
        let (kind, length) = (be32(at)?, be32(at + 4)? as usize);
        match kind {
            0 => return Err("it does not name its backing file's format"),
            BACKING_FORMAT_EXTENSION => {
                let format = match bytes.get(at + 8..at + 8 + length).ok_or(SHORT)? {
                    b"raw" => Format::Raw,
                    b"qcow2" => Format::Qcow2,
                    _ => return Err("its backing file's format is neither raw nor qcow2"),
                };
                let path = PathBuf::from(std::ffi::OsStr::from_bytes(name));
                return Ok(Overlay { virtual_bytes, backing: Some(Backing { path, format }) });
            }
            _ => at = at.checked_add(8 + length.next_multiple_of(8)).ok_or(SHORT)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_overlay_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlay");
        for (n, format) in [Format::Raw, Format::Qcow2].into_iter().enumerate() {
            let path = path.with_extension(n.to_string());
            let backing = Backing { path: "/srv/base image,1.ext4".into(), format };
            create(&path, &backing, 10 << 30).unwrap();
            assert_eq!(inspect(&path).unwrap(), Overlay { virtual_bytes: 10 << 30, backing: Some(backing) });
        }
    }

    #[test]
    fn a_layer_is_the_same_on_every_host_but_for_the_name_below_it() {
        use crate::disk::{Below, DiskFormat};
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let below = |name: &str| Backing { path: name.into(), format: Format::Qcow2 };
        create(&path("a"), &below("/var/lib/firkin/layers/x.qcow2"), 1 << 30).unwrap();
        create(&path("b"), &below("/elsewhere/x.qcow2"), 1 << 30).unwrap();
        let [a, b] = ["a", "b"].map(|name| Qcow2.carried(&path(name)).unwrap());
        assert_eq!((a.rest, &a), (CLUSTER, &b));
        let whole = fs_err::read(path("a")).unwrap();
        fs_err::write(path("c"), [&a.head[..], &whole[a.head.len()..]].concat()).unwrap();
        Qcow2.settle(&path("c"), Below::Layer(Path::new("/elsewhere/x.qcow2"))).unwrap();
        assert_eq!(fs_err::read(path("c")).unwrap(), fs_err::read(path("b")).unwrap());
        assert!(Qcow2.settle(&path("c"), Below::Image(Path::new("/image"))).is_err(), "it lies over a layer");

        // A file beside it for its data.
        let mut hostile = whole;
        hostile[79] = 4;
        fs_err::write(path("d"), hostile).unwrap();
        Qcow2.settle(&path("d"), Below::Layer(Path::new("/x"))).unwrap_err();
    }

    #[test]
    fn qemu_finds_nothing_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs_err::File::create(&base).unwrap().set_len(1 << 30).unwrap();
        for virtual_bytes in [1 << 30, 10 << 30, 8 << 40] {
            let path = dir.path().join(format!("overlay-{virtual_bytes}"));
            create(&path, &Backing { path: base.clone(), format: Format::Raw }, virtual_bytes).unwrap();
            let Ok(check) = Command::new("qemu-img").arg("check").arg(&path).output() else {
                return; // the reader below is checked by the round trip; QEMU's view is covered where QEMU is installed
            };
            assert!(check.status.success(), "{check:?}");
            let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&path).output().unwrap();
            let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
            assert_eq!(info["virtual-size"], virtual_bytes);
            assert_eq!(info["backing-filename"], base.to_str().unwrap());
            assert_eq!(info["backing-filename-format"], "raw");
        }
    }

    #[test]
    fn what_cannot_be_an_overlay_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("overlay");
        let backing = Backing { path: "/base".into(), format: Format::Raw };
        assert!(matches!(create(&path, &backing, 511), Err(CreateError::Size { .. })));
        assert!(matches!(create(&path, &backing, u64::MAX), Err(CreateError::Size { .. })));
        let long = Backing { path: "x".repeat(1024).into(), format: Format::Raw };
        assert!(matches!(create(&path, &long, 512), Err(CreateError::NameTooLong { bytes: 1024, .. })));
        create(&path, &backing, 512).unwrap();
        assert!(matches!(create(&path, &backing, 512), Err(CreateError::Write { .. })), "an existing file is kept");
    }

    proptest! {
        #[test]
        fn a_hostile_header_is_refused_or_bounded(noise in proptest::collection::vec(any::<u8>(), 0..160), at in 0usize..160) {
            let mut bytes = header(b"/base", Format::Qcow2, 1 << 30, FRESH);
            bytes.truncate(at.max(4));
            bytes.extend(noise);
            if let Ok(Overlay { backing: Some(backing), .. }) = parse(&bytes) {
                prop_assert!(backing.path.as_os_str().len() <= MAX_NAME_BYTES);
            }
        }
    }
}
