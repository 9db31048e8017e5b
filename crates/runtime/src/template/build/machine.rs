//! The machine of a build: a state restored, worked in, and cut. Also the one way to a state that nobody has restored: a boot.

use std::{sync::Arc, time::Duration};

use firkin_engine::{Engine, MachineError, Processor, Shape};
use firkin_wire::{control, rest::LogLevel};
use tokio::time::Instant;

use super::{command::Shell, error::BuildFailure, log::BuildLog};
use crate::{
    artifact::{
        Artifact, ArtifactKind, BootedState, CutState, DiskMembers, MemoryMember, Pin, PublishError, Secrecy,
        SnapshotArtifactManifest,
    },
    capacity::{ActiveSessionReservation, ResourceBudget, admission::AdmissionError},
    ground::blocking::blocking,
    images::root_image::RootImage,
    machine::{
        launch::SnapshotRestoreRequest,
        quiescence::come_to_rest,
        session::{After, Session},
    },
    restore::{self, SnapshotRestoreError, SnapshotRestoreReport},
    shared::Shared,
    start::{
        boot::{self, BootRequest, Booted},
        identity,
    },
    store::spec::{InternetAccess, Memory},
};

/// How long a build waits for room on the host: nobody waits at the other end of a line for it.
const ROOM_PATIENCE: Duration = Duration::from_secs(600);

/// Between two attempts to get room, beside the time that each waits in the queue.
const ROOM_INTERVAL: Duration = Duration::from_secs(3);

/// A restored machine that a build works in. Fields drop in the order in which they must go.
pub(super) struct BuildMachine {
    session: Session,
    /// Held until the machine has ended.
    #[expect(dead_code, reason = "held, not read")]
    reservation: ActiveSessionReservation,
    shared: Arc<Shared>,
    identity: control::Identity,
    /// What was restored.
    from: SnapshotArtifactManifest,
}

impl BuildMachine {
    /// Restores a state to work in.
    pub(super) async fn restore(shared: &Arc<Shared>, artifact: Artifact, log: &BuildLog) -> Result<Self, BuildFailure> {
        let from = artifact.manifest.clone();
        let identity = identity::of_build(from.epoch + 1);
        let report = with_room(log, || {
            let request = SnapshotRestoreRequest {
                artifact: artifact.clone(),
                budget: from.budget,
                identity: identity.clone(),
                internet: InternetAccess::Allowed,
                can_be_claimed: false,
            };
            restore::restore(request, &shared.gates, &shared.launcher)
        });
        let SnapshotRestoreReport { session, reservation, .. } = report.await?;
        log.work_in(shared.launcher.instances.path(&session.instance()));
        Ok(Self { session, reservation, shared: Arc::clone(shared), identity, from })
    }

    /// Does `work` for as long as the machine lives. Its end is told at once, not when the work has waited in vain.
    pub(super) async fn while_it_lives<T>(
        &mut self,
        work: impl Future<Output = Result<T, BuildFailure>>,
    ) -> Result<T, BuildFailure> {
        tokio::select! {
            done = work => done,
            exit = self.session.machine.wait() => Err(BuildFailure::Machine(MachineError::Gone(exit))),
        }
    }

    pub(super) fn shell<'a>(&self, log: &'a BuildLog) -> Shell<'a> {
        Shell { connector: self.session.link.connector(), log }
    }

    /// Size of its disk, bytes.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.from.budget.disk_mib << 20
    }

    /// Free space of its root file system as users other than root find it, bytes.
    pub(super) async fn free_disk_bytes(&mut self) -> Result<u64, BuildFailure> {
        let stats = self.session.stats().await.map_err(BuildFailure::Guest)?;
        Ok(stats.disk_total.saturating_sub(stats.disk_used))
    }

    /// Makes an artifact of its state. The pin keeps it until somebody's record names it.
    pub(super) async fn cut(&mut self, then: After) -> Result<(Artifact, Pin), BuildFailure> {
        let shared = Arc::clone(&self.shared);
        shared.gates.disk.check().map_err(BuildFailure::DiskPressure)?;
        self.session.sync().await.map_err(BuildFailure::Guest)?;
        if then == After::StayPaused {
            come_to_rest(&mut *self.session.machine).await.map_err(BuildFailure::Machine)?;
        }
        let failed = |source| PublishError::File { path: shared.config.state_dir.clone(), source };
        let mut draft = shared.artifacts.draft_in(self.secrecy()).map_err(failed).map_err(BuildFailure::Publish)?;
        let pin = shared.artifacts.pin(draft.id());
        let ahead = self.session.prepare_cut(&shared.artifacts).await.map_err(BuildFailure::Machine)?;
        let cut = self.session.cut(ahead, &mut draft, &shared.artifacts, (then, Memory::Kept));
        let cut = cut.await.map_err(BuildFailure::Machine)?;
        let form = cut.parts.as_ref().expect("memory was wanted").memory;
        let manifest = self.from.clone().of_cut(CutState {
            id: draft.id(),
            reason: None,
            logical_id: self.from.logical_id.clone(),
            parent: self.from.id.clone(),
            epoch: self.identity.epoch,
            memory: MemoryMember::of_cut(form, &self.session.memory_base),
            layers: cut.layers,
            nonce: self.session.nonce(),
        });
        let published = publish(&shared, move |artifacts| artifacts.publish(draft, manifest)).await?;
        drop(cut.pin);
        if then == After::GoOn {
            self.session.set_clock(&self.identity).await.map_err(BuildFailure::Guest)?;
        }
        Ok((published, pin))
    }

    /// What was built on a sandbox's state holds what that sandbox held.
    fn secrecy(&self) -> Secrecy {
        if self.from.is_sealed() { self.shared.artifacts.secrecy() } else { Secrecy::Plain }
    }

    /// The root image that it stands on, with what its guest has changed of that: for an engine whose disks do not hold it.
    pub(super) async fn folded(&mut self, log: &BuildLog) -> Result<RootImage, BuildFailure> {
        log.info("making a root image of it");
        self.session.sync().await.map_err(BuildFailure::Guest)?;
        let layer = self.shared.launcher.instances.path(&self.session.instance()).join("changes.tar");
        self.session.machine.root_changes(&layer).await.map_err(BuildFailure::Machine)?;
        let (from, bytes) = (&self.from.disk, self.disk_bytes());
        let root = RootImage { path: from.rootfs_path.clone(), digest: from.rootfs.clone(), bytes };
        let report = |line: &str| log.push(LogLevel::Debug, line);
        Ok(self.shared.config.images.changed(root, &layer, &report).await?)
    }

    /// Ends the machine; all of it is gone on return.
    pub(super) async fn end(self) {
        self.session.end().await;
    }
}

