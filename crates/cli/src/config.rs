//! The configuration file, and how it joins the command line: option before variable before file before default.
//!
//! What a file says becomes options that nobody typed, which are put into the line before it is parsed for good. So conflicts, demands of one
//! option on another and errors are those of the command line, and everything behind it knows of no file. Which options were typed, or set by
//! a variable, is learnt by a first look at the line, which forgives what the second one does not.
//!
//! Every command takes from the file the options that it has: those of `firkin up`, or the state directory alone.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Command, CommandFactory as _, FromArgMatches as _, parser::ValueSource};

use crate::{args::Cli, failure::advised, output};

pub(crate) mod file;
pub(crate) mod keys;

use self::{
    file::{Entry, File, FileError},
    keys::{Key, Said},
};

/// Where a file is looked for that nobody named.
pub(crate) const DEFAULT_PATH: &str = "/etc/firkin/firkin.toml";

/// Commands that say something of the program, or of a file that may be wrong: no file has a say in them.
const WITHOUT_FILE: [&[&str]; 4] = [&["completions"], &["man"], &["config", "check"], &["config", "example"]];

/// A line that was understood, together with the file.
#[derive(Debug)]
pub(crate) struct Line {
    /// What is to be done.
    pub(crate) cli: Cli,
    /// Who said what of it.
    pub(crate) told: Told,
}

/// Who said what of a line.
#[derive(Debug)]
pub(crate) struct Told {
    /// The file that had a say.
    pub(crate) file: Option<File>,
    /// The names of the file's keys that hold.
    pub(crate) from_file: Vec<String>,
    /// What clap made of it.
    matches: ArgMatches,
}

/// Why a line was not understood.
#[derive(Debug)]
pub(crate) enum Misread {
    /// It makes no sense, or asks for help or the version. The file's keys that were part of it are named.
    Line(clap::Error, Option<(PathBuf, Vec<String>)>),
    /// The file cannot be used.
    File(FileError),
}

impl Misread {
    /// Says so, as what it is. True if it is an error.
    pub(crate) fn print(self) -> bool {
        match self {
            Self::Line(error, file) => {
                // Help and version are no errors, and nobody is left to tell when the output is gone.
                drop(error.print());
                if let Some((path, keys)) = file.filter(|_| error.use_stderr()) {
                    output::note(&format!("note: `{}` said of it: {}", path.display(), keys.join(", ")));
                }
                error.use_stderr()
            }
            Self::File(error) => {
                let hint = error.hint();
                output::note(crate::failure::render(&advised(error, hint, None)).trim_end());
                true
            }
        }
    }
}

/// Understands the line of this process.
pub(crate) fn line() -> Result<Line, Misread> {
    understand(std::env::args_os().collect(), Path::new(DEFAULT_PATH))
}

/// Understands a line, with the file that it or a variable names, or else the one at `default`, if it is there.
pub(crate) fn understand(line: Vec<OsString>, default: &Path) -> Result<Line, Misread> {
    let plain = |error| Misread::Line(error, None);
    let first = Cli::command().ignore_errors(true).try_get_matches_from(&line).map_err(plain)?;
    let (names, found) = last(&first);
    let file = if WITHOUT_FILE.iter().any(|without| names.starts_with(without)) { None } else { named(found, default)? };
    let mut command = Cli::command();
    command.build();
    let given = file.as_ref().map(|file| missing(file, (&command, &names), found)).unwrap_or_default();
    let whole = joined(line, &given);
    let from_file: Vec<String> = given.iter().map(|(entry, _)| entry.key.name.clone()).collect();
    let said = || file.as_ref().map(|file| (file.path.clone(), from_file.clone())).filter(|(_, keys)| !keys.is_empty());
    let matches = Cli::command().try_get_matches_from(whole).map_err(|error| Misread::Line(error, said()))?;
    let cli = Cli::from_arg_matches(&matches).map_err(plain)?;
    Ok(Line { cli, told: Told { file, from_file, matches } })
}

/// The words of the command that a line is about, and what was found of its options.
fn last(matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let (mut names, mut found) = (Vec::new(), matches);
    while let Some((name, inner)) = found.subcommand() {
        names.push(name);
        found = inner;
    }
    (names, found)
}

