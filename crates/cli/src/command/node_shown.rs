//! A node, as it is shown: what is on record of it, and what it last said of itself.

use firkin_postgres::{AWAY, NodeRecord, NodeState};
use serde::Serialize;
use serde_json::Value;

use crate::output::Table;

/// What nobody has said.
const UNSAID: &str = "–";

/// A node.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    pub(super) id: String,
    pub(super) name: String,
    address: String,
    host: String,
    term: i64,
    pub(super) state: &'static str,
    reason: String,
    /// How long it has been in that state.
    since_s: u64,
    lease_left_s: u64,
    away_s: u64,
    /// What it said with its last renewal.
    info: Value,
}

impl Shown {
    pub(super) fn of(record: &NodeRecord) -> Self {
        let (state, away) = (record.word(), record.lease_over.as_secs());
        // One that was forgotten has no lease, and has had none since it was.
        let forgotten = record.state == NodeState::Forgotten;
        Self {
            id: record.id.to_string(),
            name: record.name.clone(),
            address: record.address.clone(),
            host: record.host.clone(),
            term: record.term,
            state,
            reason: record.reason.clone(),
            since_s: if state == AWAY { away } else { record.since.as_secs() },
            lease_left_s: record.lease_left.as_secs(),
            away_s: if forgotten { record.since.as_secs() } else { away },
            info: serde_json::from_str(&record.info).unwrap_or(Value::Null),
        }
    }

    fn said(&self, pointer: &str) -> String {
        match self.info.pointer(pointer) {
            None | Some(Value::Null) => UNSAID.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        }
    }

    /// Of what it offers sandboxes, how much they hold.
    fn held(&self, resource: &str) -> String {
        format!("{} of {}", self.said(&format!("/held/{resource}")), self.said(&format!("/capacity/{resource}")))
    }

    /// How many templates and snapshots it holds.
    fn holds(&self) -> String {
        let held = self.info.get("holds").and_then(Value::as_array);
        held.map_or_else(|| UNSAID.to_owned(), |held| held.len().to_string())
    }

    /// Whether it is there and does not answer yet.
    fn begins(&self) -> bool {
        self.lease_left_s > 0 && self.info.get("serves") == Some(&Value::Bool(false))
    }

    fn lease(&self) -> String {
        match (self.state, self.lease_left_s) {
            ("forgotten", _) => "taken away".to_owned(),
            (_, 0) => format!("over for {}", ago(self.away_s)),
            (_, left) => format!("{left} s left"),
        }
    }

    fn why(&self) -> String {
        if self.begins() && self.reason.is_empty() { "it begins".to_owned() } else { self.reason.clone() }
    }
}

/// A time for people.
pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `firkin node ls`
pub(super) fn list(nodes: &[Shown]) -> Table {
    let heading = [
        "node",
        "state",
        ">since",
        ">lease",
        "runs by",
        ">running",
        ">paused",
        ">memory MiB",
        ">templates",
        "version",
        "address",
        "reason",
    ];
    let mut table = Table::new(&heading);
    for node in nodes {
        table.row([
            node.name.clone(),
            node.state.to_owned(),
            ago(node.since_s),
            node.lease(),
            node.said("/acceleration"),
            node.said("/running"),
            node.said("/paused"),
            node.held("memory_mib"),
            node.holds(),
            node.said("/version"),
            node.address.clone(),
            node.why(),
        ]);
    }
    table
}

/// `firkin node info`
pub(super) fn details(node: &Shown) -> Table {
    let mut table = Table::new(&["what", "is"]);
    let engines = node.info.get("engines").and_then(Value::as_array).cloned().unwrap_or_default();
    let engines: Vec<&str> = engines.iter().filter_map(Value::as_str).collect();
    let mut row = |what: &str, is: String| table.row([what.to_owned(), is]);
    row("name", node.name.clone());
    row("id", node.id.clone());
    row("state", format!("{} for {}", node.state, ago(node.since_s)));
    if !node.why().is_empty() {
        row("reason", node.why());
    }
    row("lease", node.lease());
    row("term", node.term.to_string());
    row("address of its peer port", node.address.clone());
    row("host", node.host.clone());
    if node.lease_left_s == 0 {
        row("below", "as it last said".to_owned());
    }
    row("version", node.said("/version"));
    row("runs sandboxes by", node.said("/acceleration"));
    if engines.len() > 1 {
        row("and has", engines.join(", "));
    }
    row("running", node.said("/running"));
    row("paused", node.said("/paused"));
    row("of these on no other node", node.said("/copies_owed"));
    row("CPUs held", node.held("cpus"));
    row("memory held, MiB", node.held("memory_mib"));
    row("disk held, MiB", node.held("disk_mib"));
    row("templates and snapshots held", node.holds());
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn record(left: u64, over: u64, state: NodeState) -> NodeRecord {
        NodeRecord {
            id: "a".repeat(20).parse().unwrap(),
            name: "node-a".to_owned(),
            address: "10.0.0.1:3001".to_owned(),
            host: "a.test".to_owned(),
            term: 3,
            state,
            reason: String::new(),
            since: Duration::from_secs(7200),
            lease_left: Duration::from_secs(left),
            lease_over: Duration::from_secs(over),
            info: r#"{"version": "0.1.0", "serves": true, "acceleration": "kvm", "engines": ["kvm", "gvisor"], "running": 3, "paused": 2, "copies_owed": 1,
                "capacity": {"cpus": 16, "memory_mib": 8192, "disk_mib": 100}, "held": {"cpus": 4, "memory_mib": 2048, "disk_mib": 10},
                "holds": ["x", "y"]}"#
                .to_owned(),
        }
    }

    #[test]
    fn a_node_is_told_with_its_facts() {
        let node = Shown::of(&record(99, 0, NodeState::Ready));
        assert_eq!(
            list(&[node]).render(),
            "NODE    STATE  SINCE      LEASE  RUNS BY  RUNNING  PAUSED    MEMORY MIB  TEMPLATES  VERSION  ADDRESS        REASON\n\
             node-a  ready    2 h  99 s left  kvm            3       2  2048 of 8192          2  0.1.0    10.0.0.1:3001\n"
        );
        let lines = details(&Shown::of(&record(99, 0, NodeState::Cordoned))).render();
        for line in [
            "state                         cordoned for 2 h",
            "and has                       kvm, gvisor",
            "CPUs held                     4 of 16",
            "of these on no other node     1",
        ] {
            assert!(lines.contains(line), "{lines}");
        }
        assert!(!lines.contains("as it last said"));
    }

    #[test]
    fn one_that_is_away_or_forgotten_or_begins_says_so() {
        let away = Shown::of(&record(0, 43, NodeState::Cordoned));
        assert_eq!((away.state, away.since_s, away.lease().as_str()), ("away", 43, "over for 43 s"));
        assert!(details(&away).render().contains("as it last said"));
        let forgotten = Shown::of(&record(0, 1_700_000_000, NodeState::Forgotten));
        assert_eq!((forgotten.state, forgotten.away_s, forgotten.lease().as_str()), ("forgotten", 7200, "taken away"));
        let begins = NodeRecord { info: r#"{"serves": false}"#.to_owned(), ..record(9, 0, NodeState::Ready) };
        assert_eq!(Shown::of(&begins).why(), "it begins");
        // What it says may be another version's, or nothing yet.
        let silent = Shown::of(&NodeRecord { info: "{}".to_owned(), ..begins });
        assert_eq!((silent.why().as_str(), silent.held("cpus").as_str(), silent.holds().as_str()), ("", "– of –", "–"));
    }
}
