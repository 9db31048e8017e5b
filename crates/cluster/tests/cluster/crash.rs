//! A node is killed before each single step of keeping another one's pause, which it fetches, and of collecting one that nobody needs any more. What a
//! row names is whole then, nothing half has a name, nothing is left over, and the next try succeeds.
//!
//! The node is a process of its own, which is this test binary again; what a step is and how it stands still there is the crash tests' of one host.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use firkin_postgres::NodeState;
use firkin_runtime::{ids::ArtifactId, owner::OnExit};
use serde::{Deserialize, Serialize};

use crate::{
    bench::DEADLINE,
    joint::{Choice, Class, Joint, Node, until},
    steps::{self, Steps, Stopped},
};

/// Set for the node that is to be killed: what it does, and where.
const CHILD: &str = "FIRKIN_CLUSTER_CRASH_CHILD";

/// What it says when it has joined, when it can begin, for each of which it is told to go on, and when it has done what it does.
const JOINED: &str = "joined";
const READY: &str = "ready";
const DONE: &str = "done";
const GO: &str = "go";

/// Set to have a node killed at each step of keeping something, which takes minutes. Else it is at each seventh: of each content four come
/// again, so that each of these is met, with one content or another.
const EVERY_STEP: &str = "FIRKIN_EVERY_STEP";
const APART: usize = 7;

/// More steps than any act has.
const MOST: usize = 300;

/// Something that a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    /// Keeps an artifact, of which it has nothing.
    Keep,
    /// Lets go of one, and has it collected.
    LetGo,
}

/// How all nodes here are.
const IDLE: Choice =
    Choice { is_idle: true, waits_for_copies: false, encrypts: false, stores: false, cpus: None, class: Class::Same, envd: None };

/// What a node is told that is to be killed.
#[derive(Debug, Serialize, Deserialize)]
struct Role {
    act: Act,
    /// With which artifact.
    artifact: String,
    url: String,
    dir: PathBuf,
}

/// The process of such a node.
struct Victim {
    process: Child,
    steps: Steps,
    told: UnixStream,
}

impl Victim {
    /// None where this host's kernel does not let a process be stopped at its steps.
    fn start(joint: &Joint, act: Act, artifact: &ArtifactId) -> Option<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let role = Role { act, artifact: artifact.to_string(), url: joint.url.clone(), dir: joint.dir().to_owned() };
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::a_node_that_will_be_killed", "--nocapture"])
            .env(CHILD, serde_json::to_string(&role).unwrap())
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        match Steps::receive(&ours) {
            Ok(steps) => Some(Self { process, steps, told: ours }),
            Err(error) => {
                eprintln!("skipped: this host's kernel does not let a process be stopped at its system calls: {error}");
                process.kill().unwrap();
                process.wait().unwrap();
                None
            }
        }
    }

    /// Has `joined` done once it has joined and `prepared` once it is ready, and kills it before a step of its act, or once the act is done.
    async fn killed_at(self, step: usize, joined: impl Future<Output = ()>, prepared: impl Future<Output = ()>) -> Stopped {
        let Self { mut process, steps, mut told } = self;
        let lines = BufReader::new(told.try_clone().unwrap()).lines();
        let (tell, mut said) = tokio::sync::mpsc::unbounded_channel();
        let listening = tokio::task::spawn_blocking(move || {
            lines.map_while(Result::ok).map_while(|line| tell.send(line).ok()).for_each(drop);
        });
        // Whoever has the say over its steps has to be there until it is dead: it would go on.
        let stepping = tokio::task::spawn_blocking(move || (steps.run_until(step).unwrap(), steps));
        let mut hear = async || tokio::time::timeout(DEADLINE, said.recv()).await.expect("it says something");
        assert_eq!(hear().await.as_deref(), Some(JOINED));
        joined.await;
        writeln!(told, "{GO}").unwrap();
        assert_eq!(hear().await.as_deref(), Some(READY), "what the one before has left is whole");
        prepared.await;
        writeln!(told, "{GO}").unwrap();
        let (stopped, steps) = stepping.await.unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        drop(steps);
        listening.await.unwrap();
        stopped
    }
}

