//! Signing in with an API key, and out.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{Request, State},
    response::{AppendHeaders, IntoResponse, Redirect, Response},
};
use firkin_dashboard::sign_in;
use firkin_runtime::keys::KeyDigest;
use http::{Uri, header};

use super::{
    HOME, SIGN_IN, Visitor, answer,
    form::{self, Form},
    is_encrypted, peer,
};
use crate::{
    App, audit,
    auth::{Caller, MAX_KEY_BYTES},
    error::ApiError,
    listing::Query,
};

/// Longest path that is come back to.
const MAX_NEXT_BYTES: usize = 512;
/// Longest form to sign in with: a key and a path, each byte of which may be sent as three. It is read before anything is known of its sender.
const MAX_FORM_BYTES: usize = 4096;

/// Where one signs in, and comes back from to this page.
pub(super) fn way_back(uri: &Uri) -> String {
    let wanted = uri.path_and_query().map(http::uri::PathAndQuery::as_str).filter(|next| is_ours(next) && *next != HOME);
    wanted.map_or_else(
        || SIGN_IN.to_owned(),
        |next| {
            let query = form_urlencoded::Serializer::new(String::new()).append_pair("next", next).finish();
            format!("{SIGN_IN}?{query}")
        },
    )
}

/// Whether this is a path of a page of ours, and of nothing that a browser could read otherwise.
fn is_ours(next: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'\\';
    next.len() <= MAX_NEXT_BYTES && next.starts_with("/ui/") && !next.contains("//") && next.bytes().all(plain)
}

/// `GET /ui/sign-in`.
pub(super) async fn page(query: Query) -> Response {
    answer::page(sign_in::page(None, query.get("next").filter(|next| is_ours(next))))
}

/// `POST /ui/sign-in`.
pub(super) async fn enter(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let (parts, body) = request.into_parts();
    let (encrypted, peer) = (is_encrypted(&parts.headers, &parts.extensions), peer(&parts));
    let before = app.sessions.find(&parts.headers, encrypted);
    let fields = form::read(Request::from_parts(parts, body), MAX_FORM_BYTES).await?;
    let next = fields.get("next").filter(|next| is_ours(next));
    let key = fields.get("key").unwrap_or_default().trim();
    let digest = KeyDigest::of(key);
    let known = app.host().authenticate_digest(digest).filter(|_| key.len() <= MAX_KEY_BYTES);
    let Some(known) = known.map(|known| Caller::of(&app, known)) else {
        tracing::debug!(?peer, "somebody tried to sign in with a key that is not good");
        let page = answer::page(sign_in::page(Some("This key is not valid here, or not any more."), next));
        return Ok((ApiError::unauthorized("the API key is not valid").status(), page).into_response());
    };
    // Whoever signs in is another one from here on.
    if let Some(before) = before {
        app.sessions.end(&before);
    }
    let cookie = app.sessions.begin(digest, known.team.clone(), encrypted);
    let by = Extension(audit::By(known));
    Ok((by, AppendHeaders([(header::SET_COOKIE, cookie)]), Redirect::to(next.unwrap_or(HOME))).into_response())
}

/// `POST /ui/sign-out`.
pub(super) async fn leave(State(app): State<Arc<App>>, Form { visitor, .. }: Form) -> Response {
    let Visitor { ticket, .. } = visitor;
    let gone = app.sessions.end(&ticket);
    (AppendHeaders([(header::SET_COOKIE, gone)]), Redirect::to(SIGN_IN)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_comes_back_to_pages_of_ours_only() {
        assert!(is_ours("/ui/sandboxes/iabc?x=1"));
        for next in
            ["", "/", "//evil.example", "/ui//evil.example", "/ui/\\evil", "https://evil.example/ui/", "/ui/\n", "/v2/sandboxes"]
        {
            assert!(!is_ours(next), "{next}");
        }
        assert_eq!(way_back(&Uri::from_static("/ui/sandboxes/iabc?a=b")), "/ui/sign-in?next=%2Fui%2Fsandboxes%2Fiabc%3Fa%3Db");
        assert_eq!(way_back(&Uri::from_static("/ui/sandboxes")), "/ui/sign-in");
    }
}
