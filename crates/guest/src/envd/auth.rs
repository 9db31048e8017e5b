//! Who may call envd, and as which user.
//!
//! With a token set, every request must carry it, except the health probe and `/files`, which checks a signature itself.
//! The user is taken from basic authentication, whose password is ignored: the token is what admits.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use firkin_wire::secret::equal;

use super::{
    error::ApiError,
    state::{EnvdState, Settings},
    users::{User, UserDb, UserError},
};

pub(crate) use firkin_wire::headers::ACCESS_TOKEN;

/// Refuses requests without the token, in the contract's words.
pub(super) async fn require_token(State(state): State<EnvdState>, request: Request<Body>, next: Next) -> Response {
    let settings = state.settings();
    let open = match request.uri().path() {
        "/health" => request.method() == Method::GET,
        "/files" => matches!(*request.method(), Method::GET | Method::HEAD | Method::POST),
        _ => false,
    };
    if open || settings.access_token.is_none() || token_of(request.headers(), &settings) == Token::Matches {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::UNAUTHORIZED,
        "unauthorized access, please provide a valid access token or method signing if supported",
    )
    .into_response()
}

/// The token in a request, compared with the sandbox's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    /// No header, or an empty one.
    Missing,
    /// It is the sandbox's token.
    Matches,
    /// It is not.
    Differs,
}

/// Compares the request's token with the sandbox's.
pub(crate) fn token_of(headers: &HeaderMap, settings: &Settings) -> Token {
    let given = headers.get(ACCESS_TOKEN).map(axum::http::HeaderValue::as_bytes).unwrap_or_default();
    match settings.access_token.as_deref() {
        _ if given.is_empty() => Token::Missing,
        Some(token) if equal(given, token.as_bytes()) => Token::Matches,
        _ => Token::Differs,
    }
}

/// The user that a request acts as: the one it names, else the sandbox's default.
pub(super) fn user_of(headers: &HeaderMap, settings: &Settings, db: &UserDb) -> Result<User, UserError> {
    match basic_user(headers) {
        Some(name) => db.user(&name),
        None => db.user(settings.default_user()),
    }
}

fn basic_user(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, credentials) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    Some(text.split_once(':')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_the_basic_name() {
        let mut headers = HeaderMap::new();
        assert_eq!(basic_user(&headers), None);
        headers.insert(header::AUTHORIZATION, "Basic cm9vdDo=".parse().unwrap());
        assert_eq!(basic_user(&headers).as_deref(), Some("root"));
        headers.insert(header::AUTHORIZATION, "Bearer cm9vdDo=".parse().unwrap());
        assert_eq!(basic_user(&headers), None);
    }

    #[test]
    fn a_token_matches_only_itself() {
        let settings = Settings { access_token: Some("abc".to_owned()), ..Settings::default() };
        let mut headers = HeaderMap::new();
        assert_eq!(token_of(&headers, &settings), Token::Missing);
        headers.insert(ACCESS_TOKEN, "abd".parse().unwrap());
        assert_eq!(token_of(&headers, &settings), Token::Differs);
        headers.insert(ACCESS_TOKEN, "abc".parse().unwrap());
        assert_eq!(token_of(&headers, &settings), Token::Matches);
    }
}
