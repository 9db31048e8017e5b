//! What `firkin top` knows, and how it looks: folded out of events, drawn on any terminal from 80 by 24 on.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Borders, Cell, Paragraph, Row, Table},
};
use serde_json::Value;

use crate::stream::Event;

/// Last events that are shown.
const LAST: usize = 5;

/// Sandboxes whose use may be asked for at once.
const MAX_ASKED: usize = 100;

/// A sandbox as it is shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct Shown {
    template: String,
    state: String,
    started: Option<Timestamp>,
    ends: Option<Timestamp>,
    cpus: u64,
    memory_mib: u64,
    labels: String,
    used: Option<(f64, u64)>,
}

/// Everything that is shown.
#[derive(Debug, Default)]
pub(super) struct Board {
    sandboxes: BTreeMap<String, Shown>,
    capacity: Value,
    pool: Value,
    conditions: BTreeMap<String, bool>,
    last: VecDeque<String>,
    /// The first row.
    top: usize,
    /// Rows that there was room for.
    rows: usize,
}

/// Text of a server's: control characters in it must not reach the terminal.
fn clean(value: &Value) -> String {
    value.as_str().unwrap_or_default().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

impl Board {
    /// Takes in what happened.
    pub(super) fn take(&mut self, event: &Event) {
        let data = &event.data;
        match event.name.as_str() {
            "snapshot" => {
                self.sandboxes.clear();
                data["sandboxes"].as_array().into_iter().flatten().for_each(|sandbox| self.put(sandbox));
                (self.capacity, self.pool) = (data["capacity"].clone(), data["pool"].clone());
                data["conditions"].as_array().into_iter().flatten().for_each(|state| self.condition(state));
            }
            "sandbox" if data["event"] == "killed" => drop(self.sandboxes.remove(&clean(&data["sandbox"]["sandboxID"]))),
            "sandbox" => self.put(&data["sandbox"]),
            "capacity" => self.capacity = data["capacity"].clone(),
            "pool" => self.pool = data["pool"].clone(),
            "host" => self.condition(data),
            _ => {}
        }
        if !matches!(event.name.as_str(), "snapshot" | "capacity" | "pool") {
            self.remember(event);
        }
    }

    fn put(&mut self, sandbox: &Value) {
        let id = clean(&sandbox["sandboxID"]);
        let time = |name: &str| sandbox[name].as_str().and_then(|time| time.parse().ok());
        let labels = sandbox["metadata"].as_object().into_iter().flatten();
        let labels: Vec<_> = labels.map(|(name, value)| format!("{}={}", clean(&name.as_str().into()), clean(value))).collect();
        let used = self.sandboxes.get(&id).and_then(|known| known.used);
        let alias = clean(&sandbox["alias"]);
        let shown = Shown {
            template: if alias.is_empty() { clean(&sandbox["templateID"]) } else { alias },
            state: clean(&sandbox["state"]),
            started: time("startedAt"),
            ends: time("endAt"),
            cpus: sandbox["cpuCount"].as_u64().unwrap_or_default(),
            memory_mib: sandbox["memoryMB"].as_u64().unwrap_or_default(),
            labels: labels.join(" "),
            used,
        };
        self.sandboxes.insert(id, shown);
    }

    fn condition(&mut self, state: &Value) {
        self.conditions.insert(clean(&state["condition"]).replace('_', " "), state["holds"] == true);
    }

    fn remember(&mut self, event: &Event) {
        let data = &event.data;
        let subject = [&data["sandbox"]["sandboxID"], &data["buildID"], &data["templateID"], &data["artifact"], &data["subject"]];
        let subject = subject.into_iter().map(clean).find(|text| !text.is_empty()).unwrap_or_else(|| clean(&data["condition"]));
        let at = data["at"].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let at = at.map_or_else(String::new, |at| at.strftime("%H:%M:%S ").to_string());
        let (what, reason) = (clean(&data["event"]), clean(&data["reason"]));
        let reason = if reason.is_empty() { reason } else { format!(" ({reason})") };
        self.last.push_back(format!("{at}{} {what} {subject}{reason}", event.name));
        if self.last.len() > LAST {
            self.last.pop_front();
        }
    }

    /// Sandboxes whose use is shown now.
    pub(super) fn visible_running(&self) -> Vec<String> {
        let visible = self.sandboxes.iter().skip(self.top).take(self.rows.min(MAX_ASKED));
        visible.filter(|(_, shown)| shown.state == "running").map(|(id, _)| id.clone()).collect()
    }

    /// Takes in how busy sandboxes are.
    pub(super) fn used(&mut self, answer: Option<&Value>) {
        for (id, sample) in answer.and_then(|answer| answer["sandboxes"].as_object()).into_iter().flatten() {
            if let Some(shown) = self.sandboxes.get_mut(id) {
                shown.used = sample["cpuUsedPct"].as_f64().zip(sample["memUsed"].as_u64());
            }
        }
    }

    /// Moves the list.
    pub(super) fn scroll(&mut self, by: i32) {
        let by = isize::try_from(by).unwrap_or_default();
        self.top = self.top.saturating_add_signed(by).min(self.sandboxes.len().saturating_sub(1));
    }

    /// Draws everything.
    pub(super) fn draw(&mut self, frame: &mut Frame<'_>, now: Timestamp) {
        let last = u16::try_from(LAST).unwrap_or(u16::MAX) + 1;
        let parts =
            Layout::vertical([Constraint::Length(3), Constraint::Min(4), Constraint::Length(last), Constraint::Length(1)]);
        let [head, list, log, foot] = parts.areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.draw_list(frame, list, now);
        let lines: Vec<Line<'_>> = self.last.iter().map(|line| Line::raw(line.as_str())).collect();
        frame.render_widget(Paragraph::new(lines).block(Block::new().borders(Borders::TOP).title("events")), log);
        let keys = Line::styled("q quit  ↑↓ scroll", Style::new().add_modifier(Modifier::DIM));
        frame.render_widget(keys, foot);
    }

    fn head(&self) -> Vec<Line<'static>> {
        let running = self.sandboxes.values().filter(|shown| shown.state == "running").count();
        let mut lines = vec![Line::raw(format!("sandboxes  {running} running, {} paused", self.sandboxes.len() - running))];
        let usage = &self.capacity["usage"];
        if usage.is_object() {
            let held = |name: &str| {
                [&usage["active"], &usage["warm"]].iter().filter_map(|class| class["held"][name].as_u64()).sum::<u64>()
            };
            let of = |name: &str| self.capacity["capacity"][name].as_u64().unwrap_or_default();
            let waiting = self.capacity["waiting"].as_u64().unwrap_or_default();
            let (hits, misses) = (&self.pool["hits"], &self.pool["misses"]);
            lines.push(Line::raw(format!(
                "capacity   cpus {}/{}  memory {}/{} MiB  queue {waiting}  warm pool {hits} hits {misses} misses",
                held("cpus"),
                of("cpus"),
                held("memory_mib"),
                of("memory_mib"),
            )));
        }
        let holding: Vec<_> = self.conditions.iter().filter(|(_, holds)| **holds).map(|(name, _)| name.as_str()).collect();
        if !holding.is_empty() {
            lines.push(Line::styled(format!("host       {}", holding.join(", ")), Style::new().add_modifier(Modifier::BOLD)));
        }
        lines
    }

    fn draw_list(&mut self, frame: &mut Frame<'_>, area: Rect, now: Timestamp) {
        self.rows = usize::from(area.height.saturating_sub(1));
        self.top = self.top.min(self.sandboxes.len().saturating_sub(1));
        let row = |(id, shown): (&String, &Shown)| {
            let (cpu, memory) = shown.used.filter(|_| shown.state == "running").map_or_else(
                || ("-".to_owned(), "-".to_owned()),
                |(cpu, bytes)| (format!("{cpu:.0}%"), (bytes >> 20).to_string()),
            );
            let left = if shown.state == "running" { shown.ends.map(|ends| span(now, ends)) } else { None };
            Row::new([
                id.clone(),
                shown.template.clone(),
                shown.state.clone(),
                shown.started.map(|started| span(started, now)).unwrap_or_default(),
                left.unwrap_or_else(|| "-".to_owned()),
                cpu,
                format!("{memory}/{}", shown.memory_mib),
                shown.labels.clone(),
            ])
        };
        let rows: Vec<_> = self.sandboxes.iter().skip(self.top).take(self.rows).map(row).collect();
        let widths = [21, 12, 7, 5, 5, 5, 9].map(Constraint::Length).into_iter().chain([Constraint::Min(6)]);
        let heading = ["SANDBOX", "TEMPLATE", "STATE", "AGE", "LEFT", "CPU", "MEMORY", "LABELS"].map(Cell::from);
        let heading = Row::new(heading).style(Style::new().add_modifier(Modifier::REVERSED));
        frame.render_widget(Table::new(rows, widths).header(heading).column_spacing(1), area);
    }
}