/// Not a test of its own: the node that is started and killed. Before that it looks at what the one before has left, and does what that could not.
#[test]
fn a_node_that_will_be_killed() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let Role { act, artifact, url, dir } = serde_json::from_str(&role).unwrap();
    // It ends with the test, also when that is killed.
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let mut parent = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    steps::submit(&parent).unwrap();
    let artifact: ArtifactId = artifact.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let node = Joint::known(url, dir).start("b", IDLE).await;
        let mut told = BufReader::new(parent.try_clone().unwrap());
        let mut wait = |parent: &mut UnixStream, said: &str| {
            writeln!(parent, "{said}").unwrap();
            let mut word = String::new();
            told.read_line(&mut word).unwrap();
        };
        wait(&mut parent, JOINED);
        demand_whole(&node).await;
        demand_kept(&node, &artifact).await;
        if act == Act::Keep {
            empty(&node).await;
        }
        wait(&mut parent, READY);
        steps::mark();
        match act {
            Act::Keep => node.runtime.keep_copy(&artifact).await.unwrap(),
            Act::LetGo => let_go_of(&node, &artifact).await,
        }
        writeln!(parent, "{DONE}").unwrap();
        steps::mark();
        std::future::pending::<()>().await;
    });
}

/// Has a node keep something, and asserts that it does.
async fn demand_kept(node: &Node, artifact: &ArtifactId) {
    node.runtime.keep_copy(artifact).await.unwrap();
    assert!(node.membership.copies().await.unwrap().contains(artifact));
    demand_whole(node).await;
}

/// Has a node let go of what nobody needs, and waits until that is collected.
async fn let_go_of(node: &Node, artifact: &ArtifactId) {
    node.copies.let_go().await.unwrap();
    node.runtime.collect();
    until("what nobody needs is collected", async || !node.has_files_of(artifact)).await;
}

