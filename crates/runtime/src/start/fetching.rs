//! Reads an artifact, wherever it is: one that is on record and on another host is brought here first.
//!
//! Where nobody is said to bring any, this is a read of what is here, and nothing else.

use firkin_causes::chain;

use crate::{
    artifact::{
        Artifact, Fetch, FetchError, IntegrityError,
        archive::{Blocking, Unpacked},
    },
    ground::{blocking::blocking, ids::ArtifactId},
    shared::Shared,
};

/// Reads the sidecars of an artifact that the caller keeps from collection. One at a time is brought; who waits for the same one finds it.
pub(crate) async fn load(shared: &Shared, id: &ArtifactId) -> Result<Artifact, IntegrityError> {
    let Some(fetch) = &shared.config.fetch else { return shared.artifacts.load(id) };
    if shared.artifacts.is_here(id) {
        return shared.artifacts.load(id);
    }
    let _turn = shared.fetching.lock().await;
    if shared.artifacts.is_here(id) {
        return shared.artifacts.load(id);
    }
    match bring(shared, fetch.as_ref(), id).await {
        Ok(unpacked) => Ok(unpacked.artifact),
        Err(error) => {
            tracing::warn!(artifact = %id, error = chain(&error), "an artifact did not come from where it is");
            Err(IntegrityError::Elsewhere(Box::new(error)))
        }
    }
}

/// Whether an artifact can be started from, wherever it is: it is here when this says so.
pub(crate) async fn is_usable(shared: &Shared, id: &ArtifactId) -> bool {
    load(shared, id).await.is_ok() && shared.artifacts.is_usable(id)
}

async fn bring(shared: &Shared, fetch: &dyn Fetch, id: &ArtifactId) -> Result<Unpacked, FetchError> {
    shared.gates.disk.check()?;
    let begun = std::time::Instant::now();
    let reader = Blocking::of(fetch.fetch(id).await?);
    let artifacts = shared.artifacts.clone();
    let incoming = blocking(move || artifacts.receive(reader)).await?;
    let found = &incoming.header().artifact().manifest.id;
    if found != id {
        return Err(FetchError::Another { found: found.clone() });
    }
    let bytes = incoming.missing_bytes();
    shared.gates.disk.check_with(bytes)?;
    let artifacts = shared.artifacts.clone();
    let unpacked = blocking(move || artifacts.unpack(incoming)).await?;
    tracing::info!(artifact = %id, bytes, ms = begun.elapsed().as_millis(), "an artifact came from another host");
    Ok(unpacked)
}
