//! Firewall policy: the rules of a slot and of the host, as data.
//!
//! A guest is distrusted at two places, and neither relies on the other. Both let it reach the internet and nothing else: not
//! the host itself, not private networks, not cloud metadata, not another slot.
//!
//! * In its own namespace, whose rules no tool of the host touches: a program that reloads the host's firewall (`nft flush
//!   ruleset`, as Debian's `/etc/nftables.conf` begins) leaves these as they are. Here, too, only the guest's own address may
//!   leave, and only as tracked flows of a bounded number, behind the slot's address. What runs beside the guest in this
//!   namespace talks to the guest and to nobody. Whoever connects for the guest is root of the host, and marks its sockets.
//! * On the host, which also holds against someone who got hold of the slot's namespace, and knows the host's addresses from its
//!   routing table: those that appear later count at once.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    GATEWAY_ADDRESS, GUEST_ADDRESS, INTERFACE_PREFIX, Rates, SLOT_NETWORKS,
    claim::{ClaimIndex, slot_net},
    nft::{Batch, CtState, HookPoint, Interface, Measure, Policy, Rule, single},
};

/// The tap in a slot's namespace.
pub(super) const TAP: &str = "tap0";
/// The way out of a slot's namespace, there only while egress is allowed.
pub(super) const OUT: &str = "out0";
/// The table in a slot's namespace.
const SLOT_TABLE: &str = "firkin";
/// Flows that one guest may have tracked at a time, at most. Connection tracking takes about 320 bytes of unswappable memory a
/// flow, once in the slot and once on the host, whose table all share; browsers and package managers stay below a few hundred.
const MAX_FLOWS: u32 = 4096;
/// And at least, whatever the host's table holds: with fewer, ordinary package managers fail.
const MIN_FLOWS: u32 = 512;

pub(super) const UDP: u8 = 17;
pub(super) const TCP: u8 = 6;
pub(super) const DNS_PORT: u16 = 53;
/// Where TCP is led to that is steered. Any would do that no guest has business with at its gateway.
pub(super) const PROXY_PORT: u16 = 15_001;
/// Of sockets that connect outward for a guest (`doors.rs`). Only root of the host can set it.
pub(super) const OUTWARD: u32 = 0x666b_0001;

/// Destinations that guests may not reach even when egress is allowed: what the IANA special-purpose registry (RFC 6890) calls
/// not globally reachable. Documentation networks are left out; nothing is there.
pub(super) const BLOCKED: [Ipv4Net; 11] = [
    net(0, 0, 8),
    net(10, 0, 8),
    net(100, 64, 10),
    net(127, 0, 8),
    net(169, 254, 16),
    net(172, 16, 12),
    net(192, 0, 24),
    net(192, 168, 16),
    SLOT_NETWORKS,
    net(224, 0, 4),
    net(240, 0, 4),
];

/// `a.b.0.0/prefix`.
const fn net(a: u8, b: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), prefix)
}

/// The settings that the rules of every slot depend on.
#[derive(Debug, Clone)]
pub(super) struct SlotPolicy {
    /// Addresses of the host.
    pub(super) own: Vec<Ipv4Addr>,
    /// Resolvers that guests may ask even in a blocked network.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// Blocked networks that the operator opened.
    pub(super) reachable: Vec<Ipv4Net>,
    /// Flows of one guest at a time.
    pub(super) flows: u32,
    /// What one guest may send and be sent.
    pub(super) rates: Rates,
}

/// The flows of one guest on a host that tracks `table` of them: all `slots` together have `percent` of it, as far as that gives each
/// enough to work.
pub(super) fn flows_of(table: u32, slots: u16, percent: u8) -> u32 {
    let share = u64::from(table) * u64::from(percent) / 100 / u64::from(slots.max(1));
    u32::try_from(share).unwrap_or(MAX_FLOWS).clamp(MIN_FLOWS, MAX_FLOWS)
}

