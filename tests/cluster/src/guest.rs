//! The guest of a fake machine: it remembers every life that its memory has been in, and has a voice in each.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use firkin_engine::fake::Connection;
use firkin_warden::ProcessId;
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Request, Response, Stats, encode};
use fs_err as fs;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
};

use crate::{
    lease::Lease,
    record::{Heard, now},
    sink, voice,
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

    fn becomes(&mut self, sandbox: &str, epoch: u64) {
        if self.sandbox != sandbox {
            self.inherited = self.life.len();
            sandbox.clone_into(&mut self.sandbox);
        }
        self.life.push(epoch);
    }
}

/// Where the guests of one node have their voices.
#[derive(Debug)]
pub(crate) struct Voices {
    pub(crate) node: usize,
    /// A file for each, which outlives the server.
    pub(crate) dir: PathBuf,
    /// While this is there, who was paused says late that it goes on.
    pub(crate) slow: PathBuf,
    pub(crate) lease: Arc<Lease>,
    /// Where each life is written down instead, without a voice.
    pub(crate) book: Option<PathBuf>,
}

/// A voice, as the next server finds it.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    pid: u32,
    start_ticks: u64,
    machine: PathBuf,
    started: u64,
}

impl Voices {
    /// Gives a machine a voice, before it is what it is to be. That of a template's build is nobody's, and has none.
    fn begin(&self, machine: &Path, memory: &Memory, epoch: u64) -> anyhow::Result<()> {
        if memory.sandbox.starts_with("template-") {
            return Ok(());
        }
        if let Some(book) = &self.book {
            return self.write_down(book, memory, epoch);
        }
        let mut command = Command::new(std::env::current_exe()?);
        // What could be claimed does not begin in a lease that is over: the warden would see it late.
        ensure!(!memory.was_paused() || self.lease.holds(), "the lease is over");
        let started = voice::started(machine)?;
        command.arg("voice").arg("--machine").arg(machine).args(["--started", &started.to_string()]);
        command.args(["--sink", &sink::address().to_string()]);
        command.args(["--node", &self.node.to_string(), "--sandbox", &memory.sandbox, "--epoch", &epoch.to_string()]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start a voice")?;
        let process = ProcessId::of(child.id().context("a voice ended at once")?)?;
        let name = format!("{}-{epoch}", memory.sandbox);
        let written = Written { pid: process.pid, start_ticks: process.start_ticks, machine: machine.to_owned(), started };
        let new = self.dir.join(format!(".{name}"));
        fs::write(&new, serde_json::to_vec(&written)?)?;
        fs::rename(new, self.dir.join(&name))?;
        if memory.was_paused() {
            self.lease.list(&name, process)?;
        }
        // Buries it.
        tokio::spawn(async move { child.wait().await.ok() });
        Ok(())
    }

    fn write_down(&self, book: &Path, memory: &Memory, epoch: u64) -> anyhow::Result<()> {
        let (sandbox, life, can_be_claimed) = (memory.sandbox.clone(), memory.life.clone(), memory.was_paused());
        let line = Heard { at: now(), node: self.node, sandbox, epoch, life, can_be_claimed, sequence: 0 };
        let mut book = fs::OpenOptions::new().create(true).append(true).open(book)?;
        // At once, beside others that write.
        Ok(book.write_all(format!("{}\n", serde_json::to_string(&line)?).as_bytes())?)
    }

    /// Ends the voices of machines that are gone: those that stand still do not see it themselves.
    pub(crate) fn end_gone(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let Written { pid, start_ticks, machine, started } = serde_json::from_slice(&fs::read(entry.path())?)?;
            // What cannot be read has gone just now.
            if voice::started(&machine).is_ok_and(|now| now == started) {
                continue;
            }
            let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid is positive")?;
            // Held, and then asked who it is: nobody else is killed.
            if let Ok(held) = pidfd_open(raw, PidfdFlags::empty())
                && ProcessId::of(pid).is_ok_and(|process| process.start_ticks == start_ticks)
            {
                pidfd_send_signal(&held, Signal::KILL).ok();
            }
            self.lease.unlist(&name)?;
            fs::remove_file(entry.path())?;
        }
        Ok(())
    }
}

/// The guest's agent.
pub(crate) async fn agent(voices: Arc<Voices>, connection: Connection) {
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
                        memory.becomes(&identity.sandbox_id, identity.epoch);
                        let begun = guest
                            .kept()
                            .context("machines are kept")
                            .and_then(|machine| voices.begin(&machine, &memory, identity.epoch));
                        if let Err(error) = begun {
                            tracing::error!("a machine may not begin: {error:#}");
                            return guest.power_off();
                        }
                        match serde_json::to_vec(&memory) {
                            Ok(bytes) => guest.remember(bytes),
                            Err(error) => return tracing::error!(%error, "a guest cannot remember"),
                        }
                        if memory.was_paused() && voices.slow.exists() {
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
