//! Signals that ask a process to end, taken by a thread that waits for them.
//!
//! The signals are blocked in all threads but that one, and in all programs that are started from then on: the standard library
//! hands its mask on. So this is for the keeper of a run (`household.rs`), which starts nothing more.

use std::thread;

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};

/// The signals that mean it: a terminal's Ctrl-C, and what everybody else sends.
pub(crate) const ASKED_TO_END: [Signal; 2] = [Signal::SIGINT, Signal::SIGTERM];

/// Blocks these signals in this thread and those that it starts, and calls `act` with each one that comes.
pub(crate) fn on_each(signals: &[Signal], mut act: impl FnMut(Signal) + Send + 'static) -> anyhow::Result<()> {
    let set: SigSet = signals.iter().copied().collect();
    set.thread_block().context("cannot block signals")?;
    // Not joined: it waits for as long as the process lives.
    thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            act(signal);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader, Read as _},
        process::{Command, Stdio},
        sync::mpsc,
        time::Duration,
    };

    use nix::{sys::signal::kill, unistd::Pid};

    use super::*;
    use crate::run::say;

    /// Tells the test that it is the process which gets the signal.
    const WAITS: &str = "FIRKIN_TEST_WAITS";
    /// How it says that it is ready.
    const READY: &str = "waiting for a signal";

    #[test]
    fn a_signal_is_told_and_ends_nothing() {
        // The harness has threads that were there before anybody could block a signal: only a mask that is inherited holds for all.
        let mut command = Command::new("env");
        command.arg("--block-signal=USR1").arg(std::env::current_exe().unwrap());
        command.args(["--exact", "interrupt::tests::waits_for_a_signal", "--nocapture"]).env(WAITS, "1");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut said, mut output) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
        while !said.contains(READY) {
            assert!(output.read_line(&mut said).unwrap() > 0, "{said}");
        }
        kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGUSR1).unwrap();
        output.read_to_string(&mut said).unwrap();
        assert!(child.wait().unwrap().success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    fn waits_for_a_signal() {
        if std::env::var_os(WAITS).is_none() {
            return;
        }
        let (tell, told) = mpsc::channel();
        on_each(&[Signal::SIGUSR1], move |signal| tell.send(signal).unwrap()).unwrap();
        say(READY);
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(Signal::SIGUSR1));
    }
}
