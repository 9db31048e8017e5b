//! Where things are in a cluster and where they would go: `firkin cluster explain` and `firkin cluster stranded`. No server is asked: it is what is
//! on record, and what each node said with its last renewal.

use firkin_cluster::{explain as decide, holds};
use firkin_postgres::{Buildable, NodeRecord, PausedSandbox};
use firkin_server::nodes::{Placement, Wanted};
use serde::Serialize;

use super::{catalog, node, node_shown::ago};
use crate::{
    args::cluster::{ClusterLookArgs, ExplainArgs},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    settings::Settings,
};

/// Where a sandbox would go.
#[derive(Debug, Serialize)]
struct Explained {
    template: String,
    build: String,
    memory_mib: u64,
    /// Not on record of what earlier versions built.
    runs_on: Option<String>,
    asked: Vec<Asked>,
    passed_over: Vec<PassedOver>,
}

#[derive(Debug, Serialize)]
struct Asked {
    node: String,
    why: String,
    free_memory_mib: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PassedOver {
    node: String,
    why: String,
}

impl Explained {
    fn of(template: &str, found: Buildable, placement: Placement) -> Self {
        let Buildable { build, memory_mib, runs_on } = found;
        let asked = placement.asked.into_iter().map(|place| Asked {
            node: place.name,
            why: place.holding.to_string(),
            free_memory_mib: place.free_memory_mib,
        });
        let passed = placement.passed_over.into_iter().map(|(node, why)| PassedOver { node, why: why.to_string() });
        let (asked, passed_over) = (asked.collect(), passed.collect());
        Self { template: template.to_owned(), build, memory_mib, runs_on, asked, passed_over }
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&["node", "asked", ">free MiB", "why"]);
        for (number, Asked { node, why, free_memory_mib }) in (1..).zip(&self.asked) {
            let free = free_memory_mib.map_or_else(String::new, |free| free.to_string());
            table.row([node.clone(), format!("{number}."), free, why.clone()]);
        }
        for PassedOver { node, why } in &self.passed_over {
            table.row([node.clone(), "no".to_owned(), String::new(), why.clone()]);
        }
        table
    }
}

/// `firkin cluster explain`
pub(super) async fn explain(settings: &Settings, args: &ExplainArgs) -> anyhow::Result<ExitStatus> {
    let members = node::members(&args.access).await?;
    let found = members.buildable(&args.team, &args.template).await.map_err(catalog::advising)?;
    let found = found
        .ok_or_else(|| {
            anyhow::anyhow!("there is no template `{}` of team `{}`, or nothing is built of it", args.template, args.team)
        })
        .hint("`firkin template ls` lists them; `--team TEAM` names another team's")?;
    let nodes = members.nodes().await.map_err(catalog::advising)?;
    let (build, memory_mib, runs_on) = (found.build.clone(), found.memory_mib, found.runs_on.clone());
    let placement = decide(&nodes, &Wanted { build, memory_mib, runs_on, once: None });
    let explained = Explained::of(&args.template, found, placement);
    output::result(settings.format, &explained, || explained.table())?;
    if explained.asked.is_empty() {
        output::note("a create would be refused: no node can have it");
        return Ok(ExitStatus::Failure);
    }
    if explained.runs_on.is_none() {
        output::note(
            "it is not on record what this template runs on: a node with another engine refuses it, and the next is asked",
        );
    }
    output::note("each node has the last word; the one where a create comes in counts for a tenth more than it has");
    Ok(ExitStatus::Success)
}

/// Whether the files of a paused sandbox are anywhere but on a node that is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// They are, by what is said.
    Elsewhere,
    /// Nobody who is there has them, by what is on record and said.
    Stranded,
    /// Somebody who is there does not say what they hold.
    Unsure,
}

