//! Signed URLs that name no sandbox.
//!
//! A client of a local server signs `http://<server>/files?path=...&signature=...`: no host name and no header says whose file is
//! meant. The signature does, because it is made with the sandbox's own token. So it is compared with what each sandbox's token
//! would have given; envd decides afterwards, as always, whether it is still valid.

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use firkin_runtime::sandbox::{ENVD_PORT, RuntimeSandbox};
use http::{Method, Uri};
use sha2::{Digest, Sha256};

use super::target::Target;
use crate::listing::Query;

/// Longest path that is hashed, once for each sandbox: `PATH_MAX`, past which no guest can open it.
const MAX_PATH_BYTES: usize = 4096;

/// A signed URL, read: what its signature is to be made of, and the signature that it bears.
#[derive(Debug)]
pub(super) struct Signed {
    path: String,
    operation: &'static str,
    user: String,
    expires: Option<i64>,
    signature: String,
}

impl Signed {
    /// `None` for what is not a signed URL.
    pub(super) fn read(method: &Method, uri: &Uri) -> Option<Self> {
        let operation = match *method {
            Method::GET => "read",
            Method::POST => "write",
            _ => return None,
        };
        if uri.path() != "/files" {
            return None;
        }
        let query = Query::parse(uri.query());
        let signature = query.get("signature")?.to_owned();
        let path = query.get("path").filter(|path| path.len() <= MAX_PATH_BYTES)?.to_owned();
        let expires = query.get("signature_expiration").map(str::parse).transpose().ok()?;
        let user = query.get("username").unwrap_or_default().to_owned();
        Some(Self { path, operation, user, expires, signature })
    }

    /// Whether this token signed it.
    pub(super) fn by(&self, token: &str) -> bool {
        let Self { path, operation, user, expires, signature } = self;
        let tail = expires.map(|expires| format!(":{expires}")).unwrap_or_default();
        let digest = Sha256::digest(format!("{path}:{operation}:{user}:{token}{tail}"));
        signature.strip_prefix("v1_") == Some(STANDARD_NO_PAD.encode(digest).as_str())
    }
}

/// The sandbox whose token signed this URL. `None` for URLs that are not signed, and for signatures of nobody here.
pub(crate) fn target(method: &Method, uri: &Uri, sandboxes: impl FnOnce() -> Vec<RuntimeSandbox>) -> Option<Target> {
    let signed = Signed::read(method, uri)?;
    let signer = |sandbox: &RuntimeSandbox| sandbox.envd_access_token.as_deref().is_some_and(|token| signed.by(token));
    let found = sandboxes().into_iter().find(signer)?;
    Some(Target { id: found.id, port: ENVD_PORT })
}
