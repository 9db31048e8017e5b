//! A stranger's layer, put where it is seen over the files of an image.
//!
//! The kernel merges both, so that nothing of the image below has to be read or copied to change some of it. A file that the layer says
//! is gone is a device 0:0 there, the overlay's own word for it. Paths are resolved in memory and written into directories that
//! were just made, as those of container images are; no attribute that the overlay would obey is taken from the layer.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use fs_err as fs;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::view::set_modified;
use crate::oci::{
    layer::{self, LayerError},
    tree::Tree,
    write::write,
};

/// Why changes cannot be laid over an image.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// They cannot be read.
    #[error("cannot read the changes in `{path}`")]
    Read {
        /// Their archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// They say that something is gone from where they have nothing, or that they have it.
    #[error("cannot take changes that contradict themselves about `{path}`")]
    Contradiction {
        /// What is to be gone, as far as it can be shown.
        path: String,
    },
    /// They cannot be written.
    #[error("cannot lay changes over an image")]
    Write(#[source] io::Error),
}

/// Puts the layer at `to`, which must not exist yet.
pub(super) fn make(layer: &Path, to: &Path) -> Result<(), ChangesError> {
    let read = |source| ChangesError::Read { path: layer.to_path_buf(), source };
    let mut file = fs::File::open(layer).map_err(ChangesError::Write)?.into_parts().0;
    let mut tree = Tree::default();
    let left_out = layer::read(&file, 0, &mut tree).map_err(read)?;
    if left_out > 0 {
        tracing::debug!(left_out, "device nodes and pipes of a sandbox are left out");
    }
    file.seek(SeekFrom::Start(0)).map_err(ChangesError::Write)?;
    let gone = layer::gone(&file).map_err(read)?;
    let place = to.parent().unwrap_or(to);
    fs::create_dir_all(place).map_err(ChangesError::Write)?;
    let layers: [File; 1] = [file];
    write(&tree, &layers, to).map_err(ChangesError::Write)?;
    gone.iter().try_for_each(|path| whiteout(to, path))
}

/// Says that what is at `path` below `root` is gone. No link is passed.
fn whiteout(root: &Path, path: &Path) -> Result<(), ChangesError> {
    let contradiction = || ChangesError::Contradiction { path: path.to_string_lossy().chars().take(200).collect() };
    let mut directory = root.to_path_buf();
    for name in path.parent().into_iter().flat_map(Path::iter) {
        directory.push(name);
        if !fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir()) {
            return Err(contradiction());
        }
    }
    let place = directory.join(path.file_name().unwrap_or(OsStr::new("")));
    let say = || {
        let time = fs::metadata(&directory)?.modified()?;
        mknod(&place, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0))?;
        set_modified(&directory, time)
    };
    match say() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(contradiction()),
        said => said.map_err(ChangesError::Write),
    }
}
