//! Which sandbox and port a request is meant for, if any.
//!
//! One port serves both planes. A host name `<port>-<id>.<domain>` is data plane, under the configured domain and under any other
//! that leads here; so is a request that carries the two routing headers, whatever its host, because clients of a local server
//! send it to `localhost`, to an address or to `sandbox.<domain>`. Everything else is the control plane.
//!
//! That any domain will do opens nothing: what is public by contract is reached under one more name, and no such name ever
//! leads to the control plane, whoever made it point here. Under a domain that nobody configured, an id has to be of our own
//! making, so that a server whose own name is, say, `8080-build.example.org` keeps its control plane.

use std::sync::LazyLock;

use firkin_runtime::sandbox::{InvalidSandboxId, SandboxId};
use firkin_wire::headers;
use http::{HeaderMap, HeaderName, Uri, header};

/// Names the sandbox.
pub(crate) static SANDBOX_ID: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::from_static(headers::SANDBOX_ID));
/// Names the port inside it.
pub(crate) static SANDBOX_PORT: LazyLock<HeaderName> = LazyLock::new(|| HeaderName::from_static(headers::SANDBOX_PORT));

/// A port inside a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The sandbox.
    pub(crate) id: SandboxId,
    /// The port.
    pub(crate) port: u16,
}

/// By what a request names its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By its host, which is then the sandbox's own.
    Host,
    /// By its headers, under whatever host.
    Headers,
}

/// Why a request of the data plane names no target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidTarget {
    #[error("header `{0}` is missing")]
    Missing(HeaderName),
    #[error("header `{0}` is not text")]
    NotText(HeaderName),
    #[error(transparent)]
    Sandbox(#[from] InvalidSandboxId),
    #[error("header `{name}` is not a port: `{0}`", name = *SANDBOX_PORT)]
    Port(String),
    #[error("method CONNECT is not supported")]
    Connect,
    #[error("the host is not text")]
    Host,
}

/// The target of a request: `None` is the control plane, an error is a data plane request that names nothing.
pub(crate) fn target(uri: &Uri, headers: &HeaderMap, domain: Option<&str>) -> Option<Result<(Target, Way), InvalidTarget>> {
    if let Some(target) = host(uri, headers).and_then(|host| from_host(host, domain)) {
        return Some(Ok((target, Way::Host)));
    }
    let (id, port) = (headers.get(&*SANDBOX_ID), headers.get(&*SANDBOX_PORT));
    if id.is_none() && port.is_none() {
        return None;
    }
    let target = from_headers(id.map(http::HeaderValue::as_bytes), port.map(http::HeaderValue::as_bytes));
    Some(target.map(|target| (target, Way::Headers)))
}

/// The host that a request is for, as its client wrote it.
pub(crate) fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    uri.authority().map(|authority| authority.as_str()).or_else(|| headers.get(header::HOST)?.to_str().ok())
}

fn from_headers(id: Option<&[u8]>, port: Option<&[u8]>) -> Result<Target, InvalidTarget> {
    let text = |value: Option<&[u8]>, name: &HeaderName| {
        let value = value.ok_or_else(|| InvalidTarget::Missing(name.clone()))?;
        std::str::from_utf8(value).map(str::to_owned).map_err(|_| InvalidTarget::NotText(name.clone()))
    };
    let id = sandbox_id(&text(id, &SANDBOX_ID)?)?;
    let port = text(port, &SANDBOX_PORT)?;
    let port = port_number(&port).ok_or(InvalidTarget::Port(port))?;
    Ok(Target { id, port })
}

/// `<port>-<id>.<domain>[:<port of the server>]`. Under a domain that is not the configured one, only for an id that we could have given.
fn from_host(host: &str, domain: Option<&str>) -> Option<Target> {
    let (label, rest) = host.split_once('.')?;
    let name = |text: &str| {
        let name = text.rsplit_once(':').map_or(text, |(name, _)| name);
        name.trim_end_matches('.').to_ascii_lowercase()
    };
    let (port, id) = label.split_once('-')?;
    // Names have no case, and ids are lower-case.
    let id = sandbox_id(&id.to_ascii_lowercase()).ok()?;
    let ours = domain.is_none_or(|domain| name(rest) == name(domain)) || id.is_generated();
    Some(Target { port: port_number(port)?, id }).filter(|_| ours)
}

