//! Rules about Markdown documents: links lead somewhere, promises are numbered and tested, threats have a test or a named gap.

use std::path::Path;

use fs_err as fs;

use crate::{Text, assert_none, files, root};

/// The targets of `[text](target)` outside code.
fn links(markdown: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut in_code = false;
    for line in markdown.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for (at, _) in prose.match_indices("](") {
            if let Some((target, _)) = prose[at + 2..].split_once(')') {
                found.push(target.split(' ').next().unwrap_or_default().to_owned());
            }
        }
    }
    found
}

/// The anchor that a heading gets: lower case, spaces as hyphens, punctuation dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_')
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

fn has_anchor(markdown: &str, wanted: &str) -> bool {
    let headings = markdown.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).any(|found| found == wanted)
}

/// Why a local link leads nowhere, if so.
fn broken(document: &Text, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, fragment) = target.split_once('#').unwrap_or((target, ""));
    let full = match path {
        "" => root().join(&document.path),
        _ => root().join(document.path.parent().unwrap_or(Path::new(""))).join(path),
    };
    if !full.exists() {
        return Some(format!("{}: `{target}` does not exist", document.path.display()));
    }
    let is_document = full.extension().is_some_and(|extension| extension == "md");
    let text = if is_document && !fragment.is_empty() {
        fs::read_to_string(&full).expect("the document can be read")
    } else {
        return None;
    };
    (!has_anchor(&text, fragment)).then(|| format!("{}: no heading for `{target}`", document.path.display()))
}

#[test]
fn local_links_lead_somewhere() {
    let documents = files("md");
    let offences =
        documents.iter().flat_map(|document| links(&document.text).into_iter().filter_map(|link| broken(document, &link)));
    assert_none("a link within the project leads to a file and a heading", &offences.collect::<Vec<_>>());
}

#[test]
fn links_are_found_outside_code_only() {
    let text = "see [a](b.md#c) and `[not](this)`\n```\n[nor](this)\n```\n[d](e \"title\")";
    assert_eq!(links(text), ["b.md#c", "e"]);
    assert_eq!(anchor(" The two commands, `firkin up`"), "the-two-commands-firkin-up");
}

/// One promise of SPECIFICATION.md: the heading above it, its letter and number, and all of its text.
struct Promise {
    section: String,
    letter: char,
    number: u32,
    text: String,
}

impl std::fmt::Display for Promise {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "promise {}{}", self.letter, self.number)
    }
}

/// `('B', 10)` of `- B10. **Some promise**`.
fn number_of(line: &str) -> Option<(char, u32)> {
    let (name, _) = line.strip_prefix("- ")?.split_once(". ")?;
    let letter = name.chars().next().filter(char::is_ascii_uppercase)?;
    Some((letter, name[1..].parse().ok()?))
}

/// Splits at lines that begin with a letter and a number, `- B10. `; headings end a promise.
fn promises(specification: &str) -> Vec<Promise> {
    let mut found: Vec<Promise> = Vec::new();
    let mut section = String::new();
    let mut open = false;
    for line in specification.lines() {
        if let Some((letter, number)) = number_of(line) {
            found.push(Promise { section: section.clone(), letter, number, text: line.to_owned() });
            open = true;
        } else if line.starts_with('#') {
            line.trim_start_matches(['#', ' ']).clone_into(&mut section);
            open = false;
        } else if let Some(last) = found.last_mut().filter(|_| open) {
            last.text.push('\n');
            last.text.push_str(line);
        }
    }
    found
}

/// What is wrong with the numbers: a section has one letter, no two have the same, and within it numbers rise.
fn misnumbered(promises: &[Promise]) -> Vec<String> {
    let mut offences = Vec::new();
    for (at, promise) in promises.iter().enumerate() {
        let before = &promises[..at];
        let others = before.iter().filter(|other| (other.letter == promise.letter) != (other.section == promise.section));
        offences
            .extend(others.take(1).map(|other| format!("{promise}: section `{}` is not of {other}'s letter", promise.section)));
        let last = before.iter().rfind(|other| other.section == promise.section);
        if last.is_some_and(|last| last.number >= promise.number) {
            offences.push(format!("{promise}: stands after one with the same number or a higher one"));
        }
    }
    offences
}

/// The `file::test` references between backticks.
fn references(text: &str) -> Vec<(String, String)> {
    let code = text.split('`').skip(1).step_by(2);
    let pairs = code.filter_map(|code| code.split_once("::"));
    let files =
        pairs.filter(|(file, _)| Path::new(file).extension().is_some_and(|extension| extension == "rs" || extension == "py"));
    files.map(|(file, test)| (file.to_owned(), test.rsplit("::").next().unwrap_or(test).to_owned())).collect()
}

fn names_test(source: &str, test: &str) -> bool {
    ["fn ", "def "].iter().any(|keyword| {
        let definition = format!("{keyword}{test}");
        source.match_indices(&definition).any(|(at, found)| source[at + found.len()..].starts_with(['(', '<']))
    })
}