/// The rules of a new slot's namespace. They do not depend on whether it has a way out.
pub(super) fn slot_rules(policy: &SlotPolicy) -> Batch {
    let tap = Interface::Named(TAP);
    let out = Interface::Named(OUT);
    Batch::create(SLOT_TABLE)
        .chain("from_guest", HookPoint::Raw, Policy::Accept, from_guest(policy))
        .chain("input", HookPoint::Input, Policy::Drop, input(policy))
        .chain(
            "forward",
            HookPoint::Forward,
            Policy::Drop,
            vec![
                Rule::all().tracked(CtState::EstablishedOrRelated).accept(),
                Rule::all().from(tap).tracked(CtState::New).flows_above(policy.flows).drop_packet(),
                // What is not new is not a flow, would escape translation, and is dropped.
                Rule::all().from(tap).to(out).ipv4().source(single(GUEST_ADDRESS)).tracked(CtState::New).accept(),
            ],
        )
        .chain("output", HookPoint::Output, Policy::Drop, output(policy))
        .chain("outbound", HookPoint::SourceNat, Policy::Accept, vec![Rule::all().to(out).masquerade()])
}

/// Makes the rules of a slot that an earlier server built say what ours say. Tracked flows and their number are left alone.
pub(super) fn renewed_slot_rules(policy: &SlotPolicy) -> Batch {
    Batch::amend(SLOT_TABLE)
        .refill("from_guest", HookPoint::Raw, Policy::Accept, from_guest(policy))
        .refill("input", HookPoint::Input, Policy::Drop, input(policy))
        .refill("output", HookPoint::Output, Policy::Drop, output(policy))
}

/// Decides, before anything is tracked, where a packet of the guest may go.
fn from_guest(policy: &SlotPolicy) -> Vec<Rule> {
    let from_guest = || Rule::all().from(Interface::Named(TAP)).ipv4();
    let (tap, out) = (Interface::Named(TAP), Interface::Named(OUT));
    let (packets, bytes) = (policy.rates.packets_per_second, policy.rates.bytes_per_second);
    let mut rules = vec![
        // Both ways: a packet costs the host the same.
        Rule::all().from(tap).rate_above(packets, Measure::Packets).drop_packet(),
        Rule::all().from(out).rate_above(packets, Measure::Packets).drop_packet(),
        Rule::all().from(out).rate_above(bytes, Measure::Bytes).drop_packet(),
        Rule::all().not_from(tap).accept(),
        Rule::all().not_ipv4().drop_packet(),
        from_guest().source_outside(single(GUEST_ADDRESS)).drop_packet(),
        // Answers to the host, which connects from inside the slot; `input` lets nothing else in.
        from_guest().destination(single(GATEWAY_ADDRESS)).accept(),
        // What the host asked for is not of the uplink, and not counted.
        from_guest().rate_above(bytes, Measure::Bytes).drop_packet(),
        from_guest().destination_not_unicast().drop_packet(),
        from_guest().destination(SLOT_NETWORKS).drop_packet(),
    ];
    rules.extend(policy.own.iter().map(|address| from_guest().destination(single(*address)).drop_packet()));
    rules.extend(destinations(from_guest, &policy.resolvers, &policy.reachable));
    rules
}

/// What comes to the slot's own sockets. Connections are opened by the host, from inside this namespace; a guest begins none to it, but
/// those that a steering led here in the place of where they were sent.
fn input(policy: &SlotPolicy) -> Vec<Rule> {
    let steered = || Rule::all().from(Interface::Named(TAP)).ipv4().tracked(CtState::New).redirected();
    vec![
        Rule::all().tracked(CtState::EstablishedOrRelated).accept(),
        steered().flows_above(policy.flows).drop_packet(),
        steered().accept(),
    ]
}

