//! Every machine's network: its own namespace, its own link, the same constant addresses, and only the ways out that policy gives.
//!
//! ```text
//!   guest 169.254.0.21 ── tap0 169.254.0.22      slot's namespace (unnamed: held by descriptors, gone with them)
//!                             │ masquerade
//!                          out0 198.18.x.y/31     only while egress is allowed
//!                             │
//!   fkNN-SLOT 198.18.x.y/31 ──┘                   host's namespace
//!         │ firkin_NN: not to the host, private networks, metadata, other slots
//!         └─ masquerade ── uplink ── internet
//! ```
//!
//! Decisions:
//! * Constant guest addresses, so that a snapshot restores anywhere without touching the guest's network. The host reaches a
//!   guest port by a socket opened *inside* the namespace ([`NetworkSlot::connect`]); a socket keeps its namespace for life.
//! * A guest's end of a slot is a tap, or an interface that its kernel takes over, as its engine wants (`attachment.rs`). The host's end
//!   is the same to all rules.
//! * A slot without egress has no second interface at all: nothing can leave it, whatever the rules say.
//! * What is always denied is denied in the slot's namespace and on the host. The host's rules are watched, and slots are cut off
//!   while they are gone (`guard.rs`).
//! * What is decided by name is decided outside of this crate, by whoever opens a slot's *doors*: sockets inside its namespace, to which
//!   a steering leads what the guest sends. He connects from inside the slot too, so his connections meet the host's rules.
//! * IPv6 is off in slots. Guests are reached and reach out by IPv4.
//! * Slots are destroyed after use, never recycled: neither connection tracking nor neighbours of one guest meet the next. A
//!   pool prepares fresh ones in the background ([`NetworkPool`]).
//! * Several servers on one host hold different *claims* (`claim.rs`), and a restarted server finds its own again.
//! * A server that is killed leaves its machines running with their network; what has no machine is swept by the next server.
//! * Forwarding is enabled for the interfaces that need it, never for the whole host (`uplink.rs`).
//! * An operator's own firewall stays in force: if it drops forwarded packets, guests have no egress.

use std::{io, net::Ipv4Addr, path::PathBuf};

use firkin_engine::AttachmentKind;
use ipnet::Ipv4Net;

mod attachment;
mod claim;
mod doors;
mod filter;
mod guard;
mod lease;
mod namespace;
mod netlink;
mod nft;
mod parameters;
mod pool;
mod resolvers;
mod rules;
mod ruleset;
mod slot;
mod surroundings;
mod sweep;
mod tap;
mod uplink;

pub use claim::ClaimError;
pub use doors::{DoorError, Doors, original_destination};
pub use filter::{EgressFilter, MAX_RULES, Steering};
pub use namespace::ThreadLost;
pub use nft::NftError;
pub use pool::{NetworkPool, OpenError};
pub use slot::{ConnectError, NetworkSlot, SlotConnector};
pub use surroundings::Surroundings;
pub use sweep::SweptNetwork;
pub use tap::open_tap;

/// The guest's address, in every machine.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
/// The host's end of the guest's link, and the guest's gateway, in every slot.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Prefix length of the guest's link.
pub const GUEST_PREFIX: u8 = 30;
/// MAC of the guest's interface: locally administered, `fk` in the middle.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x66, 0x6b, 0x00, 0x00, 0x15];
/// MAC of the host's end of the guest's link.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x66, 0x6b, 0x00, 0x00, 0x16];

/// The addresses of all claims' ways out (RFC 2544).
const SLOT_NETWORKS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 0, 0), 15);
/// With what the names of the host's interfaces of all claims begin.
const INTERFACE_PREFIX: &str = "fk";

/// Whether a guest may reach the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Egress {
    /// Public addresses, the configured resolvers and [`NetworkConfig::reachable`].
    Allowed,
    /// Nothing leaves the slot.
    Denied,
}

