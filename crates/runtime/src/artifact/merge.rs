//! How deep a disk may become, and how its upper layers are made one.
//!
//! Each cut adds a layer, and each layer costs the engine half a millisecond of every restore, memory and a descriptor. So the
//! upper layers of a chain that became too deep are merged into a new one. Layers that are in use elsewhere stay what they are:
//! whoever wants the shallow chain names the new layer, and the old ones go when nobody names them any more.
//!
//! A layer that is larger than all above it is left alone, so that what is large is copied rarely: each byte is copied a number
//! of times that grows with the logarithm of the disk's size, not with the number of cuts. The lowest layer, a template's, always
//! stays shared.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use firkin_engine::{DiskError, DiskFormat};
use fs_err as fs;

use super::{ArtifactDraft, ArtifactStore, Pin, Secrecy, UnsealError, member, publish::sync_dir};
use crate::ground::ids::LayerId;

/// Layers that a chain may have before its upper ones are merged.
pub(crate) const MAX_DEPTH: usize = 8;

/// Layers that are left at most: far enough below [`MAX_DEPTH`] that not every cut is followed by a merge.
const MERGED_DEPTH: usize = 4;

/// A layer that holds what several held together.
#[derive(Debug)]
pub(crate) struct MergedLayers {
    /// Its id.
    pub(crate) layer: LayerId,
    /// What it stands for, lowest first.
    pub(crate) replaces: Vec<LayerId>,
    /// Keeps it until somebody is on record who names it.
    pub(crate) pin: Pin,
}

impl MergedLayers {
    /// The chain `layers` with this layer for what it stands for. `None` where that is not the upper end of it: what is sealed
    /// names the layer below it for ever.
    pub(crate) fn splice(&self, layers: &[LayerId]) -> Option<Vec<LayerId>> {
        let below = layers.strip_suffix(&self.replaces[..])?;
        Some(below.iter().chain([&self.layer]).cloned().collect())
    }
}

/// Why layers of a disk were not merged. They stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MergeLayersError {
    /// A file could not be read, written or renamed.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A layer is not known to be what it was when it was published.
    #[error("layer `{layer}` has not been proven since it was written last")]
    Unproven {
        /// Its id.
        layer: LayerId,
    },
    /// One is sealed, and cannot be opened.
    #[error("cannot open a layer that is to be merged")]
    Sealed(#[from] UnsealError),
    /// What they hold cannot be merged.
    #[error(transparent)]
    Merge(#[from] DiskError),
}

impl ArtifactStore {
    /// Merges the upper ones of `layers`, lowest first, or all of them `from` one that is given, and keeps the result from being
    /// collected. The same merge that was made for another chain is used again: its name is a digest of what it was made of. Given up
    /// when `goes_on` says no.
    ///
    /// Blocks for as long as the layers take to be copied.
    pub(crate) fn merge_layers(
        &self,
        layers: &[LayerId],
        from: Option<usize>,
        form: &dyn DiskFormat,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<MergedLayers, MergeLayersError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| MergeLayersError::File { path, source }
        };
        let sizes = layers.iter().map(|id| {
            let path = self.layer_file(id);
            member::blocks(&path).map_err(file(&path))
        });
        let sizes = sizes.collect::<Result<Vec<u64>, _>>()?;
        let range = from.map_or_else(|| upper(&sizes), |from| from..sizes.len());
        let replaces = layers[range.clone()].to_vec();
        // The key of one that is being removed stays under its name for a while: a sealed one never has the name of another.
        let only = match self.secrecy() {
            Secrecy::Plain => None,
            Secrecy::Sealed => Some(LayerId::generate()),
        };
        let layer = name_of(replaces.iter().chain(&only));
        // Before it is looked for: from then on it stays.
        let pin = self.pin(layer.clone());
        if !fs::exists(self.layer_file(&layer)).map_err(file(&self.root))? {
            let mut draft = self.draft_of_sandbox().map_err(file(&self.root))?;
            self.stage_merge(&mut draft, &replaces).map_err(file(&self.root))?;
            let below = self.layer_in(&layers[range.start - 1], form);
            let path = draft.cut_dir().join("layer").with_extension(form.extension());
            self.demand_proven(&replaces)?;
            let sources = self.readable_layers(&replaces, draft.cut_dir())?;
            form.merge(&sources, &below, &path, goes_on)?;
            // What was damaged meanwhile must not pass for intact in the copy.
            self.demand_proven(&replaces)?;
            member::sync(&path).map_err(file(&path))?;
            self.keep_layer(&layer, &path, draft.secrecy()).map_err(file(&path))?;
            let dir = self.root.join("layers");
            sync_dir(&dir).map_err(file(&dir))?;
        }
        let target = self.layer_file(&layer);
        self.proofs.digest(&target).map_err(file(&target))?;
        Ok(MergedLayers { layer, replaces, pin })
    }

    /// Takes room in memory for plain copies of these layers and for what comes of them, if any of it is sealed and there is room.
    fn stage_merge(&self, draft: &mut ArtifactDraft, layers: &[LayerId]) -> io::Result<()> {
        if draft.secrecy() == Secrecy::Sealed {
            let sizes = layers.iter().map(|id| fs::metadata(self.layer_file(id)).map(|found| found.len()));
            let bytes = sizes.sum::<io::Result<u64>>()?;
            self.stage(draft, bytes);
        }
        Ok(())
    }

    /// Refuses layers that are not the files that were proven last.
    fn demand_proven(&self, layers: &[LayerId]) -> Result<(), MergeLayersError> {
        for layer in layers {
            let path = self.layer_file(layer);
            match self.proofs.knows(&path) {
                Ok(true) => {}
                Ok(false) => return Err(MergeLayersError::Unproven { layer: layer.clone() }),
                Err(source) => return Err(MergeLayersError::File { path, source }),
            }
        }
        Ok(())
    }
}

