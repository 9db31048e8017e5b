//! An archive of contents that are packed already, each by itself, as a store of copies keeps them: nothing is packed anew, or looked at.
//!
//! What follows one another packed is, unpacked, what follows one another. So heads of entries are packed by themselves, and stand between.

use std::{collections::HashSet, io, io::Write as _};

use bytes::Bytes;
use futures::{StreamExt as _, future::BoxFuture, stream, stream::BoxStream};

use super::{
    header::{ArchiveHeader, HEADER, blob_name},
    pack::{LEVEL, entry},
};
use crate::artifact::{Coming, MemberIntegrity};

/// tar's unit.
const BLOCK: u64 = 512;

/// What an archive ends with: two empty blocks.
const END: usize = 1024;

/// Gives a content as it is kept: packed with zstd, or why it is not to be had.
pub type Packed = BoxStream<'static, io::Result<Bytes>>;

/// The archive with this header (JSON), without the contents of these digests. `get` is asked for each of the others when it is its turn. Who reads it finds out
/// whether they are what the header says.
pub fn composed(
    header: Bytes,
    without: &HashSet<String>,
    mut get: impl FnMut(MemberIntegrity) -> BoxFuture<'static, io::Result<Packed>> + Send + 'static,
) -> io::Result<Coming> {
    let of: ArchiveHeader = serde_json::from_slice(&header)?;
    let contents = of.blobs().into_iter().map(|blob| blob.content);
    let contents: Vec<MemberIntegrity> = contents.filter(|content| !without.contains(&content.blake3)).collect();
    let mut first = entry(HEADER, header.len() as u64).as_bytes().to_vec();
    first.extend_from_slice(&header);
    first.extend_from_slice(&padding(header.len() as u64));
    let parts = contents.into_iter().map(move |content| {
        let head = packed(entry(&blob_name(&content.blake3), content.bytes).as_bytes());
        let after = packed(&padding(content.bytes));
        let content = get(content);
        let content = stream::once(content).map(|content| content.unwrap_or_else(|error| stream::iter([Err(error)]).boxed()));
        stream::iter([head]).chain(content.flatten()).chain(stream::iter([after]))
    });
    let end = packed(&[0; END]);
    Ok(stream::iter([packed(&first)]).chain(stream::iter(parts).flatten()).chain(stream::iter([end])).boxed())
}

/// What follows a content of so many bytes, up to tar's unit.
fn padding(bytes: u64) -> Vec<u8> {
    vec![0; usize::try_from(bytes.next_multiple_of(BLOCK) - bytes).unwrap_or_default()]
}

fn packed(bytes: &[u8]) -> io::Result<Bytes> {
    let mut encoder = zstd::Encoder::new(Vec::new(), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}
