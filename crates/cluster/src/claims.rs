//! How a node lets go of a paused sandbox, and has one that is nobody's: by the rows of its cluster.

use std::sync::atomic::Ordering;

use firkin_postgres::ClaimError;
use firkin_runtime::{
    claims::{ClaimRefused, Claims},
    ids::ArtifactId,
    sandbox::SandboxId,
    store::StoreError,
};
use futures::future::BoxFuture;

use crate::{Peers, Records};

impl Peers {
    fn records(&self) -> Result<&Records, StoreError> {
        self.joined().map(|(_, records)| &**records).ok_or(StoreError::Closed)
    }

    async fn could_claim(&self, id: &SandboxId) -> Result<bool, StoreError> {
        let records = self.records()?;
        let membership = records.membership();
        let Some(found) = membership.members().whereabouts(id).await? else { return Ok(false) };
        if found.is_given_up {
            return Ok(true);
        }
        records.hear().await?;
        let grace = membership.cluster().times.grace;
        Ok(records.records().iter().any(|node| node.id == found.node && node.lease_over > grace))
    }
}

impl Claims for Peers {
    fn give_up<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.records()?.membership().give_up(id, epoch).await })
    }

    fn is_free<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(self.could_claim(id))
    }

    fn claim<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<String, ClaimRefused>> {
        Box::pin(async move {
            let records = self.records()?;
            let claimed = records.membership().claim(id, epoch).await;
            let (counts, one) = (records.counts(), Ordering::Relaxed);
            match &claimed {
                Ok(_) => counts.claimed.fetch_add(1, one),
                Err(ClaimError::Store(_)) => counts.failed.fetch_add(1, one),
                Err(_) => counts.held.fetch_add(1, one),
            };
            claimed.map(|claimed| claimed.body).map_err(|refused| match refused {
                ClaimError::Store(error) => ClaimRefused::Store(error),
                held => ClaimRefused::Held(held.into()),
            })
        })
    }

    fn is_held<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { self.records()?.membership().is_held(artifact).await })
    }

    fn copied<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { self.records()?.membership().copied(artifact).await })
    }
}
