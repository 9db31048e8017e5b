//! What a store lets us in by: `AWS_…` variables, of the environment or of a file. Never shown, whoever asks for it.

use std::{collections::BTreeMap, fmt};

use zeroize::Zeroizing;

/// What every one of these variables begins with.
const PREFIX: &str = "AWS_";

/// Variables by which a store is reached: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`,
/// `AWS_ENDPOINT_URL`, and what else a client of S3 takes.
#[derive(Clone, Default)]
pub struct Access(BTreeMap<String, Zeroizing<String>>);

/// A text is not one of variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not `AWS_NAME=value`")]
pub struct AccessError {
    /// From 1.
    pub line: usize,
}

impl Access {
    /// Those of these variables that are for a store.
    pub fn of(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
        Self(ours.map(|(name, value)| (name, Zeroizing::new(value))).collect())
    }

    /// Those of a text with lines `AWS_NAME=value`. Empty lines and those that begin with `#` say nothing.
    pub fn parse(text: &str) -> Result<Self, AccessError> {
        let mut variables = BTreeMap::new();
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, said)| !said.is_empty() && !said.starts_with('#'));
        for (line, said) in lines {
            let variable = said.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let (name, value) = variable.filter(|(name, _)| name.starts_with(PREFIX)).ok_or(AccessError { line: line + 1 })?;
            variables.insert(name.to_owned(), Zeroizing::new(value.to_owned()));
        }
        Ok(Self(variables))
    }

    /// These, with those of `other` before them.
    #[must_use]
    pub fn overridden_by(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_store_are_taken_and_not_shown() {
        let text = "# of the backups\n\nAWS_ACCESS_KEY_ID = key\nAWS_SECRET_ACCESS_KEY=hu=sh\n";
        let file = Access::parse(text).unwrap();
        let variables = [("AWS_REGION", "one"), ("AWS_ACCESS_KEY_ID", "other"), ("PATH", "/bin")];
        let both = Access::of(variables.map(|(name, value)| (name.into(), value.into()))).overridden_by(file);
        let all: Vec<_> = both.variables().collect();
        assert_eq!(all, [("AWS_ACCESS_KEY_ID", "key"), ("AWS_REGION", "one"), ("AWS_SECRET_ACCESS_KEY", "hu=sh")]);
        let shown = format!("{both:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hu=sh") && !shown.contains("\"key\""), "{shown}");
        assert_eq!(Access::parse("AWS_ACCESS_KEY_ID=key\n[default]\n").unwrap_err(), AccessError { line: 2 });
        assert!(Access::parse("AWS_ACCESS_KEY_ID").is_err());
    }
}
