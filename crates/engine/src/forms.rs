//! The forms in which root disks are kept by the engines that users have.

use crate::{DiskFormat, gvisor::Marks, qcow2::Qcow2};

/// All of them: what a file is, is known by how its name ends.
pub fn formats() -> [&'static dyn DiskFormat; 2] {
    [&Qcow2, &Marks]
}
