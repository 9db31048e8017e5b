//! Volumes, and their content, which is guarded by each volume's own token.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Reply,
    body::{Body, Bytes},
    extract::{FromRequestParts, Path, State},
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    runtime::DestroyVolumeError,
    volumes::{Attributes, Content, Entry, Kind, Usage, VolumeError},
};
use firkin_wire::rest::storage::{NewVolume, Volume, VolumeAndToken, VolumeEntry, VolumeEntryChange, VolumeEntryKind};
use http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio_util::io::ReaderStream;

use crate::{
    App,
    auth::Caller,
    doors::Place,
    error::ApiError,
    extract::{Json, piece},
    listing::Query,
};

/// Bytes that a download has in hand.
const CHUNK_BYTES: usize = 128 << 10;

/// Of a refused upload so much is taken that clients get to hear why: some seconds of a fast network.
const MAX_THROWN_AWAY_BYTES: usize = 256 << 20;

/// And for so long.
const THROW_AWAY_DEADLINE: Duration = Duration::from_secs(5);

/// `POST /volumes`.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    body: Json<NewVolume>,
) -> Result<(StatusCode, Reply<VolumeAndToken>), ApiError> {
    let made = caller.runtime.volumes().create(&body.value.name).await?;
    Ok((StatusCode::CREATED, Reply(with_token((&app, &caller), made)?)))
}

/// `GET /volumes`.
pub(super) async fn list(caller: Caller) -> Result<Reply<Vec<Volume>>, ApiError> {
    let listed = caller.runtime.volumes().list().await?.into_iter();
    Ok(Reply(listed.map(|volume| in_list(&caller, volume)).collect::<Result<_, _>>()?))
}