/// What the slot's own sockets may send: the host's connections to the guest, answers, and what is connected outward for the guest.
fn output(policy: &SlotPolicy) -> Vec<Rule> {
    let outward = || {
        let outward = Rule::all().to(Interface::Named(OUT)).ipv4().protocol(TCP).marked(OUTWARD);
        outward.tracked(CtState::New)
    };
    vec![
        Rule::all().tracked(CtState::EstablishedOrRelated).accept(),
        Rule::all().to(Interface::Named(TAP)).ipv4().destination(single(GUEST_ADDRESS)).accept(),
        outward().flows_above(policy.flows).drop_packet(),
        outward().accept(),
    ]
}

/// Which destinations are reached, of those that are nobody's of this host.
fn destinations(from_guest: impl Fn() -> Rule, resolvers: &[Ipv4Addr], reachable: &[Ipv4Net]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for resolver in resolvers {
        for protocol in [UDP, TCP] {
            rules.push(from_guest().destination(single(*resolver)).port(protocol, DNS_PORT).accept());
        }
    }
    rules.extend(reachable.iter().map(|net| from_guest().destination(*net).accept()));
    rules.extend(BLOCKED.iter().map(|net| from_guest().destination(*net).drop_packet()));
    rules
}

/// The settings that the host's rules depend on.
#[derive(Debug, Clone)]
pub(super) struct HostPolicy {
    /// Whose slots.
    pub(super) claim: ClaimIndex,
    /// Resolvers that guests may ask even in a blocked network.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// Blocked networks that the operator opened.
    pub(super) reachable: Vec<Ipv4Net>,
    /// Interfaces whose forwarding we switched on.
    pub(super) guarded: Vec<String>,
}

/// Name of the host's table of one claim.
pub(super) fn host_table(claim: ClaimIndex) -> String {
    format!("firkin_{claim}")
}

/// The rules of the host for all slots of one claim.
pub(super) fn host_rules(policy: &HostPolicy) -> Batch {
    let claim = policy.claim;
    let prefix = claim.interface_prefix();
    let ours = Interface::Prefixed(&prefix);
    let any = Interface::Prefixed(INTERFACE_PREFIX);
    let established = || Rule::all().tracked(CtState::EstablishedOrRelated);

    let mut forward = vec![
        Rule::all().from(ours).to(any).drop_packet(),
        Rule::all().from(ours).accept(),
        established().to(ours).accept(),
        Rule::all().to(ours).drop_packet(),
    ];
    // Replies need forwarding on the interface they come by. Where it was off, the host must not become a router for others.
    forward.extend(policy.guarded.iter().map(|name| {
        let guarded = Rule::all().from(Interface::Named(name)).not_to(any);
        guarded.tracked(CtState::New).not_redirected().drop_packet()
    }));

    let slots = slot_net(claim);
    Batch::replace(host_table(claim))
        .chain("from_guests", HookPoint::Raw, Policy::Accept, from_guests(ours, slots, policy))
        .chain("input", HookPoint::Input, Policy::Accept, vec![Rule::all().from(ours).drop_packet()])
        .chain("forward", HookPoint::Forward, Policy::Accept, forward)
        .chain("outbound", HookPoint::SourceNat, Policy::Accept, vec![Rule::all().ipv4().source(slots).not_to(any).masquerade()])
}

/// Decides, before any translation by other software, where a packet from one of our slots may go.
fn from_guests(ours: Interface<'_>, slots: Ipv4Net, policy: &HostPolicy) -> Vec<Rule> {
    let from_guest = || Rule::all().from(ours).ipv4();
    let mut rules = vec![
        Rule::all().not_from(ours).accept(),
        Rule::all().not_ipv4().drop_packet(),
        from_guest().source_outside(slots).drop_packet(),
        from_guest().destination_not_unicast().drop_packet(),
        from_guest().destination(SLOT_NETWORKS).drop_packet(),
    ];
    rules.extend(destinations(from_guest, &policy.resolvers, &policy.reachable));
    rules
}
