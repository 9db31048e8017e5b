//! Booting a guest and cutting what came up: the one way in which memory comes into being. Everything else restores it.
//!
//! Two boot: a template build, from the root image, and a sandbox whose memory was dropped, from its own disk. What was cut is a
//! whole artifact, whose machine is sealed and ends; nobody ever works in a booted machine.

use std::{path::Path, sync::Arc, time::Duration};

use firkin_engine::{BootFiles, BootSpec, Engine, Machine, MachineError, MemoryForm, Processor, Shape, Slot, parts};
use firkin_wire::control::{self, Answer, Call, Identity};
use tokio::time::Instant;

use crate::{
    artifact::{Artifact, ArtifactDraft, DiskMembers, MemoryMember, PublishError, RootDisk, Secrecy, SnapshotArtifactManifest},
    ground::{
        blocking::blocking,
        ids::{ArtifactId, LayerId},
        progress::Report,
    },
    machine::{
        agent::{Agent, AgentError},
        fence::Listing,
        groups::MachineGroup,
        instances::InstanceDir,
        launch::{BootError, LaunchError, Obituary},
        network::{Link, Reaching},
        quiescence::come_to_rest,
    },
    shared::Shared,
    store::spec::InternetAccess,
};

/// Boots are tried this often: under emulation a boot can lose a timer tick and hang.
const BOOT_ATTEMPTS: u32 = 3;

/// From the start of the machine to the agent's first answer. An emulated boot takes 3 to 10 s, on a busy host more.
const BOOT_DEADLINE: Duration = Duration::from_secs(90);

/// One try for a first answer; the port exists long before the agent listens.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// How much of a console is shown: a panic with its trace.
const LAST_LINES: usize = 40;

/// Making the guest small: a trim of an almost empty disk, and a sync.
const SHRINK_DEADLINE: Duration = Duration::from_secs(120);

/// What to boot.
pub(crate) struct BootRequest {
    /// On what it runs.
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) shape: Shape,
    /// What the guest sees of the processor, from now on for good.
    pub(crate) processor: Processor,
    /// What the guest's fresh overlay lies over.
    pub(crate) disk: DiskMembers,
    /// Size of the disk as the guest sees it.
    pub(crate) disk_bytes: u64,
    pub(crate) internet: InternetAccess,
    /// Whether others could have the sandbox meanwhile.
    pub(crate) can_be_claimed: bool,
    /// Who the guest is until it is cut. Its time and network are filled in.
    pub(crate) identity: Identity,
    /// What becomes of what it leaves.
    pub(crate) secrecy: Secrecy,
}

/// A machine that came up, and everything that exists only because of it. Fields drop in the order in which they must go.
pub(crate) struct Booted {
    machine: Box<dyn Machine>,
    #[expect(dead_code, reason = "held, not read")]
    listing: Option<Listing>,
    agent: Agent,
    #[expect(dead_code, reason = "held, not read")]
    group: MachineGroup,
    pub(crate) link: Link,
    draft: ArtifactDraft,
    dir: InstanceDir,
    disk: RootDisk,
    memory: Option<MemoryForm>,
    /// What it was booted from.
    pub(crate) boot: BootFiles,
}

/// Boots until the guest comes up, or too often.
pub(crate) async fn boot(shared: &Arc<Shared>, request: &BootRequest, report: Report<'_>) -> Result<Booted, BootError> {
    for attempt in 1.. {
        report(&format!(
            "booting the guest ({}, attempt {attempt} of {BOOT_ATTEMPTS})",
            request.engine.fingerprint().acceleration
        ));
        match try_boot(shared, request).await {
            Ok(booted) => return Ok(booted),
            Err(LaunchError::Network(source)) => return Err(BootError::Network(source)),
            // Nothing that another attempt would mend: the lease is over, or nobody watches it.
            Err(source @ LaunchError::Fence(_)) => return Err(BootError::Up { attempts: attempt, source }),
            Err(source) if attempt >= BOOT_ATTEMPTS => return Err(BootError::Up { attempts: attempt, source }),
            Err(error) => report(&format!("the guest did not come up: {}", firkin_causes::chain(&error))),
        }
    }
    unreachable!("the loop ends by returning")
}

