//! How often an idle stream says that it is alive.

use std::time::Duration;

use axum::http::HeaderMap;
use firkin_wire::headers::KEEPALIVE;

/// Without a wish of the client.
const DEFAULT: Duration = Duration::from_secs(90);

/// The interval that the client asks for in `Keepalive-Ping-Interval`, in whole seconds; at least one.
pub(super) fn interval(headers: &HeaderMap) -> Duration {
    let wish = headers.get(KEEPALIVE).and_then(|value| value.to_str().ok()?.parse().ok());
    wish.filter(|&seconds| seconds > 0).map_or(DEFAULT, Duration::from_secs)
}
