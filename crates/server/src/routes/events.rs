//! `GET /events`: what changes, as server-sent events, and everything as it is at the beginning.
//!
//! ```text
//!   begin ──► snapshot ──► change, change, ... ──► missed ──► snapshot ──► change ...
//!   begin with `Last-Event-ID` ──► change, ...        or, where that is not known any more ──► missed ──► snapshot ...
//! ```
//!
//! A stream holds one event at a time, and makes the next when its client has taken that: one that does not read costs one event, and
//! its connection is cut when it has taken nothing for a while. A snapshot is sent in pieces, so that who takes it slowly takes something. Between changes a comment comes now and then, with the place that
//! the stream has reached, so that who comes back need not be told what was never for it. The key is looked at then, too: a
//! stream does not outlive it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use firkin_runtime::{
    changes::{Change, ChangeId, Reader, Told, Topic},
    runtime::Runtime,
    store::StoreError,
    team::TeamId,
};
use futures::stream;
use http::{HeaderMap, HeaderValue, header};
use serde::Serialize;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    App,
    auth::{self, Caller},
    doors::Place,
    error::ApiError,
    listing::Query,
};

/// How long a client waits before it comes back, milliseconds.
const RETRY: &str = "retry: 2000\n\n";

/// Streams at once. Each holds one event, at most a snapshot.
const MAX_STREAMS: usize = 256;

/// Streams of one team at once: a dashboard for each of its people, and their programs.
const MAX_STREAMS_OF_TEAM: usize = 64;

/// What a client has to take before it is cut: so much comes through any network in time.
const MAX_PIECE_BYTES: usize = 64 << 10;

/// Whose each open stream is; nobody's for who has the admin token.
#[derive(Debug, Default)]
pub(crate) struct Streams(Mutex<HashMap<Option<TeamId>, usize>>);

impl Streams {
    fn open(&self) -> MutexGuard<'_, HashMap<Option<TeamId>, usize>> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one stream among all.
struct Counted {
    app: Arc<App>,
    team: Option<TeamId>,
}

impl Counted {
    fn enter(app: &Arc<App>, team: Option<TeamId>) -> Result<Self, ApiError> {
        let mut open = app.streams.open();
        let (all, own) = (open.values().sum::<usize>(), open.get(&team).copied().unwrap_or_default());
        if all >= MAX_STREAMS || own >= MAX_STREAMS_OF_TEAM {
            return Err(ApiError::too_many_streams());
        }
        *open.entry(team.clone()).or_default() += 1;
        drop(open);
        Ok(Self { app: Arc::clone(app), team })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.app.streams.open();
        if let Some(count) = open.get_mut(&self.team) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.team);
            }
        }
    }
}

/// `GET /events`.
pub(super) async fn follow(
    State(app): State<Arc<App>>,
    caller: Option<Extension<Caller>>,
    place: Option<Extension<Place>>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let caller = caller.map(|Extension(caller)| caller);
    let topics = topics(&query)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).or_else(|| query.get("lastEventId"));
    let (runtime, team) = match caller {
        Some(caller) => (caller.runtime, Some(caller.team)),
        // Whoever has the admin token sees everything.
        None => (app.host().clone(), None),
    };
    let counted = Counted::enter(&app, team)?;
    let every = app.config.event_heartbeat;
    let mut heartbeat = interval_at(Instant::now() + every, every);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What is no id of ours is one of an earlier server, or of another program behind this address.
    let after = last.map(|id| id.parse().unwrap_or(ChangeId { epoch: 0, number: u64::MAX }));
    let mut following = Following {
        reader: runtime.changes(after),
        runtime,
        topics,
        ready: VecDeque::from([Bytes::from_static(RETRY.as_bytes())]),
        heartbeat,
        checked: Instant::now(),
        headers,
        taken: Taken::watch(place.map(|Extension(place)| place), app.config.event_silence),
        counted,
    };
    if after.is_none() {
        following.look().await?;
    }
    let events = stream::unfold(following, |mut following| async move {
        following.taken.asks();
        let next = following.next().await?;
        following.taken.has(Instant::now());
        Some((Ok::<_, StoreError>(next), following))
    });
    let mut response = Body::from_stream(events).into_response();
    let head = response.headers_mut();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    head.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx keeps an answer back until it has a block of it, unless it is told not to.
    head.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What is wanted; everything where nothing is named.
fn topics(query: &Query) -> Result<Vec<Topic>, ApiError> {
    let named = |name: &str| {
        let topic = Topic::ALL.into_iter().find(|topic| topic.name() == name);
        let all = || Topic::ALL.map(Topic::name).join(", ");
        topic.ok_or_else(|| ApiError::bad_request(format!("`topics` must be of {}, not `{name}`", all())))
    };
    query.list("topics").into_iter().map(named).collect()
}

