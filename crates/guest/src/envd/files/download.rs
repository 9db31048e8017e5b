//! Sending a file: whole, a range of it, or compressed; never more of it in memory than one chunk.
//!
//! Files of `/proc` and its like have content but no size, or a made-up one; they are sent until they end.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    time::SystemTime,
};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use fs_err::os::unix::fs::OpenOptionsExt;
use futures::{Stream, stream};
use nix::{fcntl::OFlag, sys::statfs::fstatfs};

use super::{
    blocking,
    encoding::{self, Coding},
};
use crate::envd::{error::ApiError, trouble::Trouble};

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// File systems whose files have no true size: proc, sysfs, cgroup2, debugfs, tracefs (`linux/magic.h`).
const SIZELESS_MAGICS: [i64; 5] = [0x9fa0, 0x6265_6572, 0x6367_7270, 0x6462_6720, 0x7472_6163];

/// An open file and what is known of it.
struct Source {
    file: File,
    /// `None`: it ends when it ends.
    size: Option<u64>,
    modified: Option<SystemTime>,
}

/// Answers a download of `path`.
pub(super) async fn serve(path: PathBuf, headers: &HeaderMap) -> Result<Response, ApiError> {
    let opened = path.clone();
    let source = blocking(move || open(&opened)).await?;
    let partial = [header::RANGE, header::IF_RANGE, header::IF_MODIFIED_SINCE, header::IF_NONE_MATCH];
    let coding = if partial.iter().any(|name| headers.contains_key(name)) {
        encoding::identity_accepted(headers).then_some(Coding::Identity)
    } else {
        encoding::negotiate(headers)
    };
    let coding = coding
        .ok_or_else(|| ApiError::new(StatusCode::NOT_ACCEPTABLE, "no acceptable encoding: supported are identity and gzip"))?;

    let mut answer = match (coding, source.size) {
        (Coding::Gzip, _) => {
            let mut answer = Body::from_stream(compressed(source.file)).into_response();
            answer.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            answer
        }
        (Coding::Identity, None) => Body::from_stream(plain(source.file, None)).into_response(),
        (Coding::Identity, Some(size)) => sized(source, size, headers).await?,
    };
    let fields = answer.headers_mut();
    fields.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    if !fields.contains_key(header::CONTENT_TYPE) {
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(&path)));
    }
    if let Some(disposition) = disposition(&path) {
        fields.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(answer)
}

fn open(path: &Path) -> Result<Source, ApiError> {
    let shown = path.display();
    let failed = |error: &io::Error| match (error.kind(), Trouble::of(error)) {
        // Below a file there is nothing.
        (io::ErrorKind::NotADirectory, _) | (_, Trouble::Absent) => Trouble::Absent.api(format!("path '{shown}' does not exist")),
        (_, trouble) => trouble.api(format!("error opening file '{shown}': {error}")),
    };
    let found = fs_err::metadata(path).map_err(|error| failed(&error))?;
    if found.is_dir() {
        return Err(ApiError::bad_request(format!("path '{shown}' is a directory")));
    }
    let special = || ApiError::bad_request(format!("path '{shown}' is not a regular file"));
    // A pipe or a device may never end, and a socket cannot be opened.
    if !found.is_file() {
        return Err(special());
    }
    // Not blocking, should a pipe have taken the file's place.
    let mut options = fs_err::OpenOptions::new();
    let file = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(|error| failed(&error))?.into_file();
    let found = file.metadata().map_err(|error| failed(&error))?;
    if !found.is_file() {
        return Err(special());
    }
    let sizeless = fstatfs(&file).is_ok_and(|system| SIZELESS_MAGICS.contains(&system.filesystem_type().0));
    Ok(Source { size: (!sizeless).then_some(found.len()), modified: found.modified().ok(), file })
}

/// A file of known size: whole or in part, or nothing when the client has it already.
async fn sized(source: Source, size: u64, headers: &HeaderMap) -> Result<Response, ApiError> {
    let modified = source.modified.map(httpdate::HttpDate::from);
    let date_of = |name| headers.get(name).and_then(|value| value.to_str().ok()?.parse::<httpdate::HttpDate>().ok());
    let mut fields = HeaderMap::new();
    fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(value) = modified.and_then(|date| HeaderValue::from_str(&date.to_string()).ok()) {
        fields.insert(header::LAST_MODIFIED, value);
    }
    let unchanged = date_of(header::IF_MODIFIED_SINCE).is_some_and(|since| modified.is_some_and(|modified| modified <= since));
    if unchanged && !headers.contains_key(header::IF_NONE_MATCH) {
        return Ok((StatusCode::NOT_MODIFIED, fields).into_response());
    }
    // A range of another version of the file would not fit what the client has.
    let same_version = !headers.contains_key(header::IF_RANGE) || modified.is_some() && date_of(header::IF_RANGE) == modified;
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).filter(|_| same_version);
    let (status, range) = match asked.map_or(RequestedRange::Whole, |asked| parse_range(asked, size)) {
        RequestedRange::Whole => (StatusCode::OK, 0..size),
        RequestedRange::Part(range) => {
            let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            fields.insert(header::CONTENT_RANGE, HeaderValue::from_str(&value).expect("digits and punctuation"));
            (StatusCode::PARTIAL_CONTENT, range)
        }
        RequestedRange::Beyond => {
            let mut refusal =
                ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, "the range begins after the end of the file").into_response();
            let value = HeaderValue::from_str(&format!("bytes */{size}")).expect("digits and punctuation");
            refusal.headers_mut().insert(header::CONTENT_RANGE, value);
            return Ok(refusal);
        }
    };
    let length = range.end - range.start;
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    let mut file = source.file;
    let file = blocking(move || {
        let sought = file.seek(SeekFrom::Start(range.start));
        sought.map_err(|error| ApiError::internal(format!("cannot seek: {error}"))).map(|_| file)
    })
    .await?;
    Ok((status, fields, Body::from_stream(plain(file, Some(length)))).into_response())
}

