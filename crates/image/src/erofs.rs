//! Root images for containers: the files of a raw ext4 image, with the guest agent, in one EROFS image that sandboxes map.
//!
//! ```text
//!   rootfs.ext4 --mounted read-only--> files --agent, directories for mounts, list, over them--> files --mkfs.erofs--> rootfs.erofs (0400)
//!   rootfs.erofs --the same, under what a sandbox has changed--> files --agent, list, over them--> files --mkfs.erofs--> rootfs.erofs
//! ```
//!
//! gVisor reads its root out of the image without a file server beside the sandbox, and pages of the image are shared by all sandboxes
//! of a host. Not in it are the modules of the guest kernel, which a container has no kernel for. The image is made of the finished
//! ext4 image and not of what that was made of: so it has what machines have, whoever made that, and needs no network. Its key is
//! the digest of that image, of the agent and of the recipe. The same files give the same bytes. Each image lists its own files, so that
//! the agent of a sandbox can tell what that has changed.

mod furnish;
mod upper;
mod view;

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use self::view::{Changes, Format, Size, View};
pub use self::{upper::ChangesError, view::ViewError};
use crate::{
    cache::{Cache, CacheError, Claim, Slot, blocking},
    command::{CommandError, SBIN_PATH, command, run},
    progress::{ImageStep, Report, say},
    rootfs::{self, RootImage},
};

/// Where the agent is in each of these images: what a container starts.
pub const CONTAINER_AGENT: &str = "/usr/lib/firkin/guest";

/// Raise it when the same recipe gives another kind of entry.
pub(crate) const KIND: &str = "erofs-v1";
const IMAGE: &str = "rootfs.erofs";
const RECORD: &str = "rootfs.json";
const MAX_RECORD_BYTES: u64 = 64 << 10;
const PROGRAM: &str = "mkfs.erofs";
/// Two gigabytes take twenty seconds on two busy cores.
const MAKE_DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Tails of files stand in blocks of their own: `runsc` maps blocks, and "bad address" is all that it says of other tails. Each inode
/// has its file's time.
const LAYOUT: &str = "noinline_data,force-inode-extended";
/// Extended attributes are left out: with Debian's `runsc` whoever asks about a file that has one is told `EOPNOTSUPP`, and then nobody can
/// read, list or remove it. What a container's programs could make of them, a file's capabilities, such a kernel does not give them.
const NO_ATTRIBUTES: &str = "-x-1";
/// The same in every image: it names a kind of file system, not one of them.
const FILE_SYSTEM_ID: &str = "0d0f4e0b-7c1f-4a52-9f0e-5d6f8f0b8e11";
/// When every image was made, as far as it tells: the year 2100. The program takes it from `SOURCE_DATE_EPOCH`, and would set later
/// times of files back to it.
const MADE: &str = "4102444800";
/// What is no part of a container: what ext4 and a guest kernel need. Paths within the image; one of its directories may be a link, and
/// what is behind it is met under its own name.
const LEFT_OUT: [&str; 2] = ["--exclude-path=lost+found", "--exclude-regex=^(usr/)?lib/modules/."];
/// What an image has that no machine's has: a part of the recipe.
const LIST: &str = "list 1";
/// Changes in memory: the agent, the list of a million files, and directories of the image that are copied up.
const CHANGES_BYTES: u64 = 128 << 20;
const BLOCK_BYTES: u64 = 4096;
/// Beside the files: the superblock, tables, and a margin.
const MARGIN_BYTES: u64 = 64 << 20;
/// What the program writes at once.
const LARGEST_WRITE_BYTES: u64 = 1 << 20;

