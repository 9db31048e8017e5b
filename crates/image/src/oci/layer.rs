//! One layer: a compressed tar archive from a stranger, unpacked to a plain one with a bound, and read entry by entry.
//!
//! Compression is told by the first bytes and not by the media type, which registries get wrong. What comes out is hashed on
//! the way and must be what the image's configuration promised (its *diff id*).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::tree::{self, Attributes, Content, Entry, Tree, TreeError};

/// Extended attributes that mean something to another kernel than the one that wrote them.
const KEPT_ATTRIBUTES: [&str; 2] = ["user.", "security.capability"];
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// The largest value of an attribute that Linux takes.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;
/// Attributes of one file: ext4 keeps them in one block.
const MAX_ATTRIBUTES: usize = 32;
const COPY_BYTES: usize = 128 << 10;
/// From the content of one entry to that of the next. Whoever reads an archive takes long names and attributes into memory whole,
/// whatever size they claim; this is room for a few of the largest attributes.
const MAX_HEADER_BYTES: u64 = 512 << 10;

/// Why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is larger than the image may be.
    #[error("it unpacks to more than the {limit} bytes that are left for the image")]
    TooLarge {
        /// Bytes that were left.
        limit: u64,
    },
    /// It unpacks to something else than the image's configuration says.
    #[error("it unpacks to sha256:{found} instead of {expected}")]
    DiffId {
        /// As the configuration has it.
        expected: String,
        /// The digest that was found, in hexadecimal.
        found: String,
    },
    /// It cannot be unpacked or read.
    #[error("it cannot be unpacked")]
    Unpack(#[source] io::Error),
    /// An entry is of a kind that no image needs.
    #[error("its entry `{path}` is of the unsupported kind {kind:?}")]
    Kind {
        /// The entry.
        path: String,
        /// The tar archive's word for it.
        kind: tar::EntryType,
    },
    /// An entry cannot be placed.
    #[error("it has an entry that cannot be used")]
    Tree(#[from] TreeError),
}

/// Unpacks `from` into `to`, at most `limit` bytes. Returns how many.
pub(crate) fn unpack(from: File, to: &mut File, limit: u64, diff_id: &str) -> Result<u64, LayerError> {
    let mut reader = decoder(from).map_err(LayerError::Unpack)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut total = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(LayerError::Unpack(error)),
        };
        total += read as u64;
        if total > limit {
            return Err(LayerError::TooLarge { limit });
        }
        hasher.update(&buffer[..read]);
        to.write_all(&buffer[..read]).map_err(LayerError::Unpack)?;
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if diff_id.strip_prefix("sha256:") != Some(&found) {
        return Err(LayerError::DiffId { expected: diff_id.chars().take(100).collect(), found });
    }
    Ok(total)
}

fn decoder(mut file: File) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic)?;
    file.seek(SeekFrom::Start(0))?;
    let file = BufReader::new(file);
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(ruzstd::decoding::StreamingDecoder::new(file).map_err(io::Error::other)?),
        _ => Box::new(file),
    })
}

/// Adds every entry of an unpacked layer to the tree. Returns how many device nodes and pipes were left out: a guest has its own.
pub(crate) fn read(archive: &File, layer: usize, tree: &mut Tree) -> Result<u64, LayerError> {
    let mut left_out = 0;
    let left = Cell::new(MAX_HEADER_BYTES);
    let mut archive = tar::Archive::new(Headers { archive, left: &left });
    for entry in archive.entries_with_seek().map_err(LayerError::Unpack)? {
        let mut entry = entry.map_err(LayerError::Unpack)?;
        left.set(MAX_HEADER_BYTES);
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let kind = entry.header().entry_type();
        let link = || {
            let name = entry.link_name_bytes().unwrap_or_default().into_owned();
            PathBuf::from(OsString::from_vec(name))
        };
        use tar::EntryType as T;
        let entry = match kind {
            T::Regular | T::Continuous => {
                let content = Content { layer, offset: entry.raw_file_position(), bytes: entry.size() };
                Entry::File(attributes(&mut entry).map_err(LayerError::Unpack)?, content)
            }
            T::Directory => Entry::Directory(attributes(&mut entry).map_err(LayerError::Unpack)?),
            T::Symlink => {
                let target = link();
                Entry::Symlink(attributes(&mut entry).map_err(LayerError::Unpack)?, target)
            }
            T::Link => Entry::Hardlink(link()),
            T::Char | T::Block | T::Fifo => {
                left_out += 1;
                continue;
            }
            T::XGlobalHeader => continue,
            kind => return Err(LayerError::Kind { path: path.to_string_lossy().chars().take(200).collect(), kind }),
        };
        tree.add(layer, &path, entry)?;
    }
    Ok(left_out)
}

