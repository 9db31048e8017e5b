//! Packages in; guest kernel, initramfs and root file system out.
//!
//! Everything a sandbox boots from is made on this machine, from the Debian packages that this machine's own apt is set up
//! to fetch and trust: there is no image to download and no host name in this code. Users may bring container images of their
//! own. Results live in a [`Cache`], keyed by what went into them, and are immutable: a result is whole or absent, is built
//! once however many processes ask, and once it is there needs neither apt nor a network.
//!
//! ```text
//!   guest_kernel   linux-image-*-cloud-amd64  --download, extract, depmod (never installed)-->  vmlinuz + modules
//!   initramfs      the guest agent + the few modules it needs to find its disk        -->  one cpio archive
//!   base_rootfs    packages, modules  --mmdebstrap, customise.sh, mke2fs-->  one sparse ext4 image, read-only, shared by all
//!   oci::image     a container image's layers  --checked, merged in memory, mke2fs-->  the same kind of image
//!   container_root one of these images, the guest agent  --mounted, mkfs.erofs-->  one EROFS image, for sandboxes of gVisor
//! ```
//!
//! External programs ([`command`]) run with a deadline and write to a log that errors name.

mod cache;
mod certificates;
pub mod command;
mod cpio;
mod debian;
mod erofs;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod initramfs;
mod interpreter;
mod kernel;
mod modules;
mod mount_point;
mod node;
pub mod oci;
mod own_kernel;
mod progress;
mod python;
mod rootfs;
pub mod sources;
mod unnamed;

pub use cache::{Cache, CacheError, Claim, Slot};
pub use certificates::{CertificateError, certificate_variables, host_certificates};
pub use debian::{AptError, compare_versions, install, refresh_lists};
pub use erofs::{CONTAINER_AGENT, ChangesError, ErofsError, ViewError, changed_root, container_root};
pub use initramfs::{Initramfs, InitramfsError, initramfs};
pub use kernel::{
    GuestKernel, KernelError, guest_kernel, is_newer_kernel, kept_kernel, kept_kernels, offered_kernel, renewed_kernel,
};
pub use modules::ModuleError;
pub use node::{NodeError, NodePackage};
pub use own_kernel::{OwnKernel, OwnKernelError, own_kernel};
pub use progress::{Event, ImageStep, Progress, Report};
pub use python::PythonError;
pub use rootfs::{Additions, HeavyPart, RootImage, RootSpec, RootfsError, base_rootfs, kept_rootfs, renewed_rootfs, rootfs};
pub use unnamed::{register_user, remove_unnamed_roots};
