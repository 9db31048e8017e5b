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
    Egress, GUEST_MAC, NetworkConfig, NetworkPool, NetworkSlot, OpenError, SlotConnector, SlotError, SweptNetwork,
};
use firkin_wire::control::GuestNetwork;
use tokio::net::TcpStream;

use crate::store::spec::InternetAccess;

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
pub(crate) enum Links {
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
    Isolated(NetworkSlot),
    Loopback(Ports),
}

/// Reaches the ports of one session for as long as its link lives.
#[derive(Debug, Clone)]
pub(crate) enum Connector {
    Isolated(SlotConnector),
    Loopback(Ports),
}

impl Links {
    /// With slots ready of this kind.
    pub(crate) async fn open(choice: NetworkChoice, attachment: AttachmentKind) -> Result<Self, OpenError> {
        Ok(match choice {
            NetworkChoice::Isolated(config) => {
                let pool = NetworkPool::open(NetworkConfig { attachment, ..config }).await?;
                Self::Isolated(Mutex::new(Some(Arc::new(pool))))
            }
            NetworkChoice::Loopback => Self::Loopback(Ports::default()),
            NetworkChoice::LoopbackPorts(ports) => Self::Loopback(Arc::new(ports)),
        })
    }

    /// Where the next link comes from.
    fn source(&self) -> Result<Source, SlotError> {
        match self {
            Self::Isolated(pool) => {
                pool.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Source::Pool).ok_or(SlotError::Closed)
            }
            Self::Loopback(ports) => Ok(Source::Host(Arc::clone(ports))),
        }
    }

    /// For a guest that is attached in this way.
    pub(crate) async fn acquire(&self, attachment: AttachmentKind, internet: &InternetAccess) -> Result<Link, SlotError> {
        match self.source()? {
            Source::Pool(pool) => {
                let mut slot = pool.acquire_for(attachment, egress(internet)).await?;
                if let InternetAccess::Filtered(filter) = internet {
                    slot.set_filter(Some(filter)).await?;
                }
                Ok(Link::Isolated(slot))
            }
            Source::Host(ports) => Ok(Link::Loopback(ports)),
        }
    }

    /// The link of a session whose machine, process `pid`, outlived an earlier server.
    pub(crate) async fn adopt(&self, pid: Option<u32>, index: u16) -> Result<Link, SlotError> {
        match (self.source()?, pid) {
            (Source::Pool(pool), Some(pid)) => Ok(Link::Isolated(pool.adopt(pid, index).await?)),
            (Source::Pool(_), None) => Err(SlotError::NotOurs { pid: 0, index, reason: "its machine has no process" }),
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
        let Self::Isolated(pool) = self else { return };
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
    pub(crate) async fn set_internet(&mut self, internet: &InternetAccess) -> Result<(), SlotError> {
        let Self::Isolated(slot) = self else { return Ok(()) };
        let filter = match internet {
            InternetAccess::Denied => return slot.set_egress(egress(internet)).await,
            InternetAccess::Allowed => None,
            InternetAccess::Filtered(filter) => Some(filter),
        };
        slot.set_filter(filter).await?;
        slot.set_egress(egress(internet)).await
    }

    /// User id of the session's process.
    pub(crate) fn uid(&self) -> u32 {
        match self {
            Self::Isolated(slot) => slot.uid(),
            Self::Loopback(_) => nix::unistd::getuid().as_raw(),
        }
    }

    /// Gives it up without taking it apart, for a machine that lives on.
    pub(crate) fn release(self) {
        match self {
            Self::Isolated(slot) => slot.release(),
            Self::Loopback(_) => {}
        }
    }

    pub(crate) fn index(&self) -> u16 {
        match self {
            Self::Isolated(slot) => slot.index(),
            Self::Loopback(_) => 0,
        }
    }

    /// The slot that an engine runs in.
    pub(crate) fn engine_slot(&self) -> io::Result<Slot> {
        match self {
            Self::Isolated(slot) => slot.engine_slot(),
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
            Self::Isolated(slot) => Some(slot.guest_network()),
            Self::Loopback(_) => None,
        }
    }

    pub(crate) fn connector(&self) -> Connector {
        match self {
            Self::Isolated(slot) => Connector::Isolated(slot.connector()),
            Self::Loopback(ports) => Connector::Loopback(Arc::clone(ports)),
        }
    }
}

fn egress(internet: &InternetAccess) -> Egress {
    match internet {
        InternetAccess::Allowed | InternetAccess::Filtered(_) => Egress::Allowed,
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
