//! The process of a node, from outside: started, killed, stopped, started again.

use std::{
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use fs_err as fs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    household,
    mutant::Mutant,
    node::{Places, READY},
    schedule::Party,
    world::World,
};

/// How long a server may take until it serves, its database being there.
const START: Duration = Duration::from_secs(180);

/// And to end, with all of its sandboxes.
const STOP: Duration = Duration::from_secs(120);

const LOG_TAIL_LINES: usize = 30;

/// Where the records of all nodes are, by what who has them proves who it is, and by what a node does.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    pub(crate) url: String,
    pub(crate) authority: PathBuf,
    pub(crate) secret: PathBuf,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Server {
    number: usize,
    places: Places,
    catalog: Catalog,
    /// Whichever build of this one it runs.
    program: PathBuf,
    mutant: Option<Mutant>,
    /// That of a node under load.
    room: Option<u64>,
    child: Option<Child>,
}

impl Server {
    /// A node without a server.
    pub(crate) fn new(number: usize, places: Places, catalog: Catalog, (program, mutant): (PathBuf, Option<Mutant>)) -> Self {
        Self { number, places, catalog, program, mutant, room: None, child: None }
    }

    /// It is under load, and has room for so many sandboxes.
    pub(crate) fn with_room(mut self, room: u64) -> Self {
        self.room = Some(room);
        self
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Starts one, and waits until it serves; again and again where it ends instead, as whoever supervises servers does.
    pub(crate) fn start(&mut self, world: &World) -> anyhow::Result<()> {
        let since = Instant::now();
        while !self.try_start(world)? {
            if since.elapsed() > START {
                bail!("node {} does not start\n{}", self.number, self.log_tail());
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        Ok(())
    }

    fn try_start(&mut self, world: &World) -> anyhow::Result<bool> {
        let mut command = Command::new(&self.program);
        command.arg("node").args(["--number", &self.number.to_string()]).arg("--dir").arg(&self.places.dir);
        command.args(["--catalog", &self.catalog.url]).arg("--authority").arg(&self.catalog.authority);
        command.arg("--secret").arg(&self.catalog.secret);
        command.args(self.mutant.map(|mutant| format!("--mutant={mutant}")));
        command.args(self.room.map(|room| format!("--room={room}")));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.places.log())?.into_parts().0;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = world.on(Party::Node(self.number), || command.spawn().context("cannot start a server"))?;
        let output = child.stdout.take().context("its output is piped")?;
        // It ends with the output: a server that ends has told nothing more.
        let is_ready = BufReader::new(output).lines().map_while(Result::ok).any(|line| line == READY);
        if is_ready {
            self.child = Some(child);
        } else {
            child.wait()?;
        }
        Ok(is_ready)
    }

    /// As the kernel does when there is no memory left.
    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        let mut child = self.child.take().context("there is no server")?;
        child.wait()?;
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let child = self.child.as_ref().context("there is no server")?;
        kill(Pid::from_raw(i32::try_from(child.id())?), signal).context("cannot signal a server")
    }

    /// Asks it to end with its sandboxes. It has to, and well.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGTERM)?;
        let child = self.child.as_mut().context("there is no server")?;
        let since = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return if status.success() {
                    Ok(())
                } else {
                    bail!("node {} ended badly: {status}\n{}", self.number, self.log_tail())
                };
            }
            if since.elapsed() > STOP {
                bail!("node {} does not end\n{}", self.number, self.log_tail());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// The process of its warden.
    pub(crate) fn warden(&self) -> anyhow::Result<Option<Pid>> {
        let page = self.places.warden().join("page").display().to_string();
        let is_it = |words: &str| words.contains(" warden ") && words.contains(&page);
        Ok(household::processes()?.into_iter().find(|(_, words)| is_it(words)).map(|(pid, _)| Pid::from_raw(pid)))
    }

    pub(crate) fn log_tail(&self) -> String {
        let bytes = fs::read(self.places.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        format!("the end of its log:\n{}", lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}