/// A stream that is under way.
struct Following {
    runtime: Runtime,
    reader: Reader,
    topics: Vec<Topic>,
    /// Made, and not taken yet.
    ready: VecDeque<Bytes>,
    heartbeat: Interval,
    /// When its key was last seen to be good.
    checked: Instant,
    /// By which its client was let in.
    headers: HeaderMap,
    taken: Taken,
    counted: Counted,
}

impl Following {
    /// The next piece; none at the end of the server or of the key.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.check_key()?;
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            tokio::select! {
                biased;
                () = self.counted.app.closing.cancelled() => return None,
                told = self.reader.next() => match told {
                    Told::Change(change) if self.wants(&change) => return event(Some(change.id), change.what.topic().name(), &*change),
                    Told::Change(_) => {}
                    Told::Missed(missed) => {
                        self.ready.push_back(event(None, "missed", &serde_json::json!({ "reason": missed }))?);
                        if let Err(error) = self.look().await {
                            // It comes back, and is told the same again.
                            tracing::warn!(reason = ?error, "an event stream ends: the records cannot be read");
                            return None;
                        }
                    }
                },
                _ = self.heartbeat.tick() => {
                    self.check_key()?;
                    return Some(format!("id: {}\n: still here\n\n", self.reader.place()).into());
                }
            }
        }
    }

    /// Nothing once the key is good no more. Whoever takes less than there is comes by here too, so that time alone decides when it is looked at.
    fn check_key(&mut self) -> Option<()> {
        if self.checked.elapsed() >= self.counted.app.config.event_heartbeat {
            auth::check_watcher(&self.counted.app, &self.headers).ok()?;
            self.checked = Instant::now();
        }
        Some(())
    }

    fn wants(&self, change: &Change) -> bool {
        self.topics.is_empty() || self.topics.contains(&change.what.topic())
    }

    /// Everything as it is now, and reads on from there.
    async fn look(&mut self) -> Result<(), StoreError> {
        let now = self.runtime.overview().await?;
        self.reader = self.runtime.changes(Some(now.as_of));
        self.ready.extend(event(Some(now.as_of), "snapshot", &now).into_iter().flat_map(pieces));
        Ok(())
    }
}

/// An event in its form on the wire.
fn event(id: Option<ChangeId>, name: &str, data: &impl Serialize) -> Option<Bytes> {
    // JSON has no line ends outside its texts, nor in them.
    let data = serde_json::to_string(data).inspect_err(|error| tracing::error!(%error, name, "an event has no form")).ok()?;
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Some(format!("{id}event: {name}\ndata: {data}\n\n").into())
}

/// The same bytes, as they are sent one after the other.
fn pieces(mut whole: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let piece = whole.split_to(whole.len().min(MAX_PIECE_BYTES));
        (!piece.is_empty()).then_some(piece)
    })
}

/// Whether the client takes what it is sent. One that does not is cut.
struct Taken {
    since: Arc<Mutex<Option<Instant>>>,
    #[expect(dead_code, reason = "held, not read")]
    end: DropGuard,
}

impl Taken {
    fn watch(place: Option<Place>, silence: Duration) -> Self {
        let (since, end) = (Arc::<Mutex<Option<Instant>>>::default(), CancellationToken::new());
        if let Some(place) = place {
            let (since, end) = (Arc::clone(&since), end.clone());
            tokio::spawn(async move {
                let mut looks = tokio::time::interval(silence / 2);
                loop {
                    tokio::select! {
                        () = end.cancelled() => return,
                        _ = looks.tick() => {}
                    }
                    let since = *since.lock().unwrap_or_else(PoisonError::into_inner);
                    if since.is_some_and(|since| since.elapsed() >= silence) {
                        tracing::debug!("a client takes no events: its connection is cut");
                        place.evict();
                        return;
                    }
                }
            });
        }
        Self { since, end: end.drop_guard() }
    }

    /// It has taken all that there was, and asks for more.
    fn asks(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It has something to take from now on.
    fn has(&self, now: Instant) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_large_comes_in_pieces() {
        for length in [1, MAX_PIECE_BYTES, 3 * MAX_PIECE_BYTES + 1] {
            let whole: Bytes = (0..=u8::MAX).cycle().take(length).collect();
            let sent: Vec<Bytes> = pieces(whole.clone()).collect();
            assert!(sent.iter().all(|piece| (1..=MAX_PIECE_BYTES).contains(&piece.len())));
            assert_eq!(sent.concat(), whole);
        }
    }
}
