//! Root images: what a guest's disk is made of before anything has been done in it.

use std::path::PathBuf;

use serde::Serialize;

/// A root image, immutable and readable by everyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RootImage {
    /// The file, raw ext4. Where it is changes nothing of what is made of it.
    #[serde(skip)]
    pub path: PathBuf,
    /// Its digest.
    pub digest: String,
    /// Its size as the guest sees it, bytes.
    pub bytes: u64,
}
