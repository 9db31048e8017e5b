//! The warden's own life: it looks at its files, and stops and lets go on what they say.
//!
//! One thread reads. A second one stops what is known to be listed where the first has not come back from a read by [`BACKSTOP`] after the
//! deadline, as on a disk that does not answer: it touches memory only.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fs_err as fs;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use rustix::fs::{FlockOperation, flock};

use crate::{
    PageError, clock, list,
    page::{Entry, LOCK, Order, STOPPED, read},
    process::Held,
    safeguards,
    watched::{Change, Watched},
};

/// Between two looks at the page, unless a deadline is nearer.
const LOOK_MS: u16 = 100;

/// How long after the deadline the page may take to be read, until what it said before holds.
const BACKSTOP: Duration = Duration::from_secs(1);

/// How long the lock may be held by those who ask whether anybody has it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Why a warden ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its server had no more to be watched.
    Ordered,
    /// Server and machines are gone.
    NobodyLeft,
}

/// Why there is no warden.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What to watch cannot be read. It is said to a warden that begins; to one that watches it is a page that changes no more.
    #[error("cannot watch machines")]
    Page(#[from] PageError),
    /// There is one already.
    #[error("cannot watch machines: another warden watches `{}`", dir.display())]
    Another {
        /// Where.
        dir: PathBuf,
    },
    /// The host lacks what it needs.
    #[error("cannot watch machines in `{}`", dir.display())]
    Host {
        /// Where.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Watches what the page says, for as long as there is something to watch. To be called by a program of its own, as its only work: it takes the
/// process out of its session, locks its memory and raises its priority, as far as the host lets it.
///
/// Whatever becomes of the files, what was read last holds: a deadline that nobody can put off passes.
pub fn run(page: &Path) -> Result<End, RunError> {
    for lack in safeguards::take() {
        tracing::warn!("the warden goes without a safeguard: {lack}");
    }
    let dir = page.parent().unwrap_or(Path::new("/")).to_owned();
    let host = |source: io::Error| RunError::Host { dir: dir.clone(), source };
    let entry = read(page)?;
    let mut warden = Warden::new(page, &dir, &entry).map_err(host)?;
    warden.read_list(&entry).map_err(host)?;
    if clock::now() >= entry.deadline {
        // Before anybody may learn that somebody watches.
        warden.act();
    }
    let lock = match take_lock(&dir) {
        Err(another @ RunError::Another { .. }) => {
            // Whoever watches does not know what this one has stopped by a page that may have changed since.
            if let Ok(entry) = read(page) {
                warden.take(entry);
            }
            return Err(another);
        }
        lock => lock?,
    };
    let backstop = warden.backstop().map_err(host)?;
    // The first look reads the list before it does anything.
    arm(&warden.late, entry.deadline.saturating_add(BACKSTOP)).map_err(|errno| host(errno.into()))?;
    let end = warden.watch();
    // Its thread ends once it is called.
    warden.is_ended.store(true, Ordering::SeqCst);
    arm(&warden.late, Duration::from_nanos(1)).map_err(|errno| host(errno.into()))?;
    drop(backstop.join());
    drop(lock);
    Ok(end)
}

/// The lock that says that somebody watches.
fn take_lock(dir: &Path) -> Result<fs::File, RunError> {
    let host = |source: io::Error| RunError::Host { dir: dir.to_owned(), source };
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK)).map_err(host)?;
    let since = Instant::now();
    loop {
        match flock(file.file(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < LOCK_PATIENCE => {
                thread::park_timeout(Duration::from_millis(10))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(RunError::Another { dir: dir.to_owned() }),
            Err(errno) => return Err(host(errno.into())),
        }
    }
}

/// Sets a timer to a time of [`clock::now`].
fn arm(timer: &TimerFd, at: Duration) -> nix::Result<()> {
    // Zero would be never. Beyond what the kernel counts is never, too.
    let at = at.clamp(Duration::from_nanos(1), Duration::from_secs(u64::from(u32::MAX)));
    timer.set(Expiration::OneShot(TimeSpec::from_duration(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME)
}

struct Warden {
    page: PathBuf,
    dir: PathBuf,
    watched: Arc<Mutex<Watched>>,
    /// Goes off at the deadline, for who reads.
    timer: TimerFd,
    /// Goes off after it, for who does not.
    late: Arc<TimerFd>,
    is_ended: Arc<AtomicBool>,
    /// The server, while it is there.
    server: Option<Held>,
    entry: Entry,
    /// How often the list had been changed when it was read, unless part of it could not be.
    read_listing: Option<u64>,
    /// Said once.
    is_unreadable: bool,
    noted: Option<u64>,
}

impl Warden {
    fn new(page: &Path, dir: &Path, entry: &Entry) -> io::Result<Self> {
        let timer = || TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC);
        Ok(Self {
            page: page.to_owned(),
            dir: dir.to_owned(),
            watched: Arc::new(Mutex::new(Watched::of(entry, noted(dir)))),
            timer: timer()?,
            late: Arc::new(timer()?),
            is_ended: Arc::default(),
            server: entry.server.hold()?,
            entry: *entry,
            read_listing: None,
            is_unreadable: false,
            noted: None,
        })
    }

    /// Stops what is known when nobody has read anything in time.
    fn backstop(&self) -> io::Result<thread::JoinHandle<()>> {
        let (watched, late, is_ended) = (Arc::clone(&self.watched), Arc::clone(&self.late), Arc::clone(&self.is_ended));
        thread::Builder::new().name("backstop".into()).stack_size(256 << 10).spawn(move || {
            while !is_ended.load(Ordering::SeqCst) {
                match late.wait() {
                    Ok(()) | Err(Errno::EINTR) => {}
                    Err(errno) => return tracing::error!(%errno, "the warden's timer does not go off; its looks have to do"),
                }
                if !is_ended.load(Ordering::SeqCst) && known(&watched).apply(clock::now()) == Change::Stopped {
                    tracing::warn!("machines were stopped by what the page said last: it could not be read in time");
                }
            }
        })
    }

    fn watch(&mut self) -> End {
        loop {
            match read(&self.page) {
                Ok(entry) => {
                    self.is_unreadable = false;
                    if entry.order == Order::End {
                        return End::Ordered;
                    }
                    self.take(entry);
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_unreadable, true) {
                        tracing::error!(%error, "the warden's page cannot be read: its last deadline holds");
                    }
                    self.act();
                }
            }
            if self.server.as_ref().is_none_or(Held::has_ended) && known(&self.watched).is_empty() {
                return End::NobodyLeft;
            }
            self.wait();
        }
    }

    /// Takes what a page says that is whole. The deadline first: the list is many files.
    fn take(&mut self, entry: Entry) {
        if entry.server != self.entry.server {
            match entry.server.hold() {
                Ok(server) => self.server = server,
                Err(error) => tracing::error!(%error, "cannot hold the server's process"),
            }
        }
        self.entry = entry;
        let may_go_on = {
            let mut watched = known(&self.watched);
            let stopped_in = watched.stopped_in();
            // Before anything goes on, the list is what the server has left of it.
            let may_go_on = stopped_in.is_some_and(|generation| entry.generation > generation);
            if !may_go_on {
                watched.learn(&entry);
            }
            may_go_on
        };
        if !may_go_on {
            self.act();
        }
        if (self.read_listing != Some(entry.listings) || may_go_on)
            && let Err(error) = self.read_list(&entry)
        {
            tracing::error!(%error, "the warden's list cannot be read: what it knows of it holds");
            self.read_listing = None;
        }
        // Where the list is not whole, nobody knows what was left of it.
        if may_go_on && self.read_listing.is_some() {
            known(&self.watched).learn(&entry);
        }
        self.act();
    }

    /// Reads the list. What cannot be read of it stays as it was, and is tried again.
    fn read_list(&mut self, entry: &Entry) -> io::Result<()> {
        let names = list::names(&self.dir)?;
        let mut is_whole = true;
        for name in &names {
            let processes = match list::get(&self.dir, entry.boot, name) {
                Ok(processes) => processes.unwrap_or_default(),
                Err(error) => {
                    tracing::error!(name, %error, "cannot read what is listed");
                    is_whole = false;
                    continue;
                }
            };
            if known(&self.watched).holds(name, &processes) {
                continue;
            }
            let mut held = Vec::new();
            for process in processes {
                match process.hold() {
                    Ok(found) => held.extend(found),
                    Err(error) => {
                        tracing::error!(name, pid = process.pid, %error, "cannot hold a process");
                        is_whole = false;
                    }
                }
            }
            known(&self.watched).put(name, held);
        }
        known(&self.watched).retain(&names);
        self.read_listing = is_whole.then_some(entry.listings);
        Ok(())
    }

    /// Does what the time asks for, and says so.
    fn act(&mut self) {
        let (change, deadline, stopped_in, processes) = {
            let mut watched = known(&self.watched);
            let change = watched.apply(clock::now());
            (change, watched.deadline(), watched.stopped_in(), watched.processes())
        };
        match change {
            Change::None => {}
            // As when a server begins, whose lease is yet to come.
            Change::Stopped | Change::WentOn if processes == 0 => tracing::debug!(?change, "nothing is listed"),
            Change::Stopped => tracing::warn!(processes, "the lease is over: machines were stopped"),
            Change::WentOn => tracing::warn!(processes, "the lease was regained: machines go on"),
        }
        if stopped_in.is_some() && stopped_in != self.noted {
            let note = stopped_in.map(|generation| generation.to_string()).unwrap_or_default();
            let (new, path) = (self.dir.join("stopped.new"), self.dir.join(STOPPED));
            match fs::write(&new, note).and_then(|()| fs::rename(&new, &path)) {
                Ok(()) => self.noted = stopped_in,
                Err(error) => tracing::error!(%error, "cannot tell the server that machines were stopped"),
            }
        }
        let late = deadline.saturating_add(BACKSTOP);
        // One in the past goes off at once, and its work is done.
        if stopped_in.is_none()
            && let Err(errno) = arm(&self.timer, deadline).and_then(|()| arm(&self.late, late))
        {
            tracing::error!(%errno, "cannot set the warden's timer; its looks have to do");
        }
    }

    /// Until the deadline, or the next look.
    fn wait(&self) {
        let is_stopped = known(&self.watched).stopped_in().is_some();
        let mut timer = [PollFd::new(self.timer.as_fd(), PollFlags::POLLIN)];
        // While everything is stopped the timer has nothing to say.
        let watched = if is_stopped { &mut timer[..0] } else { &mut timer[..] };
        match poll(watched, PollTimeout::from(LOOK_MS)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "cannot wait for the warden's timer");
                thread::park_timeout(Duration::from_millis(u64::from(LOOK_MS)));
            }
        }
    }
}

/// The generation in which a warden has stopped machines last, as it said.
fn noted(dir: &Path) -> Option<u64> {
    fs::read_to_string(dir.join(STOPPED)).ok()?.trim().parse().ok()
}

/// What is known is changed by single assignments, so that it is whole whatever happened to who held it.
fn known(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}
