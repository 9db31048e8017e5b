//! How a session is joined to the world: a network slot of its own, or, for tests and embedding without privileges, the host's
//! loopback.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use firkin_engine::Slot;
use firkin_wire::control::GuestNetwork;
use tokio::net::TcpStream;

use crate::{
    network::{Egress, GUEST_MAC, NetworkConfig, NetworkPool, NetworkSlot, OpenError, SlotConnector, SlotError, SweptNetwork},
    sandbox::InternetAccess,
};

/// A guest that does not answer a connection attempt this long does not listen there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Which network sessions get.
#[derive(Debug, Clone)]
pub enum NetworkChoice {
    /// A namespace each. Needs root.
    Isolated(NetworkConfig),
    /// None at all: a port of a session is that port of the host's loopback. For engines whose guests are not real.
    Loopback,
}

/// Where links come from.
#[derive(Debug)]
pub(crate) enum Links {
    Isolated(Mutex<Option<Arc<NetworkPool>>>),
    Loopback,
}

/// One session's link.
#[derive(Debug)]
pub(crate) enum Link {
    Isolated(NetworkSlot),
    Loopback,
}

/// Reaches the ports of one session for as long as its link lives.
#[derive(Debug, Clone)]
pub(crate) enum Connector {
    Isolated(SlotConnector),
    Loopback,
}

impl Links {
    pub(crate) async fn open(choice: NetworkChoice) -> Result<Self, OpenError> {
        Ok(match choice {
            NetworkChoice::Isolated(config) => Self::Isolated(Mutex::new(Some(Arc::new(NetworkPool::open(config).await?)))),
            NetworkChoice::Loopback => Self::Loopback,
        })
    }

    /// The pool, or `None` where there is none.
    fn pool(&self) -> Result<Option<Arc<NetworkPool>>, SlotError> {
        match self {
            Self::Isolated(pool) => {
                pool.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Some).ok_or(SlotError::Closed)
            }
            Self::Loopback => Ok(None),
        }
    }

    pub(crate) async fn acquire(&self, internet: InternetAccess) -> Result<Link, SlotError> {
        match self.pool()? {
            Some(pool) => Ok(Link::Isolated(pool.acquire(egress(internet)).await?)),
            None => Ok(Link::Loopback),
        }
    }

    /// The link of a session whose machine, process `pid`, outlived an earlier server.
    pub(crate) async fn adopt(&self, pid: Option<u32>, index: u16) -> Result<Link, SlotError> {
        match (self.pool()?, pid) {
            (Some(pool), Some(pid)) => Ok(Link::Isolated(pool.adopt(pid, index).await?)),
            (Some(_), None) => Err(SlotError::NotOurs { pid: 0, index, reason: "its machine has no process" }),
            (None, _) => Ok(Link::Loopback),
        }
    }

    /// Takes away what has a number of ours and no owner.
    pub(crate) async fn sweep(&self) -> Result<SweptNetwork, OpenError> {
        match self.pool() {
            Ok(Some(pool)) => pool.sweep().await,
            // There is none, or it has been taken down.
            Ok(None) | Err(_) => Ok(SweptNetwork::default()),
        }
    }

    /// Takes the network down. Call it when no session is left.
    pub(crate) async fn close(&self) {
        let Self::Isolated(pool) = self else { return };
        let pool = pool.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(pool) = pool.and_then(Arc::into_inner)
            && let Err(error) = pool.close().await
        {
            tracing::warn!(error = crate::owner::chain(&error), "cannot take the network down; the next server will");
        }
    }
}

impl Link {
    /// User id of the session's process.
    pub(crate) fn uid(&self) -> u32 {
        match self {
            Self::Isolated(slot) => slot.uid(),
            Self::Loopback => nix::unistd::getuid().as_raw(),
        }
    }

    pub(crate) fn index(&self) -> u16 {
        match self {
            Self::Isolated(slot) => slot.index(),
            Self::Loopback => 0,
        }
    }

    /// What an engine needs of it.
    pub(crate) fn engine_slot(&self) -> io::Result<Slot> {
        match self {
            Self::Isolated(slot) => slot.engine_slot(),
            Self::Loopback => {
                let null = fs_err::File::open("/dev/null")?;
                let null = null.file().as_fd();
                Ok(Slot { uid: self.uid(), netns: null.try_clone_to_owned()?, tap: null.try_clone_to_owned()?, mac: GUEST_MAC })
            }
        }
    }

    /// What the guest must set up.
    pub(crate) fn guest_network(&self) -> Option<GuestNetwork> {
        match self {
            Self::Isolated(slot) => Some(slot.guest_network()),
            Self::Loopback => None,
        }
    }

    /// Opens or closes the way out.
    pub(crate) async fn set_internet(&mut self, internet: InternetAccess) -> Result<(), SlotError> {
        match self {
            Self::Isolated(slot) => slot.set_egress(egress(internet)).await,
            Self::Loopback => Ok(()),
        }
    }

    pub(crate) fn connector(&self) -> Connector {
        match self {
            Self::Isolated(slot) => Connector::Isolated(slot.connector()),
            Self::Loopback => Connector::Loopback,
        }
    }
}

fn egress(internet: InternetAccess) -> Egress {
    match internet {
        InternetAccess::Allowed => Egress::Allowed,
        InternetAccess::Denied => Egress::Denied,
    }
}

impl Connector {
    pub(crate) async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        match self {
            Self::Isolated(slot) => slot.connect(port, CONNECT_DEADLINE).await.map_err(io::Error::other),
            Self::Loopback => TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)).await,
        }
    }
}
