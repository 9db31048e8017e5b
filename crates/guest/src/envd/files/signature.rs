//! Signed URLs: `v1_` and the unpadded base64 of SHA-256 over path, operation, user, token and, if it expires, when.

use axum::http::{HeaderMap, StatusCode};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use firkin_wire::secret::equal;
use sha2::{Digest, Sha256};

use super::FilesQuery;
use crate::envd::{
    auth::{self, Token},
    error::ApiError,
    state::Settings,
};

/// The operation that the URL allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Download.
    Read,
    /// Upload.
    Write,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// Admits the request, or says why not in the contract's words.
pub(super) fn authorise(
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: Operation,
    settings: &Settings,
) -> Result<(), ApiError> {
    let Some(token) = &settings.access_token else { return Ok(()) };
    let denied = |message: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, message));
    match auth::token_of(headers, settings) {
        Token::Matches => return Ok(()),
        Token::Differs => return denied("access token present in header but does not match"),
        Token::Missing => {}
    }
    let Some(given) = &query.signature else { return denied("missing signature query parameter") };
    if !equal(given.as_bytes(), sign(query, operation, token).as_bytes()) {
        return denied("invalid signature");
    }
    match query.signature_expiration {
        Some(expiration) if expiration < jiff::Timestamp::now().as_second() => denied("signature is already expired"),
        _ => Ok(()),
    }
}

pub(super) fn sign(query: &FilesQuery, operation: Operation, token: &str) -> String {
    let path = query.path.as_deref().unwrap_or_default();
    let user = query.username.as_deref().unwrap_or_default();
    let mut text = format!("{path}:{}:{user}:{token}", operation.word());
    if let Some(expiration) = query.signature_expiration {
        text.push_str(&format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { access_token: Some("secret".to_owned()), ..Settings::default() }
    }

    fn query(signature_expiration: Option<i64>) -> FilesQuery {
        let mut query = FilesQuery { path: Some("/a b".to_owned()), username: None, signature: None, signature_expiration };
        query.signature = Some(sign(&query, Operation::Read, "secret"));
        query
    }

    fn check(query: &FilesQuery, operation: Operation) -> Result<(), String> {
        authorise(&HeaderMap::new(), query, operation, &settings()).map_err(|error| error.message)
    }

    #[test]
    fn a_signature_is_the_digest_of_the_contract() {
        // printf '/a b:read::secret' | openssl dgst -sha256 -binary | base64
        assert_eq!(query(None).signature.unwrap(), "v1_JZ4oARkfyJlGHoJfXYdpTgwbCZQ649Z7s3Tvk4Fy+3U");
    }

    #[test]
    fn a_signature_admits_its_own_request_only() {
        assert_eq!(check(&query(None), Operation::Read), Ok(()));
        assert_eq!(check(&query(None), Operation::Write), Err("invalid signature".to_owned()));
        assert_eq!(check(&query(Some(i64::MAX)), Operation::Read), Ok(()));
        assert_eq!(check(&query(Some(1)), Operation::Read), Err("signature is already expired".to_owned()));
        let moved = FilesQuery { path: Some("/other".to_owned()), ..query(None) };
        assert_eq!(check(&moved, Operation::Read), Err("invalid signature".to_owned()));
        assert_eq!(check(&FilesQuery::default(), Operation::Read), Err("missing signature query parameter".to_owned()));
    }
}
