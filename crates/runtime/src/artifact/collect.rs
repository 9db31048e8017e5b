//! Collection: what nobody needs goes, and what is used but not yet recorded is pinned.
//!
//! ```text
//!   candidates ──► records are read ──► needs of what is live ──► decided and renamed ──► removed
//!   (what is at rest)                   (manifests, no lock)      (under the lock)        (gigabytes, no lock)
//! ```
//!
//! Every create and resume takes a pin, so nothing is read or removed while the pins are locked. Nor need it be: whoever publishes
//! has pinned what the new artifact stands on, by itself or by an artifact that needs it, from before until that is on record.

use std::{
    collections::{HashMap, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use firkin_engine::{DiskFormat, formats, parts};
use fs_err as fs;

use super::{
    ArtifactStore, ROOTS,
    archive::{INCOMING, Importing, LANDED_FOR, Landing},
    disk_file,
    manifest::MemoryMember,
    member,
    sealed::{KEY, SEALED, present},
    shrink,
    vault::NEXT,
};
use crate::ground::ids::{ArtifactId, LayerId};

/// Names that are taken in one hold of the lock. A rename takes some ten microseconds, and creates wait for all of them.
const AT_A_TIME: usize = 32;

/// Who is being used right now, and when that was last begun, so that collection never takes what it has not seen at rest.
#[derive(Debug, Default)]
pub(super) struct Pins {
    serial: u64,
    by_name: HashMap<PinName, Pinned>,
    /// When what is no longer pinned was last forgotten. Candidates that were listed before cannot be judged any more.
    forgotten: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Pinned {
    count: u32,
    since: u64,
}

/// What can be pinned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PinName {
    /// An artifact.
    Artifact(ArtifactId),
    /// A layer.
    Layer(LayerId),
    /// A root image that came with an archive, by its digest.
    Root(String),
}

impl From<ArtifactId> for PinName {
    fn from(artifact: ArtifactId) -> Self {
        Self::Artifact(artifact)
    }
}

impl From<&ArtifactId> for PinName {
    fn from(artifact: &ArtifactId) -> Self {
        Self::Artifact(artifact.clone())
    }
}

impl From<LayerId> for PinName {
    fn from(layer: LayerId) -> Self {
        Self::Layer(layer)
    }
}

/// Keeps an artifact, a layer or a root image from being collected while it is used but not yet recorded.
#[derive(Debug)]
#[must_use = "dropping a pin lets the artifact be collected"]
pub struct Pin {
    name: PinName,
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
    artifacts: Vec<ArtifactId>,
    layers: Vec<LayerId>,
    /// Root images that came with archives.
    roots: Vec<String>,
}

impl ArtifactStore {
    /// Keeps an artifact, a layer or a root image from being collected until the guard is dropped.
    pub fn pin(&self, name: impl Into<PinName>) -> Pin {
        let name = name.into();
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.serial += 1;
        let since = pins.serial;
        let pinned = pins.by_name.entry(name.clone()).or_default();
        pinned.count += 1;
        pinned.since = since;
        Pin { name, pins: Arc::clone(&self.pins) }
    }

    /// Everything that nobody uses at this moment. Candidates that were listed earlier lose their meaning.
    pub fn candidates(&self) -> io::Result<Candidates> {
        let (serial, pinned) = {
            let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            pins.by_name.retain(|_, pinned| pinned.count > 0);
            pins.forgotten = pins.serial;
            let pinned: HashSet<PinName> = pins.by_name.keys().cloned().collect();
            (pins.serial, pinned)
        };
        let mut artifacts = self.ids()?;
        artifacts.retain(|id| !pinned.contains(&PinName::from(id)));
        let mut layers = Vec::new();
        for entry in fs::read_dir(self.root.join("layers"))? {
            let path = entry?.path();
            if let Some(id) = path.file_stem().and_then(|stem| stem.to_str()?.parse::<LayerId>().ok())
                && (path == self.layer(&id) || path == self.sealed_layer(&id))
                && !pinned.contains(&PinName::from(id.clone()))
            {
                layers.push(id);
            }
        }
        let mut roots = self.imported_roots()?;
        roots.retain(|digest| !pinned.contains(&PinName::Root(digest.clone())));
        Ok(Candidates { serial, artifacts, layers, roots })
    }

    /// Digests of the root images that came with archives.
    fn imported_roots(&self) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.join(ROOTS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        names.filter(|name: &io::Result<String>| name.as_ref().map_or(true, |name| !is_hidden(name))).collect()
    }

    /// Removes those candidates that are neither in `keep`, nor needed by one that is, nor used since they were listed.
    /// `keep_layers` are layers of live sandboxes. Returns the artifacts it removed. Blocks for as long as files are removed;
    /// who takes a pin meanwhile does not wait.
    pub fn collect(&self, candidates: &Candidates, keep: &[ArtifactId], keep_layers: &[LayerId]) -> io::Result<Vec<ArtifactId>> {
        let removed = self.remove(self.take_names(candidates, keep, keep_layers)?)?;
        // Who takes an archive in needs what has arrived of it; and who is about to is not told of another where there is nothing to remove.
        if !Landing::expired(&self.root, LANDED_FOR)?.is_empty()
            && let Some(_nobody) = Importing::begin(&self.importing)
        {
            Landing::expire(&self.root, LANDED_FOR)?;
        }
        Ok(removed)
    }

    fn take_names(&self, candidates: &Candidates, keep: &[ArtifactId], keep_layers: &[LayerId]) -> io::Result<Condemned> {
        let mut needs = HashMap::new();
        let mut doomed = self.doomed(candidates, keep, keep_layers, &mut needs)?;
        let mut condemned = Condemned::default();
        while !doomed.is_empty() {
            if let Err(unknown) = self.condemn(candidates.serial, &mut doomed, &needs, &mut condemned)
                && let Err(error) = self.read_needs(unknown, &mut needs)
            {
                // What has lost its name by now is removed all the same.
                condemned.failed = condemned.failed.or(Some(error));
                break;
            }
        }
        Ok(condemned)
    }

    /// The candidates that nothing on record needs. What is not on record yet and is no candidate either, because it was pinned
    /// when they were listed or came later, needs what it needs all the same.
    fn doomed(
        &self,
        candidates: &Candidates,
        keep: &[ArtifactId],
        keep_layers: &[LayerId],
        needs: &mut HashMap<ArtifactId, Needs>,
    ) -> io::Result<Doomed> {
        let listed: HashSet<&ArtifactId> = candidates.artifacts.iter().collect();
        let others = self.ids()?.into_iter().filter(|id| !listed.contains(id));
        let roots: Vec<ArtifactId> = keep.iter().cloned().chain(others).collect();
        let live = loop {
            match with_needs(roots.clone(), needs) {
                Ok(live) => break live,
                Err(unknown) => self.read_needs(unknown, needs)?,
            }
        };
        let kept: HashSet<&LayerId> = keep_layers.iter().collect();
        let dead = |id: &&LayerId| !live.layers.contains(*id) && !kept.contains(*id);
        let mut artifacts: Vec<ArtifactId> =
            candidates.artifacts.iter().filter(|id| !live.artifacts.contains(*id)).cloned().collect();
        artifacts.sort_by_cached_key(|id| !present(self.dir(id).join(parts::MEMORY_DIFF)).exists());
        let layers = candidates.layers.iter().filter(dead).cloned().collect();
        let unused = |digest: &&String| !live.images.iter().any(|image| is_below_root(image, digest));
        Ok(Doomed { artifacts, layers, roots: candidates.roots.iter().filter(unused).cloned().collect() })
    }

    fn read_needs(&self, Unknown(ids): Unknown, needs: &mut HashMap<ArtifactId, Needs>) -> io::Result<()> {
        for id in ids {
            if self.is_elsewhere(&id) {
                needs.insert(id, Needs::default());
                continue;
            }
            // What cannot be read cannot be followed: then nothing is collected, rather than too much.
            let manifest = self.load(&id).map_err(io::Error::other)?.manifest;
            let base = match manifest.memory {
                MemoryMember::Diff { base } => Some(base),
                _ => None,
            };
            needs.insert(id, Needs { layers: manifest.disk.layers, base, image: manifest.disk.rootfs_path });
        }
        Ok(())
    }

    /// Spares whom somebody has come to use since the candidates were listed, with all that these need, and takes the names of the
    /// next few away. All that happens under the lock, where nothing is read.
    fn condemn(
        &self,
        listed: u64,
        doomed: &mut Doomed,
        needs: &HashMap<ArtifactId, Needs>,
        condemned: &mut Condemned,
    ) -> Result<(), Unknown> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if listed < pins.forgotten {
            *doomed = Doomed::default();
            return Ok(());
        }
        let used = |name: &PinName| pins.by_name.get(name).is_some_and(|p| p.count > 0 || p.since > listed);
        let spared = with_needs(doomed.artifacts.iter().filter(|id| used(&PinName::from(*id))).cloned().collect(), needs)?;
        doomed.artifacts.retain(|id| !spared.artifacts.contains(id));
        doomed.layers.retain(|id| !spared.layers.contains(id) && !used(&PinName::from(id.clone())));
        let needed = |digest: &String| spared.images.iter().any(|image| is_below_root(image, digest));
        doomed.roots.retain(|digest| !needed(digest) && !used(&PinName::Root(digest.clone())));
        let (artifacts, layers, roots) = doomed.next();
        for id in artifacts {
            let (from, hidden) = (self.dir(&id), self.hidden_artifact(&id));
            condemned.take(id, (&from, &hidden), |condemned| &mut condemned.artifacts);
        }
        for id in layers {
            let (from, hidden) = (self.layer_file(&id), self.hidden_layer(&id));
            condemned.take(id, (&from, &hidden), |condemned| &mut condemned.layers);
        }
        for digest in roots {
            let (from, hidden) = (self.root_image(&digest), self.hidden_root(&digest));
            condemned.take(digest, (&from, &hidden), |condemned| &mut condemned.roots);
        }
        Ok(())
    }

    fn hidden_root(&self, digest: &str) -> PathBuf {
        self.root.join(ROOTS).join(format!(".{digest}"))
    }

    /// Removes all that can be, whatever cannot: what is left has no name, and only the next start finds it.
    fn remove(&self, condemned: Condemned) -> io::Result<Vec<ArtifactId>> {
        let artifact = |id: &ArtifactId| {
            let dir = self.hidden_artifact(id);
            // Before the rest, which takes a while: without it the rest is noise.
            note(self.vault.destroy(&dir.join(KEY)));
            note(shrink::empty_files_in(&dir));
            firkin_files::remove_tree(&dir).and_then(|()| self.release(id))
        };
        let layer = |id: &LayerId| {
            let path = self.hidden_layer(id);
            note(self.vault.destroy(&self.layer_key(id)));
            note(if path.is_dir() { shrink::empty_files_in(&path) } else { shrink::empty(&path) });
            member::remove(&path)
        };
        let root = |digest: &String| {
            let dir = self.hidden_root(digest);
            note(shrink::empty_files_in(&dir));
            firkin_files::remove_tree(&dir)
        };
        let removals = condemned.artifacts.iter().map(artifact).chain(condemned.layers.iter().map(layer));
        let removals = removals.chain(condemned.roots.iter().map(root));
        let failed = removals.filter_map(Result::err).fold(condemned.failed, |first, error| first.or(Some(error)));
        failed.map_or(Ok(condemned.artifacts), Err)
    }

    /// Takes the name of a damaged artifact away, whose place an intact one is about to take. Machines that map it go on.
    pub(super) fn set_aside(&self, id: &ArtifactId) -> io::Result<()> {
        let (from, hidden) = (self.dir(id), self.hidden_artifact(id));
        if !from.exists() {
            return Ok(());
        }
        if hidden.exists() {
            firkin_files::remove_tree(&hidden)?;
        }
        fs::rename(from, hidden)
    }

    /// Removes a damaged artifact that was set aside, and its mark: one that is intact has its place.
    pub(super) fn forget_damaged(&self, id: &ArtifactId) {
        let hidden = self.hidden_artifact(id);
        let removed = if hidden.exists() { firkin_files::remove_tree(&hidden) } else { Ok(()) };
        if let Err(error) = removed.and_then(|()| self.release(id)) {
            // The next start removes it, and whoever verifies it lets it out.
            tracing::warn!(artifact = %id, %error, "cannot remove what is left of a damaged artifact");
        }
    }

    fn hidden_artifact(&self, id: &ArtifactId) -> PathBuf {
        self.root.join("artifacts").join(format!(".{id}"))
    }

    /// The name that a layer has when it is to be removed: that of the form in which it is there.
    fn hidden_layer(&self, id: &LayerId) -> PathBuf {
        // Its key stays until it is removed, and tells the form after its name is gone.
        let layers = self.root.join("layers");
        if self.layer_key(id).exists() {
            return layers.join(format!(".{id}.{SEALED}"));
        }
        let hidden = |form: &dyn DiskFormat| layers.join(format!(".{}", disk_file(id, form)));
        let there = |form: &&dyn DiskFormat| hidden(*form).exists() || self.layer_in(id, *form).exists();
        hidden(formats().into_iter().find(there).unwrap_or(self.disks))
    }

    /// Removes what an interrupted collection, or a draft that was never published, has left.
    pub(super) fn remove_hidden(&self) -> io::Result<()> {
        for place in ["artifacts", "layers", ROOTS, INCOMING] {
            let entries = match fs::read_dir(self.root.join(place)) {
                // Made by the first archive that comes.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                if !is_hidden(&entry.file_name().to_string_lossy()) {
                    continue;
                }
                note(self.vault.destroy(&entry.path().join(KEY)));
                match member::remove(&entry.path()) {
                    // An earlier server of this process was at it.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed?,
                }
            }
        }
        self.destroy_keys_of_nothing()
    }

    /// Destroys the keys of layers that are not there: removed, or never sealed to the end.
    fn destroy_keys_of_nothing(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("layers"))? {
            let path = entry?.path();
            let is_key = path.extension().is_some_and(|extension| extension == KEY || extension == NEXT);
            if is_key && !fs::exists(path.with_extension(SEALED))? {
                self.vault.destroy(&path.with_extension(KEY))?;
            }
        }
        Ok(())
    }
}

