//! The initramfs: the guest agent as `/init`, and the modules it needs to find its disk.
//!
//! ```text
//!   /init            the agent
//!   /modules/order   file names in load order, one a line
//!   /modules/*.ko    the modules, not packed: the agent gives them to the kernel as they are
//!   /dev/console     so that the agent has somewhere to write before it mounts anything
//!   /dev /proc /sys /run /tmp /newroot   to mount on
//! ```
//!
//! It is not compressed: QEMU maps the file, and a guest on an emulated CPU takes longer to unpack than to copy.

use std::path::PathBuf;

use fs_err as fs;

use crate::cache::{Cache, CacheError, Claim, blocking};
use crate::cpio::Archive;
use crate::kernel::GuestKernel;
use crate::modules::{Module, ModuleError, load};

/// Raise it when the same inputs give another archive.
const KIND: &str = "initramfs-v1";
const FILE: &str = "initramfs.cpio";

/// An initramfs to boot guests with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initramfs {
    /// The archive.
    pub path: PathBuf,
    /// blake3 of what is in it: kernel and agent.
    pub digest: String,
}

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The cache does not give or take it.
    #[error("cannot keep the initramfs")]
    Cache(#[from] CacheError),
    /// The kernel's modules cannot be taken.
    #[error("cannot collect the modules of the guest kernel")]
    Modules(#[from] ModuleError),
    /// It cannot be written.
    #[error("cannot write the initramfs")]
    Write(#[source] std::io::Error),
}

/// Gives the initramfs of a kernel and an agent, packing it if the cache has none.
pub async fn initramfs(cache: &Cache, kernel: &GuestKernel, agent: &[u8]) -> Result<Initramfs, InitramfsError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kernel.digest.as_bytes()).update(blake3::hash(agent).as_bytes());
    let digest = hasher.finalize().to_hex().to_string();
    let slot = match cache.claim(KIND, &digest, &|_| ()).await? {
        Claim::Ready(entry) => return Ok(Initramfs { path: entry.join(FILE), digest }),
        Claim::Vacant(slot) => slot,
    };
    let (tree, agent, path) = (kernel.modules.clone(), agent.to_vec(), slot.path().join(FILE));
    blocking(move || {
        let modules = match load(&tree) {
            Ok(modules) => modules,
            Err(error) => return Ok(Err(InitramfsError::Modules(error))),
        };
        fs::write(path, pack(&agent, &modules))?;
        Ok(Ok(()))
    })
    .await
    .map_err(InitramfsError::Write)??;
    Ok(Initramfs { path: slot.publish().await?.join(FILE), digest })
}

fn pack(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "run", "tmp", "newroot", "modules"] {
        archive.directory(directory, 0o755);
    }
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.character_device("dev/null", 0o666, 1, 3);
    let order: String = modules.iter().map(|module| format!("{}.ko\n", module.name)).collect();
    archive.file("modules/order", 0o644, order.as_bytes());
    for module in modules {
        archive.file(&format!("modules/{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, agent);
    archive.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::parse;
    use crate::modules::tests::tree;

    #[tokio::test]
    async fn agent_and_modules_are_in_it_and_the_digest_tells_agents_apart() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
        tree(dir.path(), &[("virtio_blk.ko", ""), ("virtio_net.ko", "failover"), ("failover.ko", "")]);
        let kernel = GuestKernel {
            kernel: dir.path().join("vmlinuz"),
            modules: dir.path().to_path_buf(),
            archive: dir.path().join("modules.tar"),
            version: "6.12.1".into(),
            digest: "k".into(),
        };
        let first = initramfs(&cache, &kernel, b"agent").await.unwrap();
        let members = parse(&fs::read(&first.path).unwrap());
        let content = |name: &str| members.iter().find(|member| member.0 == name).map(|member| member.2.clone()).unwrap();
        assert_eq!(content("init"), b"agent");
        assert_eq!(content("modules/order"), b"virtio_blk.ko\nfailover.ko\nvirtio_net.ko\n");
        assert!(content("modules/failover.ko").starts_with(b"\x7fELF"));
        assert_eq!(initramfs(&cache, &kernel, b"agent").await.unwrap(), first);
        assert_ne!(initramfs(&cache, &kernel, b"other").await.unwrap().digest, first.digest);
    }
}
