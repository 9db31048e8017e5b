//! One slot: a namespace, a guest's end, perhaps a way out, and the numbers that go with it.
//!
//! A slot is a guard. Dropping it closes the namespace, which takes the guest's end with it once no machine runs inside, and has the
//! pool delete the host's end of the way out. Its number goes to another slot only after that.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
    time::Duration,
};

use firkin_engine::{Attachment, AttachmentKind};
use firkin_wire::control::GuestNetwork;
use tokio::{net::TcpStream, sync::Mutex};

use super::{
    Egress, GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, SetupError, SlotError, attachment,
    claim::{slot_addresses, uid_of},
    filter::{EgressFilter, Steering, filter_rules},
    lease::{Host, IndexLease, Remains},
    namespace::{self, LOOPBACK, SocketOpener},
    netlink::Netlink,
    parameters::set_parameters,
    rules::{OUT, TAP, renewed_slot_rules},
    surroundings::Surroundings,
    system,
};

/// A machine's network, owned by the machine's owner.
#[derive(Debug)]
pub struct NetworkSlot {
    lease: Arc<IndexLease>,
    netns: Arc<OwnedFd>,
    /// Absent in an adopted slot, whose machine has it.
    attachment: Option<Attachment>,
    way_out: WayOut,
    /// Whether there may be a filter, or a steering.
    filtered: bool,
    /// Held by a job that changes the way out, also when nobody waits for that job any more.
    changing: Arc<Mutex<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WayOut {
    Absent,
    Present,
    /// A change failed or was given up half way.
    Unknown,
}

impl Drop for NetworkSlot {
    fn drop(&mut self) {
        if self.way_out != WayOut::Absent {
            self.lease.host().reap(&self.lease);
        }
    }
}

/// Opens connections to one guest. Cheap to clone; does not keep the slot alive.
#[derive(Debug, Clone)]
pub struct SlotConnector {
    pub(super) netns: Weak<OwnedFd>,
    pub(super) opener: SocketOpener,
}

/// Why there is no connection to a guest's port.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing listens there.
    #[error("cannot connect to guest port {port}: nothing listens")]
    Refused {
        /// The port.
        port: u16,
    },
    /// The guest did not answer in time.
    #[error("cannot connect to guest port {port}: no answer within {} ms", after.as_millis())]
    Timeout {
        /// The port.
        port: u16,
        /// How long we waited.
        after: Duration,
    },
    /// The slot is gone, and the guest with it.
    #[error("cannot connect to guest port {port}: its network is gone")]
    Gone {
        /// The port.
        port: u16,
    },
    /// Anything else.
    #[error("cannot connect to guest port {port}")]
    Io {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ConnectError {
    /// The system's kind of error that is closest.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Refused { .. } => io::ErrorKind::ConnectionRefused,
            Self::Timeout { .. } => io::ErrorKind::TimedOut,
            Self::Gone { .. } => io::ErrorKind::NotConnected,
            Self::Io { source, .. } => source.kind(),
        }
    }
}

impl SlotConnector {
    /// Connects to `port` of the guest within `deadline`. The stream sends small writes at once (`TCP_NODELAY`).
    ///
    /// An open stream keeps the slot's namespace alive until it is closed.
    pub async fn connect(&self, port: u16, deadline: Duration) -> Result<TcpStream, ConnectError> {
        let connecting = async {
            let netns = self.netns.upgrade().ok_or(ConnectError::Gone { port })?;
            let socket = self.opener.open(netns).await.map_err(|source| ConnectError::Io { port, source })?;
            let connected = match socket.connect(SocketAddr::from((GUEST_ADDRESS, port))).await {
                Ok(stream) => stream.set_nodelay(true).map(|()| stream),
                Err(error) => Err(error),
            };
            connected.map_err(|source| match source.kind() {
                io::ErrorKind::ConnectionRefused => ConnectError::Refused { port },
                io::ErrorKind::TimedOut => ConnectError::Timeout { port, after: deadline },
                _ => ConnectError::Io { port, source },
            })
        };
        tokio::time::timeout(deadline, connecting).await.unwrap_or(Err(ConnectError::Timeout { port, after: deadline }))
    }
}

