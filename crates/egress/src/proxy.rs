//! Connections of TCP, taken in the place of the servers that they are meant for.
//!
//! A client believes that it speaks to the address that it connected to. The proxy hears what it calls its host, decides, finds the
//! address of an allowed name itself, looks at it, and connects there. So a name that does not fit the address leads to the host of
//! the name, and an address that fits no rule leads nowhere. Where a server sends clients on (redirects) is a new connection to us.
//!
//! When the way out changes, connections that it would not make so again are cut at once; the others are kept.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

mod made;
mod refuse;

use made::{Basis, Made, NotMade, make};
use refuse::refuse;

use crate::{
    audit::{Attempt, AttemptKind, Audit},
    decision::{Decision, Refusal},
    dial::Connection,
    name::HostName,
    relay::{Ended, relay},
    sniff::{Greeting, Protocol, greeting},
    terminate::{Between, Sides, terminate},
    way::{Listening, Way, Ways},
};

/// What is waited after the listener has failed to accept: such as for descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the address decides, and a name is asked for only to put something in: who has said nothing by then waits for the server to
/// speak first.
const SILENCE: Duration = Duration::from_secs(1);

/// Where a connection was meant to go, before it was led here.
pub trait Origin: Send + Sync {
    /// The address and port that the client connected to.
    fn origin(&self, client: &TcpStream) -> io::Result<SocketAddrV4>;
}

/// What one network may take up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// How long a client may take to name its host.
    pub greeting: Duration,
    /// How long one address may take to be connected to.
    pub dial: Duration,
    /// How long nothing may come from either side.
    pub idle: Duration,
}

/// Connects for one network.
pub struct Proxy {
    ways: Ways,
    audit: Audit,
    limits: Limits,
    places: Arc<Semaphore>,
    of_all: Option<Arc<Semaphore>>,
}

impl Default for Limits {
    /// Browsers and package managers stay below a hundred connections. Programs name their hosts at once, and databases and shells
    /// send something each hour.
    fn default() -> Self {
        let (greeting, dial) = (Duration::from_secs(10), Duration::from_secs(10));
        Self { connections: 512, greeting, dial, idle: Duration::from_secs(2 * 60 * 60) }
    }
}

impl Proxy {
    /// Connects by the way that `ways` tells at the time, and tells `audit` what it decided.
    pub fn new(ways: Ways, audit: Audit, limits: Limits) -> Self {
        Self { ways, audit, limits, places: Arc::new(Semaphore::new(limits.connections)), of_all: None }
    }

    /// The same, with a place of these for each connection too, which proxies of other networks share. It must never be closed.
    #[must_use]
    pub fn among(self, places: Arc<Semaphore>) -> Self {
        Self { of_all: Some(places), ..self }
    }

    /// Connections at the moment.
    pub fn connections(&self) -> usize {
        self.limits.connections - self.places.available_permits()
    }

