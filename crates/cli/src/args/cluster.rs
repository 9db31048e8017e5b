//! What may be typed of a catalogue as a whole.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{
    catalog::CatalogArgs,
    node::{ClusterAccessArgs, FoundArgs},
};

/// `firkin cluster ...`
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Bring what is on record of the state directory into a database, while no server runs
    Init(InitArgs),
    /// Make a database the catalogue of several servers, and their secret where there is none yet; it is empty, or this state directory's
    Found(FoundArgs),
    /// Say on one screen how a cluster is; ends with 1 where something is wrong
    Status(ClusterLookArgs),
    /// Say where a new sandbox of a template would go now, and for each other node why not; ends with 1 where it would go nowhere
    Explain(ExplainArgs),
    /// Name the paused sandboxes that nobody can resume, for their files are on a node that is away; ends with 1 where there is one
    Stranded(ClusterLookArgs),
    /// Have a cluster be of another secret, while none of its servers runs
    RotateSecret(RotateSecretArgs),
    /// Write all that is on record into a file; a server may run
    Backup(BackupArgs),
    /// Say whether a backup, or the catalogue itself, goes with the files that are there; nothing is changed
    RestoreCheck(RestoreCheckArgs),
}

/// `firkin cluster status|stranded`
#[derive(Debug, Args)]
pub(crate) struct ClusterLookArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
}

/// `firkin cluster rotate-secret`
#[derive(Debug, Args)]
pub(crate) struct RotateSecretArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
    /// The next secret: it is made there if there is no file
    #[arg(long, value_name = "FILE")]
    pub(crate) new_secret_file: PathBuf,
}

/// `firkin cluster explain`
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
    /// Its name, with a tag or without, or its id
    #[arg(value_name = "TEMPLATE")]
    pub(crate) template: String,
    /// Whose name that is
    #[arg(long, value_name = "TEAM", default_value = "firkin")]
    pub(crate) team: String,
}

/// `firkin cluster init`
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// Take what is on record from this backup and not from the state directory: the catalogue that it was of is lost
    #[arg(long, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
}

/// `firkin cluster backup`
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// The file, or - for standard output
    #[arg(value_name = "FILE")]
    pub(crate) to: PathBuf,
}

/// `firkin cluster restore-check`
#[derive(Debug, Args)]
pub(crate) struct RestoreCheckArgs {
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// The backup, or - for standard input [default: the catalogue as it is]
    #[arg(value_name = "FILE")]
    pub(crate) backup: Option<PathBuf>,
    /// Have the state directory go on with its catalogue although that is an earlier one: what was recorded since is lost
    #[arg(long, conflicts_with = "backup", requires = "catalog")]
    pub(crate) accept: bool,
}