/// What an artifact needs of others.
#[derive(Debug, Default)]
struct Needs {
    layers: Vec<LayerId>,
    base: Option<ArtifactId>,
    /// The root image below its layers.
    image: PathBuf,
}

/// Whether an image is the root image of this digest, by whichever way its manifest leads to the state directory: that may have moved since
/// behind a link.
fn is_below_root(image: &Path, digest: &str) -> bool {
    image.parent().is_some_and(|dir| dir.ends_with(Path::new(ROOTS).join(digest)))
}

/// Artifacts that are live, and whose needs have to be read before anything can be decided.
#[derive(Debug)]
struct Unknown(Vec<ArtifactId>);

/// What has to stay.
#[derive(Debug, Default)]
struct Live {
    artifacts: HashSet<ArtifactId>,
    layers: HashSet<LayerId>,
    images: HashSet<PathBuf>,
}

/// `roots`, and all that they need.
fn with_needs(mut roots: Vec<ArtifactId>, needs: &HashMap<ArtifactId, Needs>) -> Result<Live, Unknown> {
    let mut live = Live::default();
    let mut unknown = Vec::new();
    while let Some(id) = roots.pop() {
        if live.artifacts.contains(&id) {
            continue;
        }
        match needs.get(&id) {
            Some(of_it) => {
                live.layers.extend(of_it.layers.iter().cloned());
                roots.extend(of_it.base.clone());
                live.images.insert(of_it.image.clone());
            }
            None => unknown.push(id.clone()),
        }
        live.artifacts.insert(id);
    }
    if unknown.is_empty() { Ok(live) } else { Err(Unknown(unknown)) }
}