/// Why there is no image for containers.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The program that makes such images is not installed.
    #[error("cannot make a root image for gVisor: there is no `{PROGRAM}`; install the package erofs-utils")]
    NoProgram,
    /// The cache does not give or take it.
    #[error("cannot keep the root image for gVisor")]
    Cache(#[from] CacheError),
    /// The files of the machine's image are not there to be read or changed.
    #[error("cannot make a root image for gVisor")]
    View(#[from] ViewError),
    /// The image has grown beyond what the files take.
    #[error(
        "cannot make a root image for gVisor: files with holes would take more than the {limit_mib} MiB that all files take now; \
         remove them from the image"
    )]
    Holes {
        /// What it may take.
        limit_mib: u64,
    },
    /// The image cannot be made.
    #[error("cannot make a root image for gVisor")]
    Make(#[source] CommandError),
    /// What a sandbox has changed cannot be laid over its image.
    #[error("cannot make a root image for gVisor of what a sandbox has changed")]
    Changes(#[from] ChangesError),
    /// A file cannot be written or read.
    #[error("cannot store the root image for gVisor")]
    Store(#[source] std::io::Error),
}

/// The record that is kept beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: String,
    /// Of the disk that a sandbox is to see.
    virtual_bytes: u64,
    /// Of the file.
    bytes: u64,
}

/// Gives the image for containers that has the files of `root`, with `agent` at [`CONTAINER_AGENT`], building it if the cache has none.
/// Needs root, `mkfs.erofs`, loop devices and the kernel's ext4 and overlay. Dropping the future ends the build, and leaves nothing.
///
/// Its digest is that of its own blocks, its size that of the disk which machines have of `root`.
pub async fn container_root(cache: &Cache, root: &RootImage, agent: &[u8], report: Report<'_>) -> Result<RootImage, ErofsError> {
    let work = Work { root: root.clone(), agent: agent.to_vec(), layer: None };
    made_by(SBIN_PATH, cache, work, report).await
}

/// Gives the image for containers that has the files of `root`, which is such an image itself, with what a sandbox has changed of it and
/// with `agent`, building it if the cache has none. `layer` is what `firkin-guest changes` has written in that sandbox: a layer of a
/// container image, not compressed. It is a stranger's, and is read as any. The same is needed as for [`container_root`], and EROFS in
/// the kernel.
pub async fn changed_root(
    cache: &Cache,
    root: &RootImage,
    layer: &Path,
    agent: &[u8],
    report: Report<'_>,
) -> Result<RootImage, ErofsError> {
    let path = layer.to_path_buf();
    let digested = blocking(move || {
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut fs::File::open(&path)?, &mut hasher)?;
        Ok(Layer { digest: hasher.finalize().to_hex().to_string(), bytes: fs::metadata(&path)?.len(), path })
    });
    let layer = Some(digested.await.map_err(ErofsError::Store)?);
    made_by(SBIN_PATH, cache, Work { root: root.clone(), agent: agent.to_vec(), layer }, report).await
}

/// The same with the programs of this `PATH`.
async fn made_by(programs: &str, cache: &Cache, work: Work, report: Report<'_>) -> Result<RootImage, ErofsError> {
    let slot = match cache.claim(KIND, &work.key(), report).await? {
        Claim::Ready(entry) => return Ok(load(&entry)?),
        Claim::Vacant(slot) => slot,
    };
    if !std::env::split_paths(programs).any(|dir| dir.join(PROGRAM).is_file()) {
        return Err(ErofsError::NoProgram);
    }
    say(report, ImageStep::Image, "packing the files for gVisor");
    let slot = in_thread(slot, work).await?;
    Ok(load(&slot.publish().await?)?)
}

fn load(entry: &Path) -> Result<RootImage, CacheError> {
    let damaged = |reason: String| CacheError::Damaged { path: entry.to_path_buf(), reason };
    let mut text = String::new();
    let file = fs::File::open(entry.join(RECORD)).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_RECORD_BYTES).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let path = entry.join(IMAGE);
    let bytes = fs::metadata(&path).map_err(|error| damaged(error.to_string()))?.len();
    if bytes != record.bytes {
        return Err(damaged(format!("the image has {bytes} bytes instead of {}", record.bytes)));
    }
    Ok(RootImage { path, digest: record.digest, virtual_bytes: record.virtual_bytes })
}

/// What is made of what.
struct Work {
    root: RootImage,
    agent: Vec<u8>,
    /// Of a sandbox whose image `root` is. None: that is a machine's.
    layer: Option<Layer>,
}

/// What a sandbox has changed.
struct Layer {
    path: PathBuf,
    digest: String,
    bytes: u64,
}

