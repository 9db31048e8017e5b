//! The runtime's face for servers that share a catalogue: what of it is here, and what is not this one's any more.

use std::{cmp::Reverse, collections::HashSet, time::Duration};

use firkin_causes::chain;
use futures::future::join_all;
use tokio::time::timeout;

use crate::{
    ground::{blocking::blocking, ids::BuildId, team::Scope},
    runtime::Runtime,
    sandbox::owner::{Command, KillError, Relocation},
    store::{StoreError, spec::SandboxId},
};

/// How long the end of one sandbox is waited for.
const ENDS_WITHIN: Duration = Duration::from_secs(30);

impl Runtime {
    /// Versions of templates, and snapshots, whose files are here: the newest first, and no more than `most`.
    pub async fn builds_here(&self, most: usize) -> Result<Vec<BuildId>, StoreError> {
        let mut records = self.shared.store.templates(self.scope.clone()).await?;
        records.sort_by_key(|record| Reverse(record.created_at));
        records.truncate(most);
        let artifacts = self.shared.artifacts.clone();
        let here = move || {
            records.into_iter().filter(|record| artifacts.is_here(&record.artifact)).map(|record| record.build_id).collect()
        };
        Ok(blocking(here).await)
    }

    /// Tells the owners of machines that others could have that these stood still, and go on: the clocks of their guests are set.
    pub async fn went_on(&self) {
        let handles: Vec<_> = self.owners.handles().values().cloned().collect();
        for handle in handles {
            // One that has gone meanwhile has no clock.
            drop(handle.commands.send(Command::WentOn).await);
        }
    }

    /// Ends what this server has of sandboxes that are another node's by now, and says how many they were. What is on record of them is left as
    /// it is. One that has come back by when it would end stays.
    pub async fn let_go_of_what_is_anothers(&self) -> Result<usize, StoreError> {
        // In this order: what has an owner was on record before.
        let here: Vec<SandboxId> = self.owners.handles().keys().cloned().collect();
        let known: HashSet<SandboxId> =
            self.shared.store.sandboxes(Scope::Host).await?.into_iter().map(|record| record.id).collect();
        let mut lost = Vec::new();
        for id in here.into_iter().filter(|id| !known.contains(id)) {
            // One in doubt may be on record no more, and is this server's all the same.
            if !self.shared.store.is_in_doubt(&id) || self.shared.store.is_anothers(id.clone()).await? {
                lost.push(id);
            }
        }
        let lost = lost.into_iter();
        let ends = lost.map(|id| async move {
            tracing::warn!(sandbox = %id, "a sandbox is another node's by now: what this server has of it ends");
            match timeout(ENDS_WITHIN, self.ask::<_, KillError>(&id, |reply| Command::Relocate(Relocation::LetGo { reply })))
                .await
            {
                Ok(Ok(true) | Err(KillError::NotFound(_))) => Ok(true),
                // It has come back.
                Ok(Ok(false)) => Ok(false),
                Ok(Err(KillError::Store(error))) => {
                    tracing::error!(sandbox = %id, error = chain(&error), "it is not known whether a sandbox is another node's still");
                    Err(error)
                }
                Err(_) => {
                    tracing::error!(sandbox = %id, "what is another node's by now does not end here in time");
                    Ok(false)
                }
            }
        });
        let ended: Vec<bool> = join_all(ends).await.into_iter().collect::<Result<_, _>>()?;
        Ok(ended.into_iter().filter(|ended| *ended).count())
    }
}