/// A sandbox id; the older form `<id>-<client>` is cut.
pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, InvalidSandboxId> {
    text.split_once('-').map_or(text, |(id, _)| id).parse()
}

fn port_number(text: &str) -> Option<u16> {
    // `u16::from_str` takes a sign.
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Under a domain that nobody configured.
    const OURS: &str = "3000-i0123456789abcdefghij.evil.example:8443";
    const OURS_UPPER: &str = "3000-I0123456789ABCDEFGHIJ-client.tunnel.example";

    #[test]
    fn requests_are_told_apart() {
        type Row = (&'static str, Option<&'static str>, Option<&'static str>, Option<&'static str>, &'static str);
        // host, configured domain, id header, port header, result
        let table: [Row; 27] = [
            ("localhost:3000", None, None, None, "control"),
            ("127.0.0.1:3000", None, None, None, "control"),
            ("api.e2b.test", Some("e2b.test"), None, None, "control"),
            ("127.0.0.1:3000", None, Some("iabc"), Some("49983"), "iabc:49983"),
            ("sandbox.e2b.test", Some("e2b.test"), Some("iabc"), Some("80"), "iabc:80"),
            ("localhost", None, Some("iabc-client"), Some("80"), "iabc:80"),
            ("3000-iabc.e2b.test", Some("e2b.test"), None, None, "iabc:3000"),
            ("3000-iabc.E2B.test:8443", Some("e2b.test"), None, None, "iabc:3000"),
            ("3000-iabc.e2b.test:8443", Some("e2b.test:8443"), None, None, "iabc:3000"),
            ("3000-iabc-client.e2b.test", Some("e2b.test"), None, None, "iabc:3000"),
            ("3000-iabc.e2b.test.", Some("e2b.test"), None, None, "iabc:3000"),
            ("3000-iabc.other.test", Some("e2b.test"), None, None, "control"),
            (OURS, Some("e2b.test"), None, None, "i0123456789abcdefghij:3000"),
            (OURS_UPPER, Some("e2b.test"), None, None, "i0123456789abcdefghij:3000"),
            ("8080-build.example.org", Some("e2b.test"), None, None, "control"),
            ("3000-i0123456789abcdefghij", Some("e2b.test"), None, None, "control"),
            ("3000-iabc.other.test", None, None, None, "iabc:3000"),
            ("3000-iabc.e2b.test", Some("e2b.test"), Some("iother"), Some("1"), "iabc:3000"),
            ("70000-iabc.e2b.test", Some("e2b.test"), None, None, "control"),
            ("0-iabc.e2b.test", Some("e2b.test"), None, None, "control"),
            ("localhost", None, Some("IABC"), Some("80"), "error"),
            ("localhost", None, Some("i_abc"), Some("80"), "error"),
            ("localhost", None, Some(""), Some("80"), "error"),
            ("localhost", None, Some("iabc"), Some("0"), "error"),
            ("localhost", None, Some("iabc"), Some("+80"), "error"),
            ("localhost", None, Some("iabc"), None, "error"),
            ("localhost", None, None, Some("80"), "error"),
        ];
        for (host, domain, id, port, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(id) = id {
                headers.insert(&*SANDBOX_ID, id.parse().unwrap());
            }
            if let Some(port) = port {
                headers.insert(&*SANDBOX_PORT, port.parse().unwrap());
            }
            let found = match target(&Uri::from_static("/x"), &headers, domain) {
                None => "control".to_owned(),
                Some(Ok((target, _))) => format!("{}:{}", target.id, target.port),
                Some(Err(_)) => "error".to_owned(),
            };
            assert_eq!(found, expected, "{host} {domain:?} {id:?} {port:?}");
        }
    }

    #[test]
    fn an_authority_stands_for_the_host_header() {
        let uri = Uri::from_static("http://3000-iabc.e2b.test/x");
        let (found, way) = target(&uri, &HeaderMap::new(), Some("e2b.test")).unwrap().unwrap();
        assert_eq!(way, Way::Host);
        assert_eq!((found.id.as_str(), found.port), ("iabc", 3000));
    }
}
