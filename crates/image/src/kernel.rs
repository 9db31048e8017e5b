//! The guest kernel: Debian's own cloud kernel, taken out of its package and never installed on the host.
//!
//! The newest 6.12 is taken (the series that the engine was measured with), else the newest above it, else whatever there is.
//! A kernel that is in the cache is used without asking apt: a template belongs to the kernel it was booted with, so that
//! a newer kernel is a decision ([`renewed_kernel`]) and not a side effect.
//!
//! Its modules travel with every root file system, whoever made it, and all of them: 25 MB as Debian packs them, which a program
//! in a guest loads as it needs them (overlay, veth, bridge, netfilter, device mapper, NFS, WireGuard). They are indexed here, where
//! `depmod` is at hand, and kept as one archive too, which is laid over the files of a container image like one more layer.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Claim, Slot, blocking, made};
use crate::command::{CommandError, SBIN_PATH, command, run};
use crate::debian::{AptError, Candidate, candidates, compare_versions, download, refresh_lists};
use crate::progress::{ImageStep, Report, say};

/// Raise it when the content of an entry changes: old entries are then not seen.
const KIND: &str = "kernel-v2";
const RECORD: &str = "kernel.json";
const ARCHIVE: &str = "modules.tar";
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// A package file, what is in it, and room to spare.
const NEEDED_BYTES: u64 = 512 << 20;
const PREFIX: &str = "linux-image-";
const SUFFIX: &str = "-cloud-amd64";
/// Reading a thousand modules takes three seconds.
const INDEX_DEADLINE: Duration = Duration::from_secs(300);
/// The series that is preferred, and the oldest one that is used without looking for a newer.
const SERIES: (u32, u32) = (6, 12);

/// A kernel to boot guests with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// The compressed kernel image (`bzImage`).
    pub kernel: PathBuf,
    /// The directory that holds the modules, what `/lib/modules/<version>` would be.
    pub modules: PathBuf,
    /// The same as a tar archive of `lib/modules/<version>`, with the indexes that `modprobe` reads.
    pub archive: PathBuf,
    /// The kernel's release, such as `6.12.117+deb12-cloud-amd64`.
    pub version: String,
    /// blake3 of the package file: image and modules.
    pub digest: String,
}