/// `GET /volumes/{id}`.
pub(super) async fn detail(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Reply<VolumeAndToken>, ApiError> {
    let volume = caller.runtime.volumes().get(&id).await?;
    Ok(Reply(with_token((&app, &caller), volume)?))
}

/// `DELETE /volumes/{id}`.
pub(super) async fn destroy(caller: Caller, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    caller.runtime.destroy_volume(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn with_token((app, caller): (&App, &Caller), volume: firkin_runtime::volumes::Volume) -> Result<VolumeAndToken, VolumeError> {
    let token = volume.token.clone();
    Ok(VolumeAndToken { volume: in_list(caller, volume)?, token, domain: app.config.domain.clone() })
}

fn in_list(caller: &Caller, volume: firkin_runtime::volumes::Volume) -> Result<Volume, VolumeError> {
    let Usage { used_bytes, quota_bytes } = caller.runtime.volumes().usage(&volume)?;
    Ok(Volume { volume_id: volume.id, name: volume.name, used_bytes, quota_bytes: Some(quota_bytes) })
}

/// The volume that a path names, opened by the token that the request bears.
pub(super) struct Opened(Content);

impl FromRequestParts<Arc<App>> for Opened {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let malformed = |_| ApiError::bad_request("the path is malformed");
        let Path(id) = Path::<String>::from_request_parts(parts, app).await.map_err(malformed)?;
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let content = app.host().volumes().open(&id, token).await?;
        if let Some(place) = parts.extensions.get::<Place>() {
            place.know();
        }
        Ok(Self(content))
    }
}

/// `GET /volumecontent/{id}/path`.
pub(super) async fn stat(Opened(content): Opened, query: Query) -> Result<Reply<VolumeEntry>, ApiError> {
    Ok(Reply(shown(content.stat(path(&query)?).await?)))
}

/// `PATCH /volumecontent/{id}/path`.
pub(super) async fn change(
    Opened(content): Opened,
    query: Query,
    body: Json<VolumeEntryChange>,
) -> Result<Reply<VolumeEntry>, ApiError> {
    let body = body.value;
    let attributes = Attributes { uid: body.uid, gid: body.gid, mode: body.mode };
    Ok(Reply(shown(content.set(path(&query)?, attributes).await?)))
}

/// `DELETE /volumecontent/{id}/path`.
pub(super) async fn remove(Opened(content): Opened, query: Query) -> Result<StatusCode, ApiError> {
    content.remove(path(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /volumecontent/{id}/dir`.
pub(super) async fn entries(Opened(content): Opened, query: Query) -> Result<Reply<Vec<VolumeEntry>>, ApiError> {
    let depth = number(&query, "depth")?.unwrap_or(1);
    Ok(Reply(content.list(path(&query)?, depth).await?.into_iter().map(shown).collect()))
}

/// `POST /volumecontent/{id}/dir`.
pub(super) async fn make_dir(Opened(content): Opened, query: Query) -> Result<(StatusCode, Reply<VolumeEntry>), ApiError> {
    let made = content.make_dir(path(&query)?, attributes(&query)?, force(&query)?).await?;
    Ok((StatusCode::CREATED, Reply(shown(made))))
}

/// `GET /volumecontent/{id}/file`.
pub(super) async fn read(Opened(content): Opened, query: Query) -> Result<Response, ApiError> {
    let (file, length) = content.read(path(&query)?).await?;
    // What is appended meanwhile is not announced, so it is not sent.
    let body = Body::from_stream(ReaderStream::with_capacity(tokio::io::AsyncReadExt::take(file, length), CHUNK_BYTES));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((headers, body).into_response())
}

/// `PUT /volumecontent/{id}/file`. Nothing of the body is collected: it goes to the disk as it comes.
pub(super) async fn write(
    State(app): State<Arc<App>>,
    Opened(content): Opened,
    query: Query,
    mut body: Body,
) -> Result<(StatusCode, Reply<VolumeEntry>), ApiError> {
    let received = receive(&app, &content, &query, &mut body).await;
    if received.is_err() {
        throw_away(&mut body).await;
    }
    Ok((StatusCode::CREATED, Reply(shown(received?))))
}

async fn receive(app: &App, content: &Content, query: &Query, body: &mut Body) -> Result<Entry, ApiError> {
    let mut upload = content.write(path(query)?, attributes(query)?, force(query)?).await?;
    if let Some(length) = body.size_hint().exact() {
        upload.announce(length)?;
    }
    while let Some(bytes) = piece(app, body).await? {
        upload.push(&bytes).await?;
    }
    Ok(upload.finish().await?)
}

/// Takes what is still coming of an upload that is refused: many clients look for the answer only once they have sent all, and find the
/// connection closed otherwise. What is longer is cut off.
async fn throw_away(body: &mut Body) {
    let drain = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > MAX_THROWN_AWAY_BYTES {
                return;
            }
        }
    };
    drop(tokio::time::timeout(THROW_AWAY_DEADLINE, drain).await);
}

fn path(query: &Query) -> Result<&str, ApiError> {
    query.get("path").ok_or_else(|| ApiError::bad_request("`path` is required"))
}

fn attributes(query: &Query) -> Result<Attributes, ApiError> {
    let (uid, gid, mode) = (number(query, "uid")?, number(query, "gid")?, number(query, "mode")?);
    Ok(Attributes { uid, gid, mode })
}

fn number(query: &Query, name: &str) -> Result<Option<u32>, ApiError> {
    let parse = |text: &str| text.parse().map_err(|_| ApiError::bad_request(format!("`{name}` must be a number, not `{text}`")));
    query.get(name).map(parse).transpose()
}

fn force(query: &Query) -> Result<bool, ApiError> {
    match query.get("force").map(str::to_ascii_lowercase).as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(ApiError::bad_request(format!("`force` must be `true` or `false`, not `{other}`"))),
    }
}

fn shown(entry: Entry) -> VolumeEntry {
    VolumeEntry {
        name: entry.name,
        kind: match entry.kind {
            Kind::File => VolumeEntryKind::File,
            Kind::Directory => VolumeEntryKind::Directory,
            Kind::Symlink => VolumeEntryKind::Symlink,
            Kind::Unknown => VolumeEntryKind::Unknown,
        },
        path: entry.path,
        size: entry.size,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        atime: entry.accessed,
        mtime: entry.modified,
        ctime: entry.changed,
        target: entry.target,
    }
}

impl From<DestroyVolumeError> for ApiError {
    fn from(error: DestroyVolumeError) -> Self {
        match error {
            DestroyVolumeError::Volume(error) => error.into(),
            DestroyVolumeError::Store(error) => error.into(),
        }
    }
}

impl From<VolumeError> for ApiError {
    fn from(error: VolumeError) -> Self {
        match &error {
            VolumeError::Name | VolumeError::Path | VolumeError::Mode(_) | VolumeError::TooMany => {
                Self::bad_request(error.to_string())
            }
            VolumeError::TeamQuota(error) => Self::team_quota(error),
            VolumeError::Limit { .. } => Self::quota(&error, "delete one, or have the server keep more (`--max-volumes`)"),
            VolumeError::Quota { .. } => {
                Self::quota(&error, "remove files of it, or have the server give each more (`--volume-quota`)")
            }
            // The contract's status and words.
            VolumeError::Mounted(_) => Self::conflict(format!("{error}; end the sandboxes that have it first")),
            VolumeError::NameTaken(name) => Self::bad_request(format!("Volume with name '{name}' already exists")),
            VolumeError::Exists(_) | VolumeError::Kind { wanted: "file", .. } => Self::conflict(error.to_string()),
            VolumeError::NotFound(_) | VolumeError::PathNotFound(_) | VolumeError::Kind { .. } => {
                Self::not_found(error.to_string())
            }
            VolumeError::Token(_) => Self::unauthorized("the token does not open this volume"),
            VolumeError::Disk(pressure) => Self::disk(&error, pressure),
            VolumeError::File { .. } => Self::internal(&error),
        }
    }
}