    /// Takes connections. It does not return; all that it took are cut when this is dropped.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, origin: impl Origin) {
        let mut tasks = JoinSet::new();
        loop {
            let place = Arc::clone(&self.places).acquire_owned().await.expect("nobody closes it");
            while tasks.try_join_next().is_some() {}
            let origin_of = |client: TcpStream| {
                let meant = client.set_nodelay(true).and_then(|()| origin.origin(&client));
                meant.map(|meant| (meant, client))
            };
            match listener.accept().await.map(|(client, _)| origin_of(client)) {
                Ok(Ok((meant, client))) => {
                    // Only now: who has no client holds none of what all have together.
                    let of_all = match &self.of_all {
                        Some(places) => Some(Arc::clone(places).acquire_owned().await.expect("nobody closes it")),
                        None => None,
                    };
                    let proxy = Arc::clone(self);
                    tasks.spawn(async move {
                        proxy.connection(client, meant).await;
                        drop((place, of_all));
                    });
                }
                // Of this client alone: one that has gone, or that came by itself and was not led here.
                Ok(Err(error)) => tracing::debug!(%error, "cannot tell where a connection was meant to go"),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    drop(place);
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connection(&self, mut client: TcpStream, meant: SocketAddrV4) {
        let listening = self.ways.borrow().listening(*meant.ip());
        let (called, protocol, bytes) = if listening == Listening::Not {
            (None, Protocol::Unknown, Vec::new())
        } else {
            let within = if listening == Listening::Briefly { SILENCE.min(self.limits.greeting) } else { self.limits.greeting };
            let Greeting { protocol, name, bytes } = greeting(&mut client, within).await;
            (Some(name), protocol, bytes)
        };
        let way = Arc::clone(&self.ways.borrow());
        match make(self, &way, called, protocol, meant).await {
            Ok(made) => self.pass(client, bytes, &way, made).await,
            Err(not) => {
                if let NotMade::Denied { name, address, refusal } = &not {
                    self.tell(name.as_ref(), *address, meant.port(), Decision::Denied(refusal.clone()));
                }
                refuse(client, protocol, &not).await;
            }
        }
    }

    /// Passes on what comes, what was heard first, for as long as the connection would be made again.
    async fn pass(&self, client: TcpStream, bytes: Vec<u8>, way: &Way, made: Made) {
        let Made { server, basis } = made;
        let cut = self.cut(&basis);
        let refusal = match basis.filled(way) {
            Some((name, sides)) => {
                let between = Between { client, bytes, host: server, name: name.clone() };
                tokio::select! { biased; refusal = cut => refusal, () = self.fill(between, sides) => return }
            }
            None => match self.relay(client, &bytes, server, cut).await {
                Some(refusal) => refusal,
                None => return,
            },
        };
        self.tell(basis.name(), Some(*basis.to.ip()), basis.to.port(), Decision::Denied(refusal));
    }

    /// Waits until a connection would not be made so again, and says why.
    async fn cut(&self, basis: &Basis) -> Refusal {
        let mut ways = self.ways.clone();
        loop {
            let way = Arc::clone(&ways.borrow_and_update());
            if let Err(refusal) = basis.holds(&way) {
                return refusal;
            }
            if ways.changed().await.is_err() {
                // Nobody is left who could change it.
                return std::future::pending().await;
            }
        }
    }

    /// Passes bytes on, unless `cut` says that they may not be any more.
    async fn relay(
        &self,
        mut client: TcpStream,
        bytes: &[u8],
        mut server: Box<dyn Connection>,
        cut: impl Future<Output = Refusal>,
    ) -> Option<Refusal> {
        let passing = async {
            match timeout(self.limits.dial, server.write_all(bytes)).await {
                Ok(Ok(())) => relay(&mut client, &mut *server, self.limits.idle).await,
                Ok(Err(_)) | Err(_) => Ended::Failed,
            }
        };
        let ended = tokio::select! { biased; refusal = cut => Err(refusal), ended = passing => Ok(ended) };
        // What did not end by itself must not look as if it had: to a client, a body that is cut off would be a whole one.
        if !matches!(ended, Ok(Ended::Closed))
            && let Err(error) = client.set_zero_linger()
        {
            tracing::debug!(%error, "cannot reset a connection");
        }
        ended.err()
    }

    /// Passes requests on, with what is put into them. TLS tells its client itself what was cut off.
    async fn fill(&self, between: Between, sides: &Sides) {
        let (name, ways) = (between.name.clone(), self.ways.clone());
        let current = Box::new(move || ways.borrow().termination.clone());
        // Only connections that need it carry what TLS on both sides takes.
        let passing = Box::pin(terminate(between, sides, current, self.limits.dial, self.limits.idle));
        if let Err(error) = passing.await {
            tracing::debug!(%name, error = &error as &dyn std::error::Error, "a connection in which headers are put in has failed");
        }
    }

    fn tell(&self, name: Option<&HostName>, address: Option<Ipv4Addr>, port: u16, decision: Decision) {
        let (kind, name, port) = (AttemptKind::Connection, name.cloned(), Some(port));
        self.audit.tell(Attempt { at: SystemTime::now(), kind, name, address, port, decision });
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("limits", &self.limits).field("connections", &self.connections()).finish_non_exhaustive()
    }
}
