//! What is put into requests of sandboxes: this host's own, or that of all hosts which share its catalogue.
//!
//! A host that had it alone brings it along when it becomes one of several: its secrets, and the keys, where the others have none yet.

use std::{path::Path, sync::Arc};

use firkin_causes::chain;
use zeroize::Zeroizing;

use crate::{
    ground::blocking::blocking,
    machine::outbound::Filling,
    shared::config::RuntimeConfig,
    storage::{
        secrets::{SecretError, Secrets, SharedError, SharedSecrets},
        workload::Workload,
    },
    store::state_dir::OpenError,
};

/// What the key is called that signs identity tokens. For ever: hosts of two versions have it together.
const WORKLOAD: &str = "workload";

/// What the authority is called that sandboxes trust whose requests are filled. For ever, likewise.
const AUTHORITY: &str = "egress-authority";

type Offered = Result<Zeroizing<Vec<u8>>, OpenError>;

/// Secrets, the key of tokens, and what puts both into requests. Nothing is read or made yet, unless others have it too.
pub(super) async fn open(config: &RuntimeConfig) -> Result<(Arc<Secrets>, Arc<Workload>, Arc<Filling>), OpenError> {
    let (dir, issuer) = (&config.state_dir, config.issuer.clone());
    let Some(rows) = &config.secrets else {
        let (secrets, workload) = (Arc::new(Secrets::of(dir)), Arc::new(Workload::of(dir, issuer)));
        let filling = Filling::of(dir, Arc::clone(&secrets), Arc::clone(&workload));
        return Ok((secrets, workload, filling));
    };
    let secrets = Secrets::shared(dir, Arc::clone(rows)).await.map_err(|error| OpenError::Secrets(error.into()))?;
    let own = dir.to_owned();
    let offer = move || Workload::offer(&own).map_err(|error| OpenError::Secrets(error.into()));
    let workload = Workload::shared(key(&**rows, WORKLOAD, offer).await?, issuer);
    let own = dir.to_owned();
    let offer = move || Filling::offer(&own).map_err(|error| OpenError::Secrets(error.into()));
    let authority = key(&**rows, AUTHORITY, offer).await?;
    tell_of_another(dir, authority.as_deref()).await;
    let (secrets, workload) = (Arc::new(secrets), Arc::new(workload));
    let filling = Filling::shared(authority, Arc::clone(&secrets), Arc::clone(&workload));
    Ok((secrets, workload, filling))
}

/// A key that all hosts have, and what this one offers where there is none. None where it cannot be opened: whoever needs it is told so, and the
/// others are served.
async fn key(
    rows: &dyn SharedSecrets,
    name: &'static str,
    offer: impl FnOnce() -> Offered + Send + 'static,
) -> Result<Option<Zeroizing<Vec<u8>>>, OpenError> {
    let found = match rows.key(name).await {
        Ok(None) => rows.keep_key(name, blocking(offer).await?).await.map(Some),
        found => found,
    };
    match found {
        Ok(key) => Ok(key),
        Err(error @ SharedError::Unreadable(_)) => {
            tracing::error!(
                key = name,
                error = chain(&error),
                "a key of the cluster cannot be opened: nothing that needs it works"
            );
            Ok(None)
        }
        Err(SharedError::Store(source)) => Err(OpenError::Secrets(SecretError::Shared(source).into())),
    }
}

/// Says so where sandboxes of this host may trust another authority than that of all hosts: one that it had before it was one of them.
async fn tell_of_another(dir: &Path, authority: Option<&Vec<u8>>) {
    let dir = dir.to_owned();
    let own = match blocking(move || Filling::own(&dir)).await {
        Ok(own) => own,
        Err(error) => {
            tracing::warn!(
                error = chain(&error),
                "the authority that this host had alone cannot be read: whether sandboxes trust it is not known"
            );
            return;
        }
    };
    if own.as_deref().is_some_and(|own| Some(own) != authority) {
        tracing::warn!(
            "sandboxes that were given rules with headers before this host was one of its cluster trust an authority that the cluster has not: give them their rules again"
        );
    }
}
