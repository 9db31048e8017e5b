//! `firkin cluster status`: how a cluster is, on one screen, and what is wrong with it in words. No server is asked: it is what is on record, and how
//! the database answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use firkin_cluster::clock::NOTICEABLE;
use firkin_postgres::{AWAY, ClusterRecord, Counted, Health, NodeRecord, NodeState};
use serde::Serialize;
use serde_json::Value;

use super::{catalog, node, node_shown::ago};
use crate::{
    args::cluster::ClusterLookArgs,
    failure::ExitStatus,
    output::{self, Table},
    settings::{Format, Settings},
};

/// A lease of which less is left has not been renewed for long.
const LEASE_LOW: Duration = Duration::from_secs(60);

/// Of all nodes together one writes at a time, in a few exchanges: from here on that is slow.
const ROUND_TRIP_LONG: Duration = Duration::from_millis(10);

/// How a cluster is.
#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    database: Database,
    /// How many nodes are in each state.
    nodes: BTreeMap<&'static str, usize>,
    sandboxes: Vec<OfNode>,
    /// What is wrong, and what to do.
    problems: Vec<String>,
    /// What is to be known.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Database {
    version: String,
    round_trip_ms: f64,
    durable: bool,
    /// `synchronous_standby_names`.
    waits_for_standby: String,
    standbys: u64,
    schema: i64,
    clock_ahead_ms: i64,
    clock_within_ms: u64,
}

#[derive(Debug, Serialize)]
struct OfNode {
    node: String,
    state: &'static str,
    running: u64,
    paused: u64,
}

/// What the records say, and the database.
struct Seen<'a> {
    cluster: &'a ClusterRecord,
    health: &'a Health,
    nodes: &'a [NodeRecord],
    counts: &'a [Counted],
}

