//! `GET /metrics`: who may read it, and which answers are counted as errors.
//!
//! A scraper on this host needs no key: what it reads are counts and durations, and guests cannot reach the host's loopback.
//! Whatever came through somebody else (a reverse proxy, a page in a browser) does, because then the peer's address says
//! nothing about who asks.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, State},
    response::{IntoResponse, Response},
};
use firkin_runtime::metrics::CONTENT_TYPE;
use http::{Extensions, HeaderMap, HeaderName, header};

use crate::{App, auth, error::ErrorKind};

/// Headers of requests that the peer makes for somebody else.
const SECOND_HAND: [HeaderName; 3] = [header::FORWARDED, header::ORIGIN, HeaderName::from_static("x-forwarded-for")];

/// `GET /metrics`.
pub(crate) async fn read(State(app): State<Arc<App>>, extensions: Extensions, headers: HeaderMap) -> Response {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let first_hand = SECOND_HAND.iter().all(|name| !headers.contains_key(name));
    if !(first_hand && peer.is_some_and(|peer| peer.is_loopback()))
        && let Err(error) = auth::check(&app, &headers)
    {
        return error.into_response();
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.runtime.render_metrics()).into_response()
}

/// Counts an answer if it is an error of ours. What a guest answers is its own affair.
pub(crate) fn count(app: &App, response: &Response) {
    if let Some(ErrorKind(kind)) = response.extensions().get::<ErrorKind>() {
        app.runtime.metrics().count_error(kind);
    }
}
