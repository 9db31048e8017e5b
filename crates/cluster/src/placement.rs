//! Which nodes are asked for a new sandbox, in which order, and why not the others: what is decided is what is told. What is known of others is some seconds old, so this only ranks: the node
//! that is asked has the last word, and the next is asked where it says no.
//!
//! Those that hold what the sandbox starts from are a class of their own, before all others: locality as a weight among many makes
//! more than a third of creates fetch what another node has, by a model of 1,000 nodes. Among a few of a class, drawn
//! by chance, the one with most free memory is first: the emptiest of all would be everybody's choice until it is heard of again.

use firkin_server::nodes::{Holding, NodeId, PassedOver, Place, Placement, Wanted};
use ring::digest::{SHA256, digest};

use crate::members::Member;

/// So many of a class are drawn, of which the emptiest is asked first.
const DRAWN: usize = 3;

/// Nodes that are asked for one sandbox.
const MOST: usize = 3;

/// What the node where a create came in counts for more than it has, by so many of a hundred: a hop less.
const OWN_BONUS_PERCENT: u64 = 10;

/// What was answered lately by nodes that were asked for sandboxes.
#[derive(Clone, Copy)]
pub(crate) struct Lately<'a> {
    /// Memory that is taken of a node since it said what it has, MiB.
    pub(crate) taken: &'a dyn Fn(&NodeId) -> u64,
    /// How many creates failed on it, of how many, if it is to be asked last for that.
    pub(crate) failing: &'a dyn Fn(&NodeId) -> Option<(usize, usize)>,
}

impl Lately<'_> {
    /// Nothing was.
    pub(crate) const NOTHING: Lately<'static> = Lately { taken: &|_| 0, failing: &|_| None };
}