/// `firkin cluster status`
pub(super) async fn status(settings: &Settings, args: &ClusterLookArgs) -> anyhow::Result<ExitStatus> {
    let members = node::members(&args.access).await?;
    let health = members.health().await.map_err(catalog::advising)?;
    let nodes = members.nodes().await.map_err(catalog::advising)?;
    let counts = members.counts().await.map_err(catalog::advising)?;
    let status = Seen { cluster: members.cluster(), health: &health, nodes: &nodes, counts: &counts }.status();
    match settings.format {
        Format::Json => output::json(&status)?,
        Format::Table => output::text(&status.screen())?,
    }
    Ok(if status.problems.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}

impl Seen<'_> {
    fn status(&self) -> Status {
        let Self { cluster, health, .. } = self;
        let mut nodes = BTreeMap::new();
        for node in self.nodes {
            *nodes.entry(node.word()).or_default() += 1;
        }
        let mut problems = self.of_database();
        problems.extend(self.nodes.iter().filter_map(|node| self.of_node(node)));
        if !self.nodes.iter().any(|node| node.word() == NodeState::Ready.word()) {
            problems.push("no node takes new sandboxes: start one, or `firkin node uncordon` one".to_owned());
        }
        Status {
            cluster: cluster.id.clone(),
            database: Database {
                version: health.version.clone(),
                round_trip_ms: (health.round_trip.as_secs_f64() * 100_000.0).round() / 100.0,
                durable: health.durable,
                waits_for_standby: health.waits_for.clone(),
                standbys: health.followers,
                schema: health.schema,
                clock_ahead_ms: health.clock.ahead_ms,
                clock_within_ms: u64::try_from(health.clock.within.as_millis()).unwrap_or(u64::MAX),
            },
            nodes,
            sandboxes: self.nodes.iter().map(|node| self.count(node)).collect(),
            problems,
            notes: self.notes(),
        }
    }

    fn count(&self, node: &NodeRecord) -> OfNode {
        let counted = self.counts.iter().find(|counted| counted.node == node.id);
        let (running, paused) = counted.map_or((0, 0), |counted| (counted.running, counted.paused));
        OfNode { node: node.name.clone(), state: node.word(), running, paused }
    }

    fn of_database(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !self.health.durable {
            problems.push(
                "the database keeps what it says only until its host loses power: set `fsync` and `synchronous_commit` to `on`"
                    .to_owned(),
            );
        }
        if !self.health.waits_for.is_empty() && self.health.followers == 0 {
            problems.push(format!(
                "the database waits for a standby ({}) and none follows it: whatever has to be recorded waits; start that, or change \
                 `synchronous_standby_names`",
                self.health.waits_for
            ));
        }
        problems
    }

    fn of_node(&self, node: &NodeRecord) -> Option<String> {
        let name = &node.name;
        let OfNode { running, paused, .. } = self.count(node);
        if node.word() == AWAY {
            let grace = self.cluster.times.grace;
            let paused = match grace.checked_sub(node.lease_over) {
                Some(left) => format!("its {paused} paused can be had elsewhere in {}", ago(left.as_secs() + 1)),
                None => format!("its {paused} paused are had elsewhere if their files are (`firkin cluster stranded`)"),
            };
            let since = ago(node.lease_over.as_secs());
            return Some(format!(
                "node `{name}` has been away for {since}: its {running} running sandboxes are answered with 503, {paused}; start its server, or say \
                 that it is off (`firkin node forget`)"
            ));
        }
        if node.is_alive() && node.lease_left < LEASE_LOW.min(self.cluster.times.lasts / 2) {
            let left = node.lease_left.as_secs();
            return Some(format!(
                "node `{name}` has {left} s of its lease left: it does not reach the database, or its server stands still"
            ));
        }
        let hosts: BTreeSet<&str> = self.nodes.iter().map(|node| node.host.as_str()).collect();
        let is_local = node.address.rsplit_once(':').is_some_and(|(host, _)| {
            host == "localhost"
                || host.trim_matches(['[', ']']).parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        });
        (node.is_alive() && is_local && hosts.len() > 1).then(|| {
            format!(
                "node `{name}` is on record at `{}`, where other hosts do not reach it: start it with `--peer-listen`",
                node.address
            )
        })
    }

    fn notes(&self) -> Vec<String> {
        let (health, mut notes) = (self.health, Vec::new());
        if health.waits_for.is_empty() {
            notes.push(
                "no standby of the database is waited for: with its disk, what was recorded since its last backup is lost"
                    .to_owned(),
            );
        }
        if health.round_trip > ROUND_TRIP_LONG {
            let ms = health.round_trip.as_millis();
            notes.push(format!(
                "the database is {ms} ms away: all nodes together write one after the other, in a few exchanges each"
            ));
        }
        if health.schema < health.schema_known {
            let (found, known) = (health.schema, health.schema_known);
            notes.push(format!(
                "its tables have version {found}, this program's {known}: the next node that starts brings them up to date"
            ));
        }
        let off = health.clock.at_least();
        if off > NOTICEABLE {
            let side = if health.clock.ahead_ms > 0 { "ahead of" } else { "behind" };
            notes.push(format!(
                "the clock of this host is {} {side} the database's (`firkin doctor --cluster`)",
                ago(off.as_secs())
            ));
        }
        for node in self.nodes {
            let OfNode { running, paused, .. } = self.count(node);
            let why = if node.reason.is_empty() { String::new() } else { format!(": {}", node.reason) };
            match node.word() {
                word @ ("cordoned" | "draining") => notes.push(format!("node `{}` is {word}{why}", node.name)),
                "forgotten" if running + paused > 0 => notes.push(format!(
                    "node `{}` is forgotten{why}; {paused} paused and {running} running sandboxes are on record as its own",
                    node.name
                )),
                _ => {}
            }
        }
        let said =
            |node: &NodeRecord| serde_json::from_str::<Value>(&node.info).ok()?.get("version")?.as_str().map(str::to_owned);
        let versions: BTreeSet<String> = self.nodes.iter().filter(|node| node.is_alive()).filter_map(said).collect();
        if versions.len() > 1 {
            notes.push(format!("nodes run different versions: {}", Vec::from_iter(versions).join(", ")));
        }
        notes
    }
}

impl Status {
    fn screen(&self) -> String {
        let database = &self.database;
        let standby = match (database.waits_for_standby.as_str(), database.standbys) {
            ("", 0) => "no standby".to_owned(),
            ("", standbys) => format!("{standbys} standby, not waited for"),
            (names, standbys) => format!("waits for standby {names}, {standbys} there"),
        };
        let states: Vec<String> = self.nodes.iter().map(|(state, count)| format!("{count} {state}")).collect();
        let nodes = if states.is_empty() { "none yet".to_owned() } else { states.join(", ") };
        let mut screen = format!(
            "cluster   {}\ndatabase  PostgreSQL {}, {:.1} ms away, {standby}, tables of version {}\nnodes     {nodes}\n",
            self.cluster, database.version, database.round_trip_ms, database.schema
        );
        if !self.sandboxes.is_empty() {
            let mut table = Table::new(&["node", "state", ">running", ">paused"]);
            for OfNode { node, state, running, paused } in &self.sandboxes {
                table.row([node.clone(), (*state).to_owned(), running.to_string(), paused.to_string()]);
            }
            screen += "\n";
            screen += &table.render();
        }
        let marked =
            |mark: &'static str, lines: &[String]| lines.iter().map(|line| format!("{mark}{line}\n")).collect::<String>();
        let said = marked("WRONG: ", &self.problems) + &marked("note: ", &self.notes);
        if !said.is_empty() {
            screen += "\n";
            // Reasons and names are whatever somebody has written.
            screen.extend(said.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }));
        }
        screen
    }
}

