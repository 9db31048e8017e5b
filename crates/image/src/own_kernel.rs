//! A guest kernel that the host's owner brings, in place of the packaged one.
//!
//! Some variants of KVM run only guests whose kernel was built for them. Such a kernel is no package of Debian's, so it is given as a
//! file. It is copied into the cache under its digest: what templates are booted from stays what their recipe says, whatever becomes of
//! the file. The modules of guests stay those of the packaged kernel, which another release does not load, so it must have built in what
//! a guest needs before it has its disk (`NEEDED` in `modules.rs`).

use std::io::Read as _;
use std::path::{Path, PathBuf};

use fs_err as fs;

use crate::cache::{Cache, CacheError, Claim, blocking};

const KIND: &str = "own-kernel-v1";
const FILE: &str = "vmlinuz";
/// An uncompressed kernel with all its symbols is some hundred MiB; what is larger is another file.
const MAX_BYTES: u64 = 1 << 30;
/// Where a compressed kernel image says what it is, and how (the kernel's Documentation/arch/x86/boot.rst).
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
/// The start of a 64-bit little-endian ELF file, and where its processor stands: an uncompressed kernel.
const ELF: &[u8] = b"\x7fELF\x02\x01";
const ELF_MACHINE_AT: usize = 18;
const X86_64: &[u8] = &[62, 0];

/// A kernel that was brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnKernel {
    /// The copy of it that guests are booted from.
    pub path: PathBuf,
    /// blake3 of its bytes.
    pub digest: String,
}

/// Why a file is not used as a kernel.
#[derive(Debug, thiserror::Error)]
pub enum OwnKernelError {
    /// It is not there, or cannot be read.
    #[error("cannot read the guest kernel `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is larger than any kernel.
    #[error("`{path}` is no guest kernel: it has more than {} MiB", MAX_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("`{path}` is no guest kernel: neither a compressed image (bzImage) nor an uncompressed one (ELF) for x86-64")]
    NoKernel {
        /// The file.
        path: PathBuf,
    },
    /// The cache does not give or take it.
    #[error("cannot keep the guest kernel")]
    Cache(#[from] CacheError),
}

/// Takes the kernel into the cache, unless it is there already.
pub async fn own_kernel(cache: &Cache, path: &Path) -> Result<OwnKernel, OwnKernelError> {
    let failed = |source| OwnKernelError::Read { path: path.to_path_buf(), source };
    let wanted = path.to_path_buf();
    let bytes = blocking(move || read(&wanted)).await.map_err(failed)?;
    let bytes = bytes.ok_or_else(|| OwnKernelError::TooLarge { path: path.to_path_buf() })?;
    if !is_kernel(&bytes) {
        return Err(OwnKernelError::NoKernel { path: path.to_path_buf() });
    }
    let digest = blake3::hash(&bytes).to_hex().to_string();
    let slot = match cache.claim(KIND, &digest, &|_| ()).await? {
        Claim::Ready(entry) => return Ok(OwnKernel { path: entry.join(FILE), digest }),
        Claim::Vacant(slot) => slot,
    };
    let copy = slot.path().join(FILE);
    blocking(move || fs::write(copy, bytes)).await.map_err(failed)?;
    Ok(OwnKernel { path: slot.publish().await?.join(FILE), digest })
}

/// The file's bytes, unless they are too many.
fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_BYTES).then_some(bytes))
}

fn is_kernel(bytes: &[u8]) -> bool {
    let has = |at: usize, expected: &[u8]| bytes.get(at..at + expected.len()) == Some(expected);
    has(MAGIC_AT, MAGIC) || (has(0, ELF) && has(ELF_MACHINE_AT, X86_64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compressed() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[MAGIC_AT..MAGIC_AT + MAGIC.len()].copy_from_slice(MAGIC);
        image
    }

    fn uncompressed(machine: u8) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..ELF.len()].copy_from_slice(ELF);
        image[ELF_MACHINE_AT] = machine;
        image
    }

    #[test]
    fn kernels_are_told_from_other_files() {
        assert!(is_kernel(&compressed()) && is_kernel(&uncompressed(62)));
        for other in [&b""[..], b"HdrS", &uncompressed(183), &compressed()[..MAGIC_AT + 3], &[0; 4096]] {
            assert!(!is_kernel(other), "{} bytes", other.len());
        }
    }

    #[tokio::test]
    async fn what_is_booted_stays_whatever_becomes_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
        let given = dir.path().join("vmlinux");
        fs::write(&given, compressed()).unwrap();
        let first = own_kernel(&cache, &given).await.unwrap();
        assert_eq!(own_kernel(&cache, &given).await.unwrap(), first);
        fs::write(&given, uncompressed(62)).unwrap();
        let second = own_kernel(&cache, &given).await.unwrap();
        assert_ne!(second.digest, first.digest);
        assert_eq!(fs::read(first.path).unwrap(), compressed());
    }

    #[tokio::test]
    async fn a_missing_file_and_one_that_is_no_kernel_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
        let missing = own_kernel(&cache, &dir.path().join("none")).await.unwrap_err();
        assert!(matches!(&missing, OwnKernelError::Read { path, .. } if path.ends_with("none")), "{missing}");
        let text = dir.path().join("notes.txt");
        fs::write(&text, "no kernel").unwrap();
        let other = own_kernel(&cache, &text).await.unwrap_err();
        assert!(matches!(&other, OwnKernelError::NoKernel { path } if *path == text), "{other}");
        assert!(matches!(own_kernel(&cache, dir.path()).await.unwrap_err(), OwnKernelError::Read { .. }));
    }
}
