//! Plain HTTP on the port for HTTPS: told where to go instead of met with silence.
//!
//! Clients make URLs of `get_host(port)` by themselves, and some take a host with a port in it for one that speaks plain HTTP. The
//! first byte tells the two apart: a TLS connection begins with a handshake record. Nothing but the way to HTTPS on the same
//! authority is ever answered here, so nothing of a request goes on in the clear.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};

use crate::target::host;

/// The type of the record that every TLS connection begins with (RFC 8446, 5.1).
pub(crate) const HANDSHAKE: u8 = 0x16;

/// Longest authority that is sent back: a name of 253 characters and a port.
const MAX_AUTHORITY_BYTES: usize = 260;

/// The answer to any request: the same, with the same method, by HTTPS.
pub(crate) fn to_https<B>(request: &Request<B>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    match location(request.uri(), request.headers()) {
        Some(location) => {
            *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
            response.headers_mut().insert(header::LOCATION, location);
        }
        None => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn location(uri: &Uri, headers: &HeaderMap) -> Option<HeaderValue> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    let authority = host(uri, headers)?;
    let good = (1..=MAX_AUTHORITY_BYTES).contains(&authority.len()) && authority.bytes().all(plain);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    HeaderValue::try_from(format!("https://{authority}{path}")).ok().filter(|_| good && path.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_https_has_the_same_authority_path_and_query() {
        let location = |host: &str, uri: &str| {
            let request = Request::builder().uri(uri).header("host", host).body(()).unwrap();
            let response = to_https(&request);
            let location = response.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
            (response.status().as_u16(), location)
        };
        let to = |location: &str| (308, Some(location.to_owned()));
        assert_eq!(
            location("3000-iabc.firkin.localhost:8443", "/a%20b?c=d"),
            to("https://3000-iabc.firkin.localhost:8443/a%20b?c=d")
        );
        assert_eq!(location("[::1]:8443", "/"), to("https://[::1]:8443/"));
        assert_eq!(location("ignored", "http://3000-iabc.x:8443/y"), to("https://3000-iabc.x:8443/y"));
        for host in ["", "user@evil.example", "a/b", "a b", "a\\b"] {
            assert_eq!(location(host, "/"), (400, None), "{host}");
        }
        assert_eq!(to_https(&Request::new(())).status().as_u16(), 400);
    }
}
