//! One build from its start to its end, whatever that is.
//!
//! Everything that it holds is a guard: a build that is cancelled, or whose server stops, is dropped where it stands, and its machine,
//! drafts and capacity go with it.

use std::sync::Arc;

use firkin_causes::chain;
use firkin_engine::Shape;
use firkin_wire::rest::LogLevel;
use jiff::Timestamp;
use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{
    BuildPlan, StepSpec,
    cache::{self, Found},
    error::BuildFailure,
    log::{BASE, BuildLog, FINALIZE},
    machine::BuildMachine,
    ready::{self, Ready},
    record::{self, Finished},
    registry::{self, Builds, Live},
    room::Room,
    source::{self, Inherited, Prepared, Resolved, Wanted},
    step::{self, Step},
    whole::{self, Whole},
};
use crate::{
    artifact::{Artifact, Pin},
    capacity::{SandboxShare, Shares},
    ground::team::TeamId,
    machine::session::After,
    shared::Shared,
    store::{BuildReason, BuildRecord, BuildState, Defaults, TemplateRecord},
    telemetry::{
        changes::{BuildEvent, What},
        metrics::Timing,
    },
    upkeep::disk_budget,
};

/// Runs a build, which holds these shares of its team's until it has ended, and records how it did.
pub(crate) async fn run(builds: Arc<Builds>, live: Arc<Live>, plan: BuildPlan, mut shares: Shares) {
    let shared = &builds.shared;
    let begun = Instant::now();
    // Whatever becomes of this: who waits for the end hears of it.
    let _ends = Ends { builds: &builds, live: &live };
    live.log.enter(BASE);
    live.log.info(format!("Building template {}/{}", live.record.template_id, live.record.id));
    let outcome = tokio::select! {
        outcome = Box::pin(build(&builds, &live, &plan, &mut shares.sandbox)) => outcome,
        () = live.cancel.cancelled() => Err(BuildFailure::Cancelled),
        () = live.abandoned.cancelled() => Err(BuildFailure::Abandoned),
        () = live.crowded_out.cancelled() => Err(BuildFailure::CrowdedOut),
        () = shared.stopping.cancelled() => Err(BuildFailure::Stopping),
    };
    if outcome.is_ok() {
        shared.metrics.observe(Timing::ColdTemplateBuild, begun.elapsed());
    }
    if matches!(outcome, Err(BuildFailure::Cancelled)) {
        // Whoever cancelled it has removed its record.
        builds.end(&live);
        tell(shared, &live.record, BuildEvent::Cancelled);
        shared.collect();
        return;
    }
    let mut record = live.record.clone();
    let now = Timestamp::now();
    (record.updated_at, record.finished_at) = (now, Some(now));
    let made = match outcome {
        Ok(made) => {
            record.state = BuildState::Ready;
            record.disk_mib = Some(made.became.budget.disk_mib);
            live.log.info(format!("Build finished, took {:.1}s", begun.elapsed().as_secs_f64()));
            Some(made)
        }
        Err(failure) => {
            tracing::info!(build = %record.id, error = chain(&failure), "a template build failed");
            let message = failure.told();
            record.state = BuildState::Error;
            live.log.push(LogLevel::Error, &format!("Build failed: {message}"));
            record.reason = Some(BuildReason { message, step: live.log.step() });
            None
        }
    };
    let (became, held) = made.map(|Made { became, pin, turn }| (became, (pin, turn))).unzip();
    // In one piece: a build that is told as failed has changed nothing, wherever a crash cuts it off.
    let event = if became.is_some() { BuildEvent::Ready } else { BuildEvent::Failed };
    let event = match shared.store.end_build(record.clone(), live.log.entries(), became).await {
        Ok(true) => event,
        // Its template was deleted just now.
        Ok(false) => BuildEvent::Cancelled,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot record how a build ended");
            let message = "the server could not record how the build ended".to_owned();
            record.reason = Some(BuildReason { message, step: live.log.step() });
            BuildEvent::Failed
        }
    };
    drop(held);
    builds.pool.templates_changed();
    builds.end(&live);
    tell(shared, &record, event);
    let tidied = async {
        cache::trim(shared).await?;
        registry::forget_old(shared).await
    };
    if let Err(error) = tidied.await {
        tracing::warn!(error = chain(&error), "cannot remove what builds left behind");
    }
    shared.collect();
}

/// Tells those who watch how far a build has come.
pub(crate) fn tell(shared: &Shared, record: &BuildRecord, event: BuildEvent) {
    let reason = record.reason.as_ref().map(|reason| reason.message.clone());
    let (template_id, build_id) = (record.template_id.to_string(), record.id.to_string());
    shared.changes.tell(Some(&record.owner), What::Build { event, template_id, build_id, reason });
}