async fn publish(
    shared: &Shared,
    work: impl FnOnce(crate::artifact::ArtifactStore) -> Result<Artifact, PublishError> + Send + 'static,
) -> Result<Artifact, BuildFailure> {
    let artifacts = shared.artifacts.clone();
    blocking(move || work(artifacts)).await.map_err(BuildFailure::Publish)
}

/// Tries until the host has room, as long as it might.
async fn with_room<T, F: Future<Output = Result<T, SnapshotRestoreError>>>(
    log: &BuildLog,
    mut attempt: impl FnMut() -> F,
) -> Result<T, BuildFailure> {
    let deadline = Instant::now() + ROOM_PATIENCE;
    let mut told = false;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(SnapshotRestoreError::Admission(
                AdmissionError::Deadline { .. } | AdmissionError::QueueFull { .. } | AdmissionError::Memory(_),
            )) if Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    log.push(LogLevel::Warn, "the host is full: waiting for room");
                }
                tokio::time::sleep(ROOM_INTERVAL).await;
            }
            Err(error) => return Err(BuildFailure::Restore(error)),
        }
    }
}

/// What to boot.
pub(super) struct Origin {
    /// What its machine is to run on.
    pub(super) engine: Arc<dyn Engine>,
    /// Names it in the artifact.
    pub(super) name: String,
    pub(super) shape: Shape,
    pub(super) processor: Processor,
    pub(super) disk_mib: u64,
    /// The root image, and the layers over it that the disk has.
    pub(super) members: DiskMembers,
}

/// Boots an origin, has `work` done in it, which cuts it at its end, and makes an artifact of it.
pub(super) async fn boot(
    shared: &Arc<Shared>,
    origin: Origin,
    log: &BuildLog,
    work: impl AsyncFnOnce(&mut Booted, Shell<'_>) -> Result<(), BuildFailure>,
) -> Result<(Artifact, Pin), BuildFailure> {
    shared.gates.disk.check().map_err(BuildFailure::DiskPressure)?;
    let Shape { vcpus, memory_mib } = origin.shape;
    let budget = ResourceBudget { cpus: vcpus, memory_mib: u64::from(memory_mib), disk_mib: origin.disk_mib };
    let admit = || async { shared.gates.admission.admit(budget).await.map_err(SnapshotRestoreError::Admission) };
    let reservation = with_room(log, admit).await?;
    let request = BootRequest {
        engine: Arc::clone(&origin.engine),
        shape: origin.shape,
        processor: origin.processor,
        disk: origin.members.clone(),
        disk_bytes: origin.disk_mib << 20,
        internet: InternetAccess::Allowed,
        can_be_claimed: false,
        identity: identity::nobody(),
        secrecy: shared.artifacts.secrecy_over(&origin.members.layers),
    };
    let report = |line: &str| log.info(line);
    let mut booted = boot::boot(shared, &request, &report).await?;
    log.work_in(booted.dir().to_owned());
    let shell = Shell { connector: booted.link.connector(), log };
    let worked = work(&mut booted, shell).await;
    booted.end().await;
    drop(reservation);
    worked?;
    let pin = shared.artifacts.pin(booted.id());
    let engine = origin.engine.compatibility().fingerprint(origin.processor);
    let manifest = SnapshotArtifactManifest::of_boot(BootedState {
        id: booted.id(),
        kind: ArtifactKind::BaseTemplate,
        logical_id: origin.name,
        parent: None,
        engine,
        guest: &booted.boot,
        shape: origin.shape,
        budget,
        epoch: identity::nobody().epoch,
        memory: booted.memory(),
        disk: DiskMembers { layers: booted.layers(), ..origin.members },
    });
    let published = booted.publish(shared, manifest).await?;
    Ok((published, pin))
}
