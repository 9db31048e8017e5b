//! A server of our own for the length of a test: its own state directory, its own port, stopped as a person would stop it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU16, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fs_err as fs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{http, run::say, workspace::Workspace};

/// From start to an answer on `/health`, the probe for acceleration included, which may have to wait for a guest that hangs.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// From the signal to the exit, with sandboxes to end.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// Between two questions to a server that does not answer yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// How long one question may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);

/// Where registries of the tests listen (`tests/conformance/newest/test_builds.py`): an address of the loopback that nobody else uses, and a port
/// for each of two suites at the same time. Servers ask registries on the loopback only where they are named.
const TESTS_REGISTRIES: [&str; 2] = ["127.83.12.1:5000", "127.83.12.1:5001"];

/// Where receivers of webhooks of the tests listen (`tests/conformance/newest/test_command_line.py`). Nobody is sent anything on the loopback
/// unless the server is told that he may be.
const TESTS_RECEIVERS: &str = "127.83.12.2/32";

/// How much of the log is shown when something went wrong.
const LOG_TAIL_LINES: usize = 60;

/// A running `firkin up`.
#[derive(Debug)]
pub(crate) struct Server {
    address: SocketAddr,
    pid: Pid,
    exited: Receiver<std::io::Result<ExitStatus>>,
    log: PathBuf,
    stopped: bool,
}

/// The options that let a server reach what tests have beside it.
fn surroundings() -> Vec<String> {
    let mirrors = TESTS_REGISTRIES.iter().flat_map(|address| ["--registry-mirror".to_owned(), format!("{address}={address}")]);
    mirrors.chain(["--webhook-allow", TESTS_RECEIVERS].map(str::to_owned)).collect()
}

impl Server {
    /// Starts a server with this state directory, which may pull from the tests' registries and call their webhooks, and returns once it answers.
    pub(crate) fn start(workspace: &Workspace, state_dir: &Path) -> anyhow::Result<Self> {
        let options = surroundings();
        Self::start_with(workspace, state_dir, &options.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// The same, with HTTPS by host names: sandboxes get names below `localhost`, and `firkin env` says what to trust.
    pub(crate) fn start_with_https(workspace: &Workspace, state_dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let address = free_address()?.to_string();
        Self::start_with(workspace, state_dir, &[&["--tls-listen", &address], options].concat())
    }

    /// The same, with these options.
    pub(crate) fn start_with(workspace: &Workspace, state_dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        Self::launch(workspace, state_dir, options, free_address()?)
    }

    /// Another one in the place of this one, which has died: at its address, and with its log.
    pub(crate) fn start_again(self, workspace: &Workspace, state_dir: &Path, options: &[&str]) -> anyhow::Result<Self> {
        Self::launch(workspace, state_dir, options, self.address)
    }

    fn launch(workspace: &Workspace, state_dir: &Path, options: &[&str], address: SocketAddr) -> anyhow::Result<Self> {
        // Beside the directory and not in it: that is the server's own.
        let log = state_dir.with_extension("log");
        let output = fs::OpenOptions::new().create(true).append(true).open(&log)?.into_parts().0;
        let errors = output.try_clone().context("cannot share the log file")?;
        let mut command = workspace.firkin();
        command.args(["up", "--yes", "--listen", &address.to_string(), "--state-dir"]).arg(state_dir).args(options);
        let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().context("cannot start `firkin up`")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("a process id is an i32")?);
        let mut server = Self { address, pid, exited: watch(child), log, stopped: false };
        let started = Instant::now();
        server.wait_until_healthy(started + START_DEADLINE)?;
        say(&format!("server {pid} answers on {address} after {:.1} s", started.elapsed().as_secs_f32()));
        Ok(server)
    }

    /// Where it serves.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Kills it, as the kernel does when there is no memory left: its machines go on.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.stopped = true;
        kill(self.pid, Signal::SIGKILL).context("the server is gone already")?;
        self.exited
            .recv_timeout(STOP_DEADLINE)
            .context("the killed server does not end")?
            .context("cannot wait for the server")?;
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub(crate) fn is_there(&mut self) -> anyhow::Result<()> {
        match self.exited.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Ok(Ok(status)) => {
                self.stopped = true;
                bail!("the server ended by itself: {status}\n{}", self.log_tail())
            }
            Ok(Err(error)) => Err(error).context("cannot wait for the server"),
            Err(TryRecvError::Disconnected) => bail!("the server's watcher ended"),
        }
    }