/// What is said of references to tests that are not there.
fn missing(references: &[(String, String)]) -> impl Iterator<Item = String> {
    let absent = references.iter().filter(|(file, test)| {
        let source = fs::read_to_string(root().join(file)).unwrap_or_default();
        !names_test(&source, test)
    });
    absent.map(|(file, test)| format!("no test `{test}` in `{file}`"))
}

/// Rows of the threat model, `| a1 | promise | tests | gap |`, without what is not shown: the number, the tests and the gap.
fn threats(model: &str) -> Vec<[String; 3]> {
    let numbered = |cell: &str| {
        let mut characters = cell.chars();
        characters.next().is_some_and(|letter| letter.is_ascii_lowercase()) && characters.as_str().parse::<u32>().is_ok()
    };
    let shown = |cell: &str| cell.split("<!--").next().unwrap_or_default().trim().to_owned();
    let rows = model.lines().filter_map(|line| {
        let cells: Vec<&str> = line.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
        let [number, _, tests, gap] = cells[..] else { return None };
        numbered(number).then(|| [number.to_owned(), shown(tests), shown(gap)])
    });
    rows.collect()
}

#[test]
fn every_threat_names_a_test_that_exists_or_a_gap() {
    let model = fs::read_to_string(root().join("docs/security.md")).expect("the project has a threat model");
    let threats = threats(&model);
    assert!(threats.len() > 20, "docs/security.md has its rows: {}", threats.len());
    let mut offences = Vec::new();
    for (at, [number, tests, gap]) in threats.iter().enumerate() {
        let references = references(tests);
        if references.is_empty() && gap.is_empty() {
            offences.push(format!("threat {number}: names neither a test as `path/to/file::test` nor a gap"));
        }
        if threats[..at].iter().any(|[other, ..]| other == number) {
            offences.push(format!("threat {number}: its number is given twice"));
        }
        offences.extend(missing(&references).map(|missing| format!("threat {number}: {missing}")));
    }
    assert_none("each threat names the tests that try it, or what is accepted and why", &offences);
}

#[test]
fn rows_of_threats_are_read_right() {
    let model =
        "| | promise | test | gap |\n|---|---|---|---|\n| a1 | p | `a/b.rs::holds` | |\n| b10 | p | | <!-- FILL --> |\ntext | a2";
    let read = threats(model);
    assert_eq!(read.iter().map(|[number, ..]| number.as_str()).collect::<Vec<_>>(), ["a1", "b10"]);
    assert_eq!(references(&read[0][1]), [("a/b.rs".to_owned(), "holds".to_owned())]);
    assert!(read[1][1].is_empty() && read[1][2].is_empty(), "what is not shown is no gap");
    assert_eq!(missing(&[("xtask/tests/tidy/documents.rs".to_owned(), "no_such".to_owned())]).count(), 1);
}

#[test]
fn every_promise_names_a_test_that_exists() {
    let path = root().join("SPECIFICATION.md");
    let specification = fs::read_to_string(&path).expect("the project has a specification");
    let promises = promises(&specification);
    assert!(!promises.is_empty(), "SPECIFICATION.md numbers no promise");
    let mut offences = Vec::new();
    for promise in &promises {
        let references = references(&promise.text);
        if references.is_empty() {
            offences.push(format!("{promise}: names no test as `path/to/file::test`"));
        }
        offences.extend(missing(&references).map(|missing| format!("{promise}: {missing}")));
    }
    assert_none("each promise names the test that holds it", &offences);
}

#[test]
fn promises_are_numbered_by_section_distinct_and_ascending() {
    let specification = fs::read_to_string(root().join("SPECIFICATION.md")).expect("the project has a specification");
    let numbered = specification.lines().filter(|line| line.starts_with("- ") && number_of(line).is_none());
    let mut offences: Vec<String> = numbered.map(|line| format!("no letter and number: {line}")).collect();
    offences.extend(misnumbered(&promises(&specification)));
    assert_none("promises of a section have its letter and rising numbers", &offences);
}

#[test]
fn promises_and_their_tests_are_read_right() {
    let text = "# 1 Heading\nprose\n- A1. First promise\n  goes on. Test: `a/b.rs::tests::holds`.\n\n- A10. **Second**: `x.py::test_y`, \
                `not::a_file`\n# 3 Other\n`z.rs::w`\n";
    let read = promises(text);
    assert_eq!(read.iter().map(ToString::to_string).collect::<Vec<_>>(), ["promise A1", "promise A10"]);
    assert_eq!(references(&read[0].text), [("a/b.rs".to_owned(), "holds".to_owned())]);
    assert_eq!(references(&read[1].text), [("x.py".to_owned(), "test_y".to_owned())]);
    assert!(names_test("    fn holds() {", "holds"));
    assert!(!names_test("fn holds_more() {", "holds"));
}

#[test]
fn wrong_numbers_are_found() {
    let check = |text: &str, offences: usize| assert_eq!(misnumbered(&promises(text)).len(), offences, "{text}");
    check("# X\n- A1. a\n- A3. b\n# Y\n- B1. c\n", 0);
    check("# X\n- A1. a\n- A1. b\n", 1);
    check("# X\n- A2. a\n- A1. b\n", 1);
    check("# X\n- A1. a\n- B2. b\n", 1);
    check("# X\n- A1. a\n# Y\n- A1. b\n", 1);
}
