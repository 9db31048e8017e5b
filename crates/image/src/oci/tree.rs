//! The files of a container image, its layers merged. A pure function of the layers' entries.
//!
//! Entries come from strangers. They are placed in a tree that exists in memory only, where a symbolic link is a value and not
//! something that the kernel follows: an entry can name nothing outside of the tree, whatever `..`, links and order its author
//! chose, and what all of them say of themselves is bounded. What is written to a disk afterwards (`write.rs`) has real directories above everything and follows no link.
//!
//! Layers are merged as the OCI image specification says (layer.md, "Changeset over existing filesystem", "Whiteouts"): an entry
//! replaces what had its name, but a directory over a directory only changes the attributes; `.wh.NAME` hides `NAME` of the
//! layers below, `.wh..wh..opq` hides everything of theirs in its directory; whiteouts never touch their own layer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Everything that one image may have of files, directories and links. Large images have a tenth of it.
/// The bytes of names come to [`MAX_METADATA_BYTES`] at half of it; this one holds whatever becomes of that.
const MAX_NODES: usize = 2_000_000;
/// `PATH_MAX` of Linux.
const MAX_PATH_BYTES: usize = 4096;
/// `NAME_MAX` of Linux.
const MAX_NAME_BYTES: usize = 255;
/// Names, links' targets and extended attributes of one image, all together: they are in memory at once, and a packed layer may
/// hold hundreds of times its own size of them. Large images have a fifth of it.
pub(super) const MAX_METADATA_BYTES: usize = 64 << 20;
/// Memory that a name or an attribute takes beside its bytes.
pub(super) const ENTRY_OVERHEAD_BYTES: usize = 64;
/// Symbolic links on one way, as Linux follows them.
const MAX_LINKS: usize = 40;
/// Directories inside each other. Paths are bounded, but links add to them.
const MAX_DEPTH: usize = 512;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const UNION_PRIVATE: &[u8] = b".wh..wh.";

/// Why an entry cannot be part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The path leaves the image, is empty, or is too long.
    #[error("cannot take the path `{path}`: {reason}")]
    Path {
        /// As the layer has it.
        path: String,
        /// The fault.
        reason: &'static str,
    },
    /// A hard link to nothing, or to a directory.
    #[error("cannot link `{path}` to `{target}`, which is not a file of the image")]
    Link {
        /// The entry.
        path: String,
        /// The file that it names.
        target: String,
    },
    /// Too many entries.
    #[error("the image has more than {MAX_NODES} files")]
    TooMany,
    /// Too much is said of them.
    #[error("the image has more than {} MiB of names, links and extended attributes", MAX_METADATA_BYTES >> 20)]
    Metadata,
}

/// Attributes of an entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Extended attributes.
    pub extended: BTreeMap<OsString, Vec<u8>>,
}

/// Where the bytes of a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Number of the layer.
    pub layer: usize,
    /// First byte in the unpacked layer.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory(Attributes),
    /// A regular file.
    File(Attributes, Content),
    /// A symbolic link and where it points.
    Symlink(Attributes, PathBuf),
    /// Another name of an earlier file.
    Hardlink(PathBuf),
}

/// The merged image.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Nodes that have lost their last name, to be used again.
    free: Vec<NodeId>,
    /// Bytes of [`MAX_METADATA_BYTES`] that are taken.
    bytes: usize,
}

/// Number of a node. The root is 0.
pub type NodeId = usize;

/// One file, directory or link.
#[derive(Debug)]
pub struct Node {
    /// Its attributes.
    pub attributes: Attributes,
    /// Its kind.
    pub kind: Kind,
    /// How many names it has.
    names: u32,
}