/// Which nodes are asked, by what is known of them, and why the others are not. Where it comes in at none of them, nobody's room counts for more.
/// `chance` draws: the same one, the same nodes.
pub(crate) fn decide(nodes: &[Member], own: Option<&NodeId>, wanted: &Wanted, (chance, lately): (u64, Lately<'_>)) -> Placement {
    if let Some(once) = &wanted.once {
        return by_key_alone(nodes, wanted, once);
    }
    let mut passed_over = Vec::new();
    let mut fitting: Vec<(&Member, Holding)> = Vec::new();
    for member in nodes {
        match unfit(member, own, wanted) {
            Some(why) => passed_over.push((member.name.clone(), why)),
            None => fitting.push((member, holding(member, wanted))),
        }
    }
    // Where creates fail, others are asked, as long as there are any.
    let fails = |member: &Member| (lately.failing)(&member.id);
    if fitting.iter().any(|(member, _)| fails(member).is_none()) {
        fitting.retain(|(member, _)| match fails(member) {
            None => true,
            Some((failed, asked)) => {
                passed_over.push((member.name.clone(), PassedOver::Fails { failed, asked }));
                false
            }
        });
    }
    let mut asked: Vec<Place> = Vec::new();
    // Who says what it holds, and does not hold this, is asked last.
    for (salt, class) in (1..).zip([Holding::Holds, Holding::Unsaid, Holding::Fetches]) {
        let members = fitting.iter().filter(|(_, holding)| *holding == class).map(|(member, _)| *member).collect();
        asked.extend(
            ranked(members, own, chance ^ salt, &|member| still_free(member, wanted, lately))
                .into_iter()
                .map(|member| place(member, class)),
        );
    }
    asked.truncate(MOST);
    let after = fitting.into_iter().filter(|(member, _)| asked.iter().all(|place| place.node != member.id));
    passed_over.extend(after.map(|(member, holding)| (member.name.clone(), PassedOver::AfterOthers(holding))));
    Placement { asked, passed_over }
}

/// One and no other, whoever has room or holds what by now: it remembers the first request with the key. One that has not the engine never made one.
fn by_key_alone(nodes: &[Member], wanted: &Wanted, once: &str) -> Placement {
    let may = nodes.iter().filter(|member| member.alive && other_engine(member, wanted).is_none());
    let first = may.max_by_key(|member| by_key(once, &member.id));
    let others = nodes.iter().filter(|member| first.is_none_or(|first| first.id != member.id));
    let why = |member: &Member| match (member.alive, other_engine(member, wanted)) {
        (false, _) => PassedOver::Away,
        (true, Some(other)) => other,
        (true, None) => PassedOver::KeyOfAnother,
    };
    Placement {
        asked: first.map(|member| place(member, holding(member, wanted))).into_iter().collect(),
        passed_over: others.map(|member| (member.name.clone(), why(member))).collect(),
    }
}

/// Why a node cannot have it, if that is known.
fn unfit(member: &Member, own: Option<&NodeId>, wanted: &Wanted) -> Option<PassedOver> {
    if !member.alive {
        return Some(PassedOver::Away);
    }
    if member.cordoned {
        return Some(PassedOver::Cordoned);
    }
    if let Some(other) = other_engine(member, wanted) {
        return Some(other);
    }
    match member.free_memory_mib {
        // Of itself it knows without a word.
        None => (Some(&member.id) != own).then_some(PassedOver::Begins),
        Some(free_mib) => {
            let wanted_mib = wanted.memory_mib;
            (free_mib < wanted_mib).then_some(PassedOver::TooLittleMemory { free_mib, wanted_mib })
        }
    }
}

/// Whether it has not the engine. What is not on record, or not said, fits.
fn other_engine(member: &Member, wanted: &Wanted) -> Option<PassedOver> {
    let wants = wanted.runs_on.as_ref().filter(|wants| !member.engines.is_empty() && !member.engines.contains(wants))?;
    Some(PassedOver::OtherEngine { has: member.engines.clone(), wants: wants.clone() })
}

fn holding(member: &Member, wanted: &Wanted) -> Holding {
    match &member.holds {
        None => Holding::Unsaid,
        Some(held) if held.contains(&wanted.build) => Holding::Holds,
        Some(_) => Holding::Fetches,
    }
}

fn place(member: &Member, holding: Holding) -> Place {
    Place { node: member.id.clone(), name: member.name.clone(), holding, free_memory_mib: member.free_memory_mib }
}

/// What a node is believed to have free, if that is enough.
fn still_free(member: &Member, wanted: &Wanted, lately: Lately<'_>) -> Option<u64> {
    let free = member.free_memory_mib.unwrap_or_default().saturating_sub((lately.taken)(&member.id));
    (free >= wanted.memory_mib).then_some(free)
}

/// A few of a class in the order in which to ask them. Those are drawn first that are believed to have room still.
fn ranked<'a>(
    mut class: Vec<&'a Member>,
    own: Option<&NodeId>,
    chance: u64,
    free: &dyn Fn(&Member) -> Option<u64>,
) -> Vec<&'a Member> {
    class.sort_by_cached_key(|member| (free(member).is_none(), by_key(&chance.to_string(), &member.id)));
    class.truncate(DRAWN.max(MOST));
    let room = |member: &&Member| {
        let free = free(member).unwrap_or_default();
        free + if Some(&member.id) == own { free / 100 * OWN_BONUS_PERCENT } else { 0 }
    };
    class.sort_by_key(|member| std::cmp::Reverse(room(member)));
    class
}

