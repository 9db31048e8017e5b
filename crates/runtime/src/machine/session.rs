//! A session: one restored machine with everything that exists only because of it. The launcher makes one, in two halves.
//!
//! Fields drop in the order in which they must go: the machine is killed first, then its network, then its files.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_engine::{Exit, Machine, MachineError, SnapshotParts};
use firkin_wire::{
    control::{Answer, Call, Stats},
    nonce::Nonce,
};

use crate::{
    artifact::{ArtifactDraft, ArtifactStore, Pin, RootDisk, Secrecy},
    ground::{
        blocking::blocking,
        ids::{ArtifactId, LayerId},
    },
    machine::{
        agent::{Agent, AgentError, realtime_ns},
        fence::{Fence, FenceError, Listing},
        groups::MachineGroup,
        instances::InstanceDir,
        launch::LaunchError,
        network::{Link, Reaching},
    },
    store::{RecordedPhase, SandboxRecord, spec::Memory},
};

mod launcher;

pub(crate) use self::launcher::{EngineLauncher, Staged, phase};

/// The guest's new identity must be in force this long after the machine resumed. Generous: an emulated guest on a busy host.
const IDENTITY_DEADLINE: Duration = Duration::from_secs(30);

/// A guest's clock may be this late after a restore before it is set again.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// How often it is set again.
const CLOCK_ATTEMPTS: u32 = 2;

/// Flushing a guest's dirty pages before a snapshot: as long as a slow disk needs for some hundred MiB.
const SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// Reading a guest's statistics.
const STATS_DEADLINE: Duration = Duration::from_secs(5);

/// A running or paused machine that a sandbox owns, or that waits in the warm pool.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: Box<dyn Machine>,
    /// While others could have it.
    listing: Option<Listing>,
    agent: Option<Agent>,
    /// What its guest proves itself by; absent where its agent knows of no nonces.
    nonce: Option<Nonce>,
    group: MachineGroup,
    pub(crate) link: Link,
    dir: InstanceDir,
    /// Artifact whose memory is mapped.
    pub(crate) memory_base: ArtifactId,
    pub(crate) disk: RootDisk,
    /// Keep what it needs from being collected.
    pins: Vec<Pin>,
}

/// What a machine does after a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// It runs.
    GoOn,
    /// It waits, so that it can go on if what was cut cannot be kept.
    StayPaused,
}

/// What of a cut was done while the guest ran: its next layer is there, and it is known how much memory a cut writes at most.
#[derive(Debug)]
pub(crate) struct CutAhead {
    next: LayerId,
    path: PathBuf,
    /// Bytes.
    pub(crate) memory: u64,
}

/// What was cut out of a session.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Absent when memory was not wanted.
    pub(crate) parts: Option<SnapshotParts>,
    /// Layers of the disk at that instant, lowest first.
    pub(crate) layers: Vec<LayerId>,
    /// How long the guest stood still, or would have if it went on.
    pub(crate) freeze: Duration,
    /// Hold the new layer until the artifact that names it is recorded.
    pub(crate) pin: Pin,
}

impl Session {
    /// Takes over the session that an earlier server started for this record.
    pub(crate) async fn adopt(launcher: &EngineLauncher, record: &SandboxRecord) -> Result<Self, LaunchError> {
        let RecordedPhase::Running { memory_base, layers, overlay, slot, nonce, .. } = &record.phase else {
            return Err(LaunchError::NotRecorded);
        };
        let dir = launcher.instances.adopt(record.instance()).ok_or(LaunchError::NotRecorded)?;
        let path = dir.path();
        let (engine, machine) = launcher.engines.adopt(path).await.map_err(LaunchError::Start)?;
        let group = launcher.groups.adopt(record.instance(), machine.pid()).map_err(LaunchError::Group)?;
        let reaching = Reaching { internet: &record.spec.internet, sandbox: record.id.as_str() };
        let link = launcher.links.adopt((machine.pid(), *slot), reaching).await?;
        let recorded = RootDisk { layers: layers.clone(), overlay: overlay.clone(), form: engine.disks() };
        // What was cut and not recorded may have to be encrypted first.
        let (at, root, artifacts) = (path.to_owned(), machine.root_disk(), launcher.artifacts.clone());
        let disk = blocking(move || RootDisk::of_machine(&at, &root, recorded, &artifacts)).await.map_err(LaunchError::Disk)?;
        let pins = std::iter::once(launcher.artifacts.pin(memory_base.clone()))
            .chain(disk.layers.iter().map(|id| launcher.artifacts.pin(id.clone())))
            .collect();
        let (memory_base, nonce) = (memory_base.clone(), nonce.clone());
        Ok(Self { machine, listing: None, agent: None, nonce, group, link, dir, memory_base, disk, pins })
    }

