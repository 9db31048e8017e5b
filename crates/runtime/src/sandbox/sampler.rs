//! Asks every running sandbox now and then how it does. What it finds is kept by [`history`](crate::telemetry::history), which asks nobody.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use tokio::{
    sync::oneshot,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    sandbox::owner::{Access, Command, Handle, Owners},
    store::spec::SandboxId,
    telemetry::history::History,
};

/// A guest that needs longer for its statistics is left alone for a while.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(2);

/// Sandboxes that are asked at once: each answer wakes a guest.
const ASKED_AT_ONCE: usize = 8;

/// Between two samples. E2B's clients ask every few seconds and wait half a minute for the first.
pub(crate) const SAMPLE_EVERY: Duration = Duration::from_secs(5);

/// Samples every running sandbox until `stop`.
pub(crate) async fn sample_all(owners: Arc<Owners>, stop: CancellationToken) {
    let shared = &owners.shared;
    let mut ticks = interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
            () = shared.stopping.cancelled() => return,
        }
        shared.activity.observed(&owners.running(), Timestamp::now());
        let handles: Vec<(SandboxId, Handle)> =
            owners.handles().iter().map(|(id, handle)| (id.clone(), handle.clone())).collect();
        let history = &shared.history;
        let round = futures::stream::iter(handles).for_each_concurrent(ASKED_AT_ONCE, |(id, handle)| async move {
            sample(history, &id, &handle).await;
        });
        tokio::select! {
            () = round => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Takes one sample, unless the sandbox does not run, has something better to do or did not answer lately.
pub(crate) async fn sample(history: &History, id: &SandboxId, handle: &Handle) {
    let running = matches!(handle.view.borrow().access, Access::Running(_));
    if !running || history.is_quiet(id) {
        return;
    }
    let (reply, answer) = oneshot::channel();
    // A full queue is an owner that has enough to do.
    if handle.commands.try_send(Command::Stats { reply }).is_err() {
        return;
    }
    match timeout(SAMPLE_DEADLINE, answer).await {
        Ok(Ok(Some(stats))) => history.sampled(id, Some(stats)),
        // It ended, or is paused by now.
        Ok(Err(_)) => {}
        Ok(Ok(None)) if !matches!(handle.view.borrow().access, Access::Running(_)) => {}
        Ok(Ok(None)) | Err(_) => history.sampled(id, None),
    }
}
