//! What a build stands on: an image or a template, as a state of the wanted shape that steps can go on from.
//!
//! A template of that shape, in which nothing of its own has been started, is such a state. Everything else is booted once and the
//! result kept: an image, a template of another shape, and one with a start command, which would otherwise run on beneath the
//! build's own. What is kept is named by digests, so it is never stale, and a forced build uses it too.

use std::sync::Arc;

use firkin_engine::{Acceleration, Engine, Processor, Shape};
use firkin_wire::rest::LogLevel;

use super::{
    Source,
    cache::{self, Found},
    command::Shell,
    error::{BuildFailure, CommandFailed},
    log::{BASE, BuildLog},
    machine::{self, BuildMachine, Origin},
    provision::Script,
    ready::{self, Ready},
    registry::Builds,
};
use crate::{
    artifact::{Artifact, DiskMembers, MemoryMember},
    ground::{
        blocking::blocking,
        reference::{NoTemplate, Sought, TemplateName},
        team::{Scope, TeamId},
    },
    images::{BuildImage, ImageRequest, root_image::RootImage, standard::BuildTemplate},
    restore::SnapshotRestoreError,
    shared::Shared,
    start::{boot::Booted, fetching},
    store::{Defaults, TemplateRecord},
};

/// A state to go on from, and what its template has that the build's own may inherit.
pub(super) struct Prepared {
    /// Names all that it was made of.
    pub(super) key: String,
    pub(super) found: Found,
    pub(super) inherited: Inherited,
}

/// What a template passes on.
#[derive(Debug, Clone, Default)]
pub(super) struct Inherited {
    /// Its start command, which does not run in the state.
    pub(super) start: Option<String>,
    /// What says that this is ready.
    pub(super) ready: Option<String>,
    /// What runs once in every warm session.
    pub(super) warm_up: Option<String>,
}

/// What a source turned out to be.
pub(super) enum Resolved<'a> {
    /// A template of the host's own, to be made whole.
    Standard(Box<BuildTemplate>),
    /// What steps are put on, layer by layer.
    Layered(Layered<'a>),
}

/// What steps are put on.
pub(super) enum Layered<'a> {
    /// An image, as it is now.
    Image(&'a ImageRequest, BuildImage),
    /// A template.
    Template(Box<TemplateRecord>),
}

/// Looks the source up for a team.
pub(super) async fn resolve<'a>(
    shared: &Shared,
    owner: &TeamId,
    source: &'a Source,
    log: &BuildLog,
) -> Result<Resolved<'a>, BuildFailure> {
    match source {
        Source::Standard(template) => Ok(Resolved::Standard(template.clone())),
        Source::Image(request) => {
            log.info(format!("Getting image {}", request.reference));
            let report = |line: &str| log.push(LogLevel::Debug, line);
            let mut image = shared.config.images.image(request, &report).await?;
            Ok(match image.standard.take() {
                Some(template) => Resolved::Standard(template),
                None => Resolved::Layered(Layered::Image(request, image)),
            })
        }
        Source::Template(reference) => {
            let (scope, sought) = (Scope::Team(owner.clone()), Sought::wanted(reference)?);
            let found = shared.store.usable_template(scope, sought).await.map_err(BuildFailure::Store)?;
            let record = NoTemplate::unless_found(reference, found)?;
            Ok(Resolved::Layered(Layered::Template(Box::new(record))))
        }
    }
}

/// A root image as this engine has them.
pub(super) async fn in_form(
    shared: &Shared,
    root: RootImage,
    engine: &dyn Engine,
    log: &BuildLog,
) -> Result<RootImage, BuildFailure> {
    let report = |line: &str| log.push(LogLevel::Debug, line);
    Ok(shared.config.images.in_form(root, engine.disks().image_form(), &report).await?)
}

/// Gives the state, booting it if nobody has before.
pub(super) async fn prepare(
    builds: &Builds,
    source: Layered<'_>,
    wanted: &Wanted,
    log: &BuildLog,
) -> Result<Prepared, BuildFailure> {
    match source {
        Layered::Image(request, image) => of_image(builds, &request.reference, image, wanted, log).await,
        Layered::Template(record) => of_template(builds, *record, wanted, log).await,
    }
}

