//! What is around a guest, as data for those who judge by more than packets.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    SLOT_NETWORKS,
    nft::single,
    rules::{BLOCKED, SlotPolicy},
};

/// Of every host.
const LOOPBACK_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);

/// What is around a guest, for whoever connects for it.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Reached by no guest, whatever anybody says: this host, and all slots.
    pub own: Vec<Ipv4Net>,
    /// Not the internet's, and reached by no guest.
    pub closed: Vec<Ipv4Net>,
    /// Parts of that which the operator opened.
    pub opened: Vec<Ipv4Net>,
    /// What guests are told to ask.
    pub resolvers: Vec<Ipv4Addr>,
}

impl Surroundings {
    /// Of a guest that no slot is known of.
    #[must_use]
    pub fn unknown() -> Self {
        Self { own: vec![SLOT_NETWORKS, LOOPBACK_NETWORK], closed: BLOCKED.to_vec(), opened: Vec::new(), resolvers: Vec::new() }
    }

    pub(super) fn of(policy: &SlotPolicy) -> Self {
        let own = policy.own.iter().map(|address| single(*address));
        let of_all = Self::unknown();
        Self {
            own: own.chain(of_all.own).collect(),
            opened: policy.reachable.clone(),
            resolvers: policy.resolvers.clone(),
            ..of_all
        }
    }
}
