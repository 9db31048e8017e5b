//! Holds QEMU to the engine contract with KVM, and with nothing else, on the machine where this runs.
//!
//! `kvm_contract KERNEL INITRD ROOTFS`: paths of a guest's kernel, initial RAM file system and raw root file system. The test
//! `nested_kvm` runs it inside a guest that has KVM.

use std::{
    io::{Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, ensure};
use firkin_engine::{Acceleration, Engine, contract, qemu::probe::Requested};
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
    contract::check(&QemuHarness::new(engine, files)).await;
    Ok(())
}
