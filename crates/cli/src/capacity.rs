//! The capacity that is promised to sandboxes: the options of `firkin up`, and the values that they become.
//!
//! The defaults are the runtime's own; here is only how they are replaced, and said again in hints to paste.

use std::{num::NonZeroUsize, time::Duration};

use clap::{Args, value_parser};
use firkin_runtime::{
    config::{AdmissionConfig, Overcommit, SandboxLimits},
    volumes::VolumeLimits,
};

/// Options about capacity.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Capacity")]
pub(crate) struct CapacityArgs {
    /// Promise sandboxes so many times the host's processors [default: 16]
    #[arg(long, value_name = "TIMES", env = "FIRKIN_CPU_OVERCOMMIT", hide_env_values = true, value_parser = value_parser!(u32).range(1..))]
    cpu_overcommit: Option<u32>,
    /// Promise sandboxes so much of the host's memory; more than 100 is more than there is [default: 90]
    #[arg(long, value_name = "PERCENT", env = "FIRKIN_MEMORY_OVERCOMMIT", hide_env_values = true, value_parser = value_parser!(u32).range(1..))]
    memory_overcommit: Option<u32>,
    /// Promise sandboxes so many times the free disk space [default: 16]
    #[arg(long, value_name = "TIMES", env = "FIRKIN_DISK_OVERCOMMIT", hide_env_values = true, value_parser = value_parser!(u32).range(1..))]
    disk_overcommit: Option<u32>,
    /// Start nothing while less disk space is free [default: 10240, or a twentieth of a small disk]
    #[arg(long, value_name = "MIB", env = "FIRKIN_DISK_FLOOR", hide_env_values = true)]
    disk_floor: Option<u64>,
    /// Let the state directory hold so much, volumes aside; what can be made again goes first [default: all above the floor]
    #[arg(long, value_name = "MIB", env = "FIRKIN_DISK_BUDGET", hide_env_values = true)]
    disk_budget: Option<u64>,
    /// Let each sandbox hold so much disk with its paused state and its snapshots [default: a quarter of the disk]
    #[arg(long, value_name = "MIB", env = "FIRKIN_SANDBOX_DISK_QUOTA", hide_env_values = true)]
    sandbox_disk_quota: Option<u64>,
    /// Keep so many snapshots of each sandbox at most [default: 1000]
    #[arg(long, value_name = "COUNT", env = "FIRKIN_MAX_SNAPSHOTS_PER_SANDBOX", hide_env_values = true)]
    max_snapshots_per_sandbox: Option<usize>,
    /// Keep so many volumes at most [default: 1000]
    #[arg(long, value_name = "COUNT", env = "FIRKIN_MAX_VOLUMES", hide_env_values = true)]
    max_volumes: Option<usize>,
    /// Let each volume hold so much [default: a quarter of the disk]
    #[arg(long, value_name = "MIB", env = "FIRKIN_VOLUME_QUOTA", hide_env_values = true)]
    volume_quota: Option<u64>,
    /// Start nothing while less memory is available [default: 1024, or a twentieth of a small host]
    #[arg(long, value_name = "MIB", env = "FIRKIN_MEMORY_FLOOR", hide_env_values = true)]
    memory_floor: Option<u64>,
    /// Start nothing after the whole host waited for memory for so much of ten seconds, with less than a quarter of it available; 101 for never [default: 10]
    #[arg(long, value_name = "PERCENT", env = "FIRKIN_MEMORY_STALL", hide_env_values = true, value_parser = value_parser!(u8).range(1..=101))]
    memory_stall: Option<u8>,
    /// Let sandboxes that are kept ready hold so much of the capacity [default: 25]
    #[arg(long, value_name = "PERCENT", env = "FIRKIN_WARM_SHARE", hide_env_values = true, value_parser = value_parser!(u8).range(0..=100))]
    warm_share: Option<u8>,
    /// Let so many requests wait for capacity [default: 64]
    #[arg(long, value_name = "COUNT", env = "FIRKIN_QUEUE_LENGTH", hide_env_values = true)]
    queue_length: Option<NonZeroUsize>,
    /// Let each wait so long [default: 5]
    #[arg(long, value_name = "SECONDS", env = "FIRKIN_QUEUE_DEADLINE", hide_env_values = true, value_parser = value_parser!(u64).range(0..=3600))]
    queue_deadline: Option<u64>,
}

/// The options, resolved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CapacitySettings {
    /// How much more is promised than there is.
    pub(crate) overcommit: Overcommit,
    /// Free disk space below which nothing starts.
    pub(crate) disk_floor_mib: Option<u64>,
    /// The budget of the state directory.
    pub(crate) disk_budget_mib: Option<u64>,
    /// What one sandbox may hold of the disk.
    pub(crate) sandboxes: SandboxLimits,
    /// How many volumes there may be, and how large.
    pub(crate) volumes: VolumeLimits,
    /// Who is let in when.
    pub(crate) admission: AdmissionConfig,
}

