//! Who is let through to the ports of a sandbox, and under which name they come.
//!
//! envd is not concerned: it knows its own token, and clients of a private sandbox must reach it.

use axum::extract::Request;
use firkin_runtime::{runtime::Runtime, sandbox::Ingress};
use firkin_wire::{ENVD_PORT, secret::equal};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::{error::ProxyError, target::Target};

/// Carries the token that a private sandbox demands.
static TRAFFIC_TOKEN: HeaderName = HeaderName::from_static("e2b-traffic-access-token");

/// Lets a request through as its sandbox wants it, or not. One for a sandbox that is not there is for the proxy to refuse.
pub(crate) fn admit(runtime: &Runtime, target: &Target, request: &mut Request) -> Result<(), ProxyError> {
    if target.port == ENVD_PORT {
        return Ok(());
    }
    let Ok((ingress, token)) = runtime.ingress(&target.id) else { return Ok(()) };
    apply(&ingress, token.as_deref(), target, request.headers_mut())
}

fn apply(ingress: &Ingress, token: Option<&str>, target: &Target, headers: &mut HeaderMap) -> Result<(), ProxyError> {
    if ingress.private {
        // What guards the port is not for what listens on it.
        let shown = headers.remove(&TRAFFIC_TOKEN);
        let valid = shown.as_ref().zip(token).is_some_and(|(shown, token)| equal(shown.as_bytes(), token.as_bytes()));
        if !valid {
            return Err(ProxyError::Private { id: target.id.clone(), shown: shown.is_some() });
        }
    }
    if let Some(mask) = &ingress.mask_host {
        // It was checked when the sandbox was created.
        if let Ok(host) = HeaderValue::try_from(mask.replace("${PORT}", &target.port.to_string())) {
            headers.insert(header::HOST, host);
        }
    }
    Ok(())
}
