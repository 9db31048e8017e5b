//! `firkin sandbox logs`: what became of one sandbox. The output of its commands is not among it.

use std::collections::VecDeque;

use anyhow::Context as _;
use serde_json::Value;

use crate::{
    api::{Api, escape},
    args::watching::LogsArgs,
    failure::ExitStatus,
    output::{self, Table},
    settings::{Format, Settings},
    stream::Events,
};

/// Lines that were shown and are remembered, so that none is shown twice: as many as the server keeps of a sandbox.
const REMEMBERED: usize = 512;

/// Runs the command.
pub(super) async fn run(api: &Api, settings: &Settings, args: &LogsArgs) -> anyhow::Result<ExitStatus> {
    let read = async || {
        let found = api.get(&format!("/v2/sandboxes/{}/logs", escape(&args.id))).await;
        found.with_context(|| format!("the log of `{}` was not read", args.id))
    };
    if !args.follow {
        let found = read().await?;
        output::result(settings.format, &found["logs"], || {
            let mut table = Table::new(&["at", "level", "message", "details"]);
            lines(&found).for_each(|entry| table.row(cells(entry)));
            table
        })?;
        return Ok(ExitStatus::Success);
    }
    // Before the first look: what comes in between is told.
    let mut events = Events::open(api, &["sandbox".to_owned()]).await.context("cannot follow the sandbox")?;
    let mut shown = VecDeque::new();
    loop {
        let found = read().await?;
        for entry in lines(&found) {
            if !shown.contains(entry) {
                show(settings.format, entry)?;
                shown.push_back(entry.clone());
                if shown.len() > REMEMBERED {
                    shown.pop_front();
                }
            }
        }
        // Another sandbox's events are nothing to look for.
        loop {
            let Some(event) = events.next_unless_interrupted().await? else { return Ok(ExitStatus::Interrupted) };
            let own = event.data["sandbox"]["sandboxID"] == args.id.as_str();
            if own && event.data["event"] == "killed" {
                for entry in lines(&read().await?).filter(|entry| !shown.contains(*entry)) {
                    show(settings.format, entry)?;
                }
                return Ok(ExitStatus::Success);
            }
            if own || event.name == "missed" {
                break;
            }
        }
    }
}

fn lines(found: &Value) -> impl Iterator<Item = &Value> {
    found["logs"].as_array().into_iter().flatten()
}

fn show(format: Format, entry: &Value) -> anyhow::Result<()> {
    match format {
        Format::Json => output::text(&format!("{entry}\n")),
        Format::Table => {
            let line = cells(entry).join("  ");
            let line: String = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
            output::text(&format!("{}\n", line.trim_end()))
        }
    }
}

fn cells(entry: &Value) -> [String; 4] {
    let text = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
    let fields = entry["fields"].as_object().into_iter().flatten().filter(|(name, _)| *name != "logger");
    let fields: Vec<_> = fields.map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    [text("timestamp"), text("level"), text("message"), fields.join(" ")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_is_a_line() {
        let entry = json!({"timestamp": "t", "level": "info", "message": "sandbox ended", "fields": {"logger": "sandbox", "reason": "killed"}});
        assert_eq!(cells(&entry), ["t", "info", "sandbox ended", "reason=killed"].map(str::to_owned));
    }
}
