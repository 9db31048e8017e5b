//! Kernel modules: those that the initramfs names, in its order.

use std::{
    io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
};

/// One file name a line, relative to the directory it is in; dependencies come first.
const ORDER: &str = "/modules/order";

/// Why a module is not there.
#[derive(Debug, thiserror::Error)]
pub(super) enum ModuleError {
    /// The list cannot be read.
    #[error("cannot read the list of modules")]
    List(#[source] io::Error),
    /// The kernel refuses it.
    #[error("cannot load `{path}`")]
    Load {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: nix::Error,
    },
}

/// Loads them all. One that is missing, or of another kernel than the one that runs, is logged: a kernel may have it built in, and one
/// that was brought by the host's owner has to.
pub(super) fn load() -> Result<(), ModuleError> {
    let list = match fs_err::read_to_string(ORDER) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(ModuleError::List)?,
    };
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = Path::new(ORDER).with_file_name(name);
        let file = match fs_err::File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "cannot open a kernel module");
                continue;
            }
        };
        match finit_module(file.file(), c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) if is_of_another_kernel(error) => {
                tracing::warn!(path = %path.display(), %error, "a kernel module is not this kernel's");
            }
            Err(source) => return Err(ModuleError::Load { path, source }),
        }
    }
    Ok(())
}

/// Whether a module is refused because it was made for another release, or because the kernel loads none at all.
fn is_of_another_kernel(error: Errno) -> bool {
    matches!(error, Errno::ENOEXEC | Errno::ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_another_kernel_refuses_is_passed_over() {
        assert!(is_of_another_kernel(Errno::ENOEXEC) && is_of_another_kernel(Errno::ENOSYS));
        for fault in [Errno::ENOENT, Errno::ENOMEM, Errno::EPERM, Errno::EINVAL] {
            assert!(!is_of_another_kernel(fault), "{fault}");
        }
    }
}