/// Why there is no guest kernel.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The cache does not give or take it.
    #[error("cannot keep the guest kernel")]
    Cache(#[from] CacheError),
    /// apt failed.
    #[error("cannot get the guest kernel from this machine's package sources")]
    Apt(#[from] AptError),
    /// No source of this machine has one.
    #[error("cannot find a package `{PREFIX}*{SUFFIX}`; the package sources need Debian's main archive")]
    NoPackage,
    /// The package cannot be unpacked.
    #[error("cannot unpack `{package}`")]
    Unpack {
        /// The package file.
        package: PathBuf,
        /// Why.
        #[source]
        source: CommandError,
    },
    /// The modules cannot be indexed.
    #[error("cannot index the modules of the guest kernel")]
    Index(#[source] CommandError),
    /// The package does not hold what a kernel package holds.
    #[error("cannot find `{missing}` in the package `{package}`")]
    Missing {
        /// The package.
        package: String,
        /// The file that should be in it.
        missing: String,
    },
    /// The unpacked files cannot be put into their places.
    #[error("cannot store the guest kernel")]
    Store(#[source] std::io::Error),
}

/// The record that is kept beside a kernel.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    package: String,
    package_version: String,
    release: String,
    digest: String,
}

/// Gives the guest kernel, fetching it if the cache has none.
pub async fn guest_kernel(cache: &Cache, report: Report<'_>) -> Result<GuestKernel, KernelError> {
    let cached = newest_cached(cache);
    if let Some(kernel) = cached.as_ref().filter(|kernel| series(&kernel.version) >= Some(SERIES)) {
        return Ok(kernel.clone());
    }
    match fetch(cache, report).await {
        Err(KernelError::Apt(error)) if cached.is_some() => {
            tracing::warn!(%error, "apt cannot be asked for a newer guest kernel: the cached one is used");
            cached.ok_or(KernelError::NoPackage)
        }
        fetched => fetched,
    }
}

/// Gives the newest guest kernel that this machine's mirror has now, or the cached one where that is newer. What was cached stays.
pub async fn renewed_kernel(cache: &Cache, report: Report<'_>) -> Result<GuestKernel, KernelError> {
    refresh_lists(&apt_log(cache), report).await?;
    let fetched = fetch(cache, report).await?;
    Ok(newest_cached(cache).unwrap_or(fetched))
}

/// The guest kernel that is in the cache, and when it came there.
pub fn kept_kernel(cache: &Cache) -> Option<(GuestKernel, SystemTime)> {
    let kernel = newest_cached(cache)?;
    let made = made(kernel.kernel.parent()?)?;
    Some((kernel, made))
}

/// The release of the kernel that this machine's package lists name as the newest, as they are. Nothing is fetched.
pub async fn offered_kernel() -> Result<Option<String>, AptError> {
    let newest = newest_candidate().await?;
    Ok(newest.and_then(|candidate| release_of(&candidate.package).map(str::to_owned)))
}

/// Whether a guest would rather have the kernel of the release `offered` than that of `kept`.
pub fn is_newer_kernel(offered: &str, kept: &str) -> bool {
    prefer(offered, kept).is_gt()
}

/// Every guest kernel of the cache, in no order: root images that were made for an earlier one are there still.
pub fn kept_kernels(cache: &Cache) -> Vec<GuestKernel> {
    cached(cache).map(|(kernel, _)| kernel).collect()
}

/// Each with the version of its package.
fn cached(cache: &Cache) -> impl Iterator<Item = (GuestKernel, String)> {
    cache.list(KIND).into_iter().filter_map(|entry| match load(&entry) {
        // One release may have been packaged more than once: the entry is named after the package and its version.
        Ok(kernel) => Some((kernel, package_version(&entry))),
        Err(error) => {
            tracing::warn!(%error, "a cached guest kernel is skipped");
            None
        }
    })
}

fn newest_cached(cache: &Cache) -> Option<GuestKernel> {
    let newest = cached(cache).max_by(|(left, left_package), (right, right_package)| {
        prefer(&left.version, &right.version).then_with(|| compare_versions(left_package, right_package))
    });
    newest.map(|(kernel, _)| kernel)
}

/// The end of an entry's name, which is that of its package with its version.
fn package_version(entry: &Path) -> String {
    let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.rsplit_once('_').map_or("", |(_, version)| version).to_owned()
}

fn apt_log(cache: &Cache) -> PathBuf {
    cache.dir().join("logs").join("apt.log")
}

fn load(entry: &Path) -> Result<GuestKernel, CacheError> {
    let damaged = |reason: String| CacheError::Damaged { path: entry.to_path_buf(), reason };
    let mut text = String::new();
    let file = fs::File::open(entry.join(RECORD)).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_RECORD_BYTES).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let kernel = GuestKernel {
        kernel: entry.join("vmlinuz"),
        modules: entry.join("modules"),
        archive: entry.join(ARCHIVE),
        version: record.release,
        digest: record.digest,
    };
    if !kernel.kernel.is_file() || !kernel.modules.is_dir() || !kernel.archive.is_file() {
        return Err(damaged("the image or the modules are missing".to_owned()));
    }
    Ok(kernel)
}

async fn fetch(cache: &Cache, report: Report<'_>) -> Result<GuestKernel, KernelError> {
    say(report, ImageStep::Kernel, "looking for a kernel package");
    let log = apt_log(cache);
    let mut candidate = newest_candidate().await?;
    let mut fresh = false;
    if candidate.is_none() {
        refresh_lists(&log, report).await?;
        fresh = true;
        candidate = newest_candidate().await?;
    }
    let mut candidate = candidate.ok_or(KernelError::NoPackage)?;
    loop {
        let key = format!("{}_{}", candidate.package, candidate.version);
        let slot = match cache.claim(KIND, &key, report).await? {
            Claim::Ready(entry) => return Ok(load(&entry)?),
            Claim::Vacant(slot) => slot,
        };
        match build(slot, &candidate, report).await {
            // The lists may be older than the mirror, which then no longer has what they name.
            Err(KernelError::Apt(error)) if !fresh => {
                tracing::info!(%error, "the kernel package cannot be fetched: the package lists are refreshed");
                refresh_lists(&log, report).await?;
                fresh = true;
                candidate = newest_candidate().await?.ok_or(KernelError::NoPackage)?;
            }
            built => return built,
        }
    }
}

async fn newest_candidate() -> Result<Option<Candidate>, AptError> {
    let found = candidates(PREFIX, |name| release_of(name).is_some_and(|release| series(release).is_some())).await?;
    Ok(found.into_iter().max_by(|left, right| {
        let release = |candidate: &Candidate| release_of(&candidate.package).unwrap_or_default().to_owned();
        prefer(&release(left), &release(right)).then_with(|| compare_versions(&left.version, &right.version))
    }))
}

/// `6.12.9-cloud-amd64` of `linux-image-6.12.9-cloud-amd64`. Names of meta packages have a series at most and give `None`.
fn release_of(package: &str) -> Option<&str> {
    let release = package.strip_prefix(PREFIX)?;
    let number = release.strip_suffix(SUFFIX)?;
    (number.matches('.').count() >= 2).then_some(release)
}

/// Major and minor number of a release.
fn series(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Orders releases: the preferred series above newer ones, these above older ones.
fn prefer(left: &str, right: &str) -> std::cmp::Ordering {
    let class = |release: &str| match series(release) {
        Some(series) if series == SERIES => 2,
        Some(series) if series > SERIES => 1,
        _ => 0,
    };
    class(left).cmp(&class(right)).then_with(|| compare_versions(left, right))
}

async fn build(slot: Slot, candidate: &Candidate, report: Report<'_>) -> Result<GuestKernel, KernelError> {
    slot.require_free(NEEDED_BYTES)?;
    say(report, ImageStep::Kernel, format!("fetching {} {}", candidate.package, candidate.version));
    let package = download(candidate, slot.path(), slot.log()).await?;
    say(report, ImageStep::Kernel, format!("unpacking {}", candidate.package));
    let tree = slot.path().join("tree");
    let mut unpack = command("dpkg-deb");
    unpack.arg("-x").arg(&package).arg(&tree);
    run(unpack, Duration::from_secs(300), slot.log(), &mut |_| ())
        .await
        .map_err(|source| KernelError::Unpack { package: package.clone(), source })?;
    let release = release_of(&candidate.package).unwrap_or_default().to_owned();
    say(report, ImageStep::Kernel, "indexing its modules");
    let mut index = command("depmod");
    // A merged /usr has moved the modules in later releases.
    let base = if tree.join("lib/modules").is_dir() { tree.clone() } else { tree.join("usr") };
    index.arg("--basedir").arg(&base).arg(&release).env("PATH", SBIN_PATH);
    run(index, INDEX_DEADLINE, slot.log(), &mut |_| ()).await.map_err(KernelError::Index)?;
    let (work, wanted) = (slot.path().to_path_buf(), candidate.clone());
    blocking(move || Ok(arrange(&work, &package, &release, &wanted))).await.map_err(KernelError::Store)??;
    let entry = slot.publish().await?;
    Ok(load(&entry)?)
}

/// Moves image and modules to their places, writes the record, and drops the rest of the package.
fn arrange(work: &Path, package: &Path, release: &str, candidate: &Candidate) -> Result<(), KernelError> {
    let tree = work.join("tree");
    for (from, to) in [(format!("boot/vmlinuz-{release}"), "vmlinuz"), (format!("lib/modules/{release}"), "modules")] {
        let places = [tree.join(&from), tree.join("usr").join(&from)];
        let place = places.iter().find(|place| place.exists());
        let place = place.ok_or_else(|| KernelError::Missing { package: candidate.package.clone(), missing: from.clone() })?;
        fs::rename(place, work.join(to)).map_err(KernelError::Store)?;
    }
    archive(&work.join("modules"), release, &work.join(ARCHIVE)).map_err(KernelError::Store)?;
    let record = Record {
        package: candidate.package.clone(),
        package_version: candidate.version.clone(),
        release: release.to_owned(),
        digest: digest_file(package).map_err(KernelError::Store)?,
    };
    let text = serde_json::to_vec_pretty(&record).expect("a record of strings serialises");
    fs::write(work.join(RECORD), text).map_err(KernelError::Store)?;
    firkin_files::remove_tree(&tree).map_err(KernelError::Store)?;
    fs::remove_file(package).map_err(KernelError::Store)
}

/// Writes the modules as they are to be in a guest: root's, readable by all, and the same bytes every time.
fn archive(modules: &Path, release: &str, to: &Path) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(std::io::BufWriter::new(fs::File::create_new(to)?));
    let inside = Path::new("lib/modules").join(release);
    for above in ["lib", "lib/modules"] {
        append(&mut archive, Path::new(above), None)?;
    }
    let mut pending = vec![(modules.to_path_buf(), inside)];
    while let Some((from, inside)) = pending.pop() {
        append(&mut archive, &inside, None)?;
        let mut entries = fs::read_dir(&from)?.collect::<std::io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (from, inside) = (entry.path(), inside.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                pending.push((from, inside));
            } else if kind.is_file() {
                append(&mut archive, &inside, Some(fs::File::open(from)?))?;
            }
        }
    }
    archive.into_inner()?.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
}

