//! What stops a machine when its host may not count on its sandbox any more: a process that outlives the server, by a list that it reads.
//!
//! Listed is what others could claim, and from before its guest begins. What others cannot have runs on, whatever becomes of the lease.

use std::{collections::HashSet, fmt::Debug, io, sync::Arc};

use firkin_engine::Machine;
use futures::future::BoxFuture;

use crate::ground::blocking::blocking;

/// Whoever stops what is listed once this host's lease is over. A host that shares its catalogue with nobody has none.
pub trait Fence: Debug + Send + Sync {
    /// Whether what others could claim may begin or go on at this moment.
    fn holds(&self) -> bool;

    /// Has these processes of a machine stopped too when the lease is over, by their numbers. Takes the place of what was listed by this name: 1 to 128
    /// letters, digits, `-` and `_`. Blocks for two small files.
    fn list(&self, machine: &str, processes: &[u32]) -> io::Result<()>;

    /// Has one forgotten, if it is listed. What is stopped of it stays so. Blocks likewise.
    fn unlist(&self, machine: &str) -> io::Result<()>;

    /// Kills a machine if it is listed, also where it stands still, and has it forgotten. Blocks likewise.
    fn end(&self, machine: &str) -> io::Result<()>;

    /// What an earlier server had listed becomes this one's: machines that are not among its `own` are killed, and the others go on once somebody
    /// watches and the lease holds. None of them stands still when this returns.
    fn take_over<'a>(&'a self, own: &'a HashSet<String>) -> BoxFuture<'a, io::Result<()>>;

    /// Forgets all that is listed. Blocks likewise.
    fn unlist_all(&self) -> io::Result<()>;
}

/// Why a machine may not begin.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Others may have it by now, or nobody would stop it.
    #[error("the lease of this host is over, or nobody watches it")]
    Over,
    /// Its processes cannot be told, or not be listed.
    #[error("cannot have the machine stopped when the lease of this host is over")]
    List(#[source] io::Error),
}

/// A machine that is listed, until this is dropped.
#[derive(Debug)]
pub(crate) struct Listing {
    fence: Arc<dyn Fence>,
    machine: String,
    stays: bool,
}

impl Listing {
    /// Lists a machine, where there is somebody to stop it. It may begin or go on when this returns.
    pub(crate) async fn of(
        fence: Option<&Arc<dyn Fence>>,
        machine: &dyn Machine,
        name: &str,
    ) -> Result<Option<Self>, FenceError> {
        let Some(fence) = fence else { return Ok(None) };
        let processes = machine.processes().await.map_err(FenceError::List)?;
        let (fence, name) = (Arc::clone(fence), name.to_owned());
        let listing = blocking(move || {
            fence.list(&name, &processes)?;
            io::Result::Ok(Self { fence, machine: name, stays: false })
        });
        let listing = listing.await.map_err(FenceError::List)?;
        // Whoever stops it may have looked before it was listed.
        if listing.holds() { Ok(Some(listing)) } else { Err(FenceError::Over) }
    }

    /// Whether the machine may run.
    pub(crate) fn holds(&self) -> bool {
        self.fence.holds()
    }

    /// The machine lives on, and stays listed.
    pub(crate) fn release(mut self) {
        self.stays = true;
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = self.fence.unlist(&self.machine) {
            tracing::warn!(machine = self.machine, %error, "a machine stays listed that nobody else could have");
        }
    }
}