impl NetworkSlot {
    /// Number of the slot among its pool's; the journal of a machine keeps it for [`super::NetworkPool::adopt`].
    #[must_use]
    pub fn index(&self) -> u16 {
        self.lease.index()
    }

    /// User and group id for what runs in this slot, used by no other slot on this host.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.lease.uid()
    }

    /// The namespace.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The slot that an engine runs a machine in. Fails for an adopted slot: its machine has the guest's end.
    pub fn engine_slot(&self) -> io::Result<firkin_engine::Slot> {
        let attachment = match self.attachment.as_ref().ok_or_else(|| io::Error::from(io::ErrorKind::ResourceBusy))? {
            Attachment::Tap(tap) => Attachment::Tap(tap.try_clone()?),
            Attachment::Interface(namespace) => Attachment::Interface(namespace.try_clone()?),
        };
        Ok(firkin_engine::Slot {
            uid: self.uid(),
            netns: self.netns.try_clone()?,
            attachment,
            mac: GUEST_MAC,
            groups: Vec::new(),
        })
    }

    /// What is around the guest, for whoever connects for it.
    #[must_use]
    pub fn surroundings(&self) -> Surroundings {
        Surroundings::of(&self.lease.host().policy)
    }

    /// The network settings for the guest.
    #[must_use]
    pub fn guest_network(&self) -> GuestNetwork {
        let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
        GuestNetwork {
            address: GUEST_ADDRESS,
            prefix: GUEST_PREFIX,
            gateway: GATEWAY_ADDRESS,
            gateway_mac: mac,
            dns: self.lease.host().policy.resolvers.iter().map(|ip| (*ip).into()).collect(),
        }
    }

    /// For those who connect to the guest while someone else owns the slot.
    #[must_use]
    pub fn connector(&self) -> SlotConnector {
        SlotConnector { netns: Arc::downgrade(&self.netns), opener: self.lease.host().opener.clone() }
    }

    /// [`SlotConnector::connect`].
    pub async fn connect(&self, port: u16, deadline: Duration) -> Result<TcpStream, ConnectError> {
        self.connector().connect(port, deadline).await
    }

    /// Whether the guest may reach the internet, as last asked.
    #[must_use]
    pub fn egress(&self) -> Egress {
        if self.way_out == WayOut::Present { Egress::Allowed } else { Egress::Denied }
    }

    /// Opens or closes the way out. Closing cuts established flows too.
    ///
    /// When it fails or is cancelled, the way out may be either; call it again, or drop the slot.
    pub async fn set_egress(&mut self, egress: Egress) -> Result<(), SlotError> {
        let wanted = match egress {
            Egress::Allowed => WayOut::Present,
            Egress::Denied => WayOut::Absent,
        };
        if self.way_out == wanted {
            return Ok(());
        }
        let changing = Arc::clone(&self.changing).lock_owned().await;
        self.way_out = WayOut::Unknown;
        let (lease, netns) = (Arc::clone(&self.lease), Arc::clone(&self.netns));
        let index = lease.index();
        let job = move || {
            // Both outlive the caller's patience: no later change, and no later slot of this number, can meet this job.
            let (_changing, lease) = (changing, lease);
            match egress {
                Egress::Allowed => on_thread(async { attach(&lease, &netns, &Ends::open(netns.as_fd())?).await }),
                Egress::Denied => on_thread(async { detach(&lease, &Netlink::open()?).await }),
            }
        };
        namespace::on_own_thread(job).await.map_err(|source| SlotError::Setup { index, source })?;
        self.way_out = wanted;
        Ok(())
    }

    /// Makes its guest's end one of this kind, before a guest has it. When it fails or is cancelled, there may be none.
    pub(super) async fn set_attachment(&mut self, kind: AttachmentKind) -> Result<(), SlotError> {
        if self.attachment.take_if(|own| own.kind() != kind).is_none() {
            return Ok(());
        }
        let (netns, index) = (Arc::clone(&self.netns), self.lease.index());
        let job = move || {
            namespace::enter(netns.as_fd()).map_err(system("enter a slot"))?;
            on_thread(async {
                let slot = Netlink::open()?;
                slot.delete("delete a guest's end", TAP).await?;
                attachment::make(kind, &slot, &netns).await
            })
        };
        let made = namespace::on_own_thread(job).await.map_err(|source| SlotError::Setup { index, source })?;
        self.attachment = Some(made);
        Ok(())
    }

    /// Lets the guest reach only what `filter` allows, among what it could reach anyway; `None` for all of that. Nothing is steered.
    ///
    /// Takes effect in one step. When it is cancelled, the filter may be the old or the new one.
    pub async fn set_filter(&mut self, filter: Option<&EgressFilter>) -> Result<(), SlotError> {
        self.set_steering(filter, None).await
    }

    /// [`NetworkSlot::set_filter`], with some of what the guest sends led to the [doors](SlotConnector::open_doors) of the slot, of which
    /// `filter` has no say. The doors need not be open: what is led to them gets nowhere until they are.
    pub async fn set_steering(&mut self, filter: Option<&EgressFilter>, steering: Option<Steering>) -> Result<(), SlotError> {
        let absent = filter.is_none() && steering.is_none();
        if absent && !self.filtered {
            return Ok(());
        }
        let changing = Arc::clone(&self.changing).lock_owned().await;
        self.filtered = true;
        let (netns, index, batch) = (Arc::clone(&self.netns), self.lease.index(), filter_rules(filter, steering));
        let job = move || {
            let _changing = changing;
            namespace::enter(netns.as_fd()).map_err(system("enter a slot"))?;
            batch.commit().map_err(|source| SetupError::Firewall { step: "install a slot's filter", source })
        };
        namespace::on_own_thread(job).await.map_err(|source| SlotError::Setup { index, source })?;
        self.filtered = !absent;
        Ok(())
    }

    /// Gives the slot up without taking it apart, for a machine that outlives this server. The next server adopts it.
    pub fn release(mut self) {
        self.way_out = WayOut::Absent;
        self.lease.keep();
    }
}