/// The file to be read. One that nobody named may be absent, and is for who may read it.
fn named(found: &ArgMatches, default: &Path) -> Result<Option<File>, Misread> {
    let path = found.get_one::<PathBuf>("config");
    match file::read(path.map_or(default, PathBuf::as_path)) {
        Ok(file) => Ok(Some(file)),
        Err(FileError::Read { source, .. })
            if path.is_none() && matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) =>
        {
            Ok(None)
        }
        Err(error) => Err(Misread::File(error)),
    }
}

/// What the file says of options that the command has, and that were neither typed nor set by a variable, nor rule one out that was. With
/// it, whether the option may stand before the command.
fn missing<'a>(file: &'a File, (command, names): (&Command, &[&str]), found: &ArgMatches) -> Vec<(&'a Entry, bool)> {
    let command = names.iter().try_fold(command, |command, name| command.find_subcommand(name));
    let Some(command) = command else { return Vec::new() };
    let given = |id: &str| {
        matches!(found.try_contains_id(id), Ok(true))
            && matches!(found.value_source(id), Some(ValueSource::CommandLine | ValueSource::EnvVariable))
    };
    let option = |entry: &Entry| command.get_arguments().find(|option| option.get_long() == Some(entry.key.name.as_str()));
    let wanted = file.entries.iter().filter_map(|entry| Some((entry, option(entry)?)));
    wanted
        .filter(|(_, option)| {
            let mut others = command.get_arguments().filter(|other| given(other.get_id().as_str()));
            let rules_out =
                |one, other: &clap::Arg| command.get_arg_conflicts_with(one).iter().any(|arg| arg.get_id() == other.get_id());
            !given(option.get_id().as_str()) && !others.any(|other| rules_out(other, option) || rules_out(option, other))
        })
        .map(|(entry, option)| (entry, option.is_global_set()))
        .collect()
}

/// The line with the options that the file gives: those of every command before it, the others at the end of what are options.
fn joined(line: Vec<OsString>, given: &[(&Entry, bool)]) -> Vec<OsString> {
    let options = |global: bool| {
        let of = given.iter().filter(move |(_, is_global)| *is_global == global);
        of.flat_map(|(entry, _)| entry.said.options(&entry.key.name))
    };
    let mut line = line.into_iter();
    let program = line.next();
    let (mut own, mut rest): (Vec<OsString>, Vec<OsString>) = (line.collect(), Vec::new());
    if let Some(at) = own.iter().position(|word| word == OsStr::new("--")) {
        rest = own.split_off(at);
    }
    program.into_iter().chain(options(true)).chain(own).chain(options(false)).chain(rest).collect()
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// It was typed.
    Option,
    /// A variable says so.
    Environment,
    /// The file says so.
    File,
    /// Nobody said anything.
    Default,
}

impl Told {
    /// What holds of a key, as it would be typed, and who says so.
    pub(crate) fn holding(&self, key: &Key) -> (Option<Said>, Source) {
        let (_, found) = last(&self.matches);
        let source = match found.value_source(&key.id) {
            _ if self.from_file.contains(&key.name) => Source::File,
            Some(ValueSource::CommandLine) => Source::Option,
            Some(ValueSource::EnvVariable) => Source::Environment,
            _ => return (None, Source::Default),
        };
        let said = match key.takes {
            keys::Takes::Flag => Said::Flag(found.get_flag(&key.id)),
            keys::Takes::One | keys::Takes::Many => {
                let raw = found.get_raw(&key.id).into_iter().flatten();
                Said::Values(raw.map(|value| value.to_string_lossy().into_owned()).collect())
            }
        };
        (Some(said), source)
    }

    /// The line of the file that says something of a key.
    pub(crate) fn line_in_file(&self, key: &Key) -> Option<usize> {
        self.file.as_ref()?.entries.iter().find(|entry| entry.key.name == key.name).map(|entry| entry.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        args::EngineChoice,
        settings::{self, Settings, Surroundings},
    };

    fn understood(line: &str, text: &str) -> Result<Line, Misread> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.toml");
        fs_err::write(&path, text).unwrap();
        fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        understand(line.split(' ').map(OsString::from).collect(), &path)
    }

    fn settings(line: &str, text: &str) -> Settings {
        settings::resolve(&understood(line, text).unwrap().cli, &Surroundings::default())
    }

