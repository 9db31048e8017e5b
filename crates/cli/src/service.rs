//! A server as a service of systemd: the sockets that it is handed, and what it tells of itself.
//!
//! Whoever is not started by systemd is handed nothing and tells nobody: all of this is then without effect. A socket that is handed listens
//! already, and goes on listening when the server has ended: who connects between two servers waits for the second one.
//!
//! The watchdog is fed by the main loop, and each time only after the server has answered itself over its own socket. So a loop that is stuck,
//! and a server that answers nobody, both end with a restart, and machines outlive that.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Interval, MissedTickBehavior, interval, timeout},
};

/// The variable that says for whom the sockets are.
const LISTEN_PID: &str = "LISTEN_PID";

/// Between two feedings of the watchdog, as a part of what it waits: one that comes late is not the end.
const BEATS: u32 = 3;

/// The sockets that systemd handed to this process.
#[derive(Debug, Default)]
pub(crate) struct Handed(Vec<(SocketAddr, StdListener)>);

/// Why sockets were not taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandedError {
    /// It is not one that a server listens on.
    #[error("cannot use the socket {index} that systemd handed over")]
    Socket {
        /// Which, from 0 on.
        index: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Handed {
    /// Those of this process. To be called while it has one thread, and before it opens anything.
    pub(crate) fn of_process() -> Result<Self, HandedError> {
        // Whatever is said in the name of another process was inherited by mistake.
        if std::env::var(LISTEN_PID).ok().and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
            return Ok(Self::default());
        }
        let mut sockets = ListenFd::from_env();
        let taken = (0..sockets.len()).map(|index| {
            let failed = |source| HandedError::Socket { index, source };
            let none = || failed(io::Error::from(io::ErrorKind::NotFound));
            let listener = sockets.take_tcp_listener(index).map_err(failed)?.ok_or_else(none)?;
            listener.set_nonblocking(true).map_err(failed)?;
            Ok((listener.local_addr().map_err(failed)?, listener))
        });
        taken.collect::<Result<_, _>>().map(Self)
    }

    /// Where they listen.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(|(address, _)| *address).collect()
    }

    /// The one at this address, if there is one. It is then somebody's.
    pub(crate) fn take(&mut self, address: SocketAddr) -> Option<StdListener> {
        let at = self.0.iter().position(|(found, _)| *found == address)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// Where clients come in.
#[derive(Debug)]
pub(crate) enum Door {
    /// An address of our own. Until it listens, clients are refused rather than kept waiting.
    Taken(TcpSocket),
    /// An address of our own that nobody else is to have: clients wait.
    Listening(TcpListener),
    /// A socket of systemd's, where clients wait already.
    Handed(StdListener),
}

impl Door {
    /// Opens it.
    pub(crate) fn listen(self, backlog: u32) -> io::Result<TcpListener> {
        match self {
            Self::Taken(socket) => socket.listen(backlog),
            Self::Listening(listener) => Ok(listener),
            Self::Handed(listener) => TcpListener::from_std(listener),
        }
    }
}

/// Tells systemd. Where nobody listens to it, that is said and nothing else comes of it.
pub(crate) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd how this server is");
    }
}

/// What is fed while the server answers.
pub(crate) struct Watchdog {
    asked: Option<Asked>,
}

struct Asked {
    turns: Interval,
    patience: Duration,
    client: Client<HttpConnector, Empty<Bytes>>,
    health: http::Uri,
}

impl Watchdog {
    /// The watchdog of this process, if it has one. `url` is where the server answers.
    pub(crate) fn of_process(url: &str) -> Self {
        let health = format!("{url}/health").parse();
        let asked = sd_notify::watchdog_enabled().zip(health.ok()).map(|(waits, health)| {
            let every = waits / BEATS;
            let mut turns = interval(every);
            turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Asked { turns, patience: every, client: Client::builder(TokioExecutor::new()).build_http(), health }
        });
        Self { asked }
    }

    /// Feeds it once, when its time has come and if the server answers; never ends where there is none.
    pub(crate) async fn beat(&mut self) {
        let Some(asked) = &mut self.asked else { return std::future::pending().await };
        asked.turns.tick().await;
        if asked.answered().await {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the server does not answer itself: its watchdog is not fed");
        }
    }
}

impl Asked {
    /// Whether the server answers. One that hangs up at its door has as many connections as it may have, and serves them.
    async fn answered(&self) -> bool {
        match timeout(self.patience, self.client.get(self.health.clone())).await {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !error.is_connect(),
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(url: &str, patience: Duration) -> Asked {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Asked { turns: interval(patience), patience, client, health: format!("{url}/health").parse().unwrap() }
    }

    #[tokio::test]
    async fn a_server_that_takes_connections_and_answers_none_is_no_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let long = Duration::from_secs(30);
        assert!(!asked(&url, Duration::from_millis(300)).answered().await, "nobody accepts");
        let hangs_up = tokio::spawn(async move {
            loop {
                drop(listener.accept().await.unwrap());
            }
        });
        assert!(asked(&url, long).answered().await, "its door is full");
        hangs_up.abort();
        // A port that is somebody's and where nobody listens: one that was given back might be another test's by now.
        let gone = TcpSocket::new_v4().unwrap();
        gone.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", gone.local_addr().unwrap());
        assert!(!asked(&url, long).answered().await, "it is gone");
    }

    #[test]
    fn a_socket_is_found_by_its_address_and_given_once() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut handed = Handed(vec![(address, listener)]);
        assert_eq!(handed.addresses(), [address]);
        assert!(handed.take("127.0.0.1:1".parse().unwrap()).is_none());
        assert!(handed.take(address).is_some() && handed.take(address).is_none());
    }
}
