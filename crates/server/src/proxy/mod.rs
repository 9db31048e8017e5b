//! The data plane: a request for a port inside a sandbox, passed on as it is.
//!
//! Bodies stream both ways without being collected; the only memory is what the two connections buffer. Clients speak HTTP/1.1
//! or HTTP/2, guests are spoken to in HTTP/1.1. Headers that describe one connection are dropped, everything else, the host
//! name included, reaches the guest as the client sent it. Access to envd is decided by envd, which knows the token.

use std::sync::Arc;

use axum::body::Body;
use firkin_wire::ENVD_PORT;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use hyper::upgrade::OnUpgrade;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod guest_tls;
pub(crate) mod ingress;
pub(crate) mod misses;
pub(crate) mod origin;
pub(crate) mod page;
pub(crate) mod pool;
pub(crate) mod signed;
pub(crate) mod upgrade;

use crate::{
    cookies,
    doors::Place,
    error::ProxyError,
    sever::Sever,
    target::{InvalidTarget, Target},
};
use pool::{Answer, ConnectionPool};

/// Headers that concern one connection, not the message (RFC 9110 section 7.6.1, and the two older ones in use).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Routes of envd that only the host may call.
const HOST_ONLY: [&str; 8] =
    ["/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade", firkin_wire::forward::PATH];

/// Passes one request on and its answer back.
pub(crate) async fn forward(
    pool: &Arc<ConnectionPool>,
    target: Target,
    mut request: Request<Body>,
) -> Result<Response<Body>, ProxyError> {
    if target.port == ENVD_PORT && host_only(request.uri().path()) {
        return Err(ProxyError::HostOnly(request.uri().path().to_owned()));
    }
    let protocol = upgrade_protocol(request.headers());
    let client = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let sever = Sever::of(&request);
    let busy = request.extensions().get::<Place>().filter(|_| client.is_some()).map(Place::busy);
    let request = for_guest(&target, request, protocol)?;
    let Answer { response, ended } = pool.send(&target, request).await?;
    let mut response = response.map(|body| Body::new(body.severing(sever)));
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = client else {
            return Err(ProxyError::BadAnswer(target.id, target.port, "it switched protocols unasked".to_owned()));
        };
        let protocol = response.headers().get(header::UPGRADE).cloned();
        let guest: OnUpgrade = hyper::upgrade::on(&mut response);
        upgrade::join(pool, (client, busy), guest, ended);
        strip(response.headers_mut());
        restore_upgrade(response.headers_mut(), protocol);
        return Ok(response);
    }
    strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    Ok(response)
}

/// The request as the guest gets it: origin form, HTTP/1.1, with a `Host`.
fn for_guest(target: &Target, request: Request<Body>, protocol: Option<HeaderValue>) -> Result<Request<Body>, ProxyError> {
    let (mut parts, body) = request.into_parts();
    if parts.method == http::Method::CONNECT {
        return Err(ProxyError::Target(InvalidTarget::Connect));
    }
    if !parts.headers.contains_key(header::HOST) {
        let authority = parts.uri.authority().map_or("localhost", |authority| authority.as_str());
        let host = HeaderValue::from_str(authority).map_err(|_| ProxyError::Target(InvalidTarget::Host))?;
        parts.headers.insert(header::HOST, host);
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let mut guest = Request::new(body);
    *guest.uri_mut() = Uri::from(path);
    *guest.method_mut() = parts.method;
    // We answer `Expect` ourselves by reading the body, and speak for the client from there on.
    parts.headers.remove(header::EXPECT);
    strip(&mut parts.headers);
    cookies::remove(&mut parts.headers);
    restore_upgrade(&mut parts.headers, protocol);
    *guest.headers_mut() = parts.headers;
    tracing::trace!(sandbox = %target.id, port = target.port, method = %guest.method(), "forward");
    Ok(guest)
}

/// Drops what concerns one connection: the listed headers and those that `Connection` names.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    // Of `TE`, only this one concerns the message.
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// Asks for a switch of protocols again, which concerned one connection, on the next one.
pub(crate) fn restore_upgrade(headers: &mut HeaderMap, protocol: Option<HeaderValue>) {
    if let Some(protocol) = protocol {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
    }
}

/// The protocol that the client wants to switch to, if any.
pub(crate) fn upgrade_protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
    let protocol = headers.get(header::UPGRADE).filter(|_| asked)?;
    // HTTP/2 without TLS is for the connection to us, never for the guest's.
    (protocol != "h2c").then(|| protocol.clone())
}

/// Whether envd would take this path for one of its host-only routes, however it is written.
fn host_only(path: &str) -> bool {
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    let mut segments = decoded.split('/').filter(|segment| !segment.is_empty() && *segment != ".");
    let first = segments.next();
    first.is_some_and(|first| HOST_ONLY.iter().any(|route| route[1..].eq_ignore_ascii_case(first))) && segments.next().is_none()
}

#[cfg(test)]
mod tests;