/// Has a build end with whoever runs it.
struct Ends<'a> {
    builds: &'a Builds,
    live: &'a Live,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.builds.end(self.live);
    }
}

/// What a build has made and is not recorded yet.
struct Made {
    became: TemplateRecord,
    /// Keeps its artifact until it is.
    pin: Pin,
    /// Keeps who would make the same waiting until it is.
    turn: Option<OwnedMutexGuard<()>>,
}

async fn build(builds: &Builds, live: &Live, plan: &BuildPlan, share: &mut SandboxShare) -> Result<Made, BuildFailure> {
    let shared = &builds.shared;
    let _permit = builds.permits.acquire().await.map_err(|_| BuildFailure::Stopping)?;
    disk_budget::admit(shared).await.map_err(BuildFailure::DiskPressure)?;
    match source::resolve(shared, &live.record.owner, &plan.source, &live.log).await? {
        Resolved::Standard(template) => Ok(made_whole(whole::build(builds, live, (plan, share), *template).await?, live)),
        Resolved::Layered(origin) => Box::pin(layered(builds, live, (plan, share), origin)).await,
    }
}

fn made_whole(whole: Whole, live: &Live) -> Made {
    let Whole { found: Found { context, artifact, pin }, template, recipe, turn } = whole;
    let (start, ready) = (template.start, template.ready);
    let finished = Finished { artifact, defaults: context, start, ready, warm_up: None, recipe: Some(recipe) };
    Made { became: record::template(&live.record, finished), pin, turn: Some(turn) }
}

async fn layered(
    builds: &Builds,
    live: &Live,
    (plan, share): (&BuildPlan, &mut SandboxShare),
    origin: source::Layered<'_>,
) -> Result<Made, BuildFailure> {
    let shape = Shape { vcpus: live.record.cpus, memory_mib: live.record.memory_mib };
    let wanted = Wanted { shape, processor: plan.processor(), engine: plan.engine };
    let prepared = source::prepare(builds, origin, &wanted, &live.log).await?;
    let room = Room { asked_mib: live.record.min_free_disk_mib };
    let disk_mib = prepared.found.artifact.manifest.budget.disk_mib;
    room.possible(disk_mib)?;
    share.take_disk(disk_mib)?;
    let build = Build {
        shared: &builds.shared,
        log: &live.log,
        plan,
        owner: &live.record.owner,
        keys: keys(&cache::within(&live.record.owner, &prepared.key), plan),
        inherited: prepared.inherited.clone(),
        room,
    };
    let (artifact, context, pin) = build.work(prepared).await?;
    live.log.enter(FINALIZE);
    let (start, ready) = build.commands();
    let warm_up = build.inherited.warm_up;
    let finished = Finished { artifact, defaults: context, start, ready, warm_up, recipe: None };
    Ok(Made { became: record::template(&live.record, finished), pin, turn: None })
}

/// The key of the source, then the one after each step.
fn keys(source: &str, plan: &BuildPlan) -> Vec<String> {
    let mut keys = vec![source.to_owned()];
    for step in &plan.steps {
        let last = keys.last().map_or(source, String::as_str);
        keys.push(cache::after(last, step));
    }
    keys
}

/// A build whose source is there.
struct Build<'a> {
    shared: &'a Arc<Shared>,
    owner: &'a TeamId,
    log: &'a BuildLog,
    plan: &'a BuildPlan,
    keys: Vec<String>,
    inherited: Inherited,
    room: Room,
}

