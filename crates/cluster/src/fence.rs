//! What a node does with its lease: a warden stops machines that others could have when it is over, and lets them go on when it is regained.
//!
//! ```text
//!   renewed ─► page: until when ─► warden, a process of its own, which outlives the server
//!   gap ─► what others have taken is let go of (`keep.rs`) ─► page: another generation ─► machines go on ─► clocks of guests are set
//! ```
//!
//! The server sees to it that somebody watches. Where nobody does, or the lease is over, nothing begins that others could have.

use std::{
    collections::HashSet,
    fmt, io,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use firkin_causes::chain;
use firkin_postgres::NodeCatalogue;
use firkin_runtime::{fence::Fence, nodes::WardenFigures, runtime::Runtime};
use firkin_warden::{Page, PageError, ProcessId, Renewal, SpawnError, clock};
use futures::future::BoxFuture;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, sleep},
};

/// Between two looks at the lease, and at whether somebody watches.
const LOOK: Duration = Duration::from_millis(200);

/// How long a warden that watches may take until what it has stopped goes on.
const GOES_ON: Duration = Duration::from_secs(30);

/// Between two looks at that.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// After a warden was started, until another one is where that ended at once: this at first, and twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// When wardens were started. One that lasted is followed at once.
#[derive(Debug, Default)]
struct Attempts {
    last: Option<(Instant, Duration)>,
}

impl Attempts {
    /// Whether another one may be started. If so, it is counted.
    fn may_begin(&mut self, now: Instant) -> bool {
        let pause = match self.last {
            Some((at, pause)) if now < at + pause => return false,
            Some((at, pause)) if now < at + LONGEST_PAUSE * 2 => (pause * 2).min(LONGEST_PAUSE),
            _ => FIRST_PAUSE,
        };
        self.last = Some((now, pause));
        true
    }
}

/// Makes the program that calls [`firkin_warden::run`] with this page.
pub type WardenProgram = dyn Fn(&Path) -> io::Result<Command> + Send + Sync;

/// Is told of a deadline before it is promised to a warden.
pub type Witness = dyn Fn(Duration) -> io::Result<()> + Send + Sync;

/// The fence of a node.
pub struct NodeFence {
    page: Mutex<Page>,
    program: Option<Box<WardenProgram>>,
    witness: Option<Box<Witness>>,
    catalogue: Arc<NodeCatalogue>,
    /// Since what an earlier server had listed is this one's, or has ended.
    has_taken_over: AtomicBool,
    is_lost: AtomicBool,
    runtime: OnceLock<Runtime>,
    /// From when the lease is regained until what was stopped has gone on.
    is_behind: AtomicBool,
    watches: AtomicBool,
    starts: AtomicU64,
    attempts: Mutex<Attempts>,
}

impl fmt::Debug for NodeFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeFence").field("page", &self.page).finish_non_exhaustive()
    }
}

