//! The launcher: how a session comes about, in two halves.
//!
//! ```text
//!   stage: network slot ─► directory ─► overlay ─► engine prepared          start: load ─► run ─► identity
//! ```
//!
//! The first half needs to know the template only, so the warm pool does it before anybody asks. The second decides who the
//! guest is, and is the same whether the first was just done or long ago.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use firkin_engine::{Exit, Prepared, RestoreSpec, Slot, StartError, compatibility::Mismatch};
use firkin_wire::{control, nonce::Nonce};
use tracing::{Instrument as _, Span};

use super::Session;
use crate::{
    artifact::{Artifact, ArtifactStore, Pin, Readable, RootDisk, memory_base},
    ground::{blocking::blocking, ids::ArtifactId},
    machine::{
        engines::Engines,
        fence::{Fence, Listing},
        groups::{MachineGroup, MachineGroups},
        instances::{InstanceDir, Instances},
        launch::{LaunchError, LaunchTimings, SnapshotRestoreRequest, SnapshotSessionLauncher},
        network::{Link, Links, Reaching},
    },
    store::spec::InternetAccess,
};

/// The span of a part of a launch, by its name in what is logged of a start.
pub(crate) fn phase(name: &'static str) -> Span {
    tracing::debug_span!("phase", name)
}

/// Launches sessions, each on the engine that made what it is launched from.
#[derive(Debug, Clone)]
pub(crate) struct EngineLauncher {
    pub(crate) engines: Engines,
    pub(crate) links: Arc<Links>,
    pub(crate) artifacts: ArtifactStore,
    /// The restore staging root: persistent, because a session's files may become part of a later snapshot.
    pub(crate) instances: Instances,
    /// What machines are held to.
    pub(crate) groups: MachineGroups,
    /// Who stops machines that others could have.
    pub(crate) fence: Option<Arc<dyn Fence>>,
}

/// A session without its guest: an engine that waits for state, and all that it runs in. Fields drop in the order in which they
/// must go, as a session's do.
#[derive(Debug)]
pub(crate) struct Staged {
    engine: Box<dyn Prepared>,
    group: MachineGroup,
    pub(crate) link: Link,
    dir: InstanceDir,
    memory_base: ArtifactId,
    disk: RootDisk,
    /// The nonce of the machine whose memory it gets.
    was: Option<Nonce>,
    pins: Vec<Pin>,
}

impl EngineLauncher {
    /// The first half of a launch: all that is the same for every session of `artifact`, in the instance `name`. Gives it with
    /// the timings of this half.
    ///
    /// Cancel-safe: a future that is dropped, or that fails, leaves no process, network slot or file.
    #[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "staging"))]
    pub(crate) async fn stage(
        &self,
        artifact: &Artifact,
        name: &str,
        internet: &InternetAccess,
    ) -> Result<(Staged, LaunchTimings), LaunchError> {
        let begun = Instant::now();
        let manifest = &artifact.manifest;
        let pins = std::iter::once(self.artifacts.pin(memory_base(manifest)))
            .chain(manifest.disk.layers.iter().map(|id| self.artifacts.pin(id.clone())))
            .collect();
        let engine = self.engines.of(&manifest.engine);
        let link = self.links.acquire(engine.attachment(), Reaching { internet, sandbox: name }).await?;
        let path = self.instances.path(name);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| LaunchError::Stage { path, source }
        };
        let dir = self.instances.create(name).map_err(failed(&path))?;
        let disk = RootDisk::over(manifest.disk.layers.clone(), engine.disks());
        let files = disk.create((dir.path(), &manifest.disk), manifest.budget.disk_mib << 20, &self.artifacts);
        let files = files.map_err(LaunchError::Disk)?;
        let group = self.groups.make(name, manifest.shape, &**engine).map_err(LaunchError::Group)?;
        let groups = group.entrances().map_err(LaunchError::Group)?;
        let slot = Slot { groups, ..link.engine_slot().map_err(failed(&path))? };
        let staging = begun.elapsed();

