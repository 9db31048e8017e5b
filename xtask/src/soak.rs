//! The long form of the tests: one server used for hours, in all ways at once, which must be at the end what it was at the start.
//!
//! A cycle is some users' walks at the same time, then a time of rest in which everything is counted. In the first third of a run
//! the server is killed again and again. After that it lives on, so that its memory has one long life to grow in: a figure that
//! begins anew every few minutes shows no leak. What fails is kept with its cycle and the run goes on; one failure, or one figure
//! that has grown, fails it as a whole.

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;

use crate::{
    household::Household,
    leaks,
    run::{self, say},
    server::Server,
    workspace::Workspace,
};

mod census;
mod client;
mod disaster;
mod jail;
mod ledger;
mod plan;
mod report;
mod setting;
mod tally;
mod trend;
mod walk;

use census::{Places, Sample};
use client::Client;
use disaster::Survivors;
use jail::Jail;
use plan::Plan;
use report::{End, Findings};
use tally::{Ended, Tally};

/// How long a run takes unless it is said.
const DEFAULT_TIME: Duration = Duration::from_secs(3600);
/// How long what was used may take until it is at rest: the pool fills, and what is not needed is collected.
const REST_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at that.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// As many cycles in a row that fail say that nothing works any more.
const HOPELESS: u32 = 5;

/// What to soak with.
#[derive(Debug, Args)]
pub(crate) struct Soak {
    /// How long, as in 4h, 90m or 30s [default: 1h unless --cycles is given]
    #[arg(long = "for", value_name = "TIME", value_parser = plan::time)]
    time: Option<Duration>,
    /// How many cycles, unless the time is over before
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    cycles: Option<u64>,
    /// Write what was found as JSON, anew after every cycle; and the server's log beside it, if something failed
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How guest instructions are executed
    #[arg(long, default_value = "auto", value_parser = ["auto", "kvm", "tcg"])]
    accel: String,
    /// Users at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=32))]
    lanes: u64,
}

impl Soak {
    /// How much of the run is over. One without an end has none.
    fn part(&self, cycles: u64, elapsed: Duration) -> f64 {
        let time = self.time.or(self.cycles.is_none().then_some(DEFAULT_TIME));
        let of_time = time.map_or(0.0, |time| elapsed.as_secs_f64() / time.as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "nobody makes 2^52 cycles")]
        let of_cycles = self.cycles.map_or(0.0, |all| cycles as f64 / all as f64);
        of_time.max(of_cycles)
    }
}

/// Soaks, and fails for one failure, for one figure that has grown, or for anything that is left on the host.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut run::Report, soak: &Soak) -> anyhow::Result<()> {
    let mut jail = None;
    report.step("build of the jail's tests", |_| Jail::build(workspace).map(|built| jail = Some(built)))?;
    let jail = jail.context("the tests are built")?;
    let before = leaks::Host::observe(household)?;
    let tally = Tally::new(household.heed_wishes()?);
    let made = household.passable_dir("soak-")?;
    let state_dir = made.path().join("state");
    let start = Start { workspace, state_dir: &state_dir, accel: &soak.accel };
    let mut started = None;
    report.step("server", |_| Run::start(start, household, soak, &tally).map(|run| started = Some(run)))?;
    let mut run = started.context("the server is started")?;
    report.step("cycles", |step| {
        run.cycles(&jail);
        step.passed(run.findings.cycles);
        Ok(())
    })?;
    // Whether it fails is told in the verdict, after all that there is to find.
    let ended = report.step("server ends", |_| run.end());
    let mut findings = run.findings;
    keep_log(soak, &state_dir, &tally);
    drop(made);
    let left = report.step("nothing left on the host", |step| leaks::check(household, &before, step));
    if let Err(error) = &left {
        findings.left_behind = Some(format!("{error:#}"));
        leaks::end_machines(household)?;
    }
    report.step("verdict", |step| verdict(soak, &findings, &tally, step))?;
    ended.and(left)
}

fn verdict(soak: &Soak, findings: &Findings, tally: &Tally, step: &mut run::Step) -> anyhow::Result<()> {
    let report = findings.report(tally);
    say(&report.markdown());
    if let Some(path) = &soak.json {
        report.write(path)?;
    }
    findings.skipped.iter().for_each(|why| say(&format!("skipped: {why}")));
    step.skipped(u64::try_from(findings.skipped.len())?);
    for failure in tally.failures() {
        say(&format!("cycle {}, after {} s: {}: {}", failure.cycle, failure.seconds, failure.operation, failure.error));
    }
    if !report.passed {
        let grown = report.grown();
        grown.iter().for_each(|words| say(&format!("grown: {words}")));
        let left = findings.left_behind.as_deref().unwrap_or("nothing is left on the host");
        bail!("{} failures, {} figures have grown, {left}", tally.failed(), grown.len());
    }
    Ok(())
}

/// Keeps the server's log where the report is, if something failed.
fn keep_log(soak: &Soak, state_dir: &Path, tally: &Tally) {
    let Some(path) = soak.json.as_ref().filter(|_| tally.failed() > 0) else { return };
    let (log, kept) = (state_dir.with_extension("log"), path.with_extension("log"));
    match fs_err::copy(&log, &kept) {
        Ok(_) => say(&format!("the server's log is {}", kept.display())),
        Err(error) => say(&format!("cannot keep the server's log: {error}")),
    }
}

/// How the server is started.
#[derive(Debug, Clone, Copy)]
struct Start<'a> {
    workspace: &'a Workspace,
    state_dir: &'a Path,
    accel: &'a str,
}

