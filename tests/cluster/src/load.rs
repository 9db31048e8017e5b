//! Five nodes under load: sandboxes come and go, a hundred each second, and then a node is lost with two hundred that are paused and copied.
//!
//! Schedules of faults ask whether what is answered is true; this asks whether it is answered, and how long that takes. Machines have no voices here: each
//! life of one is written down by its node (`guest.rs`), so that none can begin twice, or from memory that is not the last.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use firkin_cluster::ClusterSecret;
use firkin_postgres::{Address, Founding, LeaseTimes};
use fs_err as fs;
use futures::{StreamExt as _, stream};
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinSet, time::interval};

use crate::{
    client::{Client, LONG_S},
    disk,
    node::{self, Node, Places},
    postgres::Postgres,
    record::{Answer, Ask, Asked, Heard},
    say,
    server::{Catalog, Server},
    world::World,
};

/// Servers, each with room for so many sandboxes.
const NODES: usize = 5;
const ROOM: u64 = 500;

/// Sandboxes at the same time, and how many are made each second.
const LIVING: usize = 2000;
const RATE: u64 = 100;

/// Requests that are under way at most. What would be more is not asked, and counted.
const MOST_UNDER_WAY: usize = 1000;

/// The node that is lost, and how many paused sandboxes it has then.
const LOST: usize = 1;
const PAUSED: usize = 200;

/// Of these, so many are asked for at the same time.
const AT_ONCE: usize = 16;

/// By then what is waited for has come about.
const PATIENCE: Duration = Duration::from_secs(300);

const LOOK: Duration = Duration::from_millis(200);

const DATABASE: &str = "load";

/// What is there.
struct Load {
    world: World,
    postgres: Postgres,
    servers: Vec<Server>,
    clients: Vec<Client>,
    asked: Arc<Mutex<Vec<Asked>>>,
    /// Sandboxes that run, as far as clients know; the oldest first.
    living: Mutex<VecDeque<String>>,
    next: AtomicU64,
    not_offered: AtomicU64,
}

/// Runs it for so many seconds, prints what it cost, and fails for what must not be.
pub(crate) fn run(dir: &Path, seconds: u64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let world = World::new(NODES)?;
    let postgres = Postgres::start(&world, &dir.join("postgres"))?;
    let url = postgres.database(DATABASE)?;
    let secret = dir.join("secret");
    let times = LeaseTimes::default();
    let founding = Founding { secret_fingerprint: ClusterSecret::create(&secret)?.fingerprint(), times, founder: None };
    postgres.ask(DATABASE, "CREATE EXTENSION pg_stat_statements")?;
    let address = Address::with_authority(&url, Some(&postgres.authority()))?;
    runtime.block_on(firkin_postgres::init(&address, &founding)).context("cannot found a cluster")?;
    let catalog = Catalog { url, authority: postgres.authority(), secret };
    let mut servers = Vec::new();
    for number in 0..NODES {
        let places = Places { dir: dir.join(format!("node-{number}")) };
        disk::make(&places.disk())?;
        node::prepare(&places)?;
        let mut server = Server::new(number, places, catalog.clone(), (std::env::current_exe()?, None)).with_room(ROOM);
        server.start(&world)?;
        servers.push(server);
    }
    let key = fs::read_to_string(servers[0].places().key())?;
    let asked = Arc::new(Mutex::new(Vec::<Asked>::new()));
    let clients = (0..NODES).map(|node| Client::of(node, key.clone(), Arc::clone(&asked))).collect();
    let (living, next, not_offered) = (Mutex::default(), AtomicU64::new(0), AtomicU64::new(0));
    let mut load = Arc::new(Load { world, postgres, servers, clients, asked, living, next, not_offered });
    runtime.block_on(async {
        for client in &load.clients {
            client.is_let_in().await?;
        }
        Arc::clone(&load).come_and_go(Duration::from_secs(seconds)).await?;
        load.ledgers_are_exact("after the load").await?;
        let paused = load.pause().await?;
        let server = &mut Arc::get_mut(&mut load).context("something goes on with the nodes")?.servers[LOST];
        server.kill()?;
        load.is_resumed_elsewhere(&paused, times).await?;
        let Load { world, servers, .. } = Arc::get_mut(&mut load).context("something goes on with the nodes")?;
        servers[LOST].start(world)?;
        load.came_back(&paused).await?;
        load.clear().await
    })?;
    let mut lines = Vec::new();
    for server in &load.servers {
        lines.extend(read(&server.places().lives())?);
    }
    say(&format!("{} lives were begun", lines.len()));
    let wrong = judge(lines);
    wrong.iter().for_each(|line| say(&format!("  {line}")));
    ensure!(wrong.is_empty(), "{} lives were not as they have to be", wrong.len());
    Ok(())
}