/// What is to lose its name, in this order: who stands on something goes before it does. Then whoever takes a pin between two holds
/// of the lock finds all that the pinned one needs, or not even that one.
#[derive(Debug, Default)]
struct Doomed {
    /// Those over another's memory first.
    artifacts: Vec<ArtifactId>,
    layers: Vec<LayerId>,
    /// After all that stand on them.
    roots: Vec<String>,
}

impl Doomed {
    fn is_empty(&self) -> bool {
        self.artifacts.is_empty() && self.layers.is_empty() && self.roots.is_empty()
    }

    /// The artifacts, layers and root images that lose their names in one hold of the lock.
    fn next(&mut self) -> (Vec<ArtifactId>, Vec<LayerId>, Vec<String>) {
        let artifacts: Vec<ArtifactId> = self.artifacts.drain(..self.artifacts.len().min(AT_A_TIME)).collect();
        let layers: Vec<LayerId> = self.layers.drain(..self.layers.len().min(AT_A_TIME - artifacts.len())).collect();
        let left = AT_A_TIME - artifacts.len() - layers.len();
        let roots = self.roots.drain(..self.roots.len().min(left)).collect();
        (artifacts, layers, roots)
    }
}

/// What has lost its name and waits to be removed.
#[derive(Debug, Default)]
struct Condemned {
    artifacts: Vec<ArtifactId>,
    layers: Vec<LayerId>,
    roots: Vec<String>,
    failed: Option<io::Error>,
}

