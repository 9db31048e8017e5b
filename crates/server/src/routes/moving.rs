//! What leaves for another host, and what comes from one: one file, which goes to and from the disk as it is read. Ours, and for who
//! administers the host.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use axum::{
    Extension, Json as Reply,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use firkin_runtime::{
    artifact::archive::ArchiveKind,
    moving::{ImportAs, ImportError, Imported, Leaving},
};
use futures::{Stream, stream};
use http::{HeaderMap, HeaderValue, header};
use tokio::{sync::Mutex, time::timeout};

use crate::{App, error::ApiError, extract::piece, listing::Query, nodes::OfEpoch};

/// How long a refused archive is heard out at most.
const HEAR_OUT: Duration = Duration::from_secs(10 * 60);

/// The media type of archives.
const ARCHIVE: HeaderValue = HeaderValue::from_static("application/zstd");

/// `GET /admin/export`, of one thing: `?template=`, `?snapshot=`, `?sandbox=` or `?artifact=`. `&part=header` gives only what the archive says of
/// itself; `&without=` leaves contents out, by their digests, and `&begun=` the first bytes of some, as `DIGEST:BYTES`.
pub(super) async fn export(State(app): State<Arc<App>>, query: Query) -> Result<Response, ApiError> {
    let names = ["template", "snapshot", "sandbox", "artifact"];
    // What a sandbox is held by is of the life that it had been in before it was looked for, or of a later one.
    let life = query.get("sandbox").and_then(|id| app.host().epoch(&id.parse().ok()?));
    let export = match names.map(|name| query.get(name).map(ToOwned::to_owned)) {
        [Some(name), None, None, None] => app.host().export(Leaving::Template(name)).await?,
        [None, Some(name), None, None] => app.host().export(Leaving::Snapshot(name)).await?,
        [None, None, Some(id), None] => app.host().export(Leaving::Sandbox(id.parse()?)).await?,
        [None, None, None, Some(id)] => {
            let id = id.parse().map_err(|_| ApiError::bad_request("`artifact` is not the id of an artifact"))?;
            app.host().export_artifact(&id).await?
        }
        _ => return Err(ApiError::bad_request("one of `template`, `snapshot`, `sandbox` and `artifact` is required")),
    };
    let life = life.map(OfEpoch).map(Extension);
    match query.get("part") {
        None => {}
        Some("header") => return Ok((life, [(header::CONTENT_TYPE, "application/json")], export.header()).into_response()),
        Some(_) => return Err(ApiError::bad_request("`part` must be `header`")),
    }
    let without = query.get("without").unwrap_or_default().split(',').map(ToOwned::to_owned).collect();
    let begun = query.get("begun").map(begun).transpose()?.unwrap_or_default();
    let export = export.without(&without).from(begun);
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, ARCHIVE);
    let name = format!("attachment; filename=\"{}.firkin\"", export.name);
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(name).map_err(|error| ApiError::internal(&error))?);
    Ok((life, headers, Body::from_stream(export.stream())).into_response())
}

/// How many bytes of which contents are left out.
fn begun(text: &str) -> Result<HashMap<String, u64>, ApiError> {
    let one = |said: &str| {
        let (digest, bytes) = said.split_once(':')?;
        Some((digest.to_owned(), bytes.parse().ok()?))
    };
    let all = text.split(',').filter(|said| !said.is_empty()).map(one).collect::<Option<_>>();
    all.ok_or_else(|| ApiError::bad_request("`begun` must be of `DIGEST:BYTES`"))
}

/// `POST /admin/import`: with `?kind=` only if it is of that, with `?name=` under another name. Nothing of the body is collected.
pub(super) async fn import(State(app): State<Arc<App>>, query: Query, body: Body) -> Result<Reply<Imported>, ApiError> {
    let kind = match query.get("kind") {
        None => None,
        Some("template") => Some(ArchiveKind::Template),
        Some("snapshot") => Some(ArchiveKind::Snapshot),
        Some("sandbox") => Some(ArchiveKind::Sandbox),
        Some(_) => return Err(ApiError::bad_request("`kind` must be `template`, `snapshot` or `sandbox`")),
    };
    let wanted = ImportAs { kind, name: query.get("name").map(ToOwned::to_owned) };
    let body = Arc::new(Mutex::new(body));
    let imported = app.host().import(pieces(Arc::clone(&app), Arc::clone(&body)), wanted).await;
    if imported.as_ref().is_err_and(|error| !matches!(error, ImportError::Stopping)) {
        hear_out(&app, &mut *body.lock().await).await;
    }
    Ok(Reply(imported?))
}

/// Takes what is still to come and throws it away: who sends an archive would find the connection closed, and not why. Archives are large, and
/// whoever may send one administers the host.
async fn hear_out(app: &App, body: &mut Body) {
    let all = async { while let Ok(Some(_)) = piece(app, body).await {} };
    drop(timeout(HEAR_OUT, all).await);
}

/// What comes of a body. A silence that is too long ends it.
fn pieces(app: Arc<App>, body: Arc<Mutex<Body>>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(Some((app, body)), async |from| {
        let (app, body) = from?;
        let piece = piece(&app, &mut *body.lock().await).await;
        match piece {
            Ok(Some(bytes)) => Some((Ok(bytes), Some((app, body)))),
            Ok(None) => None,
            Err(error) => Some((Err(io::Error::other(error.to_body().message)), None)),
        }
    })
}