/// Appends a file, or a directory.
fn append(archive: &mut tar::Builder<impl std::io::Write>, inside: &Path, file: Option<fs::File>) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_entry_type(if file.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
    header.set_mode(if file.is_some() { 0o644 } else { 0o755 });
    header.set_size(file.as_ref().map_or(Ok(0), |file| file.metadata().map(|meta| meta.len()))?);
    match file {
        Some(file) => archive.append_data(&mut header, inside, file),
        None => archive.append_data(&mut header, inside, std::io::empty()),
    }
}

fn digest_file(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_holds_the_modules_for_everybody_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("modules");
        fs::create_dir_all(modules.join("kernel/net")).unwrap();
        for (file, content) in [("modules.dep", "kernel/net/a.ko.xz:\n"), ("kernel/net/a.ko.xz", "xz")] {
            fs::write(modules.join(file), content).unwrap();
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(modules.join(file), private).unwrap();
        }
        let (first, second) = (dir.path().join("1.tar"), dir.path().join("2.tar"));
        archive(&modules, "6.12.1-cloud-amd64", &first).unwrap();
        archive(&modules, "6.12.1-cloud-amd64", &second).unwrap();
        assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
        let mut read = tar::Archive::new(fs::File::open(&first).unwrap());
        let entries = read.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap(), entry.header().uid().unwrap())
        });
        let expected = [
            ("lib", 0o755),
            ("lib/modules", 0o755),
            ("lib/modules/6.12.1-cloud-amd64", 0o755),
            ("lib/modules/6.12.1-cloud-amd64/modules.dep", 0o644),
            ("lib/modules/6.12.1-cloud-amd64/kernel", 0o755),
            ("lib/modules/6.12.1-cloud-amd64/kernel/net", 0o755),
            ("lib/modules/6.12.1-cloud-amd64/kernel/net/a.ko.xz", 0o644),
        ];
        assert_eq!(entries.collect::<Vec<_>>(), expected.map(|(path, mode)| (path.to_owned(), mode, 0)));
    }

    #[test]
    fn only_real_kernels_of_the_flavour_count() {
        assert_eq!(release_of("linux-image-6.12.117+deb12-cloud-amd64"), Some("6.12.117+deb12-cloud-amd64"));
        assert_eq!(release_of("linux-image-6.1.0-50-cloud-amd64"), Some("6.1.0-50-cloud-amd64"));
        for other in ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64", "linux-image-6.1.0-50-amd64"] {
            assert_eq!(release_of(other), None, "{other}");
        }
        assert_eq!(release_of("linux-image-6.12.117+deb12-cloud-amd64-unsigned"), None);
    }

    #[test]
    fn the_measured_series_is_preferred_then_newer_then_older() {
        let mut releases = [
            "6.16.3-cloud-amd64",
            "6.1.0-50-cloud-amd64",
            "6.12.95+deb12-cloud-amd64",
            "6.12.117+deb12-cloud-amd64",
            "6.1.0-9-cloud-amd64",
        ];
        releases.sort_by(|left, right| prefer(left, right));
        assert_eq!(
            releases,
            [
                "6.1.0-9-cloud-amd64",
                "6.1.0-50-cloud-amd64",
                "6.16.3-cloud-amd64",
                "6.12.95+deb12-cloud-amd64",
                "6.12.117+deb12-cloud-amd64"
            ]
        );
    }

    #[tokio::test]
    async fn a_cached_kernel_needs_no_apt_and_a_damaged_one_is_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        for (key, release, image) in [
            ("p_6.12.1-2", "6.12.1-cloud-amd64", true),
            ("p_6.12.1-10", "6.12.1-cloud-amd64", true),
            ("p_6.12.1-9", "6.12.1-cloud-amd64", true),
            ("b", "6.12.2-cloud-amd64", false),
        ] {
            let entry = cache.dir().join(KIND).join(key);
            fs::create_dir_all(entry.join("modules")).unwrap();
            fs::write(entry.join(ARCHIVE), b"").unwrap();
            if image {
                fs::write(entry.join("vmlinuz"), b"MZ").unwrap();
            }
            let record = format!(r#"{{"package":"p","package_version":"1","release":"{release}","digest":"d"}}"#);
            fs::write(entry.join(RECORD), record).unwrap();
        }
        let kernel = guest_kernel(&cache, &|event| panic!("{event:?}")).await.unwrap();
        assert_eq!(kernel.version, "6.12.1-cloud-amd64");
        assert_eq!(kernel.kernel, cache.dir().join(KIND).join("p_6.12.1-10/vmlinuz"));
        assert_eq!(kept_kernels(&cache).len(), 3);
        assert_eq!(kept_kernel(&cache).map(|(kept, _)| kept), Some(kernel));
        assert!(is_newer_kernel("6.12.118-cloud-amd64", "6.12.117-cloud-amd64"));
        assert!(!is_newer_kernel("7.1.1-cloud-amd64", "6.12.117-cloud-amd64"), "the series is kept to");
    }
}