/// What an unpacked layer says is gone, without a word about whole directories: those are for who has all layers below.
pub(crate) fn gone(archive: &File) -> Result<Vec<PathBuf>, LayerError> {
    let left = Cell::new(MAX_HEADER_BYTES);
    let mut archive = tar::Archive::new(Headers { archive, left: &left });
    let mut found = Vec::new();
    let mut bytes = 0;
    for entry in archive.entries_with_seek().map_err(LayerError::Unpack)? {
        let entry = entry.map_err(LayerError::Unpack)?;
        left.set(MAX_HEADER_BYTES);
        let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        if let Some(hidden) = tree::hidden(&path)? {
            bytes += hidden.as_os_str().len() + tree::ENTRY_OVERHEAD_BYTES;
            if bytes > tree::MAX_METADATA_BYTES {
                return Err(TreeError::Metadata.into());
            }
            found.push(hidden);
        }
    }
    Ok(found)
}

/// More stands before an entry than an entry needs to be told.
#[derive(Debug, thiserror::Error)]
#[error("there are more than {} KiB before an entry", MAX_HEADER_BYTES >> 10)]
struct LongHeader;

/// The headers of an archive. Contents are skipped, and not read here.
struct Headers<'a> {
    archive: &'a File,
    /// Bytes that may be read until the next entry.
    left: &'a Cell<u64>,
}

impl Read for Headers<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.archive.read(buffer)?;
        let left = self.left.get().checked_sub(read as u64).ok_or_else(|| io::Error::other(LongHeader))?;
        self.left.set(left);
        Ok(read)
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.archive.seek(to)
    }
}

fn attributes<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Attributes> {
    let mut extended = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(PAX_ATTRIBUTE)) else { continue };
            let kept = KEPT_ATTRIBUTES.iter().any(|kept| name.starts_with(kept));
            if kept && extended.len() < MAX_ATTRIBUTES && extension.value_bytes().len() <= MAX_ATTRIBUTE_BYTES {
                extended.insert(OsString::from(name), extension.value_bytes().to_vec());
            }
        }
    }
    let header = entry.header();
    let raw = header.as_old();
    let id = |raw: &[u8], id: io::Result<u64>| u32::try_from(number(raw, id)?).map_err(io::Error::other);
    Ok(Attributes {
        mode: header.mode()? & 0o7777,
        uid: id(&raw.uid, header.uid())?,
        gid: id(&raw.gid, header.gid())?,
        modified: i64::try_from(number(&raw.mtime, header.mtime())?).unwrap_or_default(),
        extended,
    })
}

