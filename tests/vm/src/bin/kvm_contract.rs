//! Holds QEMU to the engine contract with KVM, and with nothing else, on the machine where this runs.
//!
//! `kvm_contract KERNEL INITRD ROOTFS`: paths of a guest's kernel, initial RAM file system and raw root file system. The test
//! `nested_kvm` runs it inside a guest that has KVM.

use std::{
    io::{Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use firkin_engine::{
    Acceleration, Engine, Fingerprint, Processor, contract,
    qemu::{QemuEngine, probe::Requested},
};
use firkin_vm_tests::engine_qemu::{GuestFiles, QemuHarness};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut paths = std::env::args_os().skip(1).map(PathBuf::from);
    let mut path = |what: &str| paths.next().with_context(|| format!("no {what} was named"));
    let (kernel, initrd, rootfs) = (path("kernel")?, path("initrd")?, path("rootfs")?);
    // A block device tells its size only by its end.
    let rootfs_bytes = fs_err::File::open(&rootfs)?.seek(SeekFrom::End(0))?;
    let files = GuestFiles { kernel, initrd, rootfs, rootfs_bytes };
    let engine = files.probe(Requested::Kvm, None).await.context("KVM does not work here")?;
    ensure!(engine.fingerprint().acceleration == Acceleration::Kvm, "not KVM but {}", engine.fingerprint().acceleration);
    two_builds(&engine, &files).await?;
    contract::check(&QemuHarness::new(engine, files)).await;
    Ok(())
}

/// What one build of QEMU has made, the other restores: a host that gets the small binary keeps what it has, and one that loses it.
#[expect(clippy::print_stderr, reason = "the test that runs this reads it")]
async fn two_builds(engine: &QemuEngine, files: &GuestFiles) -> anyhow::Result<()> {
    let full = Path::new("/usr/bin/qemu-system-x86_64");
    let small = engine.program();
    if small == full || !full.exists() {
        eprintln!("SKIP: there is one build of QEMU");
        return Ok(());
    }
    let full = files.probe_program(Some(full.into()), Requested::Kvm, None).await.context("the full QEMU does not work here")?;
    for processor in [Processor::Plain, Processor::Nested] {
        let (made, taken) = (full.compatibility().fingerprint(processor), engine.compatibility());
        ensure!(taken.processor(&made) == Ok(processor), "{made:?} is not restored by {taken:?}");
        ensure!(full.compatibility().processor(&taken.fingerprint(processor)) == Ok(processor), "nor the other way round");
    }
    // What earlier builds of ours made was made with the full binary.
    for cpu in &full.compatibility().earlier_cpus {
        let made = Fingerprint { cpu: cpu.clone(), devices: None, program: None, ..full.fingerprint().clone() };
        ensure!(engine.compatibility().processor(&made).is_ok(), "{made:?} is not restored by {:?}", engine.compatibility());
    }
    eprintln!("two builds of QEMU restore each other's snapshots");
    Ok(())
}
