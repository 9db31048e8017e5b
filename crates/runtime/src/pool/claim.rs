//! A create: by claiming a warm session where there is one, else by restoring the template.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Warm, WarmPool};
use crate::{
    capacity::ActiveSessionReservation,
    core::Core,
    error::{LaunchError, SnapshotRestoreError},
    metrics::Timing,
    owner::chain,
    restore::{self, LaunchTimings, SnapshotRestoreReport, SnapshotRestoreRequest},
    session::Session,
};

/// Counts a create that is being restored, for as long as it lives: making warm sessions yields to it.
struct Creating<'a>(&'a WarmPool);

impl<'a> Creating<'a> {
    fn new(pool: &'a WarmPool) -> Self {
        pool.state().creating += 1;
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
/// warm session's capacity is its own, so there is none to wait for.
///
/// Cancel-safe, as [`restore::restore`] is.
pub(crate) async fn create(
    core: &Arc<Core>,
    request: SnapshotRestoreRequest,
) -> Result<SnapshotRestoreReport<Session>, SnapshotRestoreError> {
    let _creating = Creating::new(&core.pool);
    let begun = Instant::now();
    let request = restore::check(request, &core.gates).await?;
    if let Some(warm) = core.pool.claim(&request).await {
        let checks = begun.elapsed();
        match become_sandbox(warm, &request).await {
            Ok((session, reservation, launch)) => {
                core.pool.state().counters.hits += 1;
                core.metrics.observe(Timing::WarmPoolCheckout, begun.elapsed());
                return Ok(SnapshotRestoreReport { session, reservation, checks, admission: Duration::ZERO, launch });
            }
            Err(error) => {
                core.pool.state().counters.failed_claims += 1;
                tracing::warn!(error = chain(&error), "a warm session could not be claimed; restoring instead");
            }
        }
    }
    let report = restore::launch(&request, &core.gates, &core.launcher, begun).await?;
    core.metrics.observe(Timing::WarmSnapshotRestore, begun.elapsed());
    Ok(report)
}

/// Lets a warm machine run, as the sandbox of the request. One that fails is gone when this returns.
async fn become_sandbox(
    warm: Warm,
    request: &SnapshotRestoreRequest,
) -> Result<(Session, ActiveSessionReservation, LaunchTimings), LaunchError> {
    let Warm { session, reservation } = warm;
    // In this order, so that a drop ends the machine before its capacity returns.
    let reservation = reservation.promote();
    let mut session = session;
    match renew(&mut session, request).await {
        Ok(timings) => Ok((session, reservation, timings)),
        Err(error) => {
            session.end().await;
            drop(reservation);
            Err(error)
        }
    }
}

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
