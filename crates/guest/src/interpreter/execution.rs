//! One execution: from a cell to the lines that the client reads, and what happens when it stops reading.
//!
//! ```text
//!   wait for a turn ─► kernel there? start it ─► run ─► events ─► end_of_execution
//!         │ keepalive each 5 s                     │
//!         └ client gone: nothing was begun         ├ client gone: interrupt, again each 5 s, until the cell is over
//!                                                  └ kernel gone: unexpected_end_of_execution; the next cell gets another
//! ```

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use firkin_causes::chain;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::json;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    contexts::{Context, Contexts},
    event::{Event, Fields, Kind, raw},
    kernel::{Cell, Kernel},
};

/// Between two lines to a client whose cell says nothing, and between two interrupts of a cell that ignores them.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The client's end of an execution.
pub(super) type Lines = mpsc::Sender<Bytes>;

/// Runs a cell to its end and tells it line by line. Returns once the context is free for the next.
pub(super) async fn execute(contexts: Contexts, context: Arc<Context>, cell: Cell, lines: Lines) {
    let Some(mut turn) = alive(&lines, context.turn()).await else { return };
    let started = match alive(&lines, contexts.ensure(&context, &mut turn)).await {
        Some(started) => started,
        None => return,
    };
    match (started, turn.as_mut()) {
        (Ok(()), Some(kernel)) if cell.warm && kernel.is_used() => tell(&lines, &json!({"type": "end_of_execution"})).await,
        (Ok(()), Some(kernel)) => run(kernel, &cell, &lines).await,
        (Ok(()), None) => unreachable!("a kernel that was started is there"),
        (Err(error), _) => {
            let error = chain(&error);
            tell(&lines, &json!({"type": "error", "name": "KernelError", "value": error, "traceback": error})).await;
            tell(&lines, &json!({"type": "unexpected_end_of_execution"})).await;
        }
    }
    if turn.as_ref().is_some_and(Kernel::is_dead) {
        *turn = None;
    }
}

/// Waits for something while the client waits too; none when the client has gone.
async fn alive<T>(lines: &Lines, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    let mut keepalive = ticks();
    loop {
        tokio::select! {
            done = &mut work => return Some(done),
            () = lines.closed() => return None,
            _ = keepalive.tick() => tell(lines, &json!({"type": "keepalive"})).await,
        }
    }
}

async fn run(kernel: &mut Kernel, cell: &Cell, lines: &Lines) {
    let group = kernel.group();
    let mut events = kernel.run(cell).await;
    let mut ticks = ticks();
    let mut gone = false;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event { kind: Kind::Done, .. }) => return tell(lines, &json!({"type": "end_of_execution"})).await,
                Some(_) if gone => {}
                Some(event) => {
                    tell(lines, &line_of(event)).await;
                    ticks.reset();
                }
                None => return unexpected_end(lines).await,
            },
            () = lines.closed(), if !gone => {
                gone = true;
                group.signal(Signal::SIGINT);
                ticks.reset();
            }
            _ = ticks.tick() => if gone {
                group.signal(Signal::SIGINT);
            } else {
                tell(lines, &json!({"type": "keepalive"})).await;
            },
        }
    }
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval_at(Instant::now() + KEEPALIVE, KEEPALIVE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// As an error too, because clients show errors and pass over what they do not know.
async fn unexpected_end(lines: &Lines) {
    let value = "the kernel ended before the execution was finished";
    tell(lines, &json!({"type": "error", "name": "UnexpectedEndOfExecution", "value": value, "traceback": ""})).await;
    tell(lines, &json!({"type": "unexpected_end_of_execution"})).await;
}

async fn tell(lines: &Lines, line: &impl Serialize) {
    // A client that has gone is noticed where it matters.
    lines.send(Bytes::from(text_of(line))).await.ok();
}

/// One line, whatever ends a line for the client: Python's clients also split at three characters that JSON leaves as they are.
fn text_of(line: &impl Serialize) -> String {
    let mut text = serde_json::to_string(line).expect("what was read of JSON, and strings, serialise");
    for (separator, escaped) in [('\u{85}', "\\u0085"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")] {
        if text.contains(separator) {
            text = text.replace(separator, escaped);
        }
    }
    text.push('\n');
    text
}

/// An event in the contract's words.
fn line_of(event: Event) -> Fields {
    let Event { kind, mut fields, .. } = event;
    fields.retain(|_, value| value.get() != "null");
    let name = match kind {
        Kind::Count => "number_of_executions",
        Kind::Stdout | Kind::Stderr => {
            let now = Timestamp::now().as_nanosecond();
            fields.insert("timestamp".to_owned(), raw(&i64::try_from(now).unwrap_or(i64::MAX)));
            if kind == Kind::Stdout { "stdout" } else { "stderr" }
        }
        Kind::Result => {
            // What is no text stays what it is.
            let text = fields.get("text").and_then(|text| serde_json::from_str::<String>(text.get()).ok());
            if let Some(text) = text.as_deref().filter(|text| unquoted(text).len() < text.len()) {
                fields.insert("text".to_owned(), raw(unquoted(text)));
            }
            "result"
        }
        Kind::Error => "error",
        // A kernel says these of itself, not of a cell.
        Kind::Ready | Kind::Done => "keepalive",
    };
    fields.insert("type".to_owned(), raw(name));
    fields
}

/// A text value is shown without the quotes of its representation.
fn unquoted(text: &str) -> &str {
    let inside = |quote| text.strip_prefix(quote).and_then(|rest: &str| rest.strip_suffix(quote));
    inside('\'').or_else(|| inside('"')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::interpreter::event::Line;

    fn line(text: &str) -> Value {
        let event = Event::read(&Line::Whole(text.to_owned())).unwrap();
        serde_json::from_str(&text_of(&line_of(event))).unwrap()
    }

    #[test]
    fn results_lose_quotes_and_nulls() {
        let result = line(r#"{"cell":1,"type":"result","text":"'a'","html":null,"is_main_result":true}"#);
        assert_eq!(result, json!({"type": "result", "text": "a", "is_main_result": true}));
        for (given, expected) in [("\"x\"", "x"), ("'", "'"), ("''", ""), ("'a\"", "'a\""), ("5", "5")] {
            assert_eq!(unquoted(given), expected);
        }
    }

    #[test]
    fn a_line_is_one_line_for_every_client() {
        let line = json!({"text": "a\u{85}b\u{2028}c\u{2029}d\n\u{1c}\u{e9}"});
        let text = text_of(&line);
        assert_eq!(text, "{\"text\":\"a\\u0085b\\u2028c\\u2029d\\n\\u001c\u{e9}\"}\n");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), line);
    }

    #[test]
    fn output_has_the_time_and_counts_have_the_contracts_name() {
        let output = line(r#"{"cell":1,"type":"stderr","text":"a\n"}"#);
        assert_eq!((output["type"].as_str(), output["text"].as_str()), (Some("stderr"), Some("a\n")));
        assert!(output["timestamp"].as_i64().unwrap() > 1_700_000_000_000_000_000);
        let count = line(r#"{"cell":1,"type":"count","execution_count":3}"#);
        assert_eq!(count, json!({"type": "number_of_executions", "execution_count": 3}));
    }
}
