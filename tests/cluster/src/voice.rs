//! The voice of a machine: a process that tells the sink again and again that the machine runs, as whom, and what it remembers.
//!
//! A fake machine is a file. Its voice is what of it outlives the server and can be stopped, as a real one is. The time that it tells was
//! taken *before* it looked whether the machine is there and runs: so it is true however long what follows takes.

use std::{
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde::Deserialize;

use crate::{
    guest::Memory,
    record::{Heard, now},
};

/// Between two words.
const EVERY: Duration = Duration::from_millis(50);

/// How long the machine may take to become what it is to be, once its voice is there.
const BEGIN: Duration = Duration::from_secs(30);

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
    #[arg(long)]
    sandbox: String,
    #[arg(long)]
    epoch: u64,
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

/// How a machine is found.
enum Standing {
    /// It is somebody's else, or nobody's yet.
    Another,
    Stopped,
    Running(Memory),
    Gone,
}

impl Voice {
    /// Speaks for as long as the machine is there and is this one.
    pub(crate) fn speak(&self) -> anyhow::Result<()> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).context("a voice has no socket")?;
        let begun = Instant::now();
        let mut sequence = 0;
        loop {
            let at = now();
            match self.look(&self.machine)? {
                Standing::Gone => return Ok(()),
                Standing::Another if sequence > 0 || begun.elapsed() > BEGIN => return Ok(()),
                Standing::Another | Standing::Stopped => {}
                Standing::Running(memory) => {
                    let can_be_claimed = memory.was_paused();
                    let (node, sandbox, epoch) = (self.node, self.sandbox.clone(), self.epoch);
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
        if memory.sandbox != self.sandbox || memory.life.last() != Some(&self.epoch) {
            return Ok(Standing::Another);
        }
        Ok(if standing == "Running" { Standing::Running(memory) } else { Standing::Stopped })
    }
}
