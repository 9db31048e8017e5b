//! Container images: a reference in, one root file system out.

pub mod layer;
pub mod tree;
mod write;
