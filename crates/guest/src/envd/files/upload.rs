//! Receiving files, as one raw body or as parts of a form, straight to their place.
//!
//! A file is created, given to its user and then written, in this order and without a temporary name: watchers count on seeing
//! exactly that. A new file whose content does not arrive whole is removed again; one that existed is left cut short, as any
//! interrupted writer would.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::{chown, fchown},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json,
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use fs_err::os::unix::fs::OpenOptionsExt;
use futures::{
    Stream, StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use nix::fcntl::OFlag;
use rustix::io::Errno;
use serde::Serialize;

use super::{
    blocking, encoding,
    multipart::{Form, FormError, Part},
    no_space,
};
use crate::envd::{error::ApiError, paths, trouble::Trouble, users::User, xattrs};

/// Bytes gathered before they are written; also what one upload holds in memory.
const WRITE_BYTES: usize = 256 << 10;

/// Files of one form.
const MAX_PARTS: usize = 10_000;

/// Prefix of headers that carry metadata.
const METADATA_HEADER: &str = "x-metadata-";

/// For whom and where.
#[derive(Debug)]
pub(super) struct Target {
    /// Owner of what is created.
    pub(super) user: User,
    /// The directory that an empty path stands for.
    pub(super) default_workdir: Option<String>,
    /// The `path` parameter. A form may do without.
    pub(super) path: Option<String>,
}

/// One file received. Clients compare it field by field.
#[derive(Debug, Serialize)]
struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

/// Takes the body's file or files; answers what was written.
pub(super) async fn receive(target: Target, request: Request<Body>) -> Result<Response, ApiError> {
    let headers = request.headers();
    let metadata = metadata_of(headers);
    xattrs::check(&metadata).map_err(|error| ApiError::bad_request(format!("invalid metadata: {error}")))?;
    let gzip = encoding::body_is_gzip(headers)
        .map_err(|error| ApiError::bad_request(format!("error decompressing request body: {error}")))?;
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let expected_bytes = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let writer = Writer { metadata: Arc::new(metadata), expected_bytes };
    let request = if gzip { request.map(|body| Body::from_stream(encoding::gunzip(body_stream(body)))) } else { request };
    let written = if media_type == "application/octet-stream" {
        raw(&target, &writer, request).await?
    } else if media_type.starts_with("multipart/") {
        form(&target, &writer, &content_type, request).await?
    } else {
        let text = format!("unsupported content type: {content_type}, expected multipart/form-data or application/octet-stream");
        return Err(ApiError::bad_request(text));
    };
    Ok(Json(written).into_response())
}

fn metadata_of(headers: &HeaderMap) -> BTreeMap<String, String> {
    let pairs = headers.iter().filter_map(|(name, value)| {
        let key = name.as_str().strip_prefix(METADATA_HEADER)?;
        Some((key.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
    });
    pairs.collect()
}

fn body_stream(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    body.into_data_stream().map_err(io::Error::other)
}

async fn raw(target: &Target, writer: &Writer, request: Request<Body>) -> Result<Vec<Written>, ApiError> {
    let Some(path) = &target.path else {
        return Err(ApiError::bad_request("path query parameter is required for raw body upload"));
    };
    let path = paths::resolve(path, &target.user, target.default_workdir.as_deref())?;
    Ok(vec![writer.write(path, &target.user, body_stream(request.into_body()).boxed()).await?])
}

async fn form(target: &Target, writer: &Writer, content_type: &str, request: Request<Body>) -> Result<Vec<Written>, ApiError> {
    let broken = |error: FormError| ApiError::bad_request(format!("error reading form: {error}"));
    let mut form = Form::new(content_type, body_stream(request.into_body())).map_err(broken)?;
    let mut written: Vec<Written> = Vec::new();
    while let Some(part) = form.next().await.map_err(broken)? {
        if part.name.as_deref() != Some("file") {
            continue;
        }
        if written.len() == MAX_PARTS {
            return Err(ApiError::bad_request(format!("a form may hold at most {MAX_PARTS} files")));
        }
        let path = place_of(&part, target)?;
        if written.iter().any(|other| Path::new(&other.path) == path) {
            let text = format!(
                "you cannot upload multiple files to the same path '{}' in one upload request, \
                 only the first specified file was uploaded",
                path.display()
            );
            return Err(ApiError::bad_request(text));
        }
        let content =
            stream::unfold(&mut form, async |form| Some((form.chunk().await.map_err(io::Error::other).transpose()?, form)));
        written.push(writer.write(path, &target.user, content.boxed()).await?);
    }
    Ok(written)
}

/// Where a part goes: the request's path, else the part's file name, which may be a path.
fn place_of(part: &Part, target: &Target) -> Result<PathBuf, ApiError> {
    let name = target.path.as_deref().or(part.file_name.as_deref());
    let name = name.ok_or_else(|| ApiError::bad_request("filename not found in Content-Disposition header"))?;
    Ok(paths::resolve(name, &target.user, target.default_workdir.as_deref())?)
}

struct Writer {
    metadata: Arc<BTreeMap<String, String>>,
    expected_bytes: Option<u64>,
}

impl Writer {
    async fn write(
        &self,
        path: PathBuf,
        user: &User,
        mut content: BoxStream<'_, io::Result<Bytes>>,
    ) -> Result<Written, ApiError> {
        let (place, owner, expected_bytes) = (path.clone(), user.clone(), self.expected_bytes);
        let mut sink = blocking(move || Sink::create(place, &owner, expected_bytes)).await?;
        let mut gathered = BytesMut::new();
        while let Some(chunk) = content.next().await {
            let chunk = chunk.map_err(|error| ApiError::bad_request(format!("error reading request body: {error}")))?;
            gathered.extend_from_slice(&chunk);
            if gathered.len() >= WRITE_BYTES {
                let full = gathered.split().freeze();
                sink = blocking(move || sink.write(&full)).await?;
            }
        }
        let (last, metadata) = (gathered.freeze(), Arc::clone(&self.metadata));
        let metadata = blocking(move || sink.write(&last)?.finish(&metadata)).await?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Written { path: path.to_string_lossy().into_owned(), name, r#type: "file", metadata })
    }
}

/// A file being written. Dropped before its end, a file that is new goes again.
struct Sink {
    file: File,
    path: PathBuf,
    new: bool,
    expected_bytes: Option<u64>,
}

impl Sink {
    fn create(path: PathBuf, user: &User, expected_bytes: Option<u64>) -> Result<Self, ApiError> {
        let failed = |what: &str, error: &io::Error| match Trouble::of(error) {
            Trouble::Full => no_space(expected_bytes),
            trouble => trouble.api(format!("error {what}: {error}")),
        };
        if let Some(parent) = path.parent() {
            paths::make_dirs(parent, user).map_err(|error| failed("ensuring directories", &error))?;
        }
        let new = match fs_err::metadata(&path) {
            Ok(found) if found.is_dir() => {
                return Err(ApiError::bad_request(format!("path is a directory: {}", path.display())));
            }
            Ok(found) if !found.is_file() => {
                return Err(ApiError::bad_request(format!("path is not a regular file: {}", path.display())));
            }
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed("getting file info", &error)),
        };
        let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
        if !new {
            chown(&path, uid, gid).or_else(ignore_read_only).map_err(|error| failed("changing file ownership", &error))?;
        }
        let mut options = fs_err::OpenOptions::new();
        // Not blocking, should a pipe have taken the file's place.
        options.write(true).create(true).truncate(true).mode(0o666).custom_flags(OFlag::O_NONBLOCK.bits());
        let file = options.open(&path).map_err(|error| failed("opening file", &error))?.into_file();
        let sink = Self { file, path, new, expected_bytes };
        if new {
            fchown(&sink.file, uid, gid).map_err(|error| failed("changing file ownership", &error))?;
        }
        Ok(sink)
    }

    fn write(mut self, bytes: &[u8]) -> Result<Self, ApiError> {
        // An empty write would be an event of its own on some file systems.
        if !bytes.is_empty() {
            self.file.write_all(bytes).map_err(|error| match Trouble::of(&error) {
                Trouble::Full => no_space(self.expected_bytes),
                trouble => trouble.api(format!("error writing file: {error}")),
            })?;
        }
        Ok(self)
    }

    /// Attaches metadata; answers what the file now carries.
    fn finish(mut self, metadata: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
        match xattrs::replace(&self.file, metadata) {
            Ok(()) => {}
            // The content is there; what is told back is what was kept, which is nothing.
            Err(Errno::OPNOTSUPP) => tracing::debug!(path = %self.path.display(), "the file system keeps no metadata"),
            Err(Errno::NOSPC | Errno::DQUOT) => {
                return Err(ApiError::new(StatusCode::INSUFFICIENT_STORAGE, "not enough space for file metadata"));
            }
            Err(error) => return Err(ApiError::internal(format!("error writing file metadata: {error}"))),
        }
        self.new = false;
        Ok(if metadata.is_empty() { BTreeMap::new() } else { xattrs::read(&self.path).unwrap_or_default() })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.new
            && let Err(error) = fs_err::remove_file(&self.path)
        {
            tracing::debug!(%error, "cannot remove an upload that did not end");
        }
    }
}

/// Files of `/proc` and `/sys` can be written but belong to the kernel.
fn ignore_read_only(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }
}
