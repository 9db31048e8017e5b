//! Schedules, one after the other: a world of servers, users, what goes wrong, and what is found afterwards.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, ValueEnum};
use fastrand::Rng;
use firkin_cluster::ClusterSecret;
use firkin_postgres::{Address, Founding, LeaseTimes};
use fs_err as fs;

use crate::{
    checker::{self, Violation},
    client::{Client, LONG_S},
    disk,
    faults::{self, Subjects},
    history, household, load,
    loss::{self, Goes},
    mutant::Mutant,
    node::{self, Places},
    postgres::Postgres,
    record::{Ask, Asked, Found, Heard, Record, Severed, Taken, now},
    say,
    schedule::{self, Event, NODES},
    server::{Catalog, Server},
    sink::Sink,
    world::World,
};

/// Users of each node.
const USERS: usize = 2;

/// The times of a lease, scaled down, so that a schedule has time for some. Between the time at which the warden stops machines and the one at
/// which others may claim them there are four seconds, for a host that is busy.
pub(crate) const TIMES: LeaseTimes = LeaseTimes {
    lasts: Duration::from_secs(4),
    renew_every: Duration::from_millis(400),
    stop_after: Duration::from_secs(3),
    grace: Duration::from_secs(3),
};

/// How long everything may take to be at rest once nothing is wrong any more.
const REST: Duration = Duration::from_secs(120);

/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(200);

/// How much is run.
#[derive(Debug, Clone, Args)]
pub(crate) struct Plan {
    /// Schedules, one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    schedules: u64,
    /// How long things go wrong in each
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    seconds: u64,
    /// What the first is made of; each other one has the next number
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// Keep the directory of a run that has failed
    #[arg(long)]
    pub(crate) keep_logs: bool,
    /// Only this, and not all of it
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Have each second node run this program, which is another build of this one; no mutants then, of which it may not know
    #[arg(long, value_name = "PROGRAM")]
    beside: Option<PathBuf>,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Schedules of chance.
    Schedules,
    /// The loss of a node.
    Loss,
    /// Mutants, which have to be caught.
    Mutants,
    /// None of these: five nodes under load for so many seconds, and the loss of one. Only where it is asked for.
    Load,
}

impl Plan {
    /// As it is handed on.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments =
            vec!["--schedules".to_owned(), self.schedules.to_string(), "--seconds".to_owned(), self.seconds.to_string()];
        arguments.extend(self.seed.into_iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
        arguments.extend(self.keep_logs.then(|| "--keep-logs".to_owned()));
        let only = self.only.and_then(|part| part.to_possible_value());
        arguments.extend(only.map(|part| format!("--only={}", part.get_name())));
        arguments.extend(self.beside.iter().flat_map(|beside| ["--beside".to_owned(), beside.display().to_string()]));
        arguments
    }

    fn has(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// Runs all of it, and fails if anything did not hold.
pub(crate) fn run(dir: &Path, plan: &Plan) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("cannot ask to end with the household")?;
    if plan.only == Some(Part::Load) {
        return load::run(dir, plan.seconds);
    }
    let first = plan.seed.unwrap_or_else(|| Rng::new().u64(..1 << 32));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = World::new(NODES)?;
    let postgres = Postgres::start(&world, &dir.join("postgres"))?;
    let beside = plan.beside.as_deref();
    let mut bench = Bench { dir, world: Some(world), postgres: Some(postgres), runtime: &runtime, beside };
    let (began, mut failed, mut faults) = (Instant::now(), Vec::new(), 0);
    let schedules = if plan.has(Part::Schedules) { plan.schedules } else { 0 };
    for seed in (0..schedules).map(|turn| first.wrapping_add(turn)) {
        let events = schedule::draw(seed, Duration::from_secs(plan.seconds));
        faults += events.len();
        let outcome = bench.schedule(&format!("s{seed}"), (seed, &events))?;
        say(&format!("seed {seed}: {} faults, {}", events.len(), outcome.summary()));
        if !outcome.violations.is_empty() {
            events.iter().for_each(|event| {
                say(&format!("  {:>6.1} s to {:>5.1} s  {:?}", event.from.as_secs_f32(), event.to.as_secs_f32(), event.fault))
            });
            outcome.tell();
            failed.push(seed);
        }
    }
    let took = began.elapsed().as_secs();
    if plan.has(Part::Loss) {
        bench.loss()?;
    }
    if plan.has(Part::Mutants) && beside.is_none() {
        bench.mutants()?;
    }
    say(&format!(
        "{schedules} schedules of {} s with {faults} faults in {took} s, {} of them with violations",
        plan.seconds,
        failed.len()
    ));
    ensure!(failed.is_empty(), "again with `--schedules 1 --seconds {} --seed {}`", plan.seconds, failed[0]);
    Ok(())
}

/// What is there for all schedules.
struct Bench<'a> {
    dir: &'a Path,
    world: Option<World>,
    postgres: Option<Postgres>,
    runtime: &'a tokio::runtime::Runtime,
    /// What each second node runs, where that is another build.
    beside: Option<&'a Path>,
}

