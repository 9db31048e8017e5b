//! A list of all files of a tree, which a later look at the tree is held against.
//!
//! A root image carries the list of its own files, so that whoever is in a sandbox later can tell what is no longer as it was: what the
//! sandbox has written over its image is not to be seen from within, and what it has removed is nowhere. Contents are not in it. It is
//! text, a line a file, so that one can look at it; bytes that are no visible ASCII are written as `%XX`.

use std::{
    ffi::OsString,
    fs::Metadata,
    io::{self, BufRead, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use fs_err as fs;

/// The first line of every list. Another one is not read.
const HEAD: &str = "firkin-files 1";
/// A path and a link's target, 4,096 bytes each and three characters a byte, and numbers.
const MAX_LINE_BYTES: u64 = 32 << 10;
/// More files than any image has that was ever seen, and no more than memory has room for.
const MAX_FILES: usize = 4 << 20;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, pipe or socket.
    Other,
}

/// A file, as far as a look at it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Below the root; empty for the root itself.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of a regular file.
    pub bytes: u64,
    /// When the content of a regular file was changed last, in seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Of a link.
    pub target: PathBuf,
}

impl Listed {
    /// The file at `path` below `root`, with `metadata` of itself and not of what it links to.
    pub fn of(root: &Path, path: PathBuf, metadata: &Metadata) -> io::Result<Self> {
        let kind = match metadata.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Link,
            _ => Kind::Other,
        };
        let target = if kind == Kind::Link { fs::read_link(root.join(&path))? } else { PathBuf::new() };
        Ok(Self {
            path,
            kind,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            bytes: if kind == Kind::File { metadata.len() } else { 0 },
            modified: if kind == Kind::File { (metadata.mtime(), metadata.mtime_nsec()) } else { (0, 0) },
            target,
        })
    }

    /// Whether the file is another one by now. A directory is told by its attributes alone, not by what is in it.
    pub fn differs(&self, now: &Self) -> bool {
        let attributes = |file: &Self| (file.kind, file.mode, file.uid, file.gid);
        attributes(self) != attributes(now) || (self.bytes, self.modified, &self.target) != (now.bytes, now.modified, &now.target)
    }
}

/// Calls `each` for every file of the tree's own file system, a directory before what is in it, names in their order. Returns the
/// directories that something else is mounted at, which are left out with what is in them. No link is followed. What goes away
/// meanwhile is left out.
pub fn walk(root: &Path, each: &mut dyn FnMut(PathBuf, &Metadata) -> io::Result<()>) -> io::Result<Vec<PathBuf>> {
    let own = fs::symlink_metadata(root)?.dev();
    let mut mounted = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let full = root.join(&path);
        let Some(metadata) = present(fs::symlink_metadata(&full))? else { continue };
        if metadata.is_dir() && metadata.dev() != own {
            mounted.push(path);
            continue;
        }
        if metadata.is_dir() {
            let Some(entries) = present(fs::read_dir(&full))? else { continue };
            let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<OsString>>>()?;
            names.sort_unstable();
            pending.extend(names.into_iter().rev().map(|name| path.join(name)));
        }
        each(path, &metadata)?;
    }
    Ok(mounted)
}

/// None for what is not there any more.
fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        found => found.map(Some),
    }
}

/// Begins a list.
pub fn begin(to: &mut impl Write) -> io::Result<()> {
    writeln!(to, "{HEAD}")
}

/// Adds a file to a list.
pub fn add(to: &mut impl Write, file: &Listed) -> io::Result<()> {
    let kind = match file.kind {
        Kind::File => 'f',
        Kind::Directory => 'd',
        Kind::Link => 'l',
        Kind::Other => 'o',
    };
    let (path, target) = (escaped(&file.path), escaped(&file.target));
    let Listed { mode, uid, gid, bytes, modified: (seconds, nanoseconds), .. } = file;
    writeln!(to, "{kind} {mode:o} {uid} {gid} {bytes} {seconds} {nanoseconds} {path} {target}")
}