/// A paused sandbox of a node that is away.
#[derive(Debug, Serialize)]
struct Away {
    node: String,
    state: &'static str,
    away_s: u64,
    sandbox: String,
    verdict: Verdict,
    /// Who is there and has its files, or where that is not known who may.
    on: Vec<String>,
}

/// Of the paused sandboxes those whose home is away, each with whether others have its files. A second copy is on record, and one in the store. Beside that a node says which
/// templates and snapshots it holds: that tells of a sandbox which was just made from a snapshot or has one of this very state, and of nothing else.
fn away(paused: Vec<PausedSandbox>, nodes: &[NodeRecord]) -> Vec<Away> {
    let judged = paused.into_iter().filter_map(|sandbox| {
        let home = nodes.iter().find(|node| node.id == sandbox.node).filter(|node| !node.is_alive())?;
        let there: Vec<&NodeRecord> = nodes.iter().filter(|node| node.is_alive()).collect();
        let has = |node: &NodeRecord| -> Option<bool> {
            if sandbox.copies.contains(&node.id) {
                return Some(true);
            }
            sandbox.builds.iter().map(|build| holds(node, build)).try_fold(false, |any, holds| holds.map(|holds| any || holds))
        };
        let named =
            |is: Option<bool>| there.iter().filter(|node| has(node) == is).map(|node| node.name.clone()).collect::<Vec<_>>();
        let (with, unsaid) = (named(Some(true)), named(None));
        let with: Vec<String> = with.into_iter().chain(sandbox.stored.then(|| "the store".to_owned())).collect();
        let (verdict, on) = match (with.is_empty(), unsaid.is_empty()) {
            (false, _) => (Verdict::Elsewhere, with),
            (true, false) => (Verdict::Unsure, unsaid),
            (true, true) => (Verdict::Stranded, Vec::new()),
        };
        let away_s = if home.word() == "forgotten" { home.since } else { home.lease_over }.as_secs();
        Some(Away { node: home.name.clone(), state: home.word(), away_s, sandbox: sandbox.id, verdict, on })
    });
    judged.collect()
}

fn table(all: &[Away]) -> Table {
    let mut table = Table::new(&["node", "state", "sandbox", "its files"]);
    for Away { node, state, away_s, sandbox, verdict, on } in all {
        let files = match verdict {
            Verdict::Elsewhere => format!("are on {}", on.join(", ")),
            Verdict::Stranded => "are there alone, as far as is on record".to_owned(),
            Verdict::Unsure => format!("may be on {}, which does not say what it holds", on.join(", ")),
        };
        table.row([node.clone(), format!("{state} for {}", ago(*away_s)), sandbox.clone(), files]);
    }
    table
}

