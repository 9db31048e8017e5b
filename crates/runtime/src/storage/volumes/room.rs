//! A volume in sandboxes: what they share counts as what comes through the API does.

use std::{io, path::Path, sync::Arc};

use firkin_share::{Figures, Room, Share, Sizes};
use rustix::io::Errno;
use tokio::sync::OwnedMutexGuard;

use super::{content::Root, usage};

/// A volume's content, for sandboxes. Where its entries are is kept in a file, and `held` until that is closed. Blocks.
pub(super) fn share(root: &Arc<Root>, places: &Path, held: OwnedMutexGuard<()>) -> io::Result<Share> {
    Ok(Share::new(root.root.try_clone()?, places, Arc::new(VolumeRoom(Arc::clone(root)))).holding(held))
}

/// Counts for a volume what its guests do.
#[derive(Debug)]
struct VolumeRoom(Arc<Root>);

impl Room for VolumeRoom {
    fn size(&self, allocated: u64) -> u64 {
        allocated.max(usage::LEAST_BYTES)
    }

    fn change(&self, most: u64, change: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno> {
        if most > 0 && self.0.disk.check().is_err() {
            return Err(Errno::NOSPC);
        }
        let account = self.0.counted().map_err(|error| {
            tracing::error!(error = firkin_causes::chain(&error), "a volume cannot be counted, and so not written");
            Errno::IO
        })?;
        let _changing = account.change();
        let taken = account.take(most);
        if most > 0 && taken.is_err() {
            return Err(Errno::DQUOT);
        }
        let Sizes { before, after } = change()?;
        account.became(before, after);
        Ok(())
    }

    fn figures(&self) -> Figures {
        let account = &self.0.account;
        Figures { used: account.used().unwrap_or_default(), quota: account.quota() }
    }
}