/// What is in a directory; nothing where there is none.
fn entries(dir: &Path) -> BTreeSet<String> {
    let entries = fs_err::read_dir(dir).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The artifacts that have a name on a node's disk, and the layers that these stand on.
fn named(node: &Node) -> (Vec<ArtifactId>, BTreeSet<String>) {
    let dir = node.state_dir().join("artifacts");
    let names = entries(&dir).into_iter().filter(|name| !name.starts_with('.'));
    let (mut artifacts, mut layers) = (Vec::new(), BTreeSet::new());
    for name in names {
        // It may be collected just now.
        let Ok(manifest) = fs_err::read(dir.join(&name).join("manifest.json")) else { continue };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        layers.extend(manifest["disk"]["layers"].as_array().unwrap().iter().map(|id| format!("{}.qcow2", id.as_str().unwrap())));
        artifacts.push(name.parse().unwrap());
    }
    (artifacts, layers)
}

/// Asserts that a node has, once it has collected what was left, nothing but whole artifacts and what they stand on, and all of which a row says that it
/// has.
async fn demand_whole(node: &Node) {
    let is_hidden = |dir: &str| entries(&node.state_dir().join(dir)).into_iter().any(|name| name.starts_with('.'));
    let is_tidy = async || {
        !["incoming", "artifacts", "layers", "roots"].into_iter().any(is_hidden)
            && entries(&node.state_dir().join("layers")) == named(node).1
    };
    until("nothing is left over, and no layer is missing", is_tidy).await;
    let (artifacts, _) = named(node);
    for artifact in &artifacts {
        assert!(node.runtime.has_artifact(artifact), "what has the name {artifact} is not whole");
    }
    for copy in node.membership.copies().await.unwrap() {
        assert!(artifacts.contains(&copy), "a row says that {copy} is here");
    }
}

/// Lets nothing be on the node's disk but who it is, as on that of one that has just come.
async fn empty(node: &Node) {
    for part in ["artifacts", "layers", "roots", "incoming"] {
        let part = node.state_dir().join(part);
        for name in entries(&part) {
            let path = part.join(name);
            if path.is_dir() { firkin_files::remove_tree(&path).unwrap() } else { fs_err::remove_file(path).unwrap() }
        }
    }
    node.copies.let_go().await.unwrap();
    assert_eq!(node.membership.copies().await.unwrap(), []);
}

/// A node has heard of the newest server of each other, and lets it in at once.
async fn heard_by(node: &Node) {
    node.records.hear().await.unwrap();
}

async fn connect(joint: &Joint, node: &Node, id: &str) {
    let path = format!("/v2/sandboxes/{id}/connect");
    node.call(&joint.key, ("POST", &path, r#"{"timeout":3600}"#)).await.expect(201);
}

async fn pause(joint: &Joint, node: &Node, id: &str) -> ArtifactId {
    node.runtime.pause(&id.parse().unwrap()).await.unwrap();
    joint.held(node, id).await
}

/// Kills node B again and again, one step later each time. `prepared` is what is done once it is ready, and gives what the next one keeps. None where
/// that cannot be done here.
async fn killed_at_every_step(
    joint: &Joint,
    a: &Node,
    act: Act,
    mut held: ArtifactId,
    prepared: impl AsyncFn() -> ArtifactId,
) -> Option<ArtifactId> {
    let apart = if act == Act::Keep && std::env::var_os(EVERY_STEP).is_none() { APART } else { 1 };
    for step in (0..MOST).step_by(apart) {
        let mut next = None;
        let victim = Victim::start(joint, act, &held)?;
        let stopped = victim.killed_at(step, heard_by(a), async { next = Some(prepared().await) }).await;
        assert!(a.runtime.has_artifact(&held) || act == Act::LetGo);
        held = next.expect("it was ready");
        match stopped {
            Stopped::Before(_) => {}
            Stopped::AtTheEnd(steps) => {
                eprintln!("{act:?}: {steps} steps");
                assert!(steps > 0, "an act without a step is not seen");
                return Some(held);
            }
            Stopped::Ended => panic!("the node ended by itself"),
        }
    }
    panic!("{act:?} has more than {MOST} steps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_at_any_step_of_keeping_a_pause_has_all_of_it_or_nothing_and_keeps_it_then() {
    let Some((joint, a)) = Joint::found(IDLE).await else { return };
    let id = a.create().await;
    let held = pause(&joint, &a, &id).await;
    let same = async || held.clone();
    if killed_at_every_step(&joint, &a, Act::Keep, held.clone(), same).await.is_none() {
        return joint.end([a]).await;
    }
    // And it is of use.
    let b = joint.start("b", IDLE).await;
    demand_whole(&b).await;
    assert_eq!(b.membership.copies().await.unwrap(), std::slice::from_ref(&held), "it said so, and was killed then");
    let lost = a.id.clone();
    a.stop(OnExit::Leave).await;
    joint.set_state(&lost, NodeState::Forgotten, &[&b]).await;
    // It is kept from collection for as long as it is sent.
    let transfer = b.runtime.export_artifact(&held).await.unwrap();
    connect(&joint, &b, &id).await;
    assert!(joint.goes_on_from(&b, (&id, &held)).await);
    drop(transfer);
    joint.end([b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_at_any_step_of_collecting_a_copy_has_what_rows_name_and_nothing_else() {
    let Some((joint, a)) = Joint::found(IDLE).await else { return };
    let id = a.create().await;
    let held = pause(&joint, &a, &id).await;
    // What B has then nobody needs any more; what the sandbox is held by instead, the next one keeps.
    let paused_anew = async || {
        connect(&joint, &a, &id).await;
        pause(&joint, &a, &id).await
    };
    if let Some(held) = Box::pin(killed_at_every_step(&joint, &a, Act::LetGo, held, paused_anew)).await {
        let b = joint.start("b", IDLE).await;
        heard_by(&a).await;
        demand_kept(&b, &held).await;
        assert_eq!(b.membership.copies().await.unwrap(), std::slice::from_ref(&held));
        assert!(named(&b).0.iter().all(|artifact| *artifact == held || !is_pause(&b, artifact)), "what was let go of is gone");
        b.stop(OnExit::Kill).await;
    }
    joint.end([a]).await;
}

/// Whether an artifact is a sandbox's.
fn is_pause(node: &Node, artifact: &ArtifactId) -> bool {
    let manifest = fs_err::read(node.state_dir().join("artifacts").join(artifact.as_str()).join("manifest.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["kind"] == "pause"
}