/// The kind of a node.
#[derive(Debug)]
pub enum Kind {
    /// A directory and its names.
    Directory(BTreeMap<OsString, Name>),
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink(PathBuf),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub struct Name {
    /// The node that it names.
    pub node: NodeId,
    /// The layer that last spoke of it, itself or by something below it.
    layer: usize,
}

const ROOT: NodeId = 0;

impl Default for Tree {
    /// An empty root directory.
    fn default() -> Self {
        let root = Node { attributes: directory_attributes(), kind: Kind::Directory(BTreeMap::new()), names: 1 };
        Self { nodes: vec![root], free: Vec::new(), bytes: 0 }
    }
}

impl Attributes {
    fn bytes(&self) -> usize {
        self.extended.iter().map(|(name, value)| name.len() + value.len() + ENTRY_OVERHEAD_BYTES).sum()
    }
}

impl Kind {
    /// Without the names of a directory, which are counted one by one.
    fn bytes(&self) -> usize {
        match self {
            Self::Symlink(target) => target.as_os_str().len(),
            Self::File(_) | Self::Directory(_) => 0,
        }
    }
}

fn directory_attributes() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

impl Tree {
    /// A node by its number.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// The root directory.
    pub fn root(&self) -> NodeId {
        ROOT
    }

    /// Adds an entry of layer `layer`. Layers come lowest first, entries in their order in the layer.
    pub fn add(&mut self, layer: usize, path: &Path, entry: Entry) -> Result<(), TreeError> {
        let names = names_of(path)?;
        let Some((name, parents)) = names.split_last() else {
            // The root itself: only its attributes can change.
            if let Entry::Directory(attributes) = entry {
                return self.describe(ROOT, attributes);
            }
            return Err(bad(path, "the root is a directory"));
        };
        if name.as_bytes() == OPAQUE {
            // A whiteout must not make the directory that it would empty.
            if let Some(directory) = self.find(parents, path)? {
                self.hide_below(directory, layer);
            }
            return Ok(());
        }
        if names.iter().any(|name| name.as_bytes().starts_with(UNION_PRIVATE)) {
            // What old union file systems kept for themselves.
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if let Some(directory) = self.find(parents, path)? {
                self.hide(directory, &OsString::from_vec(hidden.to_vec()), layer);
            }
            return Ok(());
        }
        let directory = self.make_directories(parents, layer, path)?;
        let node = match entry {
            Entry::Hardlink(target) => self.linked(path, &target)?,
            Entry::Directory(attributes) => {
                if let Some(existing) = self.child(directory, name)
                    && let Kind::Directory(_) = self.nodes[existing.node].kind
                {
                    self.describe(existing.node, attributes)?;
                    existing.node
                } else {
                    self.new_node(attributes, Kind::Directory(BTreeMap::new()))?
                }
            }
            Entry::File(attributes, content) => self.new_node(attributes, Kind::File(content))?,
            Entry::Symlink(attributes, target) => self.new_node(attributes, Kind::Symlink(target))?,
        };
        self.call(directory, name.clone(), Name { node, layer })
    }

