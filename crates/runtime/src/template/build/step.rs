//! Steps: what each kind means, and what it does in the guest.

use std::path::PathBuf;

use super::{
    StepSpec,
    command::Shell,
    context,
    copy::{self, CopyError, Placement},
    dockerfile,
    error::{BuildFailure, CommandFailed},
    provision::Script,
};
use crate::{ground::blocking::blocking, storage::uploads::Files, store::Defaults};

/// Longest name of a user.
const MAX_USER_BYTES: usize = 32;

/// A step that is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Run { command: String, user: Option<String> },
    Copy { src: String, dest: String, owner: Option<String>, mode: Option<u32>, hash: Option<String> },
    Workdir(String),
    User { name: String, sudo: bool },
    Env(Vec<(String, String)>),
}

/// How a step is told in the log.
pub(super) fn title(spec: &StepSpec) -> String {
    format!("{} {}", spec.kind.to_uppercase(), spec.args.join(" ")).trim_end().to_owned()
}

impl Step {
    /// Understands a step.
    pub(super) fn parse(spec: &StepSpec) -> Result<Self, BuildFailure> {
        let kind = spec.kind.to_uppercase();
        let malformed =
            |reason| BuildFailure::Malformed { kind: kind.clone(), args: spec.args.iter().take(8).cloned().collect(), reason };
        let args: Vec<&str> = spec.args.iter().map(String::as_str).collect();
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        if args.iter().any(|arg| arg.contains('\0')) {
            return Err(malformed("it has a NUL byte"));
        }
        match (kind.as_str(), args.as_slice()) {
            ("RUN", [command]) => Ok(Self::Run { command: dockerfile::command(command), user: None }),
            ("RUN", [command, user]) => Ok(Self::Run { command: dockerfile::command(command), user: given(user) }),
            ("RUN", _) => Err(malformed("it takes a command, and a user if wanted")),
            ("COPY" | "ADD", [src, dest, rest @ ..]) if rest.len() <= 2 => {
                let mode = match rest.get(1).copied().unwrap_or_default() {
                    "" => None,
                    octal => Some(u32::from_str_radix(octal, 8).ok().filter(|mode| *mode <= 0o7777)),
                };
                Ok(Self::Copy {
                    src: (*src).to_owned(),
                    dest: (*dest).to_owned(),
                    owner: rest.first().copied().and_then(given),
                    mode: mode.map(|mode| mode.ok_or_else(|| malformed("the mode is not octal"))).transpose()?,
                    hash: spec.files_hash.clone(),
                })
            }
            ("COPY" | "ADD", _) => Err(malformed("it takes source, destination, and if wanted user and mode")),
            ("WORKDIR", [path]) if !path.is_empty() => Ok(Self::Workdir((*path).to_owned())),
            ("WORKDIR", _) => Err(malformed("it takes a path")),
            ("USER", [name]) if !name.is_empty() => Ok(Self::User { name: (*name).to_owned(), sudo: false }),
            ("USER", [name, sudo]) if !name.is_empty() => Ok(Self::User { name: (*name).to_owned(), sudo: *sudo == "true" }),
            ("USER", _) => Err(malformed("it takes a name")),
            ("ENV" | "ARG", pairs) if !pairs.is_empty() && pairs.len() % 2 == 0 => {
                let variables = pairs.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect::<Vec<_>>();
                if variables.iter().any(|(name, _)| name.is_empty() || name.contains('=')) {
                    return Err(malformed("a variable has no name"));
                }
                Ok(Self::Env(variables))
            }
            // An argument without a default that nobody gives is not set.
            ("ARG", [_]) => Ok(Self::Env(Vec::new())),
            ("ENV" | "ARG", _) => Err(malformed("it takes names and values in turns")),
            _ => Err(malformed("there is no such step")),
        }
    }

