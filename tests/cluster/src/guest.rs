//! The guest of a fake machine: it remembers every life that its memory has been in, and in which machine it is.

use std::{io::Write as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use firkin_engine::fake::{Connection, Guest};
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Request, Response, Stats, encode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    record::{Heard, now},
    voice,
};

/// How long a guest takes to say that it goes on, where it is slow: longer than it takes to be heard.
pub(crate) const SLOW: Duration = Duration::from_secs(3);

/// What a guest remembers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// Whose it is.
    pub(crate) sandbox: String,
    /// Each epoch that it has been in.
    pub(crate) life: Vec<u64>,
    /// How many of them were those of what it was made of.
    inherited: usize,
    /// Which machine was told last who it is. What was restored and not told yet has that of another one.
    pub(crate) machine: u64,
}

impl Memory {
    /// One that cannot be read is that of a machine which was just booted.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// Whether it was paused, so that there is a state of it which does not run.
    pub(crate) fn was_paused(&self) -> bool {
        self.life.len() > self.inherited + 1
    }

    fn becomes(&mut self, sandbox: &str, epoch: u64, machine: u64) {
        self.machine = machine;
        if self.sandbox != sandbox {
            self.inherited = self.life.len();
            sandbox.clone_into(&mut self.sandbox);
        }
        self.life.push(epoch);
    }
}

/// What the guests of one node have of it.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    /// While this is there, who was paused says late that it goes on.
    pub(crate) slow: PathBuf,
    /// Where each life is written down, of a node that is under load.
    pub(crate) book: Option<Book>,
}

/// The lives that a node has begun, a line each.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) node: usize,
    pub(crate) path: PathBuf,
}

impl Book {
    fn note(&self, memory: &Memory, epoch: u64) -> anyhow::Result<()> {
        // That of a template's build is nobody's.
        if memory.sandbox.starts_with("template-") {
            return Ok(());
        }
        let (sandbox, life, can_be_claimed) = (memory.sandbox.clone(), memory.life.clone(), memory.was_paused());
        let line = Heard { at: now(), node: self.node, sandbox, epoch, life, can_be_claimed, sequence: 0 };
        let mut book = fs_err::OpenOptions::new().create(true).append(true).open(&self.path)?;
        // At once, beside others that write.
        Ok(book.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())?)
    }
}

/// The guest's agent.
pub(crate) async fn agent(around: Around, connection: Connection) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => decoder.push(&buffer[..read]),
            Ok(_) | Err(_) => return,
        }
        while let Some(Request { id, call, .. }) = decoder.next() {
            let mut memory = Memory::read(&guest.memory());
            let answer = match call {
                Call::Hello => {
                    let epoch = memory.life.last().copied().unwrap_or(0);
                    Answer::Hello { generation: GENERATION, version: "test".into(), epoch, envd_ready: true }
                }
                Call::Resume(identity) => {
                    if memory.life.last() != Some(&identity.epoch) || memory.sandbox != identity.sandbox_id {
                        let machine = match machine(&guest) {
                            Ok(machine) => machine,
                            Err(error) => {
                                tracing::error!("a machine may not begin: {error:#}");
                                return guest.power_off();
                            }
                        };
                        memory.becomes(&identity.sandbox_id, identity.epoch, machine);
                        let noted = around.book.as_ref().map_or(Ok(()), |book| book.note(&memory, identity.epoch));
                        if let Err(error) = noted {
                            tracing::error!("a life that is not written down may not begin: {error:#}");
                            return guest.power_off();
                        }
                        match serde_json::to_vec(&memory) {
                            Ok(bytes) => guest.remember(bytes),
                            Err(error) => return tracing::error!(%error, "a guest cannot remember"),
                        }
                        if memory.was_paused() && around.slow.exists() {
                            tokio::time::sleep(SLOW).await;
                        }
                    }
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes: None }
                }
                Call::Stats => Answer::Stats(Stats {
                    ts: 0,
                    cpu_count: 1,
                    cpu_used_pct: 0.0,
                    mem_total: 0,
                    mem_used: memory.life.len() as u64,
                    mem_cache: 0,
                    disk_used: 0,
                    disk_total: 0,
                }),
                Call::Sync | Call::Shrink => Answer::Done,
                Call::PowerOff => {
                    guest.power_off();
                    Answer::Done
                }
            };
            let Ok(frame) = encode(&Response { id, answer, proof: None }) else { return };
            if stream.write_all(&frame).await.is_err() {
                return;
            }
        }
    }
}

/// Which machine a guest is in.
fn machine(guest: &Guest) -> anyhow::Result<u64> {
    voice::started(&guest.kept().context("machines are kept")?)
}
