//! What may be typed about the configuration file.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ServeArgs;

/// `firkin config ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether a configuration file can be used, or everything that is wrong with it
    Check(CheckConfigArgs),
    /// Show what holds for `firkin up`, with these options if there are any, and where each value comes from
    Show(Box<ServeArgs>),
    /// Print a file that has every key, with what it means and what holds without it
    Example,
}

/// `firkin config check`
#[derive(Debug, Args)]
pub(crate) struct CheckConfigArgs {
    /// The file [default: the one that commands read]
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}
