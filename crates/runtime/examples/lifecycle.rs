//! The runtime without its server: a template, a sandbox restored from it, a command, a snapshot, and forks that go on from it.
//!
//! Runs anywhere, on guests that are not real:
//!
//! ```text
//! cargo run -p firkin-runtime --example lifecycle
//! ```
//!
//! With QEMU, as root, on a guest system that `cargo run -p firkin-image --example guest-system` made:
//!
//! ```text
//! cargo run -p firkin-runtime --example lifecycle -- <kernel> <initramfs> <root image>
//! ```

#![expect(clippy::print_stdout, reason = "a program to run by hand")]

use std::{
    error::Error,
    fs::Permissions,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use firkin_engine::{
    BootFile, BootFiles, Engine,
    qemu::probe::{ProbeRequest, Requested, probe},
};
use firkin_network::NetworkConfig;
use firkin_runtime::{
    capacity::HostCapacity,
    command::GuestCommand,
    config::{GuestSystem, Overcommit, RuntimeConfig},
    memory_pressure::HostMemory,
    network::NetworkChoice,
    owner::OnExit,
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId},
    standard::BuildTemplate,
};

mod stand_in;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Where sandboxes come from, and what can be said in them.
struct World {
    engine: Arc<dyn Engine>,
    config: RuntimeConfig,
    /// Adds the line `{}` to a file.
    append: &'static str,
    /// Prints that file.
    show: &'static str,
    /// Tells when the template is ready.
    ready: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    run(&arguments).await
}

async fn run(arguments: &[PathBuf]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    // Machines run as users of their own and must pass through.
    fs_err::set_permissions(dir.path(), Permissions::from_mode(0o711))?;
    let world = match arguments {
        [] => World::stand_in(dir.path()).await?,
        [kernel, initrd, rootfs] => World::qemu(kernel, initrd, rootfs, dir.path()).await?,
        _ => return Err("usage: lifecycle [<kernel> <initramfs> <root image>]".into()),
    };
    let runtime = Runtime::open(world.config.clone(), Arc::clone(&world.engine)).await?;
    let lived = live(&runtime, &world).await;
    // Whatever happened, no machine stays behind.
    runtime.shutdown(OnExit::Kill).await;
    lived
}

/// From a template to forks, each of which knows what its source knew.
async fn live(runtime: &Runtime, world: &World) -> Result<()> {
    let build = BuildTemplate { ready: world.ready.clone(), ..BuildTemplate::base() };
    let template = Box::pin(runtime.build_template(build, &|line| println!("  {line}"))).await?;
    println!("template {} ({}), run as {}", template.aliases.join(", "), template.id, runtime.acceleration());

    let sandbox = runtime.create(CreateSandbox::from_template("base")).await?;
    append(runtime, world, &sandbox.id, "written before the snapshot").await?;
    println!("sandbox {}: {}", sandbox.id, show(runtime, world, &sandbox.id).await?);

    let snapshot = runtime.snapshot(&sandbox.id, Some("noted".to_owned())).await?;
    append(runtime, world, &sandbox.id, "written after it").await?;
    let restored = runtime.create(CreateSandbox::from_template("noted")).await?;
    let found = show(runtime, world, &restored.id).await?;
    println!("restored from {}: {found}", snapshot.snapshot_id);
    expect(found == "written before the snapshot", "a snapshot is the state of its instant")?;

    for (number, fork) in runtime.fork(&sandbox.id, 2, Duration::from_secs(60)).await?.into_iter().enumerate() {
        let fork = fork?;
        append(runtime, world, &fork.id, &format!("written by fork {number}")).await?;
        let found = show(runtime, world, &fork.id).await?;
        println!("fork {}: {found}", fork.id);
        let expected = format!("written before the snapshot, written after it, written by fork {number}");
        expect(found == expected, "a fork goes on from its source, for itself")?;
    }

    let view = runtime.capacity();
    let (held, offered) = (view.usage.total().memory_mib, view.capacity.memory_mib);
    println!("{} sandboxes hold {held} MiB of {offered} MiB", view.usage.active.sessions);
    runtime.kill(&sandbox.id).await?;
    expect(runtime.sandboxes().len() == 3, "three are left")
}

async fn append(runtime: &Runtime, world: &World, id: &SandboxId, line: &str) -> Result<()> {
    let output = runtime.run(id, &GuestCommand::new(world.append.replace("{}", line))).await?;
    expect(output.exit_code == 0, &String::from_utf8_lossy(&output.stderr))
}

/// The lines of the guest's file, on one.
async fn show(runtime: &Runtime, world: &World, id: &SandboxId) -> Result<String> {
    let output = runtime.run(id, &GuestCommand::new(world.show)).await?;
    Ok(String::from_utf8(output.stdout)?.trim_end().replace('\n', ", "))
}

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// Four processors, 8 GiB and 100 GiB: what this program lets sandboxes have of its host.
fn capacity() -> HostCapacity {
    HostCapacity::with_overcommit(4, 8 << 10, 100 << 10, Overcommit::default())
}

impl World {
    async fn stand_in(dir: &Path) -> Result<Self> {
        let (engine, network) = stand_in::guests().await?;
        let defaults = RuntimeConfig::new(dir.join("state"), capacity(), network, stand_in::guest_system(dir)?);
        // Guests that are not real need next to nothing of the host.
        let config = RuntimeConfig { disk_floor_mib: Some(0), memory_probe: Arc::new(HostMemory::PLENTY), ..defaults };
        Ok(Self { engine: Arc::new(engine), config, append: "append {}", show: "show", ready: None })
    }

    async fn qemu(kernel: &Path, initrd: &Path, rootfs: &Path, dir: &Path) -> Result<Self> {
        let request = ProbeRequest {
            program: None,
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            requested: Requested::Auto,
            deadline: Duration::from_secs(60),
            verdict_file: None,
        };
        let engine = Arc::new(probe(&request).await?);
        let guest = GuestSystem {
            boot: BootFiles::new(
                BootFile { path: kernel.to_owned(), digest: digest(kernel)? },
                BootFile { path: initrd.to_owned(), digest: digest(initrd)? },
            ),
            rootfs: rootfs.to_owned(),
            // A root image is large and this program runs once: its path tells it apart well enough.
            rootfs_digest: rootfs.display().to_string(),
            rootfs_bytes: fs_err::metadata(rootfs)?.len(),
        };
        let network = NetworkChoice::Isolated(NetworkConfig::new(dir.display().to_string()));
        let config = RuntimeConfig::new(dir.join("state"), capacity(), network, guest);
        let ready = BuildTemplate::base().ready;
        Ok(Self { engine, config, append: "echo '{}' >> ~/notes", show: "cat ~/notes", ready })
    }
}

fn digest(path: &Path) -> Result<String> {
    Ok(blake3::hash(&fs_err::read(path)?).to_hex().to_string())
}

/// On guests that are not real. The arguments of a test's process are the test harness's.
#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_live_without_a_server() {
    run(&[]).await.expect("the example runs");
}