/// Time from one moment to another, in at most four letters.
fn span(from: Timestamp, to: Timestamp) -> String {
    match (to.as_second() - from.as_second()).max(0) {
        seconds @ 0..100 => format!("{seconds}s"),
        seconds @ 100..6000 => format!("{}m", seconds / 60),
        seconds @ 6000..360_000 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: Value) -> Event {
        Event { name: name.to_owned(), data }
    }

    fn screen(board: &mut Board, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| board.draw(frame, "2026-01-01T00:02:00Z".parse().unwrap())).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned() + "\n").collect()
    }

    fn sandbox(id: &str, state: &str) -> Value {
        json!({
            "sandboxID": id, "templateID": "t", "alias": "base", "state": state, "startedAt": "2026-01-01T00:01:00Z",
            "endAt": "2026-01-01T00:06:00Z", "cpuCount": 1, "memoryMB": 512, "metadata": {"who": "me\u{1b}[2J"},
        })
    }

    #[test]
    fn everything_fits_a_small_terminal_and_follows_events() {
        let mut board = Board::default();
        let capacity = json!({
            "capacity": {"cpus": 16, "memory_mib": 4096}, "waiting": 2,
            "usage": {"active": {"held": {"cpus": 2, "memory_mib": 1024}}, "warm": {"held": {"cpus": 1, "memory_mib": 512}}},
        });
        board.take(&event(
            "snapshot",
            json!({
                "sandboxes": [sandbox("i1", "running")], "capacity": capacity, "pool": {"hits": 3, "misses": 1},
                "conditions": [{"condition": "short_of_disk", "holds": true}],
            }),
        ));
        board.take(&event(
            "sandbox",
            json!({"at": "2026-01-01T00:01:59Z", "event": "paused", "sandbox": sandbox("i2", "paused")}),
        ));
        screen(&mut board, 80, 24);
        assert_eq!(board.visible_running(), ["i1"]);
        board.used(Some(&json!({"sandboxes": {"i1": {"cpuUsedPct": 12.6, "memUsed": 104_857_600}}})));
        let shown = screen(&mut board, 80, 24);
        for expected in [
            "sandboxes  1 running, 1 paused",
            "capacity   cpus 3/16  memory 1536/4096 MiB  queue 2  warm pool 3 hits 1 misses",
            "host       short of disk",
            "i1                    base         running 60s   4m    13%   100/512   who=me\u{fffd}[2",
            "i2                    base         paused  60s   -     -     -/512",
            "00:01:59 sandbox paused i2",
            "q quit",
        ] {
            assert!(shown.contains(expected), "`{expected}` is not in\n{shown}");
        }
        board.take(&event("sandbox", json!({"event": "killed", "sandbox": sandbox("i1", "running")})));
        assert!(screen(&mut board, 80, 24).contains("0 running, 1 paused"));
    }

    #[test]
    fn a_long_list_scrolls_and_a_tiny_terminal_is_no_harm() {
        let mut board = Board::default();
        let many: Vec<_> = (0..1000).map(|n| sandbox(&format!("i{n:04}"), "running")).collect();
        board.take(&event("snapshot", json!({ "sandboxes": many })));
        assert!(screen(&mut board, 80, 24).contains("i0000"));
        board.scroll(500);
        let shown = screen(&mut board, 80, 24);
        assert!(shown.contains("i0500") && !shown.contains("i0000"), "{shown}");
        board.scroll(10_000);
        assert!(screen(&mut board, 80, 24).contains("i0999"));
        board.scroll(-20_000);
        for (width, height) in [(1, 1), (20, 3), (300, 100)] {
            screen(&mut board, width, height);
        }
    }

    #[test]
    fn times_are_short() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let shown: Vec<_> = [0, 99, 100, 5999, 6000, 359_999, 360_000, 10_000_000].map(|to| span(at(0), at(to))).into();
        assert_eq!(shown, ["0s", "99s", "1m", "99m", "1h", "99h", "4d", "115d"]);
        assert_eq!(span(at(9), at(0)), "0s");
    }
}