/// What the machine of a build is to be.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) shape: Shape,
    pub(super) processor: Processor,
    /// None: as the source's, or the first of the host's.
    pub(super) engine: Option<Acceleration>,
}

/// What is the same for every state that is booted here.
fn key(
    shared: &Shared,
    kind: &str,
    source: &impl serde::Serialize,
    (engine, shape, processor): (&dyn Engine, Shape, Processor),
) -> String {
    let guest = shared.config.guest.now();
    cache::key(&(
        "source-v1",
        kind,
        source,
        (shape.vcpus, shape.memory_mib),
        Shared::boot_files(engine, &guest).key(),
        engine.compatibility().fingerprint(processor).kind(),
    ))
}

async fn of_image(
    builds: &Builds,
    reference: &str,
    image: BuildImage,
    &Wanted { shape, processor, engine }: &Wanted,
    log: &BuildLog,
) -> Result<Prepared, BuildFailure> {
    let BuildImage { root, provisioned, env, standard: _ } = image;
    let engine = Arc::clone(builds.shared.launcher.engines.asked(engine)?);
    let root = in_form(&builds.shared, root, &*engine, log).await?;
    let key = key(&builds.shared, "image", &(&root, provisioned, &env), (&*engine, shape, processor));
    let origin = Origin {
        engine,
        name: reference.to_owned(),
        shape,
        processor,
        disk_mib: root.bytes >> 20,
        members: DiskMembers { rootfs: root.digest, rootfs_path: root.path, layers: Vec::new() },
    };
    let context = Defaults { env, ..Defaults::default() }.of_builds();
    let work = async |shell: Shell<'_>| if provisioned { Ok(()) } else { provision(&shell).await };
    let title = format!("FROM {reference}");
    let found = booted(builds, &key, context, async || Ok(origin), (log, &title, work)).await?;
    Ok(Prepared { key, found, inherited: Inherited::default() })
}

async fn of_template(builds: &Builds, record: TemplateRecord, wanted: &Wanted, log: &BuildLog) -> Result<Prepared, BuildFailure> {
    let shared = &builds.shared;
    let title = format!("FROM TEMPLATE {}", record.base_name().map_or(record.id.as_str(), TemplateName::as_str));
    let pin = shared.artifacts.pin(record.artifact.clone());
    let damaged = |source| BuildFailure::Artifact { artifact: record.artifact.clone(), source };
    let artifact = fetching::load(shared, &record.artifact).await.map_err(damaged)?;
    let context = record.setup.defaults.clone().of_builds();
    let inherited =
        Inherited { start: record.setup.start.clone(), ready: record.setup.ready.clone(), warm_up: record.warm_up.clone() };
    let manifest = &artifact.manifest;
    // What stands on a template whose guests may run guests may, too.
    let own = shared.gates.engine(&manifest.engine).processor(&manifest.engine).unwrap_or_default();
    let processor = if wanted.processor == Processor::Nested { wanted.processor } else { own };
    let engine = match wanted.engine {
        None => shared.launcher.engines.of(&manifest.engine),
        wanted => shared.launcher.engines.asked(wanted)?,
    };
    let (engine, shape) = (Arc::clone(engine), wanted.shape);
    let as_it_is = manifest.shape == shape
        && processor == own
        && inherited.start.is_none()
        && manifest.memory != MemoryMember::Absent
        && engine.compatibility().processor(&manifest.engine).is_ok()
        && shared.gates.check_compatible(manifest).is_ok();
    if as_it_is {
        let key = cache::key(&("template-v1", &record.artifact, &context));
        log.part(true, BASE, &title, &key);
        return Ok(Prepared { key, found: Found { context, artifact, pin }, inherited });
    }
    let key = key(shared, "template", &(&record.artifact, &context), (&*engine, shape, processor));
    let name = record.id.to_string();
    let origin = async || {
        if engine.disks().holds_writes()
            || !engine.compatibility().processor(&artifact.manifest.engine).is_ok_and(|_| !artifact.is_sealed())
        {
            return disk_origin(shared, artifact, name, (engine, shape, processor)).await;
        }
        let disk_mib = artifact.manifest.budget.disk_mib;
        let mut machine = BuildMachine::restore(shared, artifact, log).await?;
        let folded = machine.folded(log).await;
        machine.end().await;
        let root = folded?;
        let members = DiskMembers { rootfs: root.digest, rootfs_path: root.path, layers: Vec::new() };
        Ok(Origin { engine, name, shape, processor, disk_mib, members })
    };
    // What the guest itself starts must have come up before it is cut; what the start command starts comes later.
    let ready = if inherited.start.is_none() { inherited.ready.clone().or(inherited.warm_up.clone()) } else { None };
    let work = async |shell: Shell<'_>| match ready {
        Some(ready) => ready::until_ready(&shell, &Defaults::default().of_builds(), Ready::of(&ready)).await,
        None => Ok(()),
    };
    let found = booted(builds, &key, context, origin, (log, &title, work)).await?;
    drop(pin);
    Ok(Prepared { key, found, inherited })
}