/// Why a node has no fence, or it does not do its work.
#[derive(Debug, thiserror::Error)]
enum FenceFailure {
    #[error("cannot write or read what the warden is told")]
    Page(#[from] PageError),
    #[error("nobody watches")]
    Spawn(#[from] SpawnError),
    #[error("nobody watches: the last warden ended, and another one is started soon")]
    Pause,
    #[error("cannot make the warden's program")]
    Program(#[source] io::Error),
    #[error("cannot write a promise down")]
    Witness(#[source] io::Error),
    #[error("the lease is over before this server has begun")]
    Over,
    #[error("machines that were stopped do not go on")]
    StandStill,
    #[error("the work was given up")]
    GivenUp(#[source] tokio::task::JoinError),
}

impl NodeFence {
    /// That of the node with this catalogue, whose warden reads `dir`; or one without a warden, which stops nothing, where there is no program. What an
    /// earlier server left there is this one's, as is a warden that watches.
    pub fn open(
        dir: &Path,
        catalogue: Arc<NodeCatalogue>,
        program: Option<Box<WardenProgram>>,
        witness: Option<Box<Witness>>,
    ) -> Result<Arc<Self>, PageError> {
        // One that cannot be read was written before the host was started, or by another version: the lease is over then.
        let page = Page::open(dir).or_else(|error| {
            tracing::debug!(error = chain(&error), "the warden's page is made anew");
            Page::create(dir, clock::now())
        })?;
        let (has_taken_over, is_lost, runtime, is_behind, watches, starts, attempts) = Default::default();
        let page = Mutex::new(page);
        Ok(Arc::new(Self {
            page,
            program,
            witness,
            catalogue,
            has_taken_over,
            is_lost,
            runtime,
            is_behind,
            watches,
            starts,
            attempts,
        }))
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        // What is written is written whole, so that what a panic left holds.
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owners of machines that stood still are told by it.
    pub fn is_of(&self, runtime: Runtime) {
        // A node has one.
        drop(self.runtime.set(runtime));
    }

    /// What is shown of it.
    pub fn figures(&self) -> WardenFigures {
        let listed = self.page().listed().map_or(0, |names| names.len());
        WardenFigures {
            watches: self.watches.load(Ordering::Relaxed),
            starts: self.starts.load(Ordering::Relaxed),
            listed: u64::try_from(listed).unwrap_or(u64::MAX),
        }
    }

    /// Has somebody watch, and tells the warden of the lease, for as long as the server runs: also while it begins, which may take long.
    pub async fn keep(self: Arc<Self>) {
        let mut turns = interval(LOOK);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_broken = false;
        loop {
            turns.tick().await;
            match self.look().await {
                Ok(()) => is_broken = false,
                Err(error) if is_broken => tracing::debug!(error = chain(&error), "the lease is not watched as it should be"),
                Err(error) => {
                    tracing::error!(
                        error = chain(&error),
                        "the lease is not watched as it should be: nothing is resumed until it is"
                    );
                    is_broken = true;
                }
            }
        }
    }

    async fn look(self: &Arc<Self>) -> Result<(), FenceFailure> {
        self.blocking(Self::have_watched).await?;
        if !self.has_taken_over.load(Ordering::SeqCst) || !self.blocking(Self::renew).await? {
            return Ok(());
        }
        tracing::warn!("the lease of this node was over and is regained: what was stopped of its own goes on");
        let this = Arc::clone(self);
        // Not waited for: who tells the warden of the lease waits for no sandbox.
        tokio::spawn(async move {
            if let Err(error) = this.goes_on().await {
                tracing::error!(error = chain(&error), "what was stopped does not go on");
            }
            if let Some(runtime) = this.runtime.get() {
                runtime.went_on().await;
            }
        });
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, FenceFailure> + Send + 'static,
    ) -> Result<T, FenceFailure> {
        let this = Arc::clone(self);
        spawn_blocking(move || work(&this)).await.map_err(FenceFailure::GivenUp)?
    }

    /// Sees to it that somebody watches.
    fn have_watched(&self) -> Result<(), FenceFailure> {
        let Some(program) = &self.program else { return Ok(()) };
        let (path, is_watched) = {
            let page = self.page();
            (page.path(), page.is_watched()?)
        };
        if is_watched {
            self.watches.store(true, Ordering::SeqCst);
            return Ok(());
        }
        // One at a time: whoever has waited finds the warden that another has started.
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        if self.page().is_watched()? {
            self.watches.store(true, Ordering::SeqCst);
            return Ok(());
        }
        if self.watches.swap(false, Ordering::SeqCst) {
            tracing::warn!("the warden of this node has ended; another one is started");
        }
        // A program that ends at once is not started with each look.
        if !attempts.may_begin(Instant::now()) {
            return Err(FenceFailure::Pause);
        }
        let command = program(&path).map_err(FenceFailure::Program)?;
        self.starts.fetch_add(1, Ordering::Relaxed);
        firkin_warden::spawn(command, &path)?;
        self.watches.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Tells the warden until when the lease is, if that is later than it knows. Whether the lease had been over.
    fn renew(&self) -> Result<bool, FenceFailure> {
        let Some(lease) = self.catalogue.membership().map(|membership| membership.lease()) else { return Ok(false) };
        let mut page = self.page();
        // One that had ended says nothing before what others have taken is let go of.
        if self.is_lost.load(Ordering::SeqCst) || !lease.holds() || lease.stop_at <= page.deadline() {
            return Ok(false);
        }
        if let Some(witness) = &self.witness {
            witness(lease.stop_at).map_err(FenceFailure::Witness)?;
        }
        let is_late = page.set_deadline(lease.stop_at)? == Renewal::TooLate;
        if is_late {
            // Whoever is taken off the list before the warden has read it stands still for good.
            self.is_behind.store(true, Ordering::SeqCst);
            page.regain(lease.stop_at)?;
        }
        Ok(is_late)
    }

    /// Waits until nothing of what is listed stands still.
    async fn goes_on(self: &Arc<Self>) -> Result<(), FenceFailure> {
        let gone_on = self.wait_for_what_stands_still().await;
        self.is_behind.store(false, Ordering::SeqCst);
        gone_on
    }

    async fn wait_for_what_stands_still(self: &Arc<Self>) -> Result<(), FenceFailure> {
        let since = Instant::now();
        while self.program.is_some() && self.blocking(|this| Ok(this.page().stands_still()?)).await? {
            if since.elapsed() > GOES_ON {
                return Err(FenceFailure::StandStill);
            }
            sleep(BETWEEN_LOOKS).await;
        }
        Ok(())
    }

    async fn begin(self: &Arc<Self>, own: HashSet<String>) -> Result<(), FenceFailure> {
        self.blocking(Self::have_watched).await?;
        let left = self.blocking(move |this| Ok(this.end_others(&own)?)).await?;
        self.blocking(Self::renew).await?;
        self.is_behind.store(left > 0, Ordering::SeqCst);
        if left > 0 {
            if !self.may_go_on() {
                return Err(FenceFailure::Over);
            }
            self.goes_on().await?;
        }
        self.has_taken_over.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Kills what is listed and not one of these. How many are left.
    fn end_others(&self, own: &HashSet<String>) -> Result<usize, PageError> {
        let mut page = self.page();
        let mut left = 0;
        for name in page.listed()? {
            if own.contains(&name) {
                left += 1;
            } else {
                tracing::warn!(machine = name, "a machine that is not this node's by now is killed");
                page.kill(&name)?;
            }
        }
        Ok(left)
    }

    /// The node is not this server's any more: what others could have stands still from now on.
    pub fn lose(&self) -> Result<(), PageError> {
        let mut page = self.page();
        self.is_lost.store(true, Ordering::SeqCst);
        page.lose()
    }

    /// The server has ended. So does the warden, unless there is something left that others could have.
    pub fn end(&self) -> Result<(), PageError> {
        let mut page = self.page();
        if page.listed()?.is_empty() { page.end() } else { Ok(()) }
    }
}

/// The fence of a node, as its runtime has it.
#[derive(Debug, Clone)]
pub struct SharedFence(pub Arc<NodeFence>);

impl NodeFence {
    fn holds(&self) -> bool {
        // In this order: it is behind before anybody can see that the lease is regained.
        self.may_go_on() && !self.is_behind.load(Ordering::SeqCst)
    }

    fn may_go_on(&self) -> bool {
        let is_watched = self.program.is_none() || self.watches.load(Ordering::SeqCst);
        is_watched && clock::now() < self.page().deadline()
    }
}

impl Fence for SharedFence {
    fn holds(&self) -> bool {
        self.0.holds()
    }

    fn list(&self, machine: &str, processes: &[u32]) -> io::Result<()> {
        // One that has ended meanwhile is nobody.
        let processes: Vec<ProcessId> = processes.iter().filter_map(|pid| ProcessId::of(*pid).ok()).collect();
        self.0.page().list(machine, &processes).map_err(io::Error::other)
    }

    fn unlist(&self, machine: &str) -> io::Result<()> {
        self.0.page().unlist(machine).map_err(io::Error::other)
    }

    fn end(&self, machine: &str) -> io::Result<()> {
        self.0.page().kill(machine).map_err(io::Error::other)
    }

    fn take_over<'a>(&'a self, own: &'a HashSet<String>) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.0.begin(own.clone()).await.map_err(io::Error::other) })
    }

    fn unlist_all(&self) -> io::Result<()> {
        let mut page = self.0.page();
        for name in page.listed().map_err(io::Error::other)? {
            page.unlist(&name).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use firkin_postgres::{Address, Node};

    use super::*;

    /// Of a node whose catalogue nobody has opened.
    fn catalogue() -> Arc<NodeCatalogue> {
        let node = Node {
            id: "a1b2c3d4e5f6g7h8i9j0".parse().unwrap(),
            name: "node".into(),
            address: "127.0.0.1:1".into(),
            secret_fingerprint: "f".into(),
        };
        Arc::new(NodeCatalogue::of(Address::with_authority("postgres://nobody@127.0.0.1:1/nowhere", None).unwrap(), node))
    }

    fn machine() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        (child, process)
    }

    #[test]
    fn a_warden_that_ends_at_once_is_followed_later_each_time_and_one_that_lasted_at_once() {
        let (mut attempts, begun) = (Attempts::default(), Instant::now());
        let began: Vec<u64> = (0..120).filter(|second| attempts.may_begin(begun + Duration::from_secs(*second))).collect();
        assert_eq!(began, [0, 1, 3, 7, 15, 31, 61, 91]);
        let later = begun + Duration::from_secs(1000);
        assert!(attempts.may_begin(later) && !attempts.may_begin(later));
        assert!(attempts.may_begin(later + FIRST_PAUSE));
    }

    #[tokio::test]
    async fn what_is_anothers_is_killed_and_without_a_lease_or_who_watches_it_nothing_may_begin() {
        let dir = tempfile::tempdir().unwrap();
        let ((mut own, first), (mut anothers, second)) = (machine(), machine());
        let mut page = Page::create(dir.path(), clock::now() + Duration::from_secs(3600)).unwrap();
        page.list("own", &[first]).unwrap();
        page.list("anothers", &[second]).unwrap();
        drop(page);
        let fence = SharedFence(NodeFence::open(dir.path(), catalogue(), None, None).unwrap());
        assert!(fence.holds());
        fence.take_over(&HashSet::from(["own".to_owned()])).await.unwrap();
        assert!(!anothers.wait().unwrap().success());
        assert!(own.try_wait().unwrap().is_none());
        assert_eq!(fence.0.figures().listed, 1);
        fence.list("new", &[own.id()]).unwrap();
        assert_eq!(fence.0.figures().listed, 2);
        fence.unlist_all().unwrap();
        assert_eq!(fence.0.figures().listed, 0);
        assert!(own.try_wait().unwrap().is_none(), "what is forgotten runs on");
        fence.list("new", &[own.id()]).unwrap();
        fence.end("of-nobody").unwrap();
        assert_eq!(fence.0.figures().listed, 1);
        fence.end("new").unwrap();
        assert!(!own.wait().unwrap().success());
        assert_eq!(fence.0.figures().listed, 0);
        fence.0.lose().unwrap();
        assert!(!fence.holds());

        let dir = tempfile::tempdir().unwrap();
        drop(Page::create(dir.path(), clock::now() + Duration::from_secs(3600)).unwrap());
        let ends: Box<WardenProgram> = Box::new(|_| Ok(Command::new("false")));
        let fence = SharedFence(NodeFence::open(dir.path(), catalogue(), Some(ends), None).unwrap());
        assert!(!fence.holds(), "nobody watches");
        fence.take_over(&HashSet::new()).await.unwrap_err();
        assert_eq!((fence.0.figures().starts, fence.holds()), (1, false));
    }
}