/// The part that a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum RequestedRange {
    /// Everything; also for several ranges or none that is understood, which a server may ignore (RFC 9110, 14.2).
    Whole,
    Part(Range<u64>),
    Beyond,
}

fn parse_range(asked: &str, size: u64) -> RequestedRange {
    let Some((first, last)) = asked.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return RequestedRange::Whole;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return RequestedRange::Whole,
    };
    if range.start >= range.end { RequestedRange::Beyond } else { RequestedRange::Part(range) }
}

/// The file's bytes from where it stands: `length` of them, or all.
fn plain(file: File, length: Option<u64>) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::unfold(Some((file, length)), |state| async {
        let (mut file, left) = state?;
        let want = left.map_or(CHUNK_BYTES, |left| usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES));
        if want == 0 {
            return None;
        }
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; want];
            let count = read_some(&mut file, &mut chunk)?;
            chunk.truncate(count);
            Ok((file, Bytes::from(chunk)))
        });
        match read.await.map_err(io::Error::other).and_then(|result: io::Result<_>| result) {
            Err(error) => Some((Err(error), None)),
            // It shrank: when a length has been promised, the connection must break.
            Ok((_, chunk)) if chunk.is_empty() => left.map(|_| (Err(io::ErrorKind::UnexpectedEof.into()), None)),
            Ok((file, chunk)) => {
                let left = left.map(|left| left - chunk.len() as u64);
                Some((Ok(chunk), Some((file, left))))
            }
        }
    })
}

/// The file's bytes, compressed.
fn compressed(file: File) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    stream::unfold(Some((file, encoder)), |state| async {
        let (mut file, mut encoder) = state?;
        let step = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; CHUNK_BYTES];
            // Small files in one step; otherwise until something comes out.
            loop {
                let count = read_some(&mut file, &mut chunk)?;
                if count == 0 {
                    return Ok((Bytes::from(encoder.finish()?), None));
                }
                encoder.write_all(&chunk[..count])?;
                if !encoder.get_ref().is_empty() {
                    let out = std::mem::take(encoder.get_mut());
                    return Ok((Bytes::from(out), Some((file, encoder))));
                }
            }
        });
        match step.await.map_err(io::Error::other).and_then(|result: io::Result<_>| result) {
            Ok((bytes, rest)) => Some((Ok(bytes), rest)),
            Err(error) => Some((Err(error), None)),
        }
    })
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// `inline` with the file's name, quoted or percent-encoded where it must be (RFC 6266).
fn disposition(path: &Path) -> Option<HeaderValue> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let value = if name.bytes().all(token) {
        format!("inline; filename={name}")
    } else if name.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        format!("inline; filename=\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        let encoded: String =
            name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect();
        format!("inline; filename*=utf-8''{encoded}")
    };
    HeaderValue::from_str(&value).ok()
}

/// By extension, for what browsers show; bytes otherwise.
fn content_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()).unwrap_or_default() {
        "txt" | "log" | "md" | "py" | "rs" | "sh" | "toml" | "yaml" | "yml" | "csv" => "text/plain; charset=utf-8",
        "html" | "htm" => "text/html; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "json" => "application/json",
        "xml" => "text/xml; charset=utf-8",
        "pdf" => "application/pdf",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "svg" => "image/svg+xml",
        "webp" => "image/webp",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_has_them() {
        for (wish, expected) in [
            ("bytes=0-0", RequestedRange::Part(0..1)),
            ("bytes=2-", RequestedRange::Part(2..10)),
            ("bytes=-3", RequestedRange::Part(7..10)),
            ("bytes=-30", RequestedRange::Part(0..10)),
            ("bytes=5-500", RequestedRange::Part(5..10)),
            ("bytes=10-", RequestedRange::Beyond),
            ("bytes=-0", RequestedRange::Beyond),
            ("bytes=3-2", RequestedRange::Whole),
            ("bytes=0-1,3-4", RequestedRange::Whole),
            ("lines=0-1", RequestedRange::Whole),
            ("bytes=x-y", RequestedRange::Whole),
        ] {
            assert_eq!(parse_range(wish, 10), expected, "{wish}");
        }
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Beyond);
    }

    #[test]
    fn names_are_quoted_where_they_must_be() {
        for (name, expected) in [
            ("a.txt", "inline; filename=a.txt"),
            ("a b.txt", "inline; filename=\"a b.txt\""),
            ("a\"b", "inline; filename=\"a\\\"b\""),
            ("\u{e9}", "inline; filename*=utf-8''%C3%A9"),
        ] {
            assert_eq!(disposition(&Path::new("/x").join(name)).unwrap(), expected);
        }
    }
}