async fn try_boot(shared: &Arc<Shared>, request: &BootRequest) -> Result<Booted, LaunchError> {
    let engine = &request.engine;
    let boot = Shared::boot_files(&**engine, &shared.config.guest.now());
    let reaching = Reaching { internet: &request.internet, sandbox: &request.identity.sandbox_id };
    let link = shared.links.acquire(request.engine.attachment(), reaching).await?;
    let staged = |path: &Path| {
        let path = path.to_owned();
        move |source| LaunchError::Stage { path, source }
    };
    let draft = shared.artifacts.draft_in(request.secrecy).map_err(staged(&shared.config.state_dir))?;
    let name = format!("build-{}", draft.id());
    let path = shared.launcher.instances.path(&name);
    let dir = shared.launcher.instances.create(&name).map_err(staged(&path))?;
    let disk = RootDisk::over(request.disk.layers.clone(), engine.disks());
    let files = disk.create((dir.path(), &request.disk), request.disk_bytes, &shared.artifacts).map_err(LaunchError::Disk)?;
    let (artifacts, ids, into) = (shared.artifacts.clone(), disk.layers.clone(), dir.path().to_owned());
    let layers = blocking(move || artifacts.readable_layers(&ids, &into)).await.map_err(LaunchError::Sealed)?;
    let group = shared.launcher.groups.make(&name, request.shape, &**engine).map_err(LaunchError::Group)?;
    let groups = group.entrances().map_err(LaunchError::Group)?;
    let mut machine = engine
        .boot(BootSpec {
            dir: dir.path().to_owned(),
            shape: request.shape,
            processor: request.processor,
            slot: Slot { groups, ..link.engine_slot().map_err(staged(&path))? },
            boot: boot.clone(),
            disk: firkin_engine::RootDisk { layers, ..files },
            memory_file: dir.path().join(parts::MEMORY),
        })
        .await
        .map_err(LaunchError::Start)?;
    let fence = shared.config.fence.as_ref().filter(|_| request.can_be_claimed);
    // What boots is nobody yet: it runs nothing of the sandbox before its agent is told who it is.
    let listing = Listing::of(fence, &*machine, &name).await.map_err(LaunchError::Fence)?;
    match come_up(&mut *machine, &request.identity, &link).await {
        Ok(agent) => Ok(Booted { machine, listing, agent, group, link, draft, dir, disk, memory: None, boot }),
        Err(error) => {
            let console = last_words(&mut *machine).await;
            machine.kill().await;
            Err(if console.is_empty() { error } else { LaunchError::Silent { console, source: Box::new(error) } })
        }
    }
}

/// Waits for the guest's agent, and has it take its identity.
async fn come_up(machine: &mut dyn Machine, identity: &Identity, link: &Link) -> Result<Agent, LaunchError> {
    let mut agent = await_hello(machine).await?;
    tokio::select! {
        exit = machine.wait() => Err(LaunchError::Machine(MachineError::Gone(exit))),
        identified = identify(&mut agent, identity, link) => identified.map(|()| agent).map_err(LaunchError::Agent),
    }
}

/// The end of a machine's console, for people.
async fn last_words(machine: &mut dyn Machine) -> String {
    let console = match machine.console_tail().await {
        Ok(console) => console,
        Err(error) => {
            tracing::debug!(%error, "the console of a guest is lost");
            return String::new();
        }
    };
    let lines: Vec<&str> = console.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let lines = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let printable = |c: char| c == '\n' || !c.is_control();
    lines.join("\n").chars().filter(|&c| printable(c)).collect()
}

