//! Files of a sandbox: listed, fetched, stored and edited by way of its envd.
//!
//! What a sandbox's file holds is a stranger's: it is saved and not shown, whatever it calls itself. Images are shown only where their
//! first bytes are an image's that no browser runs anything of, under that type, and as of no origin.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Redirect, Response},
};
use firkin_dashboard::{
    files::{self as pages, Entry, Kind, Listing},
    frame::Section,
};
use firkin_runtime::sandbox::{RuntimeSandbox, SandboxId};
use firkin_wire::envd::filesystem::{EntryInfo, FileType, ListDirRequest, MakeDirRequest, RemoveRequest};
use http::{HeaderValue, Method, StatusCode, header};
use jiff::Timestamp;

use super::{
    HOME, Visitor, answer,
    envd::{Envd, USERS},
    form::Form,
    place,
    sandbox::head,
};
use crate::{
    App,
    error::ApiError,
    extract::{Sandbox, collect},
    listing::Query,
};

/// Entries of a directory that are shown.
const MAX_ENTRIES: usize = 1000;

/// Longest path: the kernel's own limit.
const MAX_PATH_BYTES: usize = 4096;

/// Longest text that is edited in a page, which comes back as a form of three times as much at most.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// Largest image that is shown.
const MAX_IMAGE_BYTES: usize = 16 << 20;

/// Longest answer of envd that says why it did not do something.
const MAX_REFUSAL_BYTES: usize = 8 << 10;

/// Where one begins.
const FIRST: &str = "/home/user";

/// Names of images that can be shown.
const IMAGES: [&str; 5] = ["png", "jpg", "jpeg", "gif", "webp"];

/// The sandbox and its envd. Files are looked at as root: it is the team's own sandbox, and all of it.
pub(super) fn envd(app: &App, visitor: &Visitor, id: &SandboxId) -> Result<(RuntimeSandbox, Envd), ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(id)?;
    let envd = Envd::of(app, &sandbox, USERS[1])?;
    Ok((sandbox, envd))
}

/// A path from the root, without steps back.
pub(super) fn path(text: Option<&str>) -> Result<String, ApiError> {
    let text = text.unwrap_or(FIRST);
    let odd =
        text.len() > MAX_PATH_BYTES || !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..");
    if odd { Err(ApiError::bad_request("`path` is a path from the root, without `..`")) } else { Ok(text.to_owned()) }
}

/// `GET /ui/sandboxes/{id}/files?path=`.
pub(super) async fn directory(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    query: Query,
) -> Result<Response, ApiError> {
    let (sandbox, envd) = envd(&app, &visitor, &id)?;
    let path = path(query.get("path"))?;
    let listed = envd.filesystem().list_dir(ListDirRequest { path: path.clone(), depth: 1, ..Default::default() }).await?;
    let mut entries: Vec<Entry> = listed.into_owned().entries.into_iter().map(entry).collect();
    entries.sort_by(|a, b| (a.kind != Kind::Directory, &a.name).cmp(&(b.kind != Kind::Directory, &b.name)));
    let more = entries.len().saturating_sub(MAX_ENTRIES);
    entries.truncate(MAX_ENTRIES);
    let listing = Listing { path, entries, more, outcome: app.sessions.told(&visitor.ticket) };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::directory(&viewer, place(&viewer, Section::Sandboxes), &head(&sandbox), &listing)))
}

fn entry(info: EntryInfo) -> Entry {
    let is_directory = info.r#type == FileType::FILE_TYPE_DIRECTORY;
    let is_image = info.name.rsplit_once('.').is_some_and(|(_, end)| IMAGES.iter().any(|known| end.eq_ignore_ascii_case(known)));
    let kind = if is_directory {
        Kind::Directory
    } else if is_image {
        Kind::Image
    } else {
        Kind::File
    };
    let modified = info.modified_time.into_option().and_then(|at| Timestamp::new(at.seconds, at.nanos).ok());
    Entry {
        name: info.name,
        path: info.path,
        kind,
        size: u64::try_from(info.size).unwrap_or(0),
        permissions: info.permissions,
        owner: info.owner,
        modified,
        target: info.symlink_target,
    }
}