impl Load {
    /// Any node, in turns.
    fn any(&self) -> &Client {
        &self.clients[usize::try_from(self.next.fetch_add(1, Ordering::Relaxed)).unwrap_or_default() % NODES]
    }

    fn living(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has sandboxes be made at a rate that does not wait for answers, and killed when there are enough of them.
    async fn come_and_go(self: Arc<Self>, time: Duration) -> anyhow::Result<()> {
        self.postgres.ask(DATABASE, "SELECT pg_stat_statements_reset()")?;
        let (began, before) = (Instant::now(), self.postgres.cpu()?);
        let mut turns = interval(Duration::from_secs(1) / u32::try_from(RATE)?);
        let (under_way, mut tasks) = (Arc::new(Semaphore::new(MOST_UNDER_WAY)), JoinSet::new());
        while began.elapsed() < time {
            turns.tick().await;
            let Ok(place) = Arc::clone(&under_way).try_acquire_owned() else {
                self.not_offered.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            let load = Arc::clone(&self);
            tasks.spawn(async move {
                if let (id, Answer::Done, _) = load.any().ask("", Ask::Create { timeout_s: LONG_S }).await {
                    load.living().push_back(id);
                }
                let oldest = {
                    let mut living = load.living();
                    if living.len() > LIVING { living.pop_front() } else { None }
                };
                if let Some(oldest) = oldest {
                    load.any().ask(&oldest, Ask::Kill).await;
                }
                drop(place);
            });
            while tasks.try_join_next().is_some() {}
        }
        let (spent, took) = (self.postgres.cpu()?.saturating_sub(before), began.elapsed());
        while tasks.join_next().await.is_some() {}
        let asked = std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner));
        for (name, is_it) in
            [("create", (|ask| matches!(ask, Ask::Create { .. })) as fn(Ask) -> bool), ("kill", |ask| ask == Ask::Kill)]
        {
            tell(name, asked.iter().filter(|asked| is_it(asked.ask)), took);
        }
        say(&format!(
            "PostgreSQL: {:.1} % of one core; {} sandboxes run; {} creates were not asked for, {MOST_UNDER_WAY} being under way",
            100.0 * spent.as_secs_f64() / took.as_secs_f64(),
            self.living().len(),
            self.not_offered.load(Ordering::Relaxed)
        ));
        say("of which");
        self.postgres.dearest(DATABASE)?.lines().for_each(|line| say(&format!("  {line}")));
        let failed: Vec<_> = asked.iter().filter(|asked| asked.answer != Answer::Done).collect();
        ensure!(failed.is_empty(), "{} requests were not done, although there was room: {:?}", failed.len(), failed.first());
        Ok(())
    }

    /// What each node holds is what runs there by the rows, and all together what clients know.
    async fn ledgers_are_exact(&self, when: &str) -> anyhow::Result<()> {
        let counted = "SELECT n.name || ' ' || count(s.id) FROM firkin.nodes n LEFT JOIN firkin.sandboxes s
                       ON s.node = n.id AND s.held_artifact IS NULL GROUP BY n.name ORDER BY n.name";
        let rows = self.postgres.ask(DATABASE, counted)?;
        let mut held = Vec::new();
        for (node, client) in self.clients.iter().enumerate() {
            let view = client.look("/capacity").await?;
            let of = |path| {
                view.pointer(path).and_then(Value::as_u64).with_context(|| format!("node {node} says no `{path}`: {view}"))
            };
            held.push(format!("{} {}", Node::name(node), of("/usage/active/held/memory_mib")?));
        }
        let running: u64 = rows.lines().filter_map(|line| line.split_once(' ')?.1.parse::<u64>().ok()).sum();
        ensure!(rows.lines().eq(held.iter().map(String::as_str)), "{when}: nodes hold {held:?}, and have {rows:?} on record");
        let known = self.living().len();
        ensure!(usize::try_from(running)? == known, "{when}: {running} run, and clients know of {known}");
        say(&format!("{when}: what nodes hold is what is on record, and what clients know: {}", held.join(", ")));
        Ok(())
    }

