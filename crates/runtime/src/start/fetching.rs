//! Reads an artifact, wherever it is: one that is on record and on another host is brought here first.
//!
//! Where nobody is said to bring any, this is a read of what is here, and nothing else.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_causes::chain;
use futures::StreamExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::{
        Artifact, ArtifactStore, Fetch, FetchError, IntegrityError, Offered,
        archive::{Blocking, UnpackError, Unpacked},
    },
    ground::{
        blocking::{blocking, whole},
        ids::ArtifactId,
    },
    host::disk::DiskPressureGuard,
    shared::Shared,
};

/// How long an import of somebody's is waited for: one archive is taken in at a time.
const IMPORT_WITHIN: Duration = Duration::from_secs(60);

/// Between two looks at whether it has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Reads the sidecars of an artifact that the caller keeps from collection. One at a time is brought; who waits for the same one finds it. What
/// has begun to come is brought to its end, also when the caller goes away.
pub(crate) async fn load(shared: &Shared, id: &ArtifactId) -> Result<Artifact, IntegrityError> {
    let Some(fetch) = &shared.config.fetch else { return shared.artifacts.load(id) };
    if shared.artifacts.is_here(id) {
        return shared.artifacts.load(id);
    }
    let turn = Arc::clone(&shared.fetching).lock_owned().await;
    if shared.artifacts.is_here(id) {
        return shared.artifacts.load(id);
    }
    let bringing = Bringing {
        fetch: Arc::clone(fetch),
        artifacts: shared.artifacts.clone(),
        disk: shared.gates.disk.clone(),
        images: own_images(shared).await,
        stopping: shared.stopping.clone(),
    };
    let brought = id.clone();
    let brought = whole(shared.tasks.spawn(async move {
        let _turn = turn;
        let stopped = bringing.stopping.clone();
        tokio::select! {
            brought = bringing.bring(&brought) => brought,
            () = stopped.cancelled() => Err(FetchError::Away { place: "this server is stopping".to_owned(), source: None }),
        }
    }));
    match brought.await {
        Ok(unpacked) => Ok(unpacked.artifact),
        Err(error) => {
            tracing::warn!(artifact = %id, error = chain(&error), "an artifact did not come from where it is");
            Err(IntegrityError::Elsewhere(Box::new(error)))
        }
    }
}

/// Waits a while for whoever takes an archive in, where artifacts come from other hosts: that is much of the time then.
pub(crate) async fn wait_for_imports(shared: &Shared) {
    if shared.config.fetch.is_some() {
        wait_until_free(&shared.artifacts).await;
    }
}

async fn wait_until_free(artifacts: &ArtifactStore) {
    let begun = Instant::now();
    while artifacts.is_importing() && begun.elapsed() < IMPORT_WITHIN {
        sleep(LOOK_EVERY).await;
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

/// What bringing an artifact takes.
struct Bringing {
    fetch: Arc<dyn Fetch>,
    artifacts: ArtifactStore,
    disk: DiskPressureGuard,
    images: Vec<PathBuf>,
    stopping: CancellationToken,
}

impl Bringing {
    async fn bring(self, id: &ArtifactId) -> Result<Unpacked, FetchError> {
        self.disk.check()?;
        let begun = Instant::now();
        wait_until_free(&self.artifacts).await;
        let Offered { header, take } = self.fetch.fetch(id).await?;
        let (artifacts, images) = (self.artifacts.clone(), self.images);
        let survey = blocking(move || artifacts.survey(&header, &images)).await?;
        let coming = take(survey.here()).await?.take_until(self.stopping.clone().cancelled_owned()).boxed();
        let reader = Blocking::of(coming);
        let incoming = blocking(move || survey.receive(reader)).await?;
        let found = &incoming.header().artifact().manifest.id;
        if found != id {
            return Err(FetchError::Another { found: found.clone() });
        }
        let bytes = incoming.missing_bytes();
        self.disk.check_with(bytes)?;
        let artifacts = self.artifacts.clone();
        let unpacked =
            blocking(move || artifacts.unpack(incoming)).await.map_err(|error: UnpackError| FetchError::from(error))?;
        tracing::info!(artifact = %id, bytes, ms = begun.elapsed().as_millis(), "an artifact came from another host");
        Ok(unpacked)
    }
}
