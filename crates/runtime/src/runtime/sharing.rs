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

/// How long the owner of one sandbox may take until there is room to tell it something: longer than what it may be doing.
const HEARS_WITHIN: Duration = Duration::from_secs(300);

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
        let told = handles.into_iter().map(|handle| async move {
            // One that has gone meanwhile has no clock. One that is busy keeps none of the others waiting.
            if timeout(HEARS_WITHIN, handle.commands.send(Command::WentOn)).await.is_err() {
                let id = handle.view.borrow().sandbox.id.clone();
                tracing::error!(sandbox = %id, "a sandbox that stood still is not told that it goes on: its owner is busy");
            }
        });
        drop(join_all(told).await);
    }

    /// Ends what this server has of sandboxes that are another node's by now, and says how many they were. What is on record of them is left as
    /// it is. One that has come back by when it would end stays.
    ///
    /// Fails where one does not end in time, so that nothing goes on before it has: its machine is killed if the fence has it, and its owner ends
    /// once it has done what it does.
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
        let ends = lost.into_iter().map(|id| async move {
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
                Err(_) => self.end_what_is_late(&id).await,
            }
        });
        let ended: Vec<bool> = join_all(ends).await.into_iter().collect::<Result<_, _>>()?;
        Ok(ended.into_iter().filter(|ended| *ended).count())
    }

    /// Of a sandbox whose owner is busy and has not ended it: kills its machine, if the fence has it. Whether that is over; it is where the sandbox
    /// has come back, or is gone.
    async fn end_what_is_late(&self, id: &SandboxId) -> Result<bool, StoreError> {
        // In this order: the machine of one that comes back later is another one.
        let Ok(instance) = self.handle(id).map(|handle| handle.view.borrow().instance.clone()) else { return Ok(true) };
        if self.shared.store.is_own(id.clone()).await? {
            return Ok(false);
        }
        tracing::error!(sandbox = %id, "what is another node's by now does not end here in time");
        if let Some(fence) = self.shared.config.fence.clone()
            && let Err(error) = blocking(move || fence.end(&instance)).await
        {
            tracing::error!(sandbox = %id, %error, "cannot kill a machine of a sandbox that is another node's");
        }
        Err(StoreError::Fenced { what: format!("sandbox `{id}`, which this server has not let go of yet,") })
    }
}