    /// Has so many of the node that will be lost be paused, resumed and paused once more, until there are copies of all of them.
    async fn pause(&self) -> anyhow::Result<Vec<String>> {
        let there = format!(
            "SELECT s.id FROM firkin.sandboxes s JOIN firkin.nodes n ON s.node = n.id WHERE n.name = '{}' LIMIT {PAUSED}",
            Node::name(LOST)
        );
        let paused: Vec<String> = self.postgres.ask(DATABASE, &there)?.lines().map(str::to_owned).collect();
        ensure!(paused.len() == PAUSED, "the node has {} sandboxes", paused.len());
        self.living().retain(|id| !paused.contains(id));
        let twice = stream::iter(&paused).map(|id| async move {
            for ask in [Ask::Pause, Ask::Resume, Ask::Pause] {
                self.any().surely(id, ask).await?;
            }
            anyhow::Ok(())
        });
        let began = Instant::now();
        twice.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect::<anyhow::Result<()>>()?;
        let pauses = began.elapsed();
        let owed = "SELECT count(*) FROM firkin.sandboxes s WHERE s.held_artifact IS NOT NULL
                    AND NOT EXISTS (SELECT FROM firkin.copies c WHERE c.artifact = s.held_artifact AND c.node <> s.node)";
        while self.postgres.ask(DATABASE, owed)?.trim() != "0" {
            ensure!(began.elapsed() < PATIENCE, "there are no copies of all that is paused");
            tokio::time::sleep(LOOK).await;
        }
        say(&format!(
            "{PAUSED} of one node were paused, resumed and paused in {:.1} s, and copied {:.1} s later",
            pauses.as_secs_f64(),
            (began.elapsed() - pauses).as_secs_f64()
        ));
        Ok(paused)
    }

