//! A server is killed before each single step of everything it does, and the next one must find the host in order.
//!
//! The server is a process of its own, which is this test binary again. It stands still before a step (`steps.rs` says what a
//! step is) and is killed there with SIGKILL, so that no destructor tidies up. Its machines are the fake engine's and live in
//! files, so they outlive it as real ones do. Then a server is opened on the same state directory, and `bench.rs` checks:
//! what clients were told is so; every sandbox runs or is paused with its memory, and works; machines, directories, capacity
//! and files are those of the sandboxes and of nobody else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
};

use firkin_runtime::{runtime::Runtime, sandbox::SandboxId};
use serde::{Deserialize, Serialize};

mod bench;
mod builds;
mod envd;
mod moving;
mod steps;

use bench::{Bench, Told, build, request};
use steps::{Steps, Stopped};

/// Set for the server that is to be killed: what it does, and where.
const CHILD: &str = "FIRKIN_CRASH_TEST_CHILD";

/// More steps than any act has. An act that grows beyond is to be looked at, not to be tested for ever.
const MAX_STEPS: usize = 500;

/// Something that a server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    Build,
    /// A build through the API, of steps, over names that stand for something.
    ApiBuild,
    Create,
    Pause,
    Resume,
    Snapshot,
    Fork,
    KillRunning,
    KillPaused,
    DeleteTemplate,
    /// A pause and a resume after which the disk is too deep, and is merged.
    Merge,
    /// A pause, after which the sandbox gets a memory of its own, and a resume from that.
    Flatten,
    /// An import of what this host had once, and of a root image that it has not.
    Import,
    /// Takes over what an earlier server left: a running sandbox, one that it was cutting, a paused one.
    Open,
}

#[test]
fn a_server_killed_at_any_step_of_a_template_build() {
    at_every_step(Act::Build);
}

#[test]
fn a_server_killed_at_any_step_of_a_build_through_the_api() {
    at_every_step(Act::ApiBuild);
}

#[test]
fn a_server_killed_at_any_step_of_a_create() {
    at_every_step(Act::Create);
}

#[test]
fn a_server_killed_at_any_step_of_a_pause() {
    at_every_step(Act::Pause);
}

#[test]
fn a_server_killed_at_any_step_of_a_resume() {
    at_every_step(Act::Resume);
}

#[test]
fn a_server_killed_at_any_step_of_a_snapshot() {
    at_every_step(Act::Snapshot);
}

#[test]
fn a_server_killed_at_any_step_of_a_fork() {
    at_every_step(Act::Fork);
}

#[test]
fn a_server_killed_at_any_step_of_a_kill() {
    at_every_step(Act::KillRunning);
    at_every_step(Act::KillPaused);
}

#[test]
fn a_server_killed_at_any_step_of_a_deletion() {
    at_every_step(Act::DeleteTemplate);
}

#[test]
fn a_server_killed_at_any_step_of_a_merge() {
    at_every_step(Act::Merge);
}

#[test]
fn a_server_killed_at_any_step_of_a_flattening() {
    at_every_step(Act::Flatten);
}

#[test]
fn a_server_killed_at_any_step_of_an_import() {
    at_every_step(Act::Import);
}

#[test]
fn a_server_killed_at_any_step_of_taking_over() {
    at_every_step(Act::Open);
}

/// Does `act` again and again, and kills the server one step later each time.
#[expect(clippy::print_stderr, reason = "a test tells what it has checked, and what it cannot")]
fn at_every_step(act: Act) {
    let mut dir = tempfile::tempdir().unwrap();
    // What all builds stand on takes long to make, so the host that a build was checked on is used again.
    let host_is_kept = act == Act::ApiBuild;
    for stop in 0..MAX_STEPS {
        if !host_is_kept {
            dir = tempfile::tempdir().unwrap();
        }
        let bench = Bench::new(dir.path());
        if act == Act::Open {
            // One that is killed in the middle of a pause leaves the most to do.
            let half = Server::start(dir.path(), Act::Pause).unwrap();
            half.killed_at(PAUSE_HALF_DONE);
        }
        let server = match Server::start(dir.path(), act) {
            Ok(server) => server,
            Err(error) => {
                eprintln!("SKIP: this host's kernel does not let a process be stopped at its system calls: {error}");
                return;
            }
        };
        let (stopped, told) = server.killed_at(stop);
        eprintln!("{act:?}: killed {stopped:?} ({stop})");
        with_threads().block_on(bench.check(&told));
        match stopped {
            Stopped::Before(_) => {}
            Stopped::AtTheEnd(steps) => {
                eprintln!("{act:?}: {steps} steps");
                assert!(steps > 0, "an act without a step is not seen");
                return;
            }
            Stopped::Ended => panic!("the server ended by itself"),
        }
    }
    panic!("{act:?} has more than {MAX_STEPS} steps");
}