/// Asks until the agent answers, the machine ends, or the deadline passes.
async fn await_hello(machine: &mut dyn Machine) -> Result<Agent, LaunchError> {
    let deadline = Instant::now() + BOOT_DEADLINE;
    loop {
        let mut agent = Agent::new(machine.control().await.map_err(LaunchError::Machine)?, None);
        let failed = tokio::select! {
            exit = machine.wait() => return Err(LaunchError::Machine(MachineError::Gone(exit))),
            answer = agent.call(Call::Hello, HELLO_DEADLINE) => match answer {
                Ok(Answer::Hello { generation, .. }) if generation > control::GENERATION => {
                    return Err(LaunchError::Agent(AgentError::Generation { found: generation, known: control::GENERATION }));
                }
                Ok(Answer::Hello { envd_ready: true, .. }) => return Ok(agent),
                Ok(_) => None,
                Err(error) => Some(error),
            },
        };
        if Instant::now() >= deadline {
            let error = failed.unwrap_or(AgentError::Deadline { call: "hello", deadline_ms: BOOT_DEADLINE.as_millis() });
            return Err(LaunchError::Agent(error));
        }
        if failed.is_none() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Gives the guest its identity, with the present time and the network of its link.
async fn identify(agent: &mut Agent, identity: &Identity, link: &Link) -> Result<(), AgentError> {
    let identity =
        Identity { realtime_ns: crate::machine::agent::realtime_ns(), network: link.guest_network(), ..identity.clone() };
    match agent.call(Call::Resume(Box::new(identity)), HELLO_DEADLINE * 10).await? {
        Answer::Resumed { .. } => Ok(()),
        Answer::Hello { .. } | Answer::Stats(_) | Answer::Done | Answer::Failed { .. } => {
            Err(AgentError::Unexpected { call: "resume" })
        }
    }
}

impl Booted {
    /// Where the artifact has its memory.
    pub(crate) fn memory(&self) -> MemoryMember {
        let form = self.memory.expect("what is published has been cut");
        MemoryMember::of_cut(form, self.id())
    }

    /// The layers of the disk that the artifact has: what it wrote is the uppermost.
    pub(crate) fn layers(&self) -> Vec<LayerId> {
        self.disk.layers.iter().chain([&self.disk.overlay]).cloned().collect()
    }

    /// Where it writes.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The id of the artifact that it becomes.
    pub(crate) fn id(&self) -> &ArtifactId {
        self.draft.id()
    }

    /// Does `work` for as long as the guest lives. Its end is told at once, with what it said last.
    pub(crate) async fn while_it_lives<T>(&mut self, work: impl Future<Output = T>) -> Result<T, BootError> {
        let exit = tokio::select! {
            done = work => return Ok(done),
            exit = self.machine.wait() => exit,
        };
        Err(BootError::Died(Obituary { exit, console: last_words(&mut *self.machine).await }))
    }

    /// Free space of its root file system as users other than root find it, bytes.
    pub(crate) async fn free_disk_bytes(&mut self) -> Result<u64, BootError> {
        match self.call(Call::Stats).await? {
            Answer::Stats(stats) => Ok(stats.disk_total.saturating_sub(stats.disk_used)),
            Answer::Hello { .. } | Answer::Resumed { .. } | Answer::Done | Answer::Failed { .. } => {
                Err(BootError::Shrink(AgentError::Unexpected { call: "stats" }))
            }
        }
    }

    /// Has the agent do something for as long as the guest lives.
    async fn call(&mut self, call: Call) -> Result<Answer, BootError> {
        let exit = tokio::select! {
            answer = self.agent.call(call, SHRINK_DEADLINE) => return answer.map_err(BootError::Shrink),
            exit = self.machine.wait() => exit,
        };
        Err(BootError::Died(Obituary { exit, console: last_words(&mut *self.machine).await }))
    }

    /// Makes the guest small: nothing is dirty, and what its caches hold can be read again.
    pub(crate) async fn shrink(&mut self, report: Report<'_>) -> Result<(), BootError> {
        report("making the guest small");
        self.call(Call::Shrink).await.map(drop)
    }

    /// Takes its memory and device state, as [`cut`](Self::cut) does, once the guest has nothing left to do. For what is restored often.
    pub(crate) async fn cut_at_rest(&mut self, report: Report<'_>) -> Result<(), BootError> {
        report("letting the guest come to rest");
        self.call(Call::Sync).await?;
        come_to_rest(&mut *self.machine).await.map_err(BootError::Machine)?;
        self.take(report).await
    }

    /// Takes its memory and device state. The machine is sealed.
    pub(crate) async fn cut(&mut self, report: Report<'_>) -> Result<(), BootError> {
        self.call(Call::Sync).await?;
        self.take(report).await
    }

    async fn take(&mut self, report: Report<'_>) -> Result<(), BootError> {
        report("taking the snapshot");
        self.machine.pause().await.map_err(BootError::Machine)?;
        let written = self.machine.snapshot(self.draft.dir()).await.map_err(BootError::Machine)?;
        self.memory = Some(written.memory);
        Ok(())
    }

    /// Ends the machine. Its files stay until this is dropped, or published.
    pub(crate) async fn end(&mut self) {
        self.machine.kill().await;
    }

    /// Makes an artifact of what was cut, after the end.
    pub(crate) async fn publish(self, shared: &Shared, manifest: SnapshotArtifactManifest) -> Result<Artifact, BootError> {
        let Self { draft, dir, disk, memory, .. } = self;
        let artifacts = shared.artifacts.clone();
        blocking(move || {
            if memory == Some(MemoryForm::Full) {
                let (memory, target) = (dir.path().join(parts::MEMORY), draft.dir().join(parts::MEMORY));
                fs_err::rename(&memory, &target).map_err(|source| PublishError::File { path: target, source })?;
            }
            let _pin = artifacts.pin(disk.overlay.clone());
            let overlay = disk.path(dir.path());
            artifacts
                .keep_layer(&disk.overlay, &overlay, draft.secrecy())
                .map_err(|source| PublishError::File { path: overlay, source })?;
            artifacts.publish(draft, manifest)
        })
        .await
        .map_err(BootError::Publish)
    }
}
