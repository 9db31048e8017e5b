//! The proxy's refusals for people: a browser gets a page where a program gets JSON.

use axum::{body::Body, response::Response};
use http::{HeaderMap, HeaderValue, header};

/// Whether the client is a browser that shows what it gets: only they ask for HTML by name.
pub(crate) fn wanted(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/html")))
}

/// A refusal as a page instead of its JSON. The message may hold what a client sent.
pub(crate) fn of(refusal: Response, message: &str) -> Response {
    let escaped = message.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let status = refusal.status();
    let title = format!("{} {}", status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1><p>{escaped}</p></body></html>\n"
    );
    let mut response = refusal.map(|_| Body::from(page));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}
