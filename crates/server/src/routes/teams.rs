//! The team that a key is of, for clients that choose among teams before they do anything else, and what it did over time.
//!
//! Each node of a cluster remembers what a team did on it by the minute, and tells another one that asks just that: points for a client stand for as
//! many minutes as there are too many of, so they are made once minutes of all nodes are added.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use firkin_runtime::activity::{self, ActivityMinute, ActivityPoint};
use firkin_wire::{
    headers::API_KEY,
    rest::{
        self,
        activity::{MaxTeamMetric, TeamMetric},
    },
};
use http::{HeaderMap, header};
use jiff::{SignedDuration, Timestamp};

use super::everywhere::Elsewhere;
use crate::{
    App,
    auth::{self, Caller},
    error::ApiError,
    listing::Query,
};

/// The range for requests that name no start.
const DEFAULT_RANGE: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The last second of 2299, beyond which E2B tells nothing either.
const MAX_END: i64 = 10_413_791_999;

/// `GET /teams`. The CLI sends what it has as a bearer token; here that is an API key like any other, which is given back as the
/// team's: the server itself keeps digests only.
pub(super) async fn list(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Reply<Vec<rest::Team>>, ApiError> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut shown = HeaderMap::new();
    if let Some(key) = bearer.and_then(|key| key.parse().ok()).or_else(|| headers.get(API_KEY).cloned()) {
        shown.insert(API_KEY, key);
    }
    let caller = auth::check(&app, &shown)?;
    let key = shown.get(API_KEY).and_then(|key| key.to_str().ok()).unwrap_or_default();
    let team =
        rest::Team { team_id: caller.team.to_string(), name: caller.team.to_string(), api_key: key.into(), is_default: true };
    Ok(Reply(vec![team]))
}

/// `GET /teams/{id}/metrics`.
pub(super) async fn metrics(
    caller: Caller,
    elsewhere: Elsewhere,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response, ApiError> {
    let range = Range::parse(&caller, &id, &query)?;
    if elsewhere.is_peer() {
        return Ok(Reply(caller.runtime.activity(range.start, range.end)).into_response());
    }
    let (headers, points) = range.points(&caller, &elsewhere).await;
    let shown = points.into_iter().map(|point| TeamMetric {
        timestamp: point.at,
        timestamp_unix: point.at.as_second(),
        concurrent_sandboxes: point.concurrent,
        sandbox_start_rate: point.start_rate,
    });
    Ok((headers, Reply(shown.collect::<Vec<_>>())).into_response())
}

/// `GET /teams/{id}/metrics/max`: the most of one of the two, and when.
pub(super) async fn most(
    caller: Caller,
    elsewhere: Elsewhere,
    Path(id): Path<String>,
    query: Query,
) -> Result<(HeaderMap, Reply<MaxTeamMetric>), ApiError> {
    let value: fn(&ActivityPoint) -> f64 = match query.get("metric") {
        Some("concurrent_sandboxes") => |point| f64::from(point.concurrent),
        Some("sandbox_start_rate") => |point| point.start_rate,
        other => return Err(ApiError::bad_request(format!("invalid metric: {}", other.unwrap_or_default()))),
    };
    let (headers, points) = Range::parse(&caller, &id, &query)?.points(&caller, &elsewhere).await;
    let mut most = (Timestamp::now(), 0.0);
    for point in points {
        if value(&point) > most.1 {
            most = (point.at, value(&point));
        }
    }
    let metric = query.get("metric").unwrap_or_default().to_owned();
    Ok((headers, Reply(MaxTeamMetric { timestamp: most.0, timestamp_unix: most.0.as_second(), value: most.1, metric })))
}

/// The time that is asked about, both ends included.
struct Range {
    start: Timestamp,
    end: Timestamp,
}

impl Range {
    fn parse(caller: &Caller, id: &str, query: &Query) -> Result<Self, ApiError> {
        let team = &caller.team;
        if id != team.as_str() {
            return Err(ApiError::forbidden(format!("You ({team}) are not authorized to access this team's ({id}) metrics")));
        }
        let now = Timestamp::now();
        let bound = |name: &str| match query
            .get(name)
            .map(|text| text.parse::<i64>().ok().and_then(|second| Timestamp::from_second(second).ok()))
        {
            None => Ok(None),
            Some(Some(at)) => Ok(Some(at)),
            Some(None) => Err(ApiError::bad_request(format!("`{name}` must be a number of seconds since 1970"))),
        };
        let (start, end) = (bound("start")?.unwrap_or(now - DEFAULT_RANGE), bound("end")?.unwrap_or(now));
        if end.as_second() > MAX_END {
            return Err(ApiError::bad_request("end time cannot be after the year 2299"));
        }
        if start > end {
            return Err(ApiError::bad_request("start time cannot be after end time"));
        }
        Ok(Self { start, end })
    }

    /// What the team did in it on all nodes, and which of them did not say.
    async fn points(&self, caller: &Caller, elsewhere: &Elsewhere) -> (HeaderMap, Vec<ActivityPoint>) {
        let Self { start, end } = *self;
        let question = format!("/teams/{}/metrics?start={}&end={}", caller.team, start.as_second(), end.as_second());
        let others = elsewhere.ask_for::<Vec<ActivityMinute>>(&question).await;
        let mut headers = HeaderMap::new();
        others.tell(&mut headers);
        let own = caller.runtime.activity(start, end);
        let minutes = activity::sum(others.parts.into_iter().map(|(_, part)| part).chain([own]));
        (headers, activity::points(&minutes, start))
    }
}
