//! Root disks of sandboxes whose snapshots hold what was written.
//!
//! An overlay is a file of the sandbox that has no name, and a checkpoint has all of it. So the files here hold nothing of a guest's: an overlay or layer
//! is a mark that says what it lies over, which keeps the order of layers for whoever owns them.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use serde::{Deserialize, Serialize};

use crate::disk::{Below, Carried, DiskError, DiskFormat, ImageForm, RootDisk};

/// A mark is a path and a number.
const MAX_BYTES: u64 = 64 << 10;

/// A mark for each overlay and layer.
#[derive(Debug, Clone, Copy)]
pub struct Marks;

#[derive(Debug, Serialize, Deserialize)]
struct Mark {
    /// None: the image.
    below: Option<PathBuf>,
    /// What the guest was to see of its disk.
    bytes: u64,
}

fn read(path: &Path) -> Result<Mark, DiskError> {
    let read = || {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(fs_err::File::open(path)?, MAX_BYTES), &mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| DiskError::File { path: path.to_path_buf(), source })?;
    serde_json::from_slice(&text).map_err(|error| DiskError::Refused(error.into()))
}

/// What the guest that has this overlay is to see of its disk, bytes.
pub(super) fn bytes(overlay: &Path) -> Result<u64, DiskError> {
    read(overlay).map(|mark| mark.bytes)
}

fn make(path: &Path, mark: &Mark) -> Result<(), DiskError> {
    let make = || {
        let mut file = fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec(mark)?)
    };
    make().map_err(|source| DiskError::File { path: path.to_path_buf(), source })
}

impl DiskFormat for Marks {
    fn extension(&self) -> &'static str {
        "mark"
    }

    fn layers_are_directories(&self) -> bool {
        false
    }

    fn holds_writes(&self) -> bool {
        false
    }

    fn image_form(&self) -> ImageForm {
        ImageForm::ErofsWithAgent
    }

    fn create(&self, disk: &RootDisk, bytes: u64) -> Result<(), DiskError> {
        make(&disk.overlay, &Mark { below: disk.layers.last().cloned(), bytes })
    }

    fn create_next(&self, current: &Path, sealed: &Path, next: &Path) -> Result<(), DiskError> {
        let Mark { bytes, .. } = read(current)?;
        make(next, &Mark { below: Some(sealed.to_path_buf()), bytes })
    }

    fn below(&self, file: &Path) -> Result<Option<PathBuf>, DiskError> {
        Ok(read(file)?.below)
    }

    fn put_over(&self, file: &Path, below: &Path) -> Result<(), DiskError> {
        let Mark { bytes, .. } = read(file)?;
        let text = serde_json::to_vec(&Mark { below: Some(below.to_path_buf()), bytes }).expect("a mark is JSON");
        // What is there stays until the other is whole: on a full disk it is all that is known of the chain.
        let whole = || {
            let mut new = file.as_os_str().to_owned();
            new.push(".new");
            let mut written = fs_err::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            written.write_all(&text)?;
            fs_err::rename(&new, file)
        };
        whole().map_err(|source| DiskError::File { path: file.to_path_buf(), source })
    }

    fn carried(&self, layer: &Path) -> Result<Carried, DiskError> {
        let rest = fs_err::metadata(layer).map_err(|source| DiskError::File { path: layer.to_path_buf(), source })?.len();
        let Mark { bytes, .. } = read(layer)?;
        Ok(Carried { head: serde_json::to_vec(&Mark { below: None, bytes }).expect("a mark is JSON"), rest })
    }

    fn settle(&self, layer: &Path, below: Below<'_>) -> Result<(), DiskError> {
        match below {
            // As it came, which names no file of this host.
            Below::Image(_) if read(layer)?.below.is_none() => Ok(()),
            Below::Image(_) => Err(DiskError::Refused("it lies over a layer".into())),
            Below::Layer(below) => self.put_over(layer, below),
        }
    }

    fn merge(&self, layers: &[PathBuf], below: &Path, merged: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        if !goes_on() {
            return Err(DiskError::Stopped);
        }
        let Mark { bytes, .. } = read(layers.last().expect("a merge has layers"))?;
        make(merged, &Mark { below: Some(below.to_path_buf()), bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keep_the_order_of_a_chain() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let disk = RootDisk { image: path("image"), layers: Vec::new(), overlay: path("a") };
        Marks.create(&disk, 7).unwrap();
        assert!(Marks.create(&disk, 7).is_err(), "it exists");
        Marks.create_next(&path("a"), &path("a"), &path("b")).unwrap();
        Marks.create_next(&path("b"), &path("b"), &path("c")).unwrap();
        assert_eq!((Marks.below(&path("a")).unwrap(), Marks.below(&path("c")).unwrap()), (None, Some(path("b"))));
        Marks.merge(&[path("b"), path("c")], &path("a"), &path("d"), &|| true).unwrap();
        assert_eq!(Marks.below(&path("d")).unwrap(), Some(path("a")));
        Marks.put_over(&path("c"), &path("d")).unwrap();
        assert_eq!(Marks.below(&path("c")).unwrap(), Some(path("d")));
        assert_eq!(Marks.carried(&path("b")).unwrap(), Marks.carried(&path("c")).unwrap(), "they hold the same: nothing");
        Marks.settle(&path("b"), Below::Layer(&path("c"))).unwrap();
        assert_eq!(Marks.below(&path("b")).unwrap(), Some(path("c")));
        assert!(matches!(Marks.merge(&[path("c")], &path("a"), &path("e"), &|| false), Err(DiskError::Stopped)));
        assert!(!path("e").exists());
    }
}
