//! What leaves a sandbox by name: who stands behind the doors of its slot, by which rules, and what he does when he falls.
//!
//! ```text
//!   guest ─ tcp ─► door ─► proxy ── name, rules, address of the name ──► slot's way out ─► host's rules ─► internet
//!         ─ dns ─► door ─► resolver ── allowed names only ──► resolvers of the host, or of the user
//! ```
//!
//! Only sandboxes with such rules have it; the others have neither doors nor tasks. It connects from inside the slot, so what is denied
//! to every guest is denied to it on the host as well, and asks resolvers from the host, as the host does.
//!
//! It ends with the link of its sandbox. When a part of it falls, all of it is begun anew; what comes to the doors until then gets
//! nowhere, since what leads there does not know whether somebody is behind them. The same holds while there is no server.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use firkin_egress::{
    Audit, Bounds, Connection, Dial, DialError, Limits, Origin, Policy, Proxy, Resolve, Resolver, Rules, RulesError, Socks,
    SocksSettings, SocksSettingsError, SocksTls, Upstream, UpstreamError, Way, Ways,
};
use firkin_network::{DoorError, Doors, EgressFilter, SlotConnector, Steering, Surroundings, original_destination};
use ipnet::Ipv4Net;
use rustix::process::{Resource, getrlimit};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::store::spec::{SocksProxy, Steered};

mod decisions;
mod filling;

use self::decisions::Decisions;
pub use self::{decisions::Decided, filling::FillingError};
pub(crate) use self::{decisions::Outcomes, filling::Filling};

/// Of the descriptors of this process, connections of all sandboxes together have two for each of one in so many: the rest is for the
/// server's own clients, and for machines.
const DESCRIPTORS_A_CONNECTION: usize = 8;
/// What one sandbox may have of them at most, as a part of all.
const SANDBOX_SHARE: usize = 8;
/// And at least: a browser's.
const MIN_CONNECTIONS: usize = 64;

/// Where resolvers are asked.
const DNS_PORT: u16 = 53;
/// What is waited before doors are opened again that could not be, or behind which somebody fell: long enough to do no harm when that
/// happens again and again, and for clients less than they wait for an answer.
const PAUSE: Duration = Duration::from_millis(200);

