//! The measurements themselves, one after the other, so that none disturbs another.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use firkin_wire::{DEFAULT_USER, rest};
use futures::{StreamExt as _, stream};

use super::{Dead, Plan, host, ms, report::Figures, series};
use crate::{
    api::{Api, Keep, Refused},
    envd::{Access, CommandLine, Output, Processes},
    failure,
    progress::Progress,
};

mod removal;

/// The life of a sandbox: far longer than it is needed, and bounded if this program is killed.
const SANDBOX_SECONDS: u32 = 600;

/// Metadata of every sandbox of a run, by which the last step finds those that are left.
const MARK: &str = "firkin-bench";

/// Requests that end sandboxes are made this many at a time.
const KILLS_AT_ONCE: usize = 8;

/// A staggered create follows the one before at this part of the time that a create takes alone: three are under way together.
const STAGGER: u32 = 3;

/// No machine has come or gone for this long, or at most for that: then memory is looked at.
const SETTLED: Duration = Duration::from_secs(2);
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// One run.
pub(super) struct Run<'a> {
    api: &'a Api,
    plan: &'a Plan,
    progress: &'a Progress,
    /// The server's state directory, if it is on this host.
    state_dir: Option<&'a Path>,
    /// The value of [`MARK`].
    mark: String,
    /// Sandboxes that were made and not ended.
    alive: Mutex<BTreeSet<String>>,
    pub(super) figures: Figures,
}

/// One create, from request to first output.
#[derive(Debug)]
struct Created {
    sandbox: rest::Sandbox,
    create: Duration,
    first_stdout: Duration,
}

impl<'a> Run<'a> {
    pub(super) fn new(api: &'a Api, plan: &'a Plan, progress: &'a Progress, state_dir: Option<&'a Path>) -> Self {
        let mark = std::process::id().to_string();
        Self { api, plan, progress, state_dir, mark, alive: Mutex::default(), figures: Figures::new() }
    }

    /// Takes every measurement that is planned.
    pub(super) async fn all(&mut self) -> anyhow::Result<()> {
        if let Some(dead) = self.plan.dead {
            return self.removals(dead).await;
        }
        // Whatever is read for the first time is read now.
        let first = self.create(Instant::now()).await.context("cannot create a first sandbox")?;
        self.kill(&first.sandbox.sandbox_id).await?;
        let alone = self.sequential().await?;
        self.staggered(alone / STAGGER).await?;
        self.bursts().await?;
        self.pauses().await?;
        self.forks().await?;
        self.density().await
    }

    async fn sequential(&mut self) -> anyhow::Result<Duration> {
        let step = self.progress.step("creates, one after the other");
        let begun = Instant::now();
        for n in 0..self.plan.samples {
            step.at(&format!("{n} of {}", self.plan.samples));
            let created = self.create(Instant::now()).await?;
            let killing = Instant::now();
            self.kill(&created.sandbox.sandbox_id).await?;
            let killed = killing.elapsed();
            self.take("create, ms", created.create);
            self.take("create to first stdout, ms", created.first_stdout);
            self.take("kill, ms", killed);
        }
        let alone = begun.elapsed() / self.plan.samples;
        step.done(&format!("{} creates, one after the other", self.plan.samples));
        Ok(alone)
    }

    /// Creates at a steady pace, faster than one takes alone.
    async fn staggered(&mut self, pace: Duration) -> anyhow::Result<()> {
        let step = self.progress.step("creates, staggered");
        let this = &*self;
        let (step_, samples) = (&step, this.plan.samples);
        let begun = Instant::now();
        let creates = (0..samples).map(|n| async move {
            tokio::time::sleep_until((begun + pace * n).into()).await;
            step_.at(&format!("{n} of {samples}"));
            this.create_and_kill().await
        });
        // The pace decides how many are under way; the bound holds where the server cannot keep it.
        let results: Vec<_> = stream::iter(creates).buffered(usize::try_from(self.plan.burst)?).collect().await;
        self.take_all("staggered create to first stdout, ms", results)?;
        step.done(&format!("{samples} creates, staggered by {:.0} ms", ms(pace)));
        Ok(())
    }

