//! The end of a runtime: of one that has served, and of one that could not begin.

use crate::{
    sandbox::owner::{Command, Handle, OnExit, Owners},
    shared::Shared,
};

/// No new work, then every running sandbox ends, is paused or is left. Returns when nothing goes on.
pub(super) async fn end(shared: &Shared, owners: &Owners, on_exit: OnExit) {
    shared.stopping.cancel();
    let handles: Vec<Handle> = owners.handles().values().cloned().collect();
    for handle in handles {
        // An owner that is gone has nothing to stop.
        drop(handle.commands.send(Command::Stop { on_exit }).await);
    }
    shared.tasks.close();
    shared.tasks.wait().await;
    owners.handles().clear();
    // Not before: what ended just now is sent by the next server.
    shared.webhooks.end().await;
    shared.links.close().await;
    if let Err(error) = shared.store.close().await {
        tracing::warn!(error = firkin_causes::chain(&error), "cannot close the database; the next server repairs it");
    }
}
