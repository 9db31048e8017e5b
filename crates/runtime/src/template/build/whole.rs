//! One of the host's own templates: booted once, with all that is done in it, and cut whole, so that nothing else's memory lies under
//! it. What most sandboxes are restored from deserves that.

use std::sync::Arc;

use firkin_engine::{Engine, Fingerprint, Shape};
use firkin_wire::control;
use tokio::sync::OwnedMutexGuard;

use super::{
    BuildPlan, StepSpec,
    cache::{self, Found},
    command::Shell,
    error::BuildFailure,
    log::{BASE, FINALIZE},
    machine::{self, Origin},
    ready::{self, READY_DEADLINE, Ready},
    registry::{Builds, Live},
    room::Room,
    source,
    step::{self, Step},
};
use crate::{
    artifact::{DiskMembers, FORMAT},
    capacity::SandboxShare,
    ground::{reference::TemplateName, team::Scope},
    images::{root_image::RootImage, standard::BuildTemplate},
    machine::guest_file,
    shared::Shared,
    start::{boot::Booted, fetching},
    store::Defaults,
};

/// The digest of all that a template depends on. Equal ones make templates that stand for each other.
pub(crate) fn recipe(shared: &Shared, template: &BuildTemplate) -> String {
    let guest = shared.config.guest.now();
    let engine = shared.launcher.engines.asked(template.engine).unwrap_or(shared.launcher.engines.first());
    // Hosts that share a catalogue have each made kernel and root image by themselves, and no two are the same byte for byte: what one has
    // built of its own is as good as what another would.
    let is_alone = shared.config.fetch.is_none();
    let boot = Shared::boot_files(&**engine, &guest);
    let all = serde_json::json!({
        "format": FORMAT, "generation": control::GENERATION, "engine": engine.compatibility().fingerprint(template.processor()).kind(), "build": template,
        "boot": is_alone.then(|| boot.key()), "rootfs": is_alone.then_some(&guest.rootfs_digest),
    });
    blake3::hash(all.to_string().as_bytes()).to_hex().to_string()
}

/// The recipe of a template with what a build adds to it.
fn recipe_of(shared: &Shared, template: &BuildTemplate, steps: &[StepSpec]) -> String {
    steps.iter().fold(recipe(shared, template), |before, step| cache::after(&before, step))
}

/// What came of a build of one of the host's own templates.
pub(super) struct Whole {
    pub(super) found: Found,
    pub(super) template: BuildTemplate,
    pub(super) recipe: String,
    /// Held until it is on record.
    pub(super) turn: OwnedMutexGuard<()>,
}

/// Makes the template, or finds it made of the same parts under the name that the build asks for.
pub(super) async fn build(
    builds: &Builds,
    live: &Live,
    (plan, share): (&BuildPlan, &mut SandboxShare),
    template: BuildTemplate,
) -> Result<Whole, BuildFailure> {
    let shared = &builds.shared;
    let template = asked(template, plan, live);
    let engine = Arc::clone(shared.launcher.engines.asked(template.engine)?);
    let recipe = recipe_of(shared, &template, &plan.steps);
    let title = format!("TEMPLATE {}", template.name);
    // Who builds the same at once waits, and finds it made, unless it is to be made anew whatever there is.
    let turn = builds.turn(&recipe).lock_owned().await;
    // How much is free is not kept with a template: few ask.
    let room = Room { asked_mib: live.record.min_free_disk_mib };
    let forced = plan.force || plan.steps.iter().any(|step| step.force);
    let found = if forced || room.asked() { None } else { known(shared, live, &recipe).await? };
    live.log.part(found.is_some(), BASE, &title, &recipe);
    if let Some(found) = found {
        live.log.enter(FINALIZE);
        live.log.part(true, FINALIZE, "Finalizing template build", &recipe);
        return Ok(Whole { found, template, recipe, turn });
    }
    let root = template.root.clone().unwrap_or_else(|| shared.config.guest.now().root());
    let Fingerprint { program, version, .. } = engine.fingerprint();
    live.log.info(format!("made with {} {version}", program.as_deref().unwrap_or("engine")));
    let root = source::in_form(shared, root, &*engine, &live.log).await?;
    room.possible(root.bytes >> 20)?;
    share.take_disk(root.bytes >> 20)?;
    let making = Making { shared, live, plan, template: &template, recipe: &recipe, room, disk_bytes: root.bytes };
    let mut context = Defaults::default();
    let work = async |booted: &mut Booted, shell: Shell<'_>| {
        context = making.make(booted, &shell).await?;
        Ok(())
    };
    let (artifact, pin) = machine::boot(shared, origin(engine, &template, root), &live.log, work).await?;
    Ok(Whole { found: Found { context, artifact, pin }, template, recipe, turn })
}

