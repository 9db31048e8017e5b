//! Which destinations one guest may reach, of those that any guest may.
//!
//! The filter is a table of its own in the slot's namespace, in front of the slot's rules: a packet must pass both. So it can be
//! replaced at any time in one transaction, and can only take away. It looks at every packet of the guest, not at the first of a
//! flow: what a new filter denies ends at once, also where it was under way.
//!
//! Names are not known to packets. A guest whose rules have names is *steered*: what it sends is led to the doors of its slot
//! (`doors.rs`), behind which somebody decides by name. The steering is of the same table, so both change at once, and what was not
//! steered when it began does not go on beside it. When nobody is behind the doors nothing passes: the steering needs no server.

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::{
    GATEWAY_ADDRESS,
    nft::{Batch, HookPoint, Interface, Policy, Rule, single},
    rules::{DNS_PORT, PROXY_PORT, TAP, TCP, UDP},
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

/// What of a guest's traffic is led to the doors of its slot, beside all of its questions to resolvers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// TCP, but for what the filter allows by address.
    ByName,
    /// All TCP.
    AllTcp,
}

/// The table of a filter and a steering, or its absence.
pub(super) fn filter_rules(filter: Option<&EgressFilter>, steering: Option<Steering>) -> Batch {
    if filter.is_none() && steering.is_none() {
        return Batch::delete(TABLE);
    }
    let filter = filter.cloned().unwrap_or_default();
    let mut passing = steering.map(unsteered).unwrap_or_default();
    passing.extend(filter.allow.iter().map(|net| from_guest().destination(net.trunc()).accept()));
    passing.extend(filter.deny.iter().map(|net| from_guest().destination(net.trunc()).drop_packet()));
    let table = Batch::replace(TABLE).chain("filter", HookPoint::EarlyForward, Policy::Accept, passing);
    match steering {
        Some(steering) => table.chain("steering", HookPoint::DestinationNat, Policy::Accept, steered(&filter, steering)),
        None => table,
    }
}

fn from_guest() -> Rule {
    Rule::all().from(Interface::Named(TAP)).ipv4()
}

/// What would have been steered if it had begun later, and is under way.
fn unsteered(steering: Steering) -> Vec<Rule> {
    let mut rules: Vec<_> = [UDP, TCP].map(|protocol| from_guest().port(protocol, DNS_PORT).drop_packet()).into();
    if steering == Steering::AllTcp {
        rules.push(from_guest().protocol(TCP).drop_packet());
    }
    rules
}

/// Where a flow goes that begins.
fn steered(filter: &EgressFilter, steering: Steering) -> Vec<Rule> {
    // To the slot itself a guest has nothing to say.
    let mut rules = vec![from_guest().destination(single(GATEWAY_ADDRESS)).accept()];
    rules.extend([UDP, TCP].map(|protocol| from_guest().port(protocol, DNS_PORT).redirect(DNS_PORT)));
    if steering == Steering::ByName {
        rules.extend(filter.allow.iter().map(|net| from_guest().destination(net.trunc()).accept()));
    }
    rules.push(from_guest().protocol(TCP).redirect(PROXY_PORT));
    rules
}