impl Condemned {
    /// Renamed first, so that an interrupted removal leaves a draft and not half an artifact.
    fn take<T>(&mut self, id: T, (from, hidden): (&Path, &Path), of: impl FnOnce(&mut Self) -> &mut Vec<T>) {
        match fs::rename(from, hidden) {
            Ok(()) => of(self).push(id),
            Err(error) => self.failed = Some(error),
        }
    }
}

/// What was not emptied is removed in one go.
fn note(emptied: io::Result<()>) {
    if let Err(error) = emptied {
        tracing::debug!(%error, "cannot empty what is removed");
    }
}

/// Names of drafts and of what is being removed begin with a dot.
fn is_hidden(name: &str) -> bool {
    name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use firkin_engine::qcow2::Qcow2;

    use super::*;

    fn named(id: &str) -> LayerId {
        id.parse().unwrap()
    }

    fn artifact(id: &str) -> ArtifactId {
        id.parse().unwrap()
    }

    #[test]
    fn who_pins_does_not_wait_for_files_that_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let dead = dir.path().join("artifacts/dead");
        fs::create_dir(&dead).unwrap();
        fs::write(store.layer(&named("dead")), b"x").unwrap();
        let seen = store.candidates().unwrap();
        let condemned = store.take_names(&seen, &[], &[]).unwrap();
        // Decided and nameless, the files still there: pins are free again.
        assert!(store.pins.try_lock().is_ok() && store.ids().unwrap().is_empty() && !store.layer(&named("dead")).exists());
        assert_eq!(store.remove(condemned).unwrap(), [artifact("dead")]);
        for place in ["artifacts", "layers"] {
            assert_eq!(fs::read_dir(dir.path().join(place)).unwrap().count(), 0, "{place}");
        }
    }

    #[test]
    fn what_cannot_be_removed_keeps_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        for id in ["a", "b", "c"] {
            fs::write(store.layer(&named(id)), b"x").unwrap();
            fs::create_dir(store.dir(&artifact(id))).unwrap();
        }
        // Something stands where the second layer would lose its name.
        fs::create_dir(store.hidden_layer(&named("b"))).unwrap();
        store.collect(&store.candidates().unwrap(), &[], &[]).unwrap_err();
        let left = |place: &str| fs::read_dir(dir.path().join(place)).unwrap().count();
        assert_eq!((left("artifacts"), left("layers")), (0, 2));
    }

    #[test]
    fn what_is_pinned_after_the_records_were_read_keeps_all_that_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        for id in ["base", "diff", "dead"] {
            fs::create_dir(store.dir(&artifact(id))).unwrap();
        }
        for id in ["lower", "upper", "dead"] {
            fs::write(store.layer(&named(id)), b"x").unwrap();
        }
        let of = |layers: &[&str], base: Option<&str>| Needs {
            layers: layers.iter().map(|&id| named(id)).collect(),
            base: base.map(artifact),
            image: "/image".into(),
        };
        let mut needs =
            HashMap::from([(artifact("base"), of(&["lower"], None)), (artifact("diff"), of(&["upper"], Some("base")))]);
        let seen = store.candidates().unwrap();
        let mut doomed = store.doomed(&seen, &[], &[], &mut needs).unwrap();
        assert_eq!((doomed.artifacts.len(), doomed.layers.len()), (3, 3));
        let _pin = store.pin(artifact("diff"));
        let mut condemned = Condemned::default();
        store.condemn(seen.serial, &mut doomed, &needs, &mut condemned).unwrap();
        assert!(doomed.is_empty());
        assert_eq!((condemned.artifacts, condemned.layers), (vec![artifact("dead")], vec![named("dead")]));
    }

    #[test]
    fn few_lose_their_names_at_a_time_and_bases_last() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let ids: Vec<String> = (0..=AT_A_TIME).map(|n| n.to_string()).collect();
        for id in &ids {
            fs::create_dir(store.dir(&artifact(id))).unwrap();
            fs::write(store.layer(&named(id)), b"x").unwrap();
        }
        let diff = ids.last().unwrap();
        fs::write(store.dir(&artifact(diff)).join(parts::MEMORY_DIFF), b"x").unwrap();
        let seen = store.candidates().unwrap();
        let (mut doomed, mut condemned) = (store.doomed(&seen, &[], &[], &mut HashMap::new()).unwrap(), Condemned::default());
        let mut holds = Vec::new();
        while !doomed.is_empty() {
            store.condemn(seen.serial, &mut doomed, &HashMap::new(), &mut condemned).unwrap();
            holds.push((condemned.artifacts.len(), condemned.layers.len()));
        }
        let all = AT_A_TIME + 1;
        assert_eq!(holds, [(AT_A_TIME, 0), (all, AT_A_TIME - 1), (all, all)]);
        assert_eq!(condemned.artifacts[0].as_str(), diff);
    }

    #[test]
    fn what_an_interrupted_removal_left_goes_with_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        fs::create_dir(dir.path().join("artifacts/dead")).unwrap();
        fs::write(store.layer(&named("dead")), b"x").unwrap();
        store.take_names(&store.candidates().unwrap(), &[], &[]).unwrap();
        let again = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        for place in ["artifacts", "layers"] {
            assert_eq!(fs::read_dir(again.root.join(place)).unwrap().count(), 0, "{place}");
        }
    }

    #[test]
    fn what_is_no_layer_of_this_engine_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let stray = dir.path().join("layers/stray.tree");
        fs::create_dir(&stray).unwrap();
        fs::write(store.layer(&named("dead")), b"x").unwrap();
        store.collect(&store.candidates().unwrap(), &[], &[]).unwrap();
        assert!(stray.exists() && !store.layer(&named("dead")).exists());
    }

    #[test]
    fn the_book_of_pins_forgets_and_older_candidates_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        fs::create_dir(dir.path().join("artifacts/one")).unwrap();
        let seen = store.candidates().unwrap();
        drop(store.pin(artifact("one")));
        assert_eq!(store.pins.lock().unwrap().by_name.len(), 1);
        let later = store.candidates().unwrap();
        assert_eq!(store.pins.lock().unwrap().by_name.len(), 0);
        assert!(store.collect(&seen, &[], &[]).unwrap().is_empty(), "`one` was used after it was seen");
        assert_eq!(store.collect(&later, &[], &[]).unwrap(), [artifact("one")]);
    }
}