/// Which layers of a chain to merge, given their sizes, lowest first.
fn upper(sizes: &[u64]) -> Range<usize> {
    assert!(sizes.len() > MERGED_DEPTH, "a chain that is not deep is left alone");
    let mut start = MERGED_DEPTH - 1;
    let mut total: u64 = sizes[start..].iter().sum();
    while start > 1 && sizes[start - 1] <= total {
        start -= 1;
        total += sizes[start];
    }
    start..sizes.len()
}

/// As hard to guess as the names that it is made of.
fn name_of<'a>(layers: impl Iterator<Item = &'a LayerId>) -> LayerId {
    let mut hasher = blake3::Hasher::new();
    for layer in layers {
        hasher.update(layer.as_str().as_bytes()).update(b"\n");
    }
    hasher.finalize().to_hex()[..20].parse().expect("hexadecimal digits are an id")
}

#[cfg(test)]
mod tests {
    use firkin_engine::qcow2::Qcow2;

    use super::*;

    #[test]
    fn what_is_large_is_left_alone_and_the_template_always() {
        assert_eq!(upper(&[100, 1, 1, 1, 1, 1, 1, 1, 1]), 1..9, "small ones below are taken along");
        assert_eq!(upper(&[0, 0, 0, 0, 0, 0, 0, 0, 0]), 1..9);
        assert_eq!(upper(&[1, 1000, 1, 1, 1, 1, 1, 1, 1]), 2..9);
        assert_eq!(upper(&[1, 1000, 100, 10, 1, 1, 1, 1, 1]), 3..9, "however large, the chain becomes shallow");
    }

    proptest::proptest! {
        #[test]
        fn a_disk_that_is_cut_for_ever_copies_each_byte_a_few_times(cuts in proptest::collection::vec(1u64..1000, 1..400)) {
            let (mut chain, mut copied, mut written) = (vec![50_000], 0, 0);
            for cut in cuts {
                chain.push(cut);
                written += cut;
                if chain.len() > MAX_DEPTH {
                    let range = upper(&chain);
                    let merged = chain.drain(range).sum();
                    copied += merged;
                    chain.push(merged);
                    proptest::prop_assert!(chain.len() <= MERGED_DEPTH);
                }
            }
            proptest::prop_assert!(copied <= written * 24, "{} {}", copied, written);
        }
    }

    #[test]
    fn a_merged_layer_takes_the_place_of_what_it_stands_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let ids = |text: &str| text.split(' ').map(|id| id.parse().unwrap()).collect::<Vec<LayerId>>();
        let named = ids("m").remove(0);
        let merged = MergedLayers { layer: named.clone(), replaces: ids("b c"), pin: store.pin(named) };
        assert_eq!(merged.splice(&ids("a b c")), Some(ids("a m")));
        assert_eq!(merged.splice(&ids("a b c d")), None, "`d` lies over `c`, not over `m`");
        assert_eq!(merged.splice(&ids("a b d c")), None);
        assert_eq!(merged.splice(&ids("a")), None);
    }
}
