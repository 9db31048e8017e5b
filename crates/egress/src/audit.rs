//! What was tried and what became of it, as a stream that anybody may read.
//!
//! Decisions are never held up by who reads of them: the stream keeps a bounded number, and a reader that is slower than that
//! is told how many it has missed.

use std::{net::Ipv4Addr, sync::Arc, time::SystemTime};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use crate::{decision::Decision, name::HostName};

/// Decisions that are kept for slow readers: some seconds of a busy client, and less than a MiB.
const KEPT: usize = 1024;

/// One attempt, and what was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// When it was decided.
    pub at: SystemTime,
    /// What was tried.
    pub kind: AttemptKind,
    /// The name that was asked for or connected to; `None` where there was none, or none that a name can have.
    pub name: Option<HostName>,
    /// The address that was connected to: of an allowed name, the one that was found; otherwise the one that the client meant.
    pub address: Option<Ipv4Addr>,
    /// The port that was connected to.
    pub port: Option<u16>,
    /// What became of it.
    pub decision: Decision,
}

/// What was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AttemptKind {
    /// A question to the resolver.
    Question,
    /// A connection of TCP.
    Connection,
}

/// Where decisions are told.
#[derive(Debug, Clone)]
pub struct Audit(broadcast::Sender<Arc<Attempt>>);

/// One reader of the decisions since it began.
#[derive(Debug)]
pub struct AuditReader(broadcast::Receiver<Arc<Attempt>>);

/// What a reader is told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A decision.
    Attempt(Arc<Attempt>),
    /// It was too slow, and did not get so many.
    Missed(u64),
}

impl Default for Audit {
    fn default() -> Self {
        Self(broadcast::channel(KEPT).0)
    }
}

impl Audit {
    /// Tells whoever reads.
    pub fn tell(&self, attempt: Attempt) {
        // Nobody has to read.
        drop(self.0.send(Arc::new(attempt)));
    }

    /// Reads what is decided from now on.
    pub fn read(&self) -> AuditReader {
        AuditReader(self.0.subscribe())
    }
}

impl AuditReader {
    /// The next decision; `None` when there are no more to come. Nothing is lost when it is cancelled.
    pub async fn next(&mut self) -> Option<Told> {
        match self.0.recv().await {
            Ok(attempt) => Some(Told::Attempt(attempt)),
            Err(RecvError::Lagged(missed)) => Some(Told::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    /// What was decided already.
    pub fn already(&mut self) -> Option<Told> {
        match self.0.try_recv() {
            Ok(attempt) => Some(Told::Attempt(attempt)),
            Err(TryRecvError::Lagged(missed)) => Some(Told::Missed(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::Grant;

    fn attempt(port: usize) -> Attempt {
        let (kind, decision) = (AttemptKind::Connection, Decision::Allowed(Grant::Undenied));
        Attempt { at: SystemTime::UNIX_EPOCH, kind, name: None, address: None, port: u16::try_from(port).ok(), decision }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_holds_up_nobody() {
        let audit = Audit::default();
        let (mut slow, mut quick) = (audit.read(), audit.read());
        for port in 0..KEPT + 10 {
            audit.tell(attempt(port));
            assert_eq!(quick.next().await, Some(Told::Attempt(Arc::new(attempt(port)))));
        }
        assert_eq!(slow.next().await, Some(Told::Missed(10)));
        for port in 10..KEPT + 10 {
            assert_eq!(slow.already(), Some(Told::Attempt(Arc::new(attempt(port)))));
        }
        assert_eq!(slow.already(), None);
        drop(audit);
        assert_eq!(slow.next().await, None);
    }
}
