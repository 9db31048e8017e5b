//! Facts read from this host: its hardware, and the cost of machines and snapshots.

use std::{
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
};

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

/// The host's memory, and what of it is used by machines.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Account {
    /// Memory that new work could have, in MiB.
    pub(super) available_mib: f64,
    /// Machines that run with the state directory, warm ones included.
    pub(super) machines: usize,
}

/// The account of now.
pub(super) fn account(state_dir: &Path) -> Option<Account> {
    let available_mib = meminfo_kib("MemAvailable:").map(mib_of_kib)?;
    Some(Account { available_mib, machines: machines(state_dir).len() })
}

/// The cost of each machine that is there after and was not before. Sandboxes are no measure of that: a create that takes a warm
/// session makes no machine, and the pool makes another one.
pub(super) fn each_mib(before: Account, after: Account) -> Option<f64> {
    let more = after.machines.checked_sub(before.machines).filter(|&more| more > 0)?;
    Some((before.available_mib - after.available_mib) / f64::from(u32::try_from(more).ok()?))
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
    // A process may end while it is looked at: what cannot be read is gone.
    let rollups = machines(state_dir).into_iter().filter_map(|path| fs::read_to_string(path.join("smaps_rollup")).ok());
    rollups.filter_map(|text| field_kib(&text, "Pss:")).map(mib_of_kib).collect()
}

/// Directories in `/proc` of the machines that run with this state directory.
fn machines(state_dir: &Path) -> Vec<PathBuf> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let run = state_dir.join("run");
    processes.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_machine(path, &run)).collect()
}

/// Whether a process is an engine whose files are below `run`.
fn is_machine(process: &Path, run: &Path) -> bool {
    let Ok(program) = fs::read_link(process.join("exe")) else { return false };
    let is_engine = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu"));
    is_engine && fs::read(process.join("environ")).is_ok_and(|variables| is_instance_below(&variables, run))
}

/// Whether a process's variables name an instance directory below `run`, as the engine starts its machines with.
fn is_instance_below(variables: &[u8], run: &Path) -> bool {
    let mut variables = variables.split(|byte| *byte == 0);
    variables.any(|variable| {
        let dir = variable.strip_prefix(b"FIRKIN_INSTANCE=").map(OsStr::from_bytes);
        dir.is_some_and(|dir| Path::new(dir).starts_with(run))
    })
}

/// Names of the artifacts in a state directory.
pub(super) fn artifacts(state_dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(state_dir.join("artifacts")) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).filter(|name| !name.starts_with('.')).collect()
}

/// Artifacts below `dir` whose names begin with `prefix` and that are there, also those that have lost their names already.
pub(super) fn left_of(dir: &Path, prefix: &str) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.strip_prefix('.').unwrap_or(name).starts_with(prefix)).count()
}

/// The size of an artifact on the disk, in MiB: allocated blocks, not lengths.
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
    fn a_machine_is_known_by_the_instance_that_it_was_started_for() {
        let is_ours = |variables: &[u8]| is_instance_below(variables, Path::new("/state/run"));
        assert!(is_ours(b"FIRKIN_INSTANCE=/state/run/i1\0"));
        for other in
            [b"".as_slice(), b"FIRKIN_INSTANCE=/state/running/i1\0", b"A=FIRKIN_INSTANCE=/state/run/i1\0", b"B=/state/run/i1\0"]
        {
            assert!(!is_ours(other));
        }
    }

    #[test]
    fn a_pool_does_not_change_what_a_machine_costs() {
        let of = |available_mib, machines| Account { available_mib, machines };
        assert_eq!(each_mib(of(1000.0, 0), of(800.0, 10)), Some(20.0), "ten creates without a pool");
        // Two of the ten creates took what was warm, and the pool made two anew.
        assert_eq!(each_mib(of(960.0, 2), of(760.0, 12)), Some(20.0));
        // Demand has made the pool deeper.
        assert_eq!(each_mib(of(960.0, 2), of(700.0, 15)), Some(20.0));
        assert_eq!(each_mib(of(960.0, 2), of(960.0, 2)), None);
    }

    #[test]
    fn this_host_says_what_it_is() {
        let hardware = hardware();
        assert!(hardware.cpus > 0 && hardware.memory_mib > 0 && hardware.kernel != "unknown", "{hardware:?}");
        assert!(account(Path::new("/none")).is_some_and(|account| account.available_mib > 0.0 && account.machines == 0));
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Rss:  10 kB\nPss:               37500 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(field_kib(text, "Pss:"), Some(37500));
        assert_eq!(field_kib(text, "Uss:"), None);
    }
}
