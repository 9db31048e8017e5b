//! What may be typed of a cluster of several servers, and of a server as a node of it.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};

use crate::logging::LogFormat;

/// Options of a server that is one of several.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NodeArgs {
    /// Be a node of the cluster that has its catalogue in this PostgreSQL, as in `postgres://USER@HOST:PORT/DATABASE`: any node serves
    /// any request (`firkin cluster found` makes one)
    #[arg(long, value_name = "URL", env = "FIRKIN_CLUSTER", hide_env_values = true, conflicts_with = "catalog",
          value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cluster: Option<String>,
    /// The cluster's secret, in a file that is nobody else's [default: systemd's credential `cluster-secret`]
    #[arg(long, value_name = "FILE", env = "FIRKIN_CLUSTER_SECRET_FILE", hide_env_values = true)]
    pub(crate) cluster_secret_file: Option<PathBuf>,
    /// What people call this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "FIRKIN_NODE_NAME", hide_env_values = true, value_parser = node_name)]
    pub(crate) node_name: Option<String>,
    /// Address and port where other nodes come in, by certificates of the cluster [default: 127.0.0.1:3001]
    #[arg(long, value_name = "ADDR:PORT", env = "FIRKIN_PEER_LISTEN", hide_env_values = true)]
    pub(crate) peer_listen: Option<SocketAddr>,
    /// Where other nodes reach that [default: what --peer-listen says]
    #[arg(long, value_name = "HOST:PORT", env = "FIRKIN_PEER_ADDRESS", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) peer_address: Option<String>,
    /// Answer a pause once it is on the node's disk (`node`), or once another node or the store of --copy-to has a copy too (`cluster`), which is made in
    /// any case [default: node]
    #[arg(long, value_name = "WHERE", env = "FIRKIN_DURABLE", hide_env_values = true)]
    pub(crate) durable: Option<Durable>,
}

/// `firkin warden`
#[derive(Debug, Args)]
pub(crate) struct WardenArgs {
    /// The page that says until when the lease is
    #[arg(long, value_name = "FILE")]
    pub(crate) page: PathBuf,
    /// How lines of the log look
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
}

/// Where a pause has to be durable before it is answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Durable {
    /// Once it is on the disk of the sandbox's node; the copy follows
    #[default]
    Node,
    /// Once it is on another node or in the cluster's store too; where none takes it, the sandbox is paused and the answer an error
    Cluster,
}

/// Which cluster a command is about.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ClusterAccessArgs {
    /// The cluster that has its catalogue in this PostgreSQL, as in `postgres://USER@HOST:PORT/DATABASE`
    #[arg(long, value_name = "URL", env = "FIRKIN_CLUSTER", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) cluster: Option<String>,
    /// Its secret, in a file that is nobody else's
    #[arg(long, value_name = "FILE", env = "FIRKIN_CLUSTER_SECRET_FILE", hide_env_values = true)]
    pub(crate) cluster_secret_file: Option<PathBuf>,
    /// Password of that database's user, in a file that is nobody else's
    #[arg(long, value_name = "FILE", env = "FIRKIN_CATALOG_PASSWORD_FILE", hide_env_values = true)]
    pub(crate) catalog_password_file: Option<PathBuf>,
    /// Authority by which that database proves its name, PEM [default: those that this host trusts]
    #[arg(long, value_name = "FILE", env = "FIRKIN_CATALOG_AUTHORITY", hide_env_values = true)]
    pub(crate) catalog_authority: Option<PathBuf>,
}

/// `firkin cluster found`
#[derive(Debug, Args)]
pub(crate) struct FoundArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
}

/// `firkin node ...`
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes of a cluster: who is there, since when, and what each has
    #[command(visible_alias = "list")]
    Ls(NodeLsArgs),
    /// Show all that is known of a node
    Info(NodeInfoArgs),
    /// Have a node take nothing new: what it has stays
    Cordon(NodeNamedArgs),
    /// Have a node take new sandboxes again
    Uncordon(NodeNamedArgs),
    /// Have a node take nothing new, and move all that it has to others; ends with 1 where something stayed
    Drain(NodeDrainArgs),
    /// Say that a node is off and will not come back as it was: what it had paused can be had elsewhere at once
    Forget(NodeForgetArgs),
}

/// `firkin node ls`
#[derive(Debug, Args)]
pub(crate) struct NodeLsArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
}

/// `firkin node info`
#[derive(Debug, Args)]
pub(crate) struct NodeInfoArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
    /// Its name or id
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
}

/// `firkin node cordon|uncordon`
#[derive(Debug, Args)]
pub(crate) struct NodeNamedArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
    /// Its name or id
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// Why, for those who look at the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

/// `firkin node drain`
#[derive(Debug, Args)]
pub(crate) struct NodeDrainArgs {
    #[command(flatten)]
    pub(crate) named: NodeNamedArgs,
    /// Leave sandboxes alone whose time is over within so many seconds, and wait for that
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) grace: u32,
}

/// `firkin node forget`
#[derive(Debug, Args)]
pub(crate) struct NodeForgetArgs {
    #[command(flatten)]
    pub(crate) access: ClusterAccessArgs,
    /// Its name or id
    #[arg(value_name = "NODE")]
    pub(crate) node: String,
    /// Confirm that its host is off: where it still runs, one sandbox may run twice
    #[arg(long)]
    pub(crate) it_is_off: bool,
    /// Why, for those who look at the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) reason: String,
}

/// A name that stands in the head of every answer.
fn node_name(text: &str) -> Result<String, String> {
    let is_one =
        !text.is_empty() && text.len() <= 63 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if is_one { Ok(text.to_owned()) } else { Err("a node's name is 1 to 63 letters, digits, `-`, `.` and `_`".to_owned()) }
}
