//! KVM keeps the engine contract too, on hosts that have none: a sandbox becomes the host.
//!
//! An emulated guest's processor has AMD's virtualisation, so with KVM's modules loaded, QEMU inside of a sandbox runs guests with
//! KVM: other machine type, other devices, other clock, other migration stream than the emulator. QEMU, its libraries, the
//! guests' kernel and the contract's program go in as one archive; the inner guests' disk is the sandbox's own.
#![expect(clippy::unwrap_used, reason = "a helper of a test that fails, fails the test")]

use std::{path::Path, sync::Arc, time::Duration};

use firkin_engine::{
    Acceleration, BootFile, BootFiles, Engine,
    qemu::{QemuEngine, probe::Requested},
};
use firkin_image::GuestKernel;
use firkin_network::NetworkConfig;
use firkin_runtime::{
    capacity::HostCapacity,
    command::GuestCommand,
    config::{GuestSystem, RuntimeConfig},
    network::NetworkChoice,
    owner::OnExit,
    runtime::Runtime,
    sandbox::{CreateSandbox, RuntimeSandbox},
    standard::BuildTemplate,
};
use firkin_vm_tests::{
    engine_qemu::{GuestFiles, cache},
    laboratory::{self, SMALL_QEMU},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What runs inside.
const CONTRACT: &str = env!("CARGO_BIN_EXE_kvm_contract");
/// A guest that is a host: itself, and three guests of 512 MiB that touch little of it.
const HOST_MIB: u32 = 2048;
/// KVM and what it needs, in the order of loading.
const MODULES: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];
/// The contract takes a minute on an idle machine.
const CONTRACT_DEADLINE: Duration = Duration::from_secs(600);
/// Loads the modules: a sandbox has neither a module tree nor `insmod`.
const LOAD: &str = r#"
import ctypes, lzma, os
libc = ctypes.CDLL(None, use_errno=True)
for name in ("irqbypass", "kvm", "kvm-amd"):
    module = lzma.open(f"/lab/{name}.ko.xz").read()
    if libc.syscall(175, module, len(module), b"") != 0:
        raise SystemExit(f"cannot load {name}: {os.strerror(ctypes.get_errno())}")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn kvm_keeps_the_contract_inside_a_sandbox() {
    let Some((engine, files, kernel)) = emulating_host().await else { return };
    let archive = tempfile::NamedTempFile::new().unwrap();
    pack(engine.program(), &files, &kernel, archive.path());

    let state = tempfile::Builder::new().prefix("firkin-nested-").tempdir().unwrap();
    let runtime = Runtime::open(config(state.path(), &files, &kernel), Arc::new(engine)).await.unwrap();
    let outcome = run_inside(&runtime, archive.path()).await;
    runtime.shutdown(OnExit::Kill).await;
    let (status, text) = outcome;
    assert_eq!(status, 0, "{text}");
    assert!(text.contains("with kvm"), "{text}");
    assert!(!Path::new(SMALL_QEMU).exists() || text.contains("two builds of QEMU restore each other's snapshots"), "{text}");
    assert!(text.contains("a failed boot leaves nothing"), "the contract ran to its end: {text}");
}

/// The emulator and what its guests are made of, or `None` after saying why not.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
async fn emulating_host() -> Option<(QemuEngine, GuestFiles, GuestKernel)> {
    if !nix::unistd::getuid().is_root() {
        eprintln!("SKIP: machines need root");
        return None;
    }
    let cache = cache().await;
    let (files, kernel) = GuestFiles::of_this_host(&cache).await;
    let here = files.probe(Requested::Auto, Some(cache.dir().join("acceleration.json"))).await.unwrap();
    if here.fingerprint().acceleration == Acceleration::Kvm {
        eprintln!("SKIP: this host has KVM, and `engine_contract` has used it");
        return None;
    }
    Some((here, files, kernel))
}

/// Packs everything that the inner host needs into one archive.
fn pack(qemu: &Path, files: &GuestFiles, kernel: &GuestKernel, archive: &Path) {
    let lab = tempfile::tempdir().unwrap();
    let into = |name: &str| lab.path().join(name);
    fs_err::copy(&files.kernel, into("vmlinuz")).unwrap();
    fs_err::copy(&files.initrd, into("initrd")).unwrap();
    fs_err::copy(CONTRACT, into("contract")).unwrap();
    for module in MODULES {
        let path = kernel.modules.join(format!("kernel/{module}.ko.xz"));
        fs_err::copy(&path, into(&path.file_name().unwrap().to_string_lossy())).unwrap();
    }
    laboratory::pack(qemu, lab.path(), std::fs::File::create(archive).unwrap()).unwrap();
}

fn config(state: &Path, files: &GuestFiles, kernel: &GuestKernel) -> RuntimeConfig {
    let guest = GuestSystem {
        boot: BootFiles::new(
            BootFile { path: files.kernel.clone(), digest: kernel.digest.clone() },
            BootFile { path: files.initrd.clone(), digest: "test".into() },
        ),
        rootfs: files.rootfs.clone(),
        rootfs_digest: "test".into(),
        rootfs_bytes: files.rootfs_bytes,
    };
    let capacity = HostCapacity { cpus: 4, memory_mib: 4096, disk_mib: 1 << 20 };
    let network = NetworkChoice::Isolated(NetworkConfig::new(state.display().to_string()));
    RuntimeConfig { disk_floor_mib: Some(1024), ..RuntimeConfig::new(state.to_path_buf(), capacity, network, guest) }
}

/// Exit status and output of the contract inside a new sandbox.
async fn run_inside(runtime: &Runtime, archive: &Path) -> (i32, String) {
    let build = BuildTemplate {
        name: "host".into(),
        cpus: 2,
        memory_mib: HOST_MIB,
        nested_virtualization: true,
        ready: None,
        ..BuildTemplate::base()
    };
    let (template, _) = runtime.ensure_template(build, &|_| ()).await.unwrap();
    let sandbox = runtime.create(CreateSandbox::from_template(template.id)).await.unwrap();
    runtime.set_timeout(&sandbox.id, CONTRACT_DEADLINE * 2).await.unwrap();
    upload(runtime, &sandbox, archive, "/tmp/lab.tar").await;
    let script = format!(
        "exec 2>&1; set -e
         tar --directory / --extract --file /tmp/lab.tar && rm /tmp/lab.tar
         python3 -c '{LOAD}'
         # Inner guests write to overlays; their emulator is nobody and must be able to read.
         chmod 444 /dev/vda && sync
         /lab/contract /lab/vmlinuz /lab/initrd /dev/vda"
    );
    let command = GuestCommand { user: Some("root".into()), deadline: CONTRACT_DEADLINE, ..GuestCommand::new(script) };
    let output = runtime.run(&sandbox.id, &command).await.unwrap();
    (output.exit_code, String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Streams a file into a sandbox.
async fn upload(runtime: &Runtime, sandbox: &RuntimeSandbox, from: &Path, to: &str) {
    let mut file = tokio::fs::File::open(from).await.unwrap();
    let mut stream = runtime.dial(&sandbox.id, firkin_wire::ENVD_PORT).await.unwrap().stream;
    let head = format!(
        "POST /files?path={to}&username=root HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Access-Token: {}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
        sandbox.envd_access_token.as_ref().unwrap(),
        file.metadata().await.unwrap().len(),
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::io::copy(&mut file, &mut stream).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
