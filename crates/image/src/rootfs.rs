//! The root file system: Debian packages in one sparse ext4 image that every sandbox shares.
//!
//! ```text
//!   packages --mmdebstrap, customise.sh--> tree --pip, npm, kernel modules--> tree --mke2fs -d--> rootfs.ext4 (0444, never written again)
//! ```
//!
//! A sandbox writes to a copy-on-write layer over the image, so nothing of it may change after it is made: not even by the
//! guest's kernel, which would zero the inode tables of a lazily initialised file system and so copy 160 MB into every
//! sandbox. The tables are declared zeroed instead, as they are in a fresh sparse file. An entry's key is the digest of its
//! recipe and of the kernel whose modules it has, not of its packages' versions: a cached image is used until it is made anew
//! ([`renewed_rootfs`]), and stays where it is then, for the templates that stand on it.

use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Claim, Slot, blocking, made, numbered};
use crate::certificates;
use crate::command::{CommandError, SBIN_PATH, capture, command, run};
use crate::debian::PackageProgress;
use crate::interpreter;
use crate::kernel::GuestKernel;
use crate::mount_point::{self, MountPoint};
use crate::node::{self, NodeError, NodePackage};
use crate::progress::{ImageStep, Report, say};
use crate::python::{self, PythonError};
use crate::sources::{Mirrors, SourcesError, mirrors};

/// Raise it when the same recipe gives another kind of entry.
pub(crate) const KIND: &str = "rootfs-v2";
/// Where the files of an image are put together, in a slot.
pub(crate) const TREE: &str = "tree";
/// Where its script finds authorities to trust, in a slot.
const CERTIFICATES: &str = "certificates";
const IMAGE: &str = "rootfs.ext4";
const RECORD: &str = "rootfs.json";
const MAX_RECORD_BYTES: u64 = 64 << 10;
/// The tree and the image, each near 800 MB for the base packages, and what apt fetches.
const NEEDED_BYTES: u64 = 3 << 30;
/// The same with more packages: each is 1.8 GB with a desktop.
const NEEDED_WITH_PACKAGES_BYTES: u64 = 5 << 30;
/// The same with Python's libraries: each is 2.9 GB with the larger ones and all languages.
const NEEDED_WITH_PYTHON_BYTES: u64 = 8 << 30;
/// An image that was made this short a time ago is as new as another would be: several templates stand on one.
const FRESH: Duration = Duration::from_secs(60 * 60);
/// Fetching 180 MB and unpacking 560 packages takes two to three minutes on two idle cores with a near mirror.
const PACKAGES_DEADLINE: Duration = Duration::from_secs(60 * 60);
const IMAGE_DEADLINE: Duration = Duration::from_secs(15 * 60);
const BLOCK_BYTES: usize = 4096;
/// Journal of the image: a sandbox's disk is thrown away with it, the journal only has to be there.
const JOURNAL_MIB: u32 = 16;
/// The same in every image: it names a kind of file system, not one of them.
const FILE_SYSTEM_ID: &str = "6f0f5c35-3b0e-4f0e-8f75-1d4c1b3b7a11";
/// Named one by one, so that this machine's `mke2fs.conf` and its version have no say.
pub(crate) const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
                        large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Instead of the host's `mke2fs.conf`. It defines the type that is asked for, with no more to say about it.
const MKE2FS_CONFIG: &str = "[fs_types]\n\text4 = {\n\t}\n";
const CUSTOMISE: &str = include_str!("customise.sh");
/// Documentation is never read in a sandbox; it is a third of the files of a package.
const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "force-unsafe-io",
];
/// The settings of this machine's apt that decide whether it reaches its mirror at all.
const APT_SETTINGS: &[&str] =
    &["Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::Retries"];

/// The parts of a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RootSpec {
    /// Debian release, such as `bookworm`.
    pub suite: String,
    /// Packages beyond the essential ones and apt.
    pub packages: Vec<String>,
    /// Wheels from the package index of this machine's pip, each `NAME==VERSION`, beside the Debian packages that they need.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub python: Vec<String>,
    /// Programs for Node, which every root file system has, from npm's registry.
    pub node: Vec<NodePackage>,
    /// Size of the disk that a sandbox sees. The image is sparse.
    pub virtual_bytes: u64,
}

