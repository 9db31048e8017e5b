//! What may be typed about teams, their keys, and who did what.

use clap::{Args, Subcommand, ValueEnum};
use firkin_runtime::team::FIRST;
use jiff::Span;
use serde::Serialize;

/// `firkin audit`
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// What this team did
    #[arg(long)]
    pub(crate) team: Option<String>,
    /// From then on: a time (2026-01-31T12:00:00Z), or so long ago (2h, 7d)
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
}

/// `firkin team ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TeamCommand {
    /// Make a team; it has no key yet
    Add(AddTeamArgs),
    /// List teams
    #[command(visible_alias = "list")]
    Ls,
    /// Say what a team may have at most; what is left out is without a limit
    Quota(TeamQuotaArgs),
}

/// `firkin team add`
#[derive(Debug, Args)]
pub(crate) struct AddTeamArgs {
    /// Its id, which stands before its names: lower-case letters, digits and `-`
    pub(crate) id: String,
    /// For people
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
}

/// `firkin team quota`
#[derive(Debug, Args)]
pub(crate) struct TeamQuotaArgs {
    /// The team
    pub(crate) id: String,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
}

/// The most that a team may have at once.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct QuotaArgs {
    /// Sandboxes that run
    #[arg(long, value_name = "COUNT")]
    pub(crate) running: Option<u32>,
    /// Sandboxes that are paused
    #[arg(long, value_name = "COUNT")]
    pub(crate) paused: Option<u32>,
    /// Virtual CPUs of those that run
    #[arg(long, value_name = "COUNT")]
    pub(crate) cpus: Option<u32>,
    /// Memory of those that run
    #[arg(long, value_name = "MIB")]
    pub(crate) memory_mib: Option<u64>,
    /// Root disks of all of its sandboxes, as their guests see them
    #[arg(long, value_name = "MIB")]
    pub(crate) disk_mib: Option<u64>,
    /// Snapshots
    #[arg(long, value_name = "COUNT")]
    pub(crate) snapshots: Option<u32>,
    /// Volumes
    #[arg(long, value_name = "COUNT")]
    pub(crate) volumes: Option<u32>,
    /// Sandboxes that are created in a minute
    #[arg(long, value_name = "COUNT")]
    pub(crate) creates_per_minute: Option<u32>,
}

/// `firkin key add`
#[derive(Debug, Args)]
pub(crate) struct AddKeyArgs {
    /// The team whose it is
    #[arg(default_value = FIRST)]
    pub(crate) team: String,
    /// For people: who has it, and what for
    #[arg(long, default_value = "")]
    pub(crate) name: String,
    /// What it lets its holder do
    #[arg(long, value_enum, default_value = "full")]
    pub(crate) scope: ScopeArg,
    /// From when on it opens nothing, from now: 90d, 12h, 30m
    #[arg(long, value_name = "TIME")]
    pub(crate) expires_in: Option<Span>,
}

/// What a key lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ScopeArg {
    /// Look, but at nothing that opens a sandbox or a volume
    Read,
    /// Use sandboxes, too, in every way
    Sandboxes,
    /// Everything of its team
    Full,
}

/// `firkin key ls`
#[derive(Debug, Args)]
pub(crate) struct ListKeysArgs {
    /// Those of one team
    #[arg(long)]
    pub(crate) team: Option<String>,
}

/// `firkin key revoke`
#[derive(Debug, Args)]
pub(crate) struct RevokeKeyArgs {
    /// Its id, as `firkin key ls` has it
    pub(crate) id: String,
}

/// `firkin key expire`
#[derive(Debug, Args)]
pub(crate) struct ExpireKeyArgs {
    /// Its id, as `firkin key ls` has it
    pub(crate) id: String,
    /// From now: 90d, 12h, 30m
    #[arg(long = "in", value_name = "TIME", required_unless_present = "never", conflicts_with = "never")]
    pub(crate) within: Option<Span>,
    /// It does not end any more
    #[arg(long)]
    pub(crate) never: bool,
}