/// The disk of a template, proven, as something to boot.
async fn disk_origin(
    shared: &Shared,
    artifact: Artifact,
    name: String,
    (engine, shape, processor): (Arc<dyn Engine>, Shape, Processor),
) -> Result<Origin, BuildFailure> {
    shared.demand_disk(&artifact.manifest.engine).map_err(|error| BuildFailure::Restore(error.into()))?;
    if shared.launcher.engines.its_own(&artifact.manifest.engine).is_none_or(|its| its.disks() != engine.disks()) {
        let (of, wanted) = (artifact.manifest.engine.acceleration, engine.fingerprint().acceleration);
        return Err(BuildFailure::OtherDisk { of, wanted });
    }
    let artifact = artifact.without_memory();
    let (store, disk) = (shared.artifacts.clone(), artifact.clone());
    blocking(move || store.verify(&disk))
        .await
        .map_err(|source| SnapshotRestoreError::Integrity { artifact: artifact.manifest.id.clone(), source })
        .map_err(BuildFailure::Restore)?;
    Ok(Origin { engine, name, shape, processor, disk_mib: artifact.manifest.budget.disk_mib, members: artifact.manifest.disk })
}

/// The kept state of this key, or what comes of booting the origin and doing the work. One build does it, the others wait.
async fn booted(
    builds: &Builds,
    key: &str,
    context: Defaults,
    origin: impl AsyncFnOnce() -> Result<Origin, BuildFailure>,
    (log, title, work): (&BuildLog, &str, impl AsyncFnOnce(Shell<'_>) -> Result<(), BuildFailure>),
) -> Result<Found, BuildFailure> {
    let shared = &builds.shared;
    let turn = builds.turn(key);
    let _turn = turn.lock().await;
    let found = cache::find(shared, key).await.map_err(BuildFailure::Store)?;
    log.part(found.is_some(), BASE, title, key);
    if let Some(found) = found {
        return Ok(found);
    }
    let worked = async |booted: &mut Booted, shell: Shell<'_>| {
        let report = |line: &str| log.info(line);
        booted.while_it_lives(Box::pin(work(shell))).await??;
        Ok(booted.cut(&report).await?)
    };
    let (artifact, pin) = machine::boot(shared, Box::pin(origin()).await?, log, worked).await?;
    cache::keep(shared, key.to_owned(), &artifact.manifest.id, context.clone()).await.map_err(BuildFailure::Store)?;
    Ok(Found { context, artifact, pin })
}

/// Makes a sandbox's guest of an image that was made for something else.
async fn provision(shell: &Shell<'_>) -> Result<(), BuildFailure> {
    shell.log.info("Provisioning sandbox template");
    match shell.script(Script::Provision, "root", &[]).await {
        Ok(said) => {
            for line in String::from_utf8_lossy(&said).lines() {
                shell.log.push(LogLevel::Warn, line);
            }
            Ok(())
        }
        Err(CommandFailed::Said(line)) => Err(BuildFailure::Provision(line)),
        Err(CommandFailed::Refused { code, .. }) if code == "unauthenticated" => {
            Err(BuildFailure::Provision("it has no user `root` in `/etc/passwd`".to_owned()))
        }
        Err(CommandFailed::Refused { message, .. }) => {
            Err(BuildFailure::Provision(format!("it has no `/bin/bash` that runs, which sandboxes need ({message})")))
        }
        Err(source) => Err(BuildFailure::Step { what: "prepare the image".to_owned(), source }),
    }
}
