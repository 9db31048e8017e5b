//! How a sandbox starts: what creates, forks, resumes and rollbacks share, from what they found to a record that it runs.
//!
//! ```text
//!   Found ──► (booted, where there is no memory) ──► Proven ──► Admitted ──► Launched ──► Recorded
//! ```
//!
//! Each phase is a value that holds what is given back if the next does not come about: pins, capacity, the machine. What stands
//! between is [`restore`](crate::restore)'s, and for what is new the [pool](crate::start::pool)'s.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    artifact::{Artifact, MemoryMember, Pin},
    capacity::{ActiveSessionReservation, SandboxShare, SessionShare, Shares},
    machine::{
        launch::{LaunchTimings, SnapshotRestoreRequest},
        session::Session,
    },
    restore::{self, SnapshotRestoreError, SnapshotRestoreReport},
    shared::Shared,
    start::{forgetting, identity, life::Life, pool::Stage, reboot},
    storage::volumes::VolumeHold,
    store::{SandboxRecord, StoreError, spec::Memory},
    telemetry::metrics::{Metrics, Timing, ms},
};

/// Who is about to run, and the state that it begins from, which is not collected meanwhile.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) life: Life,
    artifact: Artifact,
    pins: Vec<Pin>,
    volumes: Vec<VolumeHold>,
    report: StartReport,
    /// What its team gave for it, if it was asked.
    sandbox: Option<SandboxShare>,
    session: Option<SessionShare>,
}

/// A session whose guest is the sandbox, and that nobody knows of yet. Dropped, it ends and gives its capacity back.
#[derive(Debug)]
pub(crate) struct Launched {
    // Before the reservation: the machine goes first.
    session: Session,
    reservation: ActiveSessionReservation,
    sandbox: Option<SandboxShare>,
    life: Life,
    /// Until what they keep is on record.
    pins: Vec<Pin>,
    volumes: Vec<VolumeHold>,
    report: StartReport,
}

/// A sandbox that runs and is on record.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) session: Session,
    pub(crate) reservation: ActiveSessionReservation,
    /// Of one that is new.
    pub(crate) sandbox: Option<SandboxShare>,
    pub(crate) record: SandboxRecord,
    /// Why nobody knows whether it is on record; absent if it is.
    pub(crate) in_doubt: Option<StoreError>,
}

/// How long each phase of a start took.
#[derive(Debug, Clone, Copy, Default)]
struct StartReport {
    /// Looking for what is started from.
    found: Duration,
    /// Booting, where there was no memory.
    booted: Option<Duration>,
    /// Compatibility, integrity, disk floor.
    checks: Duration,
    /// Waiting for capacity, or for what had it.
    admission: Duration,
    launch: LaunchTimings,
    /// What it was in the pool, if it came from there.
    claimed: Option<Stage>,
    recorded: Duration,
}

impl Found {
    /// Since `begun` this was looked for.
    pub(crate) fn new(life: Life, artifact: Artifact, pin: Pin, begun: Instant) -> Self {
        let report = StartReport { found: begun.elapsed(), ..StartReport::default() };
        Self { life, artifact, pins: vec![pin], volumes: Vec::new(), report, sandbox: None, session: None }
    }

    /// What is not on record yet, with the volumes that it is to have.
    pub(crate) fn holding(self, volumes: Vec<VolumeHold>) -> Self {
        Self { volumes, ..self }
    }

    /// The same, for which the team of a new sandbox gave this.
    pub(crate) fn with_shares(self, Shares { sandbox, session }: Shares) -> Self {
        Self { sandbox: Some(sandbox), session: Some(session), ..self }
    }

    /// The same, for which the team of a sandbox that was paused gave this.
    pub(crate) fn with_session(self, share: SessionShare) -> Self {
        Self { session: Some(share), ..self }
    }

    /// Sees to it that there is memory to restore: where there is none, or it is `Dropped`, the disk is booted.
    pub(crate) async fn with_memory(mut self, shared: &Arc<Shared>, memory: Memory) -> Result<Self, SnapshotRestoreError> {
        if memory == Memory::Kept && self.artifact.manifest.memory != MemoryMember::Absent {
            return Ok(self);
        }
        let begun = Instant::now();
        let mut identity = identity::of_sandbox(&self.life);
        if self.life.is_claimed() {
            // What is restored of it has the number that is on record, and what boots for that the one before.
            identity.epoch = identity.epoch.saturating_sub(1);
        }
        let (booted, pin) = reboot::memory_of_disk(shared, &self.life, self.artifact, identity).await?;
        self.life.epoch = booted.manifest.epoch + 1;
        self.artifact = booted;
        self.pins.push(pin);
        self.report.booted = Some(begun.elapsed());
        Ok(self)
    }

