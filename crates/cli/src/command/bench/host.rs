//! What is read from this host: its hardware, and what machines and snapshots on it cost.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use fs_err as fs;
use serde::{Deserialize, Serialize};

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hardware {
    /// Model of its processors.
    pub(super) cpu: String,
    /// How many.
    pub(super) cpus: usize,
    /// Memory in MiB.
    pub(super) memory_mib: u64,
    /// Release of its kernel.
    pub(super) kernel: String,
}

/// This machine, as far as it says.
pub(super) fn hardware() -> Hardware {
    let unknown = || "unknown".to_owned();
    let cpu = fs::read_to_string("/proc/cpuinfo").ok();
    let cpu = cpu.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned());
    Hardware {
        cpu: cpu.map_or_else(unknown, |(_, model)| model.to_owned()),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        memory_mib: meminfo_kib("MemTotal:").unwrap_or(0) / 1024,
        kernel: kernel.unwrap_or_else(|_| unknown()),
    }
}

/// Memory that new work could have, in MiB.
pub(super) fn available_mib() -> Option<f64> {
    meminfo_kib("MemAvailable:").map(mib_of_kib)
}

fn meminfo_kib(name: &str) -> Option<u64> {
    field_kib(&fs::read_to_string("/proc/meminfo").ok()?, name)
}

/// The value of a line `name    1234 kB`.
fn field_kib(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// Proportional set sizes in MiB of the machines that run with this state directory, warm ones included. Empty where we may not
/// look.
pub(super) fn machines_pss_mib(state_dir: &Path) -> Vec<f64> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let run = state_dir.join("run").display().to_string();
    let machines = processes.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_machine(path, &run));
    // A process may end while it is looked at: what cannot be read is gone.
    let rollups = machines.filter_map(|path| fs::read_to_string(path.join("smaps_rollup")).ok());
    rollups.filter_map(|text| field_kib(&text, "Pss:")).map(mib_of_kib).collect()
}

/// Whether a process is an engine whose files are below `run`.
fn is_machine(process: &Path, run: &str) -> bool {
    let Ok(program) = fs::read_link(process.join("exe")) else { return false };
    let is_engine = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu"));
    is_engine && fs::read(process.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(run))
}

/// Names of the artifacts in a state directory.
pub(super) fn artifacts(state_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state_dir.join("artifacts")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
}

/// What an artifact takes on the disk, in MiB: allocated blocks, not lengths.
pub(super) fn artifact_mib(state_dir: &Path, name: &str) -> Option<f64> {
    let entries = fs::read_dir(state_dir.join("artifacts").join(name)).ok()?;
    let blocks: u64 = entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|meta| meta.blocks()).sum();
    Some(mib_of_kib(blocks / 2))
}

fn mib_of_kib(kib: u64) -> f64 {
    // Exact below 2^53 KiB, which no host has.
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_says_what_it_is() {
        let hardware = hardware();
        assert!(hardware.cpus > 0 && hardware.memory_mib > 0 && hardware.kernel != "unknown", "{hardware:?}");
        assert!(available_mib().is_some_and(|mib| mib > 0.0));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:  10 kB\nPss:               37500 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(field_kib(text, "Pss:"), Some(37500));
        assert_eq!(field_kib(text, "Uss:"), None);
    }
}
