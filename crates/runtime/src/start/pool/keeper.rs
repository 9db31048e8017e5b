//! Making warm sessions and prepared engines, and watching over each until it is claimed or ends.

use std::{sync::Arc, time::Duration};

use firkin_causes::chain;
use firkin_engine::{Exit, MachineError};
use tokio::{sync::oneshot, time::Instant};

use super::{Order, Stage, Staging, Step, Waiting, WarmPool};
use crate::{
    artifact::IntegrityError,
    capacity::{ResourceBudget, WarmSessionReservation, admission::WarmAdmissionError},
    ground::team::Scope,
    host::disk::{DiskPressure, REFILL_FACTOR},
    machine::{
        command::{self, CommandError, GuestCommand},
        launch::{LaunchError, SnapshotRestoreRequest, SnapshotSessionLauncher as _},
        quiescence::come_to_rest,
        session::Session,
    },
    restore::{Proven, SnapshotRestoreError},
    shared::Shared,
    start::{fetching, identity},
    store::spec::InternetAccess,
};

/// A ready command that takes longer in a restored guest would not make a create faster.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(60);

/// Why a warm session or prepared engine was not made. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
enum RefillError {
    #[error("cannot read the template's artifact")]
    Integrity(#[source] IntegrityError),
    #[error("the template cannot be restored")]
    Check(#[source] SnapshotRestoreError),
    #[error("the disk is too full for warm sessions")]
    Disk(#[source] DiskPressure),
    #[error(transparent)]
    Admission(#[from] WarmAdmissionError),
    #[error("cannot launch a warm session")]
    Launch(#[source] LaunchError),
    #[error("cannot prepare an engine")]
    Prepare(#[source] LaunchError),
    #[error("the template's ready command did not end in a warm session")]
    WarmUp(#[source] CommandError),
    #[error("the machine of a warm session ended while the template's ready command ran in it: {0}")]
    Died(Exit),
    #[error("the template's ready command ended with status {0} in a warm session")]
    NotReady(i32),
    #[error("cannot stop a warm session")]
    Stop(#[source] MachineError),
    #[error("it is not needed any more")]
    GivenUp,
}

impl RefillError {
    /// The disk is too full, or it cannot be told how full it is.
    fn is_want_of_disk(&self) -> bool {
        matches!(self, Self::Disk(_) | Self::Check(SnapshotRestoreError::DiskPressure(_)))
    }

    /// The host has no room now; nothing is wrong with the template.
    fn is_want_of_room(&self) -> bool {
        match self {
            Self::Admission(_) => true,
            Self::Disk(_) | Self::Check(_) => self.is_want_of_disk(),
            Self::Integrity(_)
            | Self::Launch(_)
            | Self::Prepare(_)
            | Self::WarmUp(_)
            | Self::Died(_)
            | Self::NotReady(_)
            | Self::Stop(_)
            | Self::GivenUp => false,
        }
    }
}

/// Keeps the pool as deep as it is wanted until the runtime stops, then ends all that waits.
pub(crate) async fn keep(shared: Arc<Shared>, pool: Arc<WarmPool>) {
    loop {
        if std::mem::take(&mut pool.state().stale) {
            match shared.store.templates(Scope::Host).await {
                Ok(templates) => pool.reconcile(&templates),
                Err(error) => {
                    tracing::warn!(error = chain(&error), "cannot read which templates are to be kept warm");
                    pool.state().stale = true;
                }
            }
        }
        let until = match pool.plan(Instant::now()) {
            Step::Make(order) => {
                shared.tasks.spawn(tend(Arc::clone(&shared), Arc::clone(&pool), order));
                continue;
            }
            Step::WaitUntil(until) => until,
        };
        tokio::select! {
            () = pool.changed.notified() => {}
            () = tokio::time::sleep_until(until) => {}
            () = shared.stopping.cancelled() => break,
        }
    }
    pool.close();
}

/// The life of one that waits.
async fn tend(shared: Arc<Shared>, pool: Arc<WarmPool>, mut order: Order) {
    // Told last, whatever happens: whoever evicts waits for it.
    let _ended = order.ended.clone().drop_guard();
    let begun = Instant::now();
    let waiting = match make(&shared, &pool, &mut order).await {
        Ok(waiting) => waiting,
        Err(error) => {
            if matches!(error, RefillError::GivenUp) {
                return;
            }
            let (template, stage, reason, for_now) = (&order.template, order.stage, chain(&error), error.is_want_of_room());
            if error.is_want_of_disk() && pool.note_disk(true) {
                // Once, not with each attempt: nothing else says why creates are slower than they were.
                tracing::warn!(
                    reason,
                    "nothing more is kept warm until {REFILL_FACTOR} times the disk floor is free: free space there, or lower the \
                     floor (`firkin up --disk-floor MIB`)"
                );
            } else if for_now {
                tracing::debug!(%template, ?stage, reason, "no room in the pool");
            } else {
                tracing::warn!(%template, ?stage, reason, "cannot refill the pool");
            }
            pool.not_made(&order, for_now, Instant::now());
            return;
        }
    };
    let took_ms = begun.elapsed().as_millis();
    tracing::debug!(template = %order.template, stage = ?order.stage, took_ms, "one more waits in the pool");
    pool.made(&order.template, order.item);
    wait(&pool, order, waiting).await;
}

/// Until it is claimed, not wanted any more, or dead.
async fn wait(pool: &WarmPool, order: Order, mut waiting: Waiting) {
    let Order { template, stage, item, claimed, .. } = order;
    tokio::select! {
        // What is dead is not given to anybody: whoever claimed it meanwhile sees that it is gone.
        biased;
        exit = waiting.died() => {
            tracing::warn!(%template, ?stage, ?exit, "what waited in the pool ended by itself");
            pool.lost(&template, item);
            waiting.end().await;
        }
        claimed = claimed => match claimed {
            // Whoever claimed it may have gone away meanwhile.
            Ok(claimant) => if let Err(unclaimed) = claimant.send(waiting) {
                unclaimed.end().await;
            },
            Err(_) => drop(waiting.end().await),
        },
    }
}

impl Waiting {
    /// Ends when its machine or engine does. Cancel-safe.
    async fn died(&mut self) -> Exit {
        match &mut self.what {
            Staging::Prepared(staged) => staged.died().await,
            Staging::Warm(session) => session.machine.wait().await,
        }
    }

    /// Ends it, and gives its capacity back after that.
    pub(super) async fn end(self) -> Exit {
        let exit = match self.what {
            Staging::Prepared(staged) => staged.end().await,
            Staging::Warm(session) => session.end().await,
        };
        drop(self.reservation);
        exit
    }
}

async fn make(shared: &Shared, pool: &WarmPool, order: &mut Order) -> Result<Waiting, RefillError> {
    let _pin = shared.artifacts.pin(order.artifact.clone());
    let artifact = fetching::load(shared, &order.artifact).await.map_err(RefillError::Integrity)?;
    let request = SnapshotRestoreRequest {
        budget: artifact.manifest.budget,
        identity: identity::of_warm(order.template.name.as_str(), artifact.manifest.epoch, crate::ground::random::hex::<32>()),
        internet: InternetAccess::Allowed,
        can_be_claimed: false,
        artifact,
    };
    let Proven { request, .. } = Proven::prove(request, &shared.gates).await.map_err(RefillError::Check)?;
    shared.gates.disk.check_for_refill().map_err(RefillError::Disk)?;
    if pool.note_disk(false) {
        tracing::info!("the disk has room for warm sessions again");
    }
    let reservation = reserve(shared, pool, order, request.budget).await?;
    match order.stage {
        Stage::Prepared => prepare(shared, order, &request, reservation).await,
        Stage::Warm => warm(shared, order, &request, reservation).await,
    }
}

/// Takes capacity for it. A warm session is worth a prepared engine, if that is all that is in its way.
async fn reserve(
    shared: &Shared,
    pool: &WarmPool,
    order: &Order,
    budget: ResourceBudget,
) -> Result<WarmSessionReservation, WarmAdmissionError> {
    match shared.gates.admission.admit_warm(budget) {
        Err(WarmAdmissionError::Capacity(_))
            if order.stage == Stage::Warm && pool.end_prepared(&order.template, &budget).await =>
        {
            shared.gates.admission.admit_warm(budget)
        }
        decided => decided,
    }
}

/// Stages the template, and leaves its engine waiting.
async fn prepare(
    shared: &Shared,
    order: &mut Order,
    request: &SnapshotRestoreRequest,
    reservation: WarmSessionReservation,
) -> Result<Waiting, RefillError> {
    let staged = tokio::select! {
        staged = shared.launcher.stage(&request.artifact, &request.identity.sandbox_id, &request.internet) => staged,
        () = unwanted(&mut order.claimed) => return Err(RefillError::GivenUp),
    };
    let (staged, _) = staged.map_err(RefillError::Prepare)?;
    Ok(Waiting { what: Staging::Prepared(Box::new(staged)), reservation })
}

/// Restores the template, warms its guest up and stops it.
async fn warm(
    shared: &Shared,
    order: &mut Order,
    request: &SnapshotRestoreRequest,
    reservation: WarmSessionReservation,
) -> Result<Waiting, RefillError> {
    let launched = tokio::select! {
        launched = shared.launcher.launch(request) => launched,
        () = unwanted(&mut order.claimed) => return Err(RefillError::GivenUp),
    };
    let (mut session, _) = launched.map_err(RefillError::Launch)?;
    let token = request.identity.access_token.as_deref();
    let warmed = tokio::select! {
        warmed = warm_up(&mut session, order.warm_up.as_deref(), token) => warmed,
        () = unwanted(&mut order.claimed) => Err(RefillError::GivenUp),
    };
    let waiting = Waiting { what: Staging::Warm(Box::new(session)), reservation };
    match warmed {
        Ok(()) => Ok(waiting),
        Err(error) => {
            waiting.end().await;
            Err(error)
        }
    }
}

/// Ends when the pool has given an item up. One that is being made is claimed by nobody.
async fn unwanted(claimed: &mut oneshot::Receiver<oneshot::Sender<Waiting>>) {
    drop(claimed.await);
}

/// Runs the template's ready command, then stops the machine.
async fn warm_up(session: &mut Session, ready: Option<&str>, token: Option<&str>) -> Result<(), RefillError> {
    if let Some(ready) = ready {
        let mut command = GuestCommand::new(ready);
        command.deadline = WARM_UP_DEADLINE;
        // A dead guest answers nothing, not even that it is gone: the command would be waited for until its deadline.
        let output = tokio::select! {
            output = command::run_as_clients_do(session.link.connector(), token, &command) => output.map_err(RefillError::WarmUp)?,
            exit = session.machine.wait() => return Err(RefillError::Died(exit)),
        };
        if output.exit_code != 0 {
            return Err(RefillError::NotReady(output.exit_code));
        }
    }
    come_to_rest(&mut *session.machine).await.map_err(RefillError::Stop)?;
    session.machine.pause().await.map_err(RefillError::Stop)
}