    fn new_node(&mut self, attributes: Attributes, kind: Kind) -> Result<NodeId, TreeError> {
        self.take(attributes.bytes() + kind.bytes())?;
        let node = Node { attributes, kind, names: 0 };
        if let Some(id) = self.free.pop() {
            self.nodes[id] = node;
            return Ok(id);
        }
        if self.nodes.len() >= MAX_NODES {
            return Err(TreeError::TooMany);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn take(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.bytes += bytes;
        if self.bytes > MAX_METADATA_BYTES { Err(TreeError::Metadata) } else { Ok(()) }
    }

    /// Changes the attributes of a node.
    fn describe(&mut self, id: NodeId, attributes: Attributes) -> Result<(), TreeError> {
        self.take(attributes.bytes())?;
        let before = std::mem::replace(&mut self.nodes[id].attributes, attributes);
        self.bytes -= before.bytes();
        Ok(())
    }

    /// Gives a node a name in a directory, in place of what had it.
    fn call(&mut self, directory: NodeId, name: OsString, new: Name) -> Result<(), TreeError> {
        let bytes = name_bytes(&name);
        let before = self.names(directory).insert(name, new);
        match before {
            Some(before) if before.node == new.node => Ok(()),
            Some(before) => {
                self.nodes[new.node].names += 1;
                self.release(before.node);
                Ok(())
            }
            None => {
                self.nodes[new.node].names += 1;
                self.take(bytes)
            }
        }
    }

    /// Takes one name from a node. One without any is gone, and so is what only it led to.
    fn release(&mut self, id: NodeId) {
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = &mut self.nodes[id];
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            let attributes = std::mem::take(&mut node.attributes);
            let kind = std::mem::replace(&mut node.kind, Kind::Directory(BTreeMap::new()));
            self.bytes -= attributes.bytes() + kind.bytes();
            self.free.push(id);
            if let Kind::Directory(names) = kind {
                for (name, found) in names {
                    self.bytes -= name_bytes(&name);
                    pending.push(found.node);
                }
            }
        }
    }

    fn names(&mut self, directory: NodeId) -> &mut BTreeMap<OsString, Name> {
        match &mut self.nodes[directory].kind {
            Kind::Directory(names) => names,
            Kind::File(_) | Kind::Symlink(_) => unreachable!("only directories are walked through"),
        }
    }

    fn child(&self, directory: NodeId, name: &OsString) -> Option<Name> {
        match &self.nodes[directory].kind {
            Kind::Directory(names) => names.get(name).copied(),
            Kind::File(_) | Kind::Symlink(_) => None,
        }
    }

    /// The file that a hard link names.
    fn linked(&self, path: &Path, target: &Path) -> Result<NodeId, TreeError> {
        let broken = || TreeError::Link { path: shown(path), target: shown(target) };
        let names = names_of(target)?;
        let (name, parents) = names.split_last().ok_or_else(broken)?;
        let directory = self.find(parents, target)?.ok_or_else(broken)?;
        let found = self.child(directory, name).ok_or_else(broken)?;
        match self.nodes[found.node].kind {
            Kind::Directory(_) => Err(broken()),
            Kind::File(_) | Kind::Symlink(_) => Ok(found.node),
        }
    }

    /// The directory at `names`, through links, if there is one.
    fn find(&self, names: &[OsString], path: &Path) -> Result<Option<NodeId>, TreeError> {
        let mut walk = Walk::new(names);
        while let Some(name) = walk.next() {
            let Some(found) = self.child(walk.at(), &name) else { return Ok(None) };
            match &self.nodes[found.node].kind {
                Kind::Directory(_) => walk.enter(found.node, path)?,
                Kind::Symlink(target) => walk.follow(target, path)?,
                Kind::File(_) => return Ok(None),
            }
        }
        Ok(Some(walk.at()))
    }

    /// The directory at `names`, through links; what is missing is made.
    fn make_directories(&mut self, names: &[OsString], layer: usize, path: &Path) -> Result<NodeId, TreeError> {
        let mut walk = Walk::new(names);
        while let Some(name) = walk.next() {
            let at = walk.at();
            let node = match self.child(at, &name) {
                None if name.as_bytes().starts_with(WHITEOUT) => return Err(bad(path, "a whiteout is no directory")),
                None => self.new_node(directory_attributes(), Kind::Directory(BTreeMap::new()))?,
                Some(found) => match &self.nodes[found.node].kind {
                    Kind::Directory(_) => found.node,
                    Kind::Symlink(target) => {
                        walk.follow(target, path)?;
                        continue;
                    }
                    Kind::File(_) => return Err(bad(path, "a file is in its way")),
                },
            };
            // A later whiteout of this layer must spare what this layer puts below.
            self.call(at, name, Name { node, layer })?;
            walk.enter(node, path)?;
        }
        Ok(walk.at())
    }

    /// Hides a name of the layers below.
    fn hide(&mut self, directory: NodeId, name: &OsString, layer: usize) {
        match self.child(directory, name) {
            Some(found) if found.layer < layer => {
                self.names(directory).remove(name);
                self.bytes -= name_bytes(name);
                self.release(found.node);
            }
            Some(found) => self.hide_below(found.node, layer),
            None => {}
        }
    }

    /// Hides everything of the layers below in a directory.
    fn hide_below(&mut self, directory: NodeId, layer: usize) {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let Kind::Directory(names) = &mut self.nodes[directory].kind else { continue };
            let mut gone = Vec::new();
            let mut freed = 0;
            names.retain(|name, found| {
                let stays = found.layer >= layer;
                if !stays {
                    gone.push(found.node);
                    freed += name_bytes(name);
                }
                stays
            });
            pending.extend(names.values().map(|name| name.node));
            self.bytes -= freed;
            gone.into_iter().for_each(|node| self.release(node));
        }
    }
}

/// Memory that a name in a directory takes.
fn name_bytes(name: &OsString) -> usize {
    name.len() + ENTRY_OVERHEAD_BYTES
}

/// A way through directories and links.
struct Walk {
    /// Directories on the way, the root first.
    way: Vec<NodeId>,
    /// Names still to go, the next one last.
    pending: Vec<OsString>,
    links: usize,
}

impl Walk {
    fn new(names: &[OsString]) -> Self {
        Self { way: vec![ROOT], pending: names.iter().rev().cloned().collect(), links: 0 }
    }

