//! The servers behind the gateway: children that speak MCP on their standard input and output.
//!
//! They run as the sandbox's ordinary user, each in a directory of its own, and cannot read the gateway's token. One that ends
//! stays ended: its tools are still listed, and say so when they are called.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use firkin_causes::chain;
use fs_err as fs;
use rmcp::{
    RoleClient, ServiceExt as _,
    model::Tool,
    service::{ClientInitializeError, Peer, RunningService, ServiceError},
};
use tokio::process::{Child, Command};

use crate::{
    config::Server,
    limits::{FETCH_DEADLINE, INSTALL_DEADLINE, SHOWN_BYTES, START_DEADLINE},
    token::TOKEN,
};

/// The user that servers and commands run as.
pub(crate) const USER: &str = "user";

/// Where the servers' directories are.
const SERVERS: &str = "/opt/mcp-servers";

/// A server that has been started.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Prefix of its tools' names.
    pub(crate) prefix: String,
    /// Its tools, by its own names.
    pub(crate) tools: Vec<Tool>,
    /// Where calls go.
    pub(crate) peer: Peer<RoleClient>,
    // Both end the server when they are dropped.
    _service: RunningService<RoleClient, ()>,
    _child: Child,
}

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpstreamError {
    /// It has no directory.
    #[error("cannot make the directory of MCP server `{name}`")]
    Directory {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its install command failed.
    #[error("cannot install MCP server `{name}`{fetched}")]
    Install {
        /// Its name.
        name: String,
        /// The outcome for its repository, if that is worth telling.
        fetched: Fetched,
        /// How the command ended.
        #[source]
        source: CommandError,
    },
    /// It did not become a server.
    #[error("cannot start MCP server `{name}`{fetched}")]
    Start {
        /// Its name.
        name: String,
        /// The outcome for its repository, if that is worth telling.
        fetched: Fetched,
        /// Why.
        #[source]
        source: ConnectError,
    },
}

/// Why a command that is run to its end did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// It could not be started, or not be waited for.
    #[error("it cannot be run")]
    Run(#[source] std::io::Error),
    /// It took too long.
    #[error("it did not end within {} s", deadline.as_secs())]
    Deadline {
        /// The deadline.
        deadline: Duration,
    },
    /// It said that it failed.
    #[error("{status}: {said}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
}

/// Why a process is no MCP server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// It could not be started.
    #[error("it cannot be run")]
    Run(#[source] std::io::Error),
    /// Its input and output are not ours.
    #[error("its input and output are not piped")]
    NoPipes,
    /// It ended instead.
    #[error("it ended: {status}; see /var/log/mcp-gateway.log")]
    Ended {
        /// How.
        status: ExitStatus,
    },
    /// It did not greet as a server does.
    #[error("it does not speak MCP")]
    Greeting(#[source] Box<ClientInitializeError>),
    /// It did not say what it offers.
    #[error("it does not list its tools")]
    Tools(#[source] ServiceError),
    /// It took too long for both.
    #[error("it did not list its tools within {} s", deadline.as_secs())]
    Deadline {
        /// The deadline.
        deadline: Duration,
    },
}

/// The outcome for a server's repository. Its commands may do without, so only when they fail does it matter.
#[derive(Debug)]
pub(crate) enum Fetched {
    /// There is none, or it is there.
    Fine,
    /// It could not be fetched.
    Failed(CommandError),
}

impl std::fmt::Display for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fine => Ok(()),
            // A second cause beside the failure's own, so no source of it: its chain is told here.
            Self::Failed(why) => write!(f, " (its repository could not be fetched: {})", chain(why)),
        }
    }
}

/// Starts all servers at once, and returns when each has listed its tools. The first that fails ends the others.
pub(crate) async fn start_all(servers: Vec<Server>) -> Result<Vec<Upstream>, UpstreamError> {
    let mut starting = tokio::task::JoinSet::new();
    for server in servers {
        starting.spawn(start(server));
    }
    let mut started = Vec::new();
    while let Some(outcome) = starting.join_next().await {
        started.push(outcome.expect("starting a server does not panic and is not aborted while it is waited for")?);
    }
    started.sort_by(|a: &Upstream, b| a.prefix.cmp(&b.prefix));
    Ok(started)
}

async fn start(server: Server) -> Result<Upstream, UpstreamError> {
    let directory = Path::new(SERVERS).join(&server.prefix);
    prepare(&directory).await.map_err(|source| UpstreamError::Directory { name: server.name.clone(), source })?;
    let fetched = fetch(&server, &directory).await;
    if let Some(install) = &server.install {
        let mut command = as_user(&["/bin/bash", "-c", install], &directory);
        command.envs(&server.env);
        if let Err(source) = finish(&mut command, INSTALL_DEADLINE).await {
            return Err(UpstreamError::Install { name: server.name, fetched, source });
        }
    }
    match connect(&server, &directory).await {
        Ok(upstream) => Ok(upstream),
        Err(source) => Err(UpstreamError::Start { name: server.name, fetched, source }),
    }
}

