//! Answers of the dashboard: pages, and parts of pages that are sent again only when they have changed.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

/// The type of pages.
pub(super) const HTML: &str = "text/html; charset=utf-8";
/// The type of what scripts read.
pub(super) const JSON: &str = "application/json; charset=utf-8";

/// A page.
pub(super) fn page(text: String) -> Response {
    ([(header::CONTENT_TYPE, HTML)], text).into_response()
}

/// What a script asks for again and again. It says what it has, and is told nothing if that is all there is.
pub(super) fn part(asked: &HeaderMap, media_type: &'static str, text: String) -> Response {
    let digest: String = Sha256::digest(text.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let tag = format!("\"{digest}\"");
    let known = asked.get(header::IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let tag = HeaderValue::from_str(&tag).expect("a digest is hexadecimal digits");
    if known {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    ([(header::ETAG, tag), (header::CONTENT_TYPE, HeaderValue::from_static(media_type))], text).into_response()
}
