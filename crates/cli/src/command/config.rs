//! `firkin config ...`: whether a configuration file can be used, what holds and who says so, and all that may be said.

use std::{ffi::OsString, path::Path};

use clap::FromArgMatches as _;
use serde::Serialize;

use crate::{
    args::{Cli, configuring::CheckConfigArgs},
    config::{
        DEFAULT_PATH, Source, Told,
        file::{self, File, FileError},
        keys::{self, Key, Said, Takes},
    },
    failure::{ExitStatus, advised},
    output::{self, Table},
    serverfile,
    settings::{self, Format, Settings, Surroundings},
};

/// How an API key of ours begins. Nobody who gives one in the place of a file's name is to see it shown.
const KEY_PREFIX: &str = "e2b_";

/// Columns of the text in the example.
const COLUMNS: usize = 100;

/// Something that is wrong in a file, for programs.
#[derive(Debug, Serialize)]
struct Fault {
    line: Option<usize>,
    error: String,
}

/// What a check found.
#[derive(Debug, Serialize)]
struct Checked {
    file: String,
    keys: usize,
    faults: Vec<Fault>,
}

/// Says whether a file can be used.
pub(crate) fn check(settings: &Settings, args: &CheckConfigArgs, named: Option<&Path>) -> anyhow::Result<ExitStatus> {
    let path = args.file.as_deref().or(named).unwrap_or(Path::new(DEFAULT_PATH));
    let (keys, faults) = match file::read(path) {
        Ok(file) => (file.entries.len(), together(&file)),
        Err(FileError::Faulty { faults, .. }) => {
            let told = faults.iter().map(|fault| Fault { line: Some(fault.line), error: fault.what.to_string() });
            (0, told.collect())
        }
        Err(error) => {
            let hint = error.hint();
            return Err(advised(error, hint, None));
        }
    };
    let checked = Checked { file: path.display().to_string(), keys, faults };
    match settings.format {
        Format::Json => output::json(&checked)?,
        Format::Table => output::text(&report(&checked))?,
    }
    Ok(if checked.faults.is_empty() { ExitStatus::Success } else { ExitStatus::Failure })
}

fn report(checked: &Checked) -> String {
    if checked.faults.is_empty() {
        return format!("{} can be used: {} of {} keys are set\n", checked.file, checked.keys, keys::keys().len());
    }
    let lines = checked.faults.iter().map(|fault| match fault.line {
        Some(line) => format!("{}:{line}: {}\n", checked.file, fault.error),
        None => format!("{}: {}\n", checked.file, fault.error),
    });
    lines.collect()
}

/// What is wrong with keys that are each right: together, and with the secrets that they name.
fn together(file: &File) -> Vec<Fault> {
    let fault = |error: String| vec![Fault { line: None, error }];
    let options = file.entries.iter().flat_map(|entry| entry.said.options(&entry.key.name));
    let line = [OsString::from("firkin"), "up".into()].into_iter().chain(options);
    let cli = match keys::deaf().try_get_matches_from(line).and_then(|found| Cli::from_arg_matches(&found)) {
        Ok(cli) => cli,
        Err(error) => return fault(keys::first_words(&error)),
    };
    let settings = settings::resolve(&cli, &Surroundings::default());
    let secrets = settings.secrets().filter_map(|secret| serverfile::read_secret(secret).err()).map(|error| format!("{error:#}"));
    let clear = settings.is_in_the_clear().then(|| {
        format!(
            "`listen` at `{}` lets other hosts in, and nothing says `allow-plain-http`: keys would pass in the clear",
            settings.listen
        )
    });
    let catalog = settings.catalog.as_ref().and_then(|catalog| catalog.address().err()).map(|error| format!("{error:#}"));
    secrets.chain(clear).chain(catalog).map(|error| Fault { line: None, error }).collect()
}

/// One key as it holds.
#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    /// As it would stand in the file; absent where nobody said anything and there is nothing to say.
    value: Option<serde_json::Value>,
    source: Source,
    /// The variable, or the file and its line.
    from: Option<String>,
}

/// Everything that holds.
#[derive(Debug, Serialize)]
struct Shown {
    /// The file that had a say.
    file: Option<String>,
    settings: Vec<Setting>,
}

/// Shows what holds.
pub(crate) fn show(settings: &Settings, told: &Told) -> anyhow::Result<ExitStatus> {
    let shown = Shown {
        file: told.file.as_ref().map(|file| file.path.display().to_string()),
        settings: keys::keys().iter().map(|key| setting(key, told)).collect(),
    };
    output::result(settings.format, &shown, || {
        let mut table = Table::new(&["key", "value", "from"]);
        for setting in &shown.settings {
            let from = match setting.source {
                Source::Option => "option".to_owned(),
                Source::Default => "default".to_owned(),
                Source::Environment | Source::File => setting.from.clone().unwrap_or_default(),
            };
            table.row([setting.key.clone(), in_words(setting.value.as_ref()), from]);
        }
        table
    })?;
    Ok(ExitStatus::Success)
}

