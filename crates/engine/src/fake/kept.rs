//! Machines that outlive the process of the engine: each is also a file, which a later engine finds.
//!
//! A real machine is a process of its own, so what a killed server leaves is still there for the next one. A fake machine that
//! is to show the same must live outside its server, too. Its file is replaced whole whenever the machine changes, and removed
//! when it ends.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Core, Host, Origin, Phase, body::Body, lock};

/// What its file says of a machine.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    dir: PathBuf,
    started: u64,
    /// The memory file of a machine that was booted.
    booted: Option<PathBuf>,
    /// Memory of a machine that was restored.
    restored_bytes: u64,
    standing: Standing,
    memory: Vec<u8>,
    root_disk: PathBuf,
    body: Option<Body>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Standing {
    Prepared,
    Running,
    Paused,
    Sealed,
}

const EXTENSION: &str = "machine";

/// The file of the machine in `dir`.
pub(super) fn file_of(host: &Path, dir: &Path) -> PathBuf {
    let name = blake3::hash(dir.as_os_str().as_encoded_bytes()).to_hex();
    host.join(format!("{}.{EXTENSION}", &name[..32]))
}

/// Writes down what a machine is now, or removes what was written of one that is gone.
pub(super) fn keep(host: &Path, core: &Core) -> io::Result<()> {
    let path = file_of(host, &core.dir);
    let standing = match &*core.phase.borrow() {
        Phase::Prepared => Standing::Prepared,
        Phase::Running => Standing::Running,
        Phase::Paused => Standing::Paused,
        Phase::Sealed => Standing::Sealed,
        Phase::Gone(_) => return if fs_err::exists(&path)? { fs_err::remove_file(&path) } else { Ok(()) },
    };
    let kept = Kept {
        dir: core.dir.clone(),
        started: core.started,
        booted: match &core.origin {
            Origin::Booted { memory_file } => Some(memory_file.clone()),
            Origin::Restored { .. } => None,
        },
        restored_bytes: match &core.origin {
            Origin::Booted { .. } => 0,
            Origin::Restored { memory_bytes } => *memory_bytes,
        },
        standing,
        memory: lock(&core.memory).clone(),
        root_disk: lock(&core.root_disk).clone(),
        body: *lock(&core.body),
    };
    let temporary = path.with_extension("new");
    fs_err::write(&temporary, serde_json::to_vec(&kept)?)?;
    fs_err::rename(&temporary, &path)
}

/// Every machine that was written down.
pub(super) fn find(path: &Path, host: &Arc<Host>) -> io::Result<Vec<Arc<Core>>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(path)? {
        let file = entry?.path();
        if file.extension().is_none_or(|extension| extension != EXTENSION) {
            // A change that did not come about.
            fs_err::remove_file(&file)?;
            continue;
        }
        let kept: Kept = serde_json::from_slice(&fs_err::read(&file)?)?;
        let phase = match kept.standing {
            Standing::Prepared => Phase::Prepared,
            Standing::Running => Phase::Running,
            Standing::Paused => Phase::Paused,
            Standing::Sealed => Phase::Sealed,
        };
        found.push(Arc::new(Core {
            dir: kept.dir,
            started: kept.started,
            origin: match kept.booted {
                Some(memory_file) => Origin::Booted { memory_file },
                None => Origin::Restored { memory_bytes: kept.restored_bytes },
            },
            phase: watch::Sender::new(phase),
            memory: Mutex::new(kept.memory),
            root_disk: Mutex::new(kept.root_disk),
            unnamed_bytes: AtomicU64::new(0),
            body: Mutex::new(kept.body),
            host: Arc::downgrade(host),
        }));
    }
    Ok(found)
}
