//! `firkin node drain`, of nodes with one catalogue: what fits goes, what does not stays as it was and is named, and nothing is lost.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what was not tried")]

use std::{collections::BTreeMap, io::Write as _, path::Path, process::Output};

use firkin_runtime::sandbox::SandboxState;
use serde_json::Value;
use tokio::process::Command;

mod agent;
#[path = "../../../cluster/tests/cluster/bench.rs"]
#[expect(dead_code, reason = "of what nodes without a catalogue are tried with, few things are used here")]
mod bench;
#[path = "../../../postgres/tests/real/database.rs"]
#[expect(dead_code, reason = "what is done there to a database behind its server's back is not done here")]
mod database;
#[path = "../../../cluster/tests/cluster/joint.rs"]
#[expect(dead_code, reason = "what copies are tried with is not used here")]
mod joint;

use joint::{Choice, Class, Joint, Node};

/// Sandboxes that run on the node, and those of them for which another one has room.
const RUNNING: usize = 7;
const ROOM: usize = 3;

/// Sandboxes that are paused there, which need no room.
const PAUSED: usize = 2;

/// Has the node drained by the program, as an operator does.
async fn drain(joint: &Joint, node: &Node) -> (Output, BTreeMap<String, Value>) {
    let client = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| fs_err::write(client.path().join(name), text).unwrap();
    write("server.json", format!(r#"{{"url":"http://{}","pid":1}}"#, node.address));
    write("api-key", joint.key.clone());
    let output = Command::new(env!("CARGO_BIN_EXE_firkin"))
        .args(["node", "drain", &joint.name_of(node), "--json", "--cluster", &joint.url, "--cluster-secret-file"])
        .arg(joint.secret_file())
        .env("FIRKIN_STATE_DIR", client.path())
        .env_remove("E2B_API_KEY")
        .env_remove("E2B_API_URL")
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(bench::DEADLINE, output).await.expect("the drain ends").unwrap();
    let drained: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output, drained.into_iter().map(|one| (one["id"].as_str().unwrap().to_owned(), one)).collect())
}

/// A word for a sandbox's memory, and for its disk.
fn mark(id: &str) {
    agent::tell(id, &format!("{id} remembers this"));
    let written = agent::guest(id).written();
    let mut file = fs_err::OpenOptions::new().append(true).open(written).unwrap();
    file.write_all(written_by(id).as_bytes()).unwrap();
}

fn written_by(id: &str) -> String {
    format!("{id} wrote this")
}

/// Asserts that a sandbox that runs has both.
fn demand_marks(id: &str) {
    assert_eq!(agent::word(id), format!("{id} remembers this"));
    let layers = agent::guest(id).root_disk();
    // Its overlay is beside those of others, and what it wrote before its last pause is in a layer.
    let state =
        layers.ancestors().find(|dir| dir.join("layers").exists()).expect("a disk is in a state directory").join("layers");
    // A layer that nothing needs any more is removed at any time.
    let has = |path: &Path| fs_err::read(path).is_ok_and(|layer| String::from_utf8_lossy(&layer).contains(&written_by(id)));
    let layers = fs_err::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
    assert!(layers.chain([layers_of(id)]).any(|path| has(&path)), "what {id} wrote is on no disk of its node");
}

fn layers_of(id: &str) -> std::path::PathBuf {
    agent::guest(id).root_disk()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_goes_and_what_does_not_stays_as_it_was_and_is_named_with_the_reason() {
    let Some((joint, a)) = Joint::found(Choice::default()).await else { return };
    let room = Choice { cpus: Some(ROOM.try_into().unwrap()), ..Choice::default() };
    let b = joint.start("b", room).await;
    let c = joint.start("c", Choice { class: Class::OtherCpu, ..Choice::default() }).await;
    let d = joint.start("d", Choice { class: Class::OtherEngine, ..Choice::default() }).await;
    let mut ids = Vec::new();
    for _ in 0..RUNNING {
        ids.push(a.create().await);
        mark(ids.last().unwrap());
    }
    let mut paused = Vec::new();
    for _ in 0..PAUSED {
        let id = a.create().await;
        mark(&id);
        a.runtime.pause(&id.parse().unwrap()).await.unwrap();
        paused.push(id);
    }
    let (output, drained) = drain(&joint, &a).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(drained.len(), RUNNING + PAUSED, "{drained:?}");
    let (went, stayed): (Vec<_>, Vec<_>) = ids.iter().partition(|id| drained[*id]["result"] == "moved");
    assert_eq!((went.len(), stayed.len()), (ROOM, RUNNING - ROOM), "{drained:?}");
    for id in went.iter().copied().chain(&paused) {
        assert_eq!(drained[id]["node"], "b", "{:?}", drained[id]);
        assert!(joint.runs_on(&b, id).await && !a.runtime.has(&id.parse().unwrap()));
    }
    for id in &stayed {
        assert_eq!(drained[*id]["result"], "stayed");
        let reason = drained[*id]["reason"].as_str().unwrap();
        for why in [
            "b (",
            "1 cpus requested, 0 available",
            "c (",
            "it has CPU `none`, this host has `other`",
            "d (runs by kvm, not none)",
        ] {
            assert!(reason.contains(why), "{why} is not in {reason}");
        }
        assert!(joint.runs_on(&a, id).await, "{reason}");
        assert_eq!(a.runtime.sandbox(&id.parse().unwrap()).unwrap().state, SandboxState::Running);
    }
    ids.iter().for_each(|id| demand_marks(id));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("{} stayed on node `a`", RUNNING - ROOM)), "{said}");

    // What has gone is whole: with room, each goes on there.
    for id in went {
        b.runtime.kill(&id.parse().unwrap()).await.unwrap();
    }
    for id in &paused {
        b.runtime.resume(&id.parse().unwrap(), bench::DEADLINE).await.unwrap();
        demand_marks(id);
        b.runtime.kill(&id.parse().unwrap()).await.unwrap();
    }
    // And once there is room for all, a drain that is asked for again comes to its end.
    let last: Vec<&String> = stayed.into_iter().take(ROOM).collect();
    for id in ids.iter().filter(|id| !last.contains(id) && a.runtime.has(&id.parse().unwrap())) {
        a.runtime.kill(&id.parse().unwrap()).await.unwrap();
    }
    let (output, drained) = drain(&joint, &a).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(drained.keys().collect::<Vec<_>>().len(), ROOM);
    for id in last {
        assert!(joint.runs_on(&b, id).await);
        demand_marks(id);
    }
    joint.end([a, b, c, d]).await;
}
