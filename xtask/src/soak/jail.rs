//! The walk of the host with a machine's identity, and the calls that are forbidden to it: the engine's own tests, again and again.
//!
//! They are programs that were built before the soak begins, since a build beside it would be all that is measured.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::workspace::Workspace;

/// The tests, by their names in the engine's crate.
const TESTS: [&str; 3] = [
    "qemu::isolation::tests::a_machine_s_process_finds_nothing_of_its_host",
    "qemu::isolation::tests::without_its_filter_it_finds_nothing_either",
    "qemu::isolation::tests::a_qemu_that_was_taken_over_is_refused",
];
/// How a test says that the host lacks something.
const SKIP: &str = "SKIP: ";

/// The engine's tests.
#[derive(Debug)]
pub(super) struct Jail {
    program: PathBuf,
}

impl Jail {
    pub(super) fn build(workspace: &Workspace) -> anyhow::Result<Self> {
        let mut command =
            workspace.cargo(&["test", "--package", "firkin-engine", "--lib", "--no-run", "--message-format", "json"]);
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
        ensure!(output.status.success(), "the engine's tests cannot be built: {}", output.status);
        let messages = String::from_utf8_lossy(&output.stdout);
        let program = messages.lines().find_map(program).context("cargo names no program of the engine's tests")?;
        Ok(Self { program })
    }

    /// Runs them all. What is skipped is told.
    pub(super) fn run(&self) -> anyhow::Result<Vec<String>> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", "180"]).arg(&self.program).args(["--exact", "--test-threads=1", "--nocapture"]);
        let output = command.args(TESTS).stdin(Stdio::null()).output().context("cannot start `timeout`")?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "a machine's process found something: {}\n{said}", output.status);
        ensure!(said.contains(&format!("{} passed", TESTS.len())), "tests of the jail are gone: {said}");
        Ok(skips(&said))
    }
}

/// The program that one of cargo's messages names, if it is the engine's tests.
fn program(message: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let is_engine = message.pointer("/target/name")? == "firkin_engine" && message.pointer("/profile/test")? == true;
    message.pointer("/executable")?.as_str().filter(|_| is_engine).map(PathBuf::from)
}

fn skips(said: &str) -> Vec<String> {
    said.lines().filter_map(|line| line.split_once(SKIP)).map(|(_, why)| why.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tests_program_is_found_among_cargos_messages() {
        let message = |name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        assert_eq!(program(&message("firkin_engine", true, "\"/t/engine-1\"")), Some(PathBuf::from("/t/engine-1")));
        for other in [message("firkin_engine", false, "null"), message("nix", true, "\"/t/nix\""), "{}".into(), "no JSON".into()]
        {
            assert_eq!(program(&other), None, "{other}");
        }
    }

    #[test]
    fn a_skip_is_seen_wherever_the_harness_left_off() {
        assert_eq!(skips("test a ... SKIP: a jail needs root\nok\n"), ["a jail needs root"]);
    }
}