/// Why outbound rules with names cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// They are no rules.
    #[error("cannot keep these outbound rules")]
    Rules(#[source] RulesError),
    /// The proxy is none.
    #[error("cannot connect through this proxy")]
    Proxy(#[source] SocksSettingsError),
    /// A resolver that no sandbox may ask.
    #[error("cannot ask the resolver `{resolver}`: it is in `{net}`, which no rule opens")]
    Resolver {
        /// Its address.
        resolver: Ipv4Addr,
        /// What it is in.
        net: Ipv4Net,
    },
    /// Nothing can be put into requests.
    #[error(transparent)]
    Filling(#[from] FillingError),
    /// Names cannot be resolved here.
    #[error("cannot resolve names")]
    Upstream(#[source] UpstreamError),
    /// Nobody can stand behind the doors.
    #[error("cannot decide what leaves a sandbox")]
    Doors(#[source] DoorError),
}

impl OutboundError {
    /// Whether what was asked for is at fault.
    pub fn is_asked_for(&self) -> bool {
        match self {
            Self::Rules(_) | Self::Proxy(_) | Self::Resolver { .. } => true,
            Self::Filling(error) => error.is_asked_for(),
            Self::Upstream(_) | Self::Doors(_) => false,
        }
    }
}

/// How packets are filtered and steered by these rules.
pub(crate) fn packets(steered: &Steered) -> Result<(EgressFilter, Steering), OutboundError> {
    let rules = Rules::parse(&steered.allow, &steered.deny).map_err(OutboundError::Rules)?;
    let filter = EgressFilter { allow: rules.allowed_networks().collect(), deny: rules.denied_networks().collect() };
    Ok((filter, if steered.proxy.is_some() || !steered.filled.is_empty() { Steering::AllTcp } else { Steering::ByName }))
}

/// Refuses rules that could not be kept, before anything is made for them. Blocks, as [`way`] does.
pub(crate) fn check(steered: &Steered, surroundings: Surroundings, filling: &Arc<Filling>) -> Result<(), OutboundError> {
    let Surroundings { own, closed, opened, resolvers: of_host } = surroundings.clone();
    let bounds = Bounds { own, opened, closed };
    for resolver in steered.resolvers.iter().flatten().filter(|resolver| !of_host.contains(resolver)) {
        if let Some(net) = bounds.closing(*resolver) {
            return Err(OutboundError::Resolver { resolver: *resolver, net });
        }
    }
    way(("", steered), surroundings, Arc::new(Nowhere), filling).map(|_| ())
}

/// The way out by these rules, for a guest in these surroundings, by connections of `dialer`. Blocks for the host's authorities where
/// those are believed. Must be called inside a tokio runtime.
pub(crate) fn way(
    (sandbox, steered): (&str, &Steered),
    surroundings: Surroundings,
    dialer: Arc<dyn Dial>,
    filling: &Arc<Filling>,
) -> Result<Way, OutboundError> {
    let Surroundings { own, closed, opened, resolvers: of_host } = surroundings;
    let bounds = Arc::new(Bounds { own, opened, closed });
    let rules = Rules::parse(&steered.allow, &steered.deny).map_err(OutboundError::Rules)?;
    let asking = |servers: &[Ipv4Addr]| {
        let servers: Vec<_> = servers.iter().map(|server| SocketAddrV4::new(*server, DNS_PORT)).collect();
        Upstream::new(&servers).map(|upstream| Arc::new(upstream) as Arc<dyn Resolve>).map_err(OutboundError::Upstream)
    };
    // One that could be asked when the rules were given, and no longer, is not asked.
    let allowed = |resolver: &&Ipv4Addr| of_host.contains(resolver) || bounds.closing(**resolver).is_none();
    let own: Option<Vec<_>> = steered.resolvers.as_ref().map(|own| own.iter().filter(allowed).copied().collect());
    let resolver = asking(own.as_ref().unwrap_or(&of_host))?;
    let dialer = match &steered.proxy {
        None => dialer,
        // Its own name is not a name that rules are about.
        Some(proxy) => Arc::new(socks(proxy, asking(&of_host)?, Arc::clone(&bounds))?.through(dialer)),
    };
    let termination = filling.termination(sandbox, steered)?;
    Ok(Way { policy: Policy::new(rules, bounds), resolver, dialer, termination })
}

fn socks(proxy: &SocksProxy, resolver: Arc<dyn Resolve>, bounds: Arc<Bounds>) -> Result<Socks, OutboundError> {
    let tls = proxy.tls.as_ref();
    let settings = SocksSettings {
        address: &proxy.address,
        credentials: proxy.credentials.as_ref().map(|(name, password)| (name.as_str(), password.as_str())),
        tls: tls.map(|tls| SocksTls { server_name: tls.server_name.as_deref(), authorities: tls.authorities.as_deref() }),
    };
    Socks::new(settings, resolver, bounds).map_err(OutboundError::Proxy)
}

/// Connects from inside a slot.
#[derive(Debug)]
pub(crate) struct FromSlot(pub(crate) SlotConnector);

#[async_trait]
impl Dial for FromSlot {
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError> {
        let stream = self.0.connect_outward(to).await.map_err(|source| DialError::Connect(to, source))?;
        Ok(Box::new(stream))
    }
}

/// Nowhere: for a way out that is looked at and not used.
#[derive(Debug)]
pub(crate) struct Nowhere;

#[async_trait]
impl Dial for Nowhere {
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError> {
        Err(DialError::Connect(to, io::ErrorKind::NotConnected.into()))
    }
}

/// What all sandboxes share: places for their connections, and how often each outcome was.
#[derive(Debug, Clone)]
pub(crate) struct Common {
    places: Arc<Semaphore>,
    limits: Limits,
    pub(crate) outcomes: Arc<Outcomes>,
}

impl Common {
    /// For a process that has as many descriptors as this one.
    pub(crate) fn of_process() -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.and_then(|count| usize::try_from(count).ok());
        Self::of(descriptors.unwrap_or(Semaphore::MAX_PERMITS))
    }

    fn of(descriptors: usize) -> Self {
        let limits = Limits::default();
        let places = (descriptors / DESCRIPTORS_A_CONNECTION).max(MIN_CONNECTIONS);
        let connections = (places / SANDBOX_SHARE).clamp(MIN_CONNECTIONS, limits.connections);
        Self { places: Arc::new(Semaphore::new(places)), limits: Limits { connections, ..limits }, outcomes: Arc::default() }
    }
}

/// Where a connection was meant to go that was led to a door.
#[derive(Debug, Clone, Copy)]
struct LedHere;

impl Origin for LedHere {
    fn origin(&self, client: &TcpStream) -> io::Result<SocketAddrV4> {
        original_destination(client)
    }
}

/// Whoever stands behind the doors of one slot, until this is dropped.
#[derive(Debug)]
pub(crate) struct Outbound {
    ways: watch::Sender<Arc<Way>>,
    decisions: Arc<Decisions>,
    /// Ends it when this is dropped, if nobody has before.
    stop: DropGuard,
    standing: JoinHandle<()>,
}

impl Outbound {
    /// Opens the doors, and decides by `way`.
    pub(crate) async fn open(
        connector: SlotConnector,
        way: Way,
        sandbox: Arc<str>,
        common: &Common,
    ) -> Result<Self, OutboundError> {
        let doors = connector.open_doors().await.map_err(OutboundError::Doors)?;
        let (ways, audit, decisions) = (watch::Sender::new(Arc::new(way)), Audit::default(), Arc::new(Decisions::default()));
        let taking = Arc::clone(&decisions).take_down(audit.read(), Arc::clone(&sandbox), Arc::clone(&common.outcomes));
        let (heard, common, stop) = (ways.subscribe(), common.clone(), CancellationToken::new());
        let open = move || {
            let connector = connector.clone();
            async move { connector.open_doors().await }
        };
        let stopped = stop.clone();
        let decide = move |doors| decide(doors, (heard.clone(), audit.clone()), common.clone(), LedHere, stopped.clone());
        // It ends with the last who tells.
        tokio::spawn(taking);
        let standing = tokio::spawn(stand(sandbox, doors, open, decide, stop.clone()));
        Ok(Self { ways, decisions, stop: stop.drop_guard(), standing })
    }

    /// Decides by another way from now on. What the new one would not let through is cut.
    pub(crate) fn change(&self, way: Way) {
        self.ways.send_replace(Arc::new(way));
    }

    /// Closes the doors. When this returns, they can be opened again.
    pub(crate) async fn close(self) {
        drop(self.stop);
        if let Err(error) = self.standing.await {
            tracing::error!(%error, "what decides on outbound traffic has fallen when it was to end");
        }
    }

    /// What was decided last.
    pub(crate) fn decisions(&self) -> Vec<Decided> {
        self.decisions.last()
    }
}

/// Stands behind the doors until it is stopped: whenever that ends before, opens them again, for as long as there is a slot.
async fn stand<O, D>(
    sandbox: Arc<str>,
    mut doors: Doors,
    open: impl Fn() -> O,
    decide: impl Fn(Doors) -> D,
    stop: CancellationToken,
) where
    O: Future<Output = Result<Doors, DoorError>>,
    D: Future<Output = ()>,
{
    loop {
        decide(doors).await;
        if stop.is_cancelled() {
            return;
        }
        tracing::error!(%sandbox, "what decides on outbound traffic has fallen: nothing passes until it stands again");
        doors = loop {
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
            match open().await {
                Ok(doors) => break doors,
                Err(DoorError::Gone) => return,
                Err(error) => {
                    tracing::error!(%sandbox, error = firkin_causes::chain(&error), "cannot decide on outbound traffic again");
                }
            }
        };
        tracing::info!(%sandbox, "what decides on outbound traffic stands again");
    }
}

/// Decides until it is stopped or a part of it ends, which none does by itself. The doors are closed by then.
async fn decide(
    doors: Doors,
    (ways, audit): (Ways, Audit),
    common: Common,
    origin: impl Origin + 'static,
    stop: CancellationToken,
) {
    let Doors { connections, questions, questions_tcp } = doors;
    let proxy = Arc::new(Proxy::new(ways.clone(), audit.clone(), common.limits).among(common.places));
    let resolver = Arc::new(Resolver::new(ways, audit));
    let mut parts = JoinSet::new();
    parts.spawn(async move { proxy.serve(connections, origin).await });
    let over_udp = Arc::clone(&resolver);
    parts.spawn(async move { over_udp.serve_udp(questions).await });
    parts.spawn(async move { resolver.serve_tcp(questions_tcp).await });
    if let Some(Some(Err(error))) = stop.run_until_cancelled(parts.join_next()).await {
        tracing::error!(%error, "a part of what decides on outbound traffic has fallen");
    }
    parts.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::atomic::{AtomicBool, AtomicU32, Ordering},
    };

    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, UdpSocket},
        sync::mpsc,
        time::timeout,
    };

    use super::*;
    use crate::storage::{secrets::Secrets, workload::Workload};

    /// Nothing here takes as long.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn steered(allow: &[&str], deny: &[&str]) -> Steered {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Steered { allow: texts(allow), deny: texts(deny), ..Steered::default() }
    }

    /// Of no installation: nothing is put in here.
    fn filling() -> Arc<Filling> {
        let nowhere = Path::new("/nonexistent");
        Filling::of(nowhere, Arc::new(Secrets::of(nowhere)), Arc::new(Workload::of(nowhere, String::new())))
    }

    async fn refused(steered: &Steered) -> String {
        let error = check(steered, Surroundings::unknown(), &filling()).unwrap_err();
        assert!(error.is_asked_for(), "{error:?}");
        firkin_causes::chain(&error)
    }

    #[test]
    fn one_sandbox_has_a_share_of_what_all_have_together() {
        for (descriptors, places, connections) in [(20_000, 2_500, 312), (1 << 20, 1 << 17, 512), (1_024, 128, 64), (0, 64, 64)] {
            let common = Common::of(descriptors);
            assert_eq!((common.places.available_permits(), common.limits.connections), (places, connections), "{descriptors}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_with_the_reason_and_without_passwords() {
        assert!(refused(&steered(&["a.example"], &[])).await.contains("0.0.0.0/0"));
        for resolver in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "198.18.0.1"] {
            let resolvers = Some(vec![resolver.parse().unwrap()]);
            let asked = Steered { resolvers, ..steered(&["a.example"], &["0.0.0.0/0"]) };
            assert!(refused(&asked).await.contains(resolver));
            // Of a sandbox that has it, it is no reason to end that.
            way(("i1", &asked), Surroundings::unknown(), Arc::new(Nowhere), &filling()).unwrap();
        }
        let proxy = |address: &str, password: &str| {
            let credentials = Some(("user".to_owned(), password.to_owned()));
            Steered { proxy: Some(SocksProxy { address: address.into(), credentials, tls: None }), ..Steered::default() }
        };
        for bad in [proxy("hunter2@proxy.example", "x"), proxy("proxy.example:1080", "")] {
            assert!(!refused(&bad).await.contains("hunter2"));
            assert!(!format!("{bad:?}").contains("hunter2"));
        }
        way(("i1", &proxy("proxy.example:1080", "x")), Surroundings::unknown(), Arc::new(Nowhere), &filling()).unwrap();
    }

    #[test]
    fn a_proxy_steers_all_and_names_steer_what_no_address_allows() {
        let (filter, steering) = packets(&steered(&["a.example", "1.1.1.1"], &["0.0.0.0/0"])).unwrap();
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Ipv4Net>>();
        assert_eq!((filter.allow, filter.deny, steering), (nets(&["1.1.1.1/32"]), nets(&["0.0.0.0/0"]), Steering::ByName));
        let proxy = Some(SocksProxy { address: "p.example:1".into(), credentials: None, tls: None });
        let (filter, steering) = packets(&Steered { proxy, ..Steered::default() }).unwrap();
        assert_eq!((filter, steering), (EgressFilter::default(), Steering::AllTcp));
    }

    /// Panics at the first connection.
    #[derive(Clone)]
    struct FallsOnce(Arc<AtomicBool>);

    impl Origin for FallsOnce {
        fn origin(&self, _: &TcpStream) -> io::Result<SocketAddrV4> {
            assert!(self.0.swap(true, Ordering::Relaxed), "it falls");
            Ok("10.0.0.1:80".parse().unwrap())
        }
    }

    /// At an address of their own, so that nobody else is given a port of theirs once they are closed.
    async fn doors() -> Doors {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let own = 0x7f40_0000 + (std::process::id() % 0x1000) * 0x100 + MADE.fetch_add(1, Ordering::Relaxed);
        let own = SocketAddrV4::new(own.into(), 0);
        Doors {
            connections: TcpListener::bind(own).await.unwrap(),
            questions: UdpSocket::bind(own).await.unwrap(),
            questions_tcp: TcpListener::bind(own).await.unwrap(),
        }
    }

    #[tokio::test]
    async fn what_falls_stands_again_and_nothing_passes_meanwhile() {
        let steered = steered(&["a.example"], &["0.0.0.0/0"]);
        let way = way(("i1", &steered), Surroundings::unknown(), Arc::new(Nowhere), &filling()).unwrap();
        let (ways, audit) = (watch::Sender::new(Arc::new(way)), Audit::default());
        let mut told = audit.read();
        let (opened, mut openings) = mpsc::unbounded_channel();
        let first = doors().await;
        let (mut tcp, udp) = (first.connections.local_addr().unwrap(), first.questions.local_addr().unwrap());
        let open = move || {
            let opened = opened.clone();
            async move {
                let doors = doors().await;
                opened.send(doors.connections.local_addr().unwrap()).unwrap();
                Ok(doors)
            }
        };
        let (ways, origin, stop) = (ways.subscribe(), FallsOnce(Arc::default()), CancellationToken::new());
        let stopped = stop.clone();
        let decide =
            move |doors| decide(doors, (ways.clone(), audit.clone()), Common::of(20_000), origin.clone(), stopped.clone());
        let standing = tokio::spawn(stand("i1".into(), first, open, decide, stop.clone()));
        let mut fallen = TcpStream::connect(tcp).await.unwrap();
        drop(timeout(PATIENCE, fallen.read(&mut [0])).await.expect("it is closed"));
        let again = timeout(PATIENCE, openings.recv()).await.expect("the doors are opened again").unwrap();
        assert!(TcpStream::connect(tcp).await.is_err(), "a former door is closed");
        drop(UdpSocket::bind(udp).await.expect("those of the parts that did not fall, too"));
        tcp = again;
        let mut client = TcpStream::connect(tcp).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await.unwrap();
        assert!(timeout(PATIENCE, told.next()).await.expect("it decides").is_some());
        // Once it has ended its doors are free, though clients are still there.
        stop.cancel();
        timeout(PATIENCE, standing).await.expect("it ends").unwrap();
        TcpListener::bind(tcp).await.unwrap();
    }
}
