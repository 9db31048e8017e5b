//! Container images: a reference in, one root file system out.
//!
//! ```text
//!   reference --registry--> manifest, configuration, layers --unpack--> archives --merge--> tree --write--> directory
//!             --mke2fs-->  rootfs.ext4, as for packages
//! ```
//!
//! The modules of the guest kernel are laid over the image as one more layer: 25 MB, without which no container starts in its
//! sandboxes and no further file system can be mounted.
//!
//! Everything that a registry sends is a stranger's: digests are checked, sizes are bounded before they are read, and paths are
//! resolved in memory ([`tree`]). Nothing of an image runs on the host. A result is keyed by the digest of the image's manifest,
//! and by the kernel's: a tag that moved is another image.

pub mod client;
pub mod credentials;
pub mod hops;
pub mod layer;
pub mod registry;
pub mod tree;
pub(crate) mod write;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err as fs;
use oci_client::config::ConfigFile;
use serde::{Deserialize, Serialize};

use self::layer::LayerError;
use self::registry::{ImageSource, PullError, Remote};
use self::tree::Tree;
use crate::cache::{Cache, CacheError, Claim, Slot, blocking};
use crate::certificates;
use crate::progress::{ImageStep, Report, say};
use crate::rootfs::{self, Additions, RootImage, RootfsError};

/// Raise it when the same image gives another kind of entry.
pub(crate) const KIND: &str = "image-v2";
const CONFIG: &str = "image.json";
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Beyond what the layers take as they travel: they unpack to about three times that, and the image is made of it.
const NEEDED_FACTOR: u64 = 8;

/// A container image as a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The root file system.
    pub root: RootImage,
    /// The image's settings for running it.
    pub config: ImageConfig,
}

/// An image's settings for running it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// Digest of the image's manifest.
    pub digest: String,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The program to start.
    pub entrypoint: Vec<String>,
    /// Its arguments, or what to start.
    pub cmd: Vec<String>,
}

