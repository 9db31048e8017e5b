//! Who listens to machines, outside of all hosts.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;

use crate::{record::Heard, world::SINK};

const PORT: u16 = 9999;

/// A word is shorter.
const MOST_BYTES: usize = 16 << 10;

/// Where it listens.
pub(crate) fn address() -> SocketAddr {
    (SINK, PORT).into()
}

/// The log of what was heard.
#[derive(Debug)]
pub(crate) struct Sink {
    heard: Arc<Mutex<Vec<Heard>>>,
    is_over: Arc<AtomicBool>,
    listening: JoinHandle<()>,
}

impl Sink {
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(address()).context("the sink cannot listen")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (heard, is_over) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, over) = (Arc::clone(&heard), Arc::clone(&is_over));
        let listening = std::thread::spawn(move || {
            let mut bytes = vec![0; MOST_BYTES];
            while !over.load(Ordering::SeqCst) {
                let Ok((length, _)) = socket.recv_from(&mut bytes) else { continue };
                if let Ok(word) = serde_json::from_slice(&bytes[..length]) {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(word);
                }
            }
        });
        Ok(Self { heard, is_over, listening })
    }

    /// When something was heard last that is as wanted.
    pub(crate) fn last(&self, wanted: impl Fn(&Heard) -> bool) -> Option<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).iter().rev().find(|word| wanted(word)).cloned()
    }

    /// All that was heard, in the order of when it was so.
    pub(crate) fn close(self) -> Vec<Heard> {
        self.is_over.store(true, Ordering::SeqCst);
        drop(self.listening.join());
        let mut heard = std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner));
        heard.sort_by_key(|word| word.at);
        heard
    }
}
