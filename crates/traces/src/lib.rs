//! Spans for a collector: what is done for a request, as OTLP over HTTP (protobuf), as a part of whatever trace the client is in.
//!
//! ```text
//!   span ends ──► queue (bounded; full: dropped) ──► one task: batches ──► collector
//! ```
//!
//! Nobody who does something waits for a collector: a span that ends takes a place in the queue or is dropped, and one task sends. A
//! collector that is away costs its batches, which are counted and not kept: traces are for looking into what is slow now, and spans of an
//! hour ago would only push out those of now.
//!
//! What leaves the process is listed (`told.rs`): an attribute that is on no list stays, so that a field which somebody adds to a span for the log is not
//! sent elsewhere for that. Events, which are lines of the log, are not sent at all.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Status, TracerProvider as _},
};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{IdGenerator as _, RandomIdGenerator, SdkTracer, SdkTracerProvider},
};
use tracing::{Level, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::FilterFn, registry::LookupSpan};

mod collector;
mod sending;
mod told;

pub use collector::{Collector, InvalidCollector};
pub use sending::Sending;
pub use told::{ROUTE, STATUS};

use sending::Queue;

/// What the programs of all spans are called that are sent: those of this product.
const OURS: &str = "firkin";

/// The finest level of spans that are sent: phases are of this one.
const FINEST: Level = Level::DEBUG;

/// Names a trace and a span of it.
pub const TRACEPARENT: HeaderName = HeaderName::from_static(NAMES[0]);

/// That header, and the one that goes with it from system to system.
const NAMES: [&str; 2] = ["traceparent", "tracestate"];

/// Longest state of a client's trace that is kept: what all must pass on. Each span in the queue has it.
const MAX_STATE_BYTES: usize = 512;

/// What became of spans since the start.
#[derive(Debug, Default)]
pub struct Counts {
    exported: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Each outcome by its word: taken by the collector, lost on the way there, and dropped because the queue was full.
    pub fn outcomes(&self) -> [(&'static str, u64); 3] {
        [("exported", &self.exported), ("failed", &self.failed), ("dropped", &self.dropped)]
            .map(|(word, count)| (word, count.load(Ordering::Relaxed)))
    }
}

/// Gives spans their places in traces. Clones are the same.
#[derive(Debug, Clone)]
pub struct Traces {
    tracer: SdkTracer,
    // Spans go nowhere once their provider is gone.
    _provider: SdkTracerProvider,
    counts: Arc<Counts>,
}

/// Begins to collect spans for a collector. They wait until what is given besides is run.
pub fn open(collector: Collector, version: &'static str) -> (Traces, Sending) {
    let counts = Arc::new(Counts::default());
    // Another one for each process: a restart is another instance.
    let instance = RandomIdGenerator::default().new_trace_id().to_string();
    let resource = Resource::builder()
        .with_service_name(OURS)
        .with_attributes([KeyValue::new("service.version", version), KeyValue::new("service.instance.id", instance)])
        .build();
    let (queue, spans) = Queue::new(Arc::clone(&counts));
    let provider = SdkTracerProvider::builder().with_span_processor(queue).with_resource(resource.clone()).build();
    let traces = Traces { tracer: provider.tracer(OURS), _provider: provider, counts: Arc::clone(&counts) };
    (traces, Sending { collector, resource, spans, counts })
}

impl Traces {
    /// Collects spans of this product, whatever is logged.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        let layer = tracing_opentelemetry::layer().with_tracer(self.tracer.clone());
        let layer = layer.with_location(false).with_threads(false).with_tracked_inactivity(false).with_context_activation(false);
        layer.with_filter(FilterFn::new(|of: &Metadata<'_>| {
            of.is_span() && *of.level() <= FINEST && of.target().starts_with(OURS)
        }))
    }

    /// Makes a new span a part of the trace that these headers name (W3C Trace Context), if they name one.
    pub fn adopt(&self, span: &Span, headers: &HeaderMap) {
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carried(headers));
        // One that is not collected has no parent either.
        drop(span.set_parent(context));
    }

    /// What others are told of this span, so that what they do is a part of it. Nothing for one that is not collected.
    pub fn traceparent(&self, span: &Span) -> Option<HeaderValue> {
        let mut found = Found(None);
        TraceContextPropagator::new().inject_context(&span.context(), &mut found);
        found.0
    }

    /// Says something of a span that is for the collector alone, and not for the log.
    pub fn note(&self, span: &Span, key: &'static str, value: impl Into<opentelemetry::Value>) {
        span.set_attribute(key, value);
    }

    /// Says that what a span is about has failed.
    pub fn failed(&self, span: &Span) {
        span.set_status(Status::error(""));
    }

    /// What became of spans.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// What a client carries of its trace.
struct Carried<'a>(&'a HeaderMap);

impl Extractor for Carried<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok().filter(|value| value.len() <= MAX_STATE_BYTES)
    }

    fn keys(&self) -> Vec<&str> {
        NAMES.to_vec()
    }
}

/// The name of a span among what is told of its trace.
struct Found(Option<HeaderValue>);

impl Injector for Found {
    fn set(&mut self, key: &str, value: String) {
        if key == NAMES[0] {
            self.0 = value.parse().ok();
        }
    }
}