    fn at(&self) -> NodeId {
        *self.way.last().expect("the root is never left")
    }

    /// The next name that is not `..`.
    fn next(&mut self) -> Option<OsString> {
        loop {
            let name = self.pending.pop()?;
            if name != ".." {
                return Some(name);
            }
            // As the kernel has it: the root is its own parent.
            if self.way.len() > 1 {
                self.way.pop();
            }
        }
    }

    fn enter(&mut self, directory: NodeId, path: &Path) -> Result<(), TreeError> {
        if self.way.len() >= MAX_DEPTH {
            return Err(bad(path, "it is too deep"));
        }
        self.way.push(directory);
        Ok(())
    }

    fn follow(&mut self, target: &Path, path: &Path) -> Result<(), TreeError> {
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(bad(path, "too many symbolic links are on its way"));
        }
        if target.is_absolute() {
            self.way.truncate(1);
        }
        let names = target.components().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        let names: Vec<OsString> = names.collect();
        self.pending.extend(names.into_iter().rev());
        Ok(())
    }
}

/// What is gone, if that is what a path says.
pub(super) fn hidden(path: &Path) -> Result<Option<PathBuf>, TreeError> {
    let mut names = names_of(path)?;
    if names.iter().any(|name| name.as_bytes().starts_with(UNION_PRIVATE)) {
        return Ok(None);
    }
    let Some(name) = names.pop() else { return Ok(None) };
    let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else { return Ok(None) };
    if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(bad(path, "it names nothing"));
    }
    names.push(OsString::from_vec(hidden.to_vec()));
    Ok(Some(names.iter().collect()))
}

/// The names of a path relative to the root, however it is written.
fn names_of(path: &Path) -> Result<Vec<OsString>, TreeError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() > MAX_PATH_BYTES {
        return Err(bad(path, "it is longer than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(bad(path, "it contains a zero byte"));
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) if name.len() > MAX_NAME_BYTES => return Err(bad(path, "a name is longer than 255 bytes")),
            Component::Normal(name) => names.push(name.to_owned()),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(bad(path, "it leaves the image")),
        }
    }
    Ok(names)
}

fn bad(path: &Path, reason: &'static str) -> TreeError {
    TreeError::Path { path: shown(path), reason }
}

