//! What `runsc` is told: its flags, and the OCI bundle of a sandbox.
//!
//! Sandboxes differ in their user, their root image and their [`Options`]. A checkpoint is restored only with the mounts and flags that it
//! was made with, and a root that is another one is not even noticed, so the fixed part has a digest that snapshots carry, beside their
//! options.

use std::{ffi::OsString, io, path::Path};

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

/// Flags of every sandbox: the platform that needs nothing of the host, and what a guest writes in memory and so in its checkpoints.
/// Control groups are those that the process was put into.
const FLAGS: [&str; 4] = ["--platform=systrap", "--overlay2=root:memory", "--file-access=exclusive", "--ignore-cgroups"];

/// The namespace that the command is in: a sandbox with a network is in it too, and one without in an empty one.
const NETWORK_NAMESPACE: &str = "/proc/self/ns/net";

/// What a sandbox was given, where builds of `runsc` and shapes differ. Who was told nothing of it has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Options {
    /// The memory that its guest sees, MiB. Absent: the host's.
    pub(super) memory_mib: Option<u32>,
    /// What its root disk holds beside what the image has, bytes. Absent: what memory there is, and `df` shows no bound.
    pub(super) disk_bytes: Option<u64>,
}

/// The flags of a sandbox whose directory of `runsc` is `root`.
pub(super) fn flags(network: Network, root: &Path, log: &Path, panic_log: &Path) -> Vec<OsString> {
    let with = |flag: &str, path: &Path| {
        let mut word = OsString::from(flag);
        word.push(path);
        word
    };
    let own = [with("--root=", root), with("--log=", log), with("--panic-log=", panic_log), "--log-format=json".into()];
    network.flags().iter().chain(&FLAGS).map(OsString::from).chain(own).collect()
}

/// The bundle's `config.json` for a root in `image`, with the user `uid` of the host as its only one.
fn config(image: &Path, uid: u32, options: Options) -> io::Result<Value> {
    let mut config = fixed(image, uid)?;
    if let Some(bytes) = options.disk_bytes {
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
            "dev.gvisor.spec.rootfs.overlay": "memory",
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
pub(super) fn text(image: &Path, uid: u32, options: Options) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(&config(image, uid, options)?)?)
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
    let fixed = text(Path::new(""), 0, Options::default()).expect("no path is text");
    hasher.update(&fixed).finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_has_one_user_of_the_host_and_no_file_of_it() {
        let config = config(Path::new("/images/root.erofs"), 1234, Options::default()).unwrap();
        assert_eq!(config["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 1234, "size": 1}]));
        assert_eq!(config["linux"]["gidMappings"], config["linux"]["uidMappings"]);
        let kinds: Vec<&str> = config["mounts"].as_array().unwrap().iter().map(|mount| mount["type"].as_str().unwrap()).collect();
        assert!(!kinds.contains(&"bind"), "{kinds:?}");
        for flag in flags(Network::None, Path::new("/r"), Path::new("/l"), Path::new("/p")) {
            let flag = flag.into_string().unwrap();
            assert!(flag.starts_with("--") && !flag.contains("host-uds") && !flag.contains("host-fifo"), "{flag}");
        }
    }

    #[test]
    fn a_disk_has_the_size_that_it_was_given() {
        let size = |disk_bytes| {
            let config = config(Path::new("/r"), 1, Options { disk_bytes, ..Options::default() }).unwrap();
            config["annotations"].get("dev.gvisor.spec.rootfs.options").cloned()
        };
        assert_eq!((size(None), size(Some(5 << 30))), (None, Some(json!("size=5368709120"))));
    }
}
