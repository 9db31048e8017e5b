//! `GET /metrics`: who may read it, and which answers are counted as errors.
//!
//! A scraper on this host needs no key: what it reads are counts and durations, and guests cannot reach the host's loopback.
//! Whatever came through somebody else (a reverse proxy, a page in a browser) does, because then the peer's address says
//! nothing about who asks. A page whose name was made to point here (DNS rebinding) is such a somebody, and so is a proxy that
//! adds nothing to what it forwards: both ask for a host by a name of theirs, so that only this host's own names will do.
//!
//! A proxy that adds nothing *and* asks for the server's own address (nginx's `proxy_pass` by default) cannot be told from this
//! host. So a server that is meant for others, by a public domain or by TLS, demands the key of everybody; in front of any other,
//! such a proxy must block `/metrics` itself.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, State},
    response::{IntoResponse, Response},
};
use firkin_runtime::metrics::CONTENT_TYPE;
use http::{Extensions, HeaderMap, HeaderName, Uri, header};

use crate::{App, auth, error::ErrorKind, hosts::HostName, target::host};

/// Headers of requests that the peer makes for somebody else.
const SECOND_HAND: [HeaderName; 7] = [
    header::FORWARDED,
    header::ORIGIN,
    header::REFERER,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
];

/// `GET /metrics`.
pub(crate) async fn read(State(app): State<Arc<App>>, extensions: Extensions, uri: Uri, headers: HeaderMap) -> Response {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let first_hand = SECOND_HAND.iter().all(|name| !headers.contains_key(name)) && host(&uri, &headers).is_some_and(is_this_host);
    if !(first_hand && !app.is_for_others && peer.is_some_and(|peer| peer.is_loopback()))
        && let Err(error) = auth::check_for_host(&app, &headers)
    {
        return error.into_response();
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.host().render_metrics()).into_response()
}

/// Whether a host, with or without a port, is the loopback by a name that nobody else can give out.
fn is_this_host(host: &str) -> bool {
    match HostName::read(host) {
        Some(HostName::Address(address)) => address.to_canonical().is_loopback(),
        Some(HostName::Name(name)) => name == "localhost",
        None => false,
    }
}

/// Counts an answer if it is an error of ours. What a guest answers is its own affair.
pub(crate) fn count(app: &App, response: &Response) {
    if let Some(ErrorKind(kind)) = response.extensions().get::<ErrorKind>() {
        app.host().metrics().count_error(kind);
    }
}

#[cfg(test)]
mod tests {
    use super::is_this_host;

    #[test]
    fn only_names_of_the_loopback_are_this_host() {
        for host in [
            "localhost",
            "LOCALHOST:3000",
            "127.0.0.1",
            "127.0.0.1:3000",
            "127.8.8.8:1",
            "[::1]",
            "[::1]:3000",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_this_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:3000",
            "10.0.0.1",
            "[::1",
            "[::1]x",
            "::1",
            "user@localhost",
            "localhost:x",
        ] {
            assert!(!is_this_host(host), "{host}");
        }
    }
}
