//! What `runsc` is told: its flags, and the OCI bundle of a sandbox.
//!
//! Sandboxes differ in their user, their root image and their [`Options`]. A checkpoint is restored only with the mounts and flags that it
//! was made with, and a root that is another one is not even noticed, so the fixed part has a digest that snapshots carry, beside their
//! options.

use std::{ffi::OsString, io, path::Path};

use rustix::process::Rlimit;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::network::Network;

/// The agent in every root image, which is the container's first process.
pub const AGENT: &str = "/usr/lib/firkin/guest";
/// What that is told.
const AGENT_WORD: &str = "container";
/// The directory of the bundle that stands for its root, which is in an image.
pub(super) const EMPTY_ROOT: &str = "empty";
/// The name of the one container in each directory of `runsc`.
pub(super) const CONTAINER: &str = "sandbox";

/// What a program may do in the sandbox, whose root has no rights outside. Not there: what gVisor has nothing behind.
const CAPABILITIES: [&str; 20] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_LOCK",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
];

/// Flags of every sandbox: the platform that needs nothing of the host, and what a guest writes beside its image and so in its
/// checkpoints. Control groups are those that the process was put into.
const FLAGS: [&str; 4] = ["--platform=systrap", "--overlay2=root:memory", "--file-access=exclusive", "--ignore-cgroups"];

/// The namespace that the command is in: a sandbox with a network is in it too, and one without in an empty one.
const NETWORK_NAMESPACE: &str = "/proc/self/ns/net";

/// What a sandbox was given, where builds of `runsc` and shapes differ. Who was told nothing of it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    /// The memory that its guest sees, MiB. Absent: the host's.
    pub(super) memory_mib: Option<u32>,
    /// What its root disk holds beside what the image has, bytes. Absent: what the host's has.
    pub(super) disk_bytes: Option<u64>,
    /// Whether the sandbox is told that. Otherwise `df` shows no size.
    pub(super) shows_disk: bool,
    /// Whether programs run as their owner, where their file says so.
    pub(super) setuid: bool,
}

/// A flag that not every build has: programs run as their owner where their file says so.
pub(super) const SETUID_FLAG: &str = "allow-suid";

impl Options {
    /// The largest file that the sandbox may write, while its guest runs and while it is cut. What the guest writes to its root disk is one
    /// file, its memory another, and a checkpoint has both in a third. The first two grow by whole GiB, so what is bounded is rounded up.
    pub(super) fn most_file_bytes(self) -> Option<Rlimit> {
        const STEP: u64 = 1 << 30;
        let memory = u64::from(self.memory_mib?) << 20;
        let most = self.disk_bytes?.max(memory).next_multiple_of(STEP);
        Some(Rlimit { current: Some(most), maximum: Some(2 * most) })
    }
}

/// The flags of a sandbox whose directory of `runsc` is `root`.
pub(super) fn flags((network, options): (Network, Options), root: &Path, log: &Path, panic_log: &Path) -> Vec<OsString> {
    let with = |flag: &str, path: &Path| {
        let mut word = OsString::from(flag);
        word.push(path);
        word
    };
    let own = [with("--root=", root), with("--log=", log), with("--panic-log=", panic_log), "--log-format=json".into()];
    let setuid = options.setuid.then(|| format!("--{SETUID_FLAG}").into());
    network.flags().iter().chain(&FLAGS).map(OsString::from).chain(setuid).chain(own).collect()
}

/// The bundle's `config.json` for a root in `image`, with the user `uid` of the host as its only one. What is written to it is in a file
/// without a name in `disk`.
fn config(image: &Path, disk: &Path, uid: u32, options: Options) -> io::Result<Value> {
    let mut config = fixed(image, uid)?;
    let disk = disk.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its path is not text"))?;
    config["annotations"]["dev.gvisor.spec.rootfs.overlay"] = format!("dir={disk}").into();
    if let Some(bytes) = options.disk_bytes.filter(|_| options.shows_disk) {
        config["annotations"]["dev.gvisor.spec.rootfs.options"] = format!("size={bytes}").into();
    }
    Ok(config)
}

/// That of a sandbox without options.
fn fixed(image: &Path, uid: u32) -> io::Result<Value> {
    let image = image.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its path is not text"))?;
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let ids = json!([{"containerID": 0, "hostID": uid, "size": 1}]);
    let capabilities = json!(CAPABILITIES);
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "user"].map(|kind| json!({"type": kind})).into();
    let network = json!({"type": "network", "path": NETWORK_NAMESPACE});
    let namespaces: Vec<Value> = namespaces.into_iter().chain([network]).collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": [AGENT, AGENT_WORD],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities, "inheritable": capabilities,
            },
        },
        "root": {"path": EMPTY_ROOT},
        "hostname": "sandbox",
        "annotations": {
            "dev.gvisor.spec.rootfs.source": image,
            "dev.gvisor.spec.rootfs.type": "erofs",
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/dev", "tmpfs", &["nosuid", "mode=755"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
            mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
        ],
        "linux": {"namespaces": namespaces, "uidMappings": ids, "gidMappings": ids},
    }))
}

/// The text of the bundle's `config.json`.
pub(super) fn text(image: &Path, disk: &Path, uid: u32, options: Options) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(&config(image, disk, uid, options)?)?)
}

/// A file of the kernel's form that says how much memory there is: `runsc` tells its sandbox what it reads there.
pub(super) fn meminfo(memory_mib: u32) -> String {
    format!("MemTotal: {} kB\n", u64::from(memory_mib) * 1024)
}

/// Digest of all that sandboxes have in common.
pub(super) fn digest(network: Network) -> String {
    let mut hasher = blake3::Hasher::new();
    for flag in network.flags().iter().chain(&FLAGS) {
        hasher.update(flag.as_bytes()).update(b"\0");
    }
    let fixed = text(Path::new(""), Path::new(""), 0, Options::default()).expect("no path is text");
    hasher.update(&fixed).finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_one_user_of_the_host_and_no_file_of_it() {
        let config = config(Path::new("/images/root.erofs"), Path::new("/d"), 1234, Options::default()).unwrap();
        assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 1234, "size": 1}]));
        assert_eq!(config["linux"]["gidMappings"], config["linux"]["uidMappings"]);
        let kinds: Vec<&str> = config["mounts"].as_array().unwrap().iter().map(|mount| mount["type"].as_str().unwrap()).collect();
        assert!(!kinds.contains(&"bind"), "{kinds:?}");
        let all = Options { memory_mib: Some(1), disk_bytes: Some(1), shows_disk: true, setuid: true };
        for flag in flags((Network::None, all), Path::new("/r"), Path::new("/l"), Path::new("/p")) {
            let flag = flag.into_string().unwrap();
            assert!(flag.starts_with("--") && !flag.contains("host-uds") && !flag.contains("host-fifo"), "{flag}");
        }
    }

    #[test]
    fn a_disk_has_the_size_that_it_was_given() {
        let size = |disk_bytes| {
            let options = Options { memory_mib: Some(512), disk_bytes, shows_disk: true, setuid: false };
            let config = config(Path::new("/r"), Path::new("/d"), 1, options).unwrap();
            assert_eq!(options.most_file_bytes().map(|most| most.current), disk_bytes.map(Some), "in whole GiB");
            assert_eq!(config["annotations"]["dev.gvisor.spec.rootfs.overlay"], "dir=/d");
            config["annotations"].get("dev.gvisor.spec.rootfs.options").cloned()
        };
        assert_eq!((size(None), size(Some(5 << 30))), (None, Some(json!("size=5368709120"))));
    }
}
