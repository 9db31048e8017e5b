//! The command line, as E2B's SDKs write it.

/// How the program is called.
pub(crate) const USAGE: &str = "mcp-gateway --config JSON | mcp-gateway pull NAME... | mcp-gateway --version";

/// The mode to run in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Print the version.
    Version,
    /// Start a gateway in the background.
    Start {
        /// Its servers, as JSON.
        config: String,
    },
    /// Be that gateway: the configuration comes on standard input.
    Serve,
    /// Make servers of the catalogue ready to be started without network.
    Pull {
        /// Their names.
        names: Vec<String>,
    },
}

/// Why the command line was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// Nothing known.
    #[error("cannot understand argument `{0}`")]
    Mode(String),
    /// A flag at the end without its value.
    #[error("cannot use `{0}` without a value")]
    NoValue(&'static str),
}

/// The word by which the program starts itself.
pub(crate) const SERVE: &str = "serve";

/// Reads the arguments after the program's name.
pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Mode, ArgsError> {
    let args: Vec<String> = args.collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--version"] => Ok(Mode::Version),
        ["--config"] => Err(ArgsError::NoValue("--config")),
        ["--config", config] => Ok(Mode::Start { config: (*config).to_owned() }),
        [SERVE] => Ok(Mode::Serve),
        ["pull"] => Err(ArgsError::NoValue("pull")),
        ["pull", names @ ..] => Ok(Mode::Pull { names: names.iter().map(|name| (*name).to_owned()).collect() }),
        other => Err(ArgsError::Mode(other.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Mode, ArgsError> {
        parse(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn the_sdks_calls_are_understood_and_nothing_else() {
        assert_eq!(parsed(&["--config", "{}"]), Ok(Mode::Start { config: "{}".to_owned() }));
        assert_eq!(parsed(&["pull", "a", "b"]), Ok(Mode::Pull { names: vec!["a".to_owned(), "b".to_owned()] }));
        for words in [&[][..], &["--config"], &["pull"], &["--config", "{}", "more"], &["run"]] {
            assert!(parsed(words).is_err(), "{words:?}");
        }
    }
}
