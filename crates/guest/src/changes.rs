//! What a sandbox has changed of its root image, as a layer of a container image: a tar archive of all that is new or otherwise, in which
//! an empty file `.wh.NAME` says that `NAME` is gone.
//!
//! A sandbox of gVisor keeps what it writes in memory, and every clone of it carries that as memory of its own. So whoever builds a
//! template makes a new root image of the old one and of this. From within nothing tells which files were written but the list that the
//! image brings of itself ([`listing`]), so the whole tree is held against that. A change that sets size and time back is seen all the
//! same: an image tells of each file one time, as that of its content and as that of its attributes, and no program sets the latter.
//!
//! Left out are what is mounted, the agent's own directory, devices, pipes and sockets, and files whose name looks like a word of the
//! archive's language.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::OsString,
    fs::Metadata,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    process::ExitCode,
};

use firkin_files::listing::{self, Kind, Listed, walk};
use fs_err as fs;
use rustix::fs::{lgetxattr, llistxattr};
use tar::{EntryType, Header};

use crate::logging;

/// Where the agent and the image's list are: the next image has its own.
const OWN_DIRECTORY: &str = "usr/lib/firkin";
/// The list of the image's files, below [`OWN_DIRECTORY`].
const LIST: &str = "/usr/lib/firkin/files";
/// A name of the archive's language: what follows is gone.
const WHITEOUT: &str = ".wh.";
/// Attributes that mean the same in another kernel.
const KEPT_ATTRIBUTES: [&[u8]; 2] = [b"user.", b"security.capability"];
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
/// The largest value, and the largest list of names, that Linux gives.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;

/// What the image itself tells of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Times {
    /// A file that nobody has changed has one time, as EROFS gives it.
    One,
    /// The times of attributes say nothing.
    #[cfg(test)]
    Content,
}