#[cfg(test)]
mod tests {
    use firkin_postgres::{ClockOffset, LeaseTimes};

    use super::*;

    fn node(name: &str, state: NodeState, (left, over): (u64, u64)) -> NodeRecord {
        NodeRecord {
            id: name.repeat(20).parse().unwrap(),
            name: name.to_owned(),
            address: format!("10.0.0.1:{}", 3001),
            host: name.to_owned(),
            term: 1,
            state,
            reason: String::new(),
            since: Duration::from_secs(60),
            lease_left: Duration::from_secs(left),
            lease_over: Duration::from_secs(over),
            info: r#"{"version": "0.1.0"}"#.to_owned(),
        }
    }

    fn health() -> Health {
        Health {
            version: "15.14".to_owned(),
            round_trip: Duration::from_micros(420),
            durable: true,
            waits_for: "one".to_owned(),
            followers: 1,
            schema: 2,
            schema_known: 2,
            written_by: "0.1.0".to_owned(),
            clock: ClockOffset { ahead_ms: 3, within: Duration::from_millis(1) },
        }
    }

    fn status(health: &Health, nodes: &[NodeRecord]) -> Status {
        let cluster = ClusterRecord { id: "c1".to_owned(), secret_fingerprint: "x".to_owned(), times: LeaseTimes::default() };
        let counts = [Counted { node: "b".repeat(20).parse().unwrap(), running: 4, paused: 2 }];
        Seen { cluster: &cluster, health, nodes, counts: &counts }.status()
    }

    #[test]
    fn what_is_well_is_told_on_one_screen() {
        let nodes = [node("a", NodeState::Ready, (118, 0)), node("b", NodeState::Ready, (117, 0))];
        let well = status(&health(), &nodes);
        assert_eq!(
            well.screen(),
            "cluster   c1\n\
             database  PostgreSQL 15.14, 0.4 ms away, waits for standby one, 1 there, tables of version 2\n\
             nodes     2 ready\n\
             \n\
             NODE  STATE  RUNNING  PAUSED\n\
             a     ready        0       0\n\
             b     ready        4       2\n"
        );
        assert!(well.problems.is_empty());
    }

    #[test]
    fn what_is_wrong_is_told_in_words() {
        let mut nodes = vec![node("a", NodeState::Cordoned, (20, 0)), node("b", NodeState::Ready, (0, 10))];
        nodes[0].reason = "a new\x1b disk".to_owned();
        let ill = Health { durable: false, followers: 0, ..health() };
        let said = status(&ill, &nodes);
        let expected = [
            "loses power",
            "none follows it",
            "node `a` has 20 s of its lease left",
            "node `b` has been away for 10 s: its 4 running sandboxes are answered with 503, its 2 paused can be had elsewhere in 21 s",
            "no node takes new",
        ];
        assert_eq!(said.problems.len(), expected.len(), "{:#?}", said.problems);
        for (problem, expected) in said.problems.iter().zip(expected) {
            assert!(problem.contains(expected), "{problem}");
        }
        assert!(said.screen().contains("note: node `a` is cordoned: a new\u{fffd} disk\n"), "{}", said.screen());
        nodes[1] = node("b", NodeState::Ready, (0, 31));
        assert!(status(&ill, &nodes).problems[3].contains("2 paused are had elsewhere if their files are"));
    }

    #[test]
    fn what_is_to_be_known_is_no_fault() {
        let mut nodes = vec![node("a", NodeState::Ready, (118, 0)), node("b", NodeState::Forgotten, (0, 1_700_000_000))];
        nodes.push(NodeRecord { info: r#"{"version": "0.2.0"}"#.to_owned(), ..node("c", NodeState::Ready, (118, 0)) });
        let odd = Health {
            waits_for: String::new(),
            round_trip: Duration::from_millis(30),
            schema: 1,
            clock: ClockOffset { ahead_ms: -9_000, within: Duration::from_millis(15) },
            ..health()
        };
        let said = status(&odd, &nodes);
        assert!(said.problems.is_empty(), "{:?}", said.problems);
        let expected =
            ["no standby", "30 ms away", "version 1", "8 s behind", "`b` is forgotten; 2 paused and 4 running", "0.1.0, 0.2.0"];
        assert_eq!(said.notes.len(), expected.len(), "{:#?}", said.notes);
        for (note, expected) in said.notes.iter().zip(expected) {
            assert!(note.contains(expected), "{note}");
        }
        // An address that no other host reaches is a fault once there is another host.
        nodes[0].address = "127.0.0.1:3001".to_owned();
        assert!(status(&odd, &nodes).problems[0].contains("other hosts do not reach it"));
        assert!(status(&odd, &nodes[..1]).problems.is_empty());
    }
}
