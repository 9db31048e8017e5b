//! Which destinations one guest may reach, of those that any guest may.
//!
//! The filter is a table of its own in the slot's namespace, in front of the slot's rules: a packet must pass both. So it can be
//! replaced at any time in one transaction, and can only take away. It looks at every packet of the guest, not at the first of a
//! flow: what a new filter denies ends at once, also where it was under way.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{
    nft::{Batch, HookPoint, Interface, Policy, Rule},
    rules::TAP,
};

/// The table in a slot's namespace.
const TABLE: &str = "firkin_filter";

/// Networks in one list. Each costs a comparison for every packet of the guest; all of them must fit one netlink message of
/// some 200 KiB.
pub const MAX_RULES: usize = 128;

/// Destinations that are allowed and denied. What is in neither list is allowed, what is in both too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressFilter {
    /// Allowed whatever the other list says.
    pub allow: Vec<Ipv4Net>,
    /// Denied.
    pub deny: Vec<Ipv4Net>,
}

/// The table of a filter, or its absence.
pub(super) fn filter_rules(filter: Option<&EgressFilter>) -> Batch {
    let Some(filter) = filter else { return Batch::delete(TABLE) };
    let from_guest = |net: &Ipv4Net| Rule::all().from(Interface::Named(TAP)).ipv4().destination(net.trunc());
    let allowed = filter.allow.iter().map(|net| from_guest(net).accept());
    let denied = filter.deny.iter().map(|net| from_guest(net).drop_packet());
    Batch::replace(TABLE).chain("filter", HookPoint::EarlyForward, Policy::Accept, allowed.chain(denied).collect())
}
