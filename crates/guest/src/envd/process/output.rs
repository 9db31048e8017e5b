//! Output of one command, handed to any number of subscribers without loss and in bounded memory.
//!
//! Every subscriber has a bounded queue. When one is full the command's output waits, and with it the command, as it would in
//! front of a slow terminal. A subscriber that holds back *others* for too long is cut, and is told so: it never misses bytes
//! silently. With no subscriber output is discarded, because a later one is promised only what comes after it attached.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{
    mpsc::{self, error::SendTimeoutError},
    watch,
};

/// Chunks that wait for one subscriber: with 32 KiB chunks at most 512 KiB.
const QUEUE_CHUNKS: usize = 16;

/// How long one subscriber may hold back the others.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// From standard output.
    Stdout(Bytes),
    /// From standard error.
    Stderr(Bytes),
    /// From the terminal.
    Pty(Bytes),
}

/// How a command ended, in the contract's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Exit code; -1 for a signal.
    pub(crate) exit_code: i32,
    /// Whether it exited by itself.
    pub(crate) exited: bool,
    /// In words, e.g. `exit status 1` or `signal: killed`.
    pub(crate) status: String,
    /// The same, when it was not a success.
    pub(crate) error: Option<String>,
    /// Whether its time limit ended it.
    pub(crate) timed_out: bool,
}

/// The sending side.
#[derive(Debug)]
pub(crate) struct Output {
    /// `None` once the command has ended.
    subscribers: Mutex<Option<Vec<Subscriber>>>,
    end: watch::Sender<Option<Arc<End>>>,
}

#[derive(Debug, Clone)]
struct Subscriber {
    queue: mpsc::Sender<Chunk>,
    /// Set when it misses output, which it must then be told.
    cut: Arc<AtomicBool>,
}

/// The receiving side. Dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct Subscription {
    chunks: mpsc::Receiver<Chunk>,
    cut: Arc<AtomicBool>,
    end: watch::Receiver<Option<Arc<End>>>,
}

/// The next thing that a subscriber gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// More output.
    Chunk(Chunk),
    /// The command has ended; nothing follows.
    End(Arc<End>),
    /// The subscriber held back others and was cut.
    Cut,
}

impl Output {
    pub(crate) fn new() -> Self {
        Self { subscribers: Mutex::new(Some(Vec::new())), end: watch::Sender::new(None) }
    }

    fn subscribers(&self) -> MutexGuard<'_, Option<Vec<Subscriber>>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Output from now on, then the end.
    pub(crate) fn subscribe(&self) -> Subscription {
        let (queue, chunks) = mpsc::channel(QUEUE_CHUNKS);
        let cut = Arc::new(AtomicBool::new(false));
        if let Some(subscribers) = self.subscribers().as_mut() {
            subscribers.push(Subscriber { queue, cut: Arc::clone(&cut) });
        }
        Subscription { chunks, cut, end: self.end.subscribe() }
    }

    /// Hands a chunk to every subscriber; returns when all have taken it, have gone or were cut.
    pub(crate) async fn publish(&self, chunk: Chunk) {
        let current = self.subscribers().clone().unwrap_or_default();
        for subscriber in current {
            if !self.deliver(&subscriber, chunk.clone()).await
                && let Some(subscribers) = self.subscribers().as_mut()
            {
                subscribers.retain(|other| !other.queue.same_channel(&subscriber.queue));
            }
        }
    }

    /// Whether the subscriber took the chunk; one that is alone is waited for as long as it takes.
    async fn deliver(&self, subscriber: &Subscriber, mut chunk: Chunk) -> bool {
        loop {
            match subscriber.queue.send_timeout(chunk, STALL_LIMIT).await {
                Ok(()) => return true,
                Err(SendTimeoutError::Closed(_)) => return false,
                Err(SendTimeoutError::Timeout(back)) => chunk = back,
            }
            if self.subscribers().as_ref().is_some_and(|all| all.len() > 1) {
                subscriber.cut.store(true, Ordering::Release);
                return false;
            }
        }
    }

    /// Says how the command ended. All output must have been published.
    pub(crate) fn finish(&self, end: End) {
        self.end.send_replace(Some(Arc::new(end)));
        // Closing the queues makes subscribers look for the end, after what is still queued.
        self.subscribers().take();
    }

    /// How the command ended, once it has.
    pub(crate) fn ended(&self) -> Option<Arc<End>> {
        self.end.borrow().clone()
    }
}

impl Subscription {
    /// The next thing; never returns after the end.
    pub(crate) async fn next(&mut self) -> Next {
        match self.chunks.recv().await {
            Some(chunk) => Next::Chunk(chunk),
            None if self.cut.load(Ordering::Acquire) => Next::Cut,
            None => self.end.borrow().clone().map_or(Next::Cut, Next::End),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end() -> End {
        End { exit_code: 0, exited: true, status: "exit status 0".to_owned(), error: None, timed_out: false }
    }

    #[tokio::test]
    async fn every_subscriber_sees_what_follows_its_start_and_the_end() {
        let output = Output::new();
        output.publish(Chunk::Stdout(Bytes::from_static(b"lost"))).await;
        let mut first = output.subscribe();
        output.publish(Chunk::Stdout(Bytes::from_static(b"a"))).await;
        let mut second = output.subscribe();
        output.publish(Chunk::Stderr(Bytes::from_static(b"b"))).await;
        output.finish(end());
        assert_eq!(first.next().await, Next::Chunk(Chunk::Stdout(Bytes::from_static(b"a"))));
        assert_eq!(first.next().await, Next::Chunk(Chunk::Stderr(Bytes::from_static(b"b"))));
        assert_eq!(first.next().await, Next::End(Arc::new(end())));
        assert_eq!(second.next().await, Next::Chunk(Chunk::Stderr(Bytes::from_static(b"b"))));
        assert_eq!(second.next().await, Next::End(Arc::new(end())));
        assert_eq!(output.subscribe().next().await, Next::End(Arc::new(end())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_subscriber_that_stalls_others_is_cut_and_told() {
        let output = Output::new();
        let mut slow = output.subscribe();
        let mut fast = output.subscribe();
        let publish = async {
            for n in 0..=u8::try_from(QUEUE_CHUNKS).unwrap() {
                output.publish(Chunk::Stdout(Bytes::copy_from_slice(&[n]))).await;
            }
            output.finish(end());
        };
        let read = async {
            let mut seen = 0;
            while let Next::Chunk(_) = fast.next().await {
                seen += 1;
            }
            seen
        };
        let ((), seen) = tokio::join!(publish, read);
        assert_eq!(seen, QUEUE_CHUNKS + 1);
        for _ in 0..QUEUE_CHUNKS {
            assert!(matches!(slow.next().await, Next::Chunk(_)));
        }
        assert_eq!(slow.next().await, Next::Cut);
    }
}
