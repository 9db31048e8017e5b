//! What a sandbox lacks that is to be a host itself: QEMU with its libraries and firmware, packed into one archive.
//!
//! An emulated guest's processor has AMD's virtualisation, so with KVM's modules loaded, QEMU inside of a sandbox runs guests with
//! KVM. The sandbox has this host's distribution, so programs run there with the libraries that they run with here; and no
//! network is needed.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

/// Debian's QEMU with one machine and no emulator, which servers prefer with KVM.
pub const SMALL_QEMU: &str = "/usr/bin/qemu-system-x86_64-microvm";
/// Where it is in the sandbox, beside what the archive's maker adds.
pub const INSIDE: &str = "/lab";
/// What QEMU loads into a machine that boots a kernel directly, wherever a distribution keeps it.
const FIRMWARE: [&str; 7] = [
    "qemu/kvmvapic.bin",
    "qemu/linuxboot_dma.bin",
    "qemu/pvh.bin",
    "qemu/qboot.rom",
    "qemu/bios-microvm.bin",
    "seabios/bios-256k.bin",
    "seabios/bios-microvm.bin",
];

/// Packs QEMU as it is installed here, and the directory `lab` as [`INSIDE`], for `tar --directory / --extract`. Links in `lab` are
/// followed, holes stay holes.
pub fn pack(qemu: &Path, lab: &Path, archive: impl Into<Stdio>) -> anyhow::Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--dereference", "--sparse", "--absolute-names", "--create"]).stdout(archive);
    tar.arg(format!("--transform=s,^{},{INSIDE},", lab.display()));
    // Where this host has the build that users' servers run with KVM, so has the inner one.
    for program in [qemu, Path::new(SMALL_QEMU)].into_iter().filter(|program| program.exists()) {
        tar.arg(program).args(libraries(program)?);
    }
    tar.args(FIRMWARE.map(|name| Path::new("/usr/share").join(name)).iter().filter(|path| path.exists()));
    let status = tar.arg(lab).status().context("cannot start tar")?;
    ensure!(status.success(), "tar cannot pack `{}`: {status}", lab.display());
    Ok(())
}

/// The shared libraries of a program, as its loader finds them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8(output.stdout).context("cannot read what ldd says")?;
    Ok(text.lines().filter_map(|line| line.split("=> ").nth(1)?.split(' ').next()).map(PathBuf::from).collect())
}
