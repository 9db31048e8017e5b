//! The whole product on KVM, on a host that has none: a sandbox becomes the host.
//!
//! An emulated machine's processor has AMD's virtualisation, so a sandbox with KVM's modules loaded runs the product as users'
//! servers do: other machine type, other devices, other clock, other build of QEMU than with the emulator. The laboratory is a
//! sandbox of a server of our own. Everything that it needs is in its root disk, so it needs no network; nothing of it is left.
//!
//! Everything in there is emulated twice over: the deadlines are for that, and its figures say only that it works.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::Value;

use crate::{
    household::Household,
    leaks, python,
    run::{Report, Step, say},
    server::Server,
    workspace::Workspace,
};

/// The laboratory's template, and the only one that is used on this host.
const LABORATORY: &str = "laboratory";
/// How long the laboratory may live, in seconds. A run takes a part of an hour.
const LIFETIME: &str = "10800";
/// One command in the laboratory.
const DEADLINE: Duration = Duration::from_secs(1800);
/// What every command in the laboratory begins with: where the product is, and that nothing but KVM will do. A guest that is
/// emulated twice takes a minute to power off.
const SURROUNDINGS: &str = "export PATH=/lab:$PATH FIRKIN_CACHE_DIR=/lab/cache FIRKIN_ACCEL=kvm FIRKIN_KVM_DEADLINE=300; ";
/// Unpacks what came with the root disk, and makes of the sandbox a host with KVM.
const SET_UP: &str = "tar --directory / --extract --absolute-names --file /host/lab.tar
    ln /host/rootfs.ext4 /lab/cache/$(cat /lab/root-entry)
    modprobe kvm-amd
    test -c /dev/kvm";
/// Starts a server and waits until it answers. What it says stands in a file.
const UP: &str = "setsid firkin up --yes --warm 1 --memory-overcommit 300 >>/var/log/up.log 2>&1 </dev/null &
    for i in $(seq 600); do
        if curl --silent --fail --output /dev/null http://127.0.0.1:3000/health; then exit; fi
        if ! kill -0 $!; then break; fi
        sleep 1
    done
    tail -n 40 /var/log/up.log
    exit 1";
/// The id of the server's process.
const SERVER: &str = r#"$(python3 -c 'import json; print(json.load(open("/var/lib/firkin/server.json"))["pid"])')"#;
/// The tests of the newest SDK that are run unless others are asked for.
const SDK_TESTS: &str = "newest/test_lifecycle.py";

/// What to run in the laboratory.
#[derive(Debug, Args)]
pub(crate) struct Nested {
    /// Memory of the inner host in MiB
    #[arg(long, value_name = "MIB", default_value_t = 6144, value_parser = clap::value_parser!(u32).range(4096..=65536))]
    memory: u32,
    /// Leave the SDK's tests out
    #[arg(long, conflicts_with = "pytest")]
    without_sdk: bool,
    /// Passed to pytest for the newest SDK, after `--`, in place of `newest/test_lifecycle.py`
    #[arg(last = true)]
    pytest: Vec<String>,
}

/// A sandbox that is a host.
struct Laboratory<'a> {
    workspace: &'a Workspace,
    state_dir: &'a Path,
    id: String,
}

/// Everything from the laboratory's disk to the check that nothing is left.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut Report, nested: &Nested) -> anyhow::Result<()> {
    let made = household.passable_dir("nested-")?;
    let (cache, state_dir) = (made.path().join("cache"), made.path().join("state"));
    let before = leaks::Host::observe(household)?;
    report.step("laboratory's disk", |step| disk(workspace, &cache, nested, step))?;
    let workspace = &workspace.with_product_cache(&cache);
    report.step("laboratory's template", |step| {
        let mut command = workspace.firkin();
        command.args(["template", "build", LABORATORY, "--accel", "tcg", "--nested-virtualization", "--cpus", "2", "--memory"]);
        step.run(command.arg(nested.memory.to_string()).arg("--state-dir").arg(&state_dir))
    })?;
    let mut opened = None;
    report.step("laboratory", |step| {
        // The inner server is what is tried here: this one takes its one sandbox however busy the host is.
        let options = ["--accel", "tcg", "--warm", "0", "--memory-stall", "101"];
        let server = Server::start_with(workspace, &state_dir, &options)?;
        let laboratory = Laboratory::open(workspace, &state_dir, step);
        opened = Some((server, laboratory?));
        Ok(())
    })?;
    let (server, laboratory) = opened.context("the laboratory is open")?;
    let walked = product(&laboratory, report).and_then(|()| laboratory.measures(report, nested));
    if walked.is_err() {
        laboratory.show_log();
    }
    walked?;
    report.step("laboratory ends", |_| server.stop())?;
    drop(made);
    report.step("nothing left on the host", |step| leaks::check(household, &before, step))
}

