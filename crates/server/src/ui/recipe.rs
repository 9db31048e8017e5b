//! A Dockerfile that somebody typed, as the steps of a build. What a build here does not do is refused by its line, and never left out.

use firkin_runtime::build::{BuildPlan, Source, StepSpec, dockerfile};
use firkin_runtime::images::ImageRequest;

/// Longest text: what people type.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// Steps of one.
const MAX_STEPS: usize = 200;

/// Why a text is no recipe for a build.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecipeError {
    /// It is longer than anybody types.
    #[error("the Dockerfile has more than {MAX_BYTES} bytes or {MAX_STEPS} steps")]
    TooLong,
    /// There is no source.
    #[error("the Dockerfile has no `FROM` before its first step")]
    NoSource,
    /// A stage would have to be built and copied from.
    #[error("line {line}: a second `FROM` is not carried out here: build it with a client")]
    Stages {
        /// Which.
        line: usize,
    },
    /// Files are a client's to bring.
    #[error("line {line}: `{word}` needs files, which a page has none of: use an SDK or `firkin template build`")]
    Files {
        /// Which.
        line: usize,
        /// The instruction.
        word: String,
    },
    /// It says what runs, which has fields of its own.
    #[error("line {line}: write what `{word}` says into the field of the start command")]
    Start {
        /// Which.
        line: usize,
        /// The instruction.
        word: String,
    },
    /// Nothing here is of that name.
    #[error("line {line}: `{word}` is not carried out here")]
    Unknown {
        /// Which.
        line: usize,
        /// The instruction.
        word: String,
    },
    /// It lacks something.
    #[error("line {line}: `{word}` needs {what}")]
    Malformed {
        /// Which.
        line: usize,
        /// The instruction.
        word: String,
        /// What.
        what: &'static str,
    },
    /// `FROM` names a variable that has no value.
    #[error("`FROM` needs a value for `${0}`: give its `ARG` a default")]
    Variable(String),
}

/// A recipe: what it begins with, as it was written, and steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recipe {
    pub(super) from: String,
    pub(super) steps: Vec<StepSpec>,
}

impl Recipe {
    /// Its plan, which stands on a template where there is one of that name, else on an image.
    pub(super) fn plan(self, is_template: bool, start: Option<String>, ready: Option<String>) -> BuildPlan {
        let Self { from, steps } = self;
        let source =
            if is_template { Source::Template(from) } else { Source::Image(ImageRequest { reference: from, login: None }) };
        BuildPlan { source, force: false, steps, start, ready, nested_virtualization: false, engine: None }
    }
}

/// Lines that belong together, each with the number of its first.
fn lines(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (at, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim();
        if trimmed.starts_with('#') || (trimmed.is_empty() && open.is_none()) {
            continue;
        }
        let (first, mut whole) = open.take().unwrap_or_else(|| (at, String::new()));
        match trimmed.strip_suffix('\\') {
            Some(part) => {
                whole.push_str(part);
                whole.push(' ');
                open = Some((first, whole));
            }
            None => {
                whole.push_str(trimmed);
                found.push((first, whole));
            }
        }
    }
    found.extend(open);
    found
}

/// Reads a Dockerfile.
pub(super) fn read(text: &str) -> Result<Recipe, RecipeError> {
    let lines = lines(text);
    if text.len() > MAX_BYTES || lines.len() > MAX_STEPS {
        return Err(RecipeError::TooLong);
    }
    let (mut from, mut steps): (Option<String>, Vec<StepSpec>) = (None, Vec::new());
    for (line, whole) in lines {
        let (word, rest) = whole.split_once(char::is_whitespace).unwrap_or((&whole, ""));
        let (word, rest) = (word.to_uppercase(), rest.trim());
        let malformed = |what| RecipeError::Malformed { line, word: word.clone(), what };
        let step = |args: Vec<String>| StepSpec { kind: word.clone(), args, ..StepSpec::default() };
        match word.as_str() {
            "FROM" if from.is_some() => return Err(RecipeError::Stages { line }),
            "FROM" => {
                let name = rest.split_whitespace().find(|part| !part.starts_with("--")).ok_or_else(|| malformed("a name"))?;
                from = Some(name.to_owned());
            }
            "ARG" => steps.push(step(arguments(rest).ok_or_else(|| malformed("a name"))?)),
            _ if from.is_none() => return Err(RecipeError::NoSource),
            "RUN" | "WORKDIR" | "USER" if rest.is_empty() => return Err(malformed("something to do")),
            "RUN" | "WORKDIR" | "USER" => steps.push(step(vec![rest.to_owned()])),
            "ENV" => steps.push(step(variables(rest).ok_or_else(|| malformed("names and values"))?)),
            "COPY" | "ADD" => return Err(RecipeError::Files { line, word }),
            "CMD" | "ENTRYPOINT" => return Err(RecipeError::Start { line, word }),
            _ => return Err(RecipeError::Unknown { line, word }),
        }
    }
    let from = from.ok_or(RecipeError::NoSource)?;
    let from = dockerfile::image(&from, &steps).map_err(RecipeError::Variable)?;
    Ok(Recipe { from, steps })
}