    /// Creates at the same time, again and again until there are enough.
    async fn bursts(&mut self) -> anyhow::Result<()> {
        let burst = self.plan.burst;
        let step = self.progress.step("creates in bursts");
        let rounds = self.plan.samples.div_ceil(burst);
        for n in 0..rounds {
            step.at(&format!("{n} of {rounds}"));
            let begun = Instant::now();
            let results = futures::future::join_all((0..burst).map(|_| self.create(begun))).await;
            let whole = begun.elapsed();
            let ids: Vec<String> = results.iter().flatten().map(|created| created.sandbox.sandbox_id.clone()).collect();
            if ids.len() == results.len() {
                self.take("burst, all at first stdout, ms", whole);
            }
            self.take_all("burst create to first stdout, ms", results)?;
            self.kill_all(ids).await?;
        }
        step.done(&format!("{rounds} bursts of {burst} creates"));
        Ok(())
    }

    async fn pauses(&mut self) -> anyhow::Result<()> {
        let step = self.progress.step("pauses and resumes");
        let sandbox = self.create(Instant::now()).await?.sandbox;
        for n in 0..self.plan.samples {
            step.at(&format!("{n} of {}", self.plan.samples));
            let before = self.artifacts();
            let begun = Instant::now();
            self.api.pause(&sandbox.sandbox_id, Keep::All).await?;
            let paused = begun.elapsed();
            let size = self.new_artifact_mib(&before);
            let begun = Instant::now();
            let (resumed, _) = self.api.connect(&sandbox.sandbox_id, SANDBOX_SECONDS, Keep::All).await?;
            let running = begun.elapsed();
            Box::pin(first_stdout(self.api, &resumed)).await?;
            let first = begun.elapsed();
            self.take("pause, ms", paused);
            self.take("resume, ms", running);
            self.take("resume to first stdout, ms", first);
            if let Some(size) = size {
                series(&mut self.figures, "snapshot size, MiB").values.push(size);
            }
        }
        self.kill(&sandbox.sandbox_id).await?;
        step.done(&format!("{} pauses and resumes", self.plan.samples));
        Ok(())
    }

    async fn forks(&mut self) -> anyhow::Result<()> {
        let step = self.progress.step("forks");
        let source = self.create(Instant::now()).await?.sandbox;
        for n in 0..self.plan.samples {
            step.at(&format!("{n} of {}", self.plan.samples));
            let begun = Instant::now();
            let results = self.api.fork(&source.sandbox_id, 1, SANDBOX_SECONDS).await?;
            let forked = begun.elapsed();
            let Some(child) = results.into_iter().find_map(|result| result.sandbox) else { bail!("a fork gave no sandbox") };
            self.alive().insert(child.sandbox_id.clone());
            Box::pin(first_stdout(self.api, &child)).await?;
            let first = begun.elapsed();
            self.kill(&child.sandbox_id).await?;
            self.take("fork, ms", forked);
            self.take("fork to first stdout, ms", first);
        }
        self.kill(&source.sandbox_id).await?;
        step.done(&format!("{} forks", self.plan.samples));
        Ok(())
    }

    /// The cost of idle sandboxes, by both accounts that the kernel keeps.
    async fn density(&mut self) -> anyhow::Result<()> {
        let Some(state_dir) = self.state_dir else { return Ok(()) };
        let step = self.progress.step("idle sandboxes");
        let mut ids = Vec::new();
        let before = self.settled(state_dir).await;
        for n in 0..self.plan.clones {
            step.at(&format!("{n} of {}", self.plan.clones));
            ids.push(self.bare_create().await?.sandbox_id);
        }
        for pss in host::machines_pss_mib(state_dir) {
            series(&mut self.figures, "idle machine by PSS, MiB").values.push(pss);
        }
        let after = self.settled(state_dir).await;
        if let Some(each) = before.zip(after).and_then(|(before, after)| host::each_mib(before, after)) {
            series(&mut self.figures, "idle machine by MemAvailable, mean, MiB").values.push(each);
        }
        self.kill_all(ids).await?;
        step.done(&format!("{} idle sandboxes", self.plan.clones));
        Ok(())
    }

    /// The host's memory once no machine has come or gone for a while: a pool makes its warm sessions anew behind every create.
    async fn settled(&self, state_dir: &Path) -> Option<host::Account> {
        let end = Instant::now() + SETTLE_DEADLINE;
        let mut seen = host::account(state_dir)?;
        let mut since = Instant::now();
        while since.elapsed() < SETTLED && Instant::now() < end {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let now = host::account(state_dir)?;
            if now.machines != seen.machines {
                since = Instant::now();
            }
            seen = now;
        }
        Some(seen)
    }

