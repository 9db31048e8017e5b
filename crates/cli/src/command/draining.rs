//! `firkin node drain`: a node takes nothing new, and what it has goes to others, a few at a time.
//!
//! What it has is read from the catalogue again and again, until nothing is there that was not tried: a create may have been under way while the
//! others heard of it.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use firkin_postgres::{Members, NodeId};
use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{catalog, sandbox::is_not_found};
use crate::{
    api::Api,
    args::node::NodeDrainArgs,
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    serverfile,
    settings::Settings,
};

/// Sandboxes that leave a node at a time.
const AT_ONCE: usize = 4;

/// Between two looks at what is left, while something is waited for.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Of what is on record of a sandbox, what a drain goes by.
#[derive(Debug, Deserialize)]
struct Record {
    id: String,
    end_at: Timestamp,
    phase: Phase,
}

#[derive(Debug, Deserialize)]
struct Phase {
    phase: String,
}

impl Record {
    /// Whether its time is over by then.
    fn ends_by(&self, then: Timestamp) -> bool {
        self.phase.phase == "running" && self.end_at <= then
    }
}

/// What became of one.
#[derive(Debug, Serialize)]
struct Drained {
    id: String,
    /// `moved`, `ended` or `stayed`.
    result: &'static str,
    /// The node that has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blackout_ms: Option<u64>,
    /// Why it stayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `firkin node drain`, of a node that takes nothing once `set_draining` is done.
pub(super) async fn drain(
    settings: &Settings,
    args: &NodeDrainArgs,
    set_draining: impl Future<Output = anyhow::Result<(Members, NodeId)>>,
) -> anyhow::Result<ExitStatus> {
    // Before anything is changed.
    let server = serverfile::find(settings).hint("a server of the cluster moves them: name one, as for `firkin sandbox`")?;
    let api = Api::new(server);
    let (members, node) = set_draining.await?;
    // By then each node has heard that this one takes nothing.
    tokio::time::sleep(members.cluster().times.renew_every).await;
    let grace = Duration::from_secs(args.grace.into());
    let (end, waits_until) = (Timestamp::now().saturating_add(grace).unwrap_or(Timestamp::MAX), Instant::now() + grace);
    let (mut tried, mut drained) = (HashSet::new(), Vec::new());
    loop {
        let there = on(&members, &node).await?;
        let (ending, going): (Vec<_>, Vec<_>) =
            there.into_iter().partition(|record| Instant::now() < waits_until && record.ends_by(end));
        let going: Vec<String> = going.into_iter().map(|record| record.id).filter(|id| tried.insert(id.clone())).collect();
        if going.is_empty() && ending.is_empty() {
            break;
        }
        let waits = going.is_empty();
        let moved = stream::iter(going).map(async |id| gone(&api, id).await).buffer_unordered(AT_ONCE);
        drained.extend(moved.collect::<Vec<_>>().await);
        if waits {
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
    }
    output::result(settings.format, &drained, || table(&drained))?;
    let stayed = drained.iter().filter(|one| one.result == "stayed").count();
    if stayed > 0 {
        output::note(&format!("{stayed} stayed on node `{}`, which takes nothing new", args.named.node));
        return Ok(ExitStatus::Failure);
    }
    output::note(&format!("node `{}` has nothing left, and takes nothing new", args.named.node));
    Ok(ExitStatus::Success)
}

/// What is on record as a node's.
async fn on(members: &Members, node: &NodeId) -> anyhow::Result<Vec<Record>> {
    let all = members.sandboxes_of_all(None).await.map_err(catalog::advising)?;
    let of_node = all.iter().filter(|sandbox| sandbox.node == *node);
    of_node.map(|sandbox| serde_json::from_str(&sandbox.body).context("cannot read what is on record of a sandbox")).collect()
}

async fn gone(api: &Api, id: String) -> Drained {
    let moved = api.move_to(&id, None).await;
    let mut drained = Drained { id, result: "moved", node: None, blackout_ms: None, reason: None };
    match moved {
        Ok(moved) => {
            drained.node = moved.get("node").and_then(Value::as_str).map(str::to_owned);
            drained.blackout_ms = moved.get("blackoutMs").and_then(Value::as_u64);
        }
        Err(error) if is_not_found(&error) => drained.result = "ended",
        Err(error) => (drained.result, drained.reason) = ("stayed", Some(format!("{error:#}"))),
    }
    drained
}

fn table(drained: &[Drained]) -> Table {
    let mut table = Table::new(&["id", "result", "node", ">blackout ms", "reason"]);
    for Drained { id, result, node, blackout_ms, reason } in drained {
        let blackout = blackout_ms.map_or_else(String::new, |ms| ms.to_string());
        let (node, reason) = (node.clone().unwrap_or_default(), reason.clone().unwrap_or_default());
        table.row([id.clone(), (*result).to_owned(), node, blackout, reason]);
    }
    table
}
