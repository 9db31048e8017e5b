//! qcow2 as the form of disks: raw image, qcow2 layers, qcow2 overlay.

use std::path::{Path, PathBuf};

use super::{Backing, CreateError, Format, InspectError, MergeError, carried, create, inspect, merge, rebase, vet};
use crate::disk::{Below, Carried, DiskError, DiskFormat, ImageForm, RootDisk};

/// Disks in qcow2 files.
#[derive(Debug, Clone, Copy)]
pub struct Qcow2;

/// The chain below an overlay, lowest first.
pub(crate) fn chain(disk: &RootDisk) -> Vec<Backing> {
    let image = Backing { path: disk.image.clone(), format: Format::Raw };
    std::iter::once(image).chain(disk.layers.iter().map(|path| layer(path))).collect()
}

fn layer(path: &Path) -> Backing {
    Backing { path: path.to_path_buf(), format: Format::Qcow2 }
}

impl DiskFormat for Qcow2 {
    fn extension(&self) -> &'static str {
        "qcow2"
    }

    fn layers_are_directories(&self) -> bool {
        false
    }

    fn holds_writes(&self) -> bool {
        true
    }

    fn image_form(&self) -> ImageForm {
        ImageForm::Ext4
    }

    fn create(&self, disk: &RootDisk, bytes: u64) -> Result<(), DiskError> {
        let below = chain(disk).pop().expect("a disk has an image at least");
        Ok(create(&disk.overlay, &below, bytes)?)
    }

    fn create_next(&self, current: &Path, sealed: &Path, next: &Path) -> Result<(), DiskError> {
        let bytes = inspect(current)?.virtual_bytes;
        Ok(create(next, &layer(sealed), bytes)?)
    }

    fn below(&self, file: &Path) -> Result<Option<PathBuf>, DiskError> {
        Ok(inspect(file)?.backing.map(|below| below.path))
    }

    fn put_over(&self, file: &Path, below: &Path) -> Result<(), DiskError> {
        Ok(rebase(file, &layer(below))?)
    }

    fn carried(&self, path: &Path) -> Result<Carried, DiskError> {
        let head = carried(path)?;
        let rest = head.len() as u64;
        Ok(Carried { head, rest })
    }

    fn settle(&self, path: &Path, below: Below<'_>) -> Result<(), DiskError> {
        vet(path)?;
        let below = match below {
            Below::Image(image) => Backing { path: image.to_path_buf(), format: Format::Raw },
            Below::Layer(below) => layer(below),
        };
        Ok(rebase(path, &below)?)
    }

    fn merge(&self, layers: &[PathBuf], below: &Path, merged: &Path, goes_on: &dyn Fn() -> bool) -> Result<(), DiskError> {
        Ok(merge(layers, &layer(below), merged, goes_on).map(drop)?)
    }
}

impl From<CreateError> for DiskError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Write { path, source } => Self::File { path, source },
            CreateError::NameTooLong { .. } | CreateError::Size { .. } => Self::Refused(Box::new(error)),
        }
    }
}

impl From<InspectError> for DiskError {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Read { path, source } => Self::File { path, source },
            InspectError::Malformed { .. } => Self::Refused(Box::new(error)),
        }
    }
}

impl From<MergeError> for DiskError {
    fn from(error: MergeError) -> Self {
        match error {
            MergeError::Stopped => Self::Stopped,
            MergeError::Write { path, source } => Self::File { path, source },
            MergeError::Layer(error) => error.into(),
            MergeError::Size { .. } | MergeError::Shared | MergeError::Name { .. } => Self::Refused(Box::new(error)),
        }
    }
}
