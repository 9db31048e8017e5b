//! What a collector is told of a span: names as OpenTelemetry's conventions have them, and nothing that is not listed here.

use opentelemetry::{Key, KeyValue, StringValue, Value, trace::SpanKind};
use opentelemetry_sdk::trace::SpanData;

/// The span of a request, which the server answers.
const REQUEST: &str = "request";

/// The span of a part of that, which has its name in a field.
const PHASE: &str = "phase";

/// That field.
const NAME: &str = "name";

/// Fields of spans, and what they are called there.
const FIELDS: [(&str, &str); 4] =
    [("id", "firkin.request.id"), ("method", METHOD), ("team", "firkin.team.id"), ("sandbox", "firkin.sandbox.id")];

const METHOD: &str = "http.request.method";

/// The route of a request, as the router knows it.
pub const ROUTE: &str = "http.route";

/// The status of its answer.
pub const STATUS: &str = "http.response.status_code";

/// What is noted of a span for the collector.
const NOTED: [&str; 2] = [ROUTE, STATUS];

/// Longest text of an attribute: more than any id has. A method can be what a client likes.
const MAX_TEXT_BYTES: usize = 128;

/// The span as it is told.
pub(crate) fn told(mut span: SpanData) -> SpanData {
    if span.name == PHASE
        && let Some(name) = text(&span, NAME)
    {
        span.name = name.into();
    }
    span.attributes = span.attributes.into_iter().filter_map(attribute).collect();
    if span.name == REQUEST {
        span.span_kind = SpanKind::Server;
        let named = text(&span, METHOD).map(|method| match text(&span, ROUTE) {
            Some(route) => format!("{method} {route}"),
            None => method,
        });
        span.name = named.map_or(span.name, Into::into);
    }
    span
}

fn text(span: &SpanData, key: &str) -> Option<String> {
    span.attributes.iter().find(|pair| pair.key.as_str() == key).map(|pair| pair.value.to_string())
}

fn attribute(pair: KeyValue) -> Option<KeyValue> {
    let field = FIELDS.iter().find(|(field, _)| *field == pair.key.as_str()).map(|(_, key)| *key);
    let key = field.or_else(|| NOTED.into_iter().find(|noted| *noted == pair.key.as_str()))?;
    let value = match pair.value {
        Value::String(text) if text.as_str().len() > MAX_TEXT_BYTES => cut(text.as_str()),
        value => value,
    };
    Some(KeyValue::new(Key::from_static_str(key), value))
}

fn cut(text: &str) -> Value {
    let end = (0..=MAX_TEXT_BYTES).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    Value::String(StringValue::from(text[..end].to_owned()))
}