/// The rank of a node for a key: the same on every node, and another for each key (rendezvous hashing).
pub(crate) fn by_key(key: &str, node: &NodeId) -> Vec<u8> {
    digest(&SHA256, format!("{node} {key}").as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use super::*;

    fn id(name: &str) -> NodeId {
        name.repeat(20).parse().unwrap()
    }

    fn member(name: &str, free: Option<u64>, holds: Option<&[&str]>) -> Member {
        let holds = holds.map(|builds| Arc::new(builds.iter().map(|build| (*build).to_owned()).collect()));
        let (id, name, address) = (id(name), name.to_owned(), String::new());
        let engines = vec!["kvm".to_owned()];
        Member { id, name, address, term: 1, alive: true, cordoned: false, engines, free_memory_mib: free, holds }
    }

    fn places(nodes: &[Member], own: &NodeId, wanted: &Wanted, chance: u64) -> Vec<NodeId> {
        decide(nodes, Some(own), wanted, (chance, Lately::NOTHING)).asked.into_iter().map(|place| place.node).collect()
    }

    fn wanted() -> Wanted {
        Wanted { build: "x".to_owned(), memory_mib: 512, runs_on: Some("kvm".to_owned()), once: None }
    }

    #[test]
    fn holders_come_first_and_the_emptiest_of_them() {
        let nodes = [
            member("a", Some(9000), Some(&[])),
            member("b", Some(1000), Some(&["x", "y"])),
            member("c", Some(2000), Some(&["x"])),
            member("d", Some(5000), None),
        ];
        for chance in 0..50 {
            assert_eq!(places(&nodes, &id("a"), &wanted(), chance), [id("c"), id("b"), id("d")], "{chance}");
        }
    }

    #[test]
    fn who_cannot_take_one_is_not_asked() {
        let mut nodes = vec![member("a", Some(511), None), member("b", Some(512), None), member("c", Some(9000), None)];
        nodes.extend([member("d", Some(9000), None), member("e", None, None)]);
        (nodes[2].alive, nodes[3].cordoned) = (false, true);
        assert_eq!(places(&nodes, &id("a"), &wanted(), 1), [id("b")]);
        assert_eq!(places(&nodes, &id("e"), &wanted(), 1), [id("b"), id("e")], "of itself it knows without a word");
        nodes[4].cordoned = true;
        assert_eq!(places(&nodes, &id("e"), &wanted(), 1), [id("b")]);
        assert_eq!(places(&[], &id("e"), &wanted(), 1), []);
    }

    #[test]
    fn each_node_that_is_not_asked_has_its_reason() {
        let mut nodes = vec![member("a", Some(511), None), member("b", None, None), member("c", Some(9000), None)];
        nodes.extend([member("d", Some(9000), None), member("e", Some(9000), None), member("f", Some(700), Some(&[]))]);
        (nodes[2].alive, nodes[3].cordoned, nodes[4].engines) = (false, true, vec!["gvisor".to_owned(), "emulated".to_owned()]);
        let decided = decide(&nodes, None, &wanted(), (1, Lately::NOTHING));
        let asked: Vec<_> = decided.asked.iter().map(|place| (place.name.as_str(), place.holding)).collect();
        assert_eq!(asked, [("f", Holding::Fetches)]);
        let why: Vec<_> = decided.passed_over.iter().map(|(name, why)| (name.as_str(), why.to_string())).collect();
        let expected = [
            ("a", "511 MiB of memory free, 512 wanted"),
            ("b", "does not serve yet"),
            ("c", "away"),
            ("d", "cordoned"),
            ("e", "runs by gvisor and emulated, not kvm"),
        ];
        assert_eq!(why, expected.map(|(name, why)| (name, why.to_owned())));
        // What is not on record keeps nobody out.
        let unknown = Wanted { runs_on: None, ..wanted() };
        assert_eq!(places(&nodes, &id("a"), &unknown, 1), [id("e"), id("f")]);
        nodes[4].engines.clear();
        assert_eq!(places(&nodes, &id("a"), &wanted(), 1), [id("e"), id("f")]);
        // Each node is told of once, whatever was drawn.
        let many: Vec<Member> = ('a'..='z').map(|name| member(&name.to_string(), Some(10_000), Some(&["x"]))).collect();
        let decided = decide(&many, None, &wanted(), (5, Lately::NOTHING));
        assert_eq!((decided.asked.len(), decided.passed_over.len()), (3, 23));
        assert!(decided.passed_over.iter().all(|(_, why)| *why == PassedOver::AfterOthers(Holding::Holds)));
    }

    #[test]
    fn a_hop_less_counts_for_a_little_and_chance_spreads_the_rest() {
        let nodes = [member("a", Some(10_000), None), member("b", Some(10_500), None), member("c", Some(12_000), None)];
        assert_eq!(places(&nodes, &id("a"), &wanted(), 0)[0], id("c"));
        assert_eq!(places(&nodes[..2], &id("a"), &wanted(), 0)[0], id("a"));
        assert_eq!(places(&nodes[..2], &id("b"), &wanted(), 0)[0], id("b"));
        let many: Vec<Member> = ('a'..='z').map(|name| member(&name.to_string(), Some(10_000), None)).collect();
        let firsts: BTreeSet<_> = (0..200).map(|chance| places(&many, &id("a"), &wanted(), chance)[0].clone()).collect();
        assert!(firsts.len() > 15, "{firsts:?}");
    }

    #[test]
    fn what_was_taken_since_a_node_was_heard_counts() {
        let nodes: Vec<Member> = ('a'..='f').map(|name| member(&name.to_string(), Some(1000), None)).collect();
        let taken = |of: &NodeId| if *of == id("a") || *of == id("d") { u64::MAX } else { 0 };
        for chance in 0..50 {
            let asked = decide(&nodes, None, &wanted(), (chance, Lately { taken: &taken, ..Lately::NOTHING })).asked;
            assert_eq!(asked.len(), 3);
            assert!(asked.iter().all(|place| place.node != id("a") && place.node != id("d")), "others are believed to have room");
            // The one of which least was taken is the emptiest.
            let less = |of: &NodeId| if *of == asked[2].node { 0 } else { taken(of).max(100) };
            assert_eq!(
                decide(&nodes, None, &wanted(), (chance, Lately { taken: &less, ..Lately::NOTHING })).asked[0].node,
                asked[2].node
            );
        }
        // Who seems to be full is asked where nobody else is there: it may have room by now.
        assert_eq!(decide(&nodes[..1], None, &wanted(), (1, Lately { taken: &taken, ..Lately::NOTHING })).asked.len(), 1);
    }

    #[test]
    fn where_creates_fail_others_are_asked_while_there_are_any() {
        let nodes = [member("a", Some(100_000), None), member("b", Some(1000), None), member("c", Some(100), None)];
        let failing = |of: &NodeId| (*of == id("a")).then_some((9, 10));
        let lately = Lately { failing: &failing, ..Lately::NOTHING };
        let decided = decide(&nodes, Some(&id("a")), &wanted(), (1, lately));
        assert_eq!(decided.asked.iter().map(|place| place.name.as_str()).collect::<Vec<_>>(), ["b"]);
        let why: Vec<_> = decided.passed_over.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(why, ["c: 100 MiB of memory free, 512 wanted", "a: 9 of the last 10 creates failed there"]);
        assert_eq!(decide(&nodes[..1], None, &wanted(), (1, lately)).asked.len(), 1, "it may have come to itself");
    }

    #[test]
    fn what_is_asked_for_once_comes_to_one_node_wherever_it_is_asked() {
        let nodes: Vec<Member> = ('a'..='f').map(|name| member(&name.to_string(), Some(10_000), None)).collect();
        let mut of = BTreeSet::new();
        for key in 0..60 {
            let wanted = Wanted { once: Some(format!("team {key}")), ..wanted() };
            let first = places(&nodes, &id("a"), &wanted, 1);
            assert_eq!(first.len(), 1);
            for (own, chance) in [("b", 2), ("f", 3)] {
                assert_eq!(places(&nodes, &id(own), &wanted, chance), first);
            }
            assert_eq!(decide(&nodes, None, &wanted, (1, Lately::NOTHING)).passed_over.len(), 5);
            // Also once it is full by what it says, and others have what it starts from.
            let later: Vec<Member> = nodes
                .iter()
                .map(|node| {
                    let is_it = first.contains(&node.id);
                    let holds = (!is_it).then(|| Arc::new(["x".to_owned()].into()));
                    Member { free_memory_mib: Some(if is_it { 0 } else { 10_000 }), cordoned: is_it, holds, ..node.clone() }
                })
                .collect();
            assert_eq!(places(&later, &id("b"), &wanted, 4), first);
            // Who has not the engine could only refuse it.
            let mut other = nodes.clone();
            other.iter_mut().filter(|node| first.contains(&node.id)).for_each(|node| node.engines = vec!["gvisor".to_owned()]);
            let decided = decide(&other, None, &wanted, (5, Lately::NOTHING));
            assert!(decided.asked.len() == 1 && !first.contains(&decided.asked[0].node), "{decided:?}");
            assert!(decided.passed_over.iter().any(|(_, why)| matches!(why, PassedOver::OtherEngine { .. })), "{decided:?}");
            of.extend(first);
        }
        assert_eq!(of.len(), 6);
    }
}
