//! Rules about Rust sources.

use crate::{Text, assert_none, files};

/// Longer files are split by idea.
const MAX_LINES: usize = 800;

fn lines_with(text: &Text, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = text.text.lines().enumerate().filter(|(_, line)| wanted(line));
    lines.map(|(at, line)| format!("{}:{}: {}", text.path.display(), at + 1, line.trim())).collect()
}

/// Lines of code whose text, comments taken away, holds one of `patterns`.
fn code_with(patterns: &[String]) -> Vec<String> {
    let holds = |line: &str| {
        let code = line.trim_start();
        !code.starts_with("//") && patterns.iter().any(|pattern| code.contains(pattern.as_str()))
    };
    files("rs").iter().flat_map(|text| lines_with(text, holds)).collect()
}

#[test]
fn files_are_short_enough_to_read() {
    let long = files("rs").into_iter().map(|text| (text.text.lines().count(), text.path)).filter(|(lines, _)| *lines > MAX_LINES);
    let long: Vec<String> = long.map(|(lines, path)| format!("{}: {lines} lines", path.display())).collect();
    assert_none("no source file is longer than 800 lines", &long);
}

#[test]
fn files_say_what_they_decide() {
    let silent = files("rs").into_iter().filter(|text| !text.text.starts_with("//!"));
    let silent: Vec<String> = silent.map(|text| text.path.display().to_string()).collect();
    assert_none("every source file opens with `//!`", &silent);
}

#[test]
fn no_test_is_switched_off() {
    // In pieces, or this file would offend itself.
    assert_none("no test is ignored: what a host lacks is a printed, counted skip", &code_with(&[["#[ig", "nore"].concat()]));
}

#[test]
fn lints_are_expected_not_allowed() {
    let forms = [["#[al", "low("].concat(), ["#![al", "low("].concat()];
    assert_none("a lint is suppressed with `#[expect(lint, reason = ...)]` on the smallest item", &code_with(&forms));
}

#[test]
fn nothing_sleeps_to_wait() {
    assert_none("a wait is for a level, with a deadline", &code_with(&[["thread::sl", "eep("].concat()]));
}

#[test]
fn no_code_stands_in_comments() {
    let fenced = |line: &str| {
        let fence = line.trim_start().trim_start_matches("//!").trim_start_matches("///").trim_start();
        line.trim_start().starts_with("//") && fence.starts_with("```") && !["```", "```text"].contains(&fence)
    };
    let offences: Vec<String> = files("rs").iter().flat_map(|text| lines_with(text, fenced)).collect();
    assert_none("an example is a program in `examples/`, which runs as a test: nothing runs what stands in comments", &offences);
}

#[test]
fn no_registry_is_named() {
    let hosts: Vec<String> = [
        ["crates", "io"],
        ["pypi", "org"],
        ["pythonhosted", "org"],
        ["npmjs", "org"],
        ["npmjs", "com"],
        ["deb.debian", "org"],
        ["snapshot.debian", "org"],
    ]
    .map(|parts| parts.join("."))
    .into();
    let named = |line: &str| hosts.iter().any(|host| line.contains(host));
    let extensions = ["rs", "py", "toml", "md", "txt", "ini", "sh", "yml", "proto"];
    let offences = extensions.into_iter().flat_map(files).flat_map(|text| lines_with(&text, named));
    assert_none("registries are used through their clients, whose settings belong to the host", &offences.collect::<Vec<_>>());
}