/// Why an image cannot become a root file system.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It cannot be fetched.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// The cache does not give or take it.
    #[error("cannot keep the image")]
    Cache(#[from] CacheError),
    /// The configuration and the manifest disagree.
    #[error("cannot use the image: its manifest has {layers} layers, its configuration {promised}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        promised: usize,
    },
    /// A layer cannot be used.
    #[error("cannot use layer {number} of the image, `{digest}`")]
    Layer {
        /// From 1, lowest first.
        number: usize,
        /// As it travels.
        digest: String,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The files cannot be written.
    #[error("cannot write the files of the image")]
    Write(#[source] std::io::Error),
    /// The root file system cannot be made of them.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}

/// Gives the root file system of a container image, fetching it if the cache has none. Needs root and `mke2fs`. The registry
/// is asked every time what the reference names now.
pub async fn image(
    cache: &Cache,
    source: &ImageSource,
    additions: &Additions,
    virtual_bytes: u64,
    report: Report<'_>,
) -> Result<Image, ImageError> {
    say(report, ImageStep::Pull, format!("asking for {}", source.reference));
    let remote = Remote::resolve(source).await?;
    let slot = match cache.claim(KIND, &key(&remote.digest, additions, virtual_bytes), report).await? {
        Claim::Ready(entry) => return Ok(load(&entry)?),
        Claim::Vacant(slot) => slot,
    };
    let travels = remote.manifest.layers.iter().map(registry::bytes).fold(0, u64::saturating_add);
    slot.require_free(travels.saturating_mul(NEEDED_FACTOR))?;
    let config = remote.config().await?;
    let archives = fetch(&slot, &remote, &config, virtual_bytes, report).await?;
    say(report, ImageStep::Pull, "merging the layers");
    merge(&slot, &remote, archives, additions).await?;
    rootfs::make_image(&slot, &slot.path().join(rootfs::TREE), virtual_bytes, report).await?;
    let work = slot.path().to_path_buf();
    let text = serde_json::to_vec_pretty(&shown(&remote.digest, config)).expect("a configuration of strings serialises");
    blocking(move || {
        fs::write(work.join(CONFIG), text)?;
        rootfs::finish(&work, virtual_bytes)
    })
    .await
    .map_err(ImageError::Write)?;
    Ok(load(&slot.publish().await?)?)
}

fn key(digest: &str, Additions { kernel, certificates }: &Additions, virtual_bytes: u64) -> String {
    let certificates = certificates.concat();
    blake3::hash(format!("{digest} {} {certificates} {virtual_bytes} {}", kernel.digest, rootfs::FEATURES).as_bytes()).to_hex()
        [..32]
        .to_owned()
}

fn load(entry: &Path) -> Result<Image, CacheError> {
    let damaged = |reason: String| CacheError::Damaged { path: entry.to_path_buf(), reason };
    let mut text = String::new();
    let file = fs::File::open(entry.join(CONFIG)).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_CONFIG_BYTES).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let config = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    Ok(Image { root: rootfs::load(entry)?, config })
}

fn shown(digest: &str, config: ConfigFile) -> ImageConfig {
    let inner = config.config.unwrap_or_default();
    ImageConfig {
        digest: digest.to_owned(),
        env: inner.env.unwrap_or_default(),
        workdir: inner.working_dir.filter(|dir| !dir.is_empty()),
        user: inner.user.filter(|user| !user.is_empty()),
        entrypoint: inner.entrypoint.unwrap_or_default(),
        cmd: inner.cmd.unwrap_or_default(),
    }
}

/// Fetches and unpacks the layers one after the other, so that the disk holds one of them packed at a time.
async fn fetch(
    slot: &Slot,
    remote: &Remote,
    config: &ConfigFile,
    limit: u64,
    report: Report<'_>,
) -> Result<Vec<PathBuf>, ImageError> {
    let (layers, promised) = (&remote.manifest.layers, &config.rootfs.diff_ids);
    if layers.len() != promised.len() {
        return Err(ImageError::Layers { layers: layers.len(), promised: promised.len() });
    }
    let mut left = limit;
    let mut archives = Vec::with_capacity(layers.len());
    for (index, (layer, diff_id)) in layers.iter().zip(promised).enumerate() {
        let number = index + 1;
        say(report, ImageStep::Pull, format!("layer {number} of {}, {} MiB", layers.len(), registry::bytes(layer) >> 20));
        let packed = slot.path().join("layer");
        remote.layer(layer, &packed).await?;
        let archive = slot.path().join(format!("layer-{number}.tar"));
        let (to, diff_id) = (archive.clone(), diff_id.clone());
        let unpacked = tokio::task::spawn_blocking(move || {
            let from = fs::File::open(&packed).map_err(LayerError::Unpack)?.into_parts().0;
            let mut to = fs::File::create_new(&to).map_err(LayerError::Unpack)?.into_parts().0;
            let unpacked = layer::unpack(from, &mut to, left, &diff_id)?;
            fs::remove_file(&packed).map_err(LayerError::Unpack)?;
            Ok(unpacked)
        });
        let unpacked = unpacked.await.expect("unpacking does not panic and the runtime does not stop under it");
        left -= unpacked.map_err(|source| ImageError::Layer { number, digest: layer.digest.clone(), source })?;
        archives.push(archive);
    }
    Ok(archives)
}

/// Merges the archives, with what this host adds over them, and writes the files of the image.
async fn merge(slot: &Slot, remote: &Remote, archives: Vec<PathBuf>, additions: &Additions) -> Result<(), ImageError> {
    let digests: Vec<String> = remote.manifest.layers.iter().map(|layer| layer.digest.clone()).collect();
    let (root, Additions { kernel, certificates }) = (slot.path().join(rootfs::TREE), additions.clone());
    let work = move || {
        let open = |path: &PathBuf| Ok(fs::File::open(path)?.into_parts().0);
        let mut files: Vec<File> = archives.iter().map(open).collect::<std::io::Result<_>>().map_err(ImageError::Write)?;
        let mut tree = Tree::default();
        for (index, (file, digest)) in files.iter().zip(digests).enumerate() {
            let left_out =
                layer::read(file, index, &mut tree).map_err(|source| ImageError::Layer { number: index + 1, digest, source })?;
            if left_out > 0 {
                tracing::debug!(layer = index + 1, left_out, "device nodes and pipes of an image are left out");
            }
        }
        let mut added = vec![open(&kernel.archive).map_err(ImageError::Write)?];
        if !certificates.is_empty() {
            let trusted = certificates::host_bundle().map_err(ImageError::Write)?;
            added.push(certificates::layer(&certificates, &trusted).map_err(ImageError::Write)?);
        }
        for file in added {
            // `lib` may be a link, which leads to a directory of the image and nowhere else.
            if let Err(error) = layer::read(&file, files.len(), &mut tree) {
                tracing::warn!(?error, "an image has no room for what this host adds: its guests go without");
            }
            files.push(file);
        }
        write::write(&tree, &files, &root).map_err(ImageError::Write)?;
        archives.iter().try_for_each(fs::remove_file).map_err(ImageError::Write)
    };
    tokio::task::spawn_blocking(work).await.expect("merging does not panic and the runtime does not stop under it")
}