/// What came of a schedule.
pub(crate) struct Outcome {
    pub(crate) record: Record,
    pub(crate) violations: Vec<Violation>,
}

impl Outcome {
    fn summary(&self) -> String {
        let Record { heard, asked, .. } = &self.record;
        let lives: std::collections::BTreeSet<_> = heard.iter().map(|word| (&word.sandbox, word.epoch)).collect();
        let done = asked.iter().filter(|asked| asked.answer == crate::record::Answer::Done).count();
        let Taken { moved, lost } = self.record.taken();
        let dated = asked.iter().filter(|asked| asked.epoch.is_some()).count();
        format!(
            "{} requests ({done} done, {dated} answers of a known life), {} lives, {moved} taken over that were given up and {lost} of lost nodes, {} words, {} violations",
            asked.len(),
            lives.len(),
            heard.len(),
            self.violations.len()
        )
    }

    fn tell(&self) {
        self.violations.iter().for_each(|Violation { invariant, text }| say(&format!("  {invariant}: {text}")));
    }

    /// How often an invariant did not hold.
    fn of(&self, invariant: &str) -> usize {
        self.violations.iter().filter(|violation| violation.invariant == invariant).count()
    }
}

impl Bench<'_> {
    /// A node is lost, and comes back.
    fn loss(&mut self) -> anyhow::Result<()> {
        for (name, goes) in [("loss", Goes::Stopped), ("killed", Goes::Killed)] {
            let outcome = self.run(name, None, move |subjects| Box::pin(loss::play(subjects, goes)))?;
            say(&format!("a node that is lost ({goes:?}) and comes back: {}", outcome.summary()));
            outcome.tell();
            ensure!(outcome.violations.is_empty(), "what a lost node had is not as it has to be: again with `--only loss`");
        }
        Ok(())
    }

    /// Checks that would see nothing are worth nothing: what nodes do that lack something is caught, always in the same way.
    fn mutants(&mut self) -> anyhow::Result<()> {
        for (mutant, invariant) in [(Mutant::NoWarden, "I2"), (Mutant::BlindClaims, "I1"), (Mutant::LateRecords, "I1")] {
            let outcome =
                self.run(&mutant.to_string(), Some(mutant), |subjects| Box::pin(loss::play(subjects, Goes::Stopped)))?;
            caught(mutant, invariant, &outcome)?;
        }
        Ok(())
    }

    fn schedule(&mut self, name: &str, (seed, events): (u64, &[Event])) -> anyhow::Result<Outcome> {
        let all = events.to_vec();
        let outcome = self.run(name, None, move |subjects| Box::pin(async move { play(&subjects, seed, &all).await }));
        outcome.with_context(|| format!("seed {seed}, with {events:?}"))
    }

    /// Plays something in a cluster of its own, and looks at what is left of it.
    fn run<P>(&mut self, name: &str, mutant: Option<Mutant>, play: P) -> anyhow::Result<Outcome>
    where
        P: FnOnce(Arc<Subjects>) -> Pin<Box<dyn Future<Output = anyhow::Result<Outcome>> + Send>>,
    {
        let dir = self.dir.join(name);
        let (world, postgres) =
            (self.world.take().context("there is a world")?, self.postgres.take().context("there is a database")?);
        fs::create_dir(&dir)?;
        let database = name.replace('-', "_");
        let catalog = self.found(&postgres, &database, &dir)?;
        let (mut servers, mut disks) = (Vec::new(), Vec::new());
        for number in 0..NODES {
            let places = Places { dir: dir.join(format!("node-{number}")) };
            disk::make(&places.disk())?;
            node::prepare(&places)?;
            disks.push(places.disk());
            let program = match self.beside.filter(|_| number % 2 == 1) {
                Some(other) => other.to_owned(),
                None => std::env::current_exe()?,
            };
            servers.push(Mutex::new(Server::new(number, places, catalog.clone(), (program, mutant))));
        }
        let subjects =
            Arc::new(Subjects { world, database, postgres: Mutex::new(postgres), servers, disks, silent: Arc::default() });
        let outcome = self.runtime.block_on(play(Arc::clone(&subjects)));
        let Some(Subjects { world, postgres, servers, .. }) = Arc::into_inner(subjects) else {
            bail!("something goes on with the world")
        };
        (self.world, self.postgres) = (Some(world), Some(postgres.into_inner().unwrap_or_else(PoisonError::into_inner)));
        let mut outcome = outcome?;
        for server in servers {
            let server = server.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = nothing_is_left(server.places()) {
                outcome.violations.push(Violation { invariant: "end", text: format!("{error:#}") });
                household::end(&server.places().dir)?;
            }
            disk::remove(&server.places().disk())?;
        }
        if outcome.violations.is_empty() {
            fs::remove_dir_all(&dir)?;
        } else {
            // For who keeps the directory, beside the logs of the servers.
            fs::write(dir.join("record"), format!("{:#?}", outcome.record))?;
        }
        Ok(outcome)
    }

    /// A database with a cluster that has no nodes yet, whose history is written down.
    fn found(&self, postgres: &Postgres, database: &str, dir: &Path) -> anyhow::Result<Catalog> {
        let url = postgres.database(database)?;
        let secret = dir.join("secret");
        let founding =
            Founding { secret_fingerprint: ClusterSecret::create(&secret)?.fingerprint(), times: TIMES, founder: None };
        let address = Address::with_authority(&url, Some(&postgres.authority()))?;
        self.runtime.block_on(firkin_postgres::init(&address, &founding)).context("cannot found a cluster")?;
        history::begin(postgres, database)?;
        Ok(Catalog { url, authority: postgres.authority(), secret })
    }
}

