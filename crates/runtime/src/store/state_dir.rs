//! The directory of everything that outlives the process: one server at a time, and nobody else.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::{ground::private::private_dir, store::StoreError};

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory of the state could not be made or read.
    #[error("cannot use `{}`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another server uses this state directory.
    #[error("another server uses the state directory `{}`", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// What is encrypted of it, or is to be, cannot be used as it is.
    #[error("cannot encrypt or decrypt what sandboxes leave")]
    Encryption(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The catalogue of the state directory is not in it.
    #[error("what is on record of `{}` is in the catalogue at {address}, which was not named", path.display())]
    CatalogElsewhere {
        /// The directory.
        path: PathBuf,
        /// Where its catalogue is.
        address: String,
    },
    /// The state directory has a catalogue in itself.
    #[error("what is on record of `{}` is in its own database, and not in the catalogue at {address}", path.display())]
    CatalogHere {
        /// The directory.
        path: PathBuf,
        /// The catalogue that was named.
        address: String,
    },
    /// There are files of sandboxes, and nothing on record of them.
    #[error("there are snapshots in `{}` and nothing is on record of them: a server that began anew would remove them", path.display())]
    CatalogLost {
        /// The directory.
        path: PathBuf,
    },
    /// It is being made of copies, and is not whole.
    #[error("`{}` is being restored from copies, and is not whole; `firkin restore-from` goes on with it", path.display())]
    Restoring {
        /// The directory.
        path: PathBuf,
    },
    /// The store could not be opened.
    #[error("cannot open the database")]
    Store(#[source] StoreError),
    /// A sandbox runs on an engine that was not asked for.
    #[error("sandbox `{sandbox}` runs on {engine}, which this server is not to use: it would be lost")]
    Engine {
        /// The sandbox.
        sandbox: String,
        /// The engine's name.
        engine: String,
        /// The word by which it is asked for.
        word: &'static str,
    },
    /// Machines that others could have by now cannot be stopped, or those that are this server's not go on.
    #[error("nobody watches the lease of this host")]
    Fence(#[source] std::io::Error),
    /// What is put into requests, and that hosts of a cluster have together, is not to be had.
    #[error("cannot use the secrets and keys of the cluster")]
    Secrets(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The network could not be prepared.
    #[error("cannot prepare the network")]
    Network(#[source] firkin_network::OpenError),
}

/// What is in a state directory, by its name, that is being made of copies.
pub(crate) const RESTORING: &str = "restoring.json";

/// Where files lie in it meanwhile that were fetched and are not yet in their place.
pub(crate) const FETCHED: &str = "restoring";

/// The database of a state directory. One that is made of copies gets it last.
pub(crate) const DATABASE: &str = "firkin.db";

/// An exclusive lock on the state directory.
#[derive(Debug)]
pub(crate) struct StateLock(#[expect(dead_code, reason = "held, not read")] pub(crate) Flock<std::fs::File>);

/// As [`prepare_state_dir`], for whoever serves: not where half of it is there.
pub(crate) fn whole_state_dir(path: &Path) -> Result<StateLock, OpenError> {
    let lock = prepare_state_dir(path)?;
    if !path.join(RESTORING).exists() {
        return Ok(lock);
    }
    if !path.join(DATABASE).exists() {
        return Err(OpenError::Restoring { path: path.to_owned() });
    }
    let ended = end_restoring(path).map_err(|source| OpenError::Directory { path: path.to_owned(), source });
    ended.map(|()| lock)
}

/// Takes away what is left of making it of copies: its database is there, so it is whole. What says that this is left goes last.
pub(crate) fn end_restoring(path: &Path) -> std::io::Result<()> {
    match firkin_files::remove_tree(&path.join(FETCHED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::remove_file(path.join(RESTORING))
}

/// How long a server that is gone may still seem to be there: a process that it was just starting has its lock until it is another program.
const LEFT_FOR: Duration = Duration::from_secs(2);

/// Makes the state directory and locks it for this process. Blocks while another one has it, for two seconds.
pub(crate) fn prepare_state_dir(path: &Path) -> Result<StateLock, OpenError> {
    let directory = |source| OpenError::Directory { path: path.to_owned(), source };
    // Whatever lies below is somebody's: names, tokens, memory, files. Machines run as other users and are handed what they use.
    private_dir(path).map_err(directory)?;
    private_dir(&path.join("run")).map_err(directory)?;
    let mut open = fs::OpenOptions::new();
    let file = open.create(true).truncate(false).write(true).mode(0o600).open(path.join("lock")).map_err(directory)?;
    let begun = Instant::now();
    let mut file = file.into_file();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(StateLock(lock)),
            Err((same, Errno::EWOULDBLOCK)) if begun.elapsed() < LEFT_FOR => {
                file = same;
                std::thread::park_timeout(LEFT_FOR / 100);
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(OpenError::Locked { path: path.to_owned() }),
            Err((_, other)) => return Err(directory(other.into())),
        }
    }
}