fn on_thread<T>(job: impl Future<Output = Result<T, SetupError>>) -> Result<T, SetupError> {
    namespace::block_on(job).map_err(system("start a runtime"))?
}

/// Makes a slot. Runs on a thread of its own, in the host's namespace, and leaves it elsewhere.
pub(super) fn build(lease: IndexLease, kind: AttachmentKind, egress: Egress) -> Result<NetworkSlot, SetupError> {
    on_thread(async {
        let lease = Arc::new(lease);
        let host = Netlink::open()?;
        namespace::enter_new().map_err(system("make a network namespace"))?;
        let netns = Arc::new(namespace::current().map_err(system("open the new network namespace"))?);
        set_parameters(&SLOT_PARAMETERS).map_err(system("set a slot's kernel parameters"))?;
        let slot = Netlink::open()?;
        lease.host().slot_rules.commit().map_err(|source| SetupError::Firewall { step: "install a slot's rules", source })?;

        slot.up("bring a slot's loopback up", LOOPBACK, None).await?;
        let attachment = attachment::make(kind, &slot, &netns).await?;
        let mut built = NetworkSlot {
            lease,
            netns,
            attachment: Some(attachment),
            way_out: WayOut::Absent,
            filtered: false,
            changing: Arc::default(),
        };
        if egress == Egress::Allowed {
            built.way_out = WayOut::Unknown;
            attach(&built.lease, &built.netns, &Ends { host, slot }).await?;
            built.way_out = WayOut::Present;
        }
        Ok(built)
    })
}

/// Makes sure that process `pid` is a machine in the slot of `lease`, and finds its namespace and whether it has a way out.
pub(super) async fn find_survivor(lease: IndexLease, pid: u32) -> Result<(IndexLease, OwnedFd, bool), SlotError> {
    let index = lease.index();
    let refuse = |reason| SlotError::NotOurs { pid, index, reason };
    let setup = |source| SlotError::Setup { index, source };
    let netns = fs_err::File::open(format!("/proc/{pid}/ns/net"));
    let netns: OwnedFd = netns.map_err(|_| refuse("it has no network namespace that we can open"))?.into_parts().0.into();
    // Asked after the namespace was opened: a process under this user id had it, whatever the pid is by now.
    if uid_of(pid).map_err(system("read a process's user id")).map_err(setup)? != Some(lease.uid()) {
        return Err(refuse("it does not run under the slot's user id"));
    }
    let identity = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    let in_host = identity(netns.as_fd()).and_then(|slot| Ok(slot == identity(lease.host().netns.as_fd())?));
    if in_host.map_err(|error| system("identify a namespace")(error.into())).map_err(setup)? {
        return Err(refuse("it runs in the host's network namespace"));
    }
    let interface = lease.interface();
    let veths = async { Netlink::open()?.veths(&interface).await }.await.map_err(setup)?;
    let has_way_out = veths.iter().any(|veth| veth.name == interface);
    Ok((lease, netns, has_way_out))
}

