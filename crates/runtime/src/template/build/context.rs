//! What steps change for those that follow, and what of it a template's sandboxes begin with: user, directory, environment.

use firkin_wire::DEFAULT_USER;

use crate::store::Defaults;

/// That user's directory, where builds begin.
const HOME: &str = "/home/user";

impl Defaults {
    /// Where a build on a source without any begins.
    pub(super) fn of_builds(self) -> Self {
        Self {
            user: self.user.or_else(|| Some(DEFAULT_USER.to_owned())),
            workdir: self.workdir.or_else(|| Some(HOME.to_owned())),
            env: self.env,
        }
    }

    pub(super) fn user(&self) -> &str {
        self.user.as_deref().unwrap_or(DEFAULT_USER)
    }

    pub(super) fn workdir(&self) -> &str {
        self.workdir.as_deref().unwrap_or(HOME)
    }

    /// `path`, taken from the working directory when it is relative.
    pub(super) fn absolute(&self, path: &str) -> String {
        if path.starts_with('/') { path.to_owned() } else { format!("{}/{path}", self.workdir().trim_end_matches('/')) }
    }
}

/// One part of a text with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Variable { name: String, otherwise: Option<Otherwise> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Otherwise {
    /// `${NAME:-word}`
    Default(String),
    /// `${NAME:+word}`
    Instead(String),
}

/// The names of the variables in a text.
pub(super) fn variables(text: &str) -> Vec<String> {
    let named = |part| match part {
        Part::Variable { name, .. } => Some(name),
        Part::Text(_) => None,
    };
    parse(text).into_iter().filter_map(named).collect()
}

/// The text with its variables replaced: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:+instead}`, as a Dockerfile has them.
/// What is not set is empty. `\$` is a dollar sign.
pub(super) fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let replaced = |part| match part {
        Part::Text(text) => text,
        Part::Variable { name, otherwise } => {
            let found = value(&name).filter(|found| !found.is_empty());
            match (found, otherwise) {
                (Some(found), None | Some(Otherwise::Default(_))) => found,
                (Some(_), Some(Otherwise::Instead(word))) | (None, Some(Otherwise::Default(word))) => word,
                (None, None | Some(Otherwise::Instead(_))) => String::new(),
            }
        }
    };
    parse(text).into_iter().map(replaced).collect()
}

fn parse(text: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let after = &rest[next.len_utf8()..];
        if next == '\\' && after.starts_with('$') {
            plain.push('$');
            rest = &after[1..];
        } else if next == '$'
            && let Some((part, left)) = variable(after)
        {
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(part);
            rest = left;
        } else {
            plain.push(next);
            rest = after;
        }
    }
    parts.push(Part::Text(plain));
    parts
}

/// The variable behind a dollar sign, and what follows it.
fn variable(text: &str) -> Option<(Part, &str)> {
    let Some(inner) = text.strip_prefix('{') else {
        let (name, rest) = name(text)?;
        return Some((Part::Variable { name, otherwise: None }, rest));
    };
    let (name, rest) = name(inner)?;
    if let Some(rest) = rest.strip_prefix('}') {
        return Some((Part::Variable { name, otherwise: None }, rest));
    }
    let (word, after) = rest.get(2..)?.split_once('}')?;
    let otherwise = match rest.get(..2)? {
        ":-" => Otherwise::Default(word.to_owned()),
        ":+" => Otherwise::Instead(word.to_owned()),
        _ => return None,
    };
    Some((Part::Variable { name, otherwise: Some(otherwise) }, after))
}

fn name(text: &str) -> Option<(String, &str)> {
    let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
    let end = text.find(|c: char| !letter(c) && !c.is_ascii_digit()).unwrap_or(text.len());
    text.starts_with(letter).then(|| (text[..end].to_owned(), &text[end..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> String {
        expand(text, |name| match name {
            "A" => Some("a".to_owned()),
            "PATH" => Some("/bin".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_as_in_a_dockerfile() {
        for (text, expected) in [
            ("/opt/bin:$PATH", "/opt/bin:/bin"),
            ("${A}b$A", "aba"),
            ("$NONE.${NONE}", "."),
            ("${NONE:-x} ${EMPTY:-y} ${A:-z}", "x y a"),
            ("${A:+set}${NONE:+set}", "set"),
            ("\\$A costs 5$", "$A costs 5$"),
            ("$1 ${} ${A", "$1 ${} ${A"),
        ] {
            assert_eq!(expanded(text), expected, "{text}");
        }
        assert_eq!(variables("$A ${B:-c} \\$D"), ["A", "B"]);
    }

    #[test]
    fn relative_paths_are_below_the_working_directory() {
        let defaults = Defaults::default().of_builds();
        assert_eq!(defaults.absolute("a/b"), "/home/user/a/b");
        assert_eq!(defaults.absolute("/x"), "/x");
        assert_eq!(Defaults { workdir: Some("/".into()), ..defaults }.absolute("x"), "/x");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_stumble(text in "\\PC*") {
            expanded(&text);
            variables(&text);
        }

        #[test]
        fn a_text_without_dollars_is_left_alone(text in "[^$]*") {
            prop_assert_eq!(expanded(&text), text);
        }
    }
}