/// Makes a directory that belongs to the user.
async fn prepare(directory: &Path) -> std::io::Result<()> {
    fs::create_dir_all(directory)?;
    let owner = Command::new("chown").arg(USER).arg(directory).stdin(Stdio::null()).status().await?;
    if owner.success() { Ok(()) } else { Err(std::io::Error::other(format!("`chown {USER}` failed"))) }
}

/// Gets the repository that a server is named after, unless its directory has something already.
async fn fetch(server: &Server, directory: &PathBuf) -> Fetched {
    let Some(repository) = &server.repository else { return Fetched::Fine };
    if fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Fetched::Fine;
    }
    let from = format!("https://github.com/{repository}");
    let mut command = as_user(&["git", "clone", "--quiet", "--depth=1", &from, "."], directory);
    match finish(command.env("GIT_TERMINAL_PROMPT", "0"), FETCH_DEADLINE).await {
        Ok(()) => Fetched::Fine,
        Err(error) => Fetched::Failed(error),
    }
}

async fn connect(server: &Server, directory: &Path) -> Result<Upstream, ConnectError> {
    let words: Vec<&str> = server.run.iter().map(String::as_str).collect();
    let mut command = as_user(&words, directory);
    // Its complaints go where the gateway's own go.
    command.envs(&server.env).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().map_err(ConnectError::Run)?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(ConnectError::NoPipes) };
    let greeted = async {
        let service = ().serve((output, input)).await.map_err(|error| ConnectError::Greeting(Box::new(error)))?;
        let tools = service.list_all_tools().await.map_err(ConnectError::Tools)?;
        Ok::<_, ConnectError>((service, tools))
    };
    let outcome = tokio::time::timeout(START_DEADLINE, greeted).await;
    let (service, tools) = match outcome {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return Err(ended(&mut child, error)),
        Err(_) => return Err(ConnectError::Deadline { deadline: START_DEADLINE }),
    };
    Ok(Upstream {
        name: server.name.clone(),
        prefix: server.prefix.clone(),
        peer: service.peer().clone(),
        tools,
        _service: service,
        _child: child,
    })
}

/// Why a server was not understood: most often because it has ended.
fn ended(child: &mut Child, error: ConnectError) -> ConnectError {
    match child.try_wait() {
        Ok(Some(status)) => ConnectError::Ended { status },
        Ok(None) | Err(_) => error,
    }
}

/// A command as the ordinary user, with that user's groups and home, ended with its owner.
pub(crate) fn as_user(words: &[&str], directory: &Path) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", USER, "--"]).args(words).current_dir(directory);
    command.env("HOME", format!("/home/{USER}")).env("USER", USER).env("LOGNAME", USER).env_remove(TOKEN);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command to its end.
async fn finish(command: &mut Command, deadline: Duration) -> Result<(), CommandError> {
    let output = tokio::time::timeout(deadline, command.output()).await;
    let output = output.map_err(|_| CommandError::Deadline { deadline })?.map_err(CommandError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let tail = &output.stderr[output.stderr.len().saturating_sub(SHOWN_BYTES)..];
    Err(CommandError::Failed { status: output.status, said: String::from_utf8_lossy(tail).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_command_that_fails_says_how() {
        let run = async |words: &str| {
            let mut command = Command::new("/bin/sh");
            finish(command.args(["-c", words]).kill_on_drop(true), Duration::from_secs(60)).await
        };
        run("true").await.unwrap();
        assert_eq!(chain(&run("echo why >&2; exit 3").await.unwrap_err()), "exit status: 3: why");
        let absent = finish(&mut Command::new("/no/such/program"), Duration::from_secs(60)).await.unwrap_err();
        assert!(chain(&absent).starts_with("it cannot be run: No such file"), "{absent:?}");
        let late = finish(Command::new("sleep").arg("3600").kill_on_drop(true), Duration::ZERO).await.unwrap_err();
        assert_eq!(chain(&late), "it did not end within 0 s");
    }

    #[test]
    fn every_cause_of_a_failed_start_is_told_once() {
        let late = CommandError::Deadline { deadline: Duration::from_secs(5) };
        let denied = CommandError::Run(std::io::ErrorKind::PermissionDenied.into());
        let error = UpstreamError::Install { name: "a".to_owned(), fetched: Fetched::Failed(denied), source: late };
        let told = "cannot install MCP server `a` (its repository could not be fetched: it cannot be run: permission denied): \
                    it did not end within 5 s";
        assert_eq!(chain(&error), told);
        let error = UpstreamError::Start { name: "a".to_owned(), fetched: Fetched::Fine, source: ConnectError::NoPipes };
        assert_eq!(chain(&error), "cannot start MCP server `a`: its input and output are not piped");
    }
}
