//! The configuration: which servers there shall be, read from the JSON that the SDK hands over.
//!
//! A server is given by its command, in E2B's form (`run_cmd`, `install_cmd`, `envs`, also in camel case) or in the form that
//! most MCP clients use (`command`, `args`, `env`). What has no command is a name of E2B's catalogue, whose servers are
//! container images on the internet.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::limits::MAX_SERVERS;

/// How names of servers begin whose programs are in a repository.
const REPOSITORY: &str = "github/";

/// Prefix of the names of the sandbox's own tools.
const OWN_PREFIX: &str = "sandbox";

/// A server to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Prefix of its tools' names.
    pub(crate) prefix: String,
    /// Owner and name of the repository that its commands are run in, if it is named after one.
    pub(crate) repository: Option<String>,
    /// Run once, before it is started.
    pub(crate) install: Option<String>,
    /// Speaks MCP on its standard input and output.
    pub(crate) run: Vec<String>,
    /// Added to its environment.
    pub(crate) env: BTreeMap<String, String>,
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// Not JSON, or not an object of objects.
    #[error("cannot read the configuration of the MCP gateway")]
    Json(#[source] serde_json::Error),
    /// The configuration of one server is not understood.
    #[error("cannot read the configuration of MCP server `{name}`")]
    Server {
        /// Its name.
        name: String,
        /// The fault.
        #[source]
        source: serde_json::Error,
    },
    /// A name of the catalogue.
    #[error(
        "cannot start MCP server `{0}`: servers of the catalogue are container images on the internet, which are not fetched \
         here; give it as a command, `\"github/<owner>/<repository>\": {{\"run_cmd\": \"...\"}}`"
    )]
    Catalogue(String),
    /// A name that leaves no prefix, or the one of the sandbox's own tools.
    #[error("cannot name an MCP server `{0}`: its tools would have the names of the sandbox's own, or none")]
    Name(String),
    /// Two servers whose tools would be named alike.
    #[error("cannot tell the tools of MCP servers `{0}` and `{1}` apart: rename one of them")]
    SamePrefix(String, String),
    /// Too many.
    #[error("cannot start {0} MCP servers, the limit is {MAX_SERVERS}")]
    TooMany(usize),
}

/// The configuration of a server. The values of E2B's catalogue have other fields: they are ignored, like unknown ones.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(alias = "runCmd")]
    run_cmd: Option<String>,
    #[serde(alias = "installCmd")]
    install_cmd: Option<String>,
    #[serde(default)]
    envs: BTreeMap<String, String>,
    command: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// Reads a configuration.
pub(crate) fn parse(json: &str) -> Result<Vec<Server>, ConfigError> {
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).map_err(ConfigError::Json)?;
    if all.len() > MAX_SERVERS {
        return Err(ConfigError::TooMany(all.len()));
    }
    let mut servers: Vec<Server> = Vec::new();
    for (name, value) in all {
        let said = serde_json::from_value(value).map_err(|source| ConfigError::Server { name: name.clone(), source })?;
        let server = server(name, said)?;
        if server.prefix.is_empty() || server.prefix == OWN_PREFIX {
            return Err(ConfigError::Name(server.name));
        }
        if let Some(other) = servers.iter().find(|other| other.prefix == server.prefix) {
            return Err(ConfigError::SamePrefix(other.name.clone(), server.name));
        }
        servers.push(server);
    }
    Ok(servers)
}

fn server(name: String, said: Said) -> Result<Server, ConfigError> {
    let run = match (said.run_cmd, said.command) {
        // A command line is for a shell to take apart.
        (Some(line), _) => vec!["/bin/bash".to_owned(), "-c".to_owned(), line],
        (None, Some(program)) => std::iter::once(program).chain(said.args).collect(),
        (None, None) => return Err(ConfigError::Catalogue(name)),
    };
    let env = said.envs.into_iter().chain(said.env).collect();
    let repository = name.strip_prefix(REPOSITORY).map(str::to_owned);
    Ok(Server { prefix: prefix(&name), repository, install: said.install_cmd, run, env, name })
}

/// The last part of a name, with the letters that names of tools may have.
fn prefix(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    last.chars().map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_read_in_every_form() {
        let json = r#"{
            "github/acme/my.tools": {"run_cmd": "python3 -m tools", "install_cmd": "pip install .", "envs": {"KEY": "x"}},
            "github/acme/other": {"runCmd": "node .", "installCmd": "npm install"},
            "plain": {"command": "python3", "args": ["-u", "x.py"], "env": {"A": "b"}}
        }"#;
        let servers = parse(json).unwrap();
        assert_eq!(servers[0].prefix, "my_tools");
        assert_eq!(servers[0].repository.as_deref(), Some("acme/my.tools"));
        assert_eq!(servers[0].run, ["/bin/bash", "-c", "python3 -m tools"]);
        assert_eq!(servers[0].env["KEY"], "x");
        assert_eq!(servers[1].install.as_deref(), Some("npm install"));
        assert_eq!(
            (servers[2].repository.as_ref(), &servers[2].run[..]),
            (None, &["python3", "-u", "x.py"].map(str::to_owned)[..])
        );
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        let refused = |json| parse(json).unwrap_err().to_string();
        assert!(refused(r#"{"airtable": {"nodeenv": "production"}}"#).contains("`airtable`"));
        assert!(refused(r#"{"github/a/x": {"run_cmd": "a"}, "github/b/x": {"run_cmd": "b"}}"#).contains("`github/b/x`"));
        assert!(refused(r#"{"x": {"run_cmd": 1}}"#).contains("`x`"));
        for name in ["sandbox", "github/a/sandbox", "github/a/", ""] {
            let json = format!(r#"{{"{name}": {{"run_cmd": "a"}}}}"#);
            assert!(matches!(parse(&json), Err(ConfigError::Name(refused)) if refused == name));
        }
        assert!(refused("[]").contains("configuration"));
        assert!(parse("{}").unwrap().is_empty());
    }
}
