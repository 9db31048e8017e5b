//! What a request is called in logs, and what is said of it in each line: its id, whose it is, which sandbox it is about, and the trace that
//! it is part of, if its client says so (W3C Trace Context).
//!
//! The id is in the answer too (`X-Request-Id`), and in the audit log, so that who has one finds the other. It is ours: a client's own
//! would let it write into logs what it likes. A request that goes on into a sandbox keeps its `traceparent`, and has no span here: there
//! are too many of these, and what they do is the guest's affair. Where spans go to a collector, the start of a command has one all the same
//! (`latency.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{MatchedPath, Request};
use firkin_runtime::sandbox::SandboxId;
use firkin_traces::{ROUTE, STATUS, TRACEPARENT, Traces};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use jiff::Timestamp;
use tracing::{Span, field::Empty};

use crate::target::sandbox_id;

/// Carries the id of a request in its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    /// Tells the client.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            headers.insert(REQUEST_ID, value);
        }
    }
}

/// Makes ids, each once in all of this server's life and others'.
#[derive(Debug)]
pub(crate) struct Requests {
    /// Distinguishes requests of one server from those of another.
    run: String,
    next: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self { run: format!("{:x}", Timestamp::now().as_microsecond()), next: AtomicU64::new(1) }
    }
}

impl Requests {
    /// An id for a request, which bears it from now on, and the span of what is done for it.
    pub(crate) fn begin(&self, request: &mut Request, traces: Option<&Traces>) -> Begun {
        let id = RequestId(format!("{}-{}", self.run, self.next.fetch_add(1, Ordering::Relaxed)));
        request.extensions_mut().insert(id.clone());
        let method = request.method();
        // Of the highest level, so that lines of all levels have it, whatever is left out of the log.
        let span = tracing::error_span!("request", id = %id.0, %method, team = Empty, sandbox = Empty, trace = Empty);
        let sandbox = sandbox_of(request.uri().path());
        if let Some(sandbox) = sandbox {
            span.record("sandbox", sandbox);
        }
        let names_sandbox = sandbox.is_some();
        if let Some(trace) = trace_of(request.headers()) {
            span.record("trace", trace);
            if let Some(traces) = traces {
                traces.adopt(&span, request.headers());
            }
        }
        Begun { id, span, names_sandbox }
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) id: RequestId,
    pub(crate) span: Span,
    /// Whether its path says which sandbox it is about.
    names_sandbox: bool,
}

impl Begun {
    /// Says of the request's span what its answer tells, and which sandbox was made.
    pub(crate) fn answered(&self, status: StatusCode, made: Option<&SandboxId>, traces: Option<&Traces>) {
        if let Some(id) = made.filter(|_| !self.names_sandbox) {
            self.span.record("sandbox", id.as_str());
        }
        let Some(traces) = traces else { return };
        traces.note(&self.span, STATUS, i64::from(status.as_u16()));
        if status.is_server_error() {
            traces.failed(&self.span);
        }
    }
}

/// Says of the span that we are in by which route its request came, to a collector.
pub(crate) fn note_route(traces: Option<&Traces>, request: &Request) {
    if let (Some(traces), Some(route)) = (traces, request.extensions().get::<MatchedPath>()) {
        traces.note(&Span::current(), ROUTE, route.as_str().to_owned());
    }
}

/// The sandbox that a path of the control plane is about.
pub(crate) fn sandbox_of(path: &str) -> Option<&str> {
    let mut parts = path.split('/').skip_while(|part| *part != "sandboxes").skip(1);
    parts.next().filter(|id| *id != "metrics" && sandbox_id(id).is_ok())
}

/// The id of the trace that a client is in: `00-<trace>-<parent>-<flags>`. What has another form is no trace.
pub(crate) fn trace_of(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    };
    // Later versions may have more parts; version ff never is one.
    let [version, trace, parent, flags, ..] = parts[..] else { return None };
    let whole = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    let known = version != "ff" && (version != "00" || parts.len() == 4);
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    (whole && known && !zero(trace) && !zero(parent)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_by_the_rules_of_trace_context() {
        let of = |text: &'static str| {
            let headers = [(TRACEPARENT, HeaderValue::from_static(text))].into_iter().collect();
            trace_of(&headers).map(str::to_owned)
        };
        let trace = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
        assert_eq!(of("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), trace);
        assert_eq!(of("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"), trace);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_done_for_a_request_has_its_id_also_where_little_is_logged() {
        let errors = tracing_subscriber::fmt().with_max_level(tracing::Level::ERROR).finish();
        let disabled = tracing::subscriber::with_default(errors, || {
            let Begun { span, .. } = Requests::default().begin(&mut Request::default(), None);
            span.is_disabled()
        });
        assert!(!disabled);
    }

    #[test]
    fn a_path_names_its_sandbox() {
        for (path, sandbox) in [
            ("/sandboxes/i1/pause", Some("i1")),
            ("/v2/sandboxes/i1/connect", Some("i1")),
            ("/events/sandboxes/i1", Some("i1")),
            ("/sandboxes", None),
            ("/sandboxes/metrics", None),
            ("/templates/t", None),
        ] {
            assert_eq!(sandbox_of(path), sandbox, "{path}");
        }
    }
}