/// Reads a list, in its order.
pub fn read(mut from: impl BufRead) -> io::Result<Vec<Listed>> {
    let bad = |line: &str| io::Error::new(io::ErrorKind::InvalidData, format!("it is no list of files: `{}`", line.trim_end()));
    let mut line = String::new();
    let mut next = |line: &mut String| {
        line.clear();
        from.by_ref().take(MAX_LINE_BYTES).read_line(line)
    };
    next(&mut line)?;
    if line.trim_end() != HEAD {
        return Err(bad(&line));
    }
    let mut files = Vec::new();
    while next(&mut line)? > 0 {
        if files.len() == MAX_FILES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it lists more than {MAX_FILES} files")));
        }
        files.push(parsed(&line).ok_or_else(|| bad(&line))?);
    }
    Ok(files)
}

fn parsed(line: &str) -> Option<Listed> {
    let words: Vec<&str> = line.strip_suffix('\n')?.split(' ').collect();
    let [kind, mode, uid, gid, bytes, seconds, nanoseconds, path, target] = words[..] else { return None };
    Some(Listed {
        kind: match kind {
            "f" => Kind::File,
            "d" => Kind::Directory,
            "l" => Kind::Link,
            "o" => Kind::Other,
            _ => return None,
        },
        mode: u32::from_str_radix(mode, 8).ok()?,
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        bytes: bytes.parse().ok()?,
        modified: (seconds.parse().ok()?, nanoseconds.parse().ok()?),
        path: unescaped(path)?,
        target: unescaped(target)?,
    })
}

fn escaped(path: &Path) -> String {
    use std::fmt::Write as _;
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut text, &byte| {
        if byte.is_ascii_graphic() && byte != b'%' {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes what is written to it");
        }
        text
    })
}

fn unescaped(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked_at(root: &Path) -> Vec<Listed> {
        let mut found = Vec::new();
        let mut each = |path, metadata: &Metadata| {
            found.push(Listed::of(root, path, metadata)?);
            Ok(())
        };
        assert_eq!(walk(root, &mut each).unwrap(), Vec::<PathBuf>::new(), "nothing is mounted in it");
        found
    }

    #[test]
    fn a_list_is_read_as_it_was_written_whatever_files_are_called() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a b", "line\nbreak", "%41", "d"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("d").join(OsString::from_vec(vec![0xff, b'x'])), "12345").unwrap();
        fs_err::os::unix::fs::symlink("to where", dir.path().join("d/link")).unwrap();
        let found = looked_at(dir.path());
        let order: Vec<_> = found.iter().map(|file| file.path.as_os_str().as_bytes()).collect();
        let wanted: [&[u8]; 7] = [b"", b"%41", b"a b", b"d", b"d/link", b"d/\xffx", b"line\nbreak"];
        assert_eq!(order, wanted);
        let mut text = Vec::new();
        begin(&mut text).unwrap();
        found.iter().try_for_each(|file| add(&mut text, file)).unwrap();
        assert_eq!(text.iter().filter(|&&byte| byte == b'\n').count(), 8, "a line a file");
        assert_eq!(read(&text[..]).unwrap(), found);
        assert_eq!((found[5].bytes, found[4].target.as_path()), (5, Path::new("to where")));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let ok = format!("{HEAD}\nf 644 0 0 1 2 3 a \n");
        assert_eq!(read(ok.as_bytes()).unwrap().len(), 1);
        for text in
            ["", "firkin-files 2\n", &ok[..ok.len() - 3], &ok.replace('f', "x"), &format!("{HEAD}\n{}", "a".repeat(100_000))]
        {
            assert!(read(text.as_bytes()).is_err(), "{text:.100}");
        }
        assert!(read(ok.replace(" a ", " %4 ").as_bytes()).is_err(), "half a byte");
    }

    #[test]
    fn each_attribute_tells_another_file() {
        let file = Listed {
            path: "a".into(),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            bytes: 1,
            modified: (1, 0),
            target: PathBuf::new(),
        };
        let others = [
            Listed { kind: Kind::Link, ..file.clone() },
            Listed { mode: 0o600, ..file.clone() },
            Listed { uid: 1, ..file.clone() },
            Listed { gid: 1, ..file.clone() },
            Listed { bytes: 2, ..file.clone() },
            Listed { modified: (1, 1), ..file.clone() },
            Listed { target: "b".into(), ..file.clone() },
        ];
        assert!(others.iter().all(|other| file.differs(other)) && !file.differs(&file.clone()));
        let dir = tempfile::tempdir().unwrap();
        let before = looked_at(dir.path());
        fs::write(dir.path().join("new"), "").unwrap();
        assert!(!before[0].differs(&looked_at(dir.path())[0]), "what is in a directory tells for itself");
    }
}
