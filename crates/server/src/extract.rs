//! Extractors for bodies and ids, whose refusals have the contract's form.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Path, Request},
};
use firkin_runtime::{reference::MAX_REFERENCE_BYTES, sandbox::SandboxId};
use http::{header, request::Parts};
use serde::de::DeserializeOwned;

use crate::{App, error::ApiError, listing::Query, target::sandbox_id};

/// How long a client may take to send a body of the control plane.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// A JSON body and its bytes. An absent body is `{}`, so that only what is required must be sent.
pub(crate) struct Json<T> {
    /// The value.
    pub(crate) value: T,
    /// As it was sent.
    pub(crate) bytes: Bytes,
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let limit = app.config.max_body_bytes;
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|length| length > limit) {
            return Err(ApiError::too_large(limit));
        }
        let bytes = collect(request.into_body(), limit).await?;
        let text: &[u8] = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
            None => b"{}",
            Some(b'{') => &bytes,
            // The values of a list would be taken for fields, in the order in which these happen to be declared.
            Some(_) => return Err(ApiError::bad_request("cannot read the body: it is no JSON object")),
        };
        let (value, ignored) = read(text).map_err(|error| ApiError::bad_request(format!("cannot read the body: {error}")))?;
        app.count_unknown(&ignored);
        Ok(Self { value, bytes })
    }
}

/// Fields that are named in the log, of those that one request sends in vain.
const MAX_NAMED_FIELDS: usize = 8;

/// Fields of a body that were ignored, at any depth.
#[derive(Debug, Default)]
pub(crate) struct Ignored {
    /// How many fields.
    pub(crate) count: u64,
    /// Paths of the first of them.
    pub(crate) first: Vec<String>,
}

/// Here and nowhere else, so that no route can forget to look at what it does not know.
fn read<T: DeserializeOwned>(text: &[u8]) -> Result<(T, Ignored), serde_json::Error> {
    let mut ignored = Ignored::default();
    let mut source = serde_json::Deserializer::from_slice(text);
    let value = serde_ignored::deserialize(&mut source, |path| {
        ignored.count += 1;
        if ignored.first.len() < MAX_NAMED_FIELDS {
            ignored.first.push(path.to_string());
        }
    })?;
    source.end()?;
    Ok((value, ignored))
}

/// All of a body, if it is no longer than this.
pub(crate) async fn collect(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    use http_body_util::{BodyExt, LengthLimitError, Limited};
    match tokio::time::timeout(BODY_DEADLINE, Limited::new(body, limit).collect()).await {
        Err(_) => Err(ApiError::request_timeout()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::too_large(limit)),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("cannot read the body: {error}"))),
    }
}

/// The next piece of an upload, which goes to the disk as it comes. `None` at its end.
pub(crate) async fn piece(app: &App, body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    use http_body_util::BodyExt;
    loop {
        let frame = tokio::time::timeout(app.config.upload_silence, body.frame()).await;
        match frame.map_err(|_| ApiError::request_timeout())? {
            None => return Ok(None),
            Some(Err(error)) => return Err(ApiError::bad_request(format!("the upload did not arrive whole: {error}"))),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// The sandbox that a path names.
pub(crate) struct Sandbox(pub(crate) SandboxId);

impl FromRequestParts<Arc<App>> for Sandbox {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        let text = segment(parts).await?;
        Ok(Self(sandbox_id(&text)?))
    }
}

/// The template, snapshot or alias that a path names, decoded.
pub(crate) struct Reference(pub(crate) String);

impl FromRequestParts<Arc<App>> for Reference {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        let text = segment(parts).await?;
        let valid = text.len() <= MAX_REFERENCE_BYTES
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte));
        if valid { Ok(Self(text)) } else { Err(ApiError::bad_request("the id or name is malformed")) }
    }
}

async fn segment(parts: &mut Parts) -> Result<String, ApiError> {
    let Path(text) = Path::<String>::from_request_parts(parts, &())
        .await
        .map_err(|rejection| ApiError::bad_request(format!("the path is malformed: {}", rejection.body_text())))?;
    Ok(text)
}

impl FromRequestParts<Arc<App>> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        Ok(Self::parse(parts.uri.query()))
    }
}
