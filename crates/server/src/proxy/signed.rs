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

/// The sandbox whose token signed this URL. `None` for URLs that are not signed, and for signatures of nobody here.
pub(crate) fn target(method: &Method, uri: &Uri, sandboxes: impl FnOnce() -> Vec<RuntimeSandbox>) -> Option<Target> {
    let operation = match *method {
        Method::GET => "read",
        Method::POST => "write",
        _ => return None,
    };
    if uri.path() != "/files" {
        return None;
    }
    let query = Query::parse(uri.query());
    let given = query.get("signature")?;
    let path = query.get("path").filter(|path| path.len() <= MAX_PATH_BYTES)?;
    let mut tail = String::new();
    if let Some(expiration) = query.get("signature_expiration") {
        tail = format!(":{}", expiration.parse::<i64>().ok()?);
    }
    let user = query.get("username").unwrap_or_default();
    let signed_by = |token: &str| {
        let digest = Sha256::digest(format!("{path}:{operation}:{user}:{token}{tail}"));
        given.strip_prefix("v1_") == Some(STANDARD_NO_PAD.encode(digest).as_str())
    };
    let found = sandboxes().into_iter().find(|sandbox| sandbox.envd_access_token.as_deref().is_some_and(signed_by))?;
    Some(Target { id: found.id, port: ENVD_PORT })
}