impl Default for RootSpec {
    /// The `base` root file system.
    fn default() -> Self {
        let packages = [
            "bash",
            "build-essential",
            "bzip2",
            "ca-certificates",
            "coreutils",
            "curl",
            "e2fsprogs",
            "file",
            "fuse3",
            "gh",
            "git",
            "gnupg",
            "iproute2",
            "iptables",
            "iputils-ping",
            "jq",
            "kmod",
            "less",
            "libnss-myhostname",
            "lsof",
            "mount",
            "nano",
            "nftables",
            "openssh-client",
            "procps",
            "psmisc",
            "python-is-python3",
            "python3",
            "python3-dev",
            "python3-pip",
            "python3-venv",
            "ripgrep",
            "rsync",
            "socat",
            "strace",
            "sudo",
            "tree",
            "tzdata",
            "unzip",
            "util-linux",
            "vim-tiny",
            "wget",
            "xz-utils",
            "zip",
        ];
        RootSpec {
            suite: "bookworm".to_owned(),
            packages: packages.map(str::to_owned).to_vec(),
            python: Vec::new(),
            node: vec![NodePackage::YARN, NodePackage::PNPM],
            virtual_bytes: 10 << 30,
        }
    }
}

/// A part of the code interpreter that is worth leaving out: it is large, and nothing else needs its packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeavyPart {
    /// R.
    R,
    /// Java, with its compiler.
    Java,
    /// Python's larger libraries: statistics, learning, pictures, language, sound, algebra.
    Science,
}

impl HeavyPart {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::R, Self::Java, Self::Science];

    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::R => &["r-base-core"],
            Self::Java => &["openjdk-17-jdk-headless"],
            Self::Science => interpreter::SCIENCE,
        }
    }

    fn python(self) -> &'static [&'static str] {
        match self {
            Self::R | Self::Java => &[],
            Self::Science => interpreter::SCIENCE_WHEELS,
        }
    }
}

