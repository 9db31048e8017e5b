//! Root disks of machines: which layers lie under what one writes.
//!
//! A cut gives the machine a new overlay, makes the old one a layer, and only then is recorded. A server that is killed in
//! between leaves a machine that is ahead of its record. Nothing is lost by that: the machine says which file it writes, and
//! every overlay names what lies under it, down to the one that the record knows.

use std::{
    io,
    path::{Path, PathBuf},
};

use firkin_engine::{DiskError, DiskFormat};
use fs_err as fs;

use super::{ArtifactStore, DiskMembers, Secrecy, disk_file};
use crate::ground::ids::LayerId;

/// Cuts that a machine can be ahead of its record: one, or as many as failed to be recorded.
const MAX_UNRECORDED: usize = 64;

/// The disk of a machine, by the names of its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootDisk {
    /// Sealed layers, lowest first.
    pub(crate) layers: Vec<LayerId>,
    /// The layer that it writes, in the machine's directory until it is sealed.
    pub(crate) overlay: LayerId,
    /// How the engine of that machine keeps disks.
    pub(crate) form: &'static dyn DiskFormat,
}

impl RootDisk {
    /// A disk with a new overlay.
    pub(crate) fn over(layers: Vec<LayerId>, form: &'static dyn DiskFormat) -> Self {
        Self { layers, overlay: LayerId::generate(), form }
    }

    /// Where its overlay is, in the machine's directory.
    pub(crate) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(disk_file(&self.overlay, self.form))
    }

    /// Makes its overlay in `dir`, over the root image of `members` and its layers; the guest sees a disk of `bytes`. Gives its files.
    pub(crate) fn create(
        &self,
        (dir, members): (&Path, &DiskMembers),
        bytes: u64,
        artifacts: &ArtifactStore,
    ) -> Result<firkin_engine::RootDisk, DiskError> {
        let layers = members.layers.iter().map(|id| artifacts.layer_in(id, self.form)).collect();
        let files = firkin_engine::RootDisk { image: members.rootfs_path.clone(), layers, overlay: self.path(dir) };
        self.form.create(&files, bytes)?;
        Ok(files)
    }

    /// Makes the overlay that follows its own in the next cut. Gives its name and path.
    pub(crate) fn create_next(&self, dir: &Path, artifacts: &ArtifactStore) -> Result<(LayerId, PathBuf), DiskError> {
        let next = LayerId::generate();
        let path = dir.join(disk_file(&next, self.form));
        // Named by the path that the current layer is about to have: the engine has it open already.
        let sealed = artifacts.layer_in(&self.overlay, self.form);
        self.form.create_next(&self.path(dir), &sealed, &path)?;
        Ok((next, path))
    }

    /// It was cut: what was its overlay is its uppermost layer now, and it writes to `next`.
    pub(crate) fn seal(&mut self, next: LayerId) {
        self.layers.push(std::mem::replace(&mut self.overlay, next));
    }

    /// Whether its uppermost layer is where layers are.
    pub(crate) fn is_settled(&self, artifacts: &ArtifactStore) -> bool {
        self.layers.last().is_none_or(|last| artifacts.layer_file(last).exists())
    }

    /// Puts the layer that was sealed last where layers are, over the one that is below it by now. Encrypting one blocks.
    pub(crate) fn settle(&self, dir: &Path, artifacts: &ArtifactStore, secrecy: Secrecy) -> Result<(), DiskError> {
        let sealed = self.layers.last().expect("a cut has sealed one");
        settle((dir, sealed, self.form), self.layers.iter().rev().nth(1), artifacts, secrecy)
    }

    /// The disk of an adopted machine that writes to `current`, below what was `recorded`. Layers that were sealed and not
    /// recorded are put where layers are.
    pub(crate) fn of_machine(dir: &Path, current: &Path, recorded: Self, artifacts: &ArtifactStore) -> Result<Self, DiskError> {
        if current.parent() != Some(dir) {
            return Err(invalid(current, "the machine writes to a file that is not its own"));
        }
        let form = recorded.form;
        let overlay = name_of(current, form)?;
        let mut unrecorded = Vec::new();
        let mut at = (overlay.clone(), current.to_owned());
        while at.0 != recorded.overlay {
            if unrecorded.len() == MAX_UNRECORDED {
                return Err(invalid(current, "its disk is not the one that was recorded"));
            }
            let settled = at.1 != current && at.1.parent() != Some(dir);
            let below = if settled { artifacts.below_layer(&at.0, form, dir)? } else { form.below(&at.1)? };
            let below = below.ok_or_else(|| invalid(&at.1, "it lies over nothing"))?;
            let name = name_of(&below, form)?;
            // The lowest of them was written over what is on record, under whatever name that had then.
            let under = recorded.layers.last().filter(|_| name == recorded.overlay);
            let mut layer = artifacts.layer_in(&name, form);
            if !fs::exists(artifacts.layer_file(&name)).map_err(|source| DiskError::File { path: below, source })? {
                let waiting = dir.join(disk_file(&name, form));
                match settle((dir, &name, form), under, artifacts, artifacts.secrecy()) {
                    // As on a full disk. The next cut puts it there before it makes another.
                    Err(error) if at.1 == current && waiting.exists() => {
                        tracing::warn!(error = firkin_causes::chain(&error), "a layer stays where its machine is");
                        layer = waiting;
                    }
                    settled => settled?,
                }
            }
            unrecorded.push(name.clone());
            at = (name, layer);
        }
        let layers = recorded.layers.into_iter().chain(unrecorded.into_iter().rev()).collect();
        Ok(Self { layers, overlay, form })
    }
}

