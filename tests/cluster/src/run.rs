//! Schedules, one after the other: a world of servers, users, what goes wrong, and what is found afterwards.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use fastrand::Rng;
use fs_err as fs;

use crate::{
    checker::{self, Violation},
    client::{Client, LONG_S},
    disk,
    faults::{self, Subjects},
    household,
    node::{self, Places},
    postgres::Postgres,
    record::{Ask, Asked, Found, Heard, Record, Severed, now},
    say,
    schedule::{self, Event, Fault, NODES},
    server::{Catalog, Server},
    sink::Sink,
    world::World,
};

/// Users of each node.
const USERS: usize = 2;

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
}

impl Plan {
    /// As it is handed on.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments =
            vec!["--schedules".to_owned(), self.schedules.to_string(), "--seconds".to_owned(), self.seconds.to_string()];
        arguments.extend(self.seed.into_iter().flat_map(|seed| ["--seed".to_owned(), seed.to_string()]));
        arguments.extend(self.keep_logs.then(|| "--keep-logs".to_owned()));
        arguments
    }
}

/// Runs all of it, and fails if anything did not hold.
pub(crate) fn run(dir: &Path, plan: &Plan) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("cannot ask to end with the household")?;
    let first = plan.seed.unwrap_or_else(|| Rng::new().u64(..1 << 32));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = World::new()?;
    let postgres = Postgres::start(&world, &dir.join("postgres"))?;
    let mut bench = Bench { dir, world: Some(world), postgres: Some(postgres), runtime: &runtime };
    let (began, mut failed, mut faults) = (Instant::now(), Vec::new(), 0);
    for seed in (0..plan.schedules).map(|turn| first.wrapping_add(turn)) {
        let events = schedule::draw(seed, Duration::from_secs(plan.seconds));
        faults += events.len();
        let outcome = bench.schedule(&format!("s{seed}"), seed, &events, true)?;
        say(&format!("seed {seed}: {} faults, {}", events.len(), outcome.summary()));
        if !outcome.violations.is_empty() {
            events.iter().for_each(|event| {
                say(&format!("  {:>6.1} s to {:>5.1} s  {:?}", event.from.as_secs_f32(), event.to.as_secs_f32(), event.fault))
            });
            outcome.violations.iter().for_each(|Violation { invariant, text }| say(&format!("  {invariant}: {text}")));
            failed.push(seed);
        }
    }
    let took = began.elapsed().as_secs();
    bench.without_warden()?;
    say(&format!(
        "{} schedules of {} s with {faults} faults in {took} s, {} of them with violations",
        plan.schedules,
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
}

/// What came of a schedule.
struct Outcome {
    record: Record,
    violations: Vec<Violation>,
}

impl Outcome {
    fn summary(&self) -> String {
        let Record { heard, asked, .. } = &self.record;
        let lives: std::collections::BTreeSet<_> = heard.iter().map(|word| (&word.sandbox, word.epoch)).collect();
        let done = asked.iter().filter(|asked| asked.answer == crate::record::Answer::Done).count();
        format!(
            "{} requests ({done} done), {} lives, {} words, {} violations",
            asked.len(),
            lives.len(),
            heard.len(),
            self.violations.len()
        )
    }
}

impl Bench<'_> {
    /// A schedule whose checks would see nothing is worth nothing: without wardens, what could be claimed runs on while the database stands still.
    fn without_warden(&mut self) -> anyhow::Result<()> {
        let event = Event { fault: Fault::StopPostgres, from: Duration::from_secs(1), to: Duration::from_secs(12) };
        let outcome = self.schedule("without", 0, &[event], false)?;
        let caught = outcome.violations.iter().filter(|violation| violation.invariant == "I2").count();
        say(&format!("without a warden: {caught} violations of I2 were seen, as they have to be"));
        ensure!(caught > 0, "nodes without a warden were let pass");
        Ok(())
    }

    fn schedule(&mut self, name: &str, seed: u64, events: &[Event], with_warden: bool) -> anyhow::Result<Outcome> {
        let dir = self.dir.join(name);
        let (world, postgres) =
            (self.world.take().context("there is a world")?, self.postgres.take().context("there is a database")?);
        let mut servers = Vec::new();
        for number in 0..NODES {
            let places = Places { dir: dir.join(format!("node-{number}")) };
            disk::make(&places.disk())?;
            node::prepare(&places)?;
            let catalog = Catalog { url: postgres.database(&format!("{name}_{number}"))?, authority: postgres.authority() };
            servers.push(Mutex::new(Server::new(number, places, catalog, with_warden)));
        }
        let subjects = Arc::new(Subjects { world, postgres: Mutex::new(postgres), servers });
        let outcome = self.runtime.block_on(play(&subjects, seed, events));
        let Some(Subjects { world, postgres, servers }) = Arc::into_inner(subjects) else {
            bail!("something goes on with the world")
        };
        (self.world, self.postgres) = (Some(world), Some(postgres.into_inner().unwrap_or_else(PoisonError::into_inner)));
        let mut outcome = outcome.with_context(|| format!("seed {seed}, with {events:?}"))?;
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
}

/// Starts all servers, with users, does what is to be done, and looks at what is there afterwards.
async fn play(subjects: &Arc<Subjects>, seed: u64, events: &[Event]) -> anyhow::Result<Outcome> {
    let sink = Sink::listen()?;
    let starting = Arc::clone(subjects);
    blocking(move || {
        let start = |node: usize| starting.server(node).start(&starting.world);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..NODES).map(|node| scope.spawn(move || start(node))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a start panicked"))?)
        })
    })
    .await?;
    let (asked, severed) = (Arc::new(Mutex::new(Vec::<Asked>::new())), Arc::new(Mutex::new(Vec::<Severed>::new())));
    let is_over = Arc::new(AtomicBool::new(false));
    let (mut clients, mut users, mut anchors, mut watched) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut rng = Rng::with_seed(seed);
    for node in 0..NODES {
        let key = fs::read_to_string(subjects.server(node).places().key())?;
        let client = Client::of(node, key, Arc::clone(&asked));
        // One that cannot be claimed, and one that can.
        let anchor = client.surely("", Ask::Create { timeout_s: LONG_S }).await?;
        users.push(tokio::spawn(client.clone().listen(anchor.clone(), Arc::clone(&is_over), Arc::clone(&severed))));
        anchors.push(anchor);
        let other = client.surely("", Ask::Create { timeout_s: LONG_S }).await?;
        client.surely(&other, Ask::Pause).await?;
        client.surely(&other, Ask::Resume).await?;
        watched.push(other);
        users.extend((0..USERS).map(|_| tokio::spawn(client.clone().user(rng.fork(), Arc::clone(&is_over)))));
        clients.push(client);
    }
    let (inflicting, all) = (Arc::clone(subjects), events.to_vec());
    let troubles = blocking(move || faults::inflict(&inflicting, &all)).await;
    is_over.store(true, Ordering::SeqCst);
    for user in users {
        user.await.context("a user panicked")?;
    }
    let troubles = troubles?;
    let mut failures = Vec::new();
    let mut note = |ended: anyhow::Result<()>| failures.extend(ended.err().map(|error| format!("{error:#}")));
    note(goes_on(&sink, &anchors, &watched).await);
    let mut found = Vec::new();
    note(at_rest(&clients, &asked, &mut found).await);
    // What ends from here on is no client's wish.
    let mut asked = std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner));
    for client in &clients {
        note(client.clear().await);
    }
    for node in 0..NODES {
        let ending = Arc::clone(subjects);
        note(blocking(move || ending.server(node).stop()).await);
    }
    let leases = (0..NODES).map(|node| node::leases(subjects.server(node).places())).collect::<anyhow::Result<_>>()?;
    let severed = std::mem::take(&mut *severed.lock().unwrap_or_else(PoisonError::into_inner));
    asked.sort_by_key(|asked| asked.from);
    let record = Record { heard: sink.close(), asked, leases, severed, troubles, anchors, found };
    let mut violations = checker::check(&record);
    violations.extend(failures.into_iter().map(|text| Violation { invariant: "end", text }));
    Ok(Outcome { record, violations })
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(job).await.context("a job panicked")?
}

