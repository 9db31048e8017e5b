//! Every bound of the gateway, with its reason.

use std::time::Duration;

/// Where clients are served: the port that E2B's SDKs make their URL with.
pub(crate) const PORT: u16 = 50005;

/// The path of that URL.
pub(crate) const PATH: &str = "/mcp";

/// The configuration, in bytes: some tens of servers with their keys are a few KiB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Servers of one gateway. Each is a process or more.
pub(crate) const MAX_SERVERS: usize = 64;

/// An install command, such as one that fetches and compiles packages.
pub(crate) const INSTALL_DEADLINE: Duration = Duration::from_secs(600);

/// Fetching the repository of a server. Without internet this must not eat up the minute that the SDK waits.
pub(crate) const FETCH_DEADLINE: Duration = Duration::from_secs(15);

/// From the start of a server to its list of tools, in a guest that may be emulated.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(45);

/// One call of a server's tool: above what clients wait for.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(600);

/// A session that no request comes for. Agents think for minutes between two calls.
pub(crate) const SESSION_IDLE: Duration = Duration::from_secs(3600);

/// How long `run_command` waits where the caller does not say.
pub(crate) const COMMAND_SECONDS: u64 = 60;

/// The most it can be told.
pub(crate) const MAX_COMMAND_SECONDS: u64 = 3600;

/// Output that is given back, of each stream, and files that are read: a model reads no more.
pub(crate) const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// Bytes of a failed program's output that are shown.
pub(crate) const SHOWN_BYTES: usize = 2000;
