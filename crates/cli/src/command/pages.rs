//! `firkin completions` and `firkin man`: what is made of the grammar itself, so that neither can lag behind it.

use std::io;

use anyhow::Context as _;
use clap::CommandFactory as _;
use fs_err as fs;

use crate::{
    args::{
        Cli,
        watching::{CompletionsArgs, ManArgs},
    },
    failure::ExitStatus,
    output,
};

/// Prints a script that completes commands and options in a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "firkin", &mut script);
    output::text(&String::from_utf8_lossy(&script))?;
    Ok(ExitStatus::Success)
}

/// Prints the manual page, or writes one of each command.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<ExitStatus> {
    match &args.out {
        None => output::text(&String::from_utf8_lossy(&page(Cli::command()).context("cannot make the manual page")?))?,
        Some(dir) => {
            fs::create_dir_all(dir)?;
            clap_mangen::generate_to(Cli::command(), dir).with_context(|| format!("cannot write to `{}`", dir.display()))?;
        }
    }
    Ok(ExitStatus::Success)
}

fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Each command with what it takes, as a page of the documentation.
    fn reference() -> String {
        let mut text = "# Command line\n\nWritten by a test from the program's own grammar; `firkin COMMAND --help` says the same, at more length \
                        where there is more to say.\n"
            .to_owned();
        let mut root = Cli::command();
        root.build();
        describe(&root, "firkin", &mut text);
        text
    }

    fn describe(command: &clap::Command, name: &str, text: &mut String) {
        let words = |styled: Option<&clap::builder::StyledStr>| {
            styled
                .map(|styled| styled.to_string().replace('|', "\\|").replace('\n', " ").replace('<', "&lt;"))
                .unwrap_or_default()
        };
        *text += &format!("\n## {name}\n\n{}\n", words(command.get_about()));
        // Options of the program itself are told of once.
        let arguments: Vec<_> = command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set() && (name == "firkin" || !argument.is_global_set()))
            .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
            .collect();
        if !arguments.is_empty() {
            *text += "\n| takes | means |\n|---|---|\n";
        }
        for argument in arguments {
            let values: Vec<&str> = argument.get_value_names().into_iter().flatten().map(clap::builder::Str::as_str).collect();
            let shown = match (argument.get_long(), argument.get_action().takes_values()) {
                (Some(long), true) => format!("--{long} {}", values.join(" ")),
                (Some(long), false) => format!("--{long}"),
                (None, _) => values.join(" "),
            };
            *text += &format!("| `{}` | {} |\n", shown.replace('|', "\\|"), words(argument.get_help()));
        }
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
            describe(sub, &format!("{name} {}", sub.get_name()), text);
        }
    }

    #[test]
    fn the_reference_is_that_of_the_grammar() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/command-line.md");
        if std::env::var_os("FIRKIN_WRITE_REFERENCE").is_some() {
            fs::write(&path, reference()).unwrap();
        } else {
            assert_eq!(fs::read_to_string(&path).unwrap(), reference(), "write it anew with FIRKIN_WRITE_REFERENCE=1");
        }
    }

    #[test]
    fn each_command_has_a_page_and_completes() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { out: Some(dir.path().to_owned()) }).unwrap();
        for name in ["firkin.1", "firkin-up.1", "firkin-sandbox-exec.1", "firkin-webhook-add.1"] {
            let page = fs::read_to_string(dir.path().join(name)).unwrap();
            assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{name}: {page}");
        }
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "firkin", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("deliveries"), "{shell}");
        }
    }
}