/// `firkin cluster stranded`
pub(super) async fn stranded(settings: &Settings, args: &ClusterLookArgs) -> anyhow::Result<ExitStatus> {
    let members = node::members(&args.access).await?;
    let nodes = members.nodes().await.map_err(catalog::advising)?;
    let all = away(members.paused().await.map_err(catalog::advising)?, &nodes);
    output::result(settings.format, &all, || table(&all))?;
    if all.iter().all(|one| one.verdict == Verdict::Elsewhere) {
        output::note("no paused sandbox is stranded");
        return Ok(ExitStatus::Success);
    }
    output::note(
        "start the node again, and they are there. One that has moved may still have files where it came from, which nobody records: whoever resumes it asks \
         every node that answers",
    );
    Ok(ExitStatus::Failure)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use firkin_postgres::NodeState;

    use super::*;

    fn node(name: &str, state: NodeState, left: u64, info: &str) -> NodeRecord {
        NodeRecord {
            id: name.repeat(20).parse().unwrap(),
            name: name.to_owned(),
            address: String::new(),
            host: String::new(),
            term: 1,
            state,
            reason: String::new(),
            since: Duration::from_secs(5),
            lease_left: Duration::from_secs(left),
            lease_over: Duration::from_secs(if left == 0 { 200 } else { 0 }),
            info: info.to_owned(),
        }
    }

    fn paused(id: &str, home: &str, builds: &[&str]) -> PausedSandbox {
        let builds = builds.iter().map(|build| (*build).to_owned()).collect();
        let (node, copies) = (home.repeat(20).parse().unwrap(), Vec::new());
        PausedSandbox { id: id.to_owned(), node, artifact: format!("artifact-{id}"), builds, copies, stored: false }
    }

    const HOLDS: &str = r#"{"serves": true, "engines": ["kvm"], "free_memory_mib": 9000, "holds": ["x", "y"]}"#;

    #[test]
    fn what_only_a_node_that_is_away_has_is_named() {
        let mut nodes = vec![node("a", NodeState::Ready, 100, HOLDS), node("b", NodeState::Ready, 0, HOLDS)];
        nodes.push(node("c", NodeState::Forgotten, 0, "{}"));
        let copied = |on: &str| PausedSandbox { copies: vec![on.repeat(20).parse().unwrap()], ..paused("i5", "c", &[]) };
        let all = || vec![paused("i1", "a", &[]), paused("i2", "b", &["x"]), paused("i3", "b", &["z"]), paused("i4", "c", &[])];
        let with = |copy| away(vec![copy], &nodes).remove(0);
        assert_eq!((with(copied("a")).verdict, with(copied("a")).on), (Verdict::Elsewhere, vec!["a".to_owned()]));
        assert_eq!(with(copied("b")).verdict, Verdict::Stranded, "the copy is on a node that is away too");
        assert_eq!(
            table(&away(all(), &nodes)).render(),
            "NODE  STATE              SANDBOX  ITS FILES\n\
             b     away for 3 min     i2       are on a\n\
             b     away for 3 min     i3       are there alone, as far as is on record\n\
             c     forgotten for 5 s  i4       are there alone, as far as is on record\n"
        );
        // Who does not say what it holds may have a snapshot, and is named; what is no snapshot it has not.
        nodes[0].info = "{}".to_owned();
        let verdicts: Vec<_> = away(all(), &nodes).into_iter().map(|one| (one.verdict, one.on)).collect();
        let unsure = || (Verdict::Unsure, vec!["a".to_owned()]);
        assert_eq!(verdicts, [unsure(), unsure(), (Verdict::Stranded, Vec::new())]);
    }

    #[test]
    fn where_a_create_would_go_is_told_with_why_not_elsewhere() {
        let nodes = [
            node("a", NodeState::Ready, 100, HOLDS),
            node("b", NodeState::Cordoned, 100, HOLDS),
            node("c", NodeState::Ready, 0, HOLDS),
            node("d", NodeState::Ready, 100, r#"{"serves": true, "engines": ["gvisor"], "free_memory_mib": 9000, "holds": []}"#),
            node("e", NodeState::Ready, 100, r#"{"serves": true, "engines": ["kvm"], "free_memory_mib": 500, "holds": []}"#),
            node("f", NodeState::Ready, 100, r#"{"serves": true, "engines": ["kvm"], "free_memory_mib": 9000, "holds": []}"#),
            node("g", NodeState::Forgotten, 0, HOLDS),
        ];
        let found = Buildable { build: "x".to_owned(), memory_mib: 512, runs_on: Some("kvm".to_owned()) };
        let (build, runs_on) = (found.build.clone(), found.runs_on.clone());
        let placement = decide(&nodes, &Wanted { build, memory_mib: 512, runs_on, once: None });
        assert_eq!(
            Explained::of("base", found, placement).table().render(),
            "NODE  ASKED  FREE MIB  WHY\n\
             a     1.         9000  holds the template\n\
             f     2.         9000  gets the template from another node\n\
             b     no               cordoned\n\
             c     no               away\n\
             d     no               runs by gvisor, not kvm\n\
             e     no               500 MiB of memory free, 512 wanted\n"
        );
    }
}
