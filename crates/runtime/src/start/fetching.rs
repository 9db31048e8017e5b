//! Reads an artifact, wherever it is: one that is on record and on another host is brought here first.
//!
//! Where nobody is said to bring any, this is a read of what is here, and nothing else.

use std::path::PathBuf;

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

/// The guest system's own root image, in the form of each engine: on a host that is new to its cluster nothing stands on it yet.
async fn own_images(shared: &Shared) -> Vec<PathBuf> {
    let root = shared.config.guest.now().root();
    let mut images = Vec::new();
    for engine in shared.launcher.engines.all() {
        match shared.config.images.in_form(root.clone(), engine.disks().image_form(), &|_| {}).await {
            Ok(image) => images.push(image.path),
            Err(error) => {
                tracing::debug!(error = chain(&error), "a root image is not looked for in a form that this host has not")
            }
        }
    }
    images
}

async fn bring(shared: &Shared, fetch: &dyn Fetch, id: &ArtifactId) -> Result<Unpacked, FetchError> {
    shared.gates.disk.check()?;
    let begun = std::time::Instant::now();
    let reader = Blocking::of(fetch.fetch(id).await?);
    let (artifacts, images) = (shared.artifacts.clone(), own_images(shared).await);
    let incoming = blocking(move || artifacts.receive_beside(reader, &images)).await?;
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
