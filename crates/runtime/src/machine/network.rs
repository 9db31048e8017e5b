//! How a session is joined to the world: a network slot of its own, or, for tests and embedding without privileges, the host's
//! loopback.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firkin_engine::{Attachment, AttachmentKind, Slot};
use firkin_network::{
    Egress, GUEST_MAC, NetworkConfig, NetworkPool, NetworkSlot, OpenError, SlotConnector, SlotError, Surroundings, SweptNetwork,
};
use firkin_wire::control::GuestNetwork;
use tokio::net::TcpStream;

use crate::{
    ground::blocking::blocking,
    machine::outbound::{self, Common, Decided, Filling, FromSlot, Outbound, OutboundError, Outcomes},
    storage::secrets::Held,
    store::spec::{InternetAccess, Steered},
};

/// A guest that does not answer a connection attempt this long does not listen there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The kind of network that sessions get.
#[derive(Debug, Clone)]
pub enum NetworkChoice {
    /// A namespace each. Needs root.
    Isolated(NetworkConfig),
    /// None at all: a port of a session is that port of the host's loopback. For engines whose guests are not real.
    Loopback,
    /// The same, but these ports of a session are others of the host, which need not have the numbers free that guests use.
    LoopbackPorts(BTreeMap<u16, u16>),
}

/// Ports of sessions that are other ports of the host.
type Ports = Arc<BTreeMap<u16, u16>>;

/// Where links come from.
#[derive(Debug)]
pub(crate) struct Links {
    from: Supply,
    common: Common,
    filling: Arc<Filling>,
}

#[derive(Debug)]
enum Supply {
    Isolated(Mutex<Option<Arc<NetworkPool>>>),
    Loopback(Ports),
}

/// Where one link comes from.
enum Source {
    Pool(Arc<NetworkPool>),
    Host(Ports),
}

/// One session's link.
#[derive(Debug)]
pub(crate) enum Link {
    Isolated(Box<Isolated>),
    Loopback(Ports),
}

/// A slot, and who stands behind its doors.
#[derive(Debug)]
pub(crate) struct Isolated {
    /// Goes first: it has sockets in the slot.
    outbound: Option<Outbound>,
    slot: NetworkSlot,
    common: Common,
    filling: Arc<Filling>,
    /// The secrets that its rules name.
    held: Held,
}

/// What a sandbox is to reach.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reaching<'a> {
    pub(crate) internet: &'a InternetAccess,
    /// Its id, for the log.
    pub(crate) sandbox: &'a str,
}

/// Why a link is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// There is no slot, or it does not change.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// Its rules cannot be kept.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

/// Reaches the ports of one session for as long as its link lives.
#[derive(Debug, Clone)]
pub(crate) enum Connector {
    Isolated(SlotConnector),
    Loopback(Ports),
}

impl Links {
    /// With slots ready of this kind.
    pub(crate) async fn open(
        choice: NetworkChoice,
        attachment: AttachmentKind,
        filling: Arc<Filling>,
    ) -> Result<Self, OpenError> {
        let from = match choice {
            NetworkChoice::Isolated(config) => {
                let pool = NetworkPool::open(NetworkConfig { attachment, ..config }).await?;
                Supply::Isolated(Mutex::new(Some(Arc::new(pool))))
            }
            NetworkChoice::Loopback => Supply::Loopback(Ports::default()),
            NetworkChoice::LoopbackPorts(ports) => Supply::Loopback(Arc::new(ports)),
        };
        Ok(Self { from, common: Common::of_process(), filling })
    }

