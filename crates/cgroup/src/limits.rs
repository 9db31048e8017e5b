//! Limits, and the files that the kernel wants them in.

use crate::{Resource, detect::Version};

/// The period that quotas of processor time are told by, µs: the kernel's default. A shorter one gives shorter stalls and more of them.
const PERIOD_US: u64 = 100_000;
/// The weight that everybody has who says nothing, version 2.
const WEIGHT: u64 = 100;
/// The same in version 1.
const SHARES: u64 = 1024;
/// The kernel takes weights up to this, version 2.
const WEIGHT_MAX: u64 = 10_000;
/// The same in version 1.
const SHARES_MAX: u64 = 262_144;
/// And its BFQ.
const BFQ_WEIGHT_MAX: u64 = 1000;

/// What the processes of a group may use together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, page cache that they brought in included: that is dropped first, and what still wants more is killed. As much
    /// swap besides.
    pub memory_bytes: u64,
    /// How many times the weight of an ordinary process they have where processors and disks are contended.
    pub weight: u32,
    /// Hundredths of a processor's time.
    pub cpu_percent: u32,
    /// Processes and threads.
    pub pids: u32,
}

/// A file to write, and whether the host may lack it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) file: &'static str,
    pub(crate) value: String,
    pub(crate) optional: Option<&'static str>,
}

impl Setting {
    fn new(file: &'static str, value: impl ToString) -> Self {
        Self { file, value: value.to_string(), optional: None }
    }

    fn or_lack(self, what: &'static str) -> Self {
        Self { optional: Some(what), ..self }
    }
}

impl Limits {
    /// What to write for one resource, in this order.
    pub(crate) fn settings(&self, version: Version, resource: Resource) -> Vec<Setting> {
        let quota = u64::from(self.cpu_percent) * PERIOD_US / 100;
        match (resource, version) {
            (Resource::Memory, Version::V2) => vec![
                Setting::new("memory.max", self.memory_bytes),
                Setting::new("memory.swap.max", self.memory_bytes).or_lack("limit of swap"),
            ],
            (Resource::Memory, Version::V1) => vec![
                Setting::new("memory.limit_in_bytes", self.memory_bytes),
                Setting::new("memory.memsw.limit_in_bytes", self.memory_bytes.saturating_mul(2)).or_lack("limit of swap"),
            ],
            (Resource::Cpu, Version::V2) => {
                vec![cpu_weight(version, self.weight), Setting::new("cpu.max", format!("{quota} {PERIOD_US}"))]
            }
            (Resource::Cpu, Version::V1) => vec![
                cpu_weight(version, self.weight),
                Setting::new("cpu.cfs_period_us", PERIOD_US),
                Setting::new("cpu.cfs_quota_us", quota),
            ],
            (Resource::Pids, Version::V1 | Version::V2) => vec![Setting::new("pids.max", self.pids)],
            (Resource::Io, Version::V1 | Version::V2) => vec![io_weight(version, self.weight)],
        }
    }
}

/// So many times everybody's weight for processor time.
pub(crate) fn cpu_weight(version: Version, times: u32) -> Setting {
    let times = u64::from(times.max(1));
    match version {
        Version::V1 => Setting::new("cpu.shares", (times * SHARES).min(SHARES_MAX)),
        Version::V2 => Setting::new("cpu.weight", (times * WEIGHT).min(WEIGHT_MAX)),
    }
}

/// So many times everybody's weight for disk I/O. Only some of the kernel's schedulers know weights: BFQ, and the cost model of version 2.
fn io_weight(version: Version, times: u32) -> Setting {
    let weight = u64::from(times.max(1)) * WEIGHT;
    match version {
        Version::V1 => Setting::new("blkio.bfq.weight", weight.min(BFQ_WEIGHT_MAX)),
        Version::V2 => Setting::new("io.weight", weight.min(WEIGHT_MAX)),
    }
    .or_lack("weight of disk I/O")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { memory_bytes: 1 << 30, weight: 2, cpu_percent: 250, pids: 64 };

    fn written(version: Version, resource: Resource) -> Vec<(&'static str, String)> {
        LIMITS.settings(version, resource).into_iter().map(|setting| (setting.file, setting.value)).collect()
    }

    #[test]
    fn both_versions_say_the_same_in_their_own_words() {
        let owned =
            |pairs: &[(&'static str, &str)]| pairs.iter().map(|&(file, value)| (file, value.to_owned())).collect::<Vec<_>>();
        assert_eq!(written(Version::V2, Resource::Cpu), owned(&[("cpu.weight", "200"), ("cpu.max", "250000 100000")]));
        let legacy = [("cpu.shares", "2048"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "250000")];
        assert_eq!(written(Version::V1, Resource::Cpu), owned(&legacy));
        assert_eq!(written(Version::V2, Resource::Memory)[0], ("memory.max", "1073741824".to_owned()));
        assert_eq!(written(Version::V1, Resource::Memory)[0], ("memory.limit_in_bytes", "1073741824".to_owned()));
        assert_eq!(written(Version::V1, Resource::Pids), written(Version::V2, Resource::Pids));
    }

    #[test]
    fn a_weight_is_one_that_the_kernel_takes() {
        for version in [Version::V1, Version::V2] {
            for setting in [cpu_weight(version, 0), cpu_weight(version, u32::MAX), io_weight(version, u32::MAX)] {
                let value: u64 = setting.value.parse().unwrap();
                assert!((1..=SHARES_MAX).contains(&value), "{setting:?}");
            }
        }
    }
}