    /// The name of its directory.
    pub(crate) fn instance(&self) -> String {
        self.dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Has the machine stopped when the lease of this host is over, where there is somebody to do that.
    pub(crate) async fn list(&mut self, fence: Option<&Arc<dyn Fence>>) -> Result<(), FenceError> {
        if self.listing.is_none() {
            self.listing = Listing::of(fence, &*self.machine, &self.instance()).await?;
        }
        Ok(())
    }

    /// Nobody else can have it from now on.
    pub(crate) fn unlist(&mut self) {
        drop(self.listing.take());
    }

    /// Whether others could have it.
    pub(crate) fn is_listed(&self) -> bool {
        self.listing.is_some()
    }

    /// Whether it is stopped, or may be at any moment, because others may have it.
    pub(crate) fn is_held(&self) -> bool {
        self.listing.as_ref().is_some_and(|listing| !listing.holds())
    }

    /// What its guest proves itself by.
    pub(crate) fn nonce(&self) -> Option<Nonce> {
        self.nonce.clone()
    }

    /// Opens the control channel.
    async fn dial(&mut self) -> Result<Agent, AgentError> {
        let failed = |error| AgentError::Channel { call: "open the channel", source: io::Error::other(error) };
        Ok(Agent::new(self.machine.control().await.map_err(failed)?, self.nonce.clone()))
    }

    /// Opens the control channel for a call. Nothing is told to whoever is at its other end before he has proven to be this machine:
    /// an identity has secrets in it.
    async fn dial_for(&mut self, call: &Call, deadline: Duration) -> Result<Agent, AgentError> {
        let mut agent = self.dial().await?;
        if agent.nonce().is_some() && *call != Call::Hello {
            agent.call(Call::Hello, deadline).await?;
        }
        Ok(agent)
    }

    /// One call to the guest agent. A channel that failed is opened anew by the next call.
    async fn call(&mut self, call: Call, deadline: Duration) -> Result<Answer, AgentError> {
        let mut agent = match self.agent.take() {
            Some(agent) => agent,
            None => Box::pin(self.dial_for(&call, deadline)).await?,
        };
        let answer = agent.call(call, deadline).await;
        if answer.is_ok() || matches!(answer, Err(AgentError::Refused { .. })) {
            self.nonce = agent.nonce().cloned();
            self.agent = Some(agent);
        }
        answer
    }

    /// Writes the guest's dirty pages to its disk.
    pub(crate) async fn sync(&mut self) -> Result<(), AgentError> {
        match self.call(Call::Sync, SYNC_DEADLINE).await? {
            Answer::Done => Ok(()),
            Answer::Hello { .. } | Answer::Resumed { .. } | Answer::Stats(_) | Answer::Failed { .. } => {
                Err(AgentError::Unexpected { call: "sync" })
            }
        }
    }

    /// Whether the guest's agent answers at all.
    pub(crate) async fn hello(&mut self, deadline: Duration) -> Result<(), AgentError> {
        match self.call(Call::Hello, deadline).await? {
            Answer::Hello { .. } => Ok(()),
            Answer::Resumed { .. } | Answer::Stats(_) | Answer::Done | Answer::Failed { .. } => {
                Err(AgentError::Unexpected { call: "hello" })
            }
        }
    }

    /// The guest's own statistics.
    pub(crate) async fn stats(&mut self) -> Result<Stats, AgentError> {
        match self.call(Call::Stats, STATS_DEADLINE).await? {
            Answer::Stats(stats) => Ok(stats),
            Answer::Hello { .. } | Answer::Resumed { .. } | Answer::Done | Answer::Failed { .. } => {
                Err(AgentError::Unexpected { call: "stats" })
            }
        }
    }

    /// Gives the guest an identity.
    async fn identify(&mut self, identity: &firkin_wire::control::Identity) -> Result<(), AgentError> {
        match self.call(Call::Resume(Box::new(identity.clone())), IDENTITY_DEADLINE).await? {
            Answer::Resumed { epoch, volumes, .. } if epoch == identity.epoch => {
                let wanted = identity.volumes.as_ref().map_or(0, Vec::len);
                // One that knows of them says so, or refuses.
                if wanted > 0 && volumes != Some(wanted) { Err(AgentError::NoVolumes) } else { Ok(()) }
            }
            Answer::Resumed { .. } | Answer::Hello { .. } | Answer::Stats(_) | Answer::Done | Answer::Failed { .. } => {
                Err(AgentError::Unexpected { call: "resume" })
            }
        }
    }

    /// Gives the guest an identity with the present time. Returns how late that time may be.
    async fn identify_now(&mut self, identity: &mut firkin_wire::control::Identity) -> Result<Duration, AgentError> {
        let begun = Instant::now();
        identity.realtime_ns = realtime_ns();
        self.identify(identity).await?;
        Ok(begun.elapsed())
    }

    /// Makes the guest of a restored machine become `identity`, and this machine. It is told at once: it has the nonce of a machine
    /// that it was, or none yet, and its socket is as new as it is. Returns how long its first answer took.
    pub(crate) async fn begin(&mut self, identity: firkin_wire::control::Identity) -> Result<Duration, AgentError> {
        self.agent = Some(self.dial().await?);
        self.take_identity(identity).await
    }

    /// Makes the guest of a machine that has just begun to run become `identity`, with the present time. Returns how long its first
    /// answer took.
    pub(crate) async fn take_identity(&mut self, mut identity: firkin_wire::control::Identity) -> Result<Duration, AgentError> {
        let first_answer = self.identify_now(&mut identity).await?;
        let mut late = first_answer;
        // The first answer of a restored guest can take seconds on a busy host, and its clock is as late as its answer.
        for _ in 0..CLOCK_ATTEMPTS {
            if late <= CLOCK_SLACK {
                break;
            }
            (identity.machine_id, identity.nonce, identity.network, identity.volumes) = (None, None, None, None);
            late = self.identify_now(&mut identity).await?;
        }
        Ok(first_answer)
    }

    /// Sets the clock of a guest that keeps its identity.
    pub(crate) async fn set_clock(&mut self, identity: &firkin_wire::control::Identity) -> Result<(), AgentError> {
        let mut identity = firkin_wire::control::Identity { machine_id: None, network: None, volumes: None, ..identity.clone() };
        self.identify_now(&mut identity).await.map(|_| ())
    }

    /// Stops the machine, writes its state and memory, if wanted, into `draft` and seals its disk, all at one instant. The machine writes
    /// to a new layer from then on. What can be done before the freeze is done before it, and what can wait is done after.
    pub(crate) async fn cut(
        &mut self,
        ahead: CutAhead,
        draft: &mut ArtifactDraft,
        artifacts: &ArtifactStore,
        (then, memory): (After, Memory),
    ) -> Result<Cut, MachineError> {
        let CutAhead { next, path: next_path, memory: expected } = ahead;
        // Whoever keeps all in the state writes it himself: in memory that would be charged to the machine's own group.
        if memory == Memory::Kept && self.disk.form.holds_writes() {
            artifacts.stage(draft, expected);
            if let Err(error) = self.machine.make_room(draft.cut_dir(), expected).await {
                // The snapshot makes its own way, which takes longer.
                tracing::warn!(error = firkin_causes::chain(&error), "cannot take room for a cut");
            }
        }
        let sealed = self.disk.overlay.clone();
        let pin = artifacts.pin(sealed.clone());
        let begun = Instant::now();
        self.machine.pause().await?;
        let parts = match memory {
            Memory::Kept => self.snapshot(draft, &next_path).await.map(Some),
            Memory::Dropped => self.machine.switch_disk(&next_path).await.map(|()| None),
        };
        let mut freeze = begun.elapsed();
        if self.machine.root_disk() == next_path {
            // From now on the session needs it, whether or not that can be recorded, and also if the rest of the cut failed.
            self.pins.push(artifacts.pin(sealed));
            self.disk.seal(next);
        }
        let parts = parts?;
        if then == After::GoOn {
            // Nothing that is still to be done touches what the guest has.
            match self.machine.resume().await {
                Ok(()) => freeze = begun.elapsed(),
                Err(error) => tracing::warn!(error = firkin_causes::chain(&error), "cannot let a machine go on after a cut"),
            }
        }
        self.settle(artifacts, draft.secrecy()).await?;
        Ok(Cut { parts, layers: self.disk.layers.clone(), freeze, pin })
    }

    /// Puts the layer that was sealed last where layers are. Encrypting it takes as long as it is large.
    async fn settle(&mut self, artifacts: &ArtifactStore, secrecy: Secrecy) -> Result<(), MachineError> {
        let dir = self.dir.path();
        let settled = match secrecy {
            Secrecy::Plain => self.disk.settle(dir, artifacts, secrecy),
            Secrecy::Sealed => {
                let (disk, dir, artifacts) = (self.disk.clone(), dir.to_owned(), artifacts.clone());
                blocking(move || disk.settle(&dir, &artifacts, secrecy)).await
            }
        };
        settled.map_err(MachineError::Disk)
    }

    /// Names `layers` from now on, which hold the same as those that it names: some of them were merged. The machine goes on with
    /// the files that it has open.
    pub(crate) fn name_layers(&mut self, layers: Vec<LayerId>, merged: Pin) {
        self.disk.layers = layers;
        self.pins.push(merged);
    }

    /// Makes and opens the layer that follows a cut, while the guest runs. Whoever does not cut then says so by [`Session::forgo_cut`].
    pub(crate) async fn prepare_cut(&mut self, artifacts: &ArtifactStore) -> Result<CutAhead, MachineError> {
        if !self.disk.is_settled(artifacts) {
            // An earlier cut could not put it there.
            self.settle(artifacts, artifacts.secrecy()).await?;
        }
        let (next, path) = self.disk.create_next(self.dir.path(), artifacts).map_err(MachineError::Disk)?;
        let memory = self.machine.prepare_cut(&path).await?;
        Ok(CutAhead { next, path, memory })
    }

    /// Removes the layer that was made for a cut that is not to be. The machine has it open until another takes its place.
    pub(crate) async fn forgo_cut(&mut self, CutAhead { path, .. }: CutAhead) {
        let remove = move || if path.is_dir() { firkin_files::remove_tree(&path) } else { fs_err::remove_file(&path) };
        if let Err(error) = blocking(remove).await {
            tracing::warn!(%error, "cannot remove the layer of a cut that was not made");
        }
    }

    /// Writes state and memory of the stopped machine, into memory, or to the disk when they turn out not to fit; it goes on with
    /// the layer at `next`.
    async fn snapshot(&mut self, draft: &mut ArtifactDraft, next: &Path) -> Result<SnapshotParts, MachineError> {
        let mut written = match self.machine.cut(draft.cut_dir(), next).await {
            Err(error @ MachineError::File { .. }) if draft.leave_memory() => {
                tracing::warn!(error = firkin_causes::chain(&error), "a cut did not fit into memory and is written to the disk");
                if self.machine.root_disk() == next {
                    self.machine.snapshot(draft.cut_dir()).await
                } else {
                    self.machine.cut(draft.cut_dir(), next).await
                }
            }
            written => written,
        }?;
        draft.keep(written.captured.take());
        Ok(written)
    }

    /// Gives the machine up without stopping it, for a later server to take over.
    pub(crate) fn release(self) {
        let Self { machine, listing, group, link, dir, .. } = self;
        machine.release();
        if let Some(listing) = listing {
            listing.release();
        }
        group.release();
        link.release();
        dir.release();
    }

    /// Kills the machine and removes what it had. Returns when all of it is gone.
    pub(crate) async fn end(mut self) -> Exit {
        let exit = self.machine.kill().await;
        drop(self.pins);
        exit
    }
}
