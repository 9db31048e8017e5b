//! Disks of another form than files: a directory for each overlay and layer.
//!
//! ```text
//!   <name>.tree/below     the path of what it lies over, as text; absent where that is the image
//!   <name>.tree/bytes     the size of the disk, in decimal digits
//!   <name>.tree/written/  what the guest wrote
//! ```
//!
//! An engine that shares a directory with its guest, or unpacks layers into one, keeps disks like this.

use std::{
    io::{self, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::disk::{Below, Carried, DiskError, DiskFormat, ImageForm, RootDisk};

/// A directory for each layer.
#[derive(Debug, Clone, Copy)]
pub struct Trees;

/// What the guest wrote, in a directory that is a disk; in a disk of another form the file itself.
pub(super) fn written(disk: &Path) -> PathBuf {
    if disk.is_dir() { disk.join("written").join("bytes") } else { disk.to_path_buf() }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_path_buf();
    move |source| DiskError::File { path, source }
}

fn make(at: &Path, below: Option<&Path>, bytes: &str) -> Result<(), DiskError> {
    let directory = |path: &Path| std::fs::DirBuilder::new().mode(0o700).create(path);
    let file = |path: &Path, content: &[u8]| {
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
    };
    let make = || {
        directory(at)?;
        directory(&at.join("written"))?;
        file(&written(at), b"")?;
        if let Some(below) = below {
            file(&at.join("below"), below.as_os_str().as_bytes())?;
        }
        file(&at.join("bytes"), bytes.as_bytes())
    };
    make().map_err(failed(at))
}

impl DiskFormat for Trees {
    fn extension(&self) -> &'static str {
        "tree"
    }

    fn layers_are_directories(&self) -> bool {
        true
    }

    fn holds_writes(&self) -> bool {
        true
    }

    fn image_form(&self) -> ImageForm {
        ImageForm::Ext4
    }

    fn create(&self, disk: &RootDisk, bytes: u64) -> Result<(), DiskError> {
        make(&disk.overlay, disk.layers.last().map(PathBuf::as_path), &bytes.to_string())
    }

    fn create_next(&self, current: &Path, sealed: &Path, next: &Path) -> Result<(), DiskError> {
        let bytes = fs::read_to_string(current.join("bytes")).map_err(failed(current))?;
        make(next, Some(sealed), &bytes)
    }

    fn below(&self, file: &Path) -> Result<Option<PathBuf>, DiskError> {
        match fs::read(file.join("below")) {
            Ok(path) => Ok(Some(PathBuf::from(std::ffi::OsString::from_vec(path)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_dir() => Ok(None),
            Err(error) => Err(failed(file)(error)),
        }
    }

    fn put_over(&self, file: &Path, below: &Path) -> Result<(), DiskError> {
        fs::write(file.join("below"), below.as_os_str().as_bytes()).map_err(failed(file))
    }

    fn carried(&self, layer: &Path) -> Result<Carried, DiskError> {
        Err(failed(layer)(io::ErrorKind::IsADirectory.into()))
    }

    fn settle(&self, layer: &Path, _: Below<'_>) -> Result<(), DiskError> {
        Err(failed(layer)(io::ErrorKind::IsADirectory.into()))
    }

    fn merge(&self, layers: &[PathBuf], below: &Path, merged: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        let top = layers.last().expect("a merge has layers");
        let bytes = fs::read_to_string(top.join("bytes")).map_err(failed(top))?;
        make(merged, Some(below), &bytes)?;
        let mut all = Vec::new();
        for layer in layers {
            if !goes_on() {
                return Err(DiskError::Stopped);
            }
            all.extend(fs::read(written(layer)).map_err(failed(layer))?);
        }
        fs::write(written(merged), all).map_err(failed(merged))
    }
}