/// Puts the sealed overlay `name` where layers are, over the layer `under` if that may have been merged since.
fn settle(
    (dir, name, form): (&Path, &LayerId, &dyn DiskFormat),
    under: Option<&LayerId>,
    artifacts: &ArtifactStore,
    secrecy: Secrecy,
) -> Result<(), DiskError> {
    let sealed = dir.join(disk_file(name, form));
    if let Some(under) = under {
        form.put_over(&sealed, &artifacts.layer_in(under, form))?;
    }
    artifacts.keep_layer(name, &sealed, secrecy).map_err(|source| DiskError::File { path: sealed, source })
}

/// The name that this file's layer has, if it is one of ours.
fn name_of(path: &Path, form: &dyn DiskFormat) -> Result<LayerId, DiskError> {
    let name: Option<LayerId> = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
    let name = name.filter(|name| path.file_name().is_some_and(|file| file == disk_file(name, form).as_str()));
    name.ok_or_else(|| invalid(path, "the name of a layer is not one of ours"))
}

fn invalid(path: &Path, text: &'static str) -> DiskError {
    DiskError::File { path: path.to_owned(), source: io::Error::new(io::ErrorKind::InvalidData, text) }
}

#[cfg(test)]
mod tests {
    use firkin_engine::qcow2::Qcow2;

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
            let artifacts = ArtifactStore::open(root.path(), &Qcow2).unwrap();
            Self { dir, artifacts, root }
        }

        /// An overlay in the instance directory, over what a cut names as backing.
        fn overlay(&self, id: &str, over: &str) -> PathBuf {
            let path = self.dir.join(disk_file(&named(id), &Qcow2));
            let disk = firkin_engine::RootDisk {
                image: "/image".into(),
                layers: vec![self.artifacts.layer(&named(over))],
                overlay: path.clone(),
            };
            Qcow2.create(&disk, 1 << 20).unwrap();
            path
        }

        fn find(&self, current: &Path) -> Result<RootDisk, DiskError> {
            let recorded = RootDisk { layers: vec![named("base")], overlay: named("a"), form: &Qcow2 };
            RootDisk::of_machine(&self.dir, current, recorded, &self.artifacts)
        }
    }

    fn named(id: &str) -> LayerId {
        id.parse().unwrap()
    }

    fn disk(layers: &[&str], overlay: &str) -> RootDisk {
        RootDisk { layers: layers.iter().map(|&id| named(id)).collect(), overlay: named(overlay), form: &Qcow2 }
    }

    #[test]
    fn a_machine_that_was_not_cut_has_the_recorded_disk() {
        let bench = Bench::new();
        let a = bench.overlay("a", "base");
        bench.overlay("b", "a"); // made for a cut that never came to the switch
        assert_eq!(bench.find(&a).unwrap(), disk(&["base"], "a"));
        assert!(a.exists() && !bench.artifacts.layer(&named("a")).exists());
    }

    #[test]
    fn a_cut_that_was_interrupted_before_or_after_the_rename_is_finished() {
        for renamed in [false, true] {
            let bench = Bench::new();
            let a = bench.overlay("a", "base");
            let b = bench.overlay("b", "a");
            if renamed {
                bench.artifacts.adopt_layer(&named("a"), &a).unwrap();
            }
            assert_eq!(bench.find(&b).unwrap(), disk(&["base", "a"], "b"));
            assert!(!a.exists() && bench.artifacts.layer(&named("a")).exists());
        }
    }

    #[test]
    fn several_unrecorded_cuts_are_followed_down_to_the_record() {
        let bench = Bench::new();
        for (id, over) in [("a", "base"), ("b", "a"), ("c", "b")] {
            let path = bench.overlay(id, over);
            bench.artifacts.adopt_layer(&named(id), &path).unwrap();
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
        std::os::unix::fs::symlink("/etc/hostname", bench.dir.join("x.qcow2")).unwrap();
        assert!(bench.find(&link).is_err(), "a link in place of a layer");
        let mut circle = bench.overlay("e", "e");
        bench.artifacts.adopt_layer(&named("e"), &circle).unwrap();
        circle = bench.overlay("f", "e");
        assert!(bench.find(&circle).is_err(), "a chain without an end");
    }
}
