//! From the queue to the collector: batches, each with a deadline, by one task. What does not arrive is counted.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use firkin_causes::chain;
use opentelemetry::Context;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter as _, SpanProcessor},
};
use reqwest::{Client, redirect::Policy};
use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{Collector, Counts, told::told};

/// Spans that wait: those of some hundred creates, and a few MiB.
const MAX_WAITING: usize = 4096;

/// Most spans of a batch: some hundred KiB, which collectors take.
const MAX_BATCH: usize = 512;

/// How long a batch waits for more: who looks at a trace does so later than this.
const BATCH_EVERY: Duration = Duration::from_secs(1);

/// How long a collector may take for a batch.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a server that stops waits until what there is has been sent.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// Puts spans that have ended where they wait.
#[derive(Debug)]
pub(crate) struct Queue {
    places: Sender<SpanData>,
    counts: Arc<Counts>,
}

impl Queue {
    pub(crate) fn new(counts: Arc<Counts>) -> (Self, Receiver<SpanData>) {
        let (places, spans) = mpsc::channel(MAX_WAITING);
        (Self { places, counts }, spans)
    }
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        // Never waits: whoever ends a span has something to do.
        if self.places.try_send(told(span)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // The task that sends ends by itself.
        Ok(())
    }
}

/// Spans on their way.
#[derive(Debug)]
pub struct Sending {
    pub(crate) collector: Collector,
    pub(crate) resource: Resource,
    pub(crate) spans: Receiver<SpanData>,
    pub(crate) counts: Arc<Counts>,
}

/// Nothing can be sent at all.
#[derive(Debug, thiserror::Error)]
enum ExporterError {
    #[error("cannot make a client for it")]
    Client(#[source] reqwest::Error),
    #[error("cannot make an exporter for it")]
    Exporter(#[source] ExporterBuildError),
}

impl Sending {
    /// Sends spans until `ending`, and then what there is, for as long as `END_DEADLINE`.
    pub async fn run(mut self, ending: CancellationToken) {
        let exporter = match exporter(&self.collector, &self.resource) {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::error!(collector = %self.collector, error = chain(&error), "no spans are sent to the collector");
                return;
            }
        };
        let collector = self.collector.clone();
        let mut work = pin!(self.send_all(&exporter, &ending));
        tokio::select! {
            () = &mut work => return,
            () = ending.cancelled() => {}
        }
        if timeout(END_DEADLINE, work).await.is_err() {
            tracing::warn!(%collector, "the collector did not take the last spans in time");
        }
    }

    /// Sends until `ending`, and then what there is.
    async fn send_all(&mut self, exporter: &SpanExporter, ending: &CancellationToken) {
        let mut arrives = true;
        while let Some(batch) = self.batch(ending).await {
            arrives = self.send(exporter, batch, arrives).await;
        }
        self.spans.close();
        let mut rest = Vec::new();
        while self.spans.recv_many(&mut rest, MAX_BATCH).await > 0 {
            arrives = self.send(exporter, std::mem::take(&mut rest), arrives).await;
        }
    }

    /// The next batch, as soon as it is full or has waited. `None` when it is time to end; what was taken is sent first.
    async fn batch(&mut self, ending: &CancellationToken) -> Option<Vec<SpanData>> {
        let mut batch = Vec::new();
        tokio::select! {
            () = ending.cancelled() => return None,
            first = self.spans.recv() => batch.push(first?),
        }
        let until = tokio::time::Instant::now() + BATCH_EVERY;
        while batch.len() < MAX_BATCH {
            let most = MAX_BATCH - batch.len();
            tokio::select! {
                () = ending.cancelled() => break,
                () = sleep_until(until) => break,
                count = self.spans.recv_many(&mut batch, most) => if count == 0 { break },
            }
        }
        Some(batch)
    }

    /// Sends a batch. Whether it arrived; that it changed is said in the log.
    async fn send(&self, exporter: &SpanExporter, batch: Vec<SpanData>, arrived: bool) -> bool {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        let lost = match timeout(EXPORT_DEADLINE, exporter.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(chain(&error)),
            Err(_) => Some(format!("it did not answer within {} s", EXPORT_DEADLINE.as_secs())),
        };
        let outcome = if lost.is_none() { &self.counts.exported } else { &self.counts.failed };
        outcome.fetch_add(count, Ordering::Relaxed);
        match &lost {
            Some(error) if arrived => {
                tracing::warn!(collector = %self.collector, error, "spans do not reach the collector: they are dropped until they do");
            }
            None if !arrived => tracing::info!(collector = %self.collector, "spans reach the collector again"),
            Some(_) | None => {}
        }
        lost.is_none()
    }
}

fn exporter(collector: &Collector, resource: &Resource) -> Result<SpanExporter, ExporterError> {
    // Only one of the process's parts can have installed it before us.
    drop(rustls::crypto::ring::default_provider().install_default());
    // A collector is where its operator says and nowhere else.
    let client = Client::builder().redirect(Policy::none()).no_proxy().timeout(EXPORT_DEADLINE);
    let client = client.user_agent(concat!("firkin/", env!("CARGO_PKG_VERSION"))).build().map_err(ExporterError::Client)?;
    let exporter = SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary);
    let exporter = exporter.with_endpoint(collector.to_string()).with_timeout(EXPORT_DEADLINE).build();
    let mut exporter = exporter.map_err(ExporterError::Exporter)?;
    exporter.set_resource(resource);
    Ok(exporter)
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

    use super::*;

    #[test]
    fn what_waits_is_bounded_and_what_is_dropped_is_counted() {
        let (traces, sending) = crate::open("http://127.0.0.1:1".parse().unwrap(), "1");
        let listening = tracing_subscriber::registry().with(traces.layer()).set_default();
        for _ in 0..MAX_WAITING + 10 {
            drop(tracing::info_span!(target: "firkin_test", "request"));
        }
        // Others' are not collected.
        drop(tracing::info_span!(target: "hyper", "request"));
        drop(listening);
        assert_eq!(traces.counts().outcomes(), [("exported", 0), ("failed", 0), ("dropped", 10)]);
        assert_eq!(sending.spans.len(), MAX_WAITING);
    }
}