/// A file as envd gives it.
async fn fetch(envd: &Envd, path: &str) -> Result<Response<Body>, ApiError> {
    let query =
        form_urlencoded::Serializer::new(String::new()).append_pair("path", path).append_pair("username", USERS[1]).finish();
    let request = Request::builder().uri(format!("/files?{query}")).body(Body::empty());
    let response = envd.send(request.map_err(|error| ApiError::bad_request(error.to_string()))?).await?;
    checked(response, path).await
}

/// An answer of envd, if it did what it was asked for.
async fn checked(response: Response<Body>, path: &str) -> Result<Response<Body>, ApiError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = collect(response.into_body(), MAX_REFUSAL_BYTES).await.unwrap_or_default();
    let told: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let words = told.as_ref().and_then(|told| told["message"].as_str()).unwrap_or("the sandbox did not do it");
    let message = format!("{path}: {words}");
    Err(match status {
        StatusCode::NOT_FOUND => ApiError::not_found(message),
        StatusCode::FORBIDDEN => ApiError::forbidden(message),
        _ => ApiError::bad_request(message),
    })
}

/// The last part of a path as a name to save under: what could end a header or a name in it is not.
fn disposition(path: &str) -> HeaderValue {
    let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' }).collect();
    let whole: String = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC).to_string();
    let text = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{whole}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

/// `GET /ui/sandboxes/{id}/file?path=`: it is saved, as it comes.
pub(super) async fn download(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    query: Query,
) -> Result<Response, ApiError> {
    let (_, envd) = envd(&app, &visitor, &id)?;
    let path = path(query.get("path"))?;
    let (parts, body) = fetch(&envd, &path).await?.into_parts();
    let mut response = body.into_response();
    let headers = response.headers_mut();
    if let Some(length) = parts.headers.get(header::CONTENT_LENGTH) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, disposition(&path));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONFINED));
    Ok(response)
}

/// What a stranger's bytes may do under this origin: nothing.
pub(super) const CONFINED: &str = "default-src 'none'; sandbox; frame-ancestors 'none'";

/// `GET /ui/sandboxes/{id}/preview?path=`: the page around an image.
pub(super) async fn preview(visitor: Visitor, Sandbox(id): Sandbox, query: Query) -> Result<Response, ApiError> {
    let sandbox = visitor.caller.runtime.sandbox(&id)?;
    let viewer = visitor.viewer();
    Ok(answer::page(pages::preview(place(&viewer, Section::Sandboxes), &head(&sandbox), &path(query.get("path"))?)))
}

/// `GET /ui/sandboxes/{id}/image?path=`.
pub(super) async fn image(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    query: Query,
) -> Result<Response, ApiError> {
    let (_, envd) = envd(&app, &visitor, &id)?;
    let path = path(query.get("path"))?;
    let bytes = collect(fetch(&envd, &path).await?.into_body(), MAX_IMAGE_BYTES).await?;
    let media_type = image_type(&bytes).ok_or_else(|| ApiError::bad_request("this is no image that is shown: download it"))?;
    Ok(([(header::CONTENT_TYPE, media_type), (header::CONTENT_SECURITY_POLICY, CONFINED)], bytes).into_response())
}

/// What begins as an image of a kind that is only pixels.
pub(super) fn image_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

/// `GET /ui/sandboxes/{id}/edit?path=`: a text, or an empty one where there is none yet.
pub(super) async fn edit(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    query: Query,
) -> Result<Response, ApiError> {
    let (sandbox, envd) = envd(&app, &visitor, &id)?;
    let path = path(query.get("path"))?;
    let text = match fetch(&envd, &path).await {
        Ok(response) => {
            let bytes = collect(response.into_body(), MAX_TEXT_BYTES).await?;
            String::from_utf8(bytes.into()).map_err(|_| ApiError::bad_request("this is no text: download it"))?
        }
        Err(error) if error.status() == StatusCode::NOT_FOUND => String::new(),
        Err(error) => return Err(error),
    };
    let viewer = visitor.viewer();
    Ok(answer::page(pages::edit(&viewer, place(&viewer, Section::Sandboxes), &head(&sandbox), &path, &text)))
}