impl Start<'_> {
    /// Puts another one in the place of one that has died.
    fn again(self, server: &mut Option<Server>) -> anyhow::Result<()> {
        let dead = server.take().context("there is no server to follow")?;
        *server = Some(dead.start_again(self.workspace, self.state_dir, &["--accel", self.accel])?);
        Ok(())
    }
}

/// A soak while it runs.
#[derive(Debug)]
struct Run<'a> {
    start: Start<'a>,
    household: &'a Household,
    soak: &'a Soak,
    tally: &'a Tally,
    client: Client,
    /// `None` after one that could not be started again.
    server: Option<Server>,
    findings: Findings,
}

impl<'a> Run<'a> {
    fn start(start: Start<'a>, household: &'a Household, soak: &'a Soak, tally: &'a Tally) -> anyhow::Result<Self> {
        let Start { workspace, state_dir, accel } = start;
        let server = Server::start_with(workspace, state_dir, &["--accel", accel])?;
        let client = Client::new(workspace, state_dir, server.address())?;
        let findings = Findings::of(setting::read(workspace, state_dir, soak.lanes)?);
        Ok(Self { start, household, soak, tally, client, server: Some(server), findings })
    }

    /// Cycle after cycle, until there are enough, somebody asks for the end, or nothing works any more.
    fn cycles(&mut self, jail: &Jail) {
        let mut failed_in_a_row = 0;
        while self.findings.end == End::Running {
            let part = self.soak.part(self.findings.cycles, self.tally.elapsed());
            let failed = self.tally.failed();
            self.cycle(Plan::of(self.findings.cycles + 1, part), jail);
            failed_in_a_row = if self.tally.failed() > failed { failed_in_a_row + 1 } else { 0 };
            let part = self.soak.part(self.findings.cycles, self.tally.elapsed());
            self.findings.end = if self.tally.is_to_end() {
                End::Interrupted
            } else if failed_in_a_row >= HOPELESS || self.server.is_none() {
                End::GivenUp
            } else if part >= 1.0 {
                End::Done
            } else {
                End::Running
            };
            say(&report::progress(&self.findings, self.tally));
            if let Some(path) = &self.soak.json
                && let Err(error) = self.findings.report(self.tally).write(path)
            {
                say(&format!("cannot write the report: {error:#}"));
            }
        }
    }

    fn cycle(&mut self, plan: Plan, jail: &Jail) {
        let (client, tally) = (&self.client, self.tally);
        thread::scope(|scope| {
            for lane in 0..self.soak.lanes {
                scope.spawn(move || match walk::walk(client, tally, plan.lane(lane)) {
                    // Why it ended is told.
                    Ok(()) | Err(Ended) => {}
                });
            }
        });
        match self.disasters(plan, jail) {
            Ok(()) | Err(Ended) => {}
        }
        if !tally.is_to_end() {
            self.findings.cycles = plan.cycle;
            if let Err(error) = self.rest(plan.cycle) {
                tally.fail(plan.cycle, "rest", &error);
            }
        }
    }

    fn disasters(&mut self, plan: Plan, jail: &Jail) -> Result<(), Ended> {
        let Self { start, tally, client, server, findings, .. } = self;
        let cycle = plan.cycle;
        if let Some(Err(error)) = server.as_mut().map(Server::is_there) {
            tally.fail(cycle, "server", &error);
            tally.step(cycle, "start of another server", || start.again(server))?;
            findings.servers_killed += 1;
        }
        if plan.machines_die {
            tally.step(cycle, "kill -9 of all machines", || disaster::machines_die(client, start.state_dir))?;
        }
        if plan.walks_the_host {
            let skips = tally.step(cycle, "walk of the host, forbidden calls", || jail.run())?;
            findings.skip(skips);
        }
        if plan.server_dies {
            let survivors = tally.step(cycle, "survivors", || Survivors::prepare(client))?;
            tally.step(cycle, "kill -9 of the server, and start of another", || {
                server.as_mut().context("there is no server")?.kill()?;
                start.again(server)
            })?;
            findings.servers_killed += 1;
            tally.step(cycle, "survivors are taken over", || survivors.check(client))?;
        }
        Ok(())
    }

    /// Waits until the server has nothing to do, and counts everything.
    fn rest(&mut self, cycle: u64) -> anyhow::Result<()> {
        let server = self.server.as_ref().context("there is no server")?.pid();
        let places = Places { household: self.household, state_dir: self.start.state_dir, server };
        let deadline = Instant::now() + REST_DEADLINE;
        loop {
            let (values, wrong) = census::take(places, &self.client.metrics()?)?;
            let over = Instant::now() > deadline;
            if wrong.is_empty() || over {
                let seconds = self.tally.elapsed().as_secs();
                self.findings.samples.push(Sample { cycle, seconds, server: self.findings.servers_killed, values });
            }
            if wrong.is_empty() {
                return Ok(());
            }
            ensure!(!over, "not at rest after {} s: {}", REST_DEADLINE.as_secs(), wrong.join("; "));
            thread::park_timeout(LOOK_INTERVAL);
        }
    }

    /// Ends the server, which has to end by itself and to leave no group.
    fn end(&mut self) -> anyhow::Result<()> {
        let Some(server) = self.server.take() else { return Ok(()) };
        let owner = census::owner(server.pid())?;
        let ended = server.stop().and_then(|()| match owner.map(|owner| census::groups(&owner)).transpose()? {
            Some(groups) if groups.trees > 0 => bail!("the server has left control groups in {} trees", groups.trees),
            _ => Ok(()),
        });
        ended.inspect_err(|error| self.tally.fail(self.findings.cycles, "end of the server", error))
    }
}
