//! What a node does with the lease that the catalogue gives it: a warden stops machines when it is over.
//!
//! No server of the product starts a warden as yet. Here each has one, which is told what [`Membership::lease`] says: its page has the time at
//! which machines are stopped that others could have, and they go on once the node has looked whose they are.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use firkin_postgres::Membership;
use firkin_warden::{Page, ProcessId, Renewal, clock};
use tokio::time::interval;

use crate::record::{Leased, at, now};

/// Between two looks at what the lease is.
const LOOK: Duration = Duration::from_millis(200);

/// The page of a node.
#[derive(Debug)]
pub(crate) struct Lease {
    page: Mutex<Page>,
    /// Where each promise is written down before it is kept.
    log: PathBuf,
    with_warden: bool,
    /// Who has the lease, once the server has looked at what is on record.
    membership: OnceLock<Arc<Membership>>,
}

impl Lease {
    /// Takes over what an earlier server left in `dir`, or begins with a lease that is over.
    pub(crate) fn open(dir: &Path, log: &Path, with_warden: bool) -> anyhow::Result<Self> {
        let page = Page::open(dir).or_else(|error| {
            tracing::info!(%error, "the warden's page is made anew");
            Page::create(dir, clock::now())
        })?;
        Ok(Self { page: Mutex::new(page), log: log.to_owned(), with_warden, membership: OnceLock::new() })
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is this node's still.
    pub(crate) fn holds(&self) -> bool {
        clock::now() < self.page().deadline()
    }

    /// Has a machine stopped, too, when the lease is over.
    pub(crate) fn list(&self, name: &str, process: ProcessId) -> anyhow::Result<()> {
        Ok(self.page().list(name, &[process])?)
    }

    pub(crate) fn unlist(&self, name: &str) -> anyhow::Result<()> {
        Ok(self.page().unlist(name)?)
    }

    /// There are no machines any more.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        Ok(self.page().end()?)
    }

    /// The warden is told of it from now on: what others have taken of what an earlier server left does not run here any more.
    pub(crate) fn is_of(&self, membership: Arc<Membership>) {
        // Each server has one.
        self.membership.get_or_init(|| membership);
    }

    /// Sees to it for as long as the server runs that somebody watches, also while it begins: a database that is away keeps it from that for
    /// long. Tells the warden of the lease.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut turns = interval(LOOK);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            let lease = Arc::clone(&self);
            let watched = tokio::task::spawn_blocking(move || lease.watched()).await;
            if let Ok(Err(error)) = watched {
                tracing::error!("nobody watches: {error:#}");
                continue;
            }
            let Some(given) = self.membership.get().map(|membership| membership.lease()) else { continue };
            // One that had ended says nothing before what others have taken is let go of.
            if given.holds()
                && given.stop_at > self.page().deadline()
                && let Err(error) = self.renew(given.stop_at)
            {
                tracing::error!("the warden is not told of the lease: {error:#}");
            }
        }
    }

    fn watched(&self) -> anyhow::Result<()> {
        if !self.with_warden {
            return Ok(());
        }
        let (path, is_watched) = {
            let page = self.page();
            (page.path(), page.is_watched()?)
        };
        if !is_watched {
            let mut command = std::process::Command::new(std::env::current_exe()?);
            command.arg("warden").arg("--page").arg(&path);
            firkin_warden::spawn(command, &path)?;
        }
        Ok(())
    }

    fn renew(&self, deadline: Duration) -> anyhow::Result<()> {
        let promise = serde_json::to_string(&Leased { at: now(), until: at(deadline) })?;
        let mut log = fs_err::OpenOptions::new().create(true).append(true).open(&self.log)?;
        std::io::Write::write_all(&mut log, format!("{promise}\n").as_bytes()).context("cannot write a promise down")?;
        let mut page = self.page();
        if page.set_deadline(deadline)? == Renewal::TooLate {
            tracing::warn!("the lease was over, and is regained");
            page.regain(deadline)?;
        }
        Ok(())
    }
}