/// Behind the switch of the disk and the rename of the sealed layer, long before the record of either.
const PAUSE_HALF_DONE: usize = 13;

/// Pauses after which a disk is as deep as it may be: one more, and it is merged.
const DEEP: usize = 7;

/// A server in a process of its own.
struct Server {
    process: Child,
    steps: Steps,
    told: UnixStream,
}

impl Server {
    fn start(dir: &std::path::Path, act: Act) -> std::io::Result<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_server_that_will_be_killed", "--nocapture"])
            .env(CHILD, serde_json::to_string(&(act, dir)).unwrap())
            .stdin(std::os::fd::OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        match Steps::receive(&ours) {
            Ok(steps) => Ok(Self { process, steps, told: ours }),
            Err(error) => {
                process.kill().unwrap();
                process.wait().unwrap();
                Err(error)
            }
        }
    }

    /// Kills it before a step of its act, and gives what clients had been told by then.
    fn killed_at(mut self, step: usize) -> (Stopped, Told) {
        let stopped = self.steps.run_until(step).unwrap();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let last = BufReader::new(self.told).lines().map(Result::unwrap).last();
        (stopped, serde_json::from_str(&last.expect("it told something")).unwrap())
    }
}

/// Not a test of its own: the server that [`at_every_step`] starts and kills.
#[test]
fn a_server_that_will_be_killed() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let (act, dir): (Act, std::path::PathBuf) = serde_json::from_str(&role).unwrap();
    let parent = std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned().unwrap();
    let mut parent = UnixStream::from(parent);
    steps::submit(&parent).unwrap();
    let mut tell = move |told: &Told| writeln!(parent, "{}", serde_json::to_string(told).unwrap()).unwrap();
    let runtime = if act == Act::ApiBuild { with_a_clock_that_moves() } else { with_threads() };
    runtime.block_on(async {
        let mut bench = Bench::new(&dir);
        bench.flattens = act == Act::Flatten;
        if act == Act::Open {
            // What the one before told is what holds.
            let told: Told = serde_json::from_slice(&fs_err::read(dir.join("told")).unwrap()).unwrap();
            tell(&told);
            steps::mark();
            let _runtime = bench.open().await;
            steps::mark();
            std::future::pending::<()>().await;
        }
        let runtime = bench.open().await;
        let mut told = prepare(&runtime, act).await;
        let archive =
            if act == Act::Import { moving::leave(&bench, &runtime, told.subject.take().unwrap()).await } else { Vec::new() };
        fs_err::write(dir.join("told"), serde_json::to_vec(&told).unwrap()).unwrap();
        tell(&told);
        steps::mark();
        match act {
            Act::Merge => merge(&bench, &runtime, &mut told).await,
            Act::Flatten => flatten(&bench, &runtime, &mut told).await,
            Act::Import => moving::come(&runtime, archive, &mut told).await,
            Act::ApiBuild => builds::carry_out(&runtime, &mut told, &mut tell).await,
            _ => carry_out(&runtime, act, &mut told).await,
        }
        tell(&told);
        steps::mark();
        std::future::pending::<()>().await;
    });
}