/// A mutant that nothing was seen of is a fault of the checks.
fn caught(mutant: Mutant, invariant: &str, outcome: &Outcome) -> anyhow::Result<()> {
    let count = outcome.of(invariant);
    say(&format!("mutant {mutant}: {}, {count} of them of {invariant}, as it has to be", outcome.summary()));
    outcome.tell();
    ensure!(count > 0, "nodes with the mutant {mutant} were let pass");
    Ok(())
}

/// A cluster that serves.
pub(crate) struct Begun {
    pub(crate) sink: Sink,
    /// One at each node.
    pub(crate) clients: Vec<Client>,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
}

impl Begun {
    /// A sandbox that was made on one node, and came to another when it was paused: the first one has its files still.
    pub(crate) async fn rests(&self, of: usize, home: usize) -> anyhow::Result<String> {
        let client = &self.clients[of];
        let id = client.create_on(of).await?;
        client.surely(&id, Ask::Pause).await?;
        client.surely(&id, Ask::Move { to: home }).await?;
        Ok(id)
    }
}

/// Starts all servers: the first one has the template that the others fetch.
pub(crate) async fn begin(subjects: &Arc<Subjects>) -> anyhow::Result<Begun> {
    let sink = Sink::listen()?;
    let starting = Arc::clone(subjects);
    let start = move || {
        let start = |node: usize| starting.server(node).start(&starting.world);
        start(0)?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (1..NODES).map(|node| scope.spawn(move || start(node))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a start panicked"))?)
        })
    };
    blocking(start).await?;
    let key = fs::read_to_string(subjects.server(0).places().key())?;
    let asked = Arc::new(Mutex::new(Vec::<Asked>::new()));
    let clients: Vec<_> = (0..NODES).map(|node| Client::of(node, key.clone(), Arc::clone(&asked))).collect();
    for client in &clients {
        client.is_let_in().await?;
    }
    Ok(Begun { sink, clients, asked })
}

/// Ends all servers with what they have, and gives what was written down, and what did not end well.
pub(crate) async fn end(
    subjects: &Arc<Subjects>,
    Begun { sink, clients, asked }: Begun,
    mut failures: Vec<String>,
) -> anyhow::Result<Outcome> {
    // What ends from here on is no client's wish.
    let mut asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    for client in &clients {
        failures.extend(client.clear().await.err().map(|error| format!("{error:#}")));
    }
    for node in 0..NODES {
        let ending = Arc::clone(subjects);
        failures.extend(blocking(move || ending.server(node).stop()).await.err().map(|error| format!("{error:#}")));
    }
    let reading = Arc::clone(subjects);
    let written = blocking(move || history::read(&reading.postgres(), &reading.database)).await?;
    let leases = (0..NODES).map(|node| node::leases(subjects.server(node).places())).collect::<anyhow::Result<_>>()?;
    asked.sort_by_key(|asked| asked.from);
    let record = Record { heard: sink.close(), asked, written, leases, ..Record::default() };
    let violations = failures.into_iter().map(|text| Violation { invariant: "end", text }).collect();
    Ok(Outcome { record, violations })
}