impl Work {
    /// The digest of all that decides what is in the image.
    fn key(&self) -> String {
        let agent = blake3::hash(&self.agent).to_hex();
        let layer = self.layer.as_ref().map_or("", |layer| layer.digest.as_str());
        let mut hasher = blake3::Hasher::new();
        let recipe = [CONTAINER_AGENT, LAYOUT, NO_ATTRIBUTES, FILE_SYSTEM_ID, MADE, LIST].into_iter().chain(LEFT_OUT);
        let made_of = [self.root.digest.as_str(), agent.as_str(), &self.root.virtual_bytes.to_string(), layer];
        for part in made_of.into_iter().chain(recipe) {
            hasher.update(part.as_bytes()).update(b"\0");
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }
}

/// Builds in a thread whose mounts are its own, and gives the slot back with what was built. When the future is dropped the thread
/// kills what it runs and ends.
async fn in_thread(slot: Slot, work: Work) -> Result<Slot, ErofsError> {
    let (mut sender, receiver) = oneshot::channel();
    let thread = move || {
        let built = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ErofsError::Store);
        let built = built.and_then(|runtime| {
            runtime.block_on(async {
                tokio::select! {
                    built = build(&slot, &work) => Some(built),
                    () = sender.closed() => None,
                }
                .transpose()
            })
        });
        match built {
            Ok(Some(())) => drop(sender.send(Ok(slot))),
            Ok(None) => tracing::debug!("nobody waits for a root image any more"),
            Err(error) => drop(sender.send(Err(error))),
        }
    };
    std::thread::Builder::new().name("firkin-erofs".into()).spawn(thread).map_err(ErofsError::Store)?;
    receiver.await.unwrap_or_else(|_| Err(ErofsError::Store(std::io::Error::other("the thread that makes it has panicked"))))
}

async fn build(slot: &Slot, Work { root, agent, layer }: &Work) -> Result<(), ErofsError> {
    let absolute = |path: &Path| fs::canonicalize(path).map_err(ErofsError::Store);
    let ours = absolute(&root.path)?;
    let (format, changes) = match layer {
        None => (Format::Ext4, Changes::None(CHANGES_BYTES)),
        Some(layer) => {
            // Once over the image's files, and once in the new image.
            slot.require_free(layer.bytes * 2)?;
            upper::make(&absolute(&layer.path)?, &view::upper(slot.path()))?;
            (Format::Erofs, Changes::Made)
        }
    };
    view::apart(slot.path())?;
    let view = View::open(slot.path(), (&ours, format), changes, slot.log()).await?;
    // What no file takes twice, the list and the agent.
    let limit = needed_bytes(view.size()?) + layer.as_ref().map_or(0, |layer| layer.bytes) + CHANGES_BYTES;
    slot.require_free(limit)?;
    view.change(|| furnish::furnish(agent, is_left_out))?;
    let image = slot.path().join(IMAGE);
    make(&view.files(), &image, limit, slot.log()).await?;
    view.close()?;
    let finish = || {
        let record =
            Record { digest: rootfs::digest(&image)?, virtual_bytes: root.virtual_bytes, bytes: fs::metadata(&image)?.len() };
        fs::write(slot.path().join(RECORD), serde_json::to_vec_pretty(&record).expect("a record serialises"))
    };
    finish().map_err(ErofsError::Store)
}

/// What [`LEFT_OUT`] tells the program that makes the image.
fn is_left_out(path: &Path) -> bool {
    let below = |directory| path.strip_prefix(directory).is_ok_and(|rest| rest.components().next().is_some());
    path.starts_with("lost+found") || below("lib/modules") || below("usr/lib/modules")
}

/// What the image takes at most, if no file has holes: ext4 has small files and links in whole blocks too, or in their inodes.
fn needed_bytes(Size { bytes, files }: Size) -> u64 {
    bytes + files * BLOCK_BYTES + MARGIN_BYTES
}

/// Makes the image, no larger than `limit`, by a program that dies with the thread that starts it.
async fn make(files: &Path, image: &Path, limit: u64, log: &Path) -> Result<(), ErofsError> {
    let mut make = command("prlimit");
    make.args([&format!("--fsize={limit}"), "--core=0", "setpriv", "--pdeathsig", "KILL", PROGRAM]);
    make.args(["-E", LAYOUT, NO_ATTRIBUTES, "-U", FILE_SYSTEM_ID, "--quiet"]).args(LEFT_OUT).arg(image).arg(files);
    make.env("PATH", SBIN_PATH).env("SOURCE_DATE_EPOCH", MADE);
    let made = run(make, MAKE_DEADLINE, log, &mut |_| ()).await;
    // Killed by a signal or told by the write, as the limit falls within one or between two.
    let full = || fs::metadata(image).is_ok_and(|made| made.len() + LARGEST_WRITE_BYTES > limit);
    match made {
        Err(CommandError::Failed { .. }) if full() => Err(ErofsError::Holes { limit_mib: limit >> 20 }),
        made => made.map_err(ErofsError::Make),
    }
}

#[cfg(test)]
#[path = "erofs_tests.rs"]
mod tests;
