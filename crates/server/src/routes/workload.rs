//! By what others tell the identity tokens of sandboxes: open to everybody, as keys that are public are.
//!
//! Where they are is what OpenID Connect's discovery says; cloud providers look there and nowhere else.

use std::sync::Arc;

use axum::{Json as Reply, extract::State};
use firkin_runtime::workload::WorkloadError;
use serde_json::{Value, json};

use crate::{App, error::ApiError};

/// Where the keys are.
const KEYS: &str = "/.well-known/jwks.json";

/// `GET /.well-known/jwks.json`.
pub(super) async fn keys(State(app): State<Arc<App>>) -> Result<Reply<Value>, ApiError> {
    Ok(Reply(json!({ "keys": app.host().workload().public_keys()? })))
}

/// `GET /.well-known/openid-configuration`.
pub(super) async fn discovery(State(app): State<Arc<App>>) -> Reply<Value> {
    let issuer = app.host().workload().issuer();
    Reply(json!({
        "issuer": issuer,
        "jwks_uri": format!("{issuer}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }))
}

impl From<WorkloadError> for ApiError {
    fn from(error: WorkloadError) -> Self {
        Self::internal(&error)
    }
}