/// A cache directory for the laboratory's server, with what the laboratory needs in the root disk.
fn disk(workspace: &Workspace, cache: &Path, nested: &Nested, step: &mut Step) -> anyhow::Result<()> {
    let mut command = Command::new(workspace.binaries.join("laboratory_disk"));
    command.arg(cache);
    let mut add = |name: &str, path: &Path| {
        command.arg(format!("{name}={}", path.display()));
    };
    add("firkin", &workspace.binaries.join("firkin"));
    // Never started, since the root file system is there already; but a host must have it.
    add("mmdebstrap", Path::new("/usr/bin/mmdebstrap"));
    if !nested.without_sdk {
        let tests = workspace.root.join("tests/conformance");
        python::set_up(step)?;
        let python = python::environment(&workspace.cache(), &tests.join("requirements-newest.txt"), step)?;
        add("site-packages", &packages(&python)?);
        add("conformance", &tests);
    }
    step.run(&mut command)
}

/// Where a Python environment has its packages.
fn packages(python: &Path) -> anyhow::Result<PathBuf> {
    let output = Command::new(python).args(["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).output();
    let output = output.context("cannot start the SDK's Python")?;
    Ok(PathBuf::from(String::from_utf8(output.stdout).context("a path is text")?.trim()))
}

/// What users do, step by step.
fn product(laboratory: &Laboratory<'_>, report: &mut Report) -> anyhow::Result<()> {
    report.step("kvm: template `base`", |step| step.run(&mut laboratory.command("firkin template build base")))?;
    report.step("kvm: server", |step| {
        laboratory.server(step)?;
        laboratory.ready_pool(step)
    })?;
    let mut sandbox = String::new();
    report.step("kvm: create, and run a command", |step| {
        sandbox = laboratory.create("base")?;
        laboratory.expect(&sandbox, "echo $((6 * 7))", "42", step)?;
        // A process, and a file in memory: what follows must keep both.
        let start = "echo kept >/dev/shm/kept; nohup sleep 100000 >/dev/null 2>&1 & echo started";
        laboratory.expect(&sandbox, start, "started", step)?;
        laboratory.expect_kept(&sandbox, step)
    })?;
    let mut copy = String::new();
    report.step("kvm: fork", |step| {
        let forks = laboratory.json(&format!("firkin sandbox fork --timeout {LIFETIME} {sandbox}"))?;
        copy = text(&forks, "/0/sandbox/sandboxID")?;
        laboratory.expect_kept(&copy, step)?;
        laboratory.expect_kept(&sandbox, step)
    })?;
    report.step("kvm: pause and resume", |step| {
        step.run(&mut laboratory.command(&format!("firkin sandbox pause {sandbox}")))?;
        ensure!(laboratory.state(&sandbox)? == "paused", "a paused sandbox is not");
        step.run(&mut laboratory.command(&format!("firkin sandbox resume --timeout {LIFETIME} {sandbox}")))?;
        laboratory.expect_kept(&sandbox, step)
    })?;
    report.step("kvm: snapshot, and create from it", |step| {
        let snapshot = laboratory.json(&format!("firkin sandbox snapshot {sandbox}"))?;
        let second = laboratory.create(&text(&snapshot, "/snapshotID")?)?;
        laboratory.expect_kept(&second, step)?;
        step.run(&mut laboratory.command(&format!("firkin sandbox kill {second}")))
    })?;
    report.step("kvm: kill -9 of the server, and take-over", |step| {
        step.run(&mut laboratory.command(&format!("pid={SERVER}; kill -9 $pid; while kill -0 $pid; do sleep 0.1; done 2>&1")))?;
        laboratory.server(step)?;
        for survivor in [&sandbox, &copy] {
            laboratory.expect_kept(survivor, step)?;
        }
        let after = laboratory.create("base")?;
        laboratory.expect(&after, "uname", "Linux", step)?;
        step.run(&mut laboratory.command("firkin --yes sandbox kill --all"))
    })
}

impl<'a> Laboratory<'a> {
    /// Creates the sandbox and makes it a host.
    fn open(workspace: &'a Workspace, state_dir: &'a Path, step: &mut Step) -> anyhow::Result<Self> {
        let mut command = workspace.firkin();
        command.args(["sandbox", "create", LABORATORY, "--json", "--timeout", LIFETIME, "--no-internet", "--state-dir"]);
        let sandbox: Value = serde_json::from_str(&read(command.arg(state_dir))?).context("cannot read what was created")?;
        let laboratory = Self { workspace, state_dir, id: text(&sandbox, "/sandboxID")? };
        step.run(&mut laboratory.command(SET_UP))?;
        Ok(laboratory)
    }

    /// A shell command as root of the laboratory.
    fn command(&self, script: &str) -> Command {
        let mut command = self.workspace.firkin();
        command.args(["sandbox", "exec", "--user", "root", "--timeout", &DEADLINE.as_secs().to_string(), "--state-dir"]);
        command.arg(self.state_dir).args([&self.id, "--", "sh", "-ec", &format!("{SURROUNDINGS}{script}")]);
        command
    }

    /// What a command in the laboratory prints as JSON.
    fn json(&self, script: &str) -> anyhow::Result<Value> {
        let output = read(&mut self.command(&format!("{script} --json")))?;
        serde_json::from_str(&output).with_context(|| format!("cannot read what `{script}` printed: {output}"))
    }

    /// Starts the inner server, and makes sure what it runs with.
    fn server(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.command(UP))?;
        let metrics = read(&mut self.command("curl --silent --fail http://127.0.0.1:3000/metrics"))?;
        ensure!(metrics.contains(r#"acceleration="kvm""#), "the inner server does not run with KVM");
        step.passed(1);
        Ok(())
    }

    /// Waits until the pool has what it keeps, so that its filling is not what the next steps wait for.
    fn ready_pool(&self, step: &mut Step) -> anyhow::Result<()> {
        let script = r#"for i in $(seq 300); do
            if curl --silent http://127.0.0.1:3000/metrics | grep -q 'firkin_pool_sessions{.*state="ready".*} [1-9]'; then exit; fi
            sleep 1
        done
        exit 1"#;
        step.run(&mut self.command(script)).context("the inner server's pool stays empty")
    }

    fn create(&self, from: &str) -> anyhow::Result<String> {
        text(&self.json(&format!("firkin sandbox create {from} --timeout {LIFETIME}"))?, "/sandboxID")
    }

    fn state(&self, sandbox: &str) -> anyhow::Result<String> {
        text(&self.json(&format!("firkin sandbox info {sandbox}"))?, "/state")
    }

    /// Fails unless a command in an inner sandbox prints this.
    fn expect(&self, sandbox: &str, command: &str, wanted: &str, step: &mut Step) -> anyhow::Result<()> {
        let printed = read(&mut self.command(&format!("firkin sandbox exec {sandbox} -- sh -c '{command}'")))?;
        ensure!(printed.trim() == wanted, "`{command}` in {sandbox} printed `{printed}`, not `{wanted}`");
        step.passed(1);
        Ok(())
    }

    /// Fails unless an inner sandbox has the file and the process that were there at first.
    fn expect_kept(&self, sandbox: &str, step: &mut Step) -> anyhow::Result<()> {
        self.expect(sandbox, "cat /dev/shm/kept; pgrep -c sleep", "kept\n1", step)
    }

    /// The bench and the SDK's tests, against the inner server; then its end, of which nothing may be left.
    fn measures(&self, report: &mut Report, nested: &Nested) -> anyhow::Result<()> {
        report.step("kvm: firkin bench --quick", |step| step.run(&mut self.command("firkin bench --quick")))?;
        if !nested.without_sdk {
            let tests = if nested.pytest.is_empty() { SDK_TESTS.to_owned() } else { quoted(&nested.pytest) };
            let script = format!(
                "eval \"$(firkin env)\"; unset E2B_DOMAIN; cd /lab/conformance
                FIRKIN_BIN=/lab/firkin PYTHONPATH=/lab/site-packages python3 -B -m pytest -p no:cacheprovider --timeout 900 {tests}"
            );
            report.step("kvm: newest SDK", |step| step.run(&mut self.command(&script)))?;
        }
        report.step("kvm: server ends, no machine is left", |step| {
            let end = format!("pid={SERVER}; kill $pid; while kill -0 $pid; do sleep 0.1; done 2>&1; ! pgrep --list-name firkin");
            step.run(&mut self.command(&end))?;
            step.passed(1);
            Ok(())
        })
    }

    /// Shows what the inner server said last, if that can still be read.
    fn show_log(&self) {
        if let Ok(log) = read(&mut self.command("tail -n 60 /var/log/up.log")) {
            say(&format!("the end of the inner server's log:\n{log}"));
        }
    }
}

/// The arguments as words of a shell.
fn quoted(arguments: &[String]) -> String {
    let words = arguments.iter().map(|argument| format!("'{}'", argument.replace('\'', r"'\''")));
    words.collect::<Vec<_>>().join(" ")
}

/// What a program prints; fails unless it succeeds.
fn read(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).context("the output is no text")
}

/// A text in what a command printed.
fn text(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("there is no {pointer} in {value}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_inner_shell_as_they_are() {
        let arguments = ["-k", "pause or fork", "it's"].map(str::to_owned);
        let output = Command::new("sh").args(["-c", &format!("printf '%s\\n' {}", quoted(&arguments))]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "-k\npause or fork\nit's\n");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let value = serde_json::json!([{"sandbox": {"sandboxID": "i1"}}]);
        assert_eq!(text(&value, "/0/sandbox/sandboxID").unwrap(), "i1");
        assert!(text(&value, "/1/sandbox/sandboxID").unwrap_err().to_string().contains("/1/sandbox/sandboxID"));
    }
}
