//! What may be typed about what moves between hosts.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `firkin snapshot ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Write a snapshot, with all that it stands on, to one file
    Export(ExportArgs),
    /// Take in a snapshot that was exported
    Import(ImportNamedArgs),
}

/// `firkin template|snapshot|sandbox export`
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// Id, or of a template or a snapshot its name
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// File to write, which is there once it is whole [default: the id or name, with `.firkin`, in this directory]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// `firkin sandbox import`
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// File that `export` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// `firkin template|snapshot import`
#[derive(Debug, Args)]
pub(crate) struct ImportNamedArgs {
    #[command(flatten)]
    pub(crate) import: ImportArgs,
    /// Call it this [default: as it was called]
    #[arg(long)]
    pub(crate) name: Option<String>,
}
