//! A create, from top to bottom: from the name of a template to a sandbox with an owner.
//!
//! ```text
//!                                    ┌─► Claimed, of the warm pool ─┐
//!   PreparedTemplate ─► Found ─► Proven                             ├─► Launched ─► Recorded ─► its owner
//!                                    └─► Admitted ─► restored ──────┘
//! ```
//!
//! Each phase refuses before the next has any effect, and holds what goes back if that does not come about. A fork goes the same way,
//! from a state that was cut for it. A resume is a [start](crate::start) of the same phases; it has an owner already, and claims
//! nothing: what waits in the pool was never this sandbox.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_causes::chain;
use jiff::Timestamp;
use tokio::sync::oneshot;
use tracing::{Instrument as _, Span};

use crate::{
    capacity::{Shares, TeamQuotaError},
    ground::{
        ids::TemplateId,
        reference::{NoTemplate, Sought},
        team::Scope,
    },
    machine::{launch::FilesInMemory, outbound::OutboundError},
    restore::{Proven, SnapshotRestoreError},
    sandbox::{
        mounts::{self, MountsError},
        owner::{Continuation, Owner, Owners, check_timeout},
        trust::{GuestTrustError, is_filled},
    },
    shared::Shared,
    start::{Found, Launched, PreparedTemplate, life::Life, pool::Claimed},
    store::{
        StoreError,
        spec::{CreateSandbox, InvalidTimeout, Memory, OnTimeout, RuntimeSandbox, TooMuchMetadata},
    },
    telemetry::spawns::TOGETHER,
};

