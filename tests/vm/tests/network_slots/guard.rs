//! The host's rules are watched: who takes them away cuts the guests off, and they come back.

use std::{net::Ipv4Addr, process::Command};

use firkin_network::{Egress, NetworkPool};

use crate::{
    nftables::{self, DORMANT, OWNED, delete_chain, delete_table, flush_chain, flush_ruleset, table},
    world::{Guest, HOST, SERVER, World, eventually, in_world, is_from},
};

/// An address that the host got when slots were there already: only the host's rules know it.
const LATER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn gets_another_address(world: &World) {
    world.host.ip(&[format!("address add {LATER}/32 dev lo")]);
    world.host.serve(Ipv4Addr::UNSPECIFIED, 80);
}

/// Whether the slots are cut off.
fn is_cut(world: &World) -> bool {
    let rules = world.host.run(|| Command::new("ip").args(["rule", "show"]).output().unwrap().stdout);
    String::from_utf8(rules).unwrap().contains("198.18.")
}

#[test]
fn guests_are_cut_off_for_as_long_as_the_hosts_rules_are_gone() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        gets_another_address(&world);
        assert!(guest.inside.hear((SERVER, 80)).is_ok() && guest.inside.ask((LATER, 80)).is_err());

        // Another program takes the table for itself, so that it cannot be put back.
        let name = format!("firkin_{:02}", pool.claim());
        let taken = [delete_table(&name), table(&name, OWNED)];
        let owner = world.host.run(move || nftables::commit(taken.into()).unwrap());
        eventually("guests are cut off", || is_cut(&world)).await;
        for (what, address) in [("the host", HOST), ("its new address", LATER), ("the internet", SERVER)] {
            let answer = guest.inside.ask((address, 80));
            assert!(answer.is_err(), "{what} answered while the host's rules were gone: {answer:?}");
        }
        // A slot that is made meanwhile is cut off too.
        let other = pool.acquire(Egress::Allowed).await.unwrap();
        let other_guest = Guest::start(&other);
        assert!(other_guest.inside.ask((LATER, 80)).is_err());

        drop(owner);
        eventually("the cut ends", || !is_cut(&world)).await;
        for guest in [&guest, &other_guest] {
            let answer = guest.inside.hear((SERVER, 80));
            assert!(is_from(&answer, HOST), "egress did not come back: {answer:?}");
            assert!(guest.inside.ask((LATER, 80)).is_err(), "the host answers after its rules came back");
        }
        drop((guest, slot, other_guest, other));
        pool.close().await.unwrap();
        assert_eq!(world.tables(), Vec::<String>::new());
    });
}

#[test]
fn whatever_is_taken_of_the_hosts_rules_comes_back() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        gets_another_address(&world);
        let name = format!("firkin_{:02}", pool.claim());
        let takings = [
            ("the ruleset", flush_ruleset()),
            ("the table", delete_table(&name)),
            ("a chain", delete_chain(&name, "from_guests")),
            ("a chain's rules", flush_chain(&name, "input")),
            ("the table's force", table(&name, DORMANT)),
        ];
        for (what, taking) in takings {
            world.host.run(move || nftables::commit(vec![taking]).unwrap());
            // Neither egress nor a cut shows that a rule of another chain is missing, and nobody has seen that yet.
            eventually(&format!("all is as it was before {what} was taken"), || {
                let egress = guest.inside.ask((SERVER, 80));
                egress.is_ok_and(|peer| peer == HOST.to_string()) && !is_cut(&world) && guest.inside.ask((LATER, 80)).is_err()
            })
            .await;
        }

        // Changes of others are nobody's business.
        let foreign = vec![table("others", 0)];
        world.host.run(move || nftables::commit(foreign).unwrap());
        assert!(guest.inside.hear((SERVER, 80)).is_ok());
        drop((guest, slot));
        pool.close().await.unwrap();
        assert_eq!(world.tables(), Vec::<String>::new());
    });
}

#[test]
fn a_cut_ends_with_the_next_server() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let name = format!("firkin_{:02}", pool.claim());
        let taken = [delete_table(&name), table(&name, OWNED)];
        let owner = world.host.run(move || nftables::commit(taken.into()).unwrap());
        eventually("guests are cut off", || is_cut(&world)).await;
        drop(pool);
        // What it does when it is told to end, it does before the table is free.
        eventually("nobody watches the rules", || !world.is_guarded()).await;
        drop(owner);
        assert!(is_cut(&world), "a cut ended with nobody to put the rules back");
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        assert!(!is_cut(&world));
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        assert!(guest.inside.hear((SERVER, 80)).is_ok());
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}
