//! Archives: an artifact with all that it stands on as one stream, for another host.
//!
//! ```text
//!   zstd( tar( archive.json   format, what it is of, manifests, size and digest of every member and root image
//!              blobs/<blake3> root images, layers, members: each content once, in the order in which the header names them ) )
//! ```
//!
//! The header comes first, so that an archive is refused before any of it is written: what is foreign, what contradicts itself, and what
//! would take the place of something else. What follows is believed as far as the header's digests go, and files are called by digests and
//! ids of ours, never by what an archive calls them.
//!
//! What differs between hosts is left out: where the root image is, and what a layer names as the file below it. So the digest of a layer
//! is that of what it [carries](firkin_engine::DiskFormat::carried), and hosts with the same layer agree on it. A host that takes one in
//! puts its own paths in, and records what the member is with them.
//!
//! What has arrived is kept by its digest until an archive is whole (`incoming/<blake3>`), so that one which was cut off is not written
//! again; a content that was cut off goes on where it was (`blobs/<blake3>@<bytes>`). Then it becomes visible as anything does that is published: by renames, the artifact's own last.

mod composed;
mod entries;
mod header;
mod landing;
mod pack;
mod sparse;
mod stream;
mod unpack;

#[cfg(test)]
mod tests;

pub use composed::{Packed, composed};
pub use header::{ARCHIVE_FORMAT, ArchiveHeader, ArchiveKind, CarriedArtifact, CarriedLayer, CarriedRoot, RootForm};
pub use pack::{Content, PackError, Packing};
pub use unpack::{Incoming, Survey, UnpackError, Unpacked};

pub(super) use landing::{INCOMING, Landing};
pub(crate) use stream::{Blocking, written};
pub(super) use unpack::Importing;

/// What has landed and was not used for so long goes with the next collection.
pub(super) const LANDED_FOR: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// Bytes that are read, digested and written at a time.
const CHUNK_BYTES: usize = 1 << 20;
