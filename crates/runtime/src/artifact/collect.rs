//! Collection: what nobody needs goes, and what is used but not yet recorded is pinned.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use fs_err as fs;

use super::{ArtifactStore, manifest::MemoryMember};

/// Who is being used right now, and when that was last begun, so that collection never takes what it has not seen at rest.
#[derive(Debug, Default)]
pub(super) struct Pins {
    serial: u64,
    by_name: HashMap<String, Pinned>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pinned {
    count: u32,
    since: u64,
}

/// Keeps an artifact or a layer from being collected while it is used but not yet recorded.
#[derive(Debug)]
#[must_use = "dropping a pin lets the artifact be collected"]
pub struct Pin {
    name: String,
    pins: Arc<Mutex<Pins>>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pinned) = pins.by_name.get_mut(&self.name) {
            pinned.count -= 1;
        }
    }
}

/// What could be collected, as seen at one moment. Read the records of what is in use *after* taking it.
#[derive(Debug)]
pub struct Candidates {
    serial: u64,
    artifacts: Vec<String>,
    layers: Vec<String>,
}

impl ArtifactStore {
    /// Keeps `name` (an artifact, or `layer:<id>`) from being collected until the guard is dropped.
    pub fn pin(&self, name: impl Into<String>) -> Pin {
        let name = name.into();
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.serial += 1;
        let since = pins.serial;
        let pinned = pins.by_name.entry(name.clone()).or_default();
        pinned.count += 1;
        pinned.since = since;
        Pin { name, pins: Arc::clone(&self.pins) }
    }

    /// Everything that nobody uses at this moment.
    pub fn candidates(&self) -> io::Result<Candidates> {
        let (serial, pinned) = {
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            let pinned: Vec<String> = pins.by_name.iter().filter(|(_, p)| p.count > 0).map(|(name, _)| name.clone()).collect();
            (pins.serial, pinned)
        };
        let mut artifacts = self.ids()?;
        artifacts.retain(|id| !pinned.contains(id));
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.root.join("layers"))? {
            let path = entry?.path();
            if let Some(id) = path.file_stem().map(|stem| stem.to_string_lossy().into_owned())
                && !pinned.contains(&format!("layer:{id}"))
            {
                layers.push(id);
            }
        }
        Ok(Candidates { serial, artifacts, layers })
    }

    /// Removes those candidates that are neither in `keep`, nor needed by one that is, nor used since they were listed.
    /// `keep_layers` are layers of live sandboxes. Returns the artifacts it removed. Blocks.
    pub fn collect(&self, candidates: &Candidates, keep: &[String], keep_layers: &[String]) -> io::Result<Vec<String>> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |name: &str| pins.by_name.get(name).is_some_and(|p| p.count > 0 || p.since > candidates.serial);
        let mut layers: HashSet<String> = keep_layers.iter().cloned().collect();
        let mut live: HashSet<String> = HashSet::new();
        let mut queue: Vec<String> = keep.to_vec();
        queue.extend(self.ids()?.into_iter().filter(|id| used(id) || !candidates.artifacts.contains(id)));
        while let Some(id) = queue.pop() {
            if live.insert(id.clone()) {
                // What cannot be read cannot be followed: then nothing is collected, rather than too much.
                let manifest = self.load(&id).map_err(io::Error::other)?.manifest;
                layers.extend(manifest.disk.layers);
                if let MemoryMember::Diff { base } = manifest.memory {
                    queue.push(base);
                }
            }
        }
        let mut removed = Vec::new();
        for id in candidates.artifacts.iter().filter(|id| !live.contains(*id)) {
            // Renamed first, so that an interrupted removal leaves a draft and not half an artifact.
            let doomed = self.root.join("artifacts").join(format!(".{id}"));
            fs::rename(self.dir(id), &doomed)?;
            firkin_files::remove_tree(&doomed)?;
            self.release(id)?;
            removed.push(id.clone());
        }
        for id in candidates.layers.iter().filter(|id| !layers.contains(*id) && !used(&format!("layer:{id}"))) {
            fs::remove_file(self.layer(id))?;
        }
        Ok(removed)
    }
}
