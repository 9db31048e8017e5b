//! How a paused sandbox goes from one host to another that shares its catalogue: who lets go of it says so there, and of many who want it,
//! one has its next life.

use std::{error::Error, fmt::Debug};

use futures::future::BoxFuture;

use super::{StoreError, spec::SandboxId};
use crate::ground::ids::ArtifactId;

/// Why something was not claimed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimRefused {
    /// It is another's, or in another life by now.
    #[error("it is not to be had")]
    Held(#[source] Box<dyn Error + Send + Sync>),
    /// The catalogue says no, or is away.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The records of a cluster, as a host claims sandboxes by them.
pub trait Claims: Debug + Send + Sync {
    /// Lets others claim a paused sandbox of this host, for as long as it is in this life.
    fn give_up<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Whether a sandbox could be claimed, as far as is known now: its host gave it up, or has been away for too long.
    fn is_free<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Takes a sandbox for the life after `epoch`. It is this host's when this returns, durably. What is on record of it from then on.
    fn claim<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<String, ClaimRefused>>;

    /// Whether a paused sandbox of any host is held by an artifact.
    fn is_held<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Has it on record that an artifact is whole on this host, where a paused sandbox of any host is held by it. Whether one is.
    fn copied<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>>;
}