/// The template with what the build asks for instead.
fn asked(template: BuildTemplate, plan: &BuildPlan, live: &Live) -> BuildTemplate {
    let given = |command: &Option<String>| command.clone().filter(|command| !command.is_empty());
    let ready = given(&plan.ready);
    let own_ready = ready.is_none() || ready == template.ready;
    BuildTemplate {
        name: live.record.name.as_ref().map(TemplateName::to_string).unwrap_or_default(),
        cpus: live.record.cpus,
        memory_mib: live.record.memory_mib,
        nested_virtualization: template.nested_virtualization || plan.nested_virtualization,
        engine: plan.engine.or(template.engine),
        start: given(&plan.start).or(template.start),
        ready: ready.or(template.ready),
        // How long the template's own takes is known.
        ready_deadline: if own_ready { template.ready_deadline } else { READY_DEADLINE },
        ..template
    }
}

/// What stands for one of the build's names already, if it was made of the same parts.
async fn known(shared: &Shared, live: &Live, recipe: &str) -> Result<Option<Found>, BuildFailure> {
    for name in live.record.names() {
        let Some(record) =
            shared.store.template(Scope::Team(live.record.owner.clone()), name).await.map_err(BuildFailure::Store)?.found()
        else {
            continue;
        };
        let pin = shared.artifacts.pin(record.artifact.clone());
        if record.recipe.as_deref() != Some(recipe) || !fetching::is_usable(shared, &record.artifact).await {
            continue;
        }
        if let Ok(artifact) = shared.artifacts.load(&record.artifact) {
            return Ok(Some(Found { context: record.setup.defaults, artifact, pin }));
        }
    }
    Ok(None)
}

fn origin(engine: Arc<dyn Engine>, template: &BuildTemplate, root: RootImage) -> Origin {
    Origin {
        engine,
        name: template.name.clone(),
        shape: Shape { vcpus: template.cpus, memory_mib: template.memory_mib },
        processor: template.processor(),
        disk_mib: root.bytes >> 20,
        members: DiskMembers { rootfs: root.digest, rootfs_path: root.path, layers: Vec::new() },
    }
}

/// A template that is being made.
struct Making<'a> {
    shared: &'a Shared,
    live: &'a Live,
    plan: &'a BuildPlan,
    template: &'a BuildTemplate,
    recipe: &'a str,
    room: Room,
    disk_bytes: u64,
}

impl Making<'_> {
    fn ready(&self) -> Option<Ready<'_>> {
        let command = self.template.ready.as_deref()?;
        Some(Ready { command, deadline: self.template.ready_deadline })
    }

    /// From a machine that came up to one that is cut. Gives what its sandboxes begin with.
    async fn make(&self, booted: &mut Booted, shell: &Shell<'_>) -> Result<Defaults, BuildFailure> {
        let report = |line: &str| shell.log.info(line);
        let context = booted.while_it_lives(Box::pin(self.prepare(shell))).await??;
        shell.log.enter(FINALIZE);
        shell.log.part(false, FINALIZE, "Finalizing template build", self.recipe);
        let finalized = ready::finalize(shell, &context, self.template.start.as_deref(), self.ready());
        // What runs goes on without anybody listening, here and in the snapshot.
        drop(booted.while_it_lives(Box::pin(finalized)).await??);
        booted.shrink(&report).await?;
        // Once more: the files that it reads are in the snapshot's page cache then, where all clones share them. Without, each clone
        // would read and keep them for itself.
        if let Some(ready) = self.ready() {
            booted.while_it_lives(Box::pin(ready::until_ready(shell, &context, ready))).await??;
        }
        self.room.check(async { Ok(booted.free_disk_bytes().await?) }, shell.log).await?;
        let untouched = self.template.setup.is_empty() && self.plan.steps.is_empty();
        if untouched && self.template.start.is_none() && self.template.ready.is_none() {
            booted.cut(&report).await?;
        } else {
            booted.cut_at_rest(&report).await?;
        }
        Ok(context)
    }

    /// Files, the template's own commands, then the steps of the build. Gives what these leave to those who come after.
    async fn prepare(&self, shell: &Shell<'_>) -> Result<Defaults, BuildFailure> {
        let as_root = |script: String| Step::Run { command: script, user: Some("root".to_owned()) };
        let mut context = Defaults { env: self.template.env.clone(), ..Defaults::default() };
        let files = self.shared.files.of(&self.live.record.owner);
        let mut run = async |step: Step| -> Result<(), BuildFailure> {
            context = step.run(shell, &context, &files, self.disk_bytes).await?;
            Ok(())
        };
        for file in &self.template.files {
            shell.log.info(format!("writing {}", file.path));
            guest_file::put(&shell.connector, file).await.map_err(BuildFailure::File)?;
            run(as_root(file.permit())).await?;
        }
        for script in &self.template.setup {
            shell.log.info(format!("running: {script}"));
            run(as_root(script.clone())).await?;
        }
        for (index, spec) in self.plan.steps.iter().enumerate() {
            let (number, steps) = (index + 1, self.plan.steps.len());
            self.live.log.enter(number.to_string());
            shell.log.part(false, &format!("builder {number}/{steps}"), &step::title(spec), &cache::after(self.recipe, spec));
            run(Step::parse(spec)?).await?;
        }
        Ok(context)
    }
}