/// Why a sandbox was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is nothing to create it from.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// The timeout is zero or longer than may be asked for.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// Its labels are too long.
    #[error(transparent)]
    Metadata(#[from] TooMuchMetadata),
    /// Its deadline asks for what this engine cannot keep.
    #[error(transparent)]
    FilesInMemory(#[from] FilesInMemory),
    /// Its outbound rules cannot be kept.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// It cannot have its volumes.
    #[error(transparent)]
    Volumes(#[from] MountsError),
    /// The team has as much as it may.
    #[error(transparent)]
    TeamQuota(TeamQuotaError),
    /// The restore failed.
    #[error("sandbox cannot be started from template `{template}`")]
    Restore {
        /// The template.
        template: String,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// It does not trust the authority that its rules need.
    #[error(transparent)]
    Trust(#[from] GuestTrustError),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the sandbox")]
    Store(#[source] StoreError),
}

/// Creates a sandbox for `scope`, of a template or a snapshot that it may start from. A caller that goes away before it is recorded ends this, in the queue for
/// capacity or later; who goes away after that has a sandbox that nobody knows, and that ends at once.
pub(crate) async fn create(
    owners: &Arc<Owners>,
    scope: &Scope,
    mut request: CreateSandbox,
) -> Result<RuntimeSandbox, CreateError> {
    let begun = Instant::now();
    let shared = &owners.shared;
    check_timeout(request.timeout).map_err(CreateError::InvalidTimeout)?;
    request.check_metadata()?;
    if shared.stopping.is_cancelled() {
        return Err(CreateError::Stopping);
    }
    request.internet = request.internet.of_team(scope.owner(), &request.tokens);
    if is_filled(&request.internet) {
        // Programs that bring authorities of their own are told of the guest's.
        let mut env = shared.config.authority_variables.clone();
        env.append(&mut request.env);
        request.env = env;
    }
    shared.links.check(&request.internet).await?;
    let template = find(shared, scope, &request.template).await?;
    if request.on_timeout == OnTimeout::PauseFiles {
        shared.demand_disk(&template.artifact.manifest.engine)?;
    }
    let volumes = mounts::resolve(shared, scope, &mut request.volumes).await?;
    let budget = template.artifact.manifest.budget;
    let taken = shared.teams.take(&scope.owner(), 1, budget, begun).map_err(CreateError::TeamQuota)?;
    let life = Life::first(&template, scope.owner(), request);
    let PreparedTemplate { record, artifact, pin } = template;
    let found = Found::new(life, artifact, pin, begun).holding(volumes);
    let found = taken.into_iter().fold(found, Found::with_shares);
    let created = SandboxCreate::begin(owners, found).await?;
    count(shared, record.id);
    Ok(created)
}

/// Creates sandboxes that are what another was when it was cut, as many as their team gave for. One result for each.
pub(crate) async fn fork(
    owners: &Arc<Owners>,
    cut: &Continuation,
    shares: Vec<Shares>,
    timeout: Duration,
) -> Vec<Result<RuntimeSandbox, CreateError>> {
    let children = shares.into_iter().map(|shares| {
        let begun = Instant::now();
        let pin = owners.shared.artifacts.pin(cut.artifact.manifest.id.clone());
        let life = Life::of_fork(&cut.record, &cut.artifact.manifest, timeout);
        let volumes = mounts::hold(&owners.shared, &cut.record.spec.volumes);
        SandboxCreate::begin(owners, Found::new(life, cut.artifact.clone(), pin, begun).holding(volumes).with_shares(shares))
    });
    futures::future::join_all(children).await
}

/// What a reference leads to, with its artifact.
#[tracing::instrument(level = "debug", name = "phase", skip_all, fields(name = "find"))]
async fn find(shared: &Shared, scope: &Scope, reference: &str) -> Result<PreparedTemplate, CreateError> {
    let sought = Sought::wanted(reference)?;
    let found = shared.store.usable_template(scope.clone(), sought).await.map_err(CreateError::Store)?;
    let record = NoTemplate::unless_found(reference, found)?;
    let template = record.id.to_string();
    PreparedTemplate::load(shared, record).await.map_err(|source| CreateError::Restore { template, source })
}

/// A create that is under way, for whoever waits at the other end.
struct SandboxCreate {
    owners: Arc<Owners>,
    creator: oneshot::Sender<Result<RuntimeSandbox, CreateError>>,
    /// Of whoever asked for it. What the sandbox does afterwards is not part of that.
    span: Span,
}

impl SandboxCreate {
    /// Starts what was found in a task that becomes its owner.
    fn begin(owners: &Arc<Owners>, found: Found) -> impl Future<Output = Result<RuntimeSandbox, CreateError>> + use<> {
        let (creator, answer) = oneshot::channel();
        let create = Self { owners: Arc::clone(owners), creator, span: Span::current() };
        owners.shared.tasks.spawn(create.run(found));
        // A task that is gone without an answer went with its runtime.
        async move { answer.await.unwrap_or(Err(CreateError::Stopping)) }
    }

    /// From what was found to the sandbox's end.
    async fn run(mut self, found: Found) {
        let template = found.life.template_id.to_string();
        let launched = tokio::select! {
            // Apart: this task lives as long as the sandbox, and would keep the room of a launch that is over.
            launched = Box::pin(launch(&self.owners, found).instrument(self.span.clone())) => launched.map_err(|source| CreateError::Restore { template, source }),
            () = self.owners.shared.stopping.cancelled() => Err(CreateError::Stopping),
            // Nobody hears why there is no sandbox.
            () = self.creator.closed() => return,
        };
        let recorded = match launched {
            Ok(launched) => launched.record(&self.owners.shared).instrument(self.span.clone()).await.map_err(CreateError::Store),
            Err(error) => Err(error),
        };
        match recorded {
            Ok(recorded) => {
                let owner = Owner::of_created(&self.owners, recorded);
                self.hand_over(owner).await;
            }
            Err(error) => drop(self.creator.send(Err(error))),
        }
    }

    /// Gives the sandbox to its creator, and goes on as its owner.
    async fn hand_over(self, owner: Owner) {
        drop(self.span);
        // Who stops the runtime tells those that it finds: one that has come too late to be found ends by itself.
        if self.owners.shared.stopping.is_cancelled() {
            owner.end("the server is stopping").await;
            drop(self.creator.send(Err(CreateError::Stopping)));
        } else if self.creator.send(Ok(owner.shown())).is_err() {
            owner.end("its creator went away").await;
        } else {
            Box::pin(owner.run()).await;
        }
    }
}

/// Makes a session of what was found, in the order of every restore: compatibility, integrity, disk floor, capacity, launch. What waits
/// in the pool has had its capacity and most of its launch.
async fn launch(owners: &Owners, found: Found) -> Result<Launched, SnapshotRestoreError> {
    let shared = &owners.shared;
    let found = found.with_memory(shared, Memory::Kept).await?;
    let _creating = owners.pool.begin_create();
    let proven = Proven::prove(found.request(), &shared.gates).await?;
    let (report, claimed) = match owners.pool.claim(proven).await {
        Ok(Claimed { report, stage }) => (report, Some(stage)),
        Err(proven) => (proven.admit(&shared.gates).await?.launch(&shared.launcher).await?, None),
    };
    Ok(found.launched(shared, report, claimed))
}

/// Counts a sandbox of a template.
fn count(shared: &Arc<Shared>, template: TemplateId) {
    if !shared.spawns.add(template, Timestamp::now()) {
        return;
    }
    let writer = Arc::clone(shared);
    shared.tasks.spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TOGETHER) => {}
                () = writer.stopping.cancelled() => {}
            }
            let counts = writer.spawns.take();
            if counts.is_empty() {
                return;
            }
            if let Err(error) = writer.store.count_spawns(counts.clone()).await {
                tracing::warn!(error = chain(&error), "cannot count sandboxes of templates");
                // Nothing is counted twice.
                let counts = if matches!(error, StoreError::Unknown { .. }) { HashMap::new() } else { counts };
                return writer.spawns.put_back(counts);
            }
        }
    });
}
