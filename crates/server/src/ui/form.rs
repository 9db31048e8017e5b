//! Forms: what a page sends to change something. None is read that does not bring its session's token.

use std::sync::Arc;

use axum::extract::{FromRequest, Request};
use http::header;

use super::Visitor;
use crate::{App, error::ApiError, extract::collect, listing::Query};

/// Longest form: a thousand sandboxes by id, or a file that is edited in the page.
const MAX_BYTES: usize = 1 << 20;
/// Most fields of one: those thousand and what else a page sends. Each takes far more memory than its two bytes.
const MAX_FIELDS: usize = 1100;

/// The field that has the token.
pub(super) const TOKEN: &str = "token";

/// The fields of a form that a page of ours sent, and whose.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) visitor: Visitor,
    pub(super) fields: Query,
}

impl Form {
    /// A field that has to be there.
    pub(super) fn need(&self, name: &str) -> Result<&str, ApiError> {
        self.fields.get(name).ok_or_else(|| ApiError::bad_request(format!("`{name}` is missing")))
    }
}

/// The fields of any form. Whoever reads them so has to see to it who sent them.
pub(super) async fn read(request: Request, max_bytes: usize) -> Result<Query, ApiError> {
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if media_type.split(';').next().is_none_or(|name| name.trim() != "application/x-www-form-urlencoded") {
        return Err(ApiError::bad_request("this is not what a form of the dashboard sends"));
    }
    let bytes = collect(request.into_body(), max_bytes).await?;
    if bytes.split(|byte| *byte == b'&').nth(MAX_FIELDS).is_some() {
        return Err(ApiError::bad_request(format!("a form has {MAX_FIELDS} fields at most")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| ApiError::bad_request("the form is not text"))?;
    Ok(Query::parse(Some(text)))
}

impl FromRequest<Arc<App>> for Form {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Arc<App>) -> Result<Self, ApiError> {
        let visitor = request.extensions().get::<Visitor>().cloned().ok_or_else(|| ApiError::unauthorized(super::SIGNED_OUT))?;
        let fields = read(request, MAX_BYTES).await?;
        demand_token(&visitor, fields.get(TOKEN))?;
        Ok(Self { visitor, fields })
    }
}

/// Refuses a form that a page of this session did not make.
pub(super) fn demand_token(visitor: &Visitor, shown: Option<&str>) -> Result<(), ApiError> {
    if shown.is_some_and(|shown| visitor.ticket.is_token(shown)) {
        return Ok(());
    }
    Err(ApiError::forbidden("this form is of another session: load the page again".to_owned()))
}