/// Stores what comes as a file.
pub(super) async fn store(envd: &Envd, path: &str, body: Body) -> Result<(), ApiError> {
    let query =
        form_urlencoded::Serializer::new(String::new()).append_pair("path", path).append_pair("username", USERS[1]).finish();
    let request = Request::builder().method(Method::POST).uri(format!("/files?{query}"));
    let request = request.header(header::CONTENT_TYPE, "application/octet-stream").body(body);
    let response = envd.send(request.map_err(|error| ApiError::bad_request(error.to_string()))?).await?;
    checked(response, path).await.map(drop)
}

/// Back to a directory, which says what was done.
pub(super) fn back(app: &App, visitor: &Visitor, (id, directory): (&SandboxId, &str), outcome: Vec<String>) -> Response {
    app.sessions.tell(&visitor.ticket, outcome);
    let query = form_urlencoded::Serializer::new(String::new()).append_pair("path", directory).finish();
    Redirect::to(&format!("{HOME}/{id}/files?{query}")).into_response()
}

/// `POST /ui/sandboxes/{id}/files/save`.
pub(super) async fn save(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let (_, envd) = envd(&app, &form.visitor, &id)?;
    let path = path(Some(form.need("path")?))?;
    // Forms have line breaks of the network's.
    let text = form.fields.get("text").unwrap_or_default().replace("\r\n", "\n");
    store(&envd, &path, Body::from(text)).await?;
    Ok(back(&app, &form.visitor, (&id, pages::parent(&path)), vec![format!("{path} is stored.")]))
}

/// `POST /ui/sandboxes/{id}/files/directory`.
pub(super) async fn make(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let (_, envd) = envd(&app, &form.visitor, &id)?;
    let directory = path(Some(form.need("path")?))?;
    let made = path(Some(&format!("{}/{}", directory.trim_end_matches('/'), form.need("name")?)))?;
    envd.filesystem().make_dir(MakeDirRequest { path: made.clone(), ..Default::default() }).await?;
    Ok(back(&app, &form.visitor, (&id, &made), vec![format!("{made} was made.")]))
}

/// `POST /ui/sandboxes/{id}/files/remove`.
pub(super) async fn remove(State(app): State<Arc<App>>, Sandbox(id): Sandbox, form: Form) -> Result<Response, ApiError> {
    let (_, envd) = envd(&app, &form.visitor, &id)?;
    let path = path(Some(form.need("path")?))?;
    if path.trim_matches('/').is_empty() {
        return Err(ApiError::bad_request("the root is not removed"));
    }
    envd.filesystem().remove(RemoveRequest { path: path.clone(), ..Default::default() }).await?;
    Ok(back(&app, &form.visitor, (&id, pages::parent(&path)), vec![format!("{path} is gone.")]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pixels_are_images() {
        assert_eq!(image_type(b"\x89PNG\r\n\x1a\n...."), Some("image/png"));
        for bytes in
            [&b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"[..], b"<html>", b"GIF89", b"RIFF____WAVE", b""]
        {
            assert_eq!(image_type(bytes), None);
        }
    }

    #[test]
    fn a_name_is_one_whatever_is_in_it() {
        let header = disposition("/a/b\"\r\nSet-Cookie: x=\u{e4}.html");
        let text = header.to_str().unwrap();
        assert!(text.starts_with("attachment; filename=\"b___Set-Cookie_ x__.html\"; filename*=UTF-8''b%22%0D%0A"), "{text}");
    }

    #[test]
    fn paths_lead_down_only() {
        for good in ["/", "/a b/ä", "/a/..b"] {
            assert!(path(Some(good)).is_ok(), "{good}");
        }
        for bad in ["", "a", "/a/../b", "/..", "/a\0", &format!("/{}", "a".repeat(MAX_PATH_BYTES))] {
            assert!(path(Some(bad)).is_err(), "{bad}");
        }
    }
}