impl Build<'_> {
    /// What to leave running, and what says that it is ready: the plan's own, else its template's.
    fn commands(&self) -> (Option<String>, Option<String>) {
        let given = |command: &Option<String>| command.clone().filter(|command| !command.is_empty());
        let (start, ready) = (given(&self.plan.start), given(&self.plan.ready));
        match (start, ready) {
            (None, ready) => {
                let ready = ready.or_else(|| self.inherited.start.as_ref().and(self.inherited.ready.clone()));
                (self.inherited.start.clone(), ready)
            }
            given => given,
        }
    }

    /// The key of the finished template.
    fn final_key(&self) -> String {
        let steps = self.keys.last().cloned().unwrap_or_default();
        match self.commands() {
            (None, None) => steps,
            commands => cache::key(&("finalized-v1", steps, commands)),
        }
    }

    async fn work(&self, prepared: Prepared) -> Result<(Artifact, Defaults, Pin), BuildFailure> {
        let steps = self.plan.steps.len();
        let known = self.known_steps();
        let forced = known < steps || self.plan.force;
        if !forced && let Some(found) = self.find(&self.final_key()).await? {
            self.tell_known(steps);
            self.tell_finalize(true);
            return self.as_it_is(found).await;
        }
        let (mut done, mut at) = (0, prepared.found);
        for index in (1..=known).rev() {
            if let Some(found) = self.find(&self.keys[index]).await? {
                (done, at) = (index, found);
                break;
            }
        }
        self.tell_known(done);
        let (start, ready) = self.commands();
        if done == steps && start.is_none() && ready.is_none() {
            self.tell_finalize(true);
            return self.as_it_is(at).await;
        }
        let Found { context, artifact, pin } = at;
        let mut machine = BuildMachine::restore(self.shared, artifact, self.log).await?;
        let result = self.go_on(&mut machine, done, context).await;
        machine.end().await;
        // Not before: it keeps what was restored until somebody's record names what came of it.
        drop(pin);
        result
    }

    /// A state to which nothing is to be added.
    async fn as_it_is(&self, Found { context, artifact, pin }: Found) -> Result<(Artifact, Defaults, Pin), BuildFailure> {
        if self.room.asked() {
            self.log.enter(FINALIZE);
            // How much is free is not kept with a state: few ask, and the guest says it within a moment.
            let mut machine = BuildMachine::restore(self.shared, artifact.clone(), self.log).await?;
            let checked = self.room.check(machine.free_disk_bytes(), self.log).await;
            machine.end().await;
            checked?;
        }
        Ok((artifact, context, pin))
    }

    /// How many steps may be taken from what is known.
    fn known_steps(&self) -> usize {
        if self.plan.force { 0 } else { self.plan.steps.iter().position(|step| step.force).unwrap_or(self.plan.steps.len()) }
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, BuildFailure> {
        cache::find(self.shared, key).await.map_err(BuildFailure::Store)
    }

    /// In the contract's words: what comes next, of what content, and whether it was known.
    fn tell(&self, index: usize, step: &StepSpec, known: bool) {
        let (number, steps) = (index + 1, self.plan.steps.len());
        self.log.enter(number.to_string());
        self.log.part(known, &format!("builder {number}/{steps}"), &step::title(step), &self.keys[number]);
    }

    fn tell_known(&self, steps: usize) {
        for (index, step) in self.plan.steps.iter().take(steps).enumerate() {
            self.tell(index, step, true);
        }
    }

    fn tell_finalize(&self, known: bool) {
        self.log.enter(FINALIZE);
        self.log.part(known, FINALIZE, "Finalizing template build", &self.final_key());
    }

    /// Carries out the steps after the first `done`, starts what is to run, and cuts.
    async fn go_on(
        &self,
        machine: &mut BuildMachine,
        done: usize,
        mut context: Defaults,
    ) -> Result<(Artifact, Defaults, Pin), BuildFailure> {
        let mut worked = Instant::now();
        let mut kept = 0;
        let (start, ready) = self.commands();
        let ends_here = start.is_none() && ready.is_none();
        let files = self.shared.files.of(self.owner);
        for (index, spec) in self.plan.steps.iter().enumerate().skip(done) {
            self.tell(index, spec, false);
            let shell = machine.shell(self.log);
            let (step, disk_bytes) = (Step::parse(spec)?, machine.disk_bytes());
            let work = step.run(&shell, &context, &files, disk_bytes);
            context = machine.while_it_lives(Box::pin(work)).await?;
            let last = index + 1 == self.plan.steps.len();
            let worth = worked.elapsed() >= cache::WORTH && kept < cache::MAX_PER_BUILD;
            if worth && !(last && ends_here) {
                let (artifact, pin) = machine.cut(After::GoOn).await?;
                self.keep(self.keys[index + 1].clone(), &artifact, &context).await?;
                drop(pin);
                (worked, kept) = (Instant::now(), kept + 1);
            }
        }
        self.tell_finalize(false);
        let shell = machine.shell(self.log);
        let ready = ready.as_deref().map(Ready::of);
        let running = machine.while_it_lives(Box::pin(ready::finalize(&shell, &context, start.as_deref(), ready))).await?;
        self.room.check(machine.free_disk_bytes(), self.log).await?;
        self.log.info("taking the snapshot");
        // What runs goes on in the snapshot without anybody listening.
        drop(running);
        let (artifact, pin) = machine.cut(After::StayPaused).await?;
        self.keep(self.final_key(), &artifact, &context).await?;
        Ok((artifact, context, pin))
    }

    async fn keep(&self, key: String, artifact: &Artifact, context: &Defaults) -> Result<(), BuildFailure> {
        cache::keep(self.shared, key, &artifact.manifest.id, context.clone()).await.map_err(BuildFailure::Store)
    }
}