impl CapacitySettings {
    /// Decides every value.
    pub(crate) fn resolve(args: &CapacityArgs) -> Self {
        let Self { overcommit, admission, sandboxes, volumes, .. } = Self::default();
        Self {
            overcommit: Overcommit {
                cpus: args.cpu_overcommit.unwrap_or(overcommit.cpus),
                memory_percent: args.memory_overcommit.unwrap_or(overcommit.memory_percent),
                disk: args.disk_overcommit.unwrap_or(overcommit.disk),
            },
            disk_floor_mib: args.disk_floor,
            disk_budget_mib: args.disk_budget,
            sandboxes: SandboxLimits {
                disk_mib: args.sandbox_disk_quota,
                snapshots: args.max_snapshots_per_sandbox.unwrap_or(sandboxes.snapshots),
            },
            volumes: VolumeLimits { count: args.max_volumes.unwrap_or(volumes.count), quota_mib: args.volume_quota },
            admission: AdmissionConfig {
                warm_percent: args.warm_share.unwrap_or(admission.warm_percent),
                queue_length: args.queue_length.unwrap_or(admission.queue_length),
                queue_deadline: args.queue_deadline.map_or(admission.queue_deadline, Duration::from_secs),
                memory_floor_mib: args.memory_floor,
                memory_stall_percent: args.memory_stall.unwrap_or(admission.memory_stall_percent),
            },
        }
    }

    /// The options that promise the same again. Defaults are left out.
    pub(crate) fn options(&self) -> String {
        let default = Self::default();
        let option = |name: &str, value: String, default: String| {
            if value == default { String::new() } else { format!(" --{name} {value}") }
        };
        let floor = |name: &str, mib: Option<u64>| mib.map(|mib| format!(" --{name} {mib}")).unwrap_or_default();
        let (ours, theirs) = (&self.admission, &default.admission);
        [
            option("cpu-overcommit", self.overcommit.cpus.to_string(), default.overcommit.cpus.to_string()),
            option(
                "memory-overcommit",
                self.overcommit.memory_percent.to_string(),
                default.overcommit.memory_percent.to_string(),
            ),
            option("disk-overcommit", self.overcommit.disk.to_string(), default.overcommit.disk.to_string()),
            floor("disk-floor", self.disk_floor_mib),
            floor("disk-budget", self.disk_budget_mib),
            floor("sandbox-disk-quota", self.sandboxes.disk_mib),
            option("max-snapshots-per-sandbox", self.sandboxes.snapshots.to_string(), default.sandboxes.snapshots.to_string()),
            option("max-volumes", self.volumes.count.to_string(), default.volumes.count.to_string()),
            floor("volume-quota", self.volumes.quota_mib),
            floor("memory-floor", ours.memory_floor_mib),
            option("memory-stall", ours.memory_stall_percent.to_string(), theirs.memory_stall_percent.to_string()),
            option("warm-share", ours.warm_percent.to_string(), theirs.warm_percent.to_string()),
            option("queue-length", ours.queue_length.to_string(), theirs.queue_length.to_string()),
            option("queue-deadline", ours.queue_deadline.as_secs().to_string(), theirs.queue_deadline.as_secs().to_string()),
        ]
        .concat()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        capacity: CapacityArgs,
    }

    fn resolved(options: &str) -> CapacitySettings {
        CapacitySettings::resolve(&Line::try_parse_from(format!("up{options}").split(' ')).unwrap().capacity)
    }

    #[test]
    fn without_a_word_the_runtimes_defaults_hold() {
        assert_eq!(resolved(""), CapacitySettings::default());
        assert_eq!(resolved("").options(), "");
    }

    #[test]
    fn what_is_said_is_meant_and_said_again() {
        let all = " --cpu-overcommit 4 --memory-overcommit 150 --disk-overcommit 2 --disk-floor 0 --sandbox-disk-quota 7 \
                   --max-snapshots-per-sandbox 2 --max-volumes 3 --volume-quota 5 --memory-floor 2048 --memory-stall 101 --warm-share 0 --queue-length 1 --queue-deadline 0";
        let found = resolved(all);
        assert_eq!(found.overcommit, Overcommit { cpus: 4, memory_percent: 150, disk: 2 });
        assert_eq!((found.disk_floor_mib, found.admission.memory_floor_mib), (Some(0), Some(2048)));
        assert_eq!(found.sandboxes, SandboxLimits { disk_mib: Some(7), snapshots: 2 });
        assert_eq!(found.volumes, VolumeLimits { count: 3, quota_mib: Some(5) });
        assert_eq!((found.admission.memory_stall_percent, found.admission.warm_percent), (101, 0));
        assert_eq!((found.admission.queue_length, found.admission.queue_deadline), (NonZeroUsize::MIN, Duration::ZERO));
        assert_eq!(found.options(), all);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for option in ["--cpu-overcommit 0", "--warm-share 101", "--queue-length 0", "--memory-stall 0", "--disk-floor -1"] {
            assert!(Line::try_parse_from(format!("up {option}").split(' ')).is_err(), "{option}");
        }
    }
}
