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
//!
//! Which teams there are, and what each has, is in the answer for who has the admin token, and for nobody else.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, State},
    response::{IntoResponse, Response},
};
use firkin_runtime::metrics::CONTENT_TYPE;
use firkin_wire::headers::API_KEY;
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

/// Every kind of error that is counted. In metrics from the start, so that a first one is seen as a change.
pub(crate) const KINDS: [&str; 33] = [
    "archive_damaged",
    "archive_foreign",
    "archive_taken",
    "artifact_elsewhere",
    "bad_request",
    "catalog_unavailable",
    "conflict",
    "forbidden",
    "host_not_allowed",
    "idempotency_in_progress",
    "idempotency_request_mismatch",
    "internal_server_error",
    "method_not_allowed",
    "node_away",
    "not_found",
    "other",
    "payload_too_large",
    "request_timeout",
    "sandbox_capacity_unavailable",
    "sandbox_create_failed",
    "sandbox_moved",
    "sandbox_no_compatible_node",
    "sandbox_not_moved",
    "sandbox_paused_on_one_node",
    "sandbox_placement_timeout",
    "sandbox_snapshot_guest_agent_unresponsive",
    "sandbox_unreachable",
    "secret_limit_reached",
    "secret_unreadable",
    "team_quota_exceeded",
    "too_many_requests",
    "unauthorized",
    "unavailable",
];

/// `GET /metrics`.
pub(crate) async fn read(State(app): State<Arc<App>>, extensions: Extensions, uri: Uri, headers: HeaderMap) -> Response {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let first_hand = SECOND_HAND.iter().all(|name| !headers.contains_key(name)) && host(&uri, &headers).is_some_and(is_this_host);
    let borne = borne(&headers);
    let is_admin = auth::is_admin(&app, &headers) || borne.is_some_and(|token| auth::is_admin_token(&app, token.as_bytes()));
    let is_local = first_hand && !app.is_for_others && peer.is_some_and(|peer| peer.is_loopback());
    if !is_admin
        && !is_local
        && let Err(error) = auth::check_for_host(&app, &with_key(&headers, borne))
    {
        return error.into_response();
    }
    if let Some(traces) = &app.config.traces {
        app.host().metrics().count_spans(traces.counts().outcomes());
    }
    if let Some(nodes) = &app.config.nodes {
        app.host().metrics().of_node(&nodes.figures());
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.host().render_metrics(is_admin)).into_response()
}

/// A key or the admin token as Prometheus shows it, which has no other header for that.
fn borne(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// The same headers, with what is borne as the key if there is no other.
fn with_key(headers: &HeaderMap, borne: Option<&str>) -> HeaderMap {
    let mut headers = headers.clone();
    if let Some(key) = borne.and_then(|key| key.parse().ok()) {
        headers.entry(API_KEY).or_insert(key);
    }
    headers
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
    use std::{collections::BTreeSet, path::Path};

    use super::{KINDS, is_this_host};

    /// What is to be known of each kind of error stands in the documentation, in their order: its status, its cause, what mends it.
    #[test]
    fn every_kind_of_error_is_explained() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
        let text = fs_err::read_to_string(path).unwrap();
        let explained: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        assert_eq!(explained, KINDS);
        for row in text.lines().filter(|line| line.starts_with("| `")) {
            assert!(row.split('|').filter(|cell| !cell.trim().is_empty()).count() == 4, "a cell is empty: {row}");
        }
    }

    #[test]
    fn every_kind_of_error_is_known_from_the_start() {
        let source = include_str!("error.rs");
        let (_, by_status) = source.split_once("error_code.unwrap_or(match status {").unwrap();
        let (by_status, _) = by_status.split_once("}))").unwrap();
        let words =
            |text: &'static str, before: &'static str| text.split(before).skip(1).filter_map(|rest| rest.split('"').next());
        let written: BTreeSet<&str> = words(by_status, "=> \"")
            .chain(words(source, ".code(\""))
            .chain(words(include_str!("error/archives.rs"), ".code(\""))
            .chain(words(include_str!("error/nodes.rs"), ".code(\""))
            .chain(words(include_str!("error/relocating.rs"), ".code(\""))
            .collect();
        assert_eq!(written, BTreeSet::from(KINDS));
    }

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
