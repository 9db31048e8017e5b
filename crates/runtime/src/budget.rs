//! The disk budget: what can be made again goes, oldest use first, until the state directory fits. When even that is not enough,
//! nothing new is kept; what users have is never touched, and pausing goes on down to the floor.
//!
//! Volumes are not counted: they are their users', and may have more files than can be walked every time.

use std::{
    collections::HashSet,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use fs_err as fs;
use tokio::sync::Mutex;

use crate::{
    artifact::MemoryMember,
    core::Core,
    error::{DiskPressure, StoreError},
    owner::chain,
    store::RecordedPhase,
};

/// The directory that is not counted.
const VOLUMES: &str = "volumes";

/// Bytes of a block as `stat` counts them, whatever the file system's own are.
const BLOCK_BYTES: u64 = 512;

/// One collection at a time, with what it does for the budget.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<()>);

/// Something that can be made again.
#[derive(Debug)]
enum Spare {
    /// A state between steps of a build, by its key.
    Layer(String),
    /// An archive that a client can bring again.
    Upload(PathBuf),
}

/// Collects what nobody needs, then lets go what can be made again until the rest fits. Gives the bytes that are held then, or
/// nothing when there is no budget.
pub(crate) async fn keep(core: &Core) -> Result<Option<u64>, Box<dyn std::error::Error + Send + Sync>> {
    let _turn = core.turn.0.lock().await;
    core.collect_now().await?;
    let Some(budget_mib) = core.config.disk_budget_mib else { return Ok(None) };
    let budget = budget_mib.saturating_mul(1 << 20);
    let mut held = measure(core).await?;
    if held > budget {
        for spare in spares(core).await? {
            match spare {
                Spare::Layer(key) => core.store.delete_layers(vec![key]).await?,
                Spare::Upload(path) => match fs::remove_file(path) {
                    // A build's end tidies up too.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                },
            }
            core.collect_now().await?;
            held = measure(core).await?;
            if held <= budget {
                break;
            }
        }
    }
    core.metrics.disk(budget, held);
    Ok(Some(held))
}

/// Refuses what would be kept besides what already exceeds the budget.
pub(crate) async fn admit(core: &Core) -> Result<(), DiskPressure> {
    let Some(budget_mib) = core.config.disk_budget_mib else { return Ok(()) };
    let path = || core.config.state_dir.clone();
    let held = keep(core).await.map_err(|error| {
        let source = io::Error::other(chain(&*error));
        DiskPressure::ProbeFailed { path: path(), source }
    })?;
    let held_mib = held.unwrap_or(0).div_ceil(1 << 20);
    if held_mib > budget_mib {
        return Err(DiskPressure::OverBudget { path: path(), held_mib, budget_mib });
    }
    Ok(())
}

/// What can be made again and nobody stands on, oldest use first.
async fn spares(core: &Core) -> Result<Vec<Spare>, Box<dyn std::error::Error + Send + Sync>> {
    let needed = needed(core).await?;
    let layers = core.store.layers().await?.into_iter().filter(|layer| !needed.contains(&layer.artifact));
    let mut found: Vec<(SystemTime, Spare)> =
        layers.map(|layer| (SystemTime::from(layer.used_at), Spare::Layer(layer.key))).collect();
    // A build that runs may still come to a step that copies any of them.
    if !core.builds.any_live() {
        let uploads = core.files.at_rest()?;
        found.extend(uploads.into_iter().map(|(used, path)| (used, Spare::Upload(path))));
    }
    found.sort_by_key(|(used, _)| *used);
    Ok(found.into_iter().map(|(_, spare)| spare).collect())
}

/// Artifacts that stay whether or not builds know them: to forget those would free nothing.
async fn needed(core: &Core) -> Result<HashSet<String>, StoreError> {
    let mut needed: HashSet<String> = core.store.templates().await?.into_iter().map(|t| t.artifact).collect();
    needed.extend(core.store.sandboxes().await?.into_iter().map(|sandbox| match sandbox.phase {
        RecordedPhase::Paused(held) => held.artifact,
        RecordedPhase::Running { memory_base, .. } => memory_base,
    }));
    let bases = needed.iter().filter_map(|id| match core.artifacts.load(id).ok()?.manifest.memory {
        MemoryMember::Diff { base } => Some(base),
        MemoryMember::Full | MemoryMember::Absent => None,
    });
    let bases: Vec<String> = bases.collect();
    needed.extend(bases);
    Ok(needed)
}

async fn measure(core: &Core) -> io::Result<u64> {
    let root = core.config.state_dir.clone();
    let walk = move || held(&root, &root.join(VOLUMES));
    tokio::task::spawn_blocking(walk).await.map_err(io::Error::other)?
}

/// Bytes of all files below `root`, as they lie on the disk; files with several names once. What goes meanwhile counts nothing.
fn held(root: &Path, without: &Path) -> io::Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(error) if gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let metadata = match fs::symlink_metadata(&path) {
                Err(error) if gone(&error) => continue,
                metadata => metadata?,
            };
            if metadata.is_dir() && path != without {
                dirs.push(path);
            } else if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
                bytes += metadata.blocks() * BLOCK_BYTES;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_once_and_without_volumes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["layers", VOLUMES] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), vec![1; 1 << 20]).unwrap();
        }
        fs::hard_link(dir.path().join("layers/file"), dir.path().join("layers/again")).unwrap();
        let held = held(dir.path(), &dir.path().join(VOLUMES)).unwrap();
        assert!((1 << 20..2 << 20).contains(&held), "{held}");
    }
}