/// Once nothing is wrong, what was left alone runs: what was stopped by a warden, too.
async fn goes_on(sink: &Sink, anchors: &[String], watched: &[String]) -> anyhow::Result<()> {
    let since = now();
    for sandbox in anchors.iter().chain(watched) {
        let is_heard = || sink.last(|word: &Heard| word.sandbox == *sandbox && word.at > since).is_some();
        let waiting = Instant::now();
        while !is_heard() {
            ensure!(waiting.elapsed() < REST, "{sandbox} does not go on, although nothing is wrong any more");
            tokio::time::sleep(LOOK).await;
        }
    }
    Ok(())
}

/// How all sandboxes are found that clients know, when those are gone whose deadline is over.
async fn at_rest(clients: &[Client], asked: &Mutex<Vec<Asked>>, found: &mut Vec<(String, Found)>) -> anyhow::Result<()> {
    let known: std::collections::BTreeSet<(usize, String, bool)> = {
        let asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let created = asked.iter().filter(|asked| !asked.sandbox.is_empty());
        let named = created.filter_map(|asked| match asked.ask {
            Ask::Create { timeout_s } => Some((asked.node, asked.sandbox.clone(), timeout_s < LONG_S)),
            _ => None,
        });
        named.collect()
    };
    let waiting = Instant::now();
    for (node, sandbox, is_brief) in known {
        loop {
            let looked = clients[node].find(&sandbox).await;
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
        for dir in [places.machines(), places.voices(), places.state().join("run")] {
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
