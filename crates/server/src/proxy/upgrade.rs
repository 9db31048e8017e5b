//! Connections that stop being HTTP: WebSocket and whatever else asks for an upgrade.
//!
//! Once both sides have switched, bytes are copied both ways until either side closes, the sandbox ends or the server stops.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use super::pool::ConnectionPool;
use crate::doors::Busy;

/// Joins the two halves of an upgraded connection, in the background.
pub(crate) fn join(
    pool: &Arc<ConnectionPool>,
    (client, busy): (OnUpgrade, Option<Busy>),
    guest: OnUpgrade,
    ended: CancellationToken,
) {
    let stop = pool.stop.clone();
    pool.tasks.spawn(async move {
        tokio::select! {
            () = copy(client, guest) => {}
            () = ended.cancelled() => {}
            () = stop.cancelled() => {}
        }
        // It was the client's connection until now.
        drop(busy);
    });
}

async fn copy(client: OnUpgrade, guest: OnUpgrade) {
    let (client, guest) = match tokio::try_join!(client, guest) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "an upgrade was not completed");
            return;
        }
    };
    let (mut client, mut guest) = (TokioIo::new(client), TokioIo::new(guest));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut guest).await {
        tracing::debug!(%error, "an upgraded connection broke");
    }
}
