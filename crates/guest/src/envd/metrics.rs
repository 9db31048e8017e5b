//! Resource use of the sandbox, for envd's `/metrics` and for the host.

use std::{
    io,
    sync::{Mutex, PoisonError},
};

use firkin_wire::control::Stats;
use nix::sys::statvfs::statvfs;
use serde::Serialize;

/// Reads figures; remembers processor times, because their use is a difference.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    last: Mutex<CpuTimes>,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeterError {
    /// A file of `/proc` cannot be read.
    #[error("cannot read the kernel's figures")]
    Read(#[source] io::Error),
    /// The root file system does not answer.
    #[error("cannot measure the root file system")]
    Disk(#[source] nix::Error),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

/// The body of `GET /metrics`.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    #[serde(flatten)]
    stats: Stats,
    mem_total_mib: u64,
    mem_used_mib: u64,
}

impl From<Stats> for Figures {
    fn from(stats: Stats) -> Self {
        Self { mem_total_mib: stats.mem_total >> 20, mem_used_mib: stats.mem_used >> 20, stats }
    }
}

impl Meter {
    /// The figures now. Blocks for a few small reads.
    pub(crate) fn read(&self) -> Result<Stats, MeterError> {
        let stat = fs_err::read_to_string("/proc/stat").map_err(MeterError::Read)?;
        let meminfo = fs_err::read_to_string("/proc/meminfo").map_err(MeterError::Read)?;
        let root = statvfs("/").map_err(MeterError::Disk)?;
        let (times, cpu_count) = parse_stat(&stat);
        let memory = |key| parse_meminfo(&meminfo, key);
        let (mem_total, mem_cache) = (memory("MemTotal:"), memory("Cached:") + memory("SReclaimable:"));
        let block = root.fragment_size();
        Ok(Stats {
            ts: jiff::Timestamp::now().as_second(),
            cpu_count,
            cpu_used_pct: self.used_since_last(times),
            mem_total,
            mem_used: mem_total.saturating_sub(memory("MemFree:") + memory("Buffers:") + mem_cache),
            mem_cache,
            disk_used: block * root.blocks().saturating_sub(root.blocks_available()),
            disk_total: block * root.blocks(),
        })
    }

    fn used_since_last(&self, now: CpuTimes) -> f32 {
        let last = std::mem::replace(&mut *self.last.lock().unwrap_or_else(PoisonError::into_inner), now);
        used_percent(last, now)
    }
}

/// Busy time of all processors between two samples, in percent with two decimals.
fn used_percent(last: CpuTimes, now: CpuTimes) -> f32 {
    let (busy, total) = (now.busy.saturating_sub(last.busy), now.total.saturating_sub(last.total));
    let hundredths = (busy * 10_000).checked_div(total).unwrap_or(0).min(10_000);
    f32::from(u16::try_from(hundredths).unwrap_or(10_000)) / 100.0
}

/// Times of all processors together, and how many there are.
fn parse_stat(stat: &str) -> (CpuTimes, u32) {
    let fields = |line: &str| line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect::<Vec<u64>>();
    // user nice system idle iowait irq softirq steal; guest times are part of user time.
    let times: Vec<u64> = stat.lines().next().map(fields).unwrap_or_default().into_iter().take(8).collect();
    let total = times.iter().sum();
    let idle: u64 = times.iter().skip(3).take(2).sum();
    let count = stat.lines().filter(|line| line.starts_with("cpu")).count().saturating_sub(1);
    (CpuTimes { busy: total - idle, total }, u32::try_from(count).unwrap_or(u32::MAX))
}

/// One line of `/proc/meminfo`, in bytes; 0 when it is missing.
fn parse_meminfo(meminfo: &str, key: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_use_is_a_difference() {
        let text = "cpu  100 0 50 800 50 0 0 0 9 9\ncpu0 1 1\ncpu1 1 1\nintr 5\n";
        let (times, count) = parse_stat(text);
        assert_eq!((times, count), (CpuTimes { busy: 150, total: 1000 }, 2));
        let later = CpuTimes { busy: 175, total: 1100 };
        assert!((used_percent(times, later) - 25.0).abs() < f32::EPSILON);
        assert!(used_percent(later, later).abs() < f32::EPSILON);
    }

    #[test]
    fn figures_are_plausible_here() {
        let stats = Meter::default().read().unwrap();
        assert!(stats.cpu_count >= 1);
        assert!(stats.mem_total > stats.mem_used && stats.mem_used > 0);
        assert!(stats.disk_total >= stats.disk_used);
    }
}