fn with_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One in which a command may take its time although nobody waits for it.
fn with_a_clock_that_moves() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A host on which `act` can be done, with others that must not notice.
async fn prepare(runtime: &Runtime, act: Act) -> Told {
    let mut told = Told::default();
    if act == Act::Build {
        return told;
    }
    if act == Act::ApiBuild {
        told.build = Some(builds::prepare(runtime).await);
        return told;
    }
    build(runtime).await;
    told.templates.insert(runtime.templates().await.unwrap()[0].id.clone());
    for _ in 0..3 {
        told.running.insert(runtime.create(request("base")).await.unwrap().id.to_string());
    }
    let paused = told.running.pop_first().unwrap();
    if act != Act::Flatten {
        runtime.pause(&id(&paused)).await.unwrap();
    }
    told.subject = match act {
        Act::Resume | Act::KillPaused => Some(paused.clone()),
        Act::Pause | Act::Snapshot | Act::Fork | Act::KillRunning | Act::Flatten => told.running.first().cloned(),
        Act::Merge => {
            let deep = told.running.first().unwrap();
            for _ in 0..DEEP {
                again(runtime, deep).await;
            }
            Some(deep.clone())
        }
        Act::DeleteTemplate | Act::Import => {
            let of = told.running.first().unwrap();
            let snapshot = runtime.snapshot(&id(of), Some("state".into())).await.unwrap();
            Some(snapshot.snapshot_id)
        }
        Act::Build | Act::ApiBuild | Act::Create | Act::Open => None,
    };
    if act == Act::Flatten {
        told.running.insert(paused);
    } else {
        told.paused.insert(paused);
    }
    told.is_ending = matches!(act, Act::KillRunning | Act::KillPaused);
    told
}

/// Does it, and says what clients are told when it is done.
async fn carry_out(runtime: &Runtime, act: Act, told: &mut Told) {
    let subject = told.subject.clone();
    let of = || id(subject.as_ref().unwrap());
    match act {
        Act::Build => build(runtime).await,
        Act::Create => {
            told.running.insert(runtime.create(request("base")).await.unwrap().id.to_string());
        }
        Act::Pause => {
            runtime.pause(&of()).await.unwrap();
            told.paused.insert(told.running.take(subject.as_ref().unwrap()).unwrap());
        }
        Act::Resume => {
            runtime.resume(&of(), std::time::Duration::from_secs(3600)).await.unwrap();
            told.running.insert(told.paused.take(subject.as_ref().unwrap()).unwrap());
        }
        Act::Snapshot => {
            told.templates.insert(runtime.snapshot(&of(), Some("state".into())).await.unwrap().snapshot_id);
        }
        Act::Fork => {
            for child in runtime.fork(&of(), 2, std::time::Duration::from_secs(3600)).await.unwrap() {
                told.running.insert(child.unwrap().id.to_string());
            }
        }
        Act::KillRunning | Act::KillPaused => {
            runtime.kill(&of()).await.unwrap();
            let subject = subject.unwrap();
            told.running.remove(&subject);
            told.paused.remove(&subject);
            told.killed.insert(subject);
        }
        Act::DeleteTemplate => runtime.delete_template(subject.as_ref().unwrap()).await.unwrap(),
        Act::Open | Act::Merge | Act::Flatten | Act::Import | Act::ApiBuild => unreachable!("they are done elsewhere"),
    }
    told.subject = None;
}

async fn again(runtime: &Runtime, sandbox: &str) {
    runtime.pause(&id(sandbox)).await.unwrap();
    runtime.resume(&id(sandbox), std::time::Duration::from_secs(3600)).await.unwrap();
}

/// Makes a disk too deep and waits until it is shallow.
async fn merge(bench: &Bench, runtime: &Runtime, told: &mut Told) {
    let deep = told.subject.clone().unwrap();
    again(runtime, &deep).await;
    while !bench.has_merged_layer() {
        tokio::task::yield_now().await;
    }
    // Now it is, or is about to be, on record.
    again(runtime, &deep).await;
    told.subject = None;
}

/// Pauses a sandbox, waits until it has a memory of its own, and resumes it from that.
async fn flatten(bench: &Bench, runtime: &Runtime, told: &mut Told) {
    let subject = told.subject.clone().unwrap();
    runtime.pause(&id(&subject)).await.unwrap();
    while !bench.has_flat_state() {
        tokio::task::yield_now().await;
    }
    runtime.resume(&id(&subject), std::time::Duration::from_secs(3600)).await.unwrap();
    told.subject = None;
}

fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}
