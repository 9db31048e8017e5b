//! How a command ends: exit statuses, and errors that tell the next step.
//!
//! A failing step knows best what the user can do about it, so it attaches a hint to the error on its way up; `main` prints the
//! chain once, then the hints.

use std::{error::Error as StdError, fmt, process::ExitCode};

/// How the program ends. Scripts may rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// 0: done.
    Success,
    /// 1: it could not be done.
    Failure,
    /// 2: the command line makes no sense.
    Usage,
    /// 3: no server answers.
    Unreachable,
    /// 4: this host lacks something.
    HostNotReady,
    /// 130: interrupted.
    Interrupted,
    /// The status of the command that ran in the sandbox.
    Command(u8),
}

impl ExitStatus {
    /// What the process ends with that was interrupted.
    pub(crate) const INTERRUPTED: u8 = 130;
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(match status {
            ExitStatus::Success => 0,
            ExitStatus::Failure => 1,
            ExitStatus::Usage => 2,
            ExitStatus::Unreachable => 3,
            ExitStatus::HostNotReady => 4,
            ExitStatus::Interrupted => ExitStatus::INTERRUPTED,
            ExitStatus::Command(code) => code,
        })
    }
}

/// An error with a next step for the user, an exit status of its own, or both.
#[derive(Debug)]
struct Advised {
    error: anyhow::Error,
    hint: Option<String>,
    status: Option<ExitStatus>,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl StdError for Advised {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// An error with advice, as far as there is any.
pub(crate) fn advised(error: impl Into<anyhow::Error>, hint: Option<String>, status: Option<ExitStatus>) -> anyhow::Error {
    Advised { error: error.into(), hint, status }.into()
}

/// Attaches advice to the error of a result.
pub(crate) trait Advise<T> {
    /// Tells the user what to do next.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
    /// Ends the program with this status if nobody handles the error.
    fn status(self, status: ExitStatus) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Advise<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| advised(error, Some(hint.into()), None))
    }

    fn status(self, status: ExitStatus) -> anyhow::Result<T> {
        self.map_err(|error| advised(error, None, Some(status)))
    }
}

/// The errors in `error`, outermost first, with the advice that each carries.
fn links(error: &anyhow::Error) -> Vec<(String, Vec<&Advised>)> {
    let mut links: Vec<(String, Vec<&Advised>)> = Vec::new();
    for cause in error.chain() {
        let mut advice = Vec::new();
        let mut inner = cause.downcast_ref::<Advised>();
        while let Some(advised) = inner {
            advice.push(advised);
            inner = advised.error.downcast_ref::<Advised>();
        }
        links.push((cause.to_string(), advice));
    }
    links
}

/// The cause of type `T`, looked for below advice too.
pub(crate) fn cause<T: StdError + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&T> {
    error.chain().find_map(|link| match link.downcast_ref::<Advised>() {
        Some(advised) => cause(&advised.error),
        None => link.downcast_ref::<T>(),
    })
}

/// The text for standard error: one line for the error, one for each cause, one for each hint.
pub(crate) fn render(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut hints = Vec::new();
    for (index, (message, advice)) in links(error).into_iter().enumerate() {
        text += if index == 0 { "error: " } else { "  cause: " };
        text += &message;
        text.push('\n');
        hints.extend(advice.into_iter().filter_map(|advised| advised.hint.as_deref()));
    }
    for hint in hints {
        text += "hint: ";
        text += hint;
        text.push('\n');
    }
    text
}

/// The status that `error` ends the program with: the outermost that was set, else [`ExitStatus::Failure`].
pub(crate) fn status_of(error: &anyhow::Error) -> ExitStatus {
    links(error).into_iter().flat_map(|(_, advice)| advice).find_map(|advised| advised.status).unwrap_or(ExitStatus::Failure)
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn an_error_prints_its_chain_once_and_then_the_hints() {
        let error = Err::<(), _>(std::io::Error::other("connection refused"))
            .context("cannot reach the server at `http://127.0.0.1:3000`")
            .hint("start it with `firkin up`")
            .status(ExitStatus::Unreachable)
            .context("cannot list sandboxes")
            .unwrap_err();
        assert_eq!(
            render(&error),
            "error: cannot list sandboxes\n  \
             cause: cannot reach the server at `http://127.0.0.1:3000`\n  \
             cause: connection refused\n\
             hint: start it with `firkin up`\n"
        );
        assert_eq!(status_of(&error), ExitStatus::Unreachable);
    }

    #[test]
    fn advice_hides_no_cause() {
        let error =
            Err::<(), _>(std::io::Error::other("gone")).context("outer").hint("a").hint("b").context("outermost").unwrap_err();
        assert!(cause::<std::io::Error>(&error).is_some());
        assert!(cause::<std::fmt::Error>(&error).is_none());
        let error = advised(std::fmt::Error, Some("a".to_owned()), None);
        assert!(cause::<std::fmt::Error>(&error).is_some());
    }

    #[test]
    fn an_error_without_advice_is_a_plain_failure() {
        let error = anyhow!("no");
        assert_eq!(render(&error), "error: no\n");
        assert_eq!(status_of(&error), ExitStatus::Failure);
    }
}
