//! What a QEMU process may do: nothing but use the descriptors it was given.
//!
//! The jail is made by `firkin-jail`; what is said here is what of the host QEMU needs to be itself, and how much of it a machine
//! may use up. QEMU never holds privileges, not even while it starts: its own `-run-with user=` would come after it has parsed
//! everything, and makes the process undumpable so that its memory could not be read for a snapshot. QEMU's own system call filter
//! comes on top ([`SANDBOX`]): it also ends the right to run programs.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use firkin_jail::{Jail, Limits, Part, Program, Standing};

use super::calls;
use crate::Safeguard;

/// QEMU's own seccomp filter: no obsolete calls, no set-uid, no new processes, no scheduler or resource changes.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Firmware of our machines: the BIOS of each, and what loads a kernel or patches an interrupt controller.
const FIRMWARE: [&str; 8] = [
    "bios-256k.bin",
    "bios.bin",
    "bios-microvm.bin",
    "qboot.rom",
    "kvmvapic.bin",
    "linuxboot.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
];
/// Where distributions keep accelerators that are not in the binary, and what those are called.
const MODULE_DIRS: [&str; 3] = ["/usr/lib/x86_64-linux-gnu/qemu", "/usr/lib64/qemu", "/usr/lib/qemu"];
const MODULES: [&str; 2] = ["accel-tcg-x86_64.so", "accel-kvm-x86_64.so"];
/// A generation id is drawn by a library that takes the time where it finds no source of random bytes.
const DEVICES: [&str; 1] = ["/dev/urandom"];

/// A disk's descriptors: a file and its member of a set for each of its layers, and room for all else.
const DESCRIPTORS: u64 = 2048;
/// Threads of a machine besides its processors: a pool of 64 for the disk, and some that wait for something.
const OTHER_THREADS: u64 = 192;
/// What a file may grow to beyond the disk that it holds: tables, and the log.
const FILE_ROOM: u64 = 64 << 20;
/// Tables grow with the disk: less than its 64th part.
const TABLES_PART: u64 = 64;

/// The jail of a QEMU. Takes as long as it takes to copy it.
pub(super) fn jail(program: &Path) -> Arc<Jail> {
    let files = files(program).unwrap_or_else(|error| {
        tracing::warn!(%error, program = %program.display(), "it does not tell where its firmware is");
        Vec::new()
    });
    let calls = calls::allowed();
    let jail = Jail::new(&Program { path: program, files: &files, devices: &DEVICES.map(PathBuf::from), calls: &calls });
    for (part, reason) in jail.lacking() {
        tracing::warn!(%part, reason, "machines run without a part of their jail");
    }
    Arc::new(jail)
}

/// What a jail of any program has on this host, each part tried.
pub fn safeguards_of_host() -> Vec<Safeguard> {
    safeguards(&firkin_jail::survey())
}

pub(super) fn safeguards(parts: &[(Part, Standing)]) -> Vec<Safeguard> {
    let told = parts.iter().map(|(part, standing)| Safeguard {
        name: part.to_string(),
        lacking: match standing {
            Standing::Held => None,
            Standing::Lacking(reason) => Some(reason.clone()),
        },
    });
    told.collect()
}

/// Files that QEMU opens by name: what it has of [`FIRMWARE`], in the directories that it looks in, and of [`MODULES`].
fn files(program: &Path) -> io::Result<Vec<PathBuf>> {
    let answer = Command::new(program).args(["-L", "help"]).env_clear().current_dir("/").output()?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let firmware =
        text.lines().filter(|line| line.starts_with('/')).flat_map(|dir| FIRMWARE.map(|name| Path::new(dir).join(name)));
    let modules = MODULE_DIRS.iter().flat_map(|dir| MODULES.map(|name| Path::new(dir).join(name)));
    Ok(firmware.chain(modules).filter(|file| file.is_file()).collect())
}

/// What a machine of this many processors may use up, whose files hold at most so much.
pub(super) fn limits(vcpus: u32, largest_bytes: u64) -> Limits {
    Limits {
        file_bytes: largest_bytes.saturating_add(largest_bytes / TABLES_PART).saturating_add(FILE_ROOM),
        descriptors: DESCRIPTORS,
        threads: OTHER_THREADS + u64::from(vcpus),
    }
}

#[cfg(test)]
mod tests;
