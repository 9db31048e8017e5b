//! The tests of all crates, several programs at once.
//!
//! `cargo test` runs one program after the other, and many of them wait for most of their time: for machines, for deadlines, for disks. Cargo
//! builds them all and says which there are; here they are run, as cargo would, by a few threads that each take the next.

use std::{
    collections::BTreeMap,
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::{
    gvisor, moto, postgres,
    run::{Step, say},
    workspace::Workspace,
};

/// How many programs run at once. Each runs as many tests at once as there are processors.
const LANES: usize = 3;

/// These are begun first, since the others fit beside them.
const LONG: [&str; 7] = ["nested_kvm", "crash", "life", "network_slots", "life_of_trees", ON_GVISOR, "engine_gvisor"];

/// It is of nothing but sandboxes of gVisor, and its tests are those of the fake engine: they have no word for hosts without it.
const ON_GVISOR: &str = "life_on_gvisor";

/// A program of tests.
#[derive(Debug)]
pub(crate) struct Program {
    /// Of the test, or of the crate whose own tests these are.
    name: String,
    path: PathBuf,
    /// Where its package is: tests find their files from there.
    package: PathBuf,
}

/// What cargo says of each thing that it has built: these of its fields are looked at.
#[derive(Debug, Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Profile {
    test: bool,
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    program: Program,
    outcome: anyhow::Result<bool>,
    output: Vec<u8>,
    took: Duration,
}

/// All that the tests of Rust are made of: one build serves them all. Gives the programs, the longest first.
pub(crate) fn build(workspace: &Workspace, step: &mut Step) -> anyhow::Result<Vec<Program>> {
    step.run(&mut workspace.cargo(&["test", "--workspace", "--no-run", "--quiet"]))?;
    let mut asked = workspace.cargo(&["test", "--workspace", "--no-run", "--quiet", "--message-format", "json"]);
    let output = asked.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo cannot say which tests there are: {}", output.status);
    }
    programs(&output.stdout)
}

fn programs(messages: &[u8]) -> anyhow::Result<Vec<Program>> {
    let mut found = BTreeMap::new();
    for message in serde_json::Deserializer::from_slice(messages).into_iter::<Message>() {
        let message = message.context("cannot read what cargo says of its builds")?;
        let Message {
            executable: Some(path),
            manifest_path: Some(manifest),
            target: Some(target),
            profile: Some(Profile { test: true }),
        } = message
        else {
            continue;
        };
        let package = manifest.parent().context("a manifest is in a directory")?.to_owned();
        found.insert(path.clone(), Program { name: target.name, path, package });
    }
    if found.is_empty() {
        bail!("cargo names no program of tests");
    }
    let mut programs: Vec<Program> = found.into_values().collect();
    programs.sort_by_key(|program| LONG.iter().position(|name| *name == program.name).unwrap_or(LONG.len()));
    Ok(programs)
}

/// Runs them all, shows what each has printed when it has ended, and fails after the last where one has failed. `moto` is the program of
/// a server of S3, where there is one.
pub(crate) fn run(mut programs: Vec<Program>, moto: Option<&Path>, step: &mut Step) -> anyhow::Result<()> {
    if !gvisor::is_here() {
        say(&format!("SKIP: {ON_GVISOR}: there is no `runsc` or `mkfs.erofs` on this host"));
        programs.retain(|program| program.name != ON_GVISOR);
        step.skipped(1);
    }
    if !postgres::is_here() {
        say("SKIP: the catalogue on PostgreSQL: its programs are not on this host");
        step.skipped(1);
    }
    let queue = Mutex::new(programs.into_iter());
    let (tell, ends) = mpsc::channel();
    let mut failed = Vec::new();
    thread::scope(|scope| {
        for _ in 0..LANES {
            let (queue, tell) = (&queue, tell.clone());
            scope.spawn(move || take_turns(queue, moto, &tell));
        }
        drop(tell);
        for Ended { program, outcome, output, took } in ends {
            say(&format!("\n     Tests of {} ({})", program.name, program.package.display()));
            step.show(&output);
            say(&format!("{:>7.1} s  {}", took.as_secs_f32(), program.name));
            match outcome {
                Ok(true) => {}
                Ok(false) => failed.push(program.name),
                Err(error) => failed.push(format!("{} ({error:#})", program.name)),
            }
        }
    });
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    Ok(())
}

fn take_turns(queue: &Mutex<std::vec::IntoIter<Program>>, moto: Option<&Path>, tell: &Sender<Ended>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let Some(program) = next else { return };
        say(&format!("tests of {} begin", program.name));
        let started = Instant::now();
        let (outcome, output) = match run_one(&program.path, &program.package, moto) {
            Ok((succeeded, output)) => (Ok(succeeded), output),
            Err(error) => (Err(error), Vec::new()),
        };
        // Whoever listens is there until all have ended.
        tell.send(Ended { program, outcome, output, took: started.elapsed() }).ok();
    }
}

/// Whether it succeeded, and what it printed: its errors and its results in one, as they came. By a file and not by a pipe, whose end would come
/// only with that of everything which a test left behind.
fn run_one(program: &Path, package: &Path, moto: Option<&Path>) -> anyhow::Result<(bool, Vec<u8>)> {
    let mut printed = tempfile::tempfile().context("cannot make a file for what it prints")?;
    let [output, errors] = [printed.try_clone(), printed.try_clone()].map(|file| file.context("cannot share a file"));
    let mut command = Command::new(program);
    command.current_dir(package).env("CARGO_MANIFEST_DIR", package).envs(moto.map(|program| (moto::VARIABLE, program)));
    let status = command.stdin(Stdio::null()).stdout(output?).stderr(errors?).status().context("cannot start it")?;
    printed.rewind().context("cannot read what it printed")?;
    let mut text = Vec::new();
    printed.read_to_end(&mut text).context("cannot read what it printed")?;
    Ok((status.success(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_those_of_tests_the_longest_first() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","manifest_path":"/p/a/Cargo.toml","target":{"name":"a"},"profile":{"test":true},"executable":"/t/a-1"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/a/Cargo.toml","target":{"name":"tool"},"profile":{"test":false},"executable":"/t/tool"}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/b/Cargo.toml","target":{"name":"b"},"profile":{"test":true},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","manifest_path":"/p/b/Cargo.toml","target":{"name":"life"},"profile":{"test":true},"executable":"/t/life-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        let found = programs(messages.as_bytes()).unwrap();
        let names: Vec<_> = found.iter().map(|program| (program.name.as_str(), program.package.to_str().unwrap())).collect();
        assert_eq!(names, [("life", "/p/b"), ("a", "/p/a")]);
        assert!(programs(br#"{"reason":"build-finished","success":true}"#).is_err());
    }

    #[test]
    fn one_that_fails_fails_the_step_after_all_have_run() {
        let program = |path: &str| Program { name: path.to_owned(), path: path.into(), package: "/".into() };
        let mut step = Step::default();
        let error =
            run(vec![program("/bin/false"), program("/does/not/exist"), program("/bin/true")], None, &mut step).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("/bin/false") && error.contains("/does/not/exist") && !error.contains("/bin/true"), "{error}");
    }
}