/// Starts all servers, with users, does what is to be done, and looks at what is there afterwards.
async fn play(subjects: &Arc<Subjects>, seed: u64, events: &[Event]) -> anyhow::Result<Outcome> {
    let begun = begin(subjects).await?;
    let severed = Arc::new(Mutex::new(Vec::<Severed>::new()));
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut users, mut anchors, mut watched) = (Vec::new(), Vec::new(), Vec::new());
    let mut rng = Rng::with_seed(seed);
    for (node, client) in begun.clients.iter().enumerate() {
        // One that cannot be claimed, and one that can. Another node is listened through.
        let anchor = client.create_on(node).await?;
        let edge = client.at((node + 1) % NODES);
        users.push(tokio::spawn(edge.listen(anchor.clone(), Arc::clone(&is_over), Arc::clone(&severed))));
        anchors.push(anchor);
        let other = client.create_on(node).await?;
        client.surely(&other, Ask::Pause).await?;
        client.surely(&other, Ask::Resume).await?;
        watched.push(other);
        users.extend(
            (0..USERS)
                .map(|_| tokio::spawn(client.clone().user(rng.fork(), (Arc::clone(&is_over), Arc::clone(&subjects.silent))))),
        );
    }
    let mut resting = Vec::new();
    for (of, home) in (0..NODES).flat_map(|of| (0..NODES).map(move |home| (of, home))).filter(|(of, home)| of != home) {
        resting.push(begun.rests(of, home).await?);
    }
    for sandboxes in resting.chunks(NODES) {
        let (client, over) = (begun.clients[0].clone(), (Arc::clone(&is_over), Arc::clone(&subjects.silent)));
        users.push(tokio::spawn(client.visit(rng.fork(), sandboxes.to_vec(), over)));
    }
    let (inflicting, all) = (Arc::clone(subjects), events.to_vec());
    let troubles = blocking(move || faults::inflict(&inflicting, &all)).await;
    is_over.store(true, Ordering::SeqCst);
    for user in users {
        user.await.context("a user panicked")?;
    }
    let troubles = troubles?;
    let (mut failures, mut found) = (Vec::new(), Vec::new());
    let mut note = |ended: anyhow::Result<()>| failures.extend(ended.err().map(|error| format!("{error:#}")));
    note(goes_on(&begun.sink, anchors.iter().chain(&watched)).await);
    note(at_rest(&begun, &mut found).await);
    let Outcome { record, mut violations } = end(subjects, begun, failures).await?;
    let severed = std::mem::take(&mut *severed.lock().unwrap_or_else(PoisonError::into_inner));
    let record = Record { severed, troubles, anchors, found, ..record };
    violations.extend(checker::check(&record));
    Ok(Outcome { record, violations })
}

pub(crate) async fn blocking<T: Send + 'static>(job: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(job).await.context("a job panicked")?
}

/// Once nothing is wrong, what was left alone runs: what was stopped by a warden, too.
pub(crate) async fn goes_on(sink: &Sink, sandboxes: impl Iterator<Item = &String>) -> anyhow::Result<()> {
    let since = now();
    for sandbox in sandboxes {
        let is_heard = || sink.last(|word: &Heard| word.sandbox == *sandbox && word.at > since).is_some();
        let waiting = Instant::now();
        while !is_heard() {
            ensure!(waiting.elapsed() < REST, "{sandbox} does not go on, although nothing is wrong any more");
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// How all sandboxes are found that clients know, whichever node they ask, when those are gone whose deadline is over.
pub(crate) async fn at_rest(begun: &Begun, found: &mut Vec<(String, Found)>) -> anyhow::Result<()> {
    let known: std::collections::BTreeSet<(String, bool)> = {
        let asked = begun.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let created = asked.iter().filter(|asked| !asked.sandbox.is_empty());
        let named = created.filter_map(|asked| match asked.ask {
            Ask::Create { timeout_s } => Some((asked.sandbox.clone(), timeout_s < LONG_S)),
            _ => None,
        });
        named.collect()
    };
    let waiting = Instant::now();
    for (turn, (sandbox, is_brief)) in known.into_iter().enumerate() {
        loop {
            let looked = begun.clients[turn % NODES].find(&sandbox).await;
            match looked {
                Ok(state) if !is_brief || state == Found::Gone => {
                    found.push((sandbox, state));
                    break;
                }
                other if waiting.elapsed() > REST => {
                    other?;
                    bail!("{sandbox} is there although its deadline is over, and nothing is wrong any more");
                }
                Ok(_) | Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }
    Ok(())
}

/// No machine, no voice, no warden, no file of a machine.
fn nothing_is_left(places: &Places) -> anyhow::Result<()> {
    let here = places.dir.display().to_string();
    let waiting = Instant::now();
    loop {
        let processes: Vec<_> = household::processes()?.into_iter().filter(|(_, words)| words.contains(&here)).collect();
        let mut files = Vec::new();
        for dir in [places.machines(), places.state().join("run")] {
            for entry in fs::read_dir(dir)? {
                files.push(entry?.path());
            }
        }
        if processes.is_empty() && files.is_empty() {
            return Ok(());
        }
        ensure!(waiting.elapsed() < REST, "left behind: {processes:?} {files:?}");
        std::thread::park_timeout(LOOK);
    }
}