impl RootSpec {
    /// The root file system of the code interpreter: `base`, what its kernels and their users import, and these parts. The
    /// guest agent serves the interpreter where it finds IPython.
    pub fn code_interpreter(parts: &[HeavyPart]) -> Self {
        let all = |first: &[&'static str], more: fn(HeavyPart) -> &'static [&'static str]| {
            let mut all = first.to_vec();
            all.extend(parts.iter().flat_map(|part| more(*part)));
            // The order is a part of the recipe.
            all.sort_unstable();
            all.dedup();
            all.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let mut spec = Self::default();
        spec.packages.extend(all(interpreter::PACKAGES, HeavyPart::packages));
        spec.python = all(interpreter::WHEELS, HeavyPart::python);
        spec.node.push(NodePackage::TYPESCRIPT);
        spec
    }
}

impl RootSpec {
    /// The root file system of a desktop: `base`, an X server, a session, a browser, and what shows and steers them.
    pub fn desktop() -> Self {
        let packages = [
            "chromium",
            "chromium-sandbox",
            "dbus-x11",
            "fonts-dejavu-core",
            "fonts-wqy-microhei",
            "libgtk-3-bin",
            "mousepad",
            "net-tools",
            "netcat-openbsd",
            "novnc",
            "scrot",
            "thunar",
            "websockify",
            "x11-apps",
            "x11-utils",
            "x11-xserver-utils",
            "x11vnc",
            "xauth",
            "xdg-utils",
            "xdotool",
            "xfce4-panel",
            "xfce4-session",
            "xfce4-settings",
            "xfce4-terminal",
            "xfdesktop4",
            "xfwm4",
            "xvfb",
        ];
        let mut spec = Self::default();
        spec.packages.extend(packages.map(str::to_owned));
        spec
    }
}

/// Files that this host puts into every root file system, whoever made the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Additions {
    /// Whose modules the guests will want.
    pub kernel: GuestKernel,
    /// Authorities to trust beside those of the image, PEM each.
    pub certificates: Vec<String>,
}

/// A root file system to put under sandboxes' disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootImage {
    /// The raw image.
    pub path: PathBuf,
    /// blake3 of the image's blocks that are not zero, each after its number: the same however sparse the file is.
    pub digest: String,
    /// Size of the disk that a sandbox sees.
    pub virtual_bytes: u64,
}

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The cache does not give or take it.
    #[error("cannot keep the root file system")]
    Cache(#[from] CacheError),
    /// This machine's Debian mirror is not known.
    #[error("cannot tell where this machine gets Debian packages from")]
    Sources(#[from] SourcesError),
    /// The packages cannot be installed.
    #[error("cannot install the packages of the root file system")]
    Packages(#[source] CommandError),
    /// The Python packages cannot be installed.
    #[error("cannot install the Python packages of the root file system")]
    Python(#[from] PythonError),
    /// Node, or a program for it, cannot be installed.
    #[error("cannot install Node in the root file system")]
    Node(#[from] NodeError),
    /// The kernel's modules cannot be unpacked.
    #[error("cannot put the kernel's modules into the root file system")]
    Modules(#[source] CommandError),
    /// The image cannot be made.
    #[error("cannot make the disk image of the root file system")]
    Image(#[source] CommandError),
    /// The image is not sound.
    #[error("cannot use the new disk image: it fails its file system check")]
    Check(#[source] CommandError),
    /// A file cannot be written or read.
    #[error("cannot store the root file system")]
    Store(#[source] std::io::Error),
}

/// The record that is kept beside an image.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    digest: String,
    virtual_bytes: u64,
}

/// Gives the `base` root file system.
pub async fn base_rootfs(cache: &Cache, additions: &Additions, report: Report<'_>) -> Result<RootImage, RootfsError> {
    rootfs(cache, &RootSpec::default(), additions, report).await
}

/// Free space that must be there before anything is fetched: a disk that fills up half-way is found out late.
fn needed_bytes(spec: &RootSpec) -> u64 {
    if !spec.python.is_empty() {
        NEEDED_WITH_PYTHON_BYTES
    } else if spec.packages.len() > RootSpec::default().packages.len() {
        NEEDED_WITH_PACKAGES_BYTES
    } else {
        NEEDED_BYTES
    }
}

/// Gives a root file system for guests of a kernel, building it if the cache has none. Needs root, `mmdebstrap` and `mke2fs`.
pub async fn rootfs(cache: &Cache, spec: &RootSpec, additions: &Additions, report: Report<'_>) -> Result<RootImage, RootfsError> {
    let key = key(spec, additions);
    let number = cache.newest(KIND, &key).map_or(0, |(number, _)| number);
    numbered_rootfs(cache, (&key, number), (spec, additions), report).await
}

/// The same with the packages that the mirror has now: made anew beside the one that is there, unless that is fresh.
pub async fn renewed_rootfs(
    cache: &Cache,
    spec: &RootSpec,
    additions: &Additions,
    report: Report<'_>,
) -> Result<RootImage, RootfsError> {
    let key = key(spec, additions);
    let number = match cache.newest(KIND, &key) {
        None => 0,
        Some((number, entry)) if is_fresh(&entry, SystemTime::now()) => number,
        Some((number, _)) => number + 1,
    };
    numbered_rootfs(cache, (&key, number), (spec, additions), report).await
}

/// When the root file system that [`rootfs`] would give was made, if there is one.
pub fn kept_rootfs(cache: &Cache, spec: &RootSpec, additions: &Additions) -> Option<SystemTime> {
    made(&cache.newest(KIND, &key(spec, additions))?.1)
}

fn is_fresh(entry: &Path, now: SystemTime) -> bool {
    made(entry).is_some_and(|made| now.duration_since(made).unwrap_or_default() < FRESH)
}

async fn numbered_rootfs(
    cache: &Cache,
    (key, number): (&str, u32),
    (spec, additions): (&RootSpec, &Additions),
    report: Report<'_>,
) -> Result<RootImage, RootfsError> {
    let slot = match cache.claim(KIND, &numbered(key, number), report).await? {
        Claim::Ready(entry) => return Ok(load(&entry)?),
        Claim::Vacant(slot) => slot,
    };
    slot.require_free(needed_bytes(spec))?;
    let mirrors = mirrors(Path::new("/")).await?;
    let tree = slot.path().join(TREE);
    let authorities =
        certificates::write(&additions.certificates, &slot.path().join(CERTIFICATES)).map_err(RootfsError::Store)?;
    install(&slot, &tree, Contents { spec, mirrors: &mirrors, authorities }, report).await?;
    if !spec.python.is_empty() {
        python::install(&slot, &tree, &spec.python, report).await?;
    }
    node::install(&slot, &tree, &spec.node, report).await?;
    add_modules(&slot, &tree, &additions.kernel).await?;
    make_image(&slot, &tree, spec.virtual_bytes, report).await?;
    let work = slot.path().to_path_buf();
    let virtual_bytes = spec.virtual_bytes;
    blocking(move || finish(&work, virtual_bytes)).await.map_err(RootfsError::Store)?;
    Ok(load(&slot.publish().await?)?)
}

/// The digest of everything that decides what is in the image, but for the versions of its packages.
fn key(spec: &RootSpec, additions: &Additions) -> String {
    let spec = serde_json::to_string(spec).expect("a specification of strings and numbers serialises");
    let mut hasher = blake3::Hasher::new();
    for part in [
        &spec,
        &additions.kernel.digest,
        node::RECIPE,
        CUSTOMISE,
        &DPKG_OPTIONS.join("\n"),
        FEATURES,
        FILE_SYSTEM_ID,
        &JOURNAL_MIB.to_string(),
    ] {
        hasher.update(part.as_bytes()).update(b"\0");
    }
    for certificate in &additions.certificates {
        hasher.update(certificate.as_bytes()).update(b"\0");
    }
    hasher.finalize().to_hex()[..32].to_owned()
}

pub(crate) fn load(entry: &Path) -> Result<RootImage, CacheError> {
    let damaged = |reason: String| CacheError::Damaged { path: entry.to_path_buf(), reason };
    let mut text = String::new();
    let file = fs::File::open(entry.join(RECORD)).map_err(|error| damaged(error.to_string()))?;
    file.take(MAX_RECORD_BYTES).read_to_string(&mut text).map_err(|error| damaged(error.to_string()))?;
    let record: Record = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let path = entry.join(IMAGE);
    let bytes = fs::metadata(&path).map_err(|error| damaged(error.to_string()))?.len();
    if bytes != record.virtual_bytes {
        return Err(damaged(format!("the image has {bytes} bytes instead of {}", record.virtual_bytes)));
    }
    Ok(RootImage { path, digest: record.digest, virtual_bytes: record.virtual_bytes })
}

/// The parts that `mmdebstrap` puts together.
struct Contents<'a> {
    spec: &'a RootSpec,
    mirrors: &'a Mirrors,
    /// Files with certificates.
    authorities: Vec<PathBuf>,
}

/// Installs the packages into `tree`.
async fn install(slot: &Slot, tree: &Path, contents: Contents<'_>, report: Report<'_>) -> Result<(), RootfsError> {
    let Contents { spec, mirrors, authorities } = contents;
    say(report, ImageStep::Packages, "installing packages");
    let (sources, customise) = (slot.path().join("sources"), slot.path().join("customise.sh"));
    fs::write(&sources, stanzas(spec, mirrors)).map_err(RootfsError::Store)?;
    fs::write(&customise, CUSTOMISE).map_err(RootfsError::Store)?;
    fs::set_permissions(&customise, std::fs::Permissions::from_mode(0o755)).map_err(RootfsError::Store)?;

    let seen = MountPoint::new(Path::new(mount_point::PARENT)).map_err(RootfsError::Store)?;
    let mut install = seen.enter(tree);
    install.args(["mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--verbose"]);
    install.args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")));
    let settings = apt_settings().await.map_err(RootfsError::Packages)?;
    install.args(settings.iter().map(|setting| format!("--aptopt={setting}")));
    install.arg("--aptopt=Acquire::Languages \"none\";");
    install.arg(format!("--include={}", spec.packages.join(",")));
    // Java's packages link into a directory that others bring with the manuals that are left out.
    install.arg("--essential-hook=mkdir -p \"$1/usr/share/man/man1\"");
    install.arg(format!("--customize-hook={}", customise.display()));
    if !authorities.is_empty() {
        let files: Vec<String> = authorities.iter().map(|file| file.display().to_string()).collect();
        install.arg(format!("--customize-hook=copy-in {} {}", files.join(" "), firkin_files::authorities::OWN));
        install.arg("--customize-hook=chroot \"$1\" update-ca-certificates");
    }
    install.arg(&spec.suite).arg(seen.path()).arg(&sources);
    // A hook's PATH is the caller's, and a service's may lack the places of `chroot` and `useradd`.
    install.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").env("TMPDIR", slot.path());
    let mut follow = PackageProgress::new(ImageStep::Packages);
    let mut on_line = |line: &str| {
        if let Some(event) = follow.event(line) {
            report(event);
        }
    };
    run(install, PACKAGES_DEADLINE, slot.log(), &mut on_line).await.map_err(RootfsError::Packages)
}

/// Unpacks the kernel's modules where `modprobe` looks for them. `lib` is a link in Debian's tree.
async fn add_modules(slot: &Slot, tree: &Path, kernel: &GuestKernel) -> Result<(), RootfsError> {
    let mut unpack = command("tar");
    unpack.args(["--extract", "--keep-directory-symlink", "--same-owner", "--same-permissions", "--no-overwrite-dir"]);
    unpack.arg("--file").arg(&kernel.archive).arg("--directory").arg(tree);
    run(unpack, IMAGE_DEADLINE, slot.log(), &mut |_| ()).await.map_err(RootfsError::Modules)
}

/// The sources to install from, which the image also keeps.
fn stanzas(spec: &RootSpec, mirrors: &Mirrors) -> String {
    let (suite, updates, security) = (&spec.suite, format!("{}-updates", spec.suite), format!("{}-security", spec.suite));
    let mut text = mirrors.main.stanza(&[suite, &updates]);
    if let Some(mirror) = &mirrors.security {
        text.push('\n');
        text.push_str(&mirror.stanza(&[&security]));
    }
    text
}

/// This machine's settings that a fresh apt needs too.
async fn apt_settings() -> Result<Vec<String>, CommandError> {
    let mut dump = command("apt-config");
    dump.args(["dump", "Acquire"]);
    let dump = capture(dump, Duration::from_secs(60)).await?;
    let belongs = |line: &&str| {
        let set = line.split_once(' ').is_some_and(|(_, value)| value != "\"\";");
        let after = APT_SETTINGS.iter().find_map(|name| line.strip_prefix(name));
        set && after.is_some_and(|after| after.starts_with("::") || after.starts_with(' '))
    };
    Ok(dump.lines().filter(belongs).map(str::to_owned).collect())
}

/// Makes the image of the tree without mounting anything, and checks it.
pub(crate) async fn make_image(slot: &Slot, tree: &Path, virtual_bytes: u64, report: Report<'_>) -> Result<(), RootfsError> {
    let image = slot.path().join(IMAGE);
    say(report, ImageStep::Image, format!("making a disk image of {} GiB", virtual_bytes >> 30));
    let created = fs::File::create_new(&image).and_then(|file| file.set_len(virtual_bytes));
    created.map_err(RootfsError::Store)?;
    let config = slot.path().join("mke2fs.conf");
    fs::write(&config, MKE2FS_CONFIG).map_err(RootfsError::Store)?;
    let mut make = command("mke2fs");
    make.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-e", "remount-ro"]);
    make.args(["-O", FEATURES, "-U", FILE_SYSTEM_ID, "-L", "sandbox", "-J", &format!("size={JOURNAL_MIB}")]);
    make.args(["-E", &format!("assume_storage_prezeroed=1,root_owner=0:0,hash_seed={FILE_SYSTEM_ID}")]);
    make.arg("-d").arg(tree).arg(&image).env("MKE2FS_CONFIG", &config).env("PATH", SBIN_PATH);
    run(make, IMAGE_DEADLINE, slot.log(), &mut |_| ()).await.map_err(RootfsError::Image)?;
    say(report, ImageStep::Image, "checking the disk image");
    let mut check = command("e2fsck");
    check.args(["-f", "-n"]).arg(&image).env("PATH", SBIN_PATH);
    run(check, IMAGE_DEADLINE, slot.log(), &mut |_| ()).await.map_err(RootfsError::Check)
}

/// Removes all but the image, seals it, and writes the record.
pub(crate) fn finish(work: &Path, virtual_bytes: u64) -> std::io::Result<()> {
    for directory in [TREE, CERTIFICATES] {
        match firkin_files::remove_tree(&work.join(directory)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    for file in ["sources", "customise.sh", "mke2fs.conf"] {
        match fs::remove_file(work.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let image = work.join(IMAGE);
    // Machines are handed it as a descriptor.
    fs::set_permissions(&image, std::fs::Permissions::from_mode(0o400))?;
    let record = Record { digest: digest(&image)?, virtual_bytes };
    fs::write(work.join(RECORD), serde_json::to_vec_pretty(&record).expect("a record serialises"))
}

/// The digest of an image: see [`RootImage::digest`]. Holes are not read.
pub(crate) fn digest(image: &Path) -> std::io::Result<String> {
    use nix::unistd::{Whence, lseek};
    let file = std::fs::File::open(image)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 * BLOCK_BYTES];
    let (end, block_bytes) = (file.metadata()?.len(), BLOCK_BYTES as u64);
    let mut at = 0;
    while at < end {
        let data = match lseek(&file, i64::try_from(at).map_err(std::io::Error::other)?, Whence::SeekData) {
            Ok(data) => u64::try_from(data).map_err(std::io::Error::other)?,
            Err(nix::errno::Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = data - data % block_bytes;
        let read = file.read_at(&mut buffer, at)?;
        for (number, block) in (at / block_bytes..).zip(buffer[..read].chunks(BLOCK_BYTES)) {
            if block.iter().any(|&byte| byte != 0) {
                hasher.update(&number.to_le_bytes()).update(block);
            }
        }
        at = (at + read as u64).next_multiple_of(block_bytes);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Mirror;

    #[test]
    fn a_larger_root_file_system_wants_more_room() {
        let room = [RootSpec::default(), RootSpec::desktop(), RootSpec::code_interpreter(&HeavyPart::ALL)]
            .map(|spec| needed_bytes(&spec));
        // The tree, the image and what was fetched of each, as they were measured: 0.8, 1.8 and 2.9 GB, and a fifth of that.
        for (room, measured_mb) in room.iter().zip([800_u64, 1_800, 2_900]) {
            assert!(*room > measured_mb * 2_200_000, "{room} bytes for {measured_mb} MB");
        }
    }

    #[test]
    fn the_suite_of_the_image_is_the_recipes_and_the_mirror_is_the_machines() {
        let mirror = |uri: &str| Mirror { uri: uri.into(), signed_by: Some("/k.gpg".into()) };
        let mirrors = Mirrors {
            main: mirror("http://a.test/debian"),
            security: Some(mirror("http://a.test/security")),
            codename: "trixie".into(),
        };
        let text = stanzas(&RootSpec::default(), &mirrors);
        assert!(text.contains("URIs: http://a.test/debian\nSuites: bookworm bookworm-updates\n"), "{text}");
        assert!(text.contains("URIs: http://a.test/security\nSuites: bookworm-security\n"), "{text}");
    }

    #[test]
    fn the_key_follows_the_recipe() {
        let base = RootSpec::default();
        let larger = RootSpec { virtual_bytes: 20 << 30, ..base.clone() };
        let kernel = |digest: &str| GuestKernel {
            kernel: "k".into(),
            modules: "m".into(),
            archive: "a".into(),
            version: "6.12.1".into(),
            digest: digest.into(),
        };
        let additions = |digest, certificates| Additions { kernel: kernel(digest), certificates };
        let key = |spec: &RootSpec| super::key(spec, &additions("one", vec![]));
        assert_eq!(key(&base), key(&base.clone()));
        assert_ne!(key(&base), key(&larger));
        assert_ne!(key(&base), super::key(&base, &additions("another", vec![])), "it has the modules of its kernel");
        assert_ne!(key(&base), super::key(&base, &additions("one", vec!["PEM".into()])), "it trusts whom it was told to");
        assert_ne!(key(&base), key(&RootSpec::code_interpreter(&[])));
        assert_ne!(key(&base), key(&RootSpec::desktop()));
        let all = key(&RootSpec::code_interpreter(&HeavyPart::ALL));
        assert_ne!(all, key(&RootSpec::code_interpreter(&[HeavyPart::R, HeavyPart::Java])));
        assert_eq!(all, key(&RootSpec::code_interpreter(&[HeavyPart::Science, HeavyPart::Java, HeavyPart::R])));
    }

    #[tokio::test]
    async fn a_root_file_system_that_was_just_made_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).await.unwrap();
        let kernel = GuestKernel {
            kernel: "k".into(),
            modules: "m".into(),
            archive: "a".into(),
            version: "6.12.1".into(),
            digest: "d".into(),
        };
        let (spec, additions) = (RootSpec::default(), Additions { kernel, certificates: Vec::new() });
        assert_eq!(kept_rootfs(&cache, &spec, &additions), None);
        let entry = |number| cache.dir().join(KIND).join(numbered(&super::key(&spec, &additions), number));
        for (number, digest) in [(0, "old"), (1, "new")] {
            fs::create_dir_all(entry(number)).unwrap();
            fs::write(entry(number).join(IMAGE), b"0123456789").unwrap();
            fs::write(entry(number).join(RECORD), format!(r#"{{"digest":"{digest}","virtual_bytes":10}}"#)).unwrap();
        }
        let given = rootfs(&cache, &spec, &additions, &|event| panic!("{event:?}")).await.unwrap();
        assert_eq!(given.digest, "new", "what was made last is used");
        let renewed = renewed_rootfs(&cache, &spec, &additions, &|event| panic!("{event:?}")).await.unwrap();
        assert_eq!(renewed.digest, "new");
        let made = kept_rootfs(&cache, &spec, &additions).unwrap();
        assert!(is_fresh(&entry(1), made) && !is_fresh(&entry(1), made + FRESH));
    }

    #[test]
    fn the_digest_of_an_image_ignores_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, full) = (dir.path().join("sparse"), dir.path().join("full"));
        let mut content = vec![0; 100 * BLOCK_BYTES];
        content[70 * BLOCK_BYTES + 5] = 1;
        fs::write(&full, &content).unwrap();
        let file = fs::File::create(&sparse).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.file().write_all_at(&[1], 70 * BLOCK_BYTES as u64 + 5).unwrap();
        assert_eq!(digest(&sparse).unwrap(), digest(&full).unwrap());
        content[3] = 1;
        fs::write(&full, &content).unwrap();
        assert_ne!(digest(&sparse).unwrap(), digest(&full).unwrap());
    }

    #[test]
    fn an_image_of_the_wrong_size_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IMAGE), b"short").unwrap();
        fs::write(dir.path().join(RECORD), r#"{"digest":"d","virtual_bytes":10}"#).unwrap();
        assert!(matches!(load(dir.path()), Err(CacheError::Damaged { .. })));
    }
}