    /// What its restore is to make of it.
    pub(crate) fn request(&self) -> SnapshotRestoreRequest {
        SnapshotRestoreRequest {
            artifact: self.artifact.clone(),
            budget: self.life.budget,
            identity: identity::of_sandbox(&self.life),
            internet: self.life.spec.internet.clone(),
            can_be_claimed: self.life.is_claimed(),
        }
    }

    /// Restores a sandbox that goes on.
    pub(crate) async fn restore(self, shared: &Arc<Shared>, memory: Memory) -> Result<Launched, SnapshotRestoreError> {
        let found = self.with_memory(shared, memory).await?;
        let report = restore::restore(found.request(), &shared.gates, &shared.launcher).await?;
        Ok(found.launched(shared, report, None))
    }

    /// Its restore was done; or it was claimed, and what waited was so far.
    pub(crate) fn launched(self, shared: &Shared, report: SnapshotRestoreReport<Session>, claimed: Option<Stage>) -> Launched {
        let SnapshotRestoreReport { session, reservation, checks, admission, launch } = report;
        let report = StartReport { checks, admission, launch, claimed, ..self.report };
        // One that goes on in another machine is asked nobody about.
        let share = self.session.unwrap_or_else(|| shared.teams.count_session(&self.life.owner, self.life.budget));
        let reservation = reservation.of_team(share);
        Launched { session, reservation, sandbox: self.sandbox, life: self.life, pins: self.pins, volumes: self.volumes, report }
    }
}

impl Launched {
    /// Records that it runs, and tells how it came to that. What cannot be recorded has ended when this returns; one that goes on and of which
    /// nobody knows whether it was recorded runs, and its next change records it.
    #[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "record"))]
    pub(crate) async fn record(self, shared: &Arc<Shared>) -> Result<Recorded, StoreError> {
        let Self { pins, volumes, life, mut report, reservation, session, sandbox } = self;
        let begun = Instant::now();
        let recorded = life.recorded;
        let record = life.begun_in(&session);
        // Another may have gone on with it meanwhile, whose sandbox it is then: this machine ends before anybody has met it.
        let done = match recorded {
            None => shared.store.insert_sandbox(record.clone()).await,
            Some(guard) => shared.store.update_sandbox(record.clone(), guard).await,
        };
        let in_doubt = match done {
            Ok(()) => None,
            // It may be on record that this machine runs, and then nobody else would go on with what it was restored from.
            Err(error @ StoreError::Unknown { .. }) if recorded.is_some() => Some(error),
            Err(error) => {
                session.end().await;
                if matches!(error, StoreError::Unknown { .. }) {
                    forgetting::forget_later(shared, &record);
                }
                return Err(error);
            }
        };
        drop((pins, volumes));
        report.recorded = begun.elapsed();
        report.tell(&record, &shared.metrics);
        Ok(Recorded { session, reservation, sandbox, record, in_doubt })
    }
}

impl StartReport {
    /// From the checks until the guest is who it should be.
    fn restore(&self) -> Duration {
        let LaunchTimings { staging, vm_restore, agent_connect, first_answer: _ } = self.launch;
        self.checks + self.admission + staging + vm_restore + agent_connect
    }

    fn all(&self) -> Duration {
        self.found + self.booted.unwrap_or_default() + self.restore() + self.recorded
    }

    /// The one place where it is told how long a start took.
    fn tell(&self, record: &SandboxRecord, metrics: &Metrics) {
        let restored = match self.claimed {
            Some(Stage::Warm) => Timing::WarmPoolCheckout,
            // A restore as any other, the first half of which was done before.
            Some(Stage::Prepared) | None => Timing::WarmSnapshotRestore,
        };
        metrics.observe(restored, self.restore());
        metrics.observe(Timing::ReadyProbe, self.launch.first_answer);
        metrics.observe(Timing::FreshnessSync, self.launch.agent_connect);
        tracing::info!(
            sandbox = %record.id, epoch = record.epoch, claimed = ?self.claimed,
            total_ms = ms(self.all()), found_ms = ms(self.found), boot_ms = self.booted.map(ms), checks_ms = ms(self.checks),
            admission_ms = ms(self.admission), staging_ms = ms(self.launch.staging), vm_restore_ms = ms(self.launch.vm_restore),
            agent_ms = ms(self.launch.agent_connect), record_ms = ms(self.recorded),
            "restored a sandbox"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restore_lies_between_what_was_found_and_its_record() {
        let s = Duration::from_secs;
        let launch = LaunchTimings { staging: s(16), vm_restore: s(32), first_answer: s(1000), agent_connect: s(64) };
        let report = StartReport {
            found: s(1),
            booted: Some(s(2)),
            checks: s(4),
            admission: s(8),
            launch,
            claimed: None,
            recorded: s(128),
        };
        // The first answer is a part of what comes until the guest is connected.
        assert_eq!((report.restore(), report.all()), (s(124), s(255)));
    }
}