    /// Once their node is lost, each of them goes on on another as soon as that may have it.
    async fn is_resumed_elsewhere(&self, paused: &[String], times: LeaseTimes) -> anyhow::Result<()> {
        let since = Instant::now();
        let others: Vec<&Client> =
            self.clients.iter().enumerate().filter(|(node, _)| *node != LOST).map(|(_, client)| client).collect();
        let each = paused.iter().enumerate().map(|(turn, id)| {
            let client = others[turn % others.len()];
            async move {
                loop {
                    match client.ask(id, Ask::Resume).await {
                        (_, Answer::Done, _) => return anyhow::Ok(since.elapsed()),
                        (_, answer, _) => ensure!(since.elapsed() < PATIENCE, "{id} of a lost node is not to be had: {answer:?}"),
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        });
        let resumed = stream::iter(each.collect::<Vec<_>>()).buffer_unordered(PAUSED).collect::<Vec<_>>().await;
        let mut resumed = resumed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        resumed.sort();
        let (first, last) = (resumed.first().context("there were some")?, resumed.last().context("there were some")?);
        let bar = times.lasts + times.grace;
        say(&format!(
            "a node was lost with {PAUSED} that were paused: the first one runs elsewhere after {:.1} s, the last one after {:.1} s; lease and grace are {} s",
            first.as_secs_f64(),
            last.as_secs_f64(),
            bar.as_secs()
        ));
        Ok(())
    }

    /// A node that is there again has none of what others have taken. What ran on it goes on.
    async fn came_back(&self, paused: &[String]) -> anyhow::Result<()> {
        let kept = format!(
            "SELECT count(*) FROM firkin.sandboxes s JOIN firkin.nodes n ON s.node = n.id WHERE n.name = '{}' AND s.id IN ('{}')",
            Node::name(LOST),
            paused.join("', '")
        );
        let kept = self.postgres.ask(DATABASE, &kept)?;
        ensure!(kept.trim() == "0", "{} are the lost node's still", kept.trim());
        self.living().extend(paused.iter().cloned());
        self.ledgers_are_exact("with the lost node back").await
    }

    /// Kills all that there are: nothing is held afterwards.
    async fn clear(&self) -> anyhow::Result<()> {
        let all: Vec<String> = self.living().drain(..).collect();
        let each = stream::iter(&all).map(|id| async move {
            let since = Instant::now();
            // The node that is back is let in by each other one once that has heard of its next term.
            loop {
                match self.any().ask(id, Ask::Kill).await {
                    (_, Answer::Done | Answer::Refused(404, _), _) => return anyhow::Ok(()),
                    (_, answer, _) => ensure!(since.elapsed() < PATIENCE, "{id} is not killed: {answer:?}"),
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        each.buffer_unordered(AT_ONCE).collect::<Vec<_>>().await.into_iter().collect::<anyhow::Result<()>>()?;
        self.ledgers_are_exact("when all are killed").await
    }
}

/// How often something was asked for and how long an answer took.
fn tell<'a>(name: &str, asked: impl Iterator<Item = &'a Asked>, time: Duration) {
    let (mut took, mut refused) = (Vec::new(), BTreeMap::<String, usize>::new());
    for one in asked {
        match &one.answer {
            Answer::Done => took.push(Duration::from_nanos(one.to.saturating_sub(one.from))),
            other => *refused.entry(format!("{other:?}")).or_default() += 1,
        }
    }
    took.sort();
    let at = |hundredth: usize| {
        took.get((took.len().saturating_sub(1)) * hundredth / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    };
    say(&format!(
        "{name}: {} in {} s, {:.1} a second; p50 {:.1} ms, p99 {:.1} ms, the longest {:.1} ms",
        took.len(),
        time.as_secs(),
        count(took.len()) / time.as_secs_f64(),
        at(50),
        at(99),
        at(100)
    ));
    refused.iter().for_each(|(why, times)| say(&format!("  {times} x {why}")));
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}

/// Lives that a node has begun.
fn read(path: &Path) -> anyhow::Result<Vec<Heard>> {
    let text = fs::read_to_string(path)?;
    // The last line of a server that was killed may be cut off: it has begun nothing.
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    lines.map(|line| serde_json::from_str(line).context("a life cannot be read")).collect()
}

/// Each life of a sandbox begins once, later than the one before it, and in the memory of that.
fn judge(lines: Vec<Heard>) -> Vec<String> {
    let mut of: BTreeMap<String, Vec<Heard>> = BTreeMap::new();
    for line in lines {
        of.entry(line.sandbox.clone()).or_default().push(line);
    }
    let mut wrong = Vec::new();
    for (sandbox, mut lives) in of {
        lives.sort_by_key(|life| (life.epoch, life.at));
        for pair in lives.windows(2) {
            let [one, next] = pair else { continue };
            if one.epoch == next.epoch {
                wrong.push(format!("{sandbox}: life {} was begun on node {} and on node {}", one.epoch, one.node, next.node));
            } else if next.at < one.at {
                wrong.push(format!("{sandbox}: life {} began before life {}", next.epoch, one.epoch));
            } else if next.life.split_last().is_none_or(|(_, before)| before != one.life) {
                wrong.push(format!(
                    "{sandbox}: life {} remembers {:?}, and the one before it {:?}",
                    next.epoch, next.life, one.life
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(epoch: u64, at: u64, life: &[u64]) -> Heard {
        Heard { at, node: 0, sandbox: "a".into(), epoch, life: life.to_vec(), can_be_claimed: true, sequence: 0 }
    }

    #[test]
    fn a_life_that_begins_twice_or_with_older_memory_is_seen() {
        assert!(judge(vec![life(2, 2, &[1, 2]), life(1, 1, &[1]), life(4, 3, &[1, 2, 4])]).is_empty());
        let wrong = [
            vec![life(1, 1, &[1]), life(1, 2, &[1])],
            vec![life(1, 3, &[1]), life(2, 2, &[1, 2])],
            vec![life(1, 1, &[1]), life(2, 2, &[1, 2]), life(3, 3, &[1, 3])],
        ];
        for lives in wrong {
            assert_eq!(judge(lives.clone()).len(), 1, "{lives:?}");
        }
    }
}
