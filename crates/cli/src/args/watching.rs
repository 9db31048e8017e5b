//! What may be typed about events, who is told of them, and what goes into sandboxes and out of them.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use clap_complete::Shell;
use firkin_wire::DEFAULT_USER;

/// `firkin events`
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Tell what happens from now on, until Ctrl-C
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only about these, with --follow
    #[arg(long, value_name = "TOPIC", value_delimiter = ',', requires = "follow",
          value_parser = ["sandbox", "template", "build", "admission", "pool", "capacity", "quarantine", "host"])]
    pub(crate) topics: Vec<String>,
    /// So many of the last ones, without --follow
    #[arg(long, value_name = "COUNT", default_value_t = 20, conflicts_with = "follow", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) limit: u32,
}

/// `firkin webhook ...`
#[derive(Debug, Subcommand)]
pub(crate) enum WebhookCommand {
    /// Send events of sandboxes to a URL from now on; the secret that signs them is read from a file or standard input
    Add(AddWebhookArgs),
    /// List webhooks
    #[command(visible_alias = "list")]
    Ls,
    /// Send nothing more to a webhook, and forget what is on its way
    Rm(OneWebhook),
    /// Send events to a webhook again
    Enable(OneWebhook),
    /// Send nothing to a webhook for now; what is on its way waits
    Disable(OneWebhook),
    /// Show what is on its way to a webhook, and what was given up
    Deliveries(OneWebhook),
    /// Send again what was given up
    Retry(OneWebhook),
}

/// `firkin webhook add`
#[derive(Debug, Args)]
pub(crate) struct AddWebhookArgs {
    /// Where to, an `https://` URL
    pub(crate) url: String,
    /// For people
    #[arg(long, default_value = "webhook")]
    pub(crate) name: String,
    /// Which events
    #[arg(long, value_enum, value_name = "EVENT", value_delimiter = ',',
          default_values_t = [Lifecycle::Created, Lifecycle::Updated, Lifecycle::Paused, Lifecycle::Resumed, Lifecycle::Killed])]
    pub(crate) events: Vec<Lifecycle>,
    /// File with the secret; `-` for standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub(crate) secret_file: PathBuf,
}

/// A command that names one webhook.
#[derive(Debug, Args)]
pub(crate) struct OneWebhook {
    /// Webhook id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// What happens to a sandbox, in E2B's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lifecycle {
    /// It was created
    Created,
    /// Its timeout or network was changed
    Updated,
    /// It was paused
    Paused,
    /// It goes on
    Resumed,
    /// It was snapshotted or forked
    Checkpointed,
    /// It ended
    Killed,
}

impl Lifecycle {
    /// Its name in E2B's API.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Created => "sandbox.lifecycle.created",
            Self::Updated => "sandbox.lifecycle.updated",
            Self::Paused => "sandbox.lifecycle.paused",
            Self::Resumed => "sandbox.lifecycle.resumed",
            Self::Checkpointed => "sandbox.lifecycle.checkpointed",
            Self::Killed => "sandbox.lifecycle.killed",
        }
    }
}

/// `firkin log-level`
#[derive(Debug, Args)]
pub(crate) struct LogLevelArgs {
    /// What is logged until the server ends: a level (`debug`), or levels of its parts (`warn,firkin_runtime=debug`)
    pub(crate) filter: Option<String>,
}

/// `firkin sandbox logs`
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Go on until the sandbox ends, or Ctrl-C
    #[arg(long, short)]
    pub(crate) follow: bool,
}

/// `firkin sandbox cp`
#[derive(Debug, Args)]
pub(crate) struct CopyArgs {
    /// The file, `ID:PATH` in a sandbox
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to, `ID:PATH` in a sandbox; a directory for the same name in it (with `/` at its end, in a sandbox)
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    /// As this user of the sandbox [default: user]
    #[arg(long, short)]
    pub(crate) user: Option<String>,
}

/// `firkin sandbox port-forward`
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// The port in the sandbox, and the one here if it is to be another; 0 for any
    #[arg(value_name = "[HERE:]PORT", value_parser = ports)]
    pub(crate) ports: Ports,
    /// As this user of the sandbox
    #[arg(long, short, default_value = DEFAULT_USER)]
    pub(crate) user: String,
}

/// Two ports that are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) here: u16,
    pub(crate) there: u16,
}

fn ports(text: &str) -> Result<Ports, String> {
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("`{text}` is no port"));
    let (here, there) = text.split_once(':').unwrap_or((text, text));
    match (port(here)?, port(there)?) {
        (_, 0) => Err("a sandbox has no port 0".to_owned()),
        (here, there) => Ok(Ports { here, there }),
    }
}

/// `firkin sandbox watch`
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// The directory
    #[arg(value_name = "PATH")]
    pub(crate) path: String,
    /// And all below it
    #[arg(long, short)]
    pub(crate) recursive: bool,
    /// As this user of the sandbox
    #[arg(long, short, default_value = DEFAULT_USER)]
    pub(crate) user: String,
}

/// `firkin completions`
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// For this shell
    pub(crate) shell: Shell,
}

/// `firkin man`
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory for a page of each command [default: the page of `firkin` itself, on standard output]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!(ports("80"), Ok(Ports { here: 80, there: 80 }));
        assert_eq!(ports("0:80"), Ok(Ports { here: 0, there: 80 }));
        for bad in ["", "a", "80:", ":80", "80:0", "0", "65536", "1:2:3"] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }
}
