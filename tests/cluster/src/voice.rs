//! The voice of a machine: a process that tells the sink again and again that the machine runs, as whom, and what it remembers.
//!
//! A fake machine is a file, and its voice the process of it: it outlives the server and can be stopped, as a real one is. It is there before the
//! machine is told who it is, and silent until then. The time that it tells was
//! taken *before* it looked whether the machine is there and runs: so it is true however long what follows takes.

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use firkin_warden::ProcessId;
use serde::Deserialize;

use crate::{
    guest::Memory,
    node::Places,
    record::{Heard, now},
    sink,
};

/// Between two words.
const EVERY: Duration = Duration::from_millis(50);

/// Whose voice, and who listens.
#[derive(Debug, Args)]
pub(crate) struct Voice {
    /// The file that the machine is
    #[arg(long)]
    machine: PathBuf,
    /// Which of the machines that this file is one after the other
    #[arg(long)]
    started: u64,
    #[arg(long)]
    sink: SocketAddr,
    #[arg(long)]
    node: usize,
}

/// How the machines of a node are processes.
pub(crate) fn program(bench: PathBuf, node: usize) -> impl Fn(&Path, u64) -> Command + Send + Sync {
    move |machine, started| {
        let mut command = Command::new(&bench);
        command.arg("voice").arg("--machine").arg(machine).args(["--started", &started.to_string()]);
        command.args(["--sink", &sink::address().to_string(), "--node", &node.to_string()]);
        command
    }
}

/// What is looked at in the file of a machine.
#[derive(Debug, Deserialize)]
struct Machine {
    standing: String,
    memory: Vec<u8>,
    started: u64,
}

/// Which machine is in the file, of all that are one after the other.
pub(crate) fn started(machine: &Path) -> anyhow::Result<u64> {
    let Machine { started, .. } = serde_json::from_slice(&fs_err::read(machine)?)?;
    Ok(started)
}

/// Whether the process of a sandbox's machine stands still, if there is such a machine on a node.
pub(crate) fn is_stopped(places: &Places, sandbox: &str) -> anyhow::Result<Option<bool>> {
    #[derive(Deserialize)]
    struct Process {
        pid: u32,
    }
    #[derive(Deserialize)]
    struct Embodied {
        memory: Vec<u8>,
        body: Process,
    }
    for entry in fs_err::read_dir(places.machines())? {
        let Embodied { memory, body } = serde_json::from_slice(&fs_err::read(entry?.path())?)?;
        if Memory::read(&memory).sandbox == sandbox {
            return Ok(Some(ProcessId::of(body.pid)?.is_stopped()));
        }
    }
    Ok(None)
}

/// How a machine is found.
enum Standing {
    /// It is nobody's yet, or stands still.
    Silent,
    Running(Memory),
    Gone,
}

impl Voice {
    /// Speaks for as long as the machine is there and is this one.
    pub(crate) fn speak(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).context("a voice has no socket")?;
        // So that the kernel does not let it go on when the session of its server ends.
        nix::unistd::setsid().context("a voice has no session of its own")?;
        let mut sequence = 0;
        loop {
            let at = now();
            match self.look(&self.machine)? {
                Standing::Gone => return Ok(()),
                Standing::Silent => {}
                Standing::Running(memory) => {
                    let can_be_claimed = memory.was_paused();
                    let (node, sandbox, epoch) = (self.node, memory.sandbox, memory.life.last().copied().unwrap_or(0));
                    let heard = Heard { at, node, sandbox, epoch, life: memory.life, can_be_claimed, sequence };
                    sequence += 1;
                    // What is lost is said again.
                    socket.send_to(&serde_json::to_vec(&heard)?, self.sink).ok();
                }
            }
            thread::park_timeout(EVERY);
        }
    }

    fn look(&self, machine: &Path) -> anyhow::Result<Standing> {
        let text = match fs_err::read(machine) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Gone),
            Err(error) => return Err(error.into()),
        };
        let Machine { standing, memory, started } =
            serde_json::from_slice(&text).context("the file of a machine is replaced whole")?;
        if started != self.started {
            return Ok(Standing::Gone);
        }
        let memory = Memory::read(&memory);
        let is_told = memory.machine == self.started && !memory.sandbox.starts_with("template-");
        Ok(if is_told && standing == "Running" { Standing::Running(memory) } else { Standing::Silent })
    }
}