/// A path for a message, bounded.
fn shown(path: &Path) -> String {
    path.to_string_lossy().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(layer: usize) -> Entry {
        Entry::File(Attributes { mode: 0o644, ..Attributes::default() }, Content { layer, offset: 0, bytes: 1 })
    }

    fn directory() -> Entry {
        Entry::Directory(directory_attributes())
    }

    fn link(target: &str) -> Entry {
        Entry::Symlink(Attributes::default(), target.into())
    }

    /// What the tree says that it takes is what can be reached takes, and no node without a name is kept.
    fn books_agree(tree: &Tree) {
        let (mut bytes, mut seen, mut pending) = (0, std::collections::HashMap::from([(ROOT, 1)]), vec![ROOT]);
        while let Some(id) = pending.pop() {
            let node = tree.node(id);
            bytes += node.attributes.bytes() + node.kind.bytes();
            let Kind::Directory(names) = &node.kind else { continue };
            for (name, found) in names {
                bytes += name_bytes(name);
                let count = seen.entry(found.node).or_insert(0);
                *count += 1;
                if *count == 1 {
                    pending.push(found.node);
                }
            }
        }
        assert_eq!(bytes, tree.bytes);
        assert_eq!(seen.len() + tree.free.len(), tree.nodes.len());
        assert!(seen.iter().all(|(&id, &count)| tree.node(id).names == count));
    }

    #[test]
    fn what_is_replaced_or_hidden_is_not_kept() {
        let described =
            |tag: u8| Attributes { extended: [("user.a".into(), vec![tag; 60 << 10])].into(), ..Attributes::default() };
        let mut tree = Tree::default();
        // Twice the budget, were it kept.
        for n in 0..2200 {
            let content = Content { layer: 0, offset: 0, bytes: 0 };
            tree.add(0, Path::new("d/a"), Entry::File(described(1), content)).unwrap();
            tree.add(0, Path::new("d"), Entry::Directory(described(2))).unwrap();
            if n % 2 == 0 {
                tree.add(1, Path::new(".wh.d"), directory()).unwrap();
            }
        }
        tree.add(1, Path::new("b"), Entry::Hardlink("d/a".into())).unwrap();
        tree.add(1, Path::new("d"), link("b")).unwrap();
        assert_eq!(listing(&tree), ["/b 0", "/d -> b"]);
        books_agree(&tree);
        assert!(tree.nodes.len() < 10, "{}", tree.nodes.len());
    }

    #[test]
    fn an_image_that_says_too_much_of_its_files_is_refused() {
        let mut tree = Tree::default();
        let outcome = (0..2000).try_for_each(|n| {
            let extended = [("user.a".into(), vec![0; 60 << 10])].into();
            tree.add(0, Path::new(&format!("f{n}")), Entry::Directory(Attributes { extended, ..Attributes::default() }))
        });
        assert_eq!(outcome, Err(TreeError::Metadata));
        let mut tree = Tree::default();
        let target = "x".repeat(4000);
        let outcome = (0..20_000).try_for_each(|n| tree.add(0, Path::new(&format!("l{n}")), link(&target)));
        assert_eq!(outcome, Err(TreeError::Metadata));
    }

    /// Every path of a tree with the layer of its content, `->` its target or `/`.
    fn listing(tree: &Tree) -> Vec<String> {
        fn walk(tree: &Tree, id: NodeId, path: &str, out: &mut Vec<String>) {
            match &tree.node(id).kind {
                Kind::Directory(names) => {
                    out.push(format!("{path}/"));
                    for (name, found) in names {
                        walk(tree, found.node, &format!("{path}/{}", name.to_string_lossy()), out);
                    }
                }
                Kind::File(content) => out.push(format!("{path} {}", content.layer)),
                Kind::Symlink(target) => out.push(format!("{path} -> {}", target.display())),
            }
        }
        let mut out = Vec::new();
        walk(tree, ROOT, "", &mut out);
        out.remove(0);
        out
    }

    /// Layers of (path, entry) to the listing of what they make.
    fn merged(layers: Vec<Vec<(&str, Entry)>>) -> Result<Vec<String>, TreeError> {
        let mut tree = Tree::default();
        for (layer, entries) in layers.into_iter().enumerate() {
            for (path, entry) in entries {
                tree.add(layer, Path::new(path), entry)?;
            }
        }
        Ok(listing(&tree))
    }

    #[test]
    fn layers_replace_merge_and_hide() {
        let table = [
            ("a file replaces a file", vec![vec![("a", file(0))], vec![("./a", file(1))]], vec!["/a 1"]),
            (
                "a directory is merged",
                vec![vec![("d/a", file(0))], vec![("d/", directory()), ("d/b", file(1))]],
                vec!["/d/", "/d/a 0", "/d/b 1"],
            ),
            ("a file replaces a directory", vec![vec![("d/a", file(0))], vec![("d", file(1))]], vec!["/d 1"]),
            (
                "a whiteout hides",
                vec![vec![("d/a", file(0)), ("d/b", file(0))], vec![("d/.wh.a", file(1))]],
                vec!["/d/", "/d/b 0"],
            ),
            (
                "a whiteout spares its own layer",
                vec![vec![("a", file(0))], vec![("a", file(1)), (".wh.a", file(1))]],
                vec!["/a 1"],
            ),
            (
                "a hidden directory keeps what its own layer put in it",
                vec![vec![("d/old", file(0))], vec![("d/new", file(1)), (".wh.d", file(1))]],
                vec!["/d/", "/d/new 1"],
            ),
            (
                "an opaque directory hides all of the layers below, at any depth",
                vec![vec![("d/e/old", file(0)), ("d/x", file(0))], vec![("d/e/new", file(1)), ("d/.wh..wh..opq", file(1))]],
                vec!["/d/", "/d/e/", "/d/e/new 1"],
            ),
            ("a whiteout of nothing is nothing", vec![vec![("a", file(0))], vec![("x/.wh.y", file(1))]], vec!["/a 0"]),
            (
                "an entry below a link lands where the link points",
                vec![vec![("usr/bin/", directory()), ("bin", link("usr/bin"))], vec![("bin/sh", file(1))]],
                vec!["/bin -> usr/bin", "/usr/", "/usr/bin/", "/usr/bin/sh 1"],
            ),
            (
                "a link out of the image stays inside",
                vec![vec![
                    ("x/up", link("../../../../etc")),
                    ("x/up/passwd", file(0)),
                    ("abs", link("/etc")),
                    ("abs/shadow", file(0)),
                ]],
                vec!["/abs -> /etc", "/etc/", "/etc/passwd 0", "/etc/shadow 0", "/x/", "/x/up -> ../../../../etc"],
            ),
        ];
        for (what, layers, expected) in table {
            assert_eq!(merged(layers).unwrap(), expected, "{what}");
        }
    }

    #[test]
    fn a_hard_link_is_one_file_with_two_names() {
        let mut tree = Tree::default();
        tree.add(0, Path::new("a"), file(0)).unwrap();
        tree.add(1, Path::new("d/b"), Entry::Hardlink("/a".into())).unwrap();
        let Kind::Directory(names) = &tree.node(ROOT).kind else { panic!() };
        let Kind::Directory(inner) = &tree.node(names[&OsString::from("d")].node).kind else { panic!() };
        assert_eq!(names[&OsString::from("a")].node, inner[&OsString::from("b")].node);
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let long = "n".repeat(256);
        let loops = vec![("l", link("m")), ("m", link("l")), ("l/x", file(0))];
        let table = [
            (vec![("../etc/passwd", file(0))], "leaves the image"),
            (vec![("a/../../b", file(0))], "leaves the image"),
            (vec![(long.as_str(), file(0))], "255 bytes"),
            (vec![("a", file(0)), ("a/b", file(0))], "in its way"),
            (loops, "symbolic links"),
            (vec![("a", Entry::Hardlink("/nowhere".into()))], "not a file of the image"),
            (vec![("d/", directory()), ("a", Entry::Hardlink("d".into()))], "not a file of the image"),
            (vec![("/", file(0))], "root"),
            (vec![(".wh.a/b", file(0))], "a whiteout is no directory"),
        ];
        for (entries, reason) in table {
            let error = merged(vec![entries]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    fn any_path() -> impl Strategy<Value = String> {
        let part =
            prop_oneof![Just("a"), Just("b"), Just("c"), Just(".."), Just("."), Just(".wh.a"), Just(".wh..wh..opq"), Just("")];
        proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        /// Whatever the layers say: no panic, no endless walk, and every name of the tree is a plain one.
        #[test]
        fn any_layers_make_a_tree_of_plain_names(
            steps in proptest::collection::vec((0usize..4, any_path(), 0u8..4, any_path()), 0..60)
        ) {
            let mut steps = steps;
            steps.sort_by_key(|step| step.0);
            let mut tree = Tree::default();
            for (layer, path, kind, target) in steps {
                let entry = match kind {
                    0 => directory(),
                    1 => link(&target),
                    2 => Entry::Hardlink(target.into()),
                    _ => file(layer),
                };
                // Refusals are fine; what was refused must not have broken anything.
                drop(tree.add(layer, Path::new(&path), entry));
            }
            books_agree(&tree);
            for line in listing(&tree) {
                let path = line.split(' ').next().unwrap_or_default();
                prop_assert!(path.split('/').all(|name| name != ".." && name != "." && !name.starts_with(".wh.")), "{line}");
            }
        }
    }
}
