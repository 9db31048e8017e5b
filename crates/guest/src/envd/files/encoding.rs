//! Content codings: which one a client wants, and gzip as a stream in bounded memory.

use std::io::{self, Write};

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures::{Stream, StreamExt, stream};

/// Input bytes decoded at once: gzip expands at most about 1032-fold, so at most 4 MiB come out.
const DECODE_STEP_BYTES: usize = 4 << 10;

/// How a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is.
    Identity,
    /// Compressed.
    Gzip,
}

/// Chooses the coding, or `None` when the client takes neither.
///
/// Libraries list every coding they know; compressing for them costs the guest's processor and saves a copy on the same host
/// nothing. So gzip is sent when it is the only coding named or when identity is refused.
pub(super) fn negotiate(headers: &HeaderMap) -> Option<Coding> {
    let wishes = wishes(headers);
    let weight = |name: &str| wishes.iter().find(|(coding, _)| coding == name).map(|&(_, weight)| weight);
    let any = weight("*");
    let gzip = weight("gzip").or(any).unwrap_or(0.0) > 0.0;
    let identity = weight("identity").or(any.filter(|&weight| weight == 0.0)).unwrap_or(1.0) > 0.0;
    let only_gzip = matches!(wishes.as_slice(), [(coding, weight)] if coding == "gzip" && *weight > 0.0);
    match (gzip, identity) {
        (true, _) if only_gzip => Some(Coding::Gzip),
        (_, true) => Some(Coding::Identity),
        (true, false) => Some(Coding::Gzip),
        (false, false) => None,
    }
}

/// Whether the file may be sent as it is, which ranges need.
pub(super) fn identity_accepted(headers: &HeaderMap) -> bool {
    let wishes = wishes(headers);
    let refused = |name: &str| wishes.iter().any(|(coding, weight)| coding == name && *weight == 0.0);
    let named = wishes.iter().any(|(coding, _)| coding == "identity");
    !(refused("identity") || refused("*") && !named)
}

fn wishes(headers: &HeaderMap) -> Vec<(String, f32)> {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let items = values.flat_map(|value| value.split(',')).map(str::trim).filter(|item| !item.is_empty());
    let parse = |item: &str| {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        (coding, weight.and_then(|weight| weight.parse().ok()).unwrap_or(1.0))
    };
    items.map(parse).collect()
}

/// Whether a request's body is gzip; an error names a coding that is not understood.
pub(super) fn body_is_gzip(headers: &HeaderMap) -> Result<bool, String> {
    let coding = headers.get(header::CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?")).trim();
    match coding.to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(false),
        "gzip" => Ok(true),
        _ => Err(format!("unsupported Content-Encoding: {coding}, supported: [gzip]")),
    }
}

/// The decoded bytes of a gzip stream. Ends with an error when the stream is damaged or cut.
pub(super) fn gunzip(
    input: impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin {
    let start = Some((input, MultiGzDecoder::new(Vec::new()), Bytes::new()));
    Box::pin(stream::unfold(start, |state| async {
        let (mut input, mut decoder, mut waiting) = state?;
        loop {
            if waiting.is_empty() {
                match input.next().await {
                    Some(Ok(bytes)) => waiting = bytes,
                    Some(Err(error)) => return Some((Err(error), None)),
                    None => {
                        return match decoder.finish() {
                            Ok(rest) if rest.is_empty() => None,
                            Ok(rest) => Some((Ok(rest.into()), None)),
                            Err(error) => Some((Err(error), None)),
                        };
                    }
                }
            }
            let step = waiting.split_to(waiting.len().min(DECODE_STEP_BYTES));
            if let Err(error) = decoder.write_all(&step) {
                return Some((Err(error), None));
            }
            let decoded = std::mem::take(decoder.get_mut());
            if !decoded.is_empty() {
                return Some((Ok(decoded.into()), Some((input, decoder, waiting))));
            }
        }
    }))
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn accept(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT_ENCODING, value.parse().unwrap())])
    }

    #[test]
    fn gzip_is_for_those_who_ask_for_nothing_else() {
        for (value, expected) in [
            ("", Some(Coding::Identity)),
            ("gzip", Some(Coding::Gzip)),
            ("GZIP;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0", Some(Coding::Identity)),
            ("zstd, gzip, br", Some(Coding::Identity)),
            ("gzip, identity;q=0", Some(Coding::Gzip)),
            ("*;q=0, gzip", Some(Coding::Gzip)),
            ("br", Some(Coding::Identity)),
            ("br, identity;q=0", None),
            ("*;q=0", None),
        ] {
            assert_eq!(negotiate(&accept(value)), expected, "{value}");
        }
        assert!(!identity_accepted(&accept("gzip, *;q=0")));
        assert!(identity_accepted(&accept("gzip, identity, *;q=0")));
    }

    #[tokio::test]
    async fn gunzip_survives_any_cut_and_notices_damage() {
        let text = vec![7; 300_000];
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&text).unwrap();
        let packed = encoder.finish().unwrap();
        for size in [1, 7, packed.len()] {
            let chunks: Vec<_> = packed.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
            let out: Vec<u8> = gunzip(stream::iter(chunks)).map(|chunk| chunk.unwrap()).collect::<Vec<_>>().await.concat();
            assert_eq!(out, text);
        }
        let cut = stream::iter([Ok(Bytes::copy_from_slice(&packed[..packed.len() - 4]))]);
        assert!(gunzip(cut).any(async |chunk| chunk.is_err()).await);
        let noise = stream::iter([Ok(Bytes::from_static(b"not gzip at all"))]);
        assert!(gunzip(noise).any(async |chunk| chunk.is_err()).await);
    }
}
