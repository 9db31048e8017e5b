//! The guard of the host's rules: sees when somebody takes them away, and cuts the slots off until they are back.
//!
//! ```text
//!   another program: nft flush ruleset ─► kernel tells ─► table differs ─► cut ─► install again ─► end of the cut
//! ```
//!
//! The rules of slots go on denying what is always denied while the host's are gone. What only the host knows, such as an address
//! that it got later, and what only the host does, such as translation, is missing meanwhile; so nothing passes then.
//!
//! The cut is one rule of policy routing, whatever the number of slots: the way back to all addresses of the claim's slots leads
//! nowhere. Their interfaces drop packets whose source has no way back (`rp_filter`), to the host itself too. It is no part of
//! nftables, so what flushes that leaves it, and so does a crash of the server: then slots are cut off until the next one.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    SetupError, ThreadLost,
    claim::slot_net,
    namespace,
    netlink::Netlink,
    rules::{HostPolicy, host_rules, host_table},
    ruleset::{Changes, Contents, contents, install},
};

/// For the kernel to take or drop the cut. It takes microseconds but for its lock of interfaces, which slots that come and go
/// hold for some milliseconds each.
const CUT_DEADLINE: Duration = Duration::from_secs(1);
/// Between attempts to install rules that the kernel refuses, which it will until whoever holds the table lets it go.
const RETRY: Duration = Duration::from_millis(200);

/// A thread that watches the host's rules of one claim. They stay when it ends.
#[derive(Debug)]
pub(super) struct Guard {
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<()>,
}

impl Guard {
    /// Installs the rules in the calling thread's network namespace, ends a cut that an earlier server left, and watches from
    /// then on.
    pub(super) async fn start(policy: HostPolicy) -> Result<Self, SetupError> {
        let ((stop, stopped), (end, ended), (tell, told)) = (oneshot::channel(), oneshot::channel(), oneshot::channel());
        let watch = move || {
            let watching = namespace::block_on(async {
                let changes = Changes::open();
                let (begun, watch) = match Watch::begin(policy).await {
                    Ok(watch) => (Ok(()), Some(watch)),
                    Err(error) => (Err(error), None),
                };
                // Whoever asked may have gone, and the pool with it.
                if tell.send(begun).is_ok()
                    && let Some(watch) = watch
                {
                    watch.run(&changes, stopped).await;
                }
            });
            if let Err(error) = watching {
                tracing::error!(%error, "cannot start a runtime to watch the host's rules");
            }
            drop(end);
        };
        // It inherits the namespace.
        let thread = std::thread::Builder::new().name("firkin-guard".into()).spawn(watch);
        thread.map_err(|source| ThreadLost(Some(source)))?;
        told.await.map_err(|_| ThreadLost(None))??;
        Ok(Self { stop: Some(stop), ended })
    }

    /// Ends the watch, so that the rules may be deleted.
    pub(super) async fn end(mut self) {
        drop(self.stop.take());
        // It is an error by design: the other end is dropped, never used.
        drop((&mut self.ended).await);
    }
}

struct Watch {
    policy: HostPolicy,
    table: String,
    /// The table as it was installed.
    installed: Contents,
    netlink: Netlink,
}

impl Watch {
    async fn begin(policy: HostPolicy) -> Result<Self, SetupError> {
        let table = host_table(policy.claim);
        let installed = install(&table, || host_rules(&policy));
        let installed = installed.map_err(|source| SetupError::Firewall { step: "install the host's rules", source })?;
        let netlink = Netlink::open()?;
        netlink.end_cut(slot_net(policy.claim)).await?;
        Ok(Self { policy, table, installed, netlink })
    }

    async fn run(mut self, changes: &Changes, mut stopped: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = changes.next() => {}
            }
            if self.is_intact() {
                continue;
            }
            tokio::select! {
                biased;
                _ = &mut stopped => return,
                () = self.restore(changes) => {}
            }
        }
    }

    /// A table that cannot be read counts as changed.
    fn is_intact(&self) -> bool {
        contents(&self.table).is_ok_and(|now| now.as_ref() == Some(&self.installed))
    }

    /// Cuts the slots off, and ends that when the rules are back.
    async fn restore(&mut self, changes: &Changes) {
        let slots = slot_net(self.policy.claim);
        tracing::warn!(
            table = self.table,
            "the host's rules for guests were changed by another program: guests are cut off until they are back"
        );
        loop {
            let cut = tokio::time::timeout(CUT_DEADLINE, self.netlink.cut(slots)).await;
            log("cut guests off", cut);
            match install(&self.table, || host_rules(&self.policy)) {
                Ok(installed) => {
                    self.installed = installed;
                    break;
                }
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        table = self.table,
                        "cannot put the host's rules back: guests stay cut off"
                    );
                    // Whatever comes first; our own refused transactions change nothing and are not told.
                    drop(tokio::time::timeout(RETRY, changes.next()).await);
                }
            }
        }
        while !log("end the cut", tokio::time::timeout(CUT_DEADLINE, self.netlink.end_cut(slots)).await) {
            tokio::time::sleep(RETRY).await;
        }
        tracing::info!(table = self.table, "the host's rules for guests are back");
    }
}

/// Whether it was done; else says why not.
fn log(what: &str, done: Result<Result<(), SetupError>, tokio::time::error::Elapsed>) -> bool {
    let error: &dyn std::error::Error = match &done {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => error,
        Err(elapsed) => elapsed,
    };
    tracing::error!(error, "cannot {what}");
    false
}