    /// Carries it out. Gives what the next step finds.
    pub(super) async fn run(
        &self,
        shell: &Shell<'_>,
        context: &Defaults,
        files: &Files,
        disk_bytes: u64,
    ) -> Result<Defaults, BuildFailure> {
        let mut next = context.clone();
        match self {
            Self::Run { command, user } => {
                let user = user.as_deref().unwrap_or(context.user());
                let failed = |source| BuildFailure::Command { command: command.clone(), source };
                shell.run(context, command, user).await.map_err(failed)?;
            }
            Self::Env(pairs) => {
                for (name, value) in pairs {
                    let value = expand(shell, &next, value).await?;
                    next.env.insert(name.clone(), value);
                }
            }
            Self::Workdir(path) => {
                let path = clean(&context.absolute(&expand(shell, context, path).await?));
                let failed = |source| BuildFailure::Step { what: format!("set the working directory to '{path}'"), source };
                let env = [("FK_OWNER", context.user()), ("FK_PATH", &path)];
                shell.script(Script::Workdir, "root", &env).await.map_err(failed)?;
                next.workdir = Some(path);
            }
            Self::User { name, sudo } => {
                // The guest has one group for each user, as its image says.
                let user = name.split_once(':').map_or(name.as_str(), |(user, _)| user);
                let failed = |source| BuildFailure::Step { what: format!("set the user to '{name}'"), source };
                if !valid_user(user) {
                    return Err(failed(CommandFailed::Said(format!("invalid username: '{user}'"))));
                }
                let env = [("FK_USER", user), ("FK_SUDO", if *sudo { "yes" } else { "" })];
                let said = shell.script(Script::User, "root", &env).await.map_err(failed)?;
                next.user = Some(String::from_utf8_lossy(&said).into_owned());
            }
            Self::Copy { .. } => self.copy(shell, context, files, disk_bytes).await?,
        }
        Ok(next)
    }

    async fn copy(&self, shell: &Shell<'_>, context: &Defaults, files: &Files, disk_bytes: u64) -> Result<(), BuildFailure> {
        let Self::Copy { src, dest, owner, mode, hash } = self else { return Ok(()) };
        let failed = |source| BuildFailure::Copy { src: src.clone(), source };
        let hash = hash.as_ref().ok_or_else(|| failed(CopyError::NoHash))?;
        let found = files.get(hash).map_err(|error| failed(CopyError::Hash(error)))?;
        let archive = found.ok_or_else(|| failed(CopyError::Absent))?;
        let pattern = src.clone();
        let survey = blocking(move || copy::survey(archive, &pattern, disk_bytes)).await.map_err(failed)?;
        let dest = expand(shell, context, dest).await?;
        let directory = if survey.wants_directory(&dest) { "yes" } else { "" };
        let path = clean(&context.absolute(&dest));
        let owner = owner.as_deref().unwrap_or(context.user());
        let env = [("FK_OWNER", owner), ("FK_PATH", &path), ("FK_DIRECTORY", directory)];
        let step = |what: String| move |source| BuildFailure::Step { what, source };
        let said = shell.script(Script::Destination, "root", &env).await.map_err(step(format!("copy to '{path}'")))?;
        let placement = placement(&path, &said, *mode)
            .ok_or_else(|| step(format!("copy to '{path}'"))(CommandFailed::Said("the guest's answer makes no sense".into())))?;
        let files = files.clone();
        let rewritten = blocking(move || {
            let mut to = files.scratch().map_err(CopyError::Write)?;
            survey.rewrite(&mut to, &placement).map(|()| to)
        });
        let rewritten = rewritten.await.map_err(failed)?;
        let archive = format!("/tmp/.firkin-copy-{}.tar", crate::ground::random::alphanumeric(12));
        shell.send(&archive, rewritten).await.map_err(BuildFailure::Transfer)?;
        let unpacked = shell.script(Script::Unpack, "root", &[("FK_ARCHIVE", &archive)]).await;
        unpacked.map(drop).map_err(step(format!("unpack '{src}' at '{path}'")))
    }
}

/// What the guest said of the destination: uid, gid, and whether it is a directory.
fn placement(path: &str, said: &[u8], mode: Option<u32>) -> Option<Placement> {
    let said = std::str::from_utf8(said).ok()?;
    let mut words = said.trim_end_matches('\n').split(' ');
    let (uid, gid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Placement { dest: PathBuf::from(path), into: words.next() == Some("yes"), uid, gid, mode })
}

