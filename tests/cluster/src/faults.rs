//! What goes wrong, done to the world and mended.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};

use crate::{
    disk,
    postgres::Postgres,
    record::{Trouble, now},
    schedule::{Event, Fault, NODES, Party},
    server::Server,
    world::World,
};

/// How long it may take until somebody watches again.
const WATCHED: Duration = Duration::from_secs(60);

/// All that faults are done to.
#[derive(Debug)]
pub(crate) struct Subjects {
    pub(crate) world: World,
    /// The one that the nodes have.
    pub(crate) database: String,
    pub(crate) postgres: Mutex<Postgres>,
    pub(crate) servers: Vec<Mutex<Server>>,
    /// Of each: a server that does not start for want of room waits for its own to be freed.
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) silent: Arc<Silent>,
}

/// How much is wrong with each node that keeps it from answering its clients: nobody begins to wait for it meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Silent([AtomicUsize; NODES]);

impl Silent {
    pub(crate) fn is(&self, node: usize) -> bool {
        self.0[node].load(Ordering::SeqCst) > 0
    }

    fn of(&self, fault: Fault) -> Option<&AtomicUsize> {
        match fault {
            Fault::KillServer(node)
            | Fault::StopServer(node)
            | Fault::Cut { from: Party::Clients, to: Party::Node(node), .. }
            | Fault::Cut { from: Party::Node(node), to: Party::Clients, .. } => self.0.get(node),
            _ => None,
        }
    }
}

/// Does all that is to be done at its time, and gives what was wrong from when to when.
pub(crate) fn inflict(subjects: &Arc<Subjects>, events: &[Event]) -> anyhow::Result<Vec<Trouble>> {
    let begin = Instant::now();
    let one = |event: Event| {
        wait_until(begin + event.from);
        let from = now();
        let silent = subjects.silent.of(event.fault);
        let add = |more: bool| {
            silent.map(|count| if more { count.fetch_add(1, Ordering::SeqCst) } else { count.fetch_sub(1, Ordering::SeqCst) })
        };
        add(true);
        subjects.begin(event.fault).with_context(|| format!("cannot do {:?}", event.fault))?;
        wait_until(begin + event.to);
        subjects.mend(event.fault).with_context(|| format!("cannot mend {:?}", event.fault))?;
        add(false);
        anyhow::Ok(Trouble { fault: event.fault, from, to: now() })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = events.iter().map(|event| scope.spawn(move || one(*event))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a fault panicked"))?);
        ended.collect()
    })
}

fn wait_until(time: Instant) {
    while let Some(left) = time.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        thread::park_timeout(left);
    }
}

impl Subjects {
    pub(crate) fn server(&self, node: usize) -> std::sync::MutexGuard<'_, Server> {
        self.servers[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn postgres(&self) -> std::sync::MutexGuard<'_, Postgres> {
        self.postgres.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillServer(node) => self.server(node).kill(),
            Fault::StopServer(node) => self.server(node).signal(Signal::SIGSTOP),
            Fault::KillWarden(node) => self.signal_warden(node, Signal::SIGKILL),
            Fault::StopWarden(node) => self.signal_warden(node, Signal::SIGSTOP),
            Fault::KillPostgres => self.postgres().kill(),
            Fault::StopPostgres => self.postgres().signal(Signal::SIGSTOP),
            Fault::Cut { from, to, both_ways } => {
                self.world.cut(from, to)?;
                if both_ways { self.world.cut(to, from) } else { Ok(()) }
            }
            Fault::FillDisk(node) => disk::fill(&self.disks[node]),
        }
    }

    fn mend(&self, fault: Fault) -> anyhow::Result<()> {
        match fault {
            Fault::KillServer(node) => self.server(node).start(&self.world),
            Fault::StopServer(node) => self.server(node).signal(Signal::SIGCONT),
            Fault::KillWarden(node) => self.is_watched(node),
            Fault::StopWarden(node) => self.signal_warden(node, Signal::SIGCONT),
            Fault::KillPostgres => self.postgres().start_again(&self.world),
            Fault::StopPostgres => self.postgres().signal(Signal::SIGCONT),
            Fault::Cut { from, to, both_ways } => {
                self.world.mend(from, to)?;
                if both_ways { self.world.mend(to, from) } else { Ok(()) }
            }
            Fault::FillDisk(node) => disk::free(&self.disks[node]),
        }
    }

    fn signal_warden(&self, node: usize, signal: Signal) -> anyhow::Result<()> {
        // One that was just started may not be there yet.
        self.is_watched(node)?;
        match self.server(node).warden()? {
            Some(warden) => Ok(kill(warden, signal)?),
            None => bail!("node {node} has no warden"),
        }
    }

    /// The server has seen to it.
    fn is_watched(&self, node: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        while self.server(node).warden()?.is_none() {
            if since.elapsed() > WATCHED {
                bail!("nobody watches node {node}\n{}", self.server(node).log_tail());
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    }
}