/// Writes the layer of this container's root to the standard output.
pub(crate) fn run() -> ExitCode {
    match fs::File::open(LIST).and_then(|list| write_here(BufReader::new(list))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::complain(&format!("cannot tell what has changed of the root image: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn write_here(list: impl BufRead) -> io::Result<()> {
    write_layer(Path::new("/"), listing::read(list)?, Times::One, BufWriter::new(io::stdout().lock()))
}

/// Writes the layer of what is below `root` against `before`. Must not run beside what changes files: those would be what they were at
/// some time between.
fn write_layer(root: &Path, before: Vec<Listed>, times: Times, to: impl Write) -> io::Result<()> {
    let mut before: BTreeMap<PathBuf, Listed> = before.into_iter().map(|file| (file.path.clone(), file)).collect();
    let mut layer = Layer { root, archive: tar::Builder::new(to), directories: HashSet::new(), links: HashMap::new() };
    let mut directories = HashSet::new();
    layer.directory(Path::new(""))?;
    let mut each = |path: PathBuf, metadata: &Metadata| {
        if path.starts_with(OWN_DIRECTORY) || is_a_word(&path) {
            return Ok(());
        }
        let now = Listed::of(root, path, metadata)?;
        if now.kind == Kind::Other && before.get(&now.path).is_none_or(|listed| listed.kind != Kind::Other) {
            // In its place there is nothing that could be taken along: what was there is gone.
            return Ok(());
        }
        if now.kind == Kind::Directory {
            directories.insert(now.path.clone());
        }
        let listed = before.remove(&now.path);
        let touched = now.kind == Kind::File && times == Times::One && (metadata.ctime(), metadata.ctime_nsec()) != now.modified;
        if now.kind != Kind::Other && (touched || listed.is_none_or(|listed| listed.differs(&now))) {
            layer.file(&now, metadata)?;
        }
        Ok(())
    };
    let mounted = walk(root, &mut each)?;
    let within = |path: &Path| path.starts_with(OWN_DIRECTORY) || mounted.iter().any(|place| path.starts_with(place));
    // What was in a directory that is gone, or that is none any more, goes with it.
    let gone = before.into_keys().filter(|path| !within(path) && path.parent().is_some_and(|above| directories.contains(above)));
    for path in gone {
        layer.gone(&path)?;
    }
    layer.archive.into_inner()?.flush()
}

fn is_a_word(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT.as_bytes()))
}

/// The archive so far.
struct Layer<'a, W: Write> {
    root: &'a Path,
    archive: tar::Builder<W>,
    /// Directories that are in it: each stands before what is in it.
    directories: HashSet<PathBuf>,
    /// The first name of files that may have others.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Layer<'_, W> {
    /// Adds a directory, with those above it.
    fn directory(&mut self, path: &Path) -> io::Result<()> {
        if self.directories.contains(path) {
            return Ok(());
        }
        let above: Vec<PathBuf> = path.ancestors().map(Path::to_path_buf).collect();
        for directory in above.into_iter().rev() {
            if self.directories.insert(directory.clone()) {
                let metadata = fs::symlink_metadata(self.root.join(&directory))?;
                let mut header = self.begin(&directory, &metadata, EntryType::Directory)?;
                let name = if directory.as_os_str().is_empty() { Path::new("./") } else { &directory };
                self.archive.append_data(&mut header, name, io::empty())?;
            }
        }
        Ok(())
    }

    fn file(&mut self, file: &Listed, metadata: &Metadata) -> io::Result<()> {
        self.directory(file.path.parent().unwrap_or(Path::new("")))?;
        let path = &file.path;
        match file.kind {
            Kind::Directory => self.directory(path),
            Kind::Link => {
                let mut header = self.begin(path, metadata, EntryType::Symlink)?;
                self.archive.append_link(&mut header, path, &file.target)
            }
            Kind::File => {
                let id = (metadata.dev(), metadata.ino());
                if let Some(first) = self.links.get(&id).filter(|_| metadata.nlink() > 1) {
                    let mut header = header(metadata, EntryType::Link);
                    return self.archive.append_link(&mut header, path, first);
                }
                let content = fs::File::open(self.root.join(path))?;
                let mut header = self.begin(path, metadata, EntryType::Regular)?;
                header.set_size(file.bytes);
                // As long as was said, also of a file that is cut meanwhile.
                self.archive.append_data(&mut header, path, content.chain(io::repeat(0)).take(file.bytes))?;
                self.links.insert(id, path.clone());
                Ok(())
            }
            Kind::Other => Ok(()),
        }
    }

    fn gone(&mut self, path: &Path) -> io::Result<()> {
        let (Some(name), Some(above)) = (path.file_name(), path.parent()) else { return Ok(()) };
        self.directory(above)?;
        let mut word = OsString::from(WHITEOUT);
        word.push(name);
        let mut header = Header::new_gnu();
        header.set_mode(0o600);
        header.set_size(0);
        self.archive.append_data(&mut header, above.join(word), io::empty())
    }

    /// The header of a file whose extended attributes stand before it.
    fn begin(&mut self, path: &Path, metadata: &Metadata, kind: EntryType) -> io::Result<Header> {
        let attributes = attributes(&self.root.join(path))?;
        let attributes = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.archive.append_pax_extensions(attributes)?;
        Ok(header(metadata, kind))
    }
}

fn header(metadata: &Metadata, kind: EntryType) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or_default());
    header.set_size(0);
    header
}

/// The extended attributes that are worth keeping, by the names that an archive has for them.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0; MAX_ATTRIBUTE_BYTES];
    let length = match llistxattr(path, &mut names) {
        Ok(length) => length,
        // A file system without them, or a file that went away a moment ago.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|&byte| byte == 0) {
        if !KEPT_ATTRIBUTES.iter().any(|kept| name.starts_with(kept)) {
            continue;
        }
        let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
        let Ok(text) = std::str::from_utf8(name) else { continue };
        let Ok(length) = lgetxattr(path, text, &mut value) else { continue };
        value.truncate(length);
        found.push((format!("{PAX_ATTRIBUTE}{text}"), value));
    }
    Ok(found)
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
