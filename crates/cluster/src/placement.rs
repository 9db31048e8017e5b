//! Which nodes are asked for a new sandbox, and in which order. What is known of others is some seconds old, so this only ranks: the node
//! that is asked has the last word, and the next is asked where it says no.
//!
//! Those that hold what the sandbox starts from are a class of their own, before all others: locality as a weight among many makes
//! more than a third of creates fetch what another node has, by a model of 1,000 nodes. Among a few of a class, drawn
//! by chance, the one with most free memory is first: the emptiest of all would be everybody's choice until it is heard of again.

use firkin_server::nodes::{NodeId, Wanted};
use ring::digest::{SHA256, digest};

use crate::members::Member;

/// So many of a class are drawn, of which the emptiest is asked first.
const DRAWN: usize = 3;

/// Nodes that are asked for one sandbox.
const MOST: usize = 3;

/// What the node where a create came in counts for more than it has, by so many of a hundred: a hop less.
const OWN_BONUS_PERCENT: u64 = 10;

/// The nodes to ask, by what is known of them. `chance` draws: the same one, the same nodes.
pub(crate) fn places(nodes: &[Member], own: &NodeId, wanted: &Wanted, chance: u64) -> Vec<NodeId> {
    let may = |member: &&Member| {
        let fits = member.free_memory_mib.map_or(member.id == *own, |free| free >= wanted.memory_mib);
        member.alive && !member.cordoned && fits
    };
    if let Some(once) = &wanted.once {
        // One and no other, whoever has room or holds what by now: it remembers the first request with the key.
        let first = nodes.iter().filter(|member| member.alive).max_by_key(|member| by_key(once, &member.id));
        return first.map(|member| member.id.clone()).into_iter().collect();
    }
    let holds = |member: &&Member| member.holds.as_ref().is_some_and(|held| held.contains(&wanted.build));
    let (holders, others): (Vec<&Member>, Vec<&Member>) = nodes.iter().filter(may).partition(holds);
    // Who says what it holds, and does not hold this, is asked last.
    let (unsaid, without): (Vec<&Member>, Vec<&Member>) = others.into_iter().partition(|member| member.holds.is_none());
    let mut asked: Vec<NodeId> = Vec::new();
    for (salt, class) in (1..).zip([holders, unsaid, without]) {
        asked.extend(ranked(class, own, chance ^ salt));
    }
    asked.truncate(MOST);
    asked
}

/// A class in the order in which to ask it.
fn ranked(mut class: Vec<&Member>, own: &NodeId, chance: u64) -> Vec<NodeId> {
    class.sort_by_cached_key(|member| by_key(&chance.to_string(), &member.id));
    class.truncate(DRAWN.max(MOST));
    let room = |member: &&Member| {
        let free = member.free_memory_mib.unwrap_or_default();
        free + if member.id == *own { free / 100 * OWN_BONUS_PERCENT } else { 0 }
    };
    class.sort_by_key(|member| std::cmp::Reverse(room(member)));
    class.into_iter().map(|member| member.id.clone()).collect()
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
        Member { id, name, address, term: 1, alive: true, cordoned: false, free_memory_mib: free, holds }
    }

    fn wanted() -> Wanted {
        Wanted { build: "x".to_owned(), memory_mib: 512, once: None }
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
            of.extend(first);
        }
        assert_eq!(of.len(), 6);
    }
}