    /// How often each outcome was of what sandboxes tried to reach by name.
    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.common.outcomes
    }

    /// What is around the guests that get a link.
    pub(crate) fn surroundings(&self) -> Surroundings {
        match self.source() {
            Ok(Source::Pool(pool)) => pool.surroundings(),
            Ok(Source::Host(_)) | Err(_) => Surroundings::unknown(),
        }
    }

    /// Refuses rules that could not be kept, before anything is made for them.
    pub(crate) async fn check(&self, internet: &InternetAccess) -> Result<(), OutboundError> {
        let InternetAccess::Steered(steered) = internet else { return Ok(()) };
        let surroundings = self.surroundings();
        self.filling.check_secrets(steered).await?;
        let (steered, filling) = (steered.clone(), Arc::clone(&self.filling));
        blocking(move || outbound::check(&steered, surroundings, &filling)).await
    }

    fn link(&self, slot: NetworkSlot) -> Link {
        let (common, filling) = (self.common.clone(), Arc::clone(&self.filling));
        Link::Isolated(Box::new(Isolated { outbound: None, slot, common, filling, held: Held::default() }))
    }

    /// Where the next link comes from.
    fn source(&self) -> Result<Source, SlotError> {
        match &self.from {
            Supply::Isolated(pool) => {
                pool.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Source::Pool).ok_or(SlotError::Closed)
            }
            Supply::Loopback(ports) => Ok(Source::Host(Arc::clone(ports))),
        }
    }

    /// For a guest that is attached in this way.
    pub(crate) async fn acquire(&self, attachment: AttachmentKind, reaching: Reaching<'_>) -> Result<Link, LinkError> {
        match self.source()? {
            Source::Pool(pool) => {
                let mut link = self.link(pool.acquire_for(attachment, egress(reaching.internet)).await?);
                link.set_internet(reaching).await?;
                Ok(link)
            }
            Source::Host(ports) => Ok(Link::Loopback(ports)),
        }
    }

    /// The link of a session whose machine, process `pid`, outlived an earlier server. What it reaches is made what is recorded: the
    /// earlier server may have ended between the two, and nobody stands behind its doors.
    pub(crate) async fn adopt(&self, (pid, index): (Option<u32>, u16), reaching: Reaching<'_>) -> Result<Link, LinkError> {
        match (self.source()?, pid) {
            (Source::Pool(pool), Some(pid)) => {
                let mut link = self.link(pool.adopt(pid, index).await?);
                match link.set_internet(reaching).await {
                    Ok(()) => Ok(link),
                    // It runs, and goes on without a way out until its rules can be kept or others are set.
                    Err(LinkError::Outbound(error)) => {
                        let (sandbox, error) = (reaching.sandbox, firkin_causes::chain(&error));
                        tracing::error!(sandbox, error, "a sandbox is cut off: its outbound rules cannot be kept");
                        link.cut_off().await?;
                        Ok(link)
                    }
                    Err(error @ LinkError::Slot(_)) => Err(error),
                }
            }
            (Source::Pool(_), None) => Err(SlotError::NotOurs { pid: 0, index, reason: "its machine has no process" }.into()),
            (Source::Host(ports), _) => Ok(Link::Loopback(ports)),
        }
    }

    /// Takes away what has a number of ours and no owner.
    pub(crate) async fn sweep(&self) -> Result<SweptNetwork, OpenError> {
        match self.source() {
            Ok(Source::Pool(pool)) => pool.sweep().await,
            // There is none, or it has been taken down.
            Ok(Source::Host(_)) | Err(_) => Ok(SweptNetwork::default()),
        }
    }

    /// Takes the network down. Call it when no session is left.
    pub(crate) async fn close(&self) {
        let Supply::Isolated(pool) = &self.from else { return };
        let pool = pool.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pool) = pool.and_then(Arc::into_inner)
            && let Err(error) = pool.close().await
        {
            tracing::warn!(error = firkin_causes::chain(&error), "cannot take the network down; the next server will");
        }
    }
}

impl Link {
    /// Changes what the session reaches. No moment in between is looser than both what was and what is to be.
    pub(crate) async fn set_internet(&mut self, Reaching { internet, sandbox }: Reaching<'_>) -> Result<(), LinkError> {
        let Self::Isolated(isolated) = self else { return Ok(()) };
        match internet {
            InternetAccess::Denied => {}
            InternetAccess::Allowed => isolated.slot.set_filter(None).await?,
            InternetAccess::Filtered(filter) => isolated.slot.set_filter(Some(filter)).await?,
            InternetAccess::Steered(steered) => isolated.steer(steered, sandbox).await?,
        }
        isolated.slot.set_egress(egress(internet)).await?;
        if !matches!(internet, InternetAccess::Steered(_)) {
            // Not after whoever asks next, who may want them open again.
            if let Some(outbound) = isolated.outbound.take() {
                outbound.close().await;
            }
            isolated.held = Held::default();
        }
        Ok(())
    }