    #[test]
    fn a_file_stands_between_options_and_defaults() {
        let text = "listen = \"127.0.0.1:4000\"\nengine = [\"kvm\", \"gvisor\"]\non-exit = \"leave\"\nstate-dir = \"/f\"\n";
        let from_file = settings("firkin up", text);
        assert_eq!((from_file.listen.port(), from_file.listen_chosen), (4000, true));
        assert_eq!(from_file.engines, [EngineChoice::Kvm, EngineChoice::Gvisor]);
        assert_eq!(from_file.state_dir, Path::new("/f"));
        let typed = settings("firkin up --engine emulated --listen 127.0.0.1:5 --state-dir /o", text);
        assert_eq!((typed.listen.port(), typed.state_dir.as_path()), (5, Path::new("/o")));
        assert_eq!(typed.engines, [EngineChoice::Emulated], "a list that is typed is the whole list");
        assert_eq!(typed.on_exit, crate::args::OnExit::Leave);
        assert_eq!(
            settings("firkin up", ""),
            settings::resolve(&understood("firkin up", "").unwrap().cli, &Surroundings::default())
        );
    }

    #[test]
    fn each_command_takes_what_it_has_and_leaves_the_rest() {
        let text = "listen = \"127.0.0.1:4000\"\nengine = \"gvisor\"\nstate-dir = \"/f\"\nwarm = 3\n";
        let taken = |line: &str| understood(line, text).unwrap().told.from_file;
        assert_eq!(taken("firkin doctor"), ["engine", "state-dir"]);
        assert_eq!(taken("firkin template build -- base"), ["engine", "state-dir"]);
        assert_eq!(taken("firkin sandbox exec i1 -- ls --state-dir x -- y"), ["state-dir"]);
        assert_eq!(taken("firkin env --state-dir /x"), [""; 0]);
        assert_eq!(taken("firkin completions bash"), [""; 0]);
        let line = understood("firkin sandbox exec i1 -- ls -- --x", text).unwrap();
        let crate::args::Command::Sandbox(crate::args::SandboxCommand::Exec(exec)) = line.cli.command else { panic!("exec") };
        assert_eq!(exec.command, ["ls", "--", "--x"]);
    }

    #[test]
    fn demands_and_conflicts_hold_across_line_and_file() {
        let rest = "tls-listen = \"127.0.0.1:1\"\ndomain = \"a.test\"\n";
        assert!(understood("firkin up --tls-cert /c --tls-key /k", rest).is_ok(), "the file has what the options demand");
        let Err(Misread::Line(error, Some((_, keys)))) = understood("firkin up", "tls-cert = \"/c\"\n") else {
            panic!("a certificate without a key")
        };
        assert_eq!(
            (error.kind(), keys.as_slice()),
            (clap::error::ErrorKind::MissingRequiredArgument, &["tls-cert".to_owned()][..])
        );
        let earlier = settings("firkin up --accel tcg", "engine = \"gvisor\"\n");
        assert_eq!(earlier.engines, [EngineChoice::Emulated], "an option that rules a key out goes before it");
        assert!(matches!(understood("firkin up", "listn = 1\n"), Err(Misread::File(FileError::Faulty { .. }))));
        assert!(matches!(understood("firkin frobnicate", ""), Err(Misread::Line(..))));
        assert!(understood("firkin config check /x", "listn = 1\n").is_ok(), "who asks what is wrong is answered");
    }

    #[test]
    fn a_file_that_is_named_must_be_there_and_one_that_is_not_need_not() {
        let line = |words: &[&str]| understand(words.iter().map(OsString::from).collect(), Path::new("/nowhere/firkin.toml"));
        assert!(line(&["firkin", "up"]).unwrap().told.file.is_none());
        assert!(matches!(
            line(&["firkin", "up", "--config", "/nowhere/else.toml"]),
            Err(Misread::File(FileError::Read { path, .. })) if path == Path::new("/nowhere/else.toml")
        ));
    }

    #[test]
    fn every_value_has_a_source() {
        let line = understood(
            "firkin config show --listen 127.0.0.1:5 --allow-emulation",
            "warm = [1, \"ci=2\"]\nlisten = \"[::1]:1\"\n",
        );
        let told = line.unwrap().told;
        let holding = |name: &str| told.holding(keys::keys().iter().find(|key| key.name == name).unwrap());
        assert_eq!(holding("listen"), (Some(Said::Values(vec!["127.0.0.1:5".to_owned()])), Source::Option));
        assert_eq!(holding("allow-emulation"), (Some(Said::Flag(true)), Source::Option));
        assert_eq!(holding("warm"), (Some(Said::Values(vec!["1".to_owned(), "ci=2".to_owned()])), Source::File));
        assert_eq!(holding("engine"), (None, Source::Default));
    }
}
