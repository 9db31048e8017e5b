//! What a build says while it goes on, for those who read along and for those who come later.
//!
//! Readers go by the number of entries that they have seen, so nothing is ever taken away from the front: what is too much is
//! left out at the end, and said to be.

use std::{
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use firkin_wire::rest::LogLevel;
use jiff::Timestamp;
use tokio::sync::Notify;

use crate::store::BuildLogEntry;

/// The names of the parts of a build that are not steps.
pub(super) const BASE: &str = "base";
pub(super) const FINALIZE: &str = "finalize";

/// Text of one build's log, bytes. A verbose package installation is some hundred KiB.
const MAX_BYTES: usize = 4 << 20;

/// As much of a digest as tells states of one build apart.
const DIGEST_BYTES: usize = 16;

/// One message. Longer lines are cut.
const MAX_MESSAGE_BYTES: usize = 8 << 10;

/// The log of one build that goes on.
#[derive(Debug, Default)]
pub(crate) struct BuildLog {
    state: Mutex<State>,
    /// Told of every entry.
    grown: Notify,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<BuildLogEntry>,
    bytes: usize,
    step: String,
    /// The directory of the build's machine.
    workplace: Option<PathBuf>,
}

impl BuildLog {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each holder appends or copies, so what a panic left is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on entries belong to this step.
    pub(super) fn enter(&self, step: impl Into<String>) {
        self.state().step = step.into();
    }

    /// The step that the build is in.
    pub(super) fn step(&self) -> String {
        self.state().step.clone()
    }

    /// Its machine writes there from now on. Not told to those who read along.
    pub(super) fn work_in(&self, dir: PathBuf) {
        self.state().workplace = Some(dir);
    }

    /// Where its machine writes, or the last one did.
    pub(super) fn workplace(&self) -> Option<PathBuf> {
        self.state().workplace.clone()
    }

    pub(super) fn info(&self, message: impl AsRef<str>) {
        self.push(LogLevel::Info, message.as_ref());
    }

    /// Tells of a part of the build as the contract does: `CACHED [builder 1/2] RUN true [digest]`.
    pub(super) fn part(&self, known: bool, part: &str, title: &str, key: &str) {
        let cached = if known { "CACHED " } else { "" };
        self.info(format!("{cached}[{part}] {title} [{}]", cut(key, DIGEST_BYTES)));
    }

    pub(super) fn push(&self, level: LogLevel, message: &str) {
        let mut state = self.state();
        if state.bytes >= MAX_BYTES {
            return;
        }
        let mut message: String = cut(message, MAX_MESSAGE_BYTES).to_owned();
        state.bytes += message.len();
        if state.bytes >= MAX_BYTES {
            message = format!("the log is longer than {MAX_BYTES} bytes: the rest of it is not kept");
        }
        let step = state.step.clone();
        state.entries.push(BuildLogEntry { at: Timestamp::now(), level, step, message });
        drop(state);
        self.grown.notify_waiters();
    }

    pub(crate) fn entries(&self) -> Vec<BuildLogEntry> {
        self.state().entries.clone()
    }

    /// The entries after the first `seen`, once there are any. Cancel-safe.
    pub(crate) async fn after(&self, seen: usize) -> Vec<BuildLogEntry> {
        loop {
            // Before the look: what comes after it is not missed.
            let grown = self.grown.notified();
            let new = self.state().entries.get(seen..).unwrap_or_default().to_vec();
            if !new.is_empty() {
                return new;
            }
            grown.await;
        }
    }
}

fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Makes lines of what a command writes, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes bytes as they come; gives each line that is complete. A line that does not end is given in parts.
    pub(super) fn push(&mut self, bytes: &[u8], mut line: impl FnMut(&str)) {
        for &byte in bytes {
            if byte == b'\n' || self.pending.len() >= MAX_MESSAGE_BYTES {
                self.flush(&mut line);
            }
            if byte != b'\n' {
                self.pending.push(byte);
            }
        }
    }

    /// Gives what is left.
    pub(super) fn flush(&mut self, mut line: impl FnMut(&str)) {
        let taken = std::mem::take(&mut self.pending);
        let text = String::from_utf8_lossy(&taken);
        // A progress bar overwrites its line: what it ended with counts.
        let shown = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        if !shown.is_empty() {
            line(shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_the_pieces_are_cut() {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in ["a\nb", "c\n\n", "10%\r", "100%\r\nla", "st"] {
            lines.push(piece.as_bytes(), |line| seen.push(line.to_owned()));
        }
        lines.flush(|line| seen.push(line.to_owned()));
        assert_eq!(seen, ["a", "bc", "100%", "last"]);
    }

    #[test]
    fn a_log_has_an_end_and_says_so() {
        let log = BuildLog::default();
        log.enter("1");
        for _ in 0..MAX_BYTES / MAX_MESSAGE_BYTES + 10 {
            log.info("x".repeat(2 * MAX_MESSAGE_BYTES));
        }
        let entries = log.entries();
        assert_eq!(entries.len(), MAX_BYTES / MAX_MESSAGE_BYTES);
        assert!(entries.last().unwrap().message.contains("not kept"));
        assert!(entries.iter().all(|entry| entry.step == "1" && entry.message.len() <= MAX_MESSAGE_BYTES));
    }
}
