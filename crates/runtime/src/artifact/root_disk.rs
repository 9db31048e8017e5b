//! Which disk an adopted machine has, when its record may be older than its last cut.
//!
//! A cut gives the machine a new overlay, makes the old one a layer, and only then is recorded. A server that is killed in
//! between leaves a machine that is ahead of its record. Nothing is lost by that: the machine says which file it writes, and
//! every overlay names what lies under it, down to the one that the record knows.

use std::{
    io,
    path::{Path, PathBuf},
};

use firkin_engine::qcow2;
use fs_err as fs;

use crate::{
    artifact::{ArtifactStore, put_over},
    launch::LaunchError,
};

/// Cuts that were not recorded, one after the other, because each time the store failed. More are no accident.
const MAX_UNRECORDED: usize = 64;

/// The disk of a session: sealed layers, lowest first, and the layer being written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) layers: Vec<String>,
    pub(crate) overlay: String,
}

/// The disk that the machine in `dir` writes as `current`, given what was last `recorded` of it. Finishes what an interrupted
/// cut had begun: every layer is where layers are when this returns.
pub(crate) fn of_machine(dir: &Path, current: &Path, recorded: Disk, artifacts: &ArtifactStore) -> Result<Disk, LaunchError> {
    let failed = |path: &Path, source| LaunchError::Stage { path: path.to_owned(), source };
    if current.parent() != Some(dir) {
        return Err(failed(current, invalid("the machine writes to a file that is not its own")));
    }
    let overlay = layer_id(current).map_err(|source| failed(current, source))?;
    let mut unrecorded = Vec::new();
    let mut at = (overlay.clone(), current.to_owned());
    while at.0 != recorded.overlay {
        if unrecorded.len() == MAX_UNRECORDED {
            return Err(failed(current, invalid("its disk is not the one that was recorded")));
        }
        let below = qcow2::inspect(&at.1).map_err(|error| failed(&at.1, io::Error::other(error)))?.backing;
        let below = below.ok_or_else(|| failed(&at.1, invalid("it lies over nothing")))?;
        let id = layer_id(&below.path).map_err(|source| failed(&at.1, source))?;
        // The lowest of them was written over what is on record, under whatever name that had then.
        let under = recorded.layers.last().filter(|_| id == recorded.overlay);
        let layer = settled(dir, &id, under, artifacts).map_err(|source| failed(&below.path, source))?;
        unrecorded.push(id.clone());
        at = (id, layer);
    }
    let layers = recorded.layers.into_iter().chain(unrecorded.into_iter().rev()).collect();
    Ok(Disk { layers, overlay })
}

/// Puts a sealed layer where it belongs, unless it is there.
fn settled(dir: &Path, id: &str, under: Option<&String>, artifacts: &ArtifactStore) -> io::Result<PathBuf> {
    let layer = artifacts.layer(id);
    if !fs::exists(&layer)? {
        let sealed = overlay_path(dir, id);
        // A server puts nothing else there.
        if !fs::symlink_metadata(&sealed)?.is_file() {
            return Err(invalid("a sealed layer is not a file"));
        }
        if let Some(under) = under {
            put_over(&sealed, &artifacts.layer(under))?;
        }
        artifacts.adopt_layer(id, &sealed)?;
    }
    Ok(layer)
}

/// The file of the layer that is being written.
pub(crate) fn overlay_path(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.qcow2"))
}

/// The id in the name of a layer's file. What a machine says of its files is believed no further than that.
fn layer_id(path: &Path) -> io::Result<String> {
    let id = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| path.extension().is_some_and(|kind| kind == "qcow2"));
    let id = id.filter(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    id.map(str::to_owned).ok_or_else(|| invalid("the name of a layer is not one of ours"))
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        root: tempfile::TempDir,
        dir: PathBuf,
        artifacts: ArtifactStore,
    }

    impl Bench {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("run");
            fs::create_dir(&dir).unwrap();
            let artifacts = ArtifactStore::open(root.path()).unwrap();
            Self { dir, artifacts, root }
        }

        /// An overlay in the instance directory, over what a cut names as backing.
        fn overlay(&self, id: &str, over: &str) -> PathBuf {
            let path = overlay_path(&self.dir, id);
            let backing = qcow2::Backing { path: self.artifacts.layer(over), format: qcow2::Format::Qcow2 };
            qcow2::create(&path, &backing, 1 << 20).unwrap();
            path
        }

        fn find(&self, current: &Path) -> Result<Disk, LaunchError> {
            let recorded = Disk { layers: vec!["base".into()], overlay: "a".into() };
            of_machine(&self.dir, current, recorded, &self.artifacts)
        }
    }

    fn disk(layers: &[&str], overlay: &str) -> Disk {
        Disk { layers: layers.iter().map(|&id| id.to_owned()).collect(), overlay: overlay.to_owned() }
    }

    #[test]
    fn a_machine_that_was_not_cut_has_the_recorded_disk() {
        let bench = Bench::new();
        let a = bench.overlay("a", "base");
        bench.overlay("b", "a"); // made for a cut that never came to the switch
        assert_eq!(bench.find(&a).unwrap(), disk(&["base"], "a"));
        assert!(a.exists() && !bench.artifacts.layer("a").exists());
    }

    #[test]
    fn a_cut_that_was_interrupted_before_or_after_the_rename_is_finished() {
        for renamed in [false, true] {
            let bench = Bench::new();
            let a = bench.overlay("a", "base");
            let b = bench.overlay("b", "a");
            if renamed {
                bench.artifacts.adopt_layer("a", &a).unwrap();
            }
            assert_eq!(bench.find(&b).unwrap(), disk(&["base", "a"], "b"));
            assert!(!a.exists() && bench.artifacts.layer("a").exists());
        }
    }

    #[test]
    fn several_unrecorded_cuts_are_followed_down_to_the_record() {
        let bench = Bench::new();
        for (id, over) in [("a", "base"), ("b", "a"), ("c", "b")] {
            let path = bench.overlay(id, over);
            bench.artifacts.adopt_layer(id, &path).unwrap();
        }
        let d = bench.overlay("d", "c");
        assert_eq!(bench.find(&d).unwrap(), disk(&["base", "a", "b", "c"], "d"));
    }

    #[test]
    fn a_disk_that_leads_elsewhere_is_refused() {
        let bench = Bench::new();
        let outside = bench.root.path().join("b.qcow2");
        assert!(bench.find(&outside).is_err(), "not in its directory");
        let to_nowhere = bench.overlay("b", "missing");
        assert!(bench.find(&to_nowhere).is_err(), "over a layer that is not there");
        let link = bench.overlay("c", "x");
        std::os::unix::fs::symlink("/etc/hostname", overlay_path(&bench.dir, "x")).unwrap();
        assert!(bench.find(&link).is_err(), "a link in place of a layer");
        let mut circle = bench.overlay("e", "e");
        bench.artifacts.adopt_layer("e", &circle).unwrap();
        circle = bench.overlay("f", "e");
        assert!(bench.find(&circle).is_err(), "a chain without an end");
    }
}
