//! Ctrl-C, for commands that go on until somebody has seen enough.
//!
//! It is listened for from the first question on. A command that listens only while it waits loses one that comes while it prints, and goes
//! on for ever, since whoever has listened once is not ended by the signal itself.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Interrupts since the first time that somebody asked for them.
#[derive(Debug, Default)]
pub(crate) struct Interrupts(Option<Signal>);

impl Interrupts {
    /// Ends once there has been one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> anyhow::Result<()> {
        let signal = match &mut self.0 {
            Some(signal) => signal,
            none => none.insert(signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?),
        };
        signal.recv().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future as _, pin::pin, task::Poll, time::Duration};

    use super::*;

    #[tokio::test]
    async fn one_that_comes_while_nobody_waits_counts() {
        let mut interrupts = Interrupts::default();
        // Asked once, and left for something else.
        std::future::poll_fn(|context| {
            assert!(pin!(interrupts.next()).poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT).unwrap();
        tokio::time::timeout(Duration::from_secs(60), interrupts.next()).await.unwrap().unwrap();
    }
}
