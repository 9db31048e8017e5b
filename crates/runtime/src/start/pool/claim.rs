//! A claim: what waits in the pool becomes the sandbox that is being created, with the capacity that it holds.

use std::time::Instant;

use firkin_causes::chain;
use tracing::Instrument as _;

use super::{Stage, Staging, Waiting, WarmPool};
use crate::{
    capacity::ActiveSessionReservation,
    machine::{
        launch::{LaunchError, LaunchTimings, SnapshotRestoreRequest},
        network::Reaching,
        session::{Session, Staged, phase},
    },
    restore::{Proven, SnapshotRestoreReport},
};

/// A create that is being restored: for as long as this lives, making warm sessions yields to it.
#[derive(Debug)]
pub(crate) struct Creating<'a>(&'a WarmPool);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.state().creating -= 1;
        self.0.changed.notify_one();
    }
}

/// A session that waited, and is a sandbox's now.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) report: SnapshotRestoreReport<Session>,
    /// What it was before.
    pub(crate) stage: Stage,
}

impl WarmPool {
    /// Somebody is about to have a sandbox.
    pub(crate) fn begin_create(&self) -> Creating<'_> {
        self.creating(tokio::time::Instant::now());
        Creating(self)
    }

    /// Lets what waits of the template become the sandbox. Its capacity is its own, so there is none to wait for. Gives back what is
    /// proven where nothing waits, or what did has failed: that is to be restored then.
    ///
    /// Cancel-safe, as [`restore::restore`](crate::restore::restore) is.
    pub(crate) async fn claim(&self, proven: Proven) -> Result<Claimed, Proven> {
        let Some(waiting) = self.take(&proven.request).await else { return Err(proven) };
        let admission = proven.since.elapsed();
        let stage = waiting.stage();
        match become_sandbox(waiting, &proven.request).await {
            Ok((session, reservation, launch)) => {
                let counters = &mut self.state().counters;
                let hits = match stage {
                    Stage::Warm => &mut counters.hits,
                    Stage::Prepared => &mut counters.prepared_hits,
                };
                *hits += 1;
                let report = SnapshotRestoreReport { session, reservation, checks: proven.checks, admission, launch };
                Ok(Claimed { report, stage })
            }
            Err(error) => {
                self.state().counters.failed_claims += 1;
                tracing::warn!(error = chain(&error), "what waited in the pool could not be claimed; restoring instead");
                Err(proven)
            }
        }
    }
}

impl Waiting {
    fn stage(&self) -> Stage {
        match self.what {
            Staging::Prepared(_) => Stage::Prepared,
            Staging::Warm(_) => Stage::Warm,
        }
    }
}

/// Lets what waited run, as the sandbox of the request. One that fails is gone when this returns.
#[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "claim"))]
async fn become_sandbox(
    waiting: Waiting,
    request: &SnapshotRestoreRequest,
) -> Result<(Session, ActiveSessionReservation, LaunchTimings), LaunchError> {
    let Waiting { what, reservation } = waiting;
    // In this order, so that a drop ends the machine before its capacity returns.
    let reservation = reservation.promote();
    let (session, timings) = match what {
        Staging::Prepared(staged) => start(*staged, request).await?,
        Staging::Warm(mut session) => match renew(&mut session, request).await {
            Ok(timings) => (*session, timings),
            Err(error) => {
                session.end().await;
                return Err(error);
            }
        },
    };
    Ok((session, reservation, timings))
}

/// A warm session becomes the sandbox's.
async fn renew(session: &mut Session, request: &SnapshotRestoreRequest) -> Result<LaunchTimings, LaunchError> {
    let begun = Instant::now();
    // Before the machine runs: a sandbox without internet never has any.
    session.link.set_internet(reaching(request)).await?;
    let staging = begun.elapsed();
    let begun = Instant::now();
    session.machine.resume().instrument(phase("vm_restore")).await.map_err(LaunchError::Machine)?;
    let vm_restore = begun.elapsed();
    let begun = Instant::now();
    let identity = session.take_identity(request.identity.clone()).instrument(phase("agent"));
    let first_answer = identity.await.map_err(LaunchError::Agent)?;
    Ok(LaunchTimings { staging, vm_restore, first_answer, agent_connect: begun.elapsed() })
}

fn reaching(request: &SnapshotRestoreRequest) -> Reaching<'_> {
    Reaching { internet: &request.internet, sandbox: &request.identity.sandbox_id }
}

/// A prepared engine gets the sandbox's guest.
async fn start(mut staged: Staged, request: &SnapshotRestoreRequest) -> Result<(Session, LaunchTimings), LaunchError> {
    let begun = Instant::now();
    // Before there is a guest: a sandbox without internet never has any.
    if let Err(error) = staged.link.set_internet(reaching(request)).await {
        staged.end().await;
        return Err(error.into());
    }
    let staging = begun.elapsed();
    let (session, timings) = staged.start(&request.identity, None).await?;
    Ok((session, LaunchTimings { staging, ..timings }))
}
