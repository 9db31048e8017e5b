//! How long the head of an HTTP message may be, the same for every server and client of ours that users' messages pass.
//!
//! What bounds a head is its bytes: 128 KiB of them, so that 64 KiB of headers pass wherever a server stands behind another. Their
//! number is bounded too, because whoever parses HTTP/1.1 sets aside room for so many before it knows how many there are.

/// Bytes of a head in HTTP/1.1, its first line included.
pub const MAX_BYTES: usize = 128 << 10;

/// Headers of a message. With as many, a head of [`MAX_BYTES`] has 64 bytes for each.
pub const MAX_HEADERS: usize = 2048;

/// The same in HTTP/2, which counts 32 bytes more for each header (RFC 9113, section 6.5.2).
pub const MAX_LIST_BYTES: u32 = (128 << 10) + 2048 * 32;