    /// Ends every sandbox that carries this run's mark, the ones whose creates nobody waited for included.
    pub(super) async fn clean_up(&self) -> anyhow::Result<()> {
        let known: Vec<String> = std::mem::take(&mut *self.alive()).into_iter().collect();
        let ended = self.kill_all(known).await;
        let marked = self.api.list(&[("metadata", format!("{MARK}={}", self.mark))]).await;
        let marked = marked.context("cannot look for sandboxes of this run that are left")?;
        self.kill_all(marked.into_iter().map(|listed| listed.sandbox_id).collect()).await?;
        ended
    }

    /// Creates a sandbox in which nothing runs.
    async fn bare_create(&self) -> anyhow::Result<rest::Sandbox> {
        let new = rest::NewSandbox {
            template_id: self.plan.template.clone(),
            timeout: Some(SANDBOX_SECONDS.into()),
            metadata: Some([(MARK.to_owned(), self.mark.clone())].into()),
            ..Default::default()
        };
        let sandbox = self.api.create(&new).await?;
        self.alive().insert(sandbox.sandbox_id.clone());
        Ok(sandbox)
    }

    /// Creates a sandbox and waits for the first output of its first command, timed from `begun` on.
    async fn create(&self, begun: Instant) -> anyhow::Result<Created> {
        let sandbox = self.bare_create().await?;
        let create = begun.elapsed();
        Box::pin(first_stdout(self.api, &sandbox)).await?;
        Ok(Created { sandbox, create, first_stdout: begun.elapsed() })
    }

    async fn create_and_kill(&self) -> anyhow::Result<Created> {
        let created = self.create(Instant::now()).await?;
        self.kill(&created.sandbox.sandbox_id).await?;
        Ok(created)
    }

    /// Ends a sandbox. One that is gone already is no failure.
    async fn kill(&self, id: &str) -> anyhow::Result<()> {
        let killed = self.api.kill(id).await;
        self.alive().remove(id);
        match killed {
            Err(error) if failure::cause::<Refused>(&error).is_none_or(|refused| refused.status != 404) => {
                Err(error.context(format!("cannot end sandbox `{id}`")))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    async fn kill_all(&self, ids: Vec<String>) -> anyhow::Result<()> {
        let kills = ids.into_iter().map(|id| async move { self.kill(&id).await });
        let results: Vec<_> = stream::iter(kills).buffer_unordered(KILLS_AT_ONCE).collect().await;
        results.into_iter().collect()
    }

    fn take(&mut self, name: &str, took: Duration) {
        series(&mut self.figures, name).values.push(ms(took));
    }

    /// Takes down what succeeded and counts what did not; if nothing did, the first failure is the run's.
    fn take_all(&mut self, name: &str, results: Vec<anyhow::Result<Created>>) -> anyhow::Result<()> {
        let mut first_error = None;
        let mut taken = 0;
        for result in results {
            match result {
                Ok(created) => {
                    self.take(name, created.first_stdout);
                    taken += 1;
                }
                Err(error) => {
                    series(&mut self.figures, name).failed += 1;
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error.filter(|_| taken == 0) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn artifacts(&self) -> BTreeSet<String> {
        self.state_dir.map(host::artifacts).unwrap_or_default().into_iter().collect()
    }

    /// The size of the one artifact that was not there before; `None` if there is another number of them.
    fn new_artifact_mib(&self, before: &BTreeSet<String>) -> Option<f64> {
        let state_dir = self.state_dir?;
        let now = self.artifacts();
        let mut new = now.difference(before);
        let (name, None) = (new.next()?, new.next()) else { return None };
        host::artifact_mib(state_dir, name)
    }

    fn alive(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `echo ready` as the SDKs run commands, and returns when the first byte of its output is here and it has ended.
async fn first_stdout(api: &Api, sandbox: &rest::Sandbox) -> anyhow::Result<()> {
    let token = sandbox.envd_access_token.as_deref();
    let access = Access { sandbox_id: &sandbox.sandbox_id, token, user: Some(DEFAULT_USER) };
    let command = CommandLine::words(&["echo", "ready"].map(str::to_owned));
    let mut process = Processes::new(api.target(), &access)?.start(&command).await?;
    loop {
        match process.next().await? {
            Output::Stdout(_) => return Ok(()),
            Output::Stderr(_) => {}
            Output::End(status) => bail!("`echo ready` ended with status {status} and without output"),
        }
    }
}
