//! `firkin events`: what happened to sandboxes, or what happens from now on.

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    api::Api,
    args::watching::EventsArgs,
    failure::ExitStatus,
    output::{self, Table},
    serverfile,
    settings::{Format, Settings},
    stream::{Event, Events},
};

/// Runs the command.
pub(crate) async fn run(settings: &Settings, args: EventsArgs) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    if args.follow { follow(&api, settings, &args.topics).await } else { last(&api, settings, args.limit).await }
}

async fn last(api: &Api, settings: &Settings, limit: u32) -> anyhow::Result<ExitStatus> {
    let mut events = api.get(&format!("/events/sandboxes?limit={limit}")).await.context("cannot list events")?;
    // The newest last, as in a log.
    if let Some(events) = events.as_array_mut() {
        events.reverse();
    }
    output::result(settings.format, &events, || {
        let mut table = Table::new(&["at", "event", "sandbox", "template"]);
        for event in events.as_array().into_iter().flatten() {
            let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
            let kind = text("type").trim_start_matches("sandbox.lifecycle.").to_owned();
            table.row([text("timestamp"), kind, text("sandboxId"), text("sandboxTemplateId")]);
        }
        table
    })?;
    Ok(ExitStatus::Success)
}

/// Tells what happens until Ctrl-C, a line each.
async fn follow(api: &Api, settings: &Settings, topics: &[String]) -> anyhow::Result<ExitStatus> {
    let mut events = Events::open(api, topics).await.context("cannot follow what happens")?;
    while let Some(event) = events.next_unless_interrupted().await? {
        match settings.format {
            Format::Json => output::text(&format!("{}\n", with_name(&event)))?,
            Format::Table => output::text(&format!("{}\n", line(&event)))?,
        }
    }
    Ok(ExitStatus::Interrupted)
}

/// An event for a program: also what says no topic itself.
fn with_name(event: &Event) -> Value {
    let mut data = event.data.clone();
    if data.get("topic").is_none() {
        data["topic"] = event.name.as_str().into();
    }
    data
}

/// An event for people: when, about what, what.
fn line(event: &Event) -> String {
    let data = &event.data;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let what = match event.name.as_str() {
        "snapshot" => format!("following from {}", text(&data["asOf"]).unwrap_or_default()),
        "missed" => format!("some events were missed: {}", text(&data["reason"]).unwrap_or_default()),
        "capacity" => {
            let usage = &data["capacity"]["usage"]["active"];
            format!("{} sessions hold {} cpus, {} MiB", usage["sessions"], usage["held"]["cpus"], usage["held"]["memory_mib"])
        }
        "pool" => format!("{} hits, {} misses", data["pool"]["hits"], data["pool"]["misses"]),
        "host" => {
            let holds = if data["holds"] == true { "begins" } else { "is not so" };
            format!("{} {holds}", text(&data["condition"]).unwrap_or_default())
        }
        _ => {
            let subject =
                [&data["sandbox"]["sandboxID"], &data["buildID"], &data["templateID"], &data["artifact"], &data["subject"]];
            let subject = subject.into_iter().find_map(text).unwrap_or_default();
            let reason = text(&data["reason"]).map(|reason| format!(" ({reason})")).unwrap_or_default();
            format!("{} {subject}{reason}", text(&data["event"]).unwrap_or_default())
        }
    };
    let at = text(&data["at"]).unwrap_or_default();
    // It comes from a server: control characters must not reach the terminal.
    let line = format!("{at:<30}  {:<10}  {what}", event.name);
    line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect::<String>().trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = |name: &str, data: Value| Event { name: name.into(), data };
        let at = "2026-01-01T00:00:00Z";
        for (event, expected) in [
            (
                event(
                    "sandbox",
                    json!({"at": at, "event": "killed", "reason": "its deadline passed", "sandbox": {"sandboxID": "i1"}}),
                ),
                "2026-01-01T00:00:00Z            sandbox     killed i1 (its deadline passed)",
            ),
            (
                event("host", json!({"at": at, "condition": "short_of_disk", "holds": true})),
                "2026-01-01T00:00:00Z            host        short_of_disk begins",
            ),
            (
                event("admission", json!({"at": at, "event": "refused", "reason": "queue_full", "subject": "a\u{1b}[2J"})),
                "2026-01-01T00:00:00Z            admission   refused a\u{fffd}[2J (queue_full)",
            ),
            (event("snapshot", json!({"asOf": "e-1"})), "snapshot    following from e-1"),
        ] {
            assert_eq!(line(&event), expected);
        }
        assert_eq!(with_name(&event("missed", json!({"reason": "too_old"})))["topic"], "missed");
    }
}
