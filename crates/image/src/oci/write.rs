//! Puts a merged image on a disk, in a directory that only we can enter.
//!
//! Every parent is a directory that was made here a moment before, and links are made, never followed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use fs_err as fs;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, XattrFlags, lsetxattr, utimensat};

use super::tree::{Attributes, Content, Kind, NodeId, Tree};

const COPY_BYTES: usize = 128 << 10;

/// Writes `tree` below `root`, which must not exist yet. `layers` are the unpacked archives.
pub(crate) fn write(tree: &Tree, layers: &[File], root: &Path) -> io::Result<()> {
    let mut writer = Writer { tree, layers, written: HashMap::new(), buffer: vec![0; COPY_BYTES] };
    // Names are taken off the end; a directory's attributes are set when everything in it has been written.
    let mut pending = vec![Visit::Make(tree.root(), root.to_path_buf())];
    while let Some(step) = pending.pop() {
        match step {
            Visit::Finish(node, path) => set(&path, &tree.node(node).attributes, false)?,
            Visit::Make(node, path) => {
                if let Kind::Directory(names) = &tree.node(node).kind {
                    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
                    pending.push(Visit::Finish(node, path.clone()));
                    pending.extend(names.iter().map(|(name, found)| Visit::Make(found.node, path.join(name))));
                } else {
                    writer.leaf(node, &path)?;
                }
            }
        }
    }
    Ok(())
}

enum Visit {
    Make(NodeId, PathBuf),
    Finish(NodeId, PathBuf),
}

struct Writer<'a> {
    tree: &'a Tree,
    layers: &'a [File],
    /// First path of every file, for its other names.
    written: HashMap<NodeId, PathBuf>,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn leaf(&mut self, id: NodeId, path: &Path) -> io::Result<()> {
        if let Some(first) = self.written.get(&id) {
            return fs::hard_link(first, path);
        }
        let node = self.tree.node(id);
        match &node.kind {
            Kind::File(content) => self.file(content, path)?,
            Kind::Symlink(target) => symlink(target, path)?,
            Kind::Directory(_) => unreachable!("directories are made by the caller"),
        }
        set(path, &node.attributes, matches!(node.kind, Kind::Symlink(_)))?;
        self.written.insert(id, path.to_path_buf());
        Ok(())
    }

    fn file(&mut self, content: &Content, path: &Path) -> io::Result<()> {
        let from = &self.layers[content.layer];
        let mut to = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let (mut at, end) = (content.offset, content.offset + content.bytes);
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(self.buffer.len());
            let read = from.read_at(&mut self.buffer[..want], at)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            io::Write::write_all(&mut to, &self.buffer[..read])?;
            at += read as u64;
        }
        Ok(())
    }
}

/// Sets attributes in the order in which they do not undo each other: a new owner takes set-user-id bits and capabilities away.
fn set(path: &Path, attributes: &Attributes, link: bool) -> io::Result<()> {
    lchown(path, Some(attributes.uid), Some(attributes.gid))?;
    if !link {
        fs::set_permissions(path, std::fs::Permissions::from_mode(attributes.mode))?;
        for (name, value) in &attributes.extended {
            lsetxattr(path, name.as_os_str(), value, XattrFlags::empty())?;
        }
    }
    let modified = Timespec { tv_sec: attributes.modified, tv_nsec: 0 };
    let times = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }, last_modification: modified };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tree::Entry;
    use std::os::unix::fs::MetadataExt;

    /// Owned by whoever runs the test: root is not needed for it.
    fn own(mode: u32) -> Attributes {
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        Attributes { mode, uid, gid, modified: 1_000_000, ..Attributes::default() }
    }

    #[test]
    fn a_tree_is_written_with_its_attributes_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let layer = tempfile::tempfile().unwrap();
        layer.write_all_at(b"..hello", 0).unwrap();
        let mut tree = Tree::default();
        let content = Content { layer: 0, offset: 2, bytes: 5 };
        let entries = [
            ("/", Entry::Directory(own(0o755))),
            ("d", Entry::Directory(own(0o500))),
            ("d/a", Entry::File(own(0o640), content)),
            ("b", Entry::Hardlink("d/a".into())),
            ("out", Entry::Symlink(own(0o777), dir.path().into())),
            ("out/inside", Entry::File(own(0o600), content)),
        ];
        let parents = |tree: &mut Tree| {
            // Directories that a link's target implies belong to root; give them to us.
            let mut path = PathBuf::new();
            for name in dir.path().components().skip(1) {
                path.push(name);
                tree.add(0, &path, Entry::Directory(own(0o755))).unwrap();
            }
        };
        parents(&mut tree);
        for (path, entry) in entries {
            tree.add(0, Path::new(path), entry).unwrap();
        }
        let root = dir.path().join("root");
        write(&tree, &[layer], &root).unwrap();

        assert_eq!(fs::read(root.join("d/a")).unwrap(), b"hello");
        let (a, b) = (fs::metadata(root.join("d/a")).unwrap(), fs::metadata(root.join("b")).unwrap());
        assert_eq!((a.ino(), a.mode() & 0o7777, a.mtime()), (b.ino(), 0o640, 1_000_000));
        assert_eq!(fs::metadata(root.join("d")).unwrap().mode() & 0o7777, 0o500);
        assert_eq!(fs::read_link(root.join("out")).unwrap(), dir.path());
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["root"], "the file below the link is in the image, not where the host has that path");
        assert!(root.join(dir.path().strip_prefix("/").unwrap()).join("inside").exists());
    }
}
