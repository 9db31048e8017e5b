//! The command line. PID 1 of a machine takes none: the kernel's parameters are not ours. That of a container is told so by a word.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use crate::{interpreter::Setup, sudo};

/// How the program is called.
pub(crate) const USAGE: &str = "firkin-guest envd [--listen ADDR] [--token TOKEN] [--default-user NAME] [--default-workdir DIR] \
     [--sandbox-id ID] [--template-id ID] [--env KEY=VALUE]... [--interpreter DIR] | firkin-guest container | firkin-guest changes | \
     firkin-guest --version";

/// The word that asks for the stand-alone mode.
pub(crate) const ENVD: &str = "envd";

/// The word that asks to be the first process of a container.
pub(crate) const CONTAINER: &str = "container";

/// The word that asks for what a container has changed of its image.
pub(crate) const CHANGES: &str = "changes";

/// The mode to run in.
#[derive(Debug)]
pub(crate) enum Mode {
    /// envd alone, on an ordinary host.
    Envd(Box<Options>),
    /// The whole user space of a container, as its first process.
    Container,
    /// Write what the container has changed of its image.
    Changes,
    /// Tell by the exit code whether this process is root in effect.
    IsRoot,
    /// Print the version.
    Version,
}

/// envd alone: what the control channel says in a sandbox is said by flags.
#[derive(Debug)]
pub(crate) struct Options {
    /// Where to listen; port 0 takes a free one, which is printed.
    pub(crate) listen: SocketAddr,
    /// Token to demand in `X-Access-Token`.
    pub(crate) token: Option<String>,
    /// User of requests that name none.
    pub(crate) default_user: Option<String>,
    /// Working directory of commands that name none.
    pub(crate) default_workdir: Option<String>,
    /// Value of `E2B_SANDBOX_ID`.
    pub(crate) sandbox_id: String,
    /// Value of `E2B_TEMPLATE_ID`.
    pub(crate) template_id: String,
    /// Environment given to every command.
    pub(crate) env: BTreeMap<String, String>,
    /// Serve the code interpreter too, on a free port, with its programs in this directory.
    pub(crate) interpreter: Option<Setup>,
}

/// Why the command line was not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArgsError {
    /// No known mode.
    #[error("cannot understand argument `{0}`")]
    Mode(String),
    /// No such flag.
    #[error("cannot understand flag `{0}`")]
    Flag(String),
    /// A flag at the end without its value.
    #[error("cannot use flag `{0}` without a value")]
    NoValue(String),
    /// A value that does not parse.
    #[error("cannot use value `{value}` for flag `{flag}`")]
    Value {
        /// The flag.
        flag: String,
        /// The value.
        value: String,
    },
}

/// Reads the arguments after the program's name.
pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Mode, ArgsError> {
    match args.next().as_deref() {
        Some("--version") => return Ok(Mode::Version),
        Some(CONTAINER) => return args.next().map_or(Ok(Mode::Container), |word| Err(ArgsError::Mode(word))),
        Some(CHANGES) => return args.next().map_or(Ok(Mode::Changes), |word| Err(ArgsError::Mode(word))),
        Some(sudo::IS_ROOT) => return Ok(Mode::IsRoot),
        Some(ENVD) => {}
        other => return Err(ArgsError::Mode(other.unwrap_or_default().to_owned())),
    }
    let mut options = Options {
        listen: SocketAddr::from(([127, 0, 0, 1], firkin_wire::ENVD_PORT)),
        token: None,
        default_user: None,
        default_workdir: None,
        sandbox_id: "standalone".to_owned(),
        template_id: "standalone".to_owned(),
        env: BTreeMap::new(),
        interpreter: None,
    };
    let mut programs = None;
    while let Some(flag) = args.next() {
        let value = args.next().ok_or_else(|| ArgsError::NoValue(flag.clone()))?;
        match flag.as_str() {
            "--listen" => options.listen = value.parse().map_err(|_| ArgsError::Value { flag, value })?,
            "--port" => options.listen.set_port(value.parse().map_err(|_| ArgsError::Value { flag, value })?),
            "--token" => options.token = Some(value),
            "--default-user" => options.default_user = Some(value),
            "--default-workdir" => options.default_workdir = Some(value),
            "--sandbox-id" => options.sandbox_id = value,
            "--template-id" => options.template_id = value,
            "--interpreter" => programs = Some(PathBuf::from(value)),
            "--env" => match value.split_once('=') {
                Some((key, text)) => {
                    options.env.insert(key.to_owned(), text.to_owned());
                }
                None => return Err(ArgsError::Value { flag, value }),
            },
            _ => return Err(ArgsError::Flag(flag)),
        }
    }
    options.interpreter = programs.map(|programs| Setup {
        programs,
        user: options.default_user.clone().unwrap_or_else(|| "root".to_owned()),
        workdir: options.default_workdir.clone().unwrap_or_else(|| "/".to_owned()),
    });
    Ok(Mode::Envd(Box::new(options)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(words: &str) -> Result<Mode, ArgsError> {
        parse(words.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_set_their_options() {
        let Ok(Mode::Envd(options)) = parse_words("envd --port 7 --token t --env A=b=c") else { panic!("not envd") };
        assert_eq!(options.listen.port(), 7);
        assert_eq!(options.token.as_deref(), Some("t"));
        assert_eq!(options.env["A"], "b=c");
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(matches!(parse_words("container"), Ok(Mode::Container)));
        for words in ["", "serve", "container now", "envd --port", "envd --port x", "envd --what 1", "envd --env novalue"] {
            assert!(parse_words(words).is_err(), "{words}");
        }
    }
}
