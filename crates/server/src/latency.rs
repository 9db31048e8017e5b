//! How long users wait for the first output, as far as the proxy can see it.
//!
//! Commands are started by `POST /process.Process/Start`, whose answer is a stream of Connect envelopes that passes through the
//! proxy. The first bytes of each envelope tell whether it says that the command runs, or carries its standard output; nothing
//! is kept of the rest, and a stream is looked at only until both were seen. Streams in another form (compressed, gRPC) are
//! passed on unmeasured.
//!
//! `start.to_first_stdout` is measured where a client goes straight on from a create to a command, because the time in between
//! is the client's: a sandbox whose first command comes later than [`STRAIGHT_ON`] after the answer counts for nothing.
//!
//! Where spans go to a collector, a command's wait for its first output is one: in the trace of whoever asks for it, else in that of the
//! create that it follows, so that one trace has all that a user waits for.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use firkin_runtime::{
    metrics::{Metrics, Timing},
    sandbox::SandboxId,
};
use firkin_traces::{TRACEPARENT, Traces};
use firkin_wire::ENVD_PORT;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use tracing::Span;

use crate::{requests::trace_of, target::Target};

/// The route of envd that starts a command.
const START: &str = "/process.Process/Start";

/// A client that goes straight on sends its command this soon after the create was answered.
const STRAIGHT_ON: Duration = Duration::from_secs(1);

/// Sandboxes that wait for their first command: more creates than a second sees.
const MAX_NEW: usize = 1024;

/// Flags and length of a Connect envelope.
const ENVELOPE_BYTES: usize = 5;

/// As much of a message as tells what event it is, in both codecs.
const PREFIX_BYTES: usize = 32;

/// Attached to the answer of a create: the sandbox that it made.
#[derive(Debug, Clone)]
pub(crate) struct FirstAnswer(pub(crate) SandboxId);

/// Sandboxes whose first command is awaited.
#[derive(Debug)]
pub(crate) struct Latency {
    metrics: Arc<Metrics>,
    traces: Option<Traces>,
    new: Mutex<HashMap<SandboxId, Created>>,
}

#[derive(Debug, Clone)]
struct Created {
    received: Instant,
    answered: Instant,
    /// What names the create's span, if that is collected.
    traceparent: Option<HeaderValue>,
}

impl Latency {
    pub(crate) fn new(metrics: Arc<Metrics>, traces: Option<Traces>) -> Self {
        Self { metrics, traces, new: Mutex::default() }
    }

    /// Remembers when a create was received, if this is the answer to one.
    pub(crate) fn created(&self, response: &Response<Body>, received: Instant, span: &Span) {
        let Some(FirstAnswer(id)) = response.extensions().get() else { return };
        let traceparent = self.traces.as_ref().and_then(|traces| traces.traceparent(span));
        let mut new = self.sandboxes();
        if new.len() >= MAX_NEW {
            new.retain(|_, created| created.answered.elapsed() <= STRAIGHT_ON);
        }
        if new.len() < MAX_NEW {
            new.insert(id.clone(), Created { received, answered: Instant::now(), traceparent });
        }
    }

