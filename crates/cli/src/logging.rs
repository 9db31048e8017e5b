//! What is logged, and in which form: on standard error, filtered by a filter that can be changed while a server runs. Spans that go to a
//! collector are chosen apart from that: what is looked into there is not what a log is read for.

use std::{io::stderr, sync::OnceLock};

use clap::ValueEnum;
use firkin_server::{LogControl, LogFilterError};
use firkin_traces::{Collector, Sending, Traces};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    fmt,
    layer::{Filter, SubscriberExt as _},
    registry,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

/// The variable that asks for more.
const VARIABLE: &str = "FIRKIN_LOG";

/// How lines of the log look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// A JSON object each, with the ids of request, team, sandbox and trace
    Json,
}

/// Changes the filter of this process.
static CONTROL: OnceLock<LogControl> = OnceLock::new();

/// Begins to log, from this level on unless the environment asks for more.
pub(crate) fn begin(level: &str, format: LogFormat) {
    let (filter, handle) = reload::Layer::new(filter(level));
    registry().with(filter).with(lines(format).with_filter(without_phases())).init();
    set_control(handle);
}

/// The same, and collects spans for a collector, which whoever calls has to have sent.
pub(crate) fn begin_with_traces(level: &str, format: LogFormat, collector: Collector) -> (Traces, Sending) {
    let (traces, sending) = firkin_traces::open(collector, env!("CARGO_PKG_VERSION"));
    let (filter, handle) = reload::Layer::new(filter(level));
    registry().with(lines(format).with_filter(filter.and(without_phases()))).with(traces.layer()).init();
    set_control(handle);
    (traces, sending)
}

fn filter(level: &str) -> EnvFilter {
    std::env::var(VARIABLE).ok().and_then(|wanted| parse(&wanted).ok()).unwrap_or_else(|| level.into())
}

/// What a text asks for. One with letters beyond ASCII, which no target and no level has, makes the parser of `tracing-subscriber` 0.3.23 panic.
fn parse(wanted: &str) -> Result<EnvFilter, LogFilterError> {
    if !wanted.is_ascii() {
        return Err(LogFilterError::Invalid("it has letters beyond ASCII".into()));
    }
    EnvFilter::try_new(wanted).map_err(|error| LogFilterError::Invalid(error.into()))
}

/// Phases of a start are for a collector. In lines they would take the place of the request, with its ids, of which they are a part.
fn without_phases<S>() -> impl Filter<S> {
    filter_fn(|of| !(of.is_span() && of.name() == "phase"))
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync> {
    match format {
        LogFormat::Text => fmt::layer().with_writer(stderr).with_ansi(false).boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(stderr).boxed(),
    }
}

fn set_control<S: 'static>(handle: reload::Handle<EnvFilter, S>) {
    let control = LogControl::new(move |wanted| {
        if let Some(wanted) = wanted {
            handle.reload(parse(wanted)?).map_err(|error| LogFilterError::Log(error.into()))?;
        }
        handle.with_current(ToString::to_string).map_err(|error| LogFilterError::Log(error.into()))
    });
    // Set once: there is one log.
    CONTROL.get_or_init(|| control);
}

/// What changes the filter.
pub(crate) fn control() -> Option<LogControl> {
    CONTROL.get().cloned()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_filter_of_any_letters_is_read_or_refused() {
        assert_eq!(parse("warn,firkin_runtime=debug").unwrap().to_string(), "firkin_runtime=debug,warn");
        assert!(parse("firkin_runtime=loudly").is_err());
        // Its bytes were counted as letters: the cut between target and level fell into one.
        assert!(parse("\nëcÏ\u{88}\u{8b}Y\u{6491d}M\u{42131}=trace").is_err());
    }
}
