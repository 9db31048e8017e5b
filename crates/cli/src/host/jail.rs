//! What of the machines' jail this host lacks, in words.

use firkin_engine::Safeguard;

use crate::{args::JailChoice, failure::Advise as _};

/// What helps.
pub(crate) const HINT: &str = "run it outside of the container on Linux 6.1 or newer; `--jail best` does without what is missing";

/// Nothing is served, because all of it was demanded.
#[derive(Debug, thiserror::Error)]
#[error("cannot jail machines: this host lacks {parts}")]
struct Incomplete {
    parts: String,
}

/// How the jail stands, if that is good enough.
pub(crate) fn accepted(safeguards: &[Safeguard], choice: JailChoice) -> anyhow::Result<String> {
    match (lacking(safeguards), choice) {
        (None, _) => Ok("the machines' jail: all of it".to_owned()),
        (Some(parts), JailChoice::Best) => Ok(format!("the machines' jail lacks {parts}")),
        (Some(parts), JailChoice::Strict) => Err(Incomplete { parts }).hint(HINT),
    }
}

/// What is missing and why, in one line.
pub(crate) fn lacking(safeguards: &[Safeguard]) -> Option<String> {
    let told = safeguards.iter().filter_map(|one| Some(format!("{} ({})", one.name, one.lacking.as_ref()?)));
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| told.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_reason() {
        let part = |name: &str, lacking: Option<&str>| Safeguard { name: name.into(), lacking: lacking.map(str::to_owned) };
        assert_eq!(lacking(&[part("landlock", None)]), None);
        let some = [part("a", Some("no such call")), part("b", None), part("c", Some("it needs a"))];
        assert_eq!(lacking(&some).unwrap(), "a (no such call), c (it needs a)");
    }

    #[test]
    fn strict_takes_all_or_nothing() {
        let part = |lacking: Option<&str>| [Safeguard { name: "landlock".into(), lacking: lacking.map(str::to_owned) }];
        accepted(&part(None), JailChoice::Strict).unwrap();
        assert_eq!(accepted(&part(Some("no call")), JailChoice::Best).unwrap(), "the machines' jail lacks landlock (no call)");
        let refused = accepted(&part(Some("no call")), JailChoice::Strict).unwrap_err();
        assert_eq!(refused.to_string(), "cannot jail machines: this host lacks landlock (no call)");
    }
}