    /// A watch over the answer to this request, if it starts a command. What the guest does for it is a part of that, too.
    pub(crate) fn watch(&self, target: &Target, request: &mut Request<Body>) -> Option<Watch> {
        if target.port != ENVD_PORT || request.method() != Method::POST || request.uri().path() != START {
            return None;
        }
        let created = self.sandboxes().remove(&target.id).filter(|created| created.answered.elapsed() <= STRAIGHT_ON);
        let of_create = created.as_ref().and_then(|created| created.traceparent.as_ref());
        let spans = self.traces.as_ref().map(|traces| Spans::begin(traces, target, request.headers_mut(), of_create));
        Some(Watch { metrics: Arc::clone(&self.metrics), asked: Instant::now(), created, spans })
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, Created>> {
        // Nothing panics between a lock and its unlock here, so a poisoned map is still whole.
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One command that was asked for.
#[derive(Debug)]
pub(crate) struct Watch {
    metrics: Arc<Metrics>,
    asked: Instant,
    /// When the create of its sandbox was received, if this is the sandbox's first command.
    created: Option<Created>,
    /// Where they go to a collector.
    spans: Option<Spans>,
}

/// The spans of a command. Each ends when it is dropped.
#[derive(Debug)]
struct Spans {
    /// Until the guest says that it runs.
    start: Option<Span>,
    /// Until the first output, or the end.
    _first_output: Span,
}

impl Spans {
    fn begin(traces: &Traces, target: &Target, headers: &mut HeaderMap, of_create: Option<&HeaderValue>) -> Self {
        let name = Timing::FirstStdoutByte.name();
        let first_output = tracing::debug_span!(parent: None, "phase", name, sandbox = %target.id);
        if trace_of(headers).is_some() {
            traces.adopt(&first_output, headers);
        } else if let Some(of_create) = of_create {
            traces.adopt(&first_output, &HeaderMap::from_iter([(TRACEPARENT, of_create.clone())]));
        }
        if let Some(own) = traces.traceparent(&first_output) {
            headers.insert(TRACEPARENT, own);
        }
        let start = tracing::debug_span!(parent: &first_output, "phase", name = Timing::CommandStart.name());
        Self { start: Some(start), _first_output: first_output }
    }
}

impl Watch {
    /// The same answer, whose events are noticed as they pass.
    pub(crate) fn over(self, response: Response<Body>) -> Response<Body> {
        let codec = response.headers().get(header::CONTENT_TYPE).and_then(|value| Codec::of(value.as_bytes()));
        match codec.filter(|_| response.status() == StatusCode::OK) {
            Some(codec) => response.map(|inner| Body::new(Watched { inner, watch: Some((self, Envelopes::new(codec))) })),
            None => response,
        }
    }

    fn notice(&mut self, event: Event) {
        match event {
            Event::Start => {
                self.metrics.observe(Timing::CommandStart, self.asked.elapsed());
                if let Some(spans) = &mut self.spans {
                    spans.start = None;
                }
            }
            Event::Stdout => {
                self.metrics.observe(Timing::FirstStdoutByte, self.asked.elapsed());
                if let Some(created) = &self.created {
                    self.metrics.observe(Timing::StartToFirstStdout, created.received.elapsed());
                }
            }
            Event::Other | Event::Unreadable => {}
        }
    }
}

/// A body that is watched until the first standard output.
struct Watched {
    inner: Body,
    watch: Option<(Watch, Envelopes)>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(bytes) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref())
            && let Some((watch, envelopes)) = &mut self.watch
        {
            let mut rest = &bytes[..];
            while let Some(event) = envelopes.next(&mut rest) {
                watch.notice(event);
                if matches!(event, Event::Stdout | Event::Unreadable) {
                    self.watch = None;
                    break;
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Proto,
    Json,
}

impl Codec {
    fn of(content_type: &[u8]) -> Option<Self> {
        match content_type {
            b"application/connect+proto" => Some(Self::Proto),
            b"application/connect+json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// What a message says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The command runs.
    Start,
    /// Standard output.
    Stdout,
    /// Something else.
    Other,
    /// A form that is not looked into: nothing that follows is understood either.
    Unreadable,
}

/// Finds envelopes in a stream that may be cut anywhere. Holds the beginning of one.
#[derive(Debug)]
struct Envelopes {
    codec: Codec,
    head: Vec<u8>,
    /// Bytes of the last message that are still to come.
    skip: usize,
}

impl Envelopes {
    fn new(codec: Codec) -> Self {
        Self { codec, head: Vec::with_capacity(ENVELOPE_BYTES + PREFIX_BYTES), skip: 0 }
    }

    /// The next event in `bytes`, of which it takes what it used. `None` when all were used.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Event> {
        let skipped = self.skip.min(bytes.len());
        *bytes = &bytes[skipped..];
        self.skip -= skipped;
        self.fill(ENVELOPE_BYTES, bytes)?;
        let length = u32::from_be_bytes([self.head[1], self.head[2], self.head[3], self.head[4]]) as usize;
        let prefix = length.min(PREFIX_BYTES);
        self.fill(ENVELOPE_BYTES + prefix, bytes)?;
        let event = match (self.head[0], self.codec) {
            (0, Codec::Proto) => proto_event(&self.head[ENVELOPE_BYTES..]).unwrap_or(Event::Other),
            (0, Codec::Json) => json_event(&self.head[ENVELOPE_BYTES..]),
            _ => Event::Unreadable,
        };
        self.head.clear();
        self.skip = length - prefix;
        Some(event)
    }

    /// Makes the head `wanted` bytes long, or takes all there is.
    fn fill(&mut self, wanted: usize, bytes: &mut &[u8]) -> Option<()> {
        let taken = wanted.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..taken]);
        *bytes = &bytes[taken..];
        (self.head.len() >= wanted).then_some(())
    }
}

/// `StartResponse.event` is field 1; in it `start` is field 1 and `data` field 2; in that `stdout` is field 1. All of them are
/// length-delimited.
fn proto_event(message: &[u8]) -> Option<Event> {
    let within = |message: &[u8], at: usize| Some(at + 1 + message.get(at + 1..)?.iter().position(|byte| byte & 0x80 == 0)? + 1);
    if message.first()? != &0x0a {
        return None;
    }
    let event = within(message, 0)?;
    match message.get(event)? {
        0x0a => Some(Event::Start),
        0x12 => (message.get(within(message, event)?)? == &0x0a).then_some(Event::Stdout),
        _ => None,
    }
}

fn json_event(message: &[u8]) -> Event {
    let text: Vec<u8> = message.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if text.starts_with(br#"{"event":{"start""#) {
        Event::Start
    } else if text.starts_with(br#"{"event":{"data":{"stdout""#) {
        Event::Stdout
    } else {
        Event::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(flags: u8, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flags][..], &length, message].concat()
    }

    /// A length-delimited field.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let (low, high) = (u8::try_from(content.len() & 0x7f).unwrap() | 0x80, u8::try_from(content.len() >> 7).unwrap());
        [&[number << 3 | 2, low, high][..], content].concat()
    }

    fn events(codec: Codec, stream: &[u8], cut: usize) -> Vec<Event> {
        let mut envelopes = Envelopes::new(codec);
        let mut found = Vec::new();
        for mut piece in stream.chunks(cut) {
            while let Some(event) = envelopes.next(&mut piece) {
                found.push(event);
            }
        }
        found
    }

    #[test]
    fn events_are_told_apart_however_the_stream_is_cut() {
        let data = |number, bytes: &[u8]| field(1, &field(2, &field(number, bytes)));
        let proto = [
            envelope(0, &field(1, &field(1, &[8, 42]))),
            envelope(0, &field(1, &field(4, &[]))),
            envelope(0, &data(2, b"err")),
            envelope(0, &data(1, &[b'x'; 5000])),
            envelope(0, &field(1, &field(3, &[8, 1]))),
            envelope(2, b"{}"),
        ]
        .concat();
        let json = [
            envelope(0, br#"{"event":{"start":{"pid":42}}}"#),
            envelope(0, br#"{"event":{"keepalive":{}}}"#),
            envelope(0, br#"{"event":{"data":{"stderr":"ZXJy"}}}"#),
            envelope(0, br#"{ "event": {"data":{"stdout":"eA=="}}}"#),
            envelope(0, br#"{"event":{"end":{"exited":true}}}"#),
            envelope(2, b"{}"),
        ]
        .concat();
        let expected = [Event::Start, Event::Other, Event::Other, Event::Stdout, Event::Other, Event::Unreadable];
        for cut in [1, 2, 3, 7, 64, usize::MAX] {
            assert_eq!(events(Codec::Proto, &proto, cut), expected, "{cut}");
            assert_eq!(events(Codec::Json, &json, cut), expected, "{cut}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_stream_breaks_it(stream in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300), cut in 1usize..50) {
            events(Codec::Proto, &stream, cut);
            events(Codec::Json, &stream, cut);
        }
    }
}