fn in_words(value: Option<&serde_json::Value>) -> String {
    match value {
        None => "-".to_owned(),
        Some(serde_json::Value::String(text)) => text.clone(),
        Some(serde_json::Value::Array(all)) => all.iter().map(|one| in_words(Some(one))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

fn setting(key: &Key, told: &Told) -> Setting {
    let (said, source) = told.holding(key);
    let from = match source {
        Source::Environment => key.variable.clone(),
        Source::File => told.file.as_ref().zip(told.line_in_file(key)).map(|(file, at)| format!("{}:{at}", file.path.display())),
        Source::Option | Source::Default => None,
    };
    let value = match said {
        Some(Said::Flag(whether)) => Some(whether.into()),
        Some(Said::Values(values)) => {
            let mut values: Vec<String> = values.into_iter().map(|value| masked(&value)).collect();
            Some(if key.takes == Takes::Many { values.into() } else { values.pop().unwrap_or_default().into() })
        }
        None if key.takes == Takes::Flag => Some(false.into()),
        None => key.default.clone().map(Into::into),
    };
    Setting { key: key.name.clone(), value, source, from }
}

/// A value without what should never have been in it.
fn masked(value: &str) -> String {
    value.find(KEY_PREFIX).map_or_else(|| value.to_owned(), |at| format!("{}{KEY_PREFIX}…", &value[..at]))
}

/// Prints a file that has every key.
pub(crate) fn example() -> anyhow::Result<ExitStatus> {
    output::text(&example_text())?;
    Ok(ExitStatus::Success)
}

fn example_text() -> String {
    let mut text = format!(
        "# Configuration of `firkin up`; commands that work on the same host take from it what they share with it.\n\
         # Read from {DEFAULT_PATH}, or from the file that `--config` or FIRKIN_CONFIG names. An option goes before a variable, a\n\
         # variable before this file. `firkin config check` says what is wrong with it, `firkin config show` what holds.\n"
    );
    for key in keys::keys() {
        text.push('\n');
        for line in wrapped(&key.meaning) {
            text += &format!("# {line}\n");
        }
        let more = [
            key.default.as_ref().map(|default| format!("Without it: {default}.")),
            key.variable.as_ref().map(|variable| format!("{variable} goes before it.")),
        ];
        for line in wrapped(&more.into_iter().flatten().collect::<Vec<_>>().join(" ")) {
            text += &format!("# {line}\n");
        }
        text += &format!("#{} = {}\n", key.name, placeholder(&key));
    }
    text
}

/// Something to be replaced, in the form that the key takes.
fn placeholder(key: &Key) -> String {
    match key.takes {
        Takes::Flag => "true".to_owned(),
        Takes::One => format!("\"{}\"", key.placeholder),
        Takes::Many => format!("[\"{}\"]", key.placeholder),
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < COLUMNS => *line += &format!(" {word}"),
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of keys in the documentation.
    fn reference() -> String {
        let mut text = "| key | takes | variable | means | without it |\n|---|---|---|---|---|\n".to_owned();
        for key in keys::keys() {
            let takes = match key.takes {
                Takes::Flag => "`true`, `false`".to_owned(),
                Takes::One => format!("`{}`", key.placeholder),
                Takes::Many => format!("`{}`, list", key.placeholder),
            };
            let variable = key.variable.map(|name| format!("`{name}`")).unwrap_or_default();
            let words = |text: &str| text.replace('|', "\\|");
            let default = key.default.as_deref().map(words).unwrap_or_default();
            text += &format!("| `{}` | {takes} | {variable} | {} | {default} |\n", key.name, words(&key.meaning));
        }
        text
    }

    #[test]
    fn the_reference_is_that_of_the_code() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
        let text = fs_err::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once("<!-- keys: written by a test -->\n").unwrap();
        let (table, after) = rest.split_once("<!-- end of keys -->").unwrap();
        if std::env::var_os("FIRKIN_WRITE_REFERENCE").is_some() {
            let whole = format!("{before}<!-- keys: written by a test -->\n{}<!-- end of keys -->{after}", reference());
            fs_err::write(&path, whole).unwrap();
        } else {
            assert_eq!(table, reference(), "write it anew with FIRKIN_WRITE_REFERENCE=1");
        }
    }

    #[test]
    fn an_example_says_nothing_until_somebody_does_and_every_line_of_it_is_a_key() {
        let text = example_text();
        assert_eq!(file::understand(&text).unwrap(), []);
        let keys = keys::keys();
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('#') && !line.starts_with("# ")).collect();
        assert_eq!(lines.len(), keys.len());
        for (line, key) in lines.iter().zip(&keys) {
            assert!(line.starts_with(&format!("#{} = ", key.name)), "{line}");
            assert!(line[1..].parse::<toml_edit::DocumentMut>().is_ok(), "{line}");
        }
        assert!(text.lines().all(|line| line.len() <= 140), "it is for people");
    }

    #[test]
    fn a_key_that_stands_in_the_place_of_a_name_is_not_shown() {
        assert_eq!(masked("e2b_0123456789"), "e2b_…");
        assert_eq!(masked("/etc/firkin/api-key"), "/etc/firkin/api-key");
    }
}
