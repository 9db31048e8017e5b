//! A sandbox's events, in the form of E2B's two generations of logs.
//!
//! The lines are the events of its life as the server saw them. Output of commands is not among them: it belongs to whoever runs
//! the command.

use axum::Json as Reply;
use firkin_runtime::history::Event;
use firkin_wire::rest;

use crate::{auth::Caller, error::ApiError, extract::Sandbox, listing::Query};

/// Lines in one answer, at most and by default.
const MAX_LIMIT: usize = 1000;

/// The value of `logger`, by which the CLI groups lines.
const LOGGER: &str = "sandbox";

/// `GET /sandboxes/{id}/logs`. The CLI parses each line as JSON.
pub(super) async fn v1(caller: Caller, Sandbox(id): Sandbox, query: Query) -> Result<Reply<rest::SandboxLogs>, ApiError> {
    let start = milliseconds(&query, "start")?;
    let mut events = caller.runtime.events(&id)?;
    events.retain(|event| start.is_none_or(|start| event.at.as_millisecond() >= start));
    events.truncate(limit(&query)?);
    let log_entries: Vec<_> = events.into_iter().map(entry).collect();
    let logs = log_entries.iter().map(line).collect();
    Ok(Reply(rest::SandboxLogs { logs, log_entries }))
}

/// `GET /v2/sandboxes/{id}/logs`.
pub(super) async fn v2(caller: Caller, Sandbox(id): Sandbox, query: Query) -> Result<Reply<rest::SandboxLogsV2>, ApiError> {
    let (cursor, limit, least) = (milliseconds(&query, "cursor")?, limit(&query)?, query.least_level()?);
    let backward = query.is_backward()?;
    let wanted = |event: &Event| {
        let at = event.at.as_millisecond();
        cursor.is_none_or(|cursor| if backward { at <= cursor } else { at >= cursor })
            && event.level >= least
            && query.get("search").is_none_or(|text| event.message.contains(text))
    };
    let mut events = caller.runtime.events(&id)?;
    events.retain(wanted);
    if backward {
        events.reverse();
    }
    events.truncate(limit);
    Ok(Reply(rest::SandboxLogsV2 { logs: events.into_iter().map(entry).collect() }))
}

fn milliseconds(query: &Query, name: &str) -> Result<Option<i64>, ApiError> {
    let wrong = || ApiError::bad_request(format!("`{name}` must be a number of milliseconds since 1970"));
    query.get(name).map(|text| text.parse().map_err(|_| wrong())).transpose()
}

fn limit(query: &Query) -> Result<usize, ApiError> {
    match query.get("limit").map(str::parse) {
        None => Ok(MAX_LIMIT),
        Some(Ok(limit)) if (1..=MAX_LIMIT).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::bad_request(format!("`limit` must be a number from 1 to {MAX_LIMIT}"))),
    }
}

fn entry(event: Event) -> rest::LogEntry {
    let mut fields: std::collections::BTreeMap<_, _> =
        event.fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    fields.insert("logger".into(), LOGGER.into());
    rest::LogEntry { timestamp: event.at, message: event.message, level: event.level, fields }
}

fn line(entry: &rest::LogEntry) -> rest::LogLine {
    let mut line = serde_json::json!({ "level": entry.level, "message": entry.message, "timestamp": entry.timestamp });
    for (name, value) in &entry.fields {
        line[name] = value.as_str().into();
    }
    rest::LogLine { timestamp: entry.timestamp, line: line.to_string() }
}