/// How a server uses the host's network.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The server's name, the same after a restart: the canonical path of its state directory.
    pub owner: String,
    /// Where the servers of this host keep their claims; must not outlive a boot of the host.
    pub claims_dir: PathBuf,
    /// The first of 65,536 user ids that machines of this host run under, the same for all its servers.
    pub first_uid: u32,
    /// What slots that are kept ready have for their guests: what the engine [wants](firkin_engine::Engine::attachment).
    pub attachment: AttachmentKind,
    /// Slots that may exist at a time, prepared ones included. At most 1024.
    pub max_slots: u16,
    /// Slots with egress kept ready.
    pub prepared: u16,
    /// Slots without egress kept ready.
    pub prepared_sealed: u16,
    /// Resolvers given to guests. `None`: the host's own (`resolvers.rs` says which).
    pub resolvers: Option<Vec<Ipv4Addr>>,
    /// Private networks that guests may reach all the same. Never the host, nor another guest.
    pub reachable: Vec<Ipv4Net>,
    /// What one guest may send, and be sent. What is above is lost.
    pub rates: Rates,
    /// Of the flows that the host can track, what all slots may have together, as far as that leaves each enough to work.
    pub flow_percent: u8,
}

/// Rates of one guest, each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Packets a second, to and from the host and beyond.
    pub packets_per_second: u64,
    /// Bytes a second beyond the host.
    pub bytes_per_second: u64,
}

impl Default for Rates {
    /// A gigabit a second, and the packets of two in full frames: far above what a guest's work needs, and less than keeps one
    /// core of the host busy.
    fn default() -> Self {
        Self { packets_per_second: 200_000, bytes_per_second: 125_000_000 }
    }
}

impl NetworkConfig {
    /// The rest is for the host's own connections, and those of its other guests.
    pub const FLOW_PERCENT: u8 = 50;

    /// The defaults for `owner`.
    pub fn new(owner: impl Into<String>) -> Self {
        Self {
            owner: owner.into(),
            claims_dir: PathBuf::from("/run/firkin/network"),
            first_uid: claim::Uids::DEFAULT_FIRST,
            attachment: AttachmentKind::Tap,
            max_slots: 1024,
            prepared: 4,
            prepared_sealed: 0,
            resolvers: None,
            reachable: Vec::new(),
            rates: Rates::default(),
            flow_percent: Self::FLOW_PERCENT,
        }
    }
}

/// Why a step of setting up or taking down a piece of network failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The kernel refused a change of interfaces, addresses or routes.
    #[error("cannot {step}")]
    Netlink {
        /// The step that failed.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel refused firewall rules.
    #[error("cannot {step}")]
    Firewall {
        /// The step that failed.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: NftError,
    },
    /// Any other system call failed.
    #[error("cannot {step}")]
    System {
        /// The step that failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that did it is gone.
    #[error(transparent)]
    Thread(#[from] ThreadLost),
}

/// For a failed system call of this step.
fn system(step: &'static str) -> impl FnOnce(io::Error) -> SetupError {
    move |source| SetupError::System { step, source }
}

/// Why there is no slot.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Every slot is in use.
    #[error("cannot take a network slot: all {limit} are in use")]
    Exhausted {
        /// [`NetworkConfig::max_slots`].
        limit: u16,
    },
    /// The pool has been closed.
    #[error("cannot take a network slot: the pool is closed")]
    Closed,
    /// A step of making or changing it failed.
    #[error("cannot set up network slot {index}")]
    Setup {
        /// Which slot.
        index: u16,
        /// The step.
        #[source]
        source: SetupError,
    },
    /// The process that was to be adopted is not a machine in that slot.
    #[error("cannot adopt process {pid} in network slot {index}: {reason}")]
    NotOurs {
        /// The process.
        pid: u32,
        /// The slot.
        index: u16,
        /// Why not.
        reason: &'static str,
    },
}

/// Names of firkin's nftables tables in the calling thread's network namespace, for diagnosis.
pub fn host_tables() -> Result<Vec<String>, NftError> {
    Ok(nft::tables()?.into_iter().filter(|name| name.starts_with("firkin_")).collect())
}
