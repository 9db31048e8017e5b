//! What may stand in a configuration file: the options of `firkin up`, by their long names.
//!
//! There is no second list. Keys, the variables that go before them, what they mean and what holds without them are read off clap's own
//! definitions, and a value of a file is judged by the parser that judges the option's.

use std::ffi::OsString;

use clap::{
    Arg, ArgAction, Command, CommandFactory as _,
    builder::{OsStr, Resettable},
    error::ErrorKind,
};
use serde::Serialize;

use crate::args::Cli;

/// Options that say how one command is run, and not how a server is: no file decides them for others.
const NOT_KEYS: [&str; 5] = ["config", "help", "json", "version", "yes"];

/// Options that name a file with a secret in it. The secret itself stands in no configuration.
const SECRET_FILES: [&str; 6] =
    ["api-key-file", "catalog-password-file", "cluster-secret-file", "copy-credentials", "encryption-key-file", "tls-key"];

/// How like a known key an unknown one has to be to be taken for it: clap's own measure for options.
const LIKE: f64 = 0.7;

/// What a key may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Takes {
    /// `true` or `false`.
    Flag,
    /// A string or a number.
    One,
    /// One of these, or a list of them.
    Many,
}

/// One key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// In the file, and after `--`.
    pub(crate) name: String,
    /// The name that clap knows the option by.
    pub(crate) id: String,
    /// What it may be given.
    pub(crate) takes: Takes,
    /// The variable that goes before it.
    pub(crate) variable: Option<String>,
    /// What is put in the place of a value in help.
    pub(crate) placeholder: String,
    /// What it means, in one line, without its default.
    pub(crate) meaning: String,
    /// What holds without it, in words, if anything does.
    pub(crate) default: Option<String>,
    /// It names a file with a secret.
    pub(crate) names_secret: bool,
}

/// What a file says of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// Whether.
    Flag(bool),
    /// What, as it would be typed.
    Values(Vec<String>),
}

impl Said {
    /// The options that say the same on a command line.
    pub(crate) fn options(&self, name: &str) -> Vec<OsString> {
        match self {
            Self::Flag(true) => vec![format!("--{name}").into()],
            Self::Flag(false) => Vec::new(),
            Self::Values(values) => values.iter().map(|value| format!("--{name}={value}").into()).collect(),
        }
    }
}

/// Every key, in the order of `firkin up --help`.
pub(crate) fn keys() -> Vec<Key> {
    let mut command = Cli::command();
    command.build();
    let up = command.find_subcommand("up").expect("`up` is a command");
    up.get_arguments().filter_map(key).collect()
}

/// The key that an option is, if it is one.
fn key(option: &Arg) -> Option<Key> {
    let name = option.get_long()?;
    if option.is_hide_set() || NOT_KEYS.contains(&name) {
        return None;
    }
    let takes = match option.get_action() {
        ArgAction::SetTrue => Takes::Flag,
        ArgAction::Append => Takes::Many,
        _ => Takes::One,
    };
    let help = option.get_long_help().or_else(|| option.get_help()).map(ToString::to_string).unwrap_or_default();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let (meaning, default) = match help.rsplit_once("[default: ") {
        Some((meaning, default)) => (meaning.trim(), default.strip_suffix(']').map(str::to_owned)),
        None => (help.as_str(), (takes == Takes::Flag).then(|| "false".to_owned())),
    };
    Some(Key {
        name: name.to_owned(),
        id: option.get_id().to_string(),
        takes,
        variable: option.get_env().map(|name| name.to_string_lossy().into_owned()),
        placeholder: option.get_value_names().unwrap_or_default().join(" "),
        meaning: meaning.to_owned(),
        default,
        names_secret: SECRET_FILES.contains(&name),
    })
}

/// The known key that an unknown one was most probably meant to be.
pub(crate) fn nearest<'a>(keys: &'a [Key], unknown: &str) -> Option<&'a str> {
    let unknown = unknown.to_lowercase().replace('_', "-");
    let likeness = |key: &'a Key| (strsim::jaro_winkler(&key.name, &unknown), key.name.as_str());
    keys.iter()
        .map(likeness)
        .filter(|(like, _)| *like > LIKE)
        .max_by(|one, other| one.0.total_cmp(&other.0))
        .map(|(_, name)| name)
}

/// `firkin up` as it is without any variable.
pub(crate) fn deaf() -> Command {
    let deaf = |command: Command| command.mut_args(|arg| arg.env(Resettable::<OsStr>::Reset));
    deaf(Cli::command()).mut_subcommand("up", deaf)
}

/// What the option's own parser has against a value, if it has anything. Whether it goes with others is not asked.
pub(crate) fn complaint(key: &Key, said: &Said) -> Option<String> {
    let line = [OsString::from("firkin"), "up".into()].into_iter().chain(said.options(&key.name));
    let error = deaf().try_get_matches_from(line).err()?;
    let about_others = [ErrorKind::MissingRequiredArgument, ErrorKind::ArgumentConflict];
    (!about_others.contains(&error.kind())).then(|| first_words(&error))
}

/// What is wrong, in one line, of all that clap says of an error.
pub(crate) fn first_words(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let paragraph = paragraph.strip_prefix("error: ").unwrap_or(paragraph);
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::settings::{self, Surroundings};

    #[test]
    fn every_visible_option_of_up_is_a_key_and_nothing_else_is() {
        let keys = keys();
        for (name, takes) in [
            ("state-dir", Takes::One),
            ("engine", Takes::Many),
            ("warm", Takes::Many),
            ("allow-emulation", Takes::Flag),
            ("cpu-overcommit", Takes::One),
            ("bandwidth", Takes::One),
        ] {
            assert_eq!(keys.iter().find(|key| key.name == name).map(|key| key.takes), Some(takes), "{name}");
        }
        for name in ["yes", "json", "config", "accel", "help"] {
            assert!(keys.iter().all(|key| key.name != name), "{name}");
        }
        let secrets: Vec<&str> = keys.iter().filter(|key| key.names_secret).map(|key| key.name.as_str()).collect();
        assert_eq!(secrets.len(), SECRET_FILES.len(), "{secrets:?}");
    }

    #[test]
    fn what_help_calls_a_default_is_what_holds() {
        let resolved = |options: Vec<OsString>| {
            let line = [OsString::from("firkin"), "up".into()].into_iter().chain(options);
            let mut settings = settings::resolve(&Cli::try_parse_from(line).unwrap(), &Surroundings::default());
            settings.listen_chosen = false;
            // The server's own: settings say nothing where nobody did.
            let per_peer = firkin_server::ServerConfig::default().max_connections_per_peer;
            settings.max_connections_per_peer.get_or_insert(u32::try_from(per_peer).unwrap());
            settings
        };
        let mut plain = 0;
        for key in keys().into_iter().filter(|key| key.takes != Takes::Flag) {
            let Some(default) = key.default.clone().filter(|text| !text.contains([' ', '`'])) else { continue };
            assert_eq!(resolved(Said::Values(vec![default]).options(&key.name)), resolved(Vec::new()), "{}", key.name);
            plain += 1;
        }
        assert!(plain > 15, "{plain} defaults are plain values");
    }

    #[test]
    fn a_slip_finds_what_was_meant() {
        let keys = keys();
        for (slip, meant) in [("listn", "listen"), ("state_dir", "state-dir"), ("Engine", "engine"), ("tls-kee", "tls-key")] {
            assert_eq!(nearest(&keys, slip), Some(meant), "{slip}");
        }
        assert_eq!(nearest(&keys, "zzz"), None);
    }
}