    fn wait_until_healthy(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            if healthy(self.address) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the server did not answer within {} s\n{}", START_DEADLINE.as_secs(), self.log_tail());
            }
            match self.exited.recv_timeout(PROBE_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(status) => {
                    self.stopped = true;
                    let status = status.context("cannot wait for the server")?;
                    bail!("the server ended at start: {status}\n{}", self.log_tail());
                }
                Err(RecvTimeoutError::Disconnected) => bail!("the server's watcher ended"),
            }
        }
    }

    /// Asks the server to stop and waits until it did. It has to end by itself, and successfully.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.stopped = true;
        kill(self.pid, Signal::SIGTERM).context("the server is gone already")?;
        match self.exited.recv_timeout(STOP_DEADLINE) {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("the server ended badly: {status}\n{}", self.log_tail()),
            Ok(Err(error)) => Err(error).context("cannot wait for the server"),
            Err(_) => {
                kill(self.pid, Signal::SIGKILL).context("cannot kill the server")?;
                bail!("the server did not stop within {} s and was killed\n{}", STOP_DEADLINE.as_secs(), self.log_tail())
            }
        }
    }

    /// The end of the server's log.
    pub(crate) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
        format!("the end of {}:\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.stopped {
            return;
        }
        say(&format!("stopping the server\n{}", self.log_tail()));
        if kill(self.pid, Signal::SIGTERM).is_ok() && self.exited.recv_timeout(STOP_DEADLINE).is_err() {
            say("the server does not stop: killing it");
            if let Err(error) = kill(self.pid, Signal::SIGKILL) {
                say(&format!("cannot kill the server: {error}"));
            }
        }
    }
}

/// Tells, once, how the child ended.
fn watch(mut child: Child) -> Receiver<std::io::Result<ExitStatus>> {
    let (tell, exited) = mpsc::channel();
    // Not joined: it ends with the child, and the server's owner waits for that through the channel.
    thread::spawn(move || {
        if tell.send(child.wait()).is_err() {
            // The owner no longer wants to know.
        }
    });
    exited
}

/// Ports of servers: not those that a kernel gives to whoever wants any (from 32768), and no program but this one takes them in turn.
const PORTS: Range<u16> = 20_000..30_000;
/// Those of them that one process tries before those of the next.
const PORTS_OF_PROCESS: u16 = 20;

/// A loopback address whose port nobody uses, nor is given before a server is there, or while it is started again.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let ports = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id() % u32::from(ports / PORTS_OF_PROCESS)).context("a remainder is small")?;
    for _ in PORTS {
        let next = (first * PORTS_OF_PROCESS + TRIED.fetch_add(1, Ordering::Relaxed) % ports) % ports;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, PORTS.start + next)) {
            return listener.local_addr().context("cannot read the free port");
        }
    }
    bail!("all ports from {} to {} are in use", PORTS.start, PORTS.end)
}

/// Whether `/health` is answered with success.
fn healthy(address: SocketAddr) -> bool {
    let request = http::Request { method: "GET", path: "/health", headers: &[], body: b"" };
    http::ask(address, &request, PROBE_DEADLINE).is_ok_and(|answer| (200..300).contains(&answer.status))
}

/// The variables that `firkin env` prints for the server of this state directory.
pub(crate) fn variables(workspace: &Workspace, state_dir: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let output = workspace.firkin().arg("env").arg("--state-dir").arg(state_dir).output().context("cannot run `firkin env`")?;
    if !output.status.success() {
        bail!("`firkin env` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let variables = exports(&String::from_utf8_lossy(&output.stdout));
    for wanted in ["E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"] {
        if !variables.contains_key(wanted) {
            bail!("`firkin env` does not export {wanted}");
        }
    }
    Ok(variables)
}

/// Reads `export NAME=value` lines.
fn exports(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
    lines.map(|(name, value)| (name.to_owned(), value.trim_matches(['\'', '"']).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn export_lines_are_read_and_others_are_not() {
        let read = exports("# a comment\nexport E2B_API_KEY=e2b_0a\nexport E2B_API_URL='http://127.0.0.1:1'\nhint: x=y\n");
        let expect = [("E2B_API_KEY", "e2b_0a"), ("E2B_API_URL", "http://127.0.0.1:1")];
        assert_eq!(read, expect.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn a_port_where_nobody_listens_is_not_healthy() {
        assert!(!healthy(free_address().unwrap()));
    }
}
