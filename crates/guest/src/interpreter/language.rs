//! The languages that have a kernel, by the names that the contract knows.

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
#[error("cannot run `{0}`: this sandbox has kernels for python, javascript, typescript, bash, r and java")]
pub(super) struct UnknownLanguage(String);

impl Language {
    /// The language of a name; none names Python.
    pub(super) fn named(name: Option<&str>) -> Result<Self, UnknownLanguage> {
        let name = name.unwrap_or_default().trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "python" | "python3" => Ok(Self::Python),
            "javascript" | "js" => Ok(Self::JavaScript),
            "typescript" | "ts" => Ok(Self::TypeScript),
            "bash" => Ok(Self::Bash),
            "r" => Ok(Self::R),
            "java" => Ok(Self::Java),
            _ => Err(UnknownLanguage(name)),
        }
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
        for (name, language) in [("", "python"), ("JS", "javascript"), (" ts ", "typescript"), ("bash", "bash"), ("R", "r")] {
            assert_eq!(Language::named(Some(name)).unwrap().name(), language);
        }
        assert_eq!(Language::named(None).unwrap(), Language::Python);
        assert!(Language::named(Some("cobol")).unwrap_err().to_string().contains("`cobol`"));
    }
}
