//! Root disks: what a machine's disk is made of, and what can be done with the files of one.
//!
//! ```text
//!   overlay   written by one machine, in its directory      ── a cut seals it: it becomes a layer ──┐
//!   layers    sealed, shared, never written, lowest first   ◄───────────────────────────────────────┘
//!   image     the bottom: a file system that somebody built
//! ```
//!
//! Whoever keeps disks knows their order and what they are called; what is in them is the engine's affair. An engine says so by
//! its [`DiskFormat`].

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// A root disk of a machine. What the files say of each other is not believed: this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDisk {
    /// What the lowest layer lies over, or the overlay where there is none.
    pub image: PathBuf,
    /// Sealed layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// What the machine writes, in its directory.
    pub overlay: PathBuf,
}

/// Why something could not be done with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file of it could not be read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of it is not what the format demands, or the format has no room for what was asked.
    #[error("cannot use, make or change a disk of this format")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The caller did not want it any more.
    #[error("the work on a disk was given up")]
    Stopped,
}

/// The form of the image at the bottom of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageForm {
    /// A raw ext4 file system. What runs in a guest before its disk does comes from elsewhere.
    Ext4,
    /// An EROFS file system of the same content, and the agent in it, which is the guest's first process.
    ErofsWithAgent,
}

/// A layer as it is on every host: `head`, and its file from the byte `rest` on. What it lies over is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// What stands for the beginning of the file.
    pub head: Vec<u8>,
    /// The first byte of the file after that beginning, at most its length.
    pub rest: u64,
}

/// What a layer lies over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below<'a> {
    /// [`RootDisk::image`].
    Image(&'a Path),
    /// Another layer.
    Layer(&'a Path),
}

/// How an engine keeps disks. Stateless: two formats of one name are the same.
pub trait DiskFormat: fmt::Debug + Send + Sync {
    /// How names of overlays and layers end, without the dot.
    fn extension(&self) -> &'static str;

    /// Whether an overlay or layer is a directory, with all that is in it, instead of a file.
    fn layers_are_directories(&self) -> bool;

    /// Whether what a guest writes is in its overlay. Otherwise it is in the state of its snapshots, and overlays and layers only keep
    /// their order.
    fn holds_writes(&self) -> bool;

    /// What [`RootDisk::image`] is.
    fn image_form(&self) -> ImageForm;

    /// Makes [`RootDisk::overlay`], which must not exist, empty over the rest of the disk. The guest sees a disk of `bytes`.
    fn create(&self, disk: &RootDisk, bytes: u64) -> Result<(), DiskError>;

    /// Makes `next`, which must not exist, for the next cut of a machine that writes `current`: an empty overlay of the same size
    /// over what `current` is by then, a layer at `sealed`.
    fn create_next(&self, current: &Path, sealed: &Path, next: &Path) -> Result<(), DiskError>;

    /// What an overlay or layer lies over by its own word, which is that of an engine. None: over nothing.
    fn below(&self, file: &Path) -> Result<Option<PathBuf>, DiskError>;

    /// Has an overlay or layer lie over the layer `below`, which holds what it lay over.
    fn put_over(&self, file: &Path, below: &Path) -> Result<(), DiskError>;

    /// The content of a layer that is a file, without the place of what it lies over: equal on all hosts that have it. What
    /// [`DiskFormat::layers_are_directories`] is refused.
    fn carried(&self, layer: &Path) -> Result<Carried, DiskError>;

    /// Has the file `layer`, which holds what [`DiskFormat::carried`] gave on another host, lie over `below`. It came from outside: where
    /// it is no layer, or not one that lies over such a thing, it is refused.
    fn settle(&self, layer: &Path, below: Below<'_>) -> Result<(), DiskError>;

    /// Writes the union of `layers`, lowest first, as one layer over the layer `below` to `merged`, which must not exist. Not synced. Given up as
    /// soon as `goes_on` says no. On failure `merged` may exist.
    fn merge(&self, layers: &[PathBuf], below: &Path, merged: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), DiskError>;
}

impl PartialEq for dyn DiskFormat {
    fn eq(&self, other: &Self) -> bool {
        self.extension() == other.extension()
    }
}

impl Eq for dyn DiskFormat {}
