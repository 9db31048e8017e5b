//! `firkin audit`: who changed what, from the files that the server leaves in its state directory. It needs no server.

use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, anyhow};
use fs_err as fs;
use jiff::{Span, Timestamp, tz::TimeZone};
use serde_json::Value;

use crate::{
    args::teams::AuditArgs,
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    settings::{Format, Settings},
};

/// Lists what was done, oldest first.
pub(crate) fn run(settings: &Settings, args: &AuditArgs) -> anyhow::Result<ExitStatus> {
    let since = args.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?;
    let mut found = Vec::new();
    for path in firkin_server::audit::files(&settings.audit_dir()) {
        let file = BufReader::new(fs::File::open(&path)?);
        for line in file.lines() {
            let line = line.with_context(|| format!("cannot read `{}`", path.display()))?;
            // One that a power failure cut off says nothing.
            let Ok(entry) = serde_json::from_str::<Value>(&line) else { continue };
            if wanted(&entry, args.team.as_deref(), since) {
                found.push(entry);
            }
        }
    }
    match settings.format {
        // A line each, as it was written: there may be many.
        Format::Json => {
            let lines: String = found.iter().map(|entry| format!("{entry}\n")).collect();
            output::text(&lines)?;
        }
        Format::Table => output::text(&table(&found).render())?,
    }
    Ok(ExitStatus::Success)
}

fn wanted(entry: &Value, team: Option<&str>, since: Option<Timestamp>) -> bool {
    let at = || entry["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
    team.is_none_or(|team| entry["team"] == team) && since.is_none_or(|since| at().is_some_and(|at| at >= since))
}

/// A time, or so long before now.
fn since(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago = text.parse::<Span>().map_err(|_| anyhow!("`{text}` is no time"));
    let ago = ago.hint("write `2026-01-31T12:00:00Z`, or `2h` or `7d` for so long ago")?;
    Ok(now.to_zoned(TimeZone::UTC).checked_sub(ago).context("cannot tell when that was")?.timestamp())
}

fn table(entries: &[Value]) -> Table {
    let mut table = Table::new(&["at", "team", "key", "from", "what", "outcome", "request"]);
    for entry in entries {
        let text = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
        let method = entry["action"].as_str().and_then(|action| action.split(' ').next()).unwrap_or("-").to_owned();
        let made = entry["made"].as_str().map(|made| format!(" -> {made}")).unwrap_or_default();
        let what = format!("{method} {}{made}", text("object"));
        // Who did not wait for the answer has no status.
        let status = entry["status"].as_u64().map(|status| status.to_string());
        let outcome: Vec<_> = status.into_iter().chain(entry["error"].as_str().map(str::to_owned)).collect();
        let outcome = outcome.join(" ");
        table.row([text("at"), text("team"), text("key"), text("from"), what, outcome, text("request")]);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_are_chosen_by_team_and_time_and_shown_in_a_line_each() {
        let entry = |team: &str, at: &str| {
            json!({"at": at, "request": "r-1", "team": team, "key": "key_1", "from": "127.0.0.1", "action": "POST /v2/sandboxes",
                   "object": "/v2/sandboxes", "made": "i1", "status": 201})
        };
        let entries = [entry("b", "2026-01-01T00:00:00Z"), entry("firkin", "2026-01-02T00:00:00Z")];
        let now: Timestamp = "2026-01-02T12:00:00Z".parse().unwrap();
        let chosen = |team, text: Option<&str>| {
            let since = text.map(|text| since(text, now).unwrap());
            entries.iter().filter(|entry| wanted(entry, team, since)).count()
        };
        assert_eq!((chosen(None, None), chosen(Some("b"), None), chosen(None, Some("1d"))), (2, 1, 1));
        assert_eq!((chosen(Some("b"), Some("2026-01-02T00:00:00Z")), chosen(None, Some("7d"))), (0, 2));
        assert!(since("yesterday", now).is_err());
        let shown = table(&entries[..1]).render();
        assert!(shown.contains("b     key_1  127.0.0.1  POST /v2/sandboxes -> i1  201      r-1"), "{shown}");
    }
}
