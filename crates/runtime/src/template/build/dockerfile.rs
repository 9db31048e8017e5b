//! Forms of a Dockerfile that reach the server as they were written, because clients' own parsers do not take them apart.
//!
//! None of them means anything else here: no image reference has a `$` in it, and no command of a shell begins as a list of strings.

use super::StepSpec;

/// Longest reference that comes of values.
const MAX_REFERENCE_BYTES: usize = 1024;

/// The image of `FROM name:$VERSION`, with the values of `ARG` before it, which clients send as the first steps. The name of a
/// variable that has none is the error.
pub fn image(reference: &str, steps: &[StepSpec]) -> Result<String, String> {
    let mut found = String::new();
    let mut rest = reference;
    while let Some((before, after)) = rest.split_once('$') {
        found.push_str(before);
        let (name, default, remaining) = variable(after).ok_or_else(|| after.to_owned())?;
        // What is empty counts as absent where there is a default, as in a shell.
        let given = value(name, steps).filter(|value| !(value.is_empty() && default.is_some()));
        let value = given.or(default).filter(|value| !value.is_empty()).ok_or_else(|| name.to_owned())?;
        found.push_str(value);
        if found.len() > MAX_REFERENCE_BYTES {
            return Err(name.to_owned());
        }
        rest = remaining;
    }
    found.push_str(rest);
    Ok(found)
}

/// `NAME...`, `{NAME}...` or `{NAME:-default}...`: the name, the default, and what follows.
fn variable(text: &str) -> Option<(&str, Option<&str>, &str)> {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if let Some(braced) = text.strip_prefix('{') {
        let (inside, rest) = braced.split_once('}')?;
        let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
        return is_name(name).then_some((name, default, rest));
    }
    let end = text.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(text.len());
    is_name(&text[..end]).then_some((&text[..end], None, &text[end..]))
}

/// What the first steps that set anything give a variable, before anything is done.
fn value<'a>(name: &str, steps: &'a [StepSpec]) -> Option<&'a str> {
    let leading = steps.iter().take_while(|step| !matches!(step.kind.to_uppercase().as_str(), "RUN" | "COPY" | "ADD"));
    let setting = leading.filter(|step| matches!(step.kind.to_uppercase().as_str(), "ENV" | "ARG"));
    let mut pairs = setting.flat_map(|step| step.args.chunks_exact(2));
    pairs.find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
}

/// The command of `RUN ["program", "argument"]`, for a shell.
pub(super) fn command(text: &str) -> String {
    if !text.trim_start().starts_with('[') {
        return text.to_owned();
    }
    match serde_json::from_str::<Vec<String>>(text) {
        Ok(words) if !words.is_empty() => {
            words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
        }
        Ok(_) | Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: &str, args: &[&str]) -> StepSpec {
        StepSpec { kind: kind.into(), args: args.iter().map(|&arg| arg.to_owned()).collect(), ..StepSpec::default() }
    }

    #[test]
    fn arguments_before_from_choose_the_image() {
        // What PyPI and npm `e2b` send for `ARG V=12`, `ARG NAME` and the like before `FROM`.
        let steps = [
            step("USER", &["root"]),
            step("WORKDIR", &["/"]),
            step("ENV", &["V", "12"]),
            step("ENV", &["NONE", ""]),
            step("ARG", &["W", "slim", "X", "y"]),
            step("ARG", &["BARE"]),
            step("RUN", &["true"]),
            step("ENV", &["LATE", "1"]),
        ];
        for (reference, expected) in [
            ("debian", Ok("debian")),
            ("debian:$V", Ok("debian:12")),
            ("${X}/debian:${V}-$W", Ok("y/debian:12-slim")),
            ("debian:${NONE:-13}", Ok("debian:13")),
            ("debian:${V:-13}", Ok("debian:12")),
            ("debian:$NONE", Err("NONE")),
            ("debian:$BARE", Err("BARE")),
            ("debian:$LATE", Err("LATE")),
            ("debian:${V", Err("{V")),
            ("debian:$", Err("")),
        ] {
            let found = image(reference, &steps);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{reference}");
        }
    }

    #[test]
    fn a_list_of_words_is_a_command_and_everything_else_is_the_shells() {
        for (text, expected) in [
            (r#"["echo", "it's", "$HOME a"]"#, r"'echo' 'it'\''s' '$HOME a'"),
            ("[ -f /x ] && true", "[ -f /x ] && true"),
            ("[]", "[]"),
            ("echo one   && echo two", "echo one   && echo two"),
            ("<<EOT bash\nset -e\nEOT", "<<EOT bash\nset -e\nEOT"),
            ("echo heredoc\necho second\n", "echo heredoc\necho second\n"),
        ] {
            assert_eq!(command(text), expected);
        }
    }
}