/// A number of a header. Some archivers leave what is zero blank.
fn number(raw: &[u8], parsed: io::Result<u64>) -> io::Result<u64> {
    if raw.iter().all(|byte| matches!(byte, 0 | b' ')) { Ok(parsed.unwrap_or_default()) } else { parsed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tree::Kind;

    fn plain(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o4755);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file
    }

    fn diff_id(bytes: &[u8]) -> String {
        format!("sha256:{}", Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>())
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_unpacks_to_the_promised_bytes() {
        let tar = plain(&[("a", b"hello")]);
        let zstd = ruzstd::encoding::compress_to_vec(&tar[..], ruzstd::encoding::CompressionLevel::Fastest);
        for packed in [tar.clone(), gzip(&tar), zstd] {
            let mut out = tempfile::tempfile().unwrap();
            assert_eq!(unpack(file(&packed), &mut out, 1 << 20, &diff_id(&tar)).unwrap(), tar.len() as u64);
        }
    }

    #[test]
    fn a_bomb_and_a_changed_layer_are_refused() {
        let zeroes = vec![0; 1 << 20];
        let mut out = tempfile::tempfile().unwrap();
        let error = unpack(file(&gzip(&zeroes)), &mut out, 1000, &diff_id(&zeroes)).unwrap_err();
        assert!(matches!(error, LayerError::TooLarge { limit: 1000 }), "{error}");
        assert!(out.metadata().unwrap().len() <= 1000, "nothing is written beyond the limit");
        let error = unpack(file(&gzip(b"other")), &mut out, 1 << 20, &diff_id(b"this")).unwrap_err();
        assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
        let error = unpack(file(&gzip(b"cut short")[..12]), &mut out, 1 << 20, &diff_id(b"")).unwrap_err();
        assert!(matches!(error, LayerError::Unpack(_)), "{error}");
    }

    #[test]
    fn entries_keep_mode_and_place() {
        let tar = plain(&[("d/a", b"hello")]);
        let mut tree = Tree::default();
        assert_eq!(read(&file(&tar), 0, &mut tree).unwrap(), 0);
        let Kind::Directory(names) = &tree.node(tree.root()).kind else { panic!() };
        let Kind::Directory(names) = &tree.node(names[&OsString::from("d")].node).kind else { panic!() };
        let node = tree.node(names[&OsString::from("a")].node);
        assert_eq!(node.attributes.mode, 0o4755);
        let Kind::File(content) = node.kind else { panic!() };
        let at = usize::try_from(content.offset).unwrap();
        assert_eq!(&tar[at..at + 5], b"hello");
    }

    #[test]
    fn a_header_takes_no_more_memory_than_headers_need() {
        use tar::EntryType as T;
        let said = |kind: T, bytes: usize| {
            let mut builder = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(bytes as u64);
            header.set_path("said").unwrap();
            header.set_cksum();
            builder.append(&header, &*vec![b'n'; bytes]).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            builder.append_data(&mut header, "a", io::empty()).unwrap();
            read(&file(&builder.into_inner().unwrap()), 0, &mut Tree::default())
        };
        assert_eq!(said(T::GNULongName, 200).unwrap(), 0);
        for kind in [T::GNULongName, T::GNULongLink, T::XHeader] {
            let error = said(kind, 2 << 20).unwrap_err();
            assert!(matches!(&error, LayerError::Unpack(source) if source.to_string().contains("KiB")), "{kind:?}: {error:?}");
        }
    }

    /// One byte that is repeated: some hundred kilobytes when packed.
    #[test]
    fn attributes_that_pack_well_do_not_fill_the_memory() {
        let value = vec![b'x'; MAX_ATTRIBUTE_BYTES - 1];
        let mut builder = tar::Builder::new(Vec::new());
        for n in 0..300 {
            let names = ["user.a", "user.b", "user.c", "user.d"].map(|name| format!("{PAX_ATTRIBUTE}{name}"));
            builder.append_pax_extensions(names.iter().map(|name| (name.as_str(), &value[..]))).unwrap();
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("f{n}"), io::empty()).unwrap();
        }
        let error = read(&file(&builder.into_inner().unwrap()), 0, &mut Tree::default()).unwrap_err();
        assert!(matches!(error, LayerError::Tree(TreeError::Metadata)), "{error:?}");
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let mut tree = Tree::default();
        assert!(matches!(read(&file(&[7; 2048]), 0, &mut tree), Err(LayerError::Unpack(_))));
    }
}
