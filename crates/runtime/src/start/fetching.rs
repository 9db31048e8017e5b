//! Reads an artifact, wherever it is: one that is on record and on another host is brought here first.
//!
//! So is one that is here and damaged, if there is a whole one elsewhere: that takes its place. Where nobody is said to bring any, this is a read of
//! what is here, and nothing else.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use firkin_causes::chain;
use futures::StreamExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    artifact::{
        AlreadyHere, Artifact, ArtifactStore, Fetch, FetchError, IntegrityError, Offered, Take,
        archive::{Blocking, Survey, UnpackError, Unpacked},
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

/// How often an artifact is tried to be brought from one place that breaks off, as long as each try brings more of it.
const TRIES: usize = 8;

/// Reads the sidecars of an artifact that the caller keeps from collection. Where somebody brings artifacts, one that is here is proven, too: what
/// is damaged is replaced by a whole one of another host's. One at a time is brought; who waits for the same one finds it. What has begun to come is
/// brought to its end, also when the caller goes away.
pub(crate) async fn load(shared: &Shared, id: &ArtifactId) -> Result<Artifact, IntegrityError> {
    let Some(fetch) = &shared.config.fetch else { return shared.artifacts.load(id) };
    if let Here::Intact(artifact) = here(shared, id).await? {
        return Ok(*artifact);
    }
    let turn = Arc::clone(&shared.fetching).lock_owned().await;
    let damage = match here(shared, id).await? {
        Here::Intact(artifact) => return Ok(*artifact),
        Here::Damaged(error) => Some(error),
        Here::Absent => None,
    };
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
            Err(damage.unwrap_or_else(|| IntegrityError::Elsewhere(Box::new(error))))
        }
    }
}

/// What there is of an artifact on this host.
enum Here {
    Intact(Box<Artifact>),
    Damaged(IntegrityError),
    Absent,
}

async fn here(shared: &Shared, id: &ArtifactId) -> Result<Here, IntegrityError> {
    if !shared.artifacts.is_here(id) {
        return Ok(Here::Absent);
    }
    let (artifacts, wanted) = (shared.artifacts.clone(), id.clone());
    let proven = move || {
        let artifact = artifacts.load(&wanted)?;
        artifacts.verify(&artifact).map(|()| artifact)
    };
    match blocking(proven).await {
        Ok(artifact) => Ok(Here::Intact(Box::new(artifact))),
        Err(error) if error.is_damage() => Ok(Here::Damaged(error)),
        Err(error) => Err(error),
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
    /// Has it come from the first place that has it as it must be. What breaks off is gone on with at the same place, as long as more of it comes.
    async fn bring(self, id: &ArtifactId) -> Result<Unpacked, FetchError> {
        self.disk.check()?;
        let begun = Instant::now();
        let (mut but, mut failed, mut tries) = (Vec::new(), None, 0);
        loop {
            let Offered { place, header, take } = match self.fetch.fetch(id, &but).await {
                Ok(offered) => offered,
                // What was wrong with it where it is says more than that nobody else has it.
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            let survey = self.survey(&header).await?;
            let (left, had_begun) = (survey.left(), !survey.begun().is_empty());
            let error = match self.receive(id, survey, take).await {
                Ok((unpacked, bytes)) => {
                    let ms = begun.elapsed().as_millis();
                    tracing::info!(artifact = %id, place, bytes, ms, "an artifact came from elsewhere");
                    return Ok(unpacked);
                }
                Err(error) if !error.is_of_its_place() => return Err(error),
                Err(error) => error,
            };
            tries += 1;
            // What was wrong may be what was here of it, which is gone by now.
            let is_anew = had_begun && matches!(error, FetchError::Unpack(UnpackError::Damaged { .. }));
            let goes_on = tries < TRIES && (is_anew || (error.is_cut() && self.survey(&header).await?.left() < left));
            tracing::warn!(artifact = %id, place, goes_on, error = chain(&error), "an artifact did not come whole");
            if !goes_on {
                self.fetch.failed(id, &place, &error).await;
                but.push(place);
                tries = 0;
            }
            failed = Some(error);
        }
    }

    /// What of it is here.
    async fn survey(&self, header: &Bytes) -> Result<Survey, FetchError> {
        wait_until_free(&self.artifacts).await;
        let (artifacts, images, header) = (self.artifacts.clone(), self.images.clone(), header.clone());
        Ok(blocking(move || artifacts.survey(&header, &images)).await?)
    }

    /// Has what is not here come, and takes it in. How many bytes that were.
    async fn receive(&self, id: &ArtifactId, survey: Survey, take: Take) -> Result<(Unpacked, u64), FetchError> {
        let coming = take(AlreadyHere { whole: survey.here(), begun: survey.begun() }).await?;
        let reader = Blocking::of(coming.take_until(self.stopping.clone().cancelled_owned()).boxed());
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
        Ok((unpacked, bytes))
    }
}
