//! A create: by claiming a warm session or a prepared engine where there is one, else by restoring the template.

use std::time::Instant;

use firkin_causes::chain;

use super::{Staging, Waiting, WarmPool};
use crate::{
    capacity::ActiveSessionReservation,
    core::Core,
    launch::{LaunchError, LaunchTimings, SnapshotRestoreRequest},
    metrics::Timing,
    restore::{Proven, SnapshotRestoreError, SnapshotRestoreReport},
    session::{Session, Staged},
};

/// Counts a create that is being restored, for as long as it lives: making warm sessions yields to it.
struct Creating<'a>(&'a WarmPool);

impl<'a> Creating<'a> {
    fn new(pool: &'a WarmPool) -> Self {
        pool.creating(tokio::time::Instant::now());
        Self(pool)
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.state().creating -= 1;
        self.0.changed.notify_one();
    }
}

/// Makes a session of a new sandbox, in the order of every restore: compatibility, integrity, disk floor, capacity, launch. A
/// claimed session's capacity is its own, so there is none to wait for.
///
/// Cancel-safe, as [`restore::restore`](crate::restore::restore) is.
pub(crate) async fn create(
    core: &Core,
    pool: &WarmPool,
    request: SnapshotRestoreRequest,
) -> Result<SnapshotRestoreReport<Session>, SnapshotRestoreError> {
    let _creating = Creating::new(pool);
    let begun = Instant::now();
    let proven = Proven::prove(request, &core.gates).await?;
    let proven = match claim(core, pool, proven, begun).await {
        Ok(report) => return Ok(report),
        Err(proven) => proven,
    };
    let report = proven.admit(&core.gates).await?.launch(&core.launcher).await?;
    core.metrics.observe(Timing::WarmSnapshotRestore, begun.elapsed());
    Ok(report)
}

/// Lets what waits of the template become the sandbox. Gives back what is proven where nothing does, or what did has failed.
async fn claim(core: &Core, pool: &WarmPool, proven: Proven, begun: Instant) -> Result<SnapshotRestoreReport<Session>, Proven> {
    let Some(waiting) = pool.claim(&proven.request).await else { return Err(proven) };
    let admission = proven.since.elapsed();
    let is_warm = matches!(waiting.what, Staging::Warm(_));
    match become_sandbox(waiting, &proven.request).await {
        Ok((session, reservation, launch)) => {
            count_hit(core, pool, is_warm, begun);
            Ok(SnapshotRestoreReport { session, reservation, checks: proven.checks, admission, launch })
        }
        Err(error) => {
            pool.state().counters.failed_claims += 1;
            tracing::warn!(error = chain(&error), "what waited in the pool could not be claimed; restoring instead");
            Err(proven)
        }
    }
}

fn count_hit(core: &Core, pool: &WarmPool, is_warm: bool, begun: Instant) {
    let mut state = pool.state();
    let (hits, timing) = if is_warm {
        (&mut state.counters.hits, Timing::WarmPoolCheckout)
    } else {
        // A restore as any other, the first half of which was done before.
        (&mut state.counters.prepared_hits, Timing::WarmSnapshotRestore)
    };
    *hits += 1;
    drop(state);
    core.metrics.observe(timing, begun.elapsed());
}

/// Lets what waited run, as the sandbox of the request. One that fails is gone when this returns.
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
    session.link.set_internet(&request.internet).await.map_err(LaunchError::Network)?;
    let staging = begun.elapsed();
    let begun = Instant::now();
    session.machine.resume().await.map_err(LaunchError::Machine)?;
    let vm_restore = begun.elapsed();
    let begun = Instant::now();
    let first_answer = session.take_identity(request.identity.clone()).await.map_err(LaunchError::Agent)?;
    Ok(LaunchTimings { staging, vm_restore, first_answer, agent_connect: begun.elapsed() })
}

/// A prepared engine gets the sandbox's guest.
async fn start(mut staged: Staged, request: &SnapshotRestoreRequest) -> Result<(Session, LaunchTimings), LaunchError> {
    let begun = Instant::now();
    // Before there is a guest: a sandbox without internet never has any.
    if let Err(error) = staged.link.set_internet(&request.internet).await {
        staged.end().await;
        return Err(LaunchError::Network(error));
    }
    let staging = begun.elapsed();
    let (session, timings) = staged.start(&request.identity).await?;
    Ok((session, LaunchTimings { staging, ..timings }))
}
