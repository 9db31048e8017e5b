//! The languages that have a kernel, by the names that the contract knows.

use std::collections::BTreeMap;

use crate::envd::find;

/// A language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    /// The default.
    Python,
    /// Node.
    JavaScript,
    /// Node, once the types are removed.
    TypeScript,
    /// Bash.
    Bash,
    /// R.
    R,
    /// Java.
    Java,
}

/// There is no kernel for it.
#[derive(Debug, thiserror::Error)]
#[error("cannot run `{asked}`: this sandbox has kernels for {there}")]
pub(super) struct UnknownLanguage {
    asked: String,
    there: String,
}

impl Language {
    const ALL: [Self; 6] = [Self::Python, Self::JavaScript, Self::TypeScript, Self::Bash, Self::R, Self::Java];

    /// The language of a name; none names Python. With the sandbox's variables: what its template was built without is unknown.
    pub(super) fn named(name: Option<&str>, env: &BTreeMap<String, String>) -> Result<Self, UnknownLanguage> {
        let asked = name.unwrap_or_default().trim().to_ascii_lowercase();
        Self::of(&asked).filter(|language| language.is_installed(env)).ok_or_else(|| {
            let there: Vec<&str> = Self::ALL.into_iter().filter(|one| one.is_installed(env)).map(Self::name).collect();
            UnknownLanguage { asked, there: there.join(", ") }
        })
    }

    fn of(name: &str) -> Option<Self> {
        match name {
            "" | "python" | "python3" => Some(Self::Python),
            "javascript" | "js" => Some(Self::JavaScript),
            "typescript" | "ts" => Some(Self::TypeScript),
            "bash" => Some(Self::Bash),
            "r" => Some(Self::R),
            "java" => Some(Self::Java),
            _ => None,
        }
    }

    /// Whether the program is there that its kernel drives. All kernels need Python.
    pub(super) fn is_installed(self, env: &BTreeMap<String, String>) -> bool {
        let program = match self {
            Self::Python => return true,
            Self::JavaScript | Self::TypeScript => "node",
            Self::Bash => "bash",
            Self::R => "R",
            // Its shell is part of the development kit, which also has this.
            Self::Java => "javac",
        };
        find(program, env.get("PATH")).is_ok()
    }

    /// Its full name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::TypeScript => "typescript",
            Self::Bash => "bash",
            Self::R => "r",
            Self::Java => "java",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_short_names_are_known_and_others_are_named_in_the_refusal() {
        for (name, language) in [("", "python"), ("js", "javascript"), ("ts", "typescript"), ("bash", "bash"), ("r", "r")] {
            assert_eq!(Language::of(name).unwrap().name(), language);
        }
        let here = BTreeMap::new();
        assert_eq!(Language::named(None, &here).unwrap(), Language::Python);
        assert_eq!(Language::named(Some(" BASH "), &here).unwrap(), Language::Bash);
        assert!(Language::named(Some("cobol"), &here).unwrap_err().to_string().contains("`cobol`"));
    }

    #[test]
    fn what_is_not_installed_has_no_kernel() {
        let nothing = BTreeMap::from([("PATH".to_owned(), "/nowhere".to_owned())]);
        let refused = Language::named(Some("R"), &nothing).unwrap_err();
        assert_eq!(refused.to_string(), "cannot run `r`: this sandbox has kernels for python");
    }
}
