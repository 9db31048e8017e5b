//! The log's filter, changed while the server runs: who is called at three in the morning wants more of it, and no restart.

use std::{fmt, sync::Arc};

/// The longest filter, bytes.
pub(crate) const MAX_FILTER_BYTES: usize = 1024;

/// Why a filter was not put in force.
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// It is none.
    #[error("`filter` is none")]
    Invalid(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The log does not take it.
    #[error("what is logged cannot be changed")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
}

type Change = dyn Fn(Option<&str>) -> Result<String, LogFilterError> + Send + Sync;

/// Changes what is logged. Whoever set logging up knows how.
#[derive(Clone)]
pub struct LogControl(Arc<Change>);

impl LogControl {
    /// `change` puts a filter in force, if it is given one, and tells the one that is; or why it is none.
    pub fn new(change: impl Fn(Option<&str>) -> Result<String, LogFilterError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(change))
    }

    /// Puts a filter in force, or only looks.
    pub(crate) fn filter(&self, filter: Option<&str>) -> Result<String, LogFilterError> {
        (self.0)(filter)
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").finish_non_exhaustive()
    }
}