/// A text with its variables replaced: those of the build, then those that a command of its user would have.
async fn expand(shell: &Shell<'_>, context: &Defaults, text: &str) -> Result<String, BuildFailure> {
    let mut unknown = context::variables(text);
    unknown.retain(|name| !context.env.contains_key(name));
    let found = if unknown.is_empty() {
        std::collections::BTreeMap::new()
    } else {
        let failed = |source| BuildFailure::Step { what: format!("replace the variables of '{text}'"), source };
        shell.variables(context, &unknown).await.map_err(failed)?
    };
    Ok(context::expand(text, |name| context.env.get(name).or_else(|| found.get(name)).cloned()))
}

/// An absolute path without `.`, `..`, doubled and trailing slashes.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A name as `useradd` takes it, or a number.
fn valid_user(name: &str) -> bool {
    let number = name.bytes().all(|b| b.is_ascii_digit());
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let all = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (1..=MAX_USER_BYTES).contains(&name.len()) && (number || (first && all))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(kind: &str, args: &[&str]) -> Result<Step, BuildFailure> {
        Step::parse(&StepSpec {
            kind: kind.to_owned(),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            ..StepSpec::default()
        })
    }

    #[test]
    fn every_kind_is_understood_and_nonsense_is_told() {
        assert_eq!(parse("run", &["ls", ""]).unwrap(), Step::Run { command: "ls".into(), user: None });
        assert_eq!(parse("RUN", &["ls", "root"]).unwrap(), Step::Run { command: "ls".into(), user: Some("root".into()) });
        let copy = Step::Copy { src: "a".into(), dest: "b".into(), owner: None, mode: Some(0o755), hash: None };
        assert_eq!(parse("ADD", &["a", "b", "", "0755"]).unwrap(), copy);
        assert_eq!(parse("USER", &["x", "true"]).unwrap(), Step::User { name: "x".into(), sudo: true });
        assert_eq!(parse("ARG", &["A", "1"]).unwrap(), Step::Env(vec![("A".into(), "1".into())]));
        assert_eq!(parse("ARG", &["A"]).unwrap(), Step::Env(Vec::new()));
        // The old form of a variable, as PyPI's `e2b` takes it apart, and several on a line.
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(parse("ENV", &["OLD", "a b c"]).unwrap(), Step::Env(vec![pair("OLD", "a b c")]));
        assert_eq!(parse("ENV", &["A", "1", "B", "two words"]).unwrap(), Step::Env(vec![pair("A", "1"), pair("B", "two words")]));
        let listed = Step::Run { command: "'echo' 'a b'".into(), user: None };
        assert_eq!(parse("RUN", &[r#"["echo", "a b"]"#]).unwrap(), listed);
        for (kind, args) in [
            ("RUN", &[][..]),
            ("COPY", &["a"]),
            ("COPY", &["a", "b", "", "rwx"]),
            ("WORKDIR", &[""]),
            ("USER", &[]),
            ("ENV", &["A"]),
            ("ENV", &["", "x"]),
            ("RUN", &["a\0b"]),
            ("EXPOSE", &["80"]),
        ] {
            assert!(parse(kind, args).is_err(), "{kind} {args:?}");
        }
    }

    #[test]
    fn users_and_paths_are_checked() {
        assert!(valid_user("user") && valid_user("www-data") && valid_user("1000"));
        for bad in ["", "; exit 1", "a b", "-x", "1a", &"x".repeat(33)] {
            assert!(!valid_user(bad), "{bad:?}");
        }
        assert_eq!(clean("/a//./b/../c/"), "/a/c");
        assert_eq!(clean("/../.."), "/");
        let placed = placement("/x", b"1000 1001 yes", None).unwrap();
        assert_eq!((placed.uid, placed.gid, placed.into), (1000, 1001, true));
        assert!(!placement("/x", b"0 0 ", None).unwrap().into && placement("/x", b"no", None).is_none());
    }

    proptest! {
        #[test]
        fn no_step_makes_it_stumble(kind in "[A-Za-z]{0,8}", args in proptest::collection::vec("\\PC{0,12}", 0..6)) {
            let spec = StepSpec { kind, args, ..StepSpec::default() };
            drop(Step::parse(&spec));
            title(&spec);
        }
    }
}