/// `NAME` or `NAME=default`.
fn arguments(text: &str) -> Option<Vec<String>> {
    let (name, default) = text.split_once('=').map_or((text, None), |(name, default)| (name, Some(unquoted(default))));
    let name = name.trim();
    (!name.is_empty() && !name.contains(char::is_whitespace)).then(|| [name.to_owned()].into_iter().chain(default).collect())
}

/// `NAME=value NAME="a value"…`, or the older `NAME a value`.
fn variables(text: &str) -> Option<Vec<String>> {
    let first = text.split_whitespace().next()?;
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![name.to_owned(), unquoted(value.trim())]);
    }
    let mut pairs = Vec::new();
    for word in words(text)? {
        let (name, value) = word.split_once('=')?;
        if name.is_empty() {
            return None;
        }
        pairs.extend([name.to_owned(), value.to_owned()]);
    }
    Some(pairs)
}

/// Words as a shell separates them, without their quotes. Nothing for a quote that has no end.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) => word.extend(letters.next()),
            (letter, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => quote = Some(letter),
            (letter, None) if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (letter, _) => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    quote.is_none().then_some(words)
}

fn unquoted(text: &str) -> String {
    let within = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(kind: &str, args: &[&str]) -> StepSpec {
        StepSpec { kind: kind.into(), args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..StepSpec::default() }
    }

    #[test]
    fn a_dockerfile_becomes_steps() {
        let text = "# syntax\nARG VERSION=3.12\n\nFROM --platform=linux/amd64 python:${VERSION}-slim\nrun apt-get update && \\\n  # inside\n  apt-get \
                    install -y git\nENV A=1 B=\"two words\"\nENV OLD a value\nWORKDIR /app\nUSER user\n";
        let recipe = read(text).unwrap();
        assert_eq!(recipe.from, "python:3.12-slim");
        assert_eq!(
            recipe.steps,
            [
                step("ARG", &["VERSION", "3.12"]),
                step("RUN", &["apt-get update &&  apt-get install -y git"]),
                step("ENV", &["A", "1", "B", "two words"]),
                step("ENV", &["OLD", "a value"]),
                step("WORKDIR", &["/app"]),
                step("USER", &["user"]),
            ]
        );
    }

    #[test]
    fn what_is_not_carried_out_is_refused_by_its_line() {
        let refused = |text: &str| read(text).unwrap_err();
        assert_eq!(refused(""), RecipeError::NoSource);
        assert_eq!(refused("RUN x"), RecipeError::NoSource);
        assert_eq!(refused("FROM a\nFROM b"), RecipeError::Stages { line: 2 });
        assert_eq!(refused("FROM a\n\nCOPY . /x"), RecipeError::Files { line: 3, word: "COPY".into() });
        assert_eq!(refused("FROM a\nCMD x"), RecipeError::Start { line: 2, word: "CMD".into() });
        assert_eq!(refused("FROM a\nHEALTHCHECK x"), RecipeError::Unknown { line: 2, word: "HEALTHCHECK".into() });
        assert_eq!(refused("FROM a:$V"), RecipeError::Variable("V".into()));
        for text in ["FROM", "FROM a\nRUN", "FROM a\nENV", "FROM a\nENV A=\"x", "FROM a\nENV =x"] {
            assert!(matches!(refused(text), RecipeError::Malformed { .. }), "{text}");
        }
        assert_eq!(refused(&"#".repeat(MAX_BYTES + 1)), RecipeError::TooLong);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(FROM|RUN|ENV|ARG|#|\\\\|\n| |=|\"|'|\\$|\\{|[a-z]|é){0,60}") {
            drop(read(&text));
        }
    }
}
