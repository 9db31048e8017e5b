//! This terminal, lent to a process in a sandbox: raw mode while it lasts, the size, and the way back.

use std::io::{self, Stdin};

use anyhow::Context as _;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::envd::Size;

/// The size of a terminal that tells none.
const FALLBACK: Size = Size { cols: 80, rows: 24 };

/// Raw mode of the terminal on standard input; dropping it restores the mode from before.
#[derive(Debug)]
pub(crate) struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// Every key goes to the process, Ctrl-C too.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).context("cannot read the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw).context("cannot change the terminal's mode")?;
        Ok(Self { stdin, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.stdin, OptionalActions::Now, &self.before) {
            crate::output::note(&format!("cannot restore the terminal's mode ({error}): type `reset`"));
        }
    }
}

/// The size of the terminal on standard input.
pub(crate) fn size() -> Size {
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size { cols: size.ws_col.into(), rows: size.ws_row.into() },
        Ok(_) | Err(_) => FALLBACK,
    }
}
