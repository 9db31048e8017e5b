//! Starting a warden that outlives who starts it.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{PageError, page};

/// How long a warden may take until it watches. A host that is busy starts programs slowly.
const START: Duration = Duration::from_secs(30);

/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(10);

/// Why no warden was started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its program cannot be run.
    #[error("cannot start the warden of `{}`", page.display())]
    Start {
        /// What it was to watch.
        page: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended, or does not begin.
    #[error("the warden of `{}` does not watch", page.display())]
    Silent {
        /// What it was to watch.
        page: PathBuf,
    },
    /// Nobody can say whether it watches.
    #[error("cannot see whether the warden watches")]
    Page(#[from] PageError),
}

/// Starts `command`, a program that calls [`crate::run`] with this page, and waits until it watches. Where one watches already, nothing is
/// started. Its standard error is the caller's; it takes itself out of the caller's session, and its end is waited for by a thread.
///
/// Blocks for as long as that takes, and for half a minute at most.
pub fn spawn(mut command: Command, page: &Path) -> Result<(), SpawnError> {
    let dir = page.parent().unwrap_or(Path::new("/"));
    if page::is_watched(dir)? {
        return Ok(());
    }
    let start = |source| SpawnError::Start { page: page.to_owned(), source };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).current_dir("/").spawn().map_err(start)?;
    // Not joined: it ends with the warden, and is there so that a dead one is buried.
    let waiting = thread::Builder::new().name("warden".into()).spawn(move || match child.wait() {
        Ok(status) if status.success() => tracing::info!("the warden has ended"),
        Ok(status) => tracing::error!(%status, "the warden has ended"),
        Err(error) => tracing::error!(%error, "cannot wait for the warden"),
    });
    let waiting = waiting.map_err(start)?;
    let since = Instant::now();
    while !page::is_watched(dir)? {
        if waiting.is_finished() || since.elapsed() > START {
            return Err(SpawnError::Silent { page: page.to_owned() });
        }
        thread::park_timeout(LOOK);
    }
    Ok(())
}
