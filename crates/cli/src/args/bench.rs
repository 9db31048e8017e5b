//! What may be typed of measurements.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use firkin_runtime::reference::BASE;
use serde::{Deserialize, Serialize};

use super::HostArgs;

/// `firkin bench`
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Template of the sandboxes
    #[arg(long, default_value = BASE)]
    pub(crate) template: String,
    /// Samples of each kind; p95 needs 100, p99 needs 500 [default: 100]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) samples: Option<u32>,
    /// Five samples of each kind, to see that everything works
    #[arg(long, conflicts_with = "samples")]
    pub(crate) quick: bool,
    /// Sandboxes created at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) burst: u32,
    /// Idle sandboxes whose memory is counted
    #[arg(long, value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) clones: u32,
    /// Measure only creates, while the server removes this many artifacts that nobody needs, and while it removes none
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) dead_artifacts: Option<u32>,
    /// Size of each of these artifacts
    #[arg(long, value_name = "MIB", default_value_t = 1024, requires = "dead_artifacts",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) dead_mib: u32,
    /// What they are made of
    #[arg(long, value_name = "KIND", value_enum, default_value = "allocated", requires = "dead_artifacts")]
    pub(crate) dead_files: DeadFiles,
    /// Measure nothing: print two earlier reports, made with --json, and their ratio
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"],
          conflicts_with_all = ["samples", "quick", "burst", "clones", "dead_artifacts"])]
    pub(crate) compare: Option<Vec<PathBuf>>,
}

/// What the files of artifacts are that the server is given to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeadFiles {
    /// Holes: they take no room on the disk, and free none
    Sparse,
    /// Blocks that nothing was written to
    Allocated,
    /// Blocks that were written: what a snapshot is just after it was taken
    Written,
}