    /// Takes its way out away.
    async fn cut_off(&mut self) -> Result<(), LinkError> {
        match self {
            Self::Isolated(isolated) => Ok(isolated.slot.set_egress(Egress::Denied).await?),
            Self::Loopback(_) => Ok(()),
        }
    }

    /// What was decided last of what it tried to reach by name, the oldest first.
    pub(crate) fn decisions(&self) -> Vec<Decided> {
        match self {
            Self::Isolated(isolated) => isolated.outbound.as_ref().map(|outbound| outbound.decisions()).unwrap_or_default(),
            Self::Loopback(_) => Vec::new(),
        }
    }

    /// User id of the session's process.
    pub(crate) fn uid(&self) -> u32 {
        match self {
            Self::Isolated(isolated) => isolated.slot.uid(),
            Self::Loopback(_) => nix::unistd::getuid().as_raw(),
        }
    }

    /// Gives it up without taking it apart, for a machine that lives on.
    pub(crate) fn release(self) {
        match self {
            Self::Isolated(isolated) => isolated.slot.release(),
            Self::Loopback(_) => {}
        }
    }

    pub(crate) fn index(&self) -> u16 {
        match self {
            Self::Isolated(isolated) => isolated.slot.index(),
            Self::Loopback(_) => 0,
        }
    }

    /// The slot that an engine runs in.
    pub(crate) fn engine_slot(&self) -> io::Result<Slot> {
        match self {
            Self::Isolated(isolated) => isolated.slot.engine_slot(),
            Self::Loopback(_) => {
                let null = fs_err::File::open("/dev/null")?;
                let null = null.file().as_fd();
                Ok(Slot {
                    uid: self.uid(),
                    netns: null.try_clone_to_owned()?,
                    attachment: Attachment::Tap(null.try_clone_to_owned()?),
                    mac: GUEST_MAC,
                    groups: Vec::new(),
                })
            }
        }
    }

    /// The network that the guest must set up.
    pub(crate) fn guest_network(&self) -> Option<GuestNetwork> {
        match self {
            Self::Isolated(isolated) => Some(isolated.slot.guest_network()),
            Self::Loopback(_) => None,
        }
    }

    pub(crate) fn connector(&self) -> Connector {
        match self {
            Self::Isolated(isolated) => Connector::Isolated(isolated.slot.connector()),
            Self::Loopback(ports) => Connector::Loopback(Arc::clone(ports)),
        }
    }
}

impl Isolated {
    /// By the new way first, so that nobody stands behind the doors who decides by none, and then the packets.
    async fn steer(&mut self, steered: &Steered, sandbox: &str) -> Result<(), LinkError> {
        let (filter, steering) = outbound::packets(steered)?;
        let (connector, surroundings, steered) = (self.slot.connector(), self.slot.surroundings(), steered.clone());
        let dialer = Arc::new(FromSlot(connector.clone()));
        let (filling, of) = (Arc::clone(&self.filling), sandbox.to_owned());
        let held = filling.hold(&steered).await.map_err(OutboundError::Filling)?;
        let way = blocking(move || outbound::way((&of, &steered), surroundings, dialer, &filling)).await?;
        match &self.outbound {
            Some(outbound) => outbound.change(way),
            None => {
                self.outbound = Some(Outbound::open(connector, way, sandbox.into(), &self.common).await?);
            }
        }
        self.held = held;
        Ok(self.slot.set_steering(Some(&filter), Some(steering)).await?)
    }
}

fn egress(internet: &InternetAccess) -> Egress {
    match internet {
        InternetAccess::Allowed | InternetAccess::Filtered(_) | InternetAccess::Steered(_) => Egress::Allowed,
        InternetAccess::Denied => Egress::Denied,
    }
}

impl Connector {
    pub(crate) async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        match self {
            Self::Isolated(slot) => {
                let connected = slot.connect(port, CONNECT_DEADLINE).await;
                connected.map_err(|error| io::Error::new(error.kind(), error))
            }
            Self::Loopback(ports) => {
                let port = ports.get(&port).copied().unwrap_or(port);
                TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await
            }
        }
    }
}