/// Makes the rules of a survivor's slot those of this server: its operator may have closed a network, or opened one.
pub(super) async fn renew(lease: &IndexLease, netns: &OwnedFd) -> Result<(), SlotError> {
    let index = lease.index();
    let setup = |source| SlotError::Setup { index, source };
    let netns = netns.try_clone().map_err(system("hold a survivor's namespace")).map_err(setup)?;
    let batch = renewed_slot_rules(&lease.host().policy);
    let job = move || {
        namespace::enter(netns.as_fd()).map_err(system("enter a slot"))?;
        batch.commit().map_err(|source| SetupError::Firewall { step: "renew a slot's rules", source })
    };
    namespace::on_own_thread(job).await.map_err(setup)
}

/// The slot of a survivor.
pub(super) fn adopted(lease: IndexLease, netns: OwnedFd, has_way_out: bool) -> NetworkSlot {
    NetworkSlot {
        lease: Arc::new(lease),
        netns: Arc::new(netns),
        attachment: None,
        way_out: if has_way_out { WayOut::Present } else { WayOut::Absent },
        filtered: true,
        changing: Arc::default(),
    }
}

/// Parameters of a slot's namespace, set before it has interfaces to inherit them. IPv6 may be absent from the kernel.
const SLOT_PARAMETERS: [(&str, &str); 4] = [
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // Packets whose source belongs behind another interface are dropped.
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "1"),
];

/// Netlink connections to both ends of a way out.
struct Ends {
    host: Netlink,
    slot: Netlink,
}

impl Ends {
    /// Opens both; the calling thread goes from the host's namespace to `netns`.
    fn open(netns: BorrowedFd<'_>) -> Result<Self, SetupError> {
        let host = Netlink::open()?;
        namespace::enter(netns).map_err(system("enter a slot"))?;
        Ok(Self { host, slot: Netlink::open()? })
    }
}

/// Builds the way out. The calling thread ends up in the host's namespace.
async fn attach(lease: &IndexLease, netns: &OwnedFd, ends: &Ends) -> Result<(), SetupError> {
    let name = lease.interface();
    let (host_ip, slot_ip) = slot_addresses(lease.host().claim, lease.index());
    ends.host.veth_pair("make a slot's way out", &name, OUT, netns.as_fd()).await?;

    namespace::enter(lease.host().netns.as_fd()).map_err(system("return to the host's namespace"))?;
    set_parameters(&[
        (format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1"),
        (format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "1"),
        (format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1"),
    ])
    .map_err(system("set the kernel parameters of a slot's way out"))?;
    let near = ends.host.index("find the host's end of a way out", &name).await?;
    ends.host.address("give the host's end of a way out its address", near, (host_ip, 31)).await?;
    ends.host.up("bring the host's end of a way out up", near, None).await?;

    let far = ends.slot.index("find a slot's end of its way out", OUT).await?;
    ends.slot.address("give a slot's end of its way out its address", far, (slot_ip, 31)).await?;
    ends.slot.up("bring a slot's end of its way out up", far, None).await?;
    ends.slot.default_route("route a slot by its way out", host_ip).await?;
    // The end that came up last is ready; the other learns of it.
    ends.host.wait_up("see a slot's way out come up", near).await
}

/// Deletes the way out; both ends go, and with them what connection tracking translated by them.
async fn detach(lease: &IndexLease, host: &Netlink) -> Result<(), SetupError> {
    host.delete("close a slot's way out", &lease.interface()).await
}

impl Host {
    /// Has the pool delete a slot's way out before its number is used again.
    fn reap(&self, lease: &Arc<IndexLease>) {
        lease.leave();
        // Without a pool the kernel does it, when the namespace is gone.
        if self.remains.send(Remains::WayOut(Arc::clone(lease))).is_err() {
            tracing::debug!(slot = lease.index(), "the network pool is gone; the kernel deletes the slot's way out");
        }
    }
}