        let begun = Instant::now();
        let processor = manifest.processor(engine.compatibility()).map_err(|Mismatch { what, made_with, here }| {
            let reason = format!("it has {what} `{made_with}`, this host has `{here}`");
            LaunchError::Start(StartError::Refused { phase: "the snapshot", reason })
        })?;
        let readable = self.readable(artifact, dir.path()).await?;
        let memory = readable.memory.clone().ok_or(LaunchError::NoMemory)?;
        let spec = RestoreSpec {
            dir: dir.path().to_owned(),
            shape: manifest.shape,
            processor,
            announces: manifest.engine.announces,
            slot,
            memory,
            state: readable.state.clone(),
            disk: firkin_engine::RootDisk { layers: readable.layers.clone(), ..files },
        };
        let engine = engine.prepare(spec).await.map_err(LaunchError::Start)?;
        drop(readable);
        let (memory_base, was) = (memory_base(manifest), manifest.guest.nonce.clone());
        let staged = Staged { engine, group, link, dir, memory_base, disk, was, pins };
        Ok((staged, LaunchTimings { staging, vm_restore: begun.elapsed(), ..LaunchTimings::default() }))
    }
}

impl EngineLauncher {
    /// The artifact as the engine reads it. What is sealed takes a while, and is opened into the machine's directory.
    async fn readable(&self, artifact: &Artifact, dir: &Path) -> Result<Readable, LaunchError> {
        if !artifact.is_sealed() {
            return self.artifacts.readable(artifact, dir).map_err(LaunchError::Sealed);
        }
        let (artifacts, artifact, dir) = (self.artifacts.clone(), artifact.clone(), dir.to_owned());
        blocking(move || artifacts.readable(&artifact, &dir)).await.map_err(LaunchError::Sealed)
    }
}

impl Staged {
    /// The second half of a launch: the machine gets its state, runs, and its guest becomes `identity`. Gives the session with
    /// the timings of this half. With a `fence` the machine is listed before it runs.
    pub(crate) async fn start(
        self,
        identity: &control::Identity,
        fence: Option<&Arc<dyn Fence>>,
    ) -> Result<(Session, LaunchTimings), LaunchError> {
        let begun = Instant::now();
        let Self { engine, group, link, dir, memory_base, disk, was, pins } = self;
        let restore = phase("vm_restore");
        let machine = engine.load().instrument(restore.clone()).await.map_err(LaunchError::Start)?;
        // Before its guest begins.
        let name = dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let listing = Listing::of(fence, &*machine, &name).await.map_err(LaunchError::Fence)?;
        let mut session = Session { machine, listing, agent: None, nonce: was, group, link, dir, memory_base, disk, pins };
        session.machine.resume().instrument(restore).await.map_err(LaunchError::Machine)?;
        let vm_restore = begun.elapsed();

        let begun = Instant::now();
        let nonce = Some(Nonce::new(crate::ground::random::bytes()));
        let identity = control::Identity { network: session.link.guest_network(), nonce, ..identity.clone() };
        let first_answer = match session.begin(identity).instrument(phase("agent")).await {
            Ok(first_answer) => first_answer,
            Err(error) => {
                session.end().await;
                return Err(LaunchError::Agent(error));
            }
        };
        Ok((session, LaunchTimings { staging: Duration::ZERO, vm_restore, first_answer, agent_connect: begun.elapsed() }))
    }

    /// Ends when its engine does. Cancel-safe.
    pub(crate) async fn died(&mut self) -> Exit {
        self.engine.wait().await
    }

    /// Kills the engine and removes what it had. Returns when all of it is gone.
    pub(crate) async fn end(mut self) -> Exit {
        let exit = self.engine.kill().await;
        drop(self);
        exit
    }
}

#[async_trait]
impl SnapshotSessionLauncher for EngineLauncher {
    type Session = Session;

    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(Session, LaunchTimings), LaunchError> {
        let (staged, first) = self.stage(&request.artifact, &request.identity.sandbox_id, &request.internet).await?;
        let fence = self.fence.as_ref().filter(|_| request.can_be_claimed);
        let (session, second) = staged.start(&request.identity, fence).await?;
        Ok((session, LaunchTimings { staging: first.staging, vm_restore: first.vm_restore + second.vm_restore, ..second }))
    }
}
