//! The rules of a slot hold without the host's.

use std::{net::Ipv4Addr, time::Instant};

use firkin_network::{Egress, NetworkConfig, NetworkPool};

use crate::{
    lifetimes::{kill, machine_in},
    nftables,
    world::{
        Guest, HOST, Namespace, OPENED, PATIENCE, PRIVATE, RESOLVER, SERVER, assert_nothing_denied_answers, eventually, in_world,
        way_out,
    },
};

#[test]
fn a_slot_denies_what_the_host_denies_when_the_hosts_rules_are_gone() {
    in_world(async |world| {
        // Without the host's translation, answers come back all the same.
        world.internet.ip(&[format!("route add 198.18.0.0/15 via {HOST}")]);
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let other = pool.acquire(Egress::Allowed).await.unwrap();
        Namespace::of_slot(&other).serve(Ipv4Addr::UNSPECIFIED, 80);
        world.host.serve(Ipv4Addr::UNSPECIFIED, 80);
        world.host.serve_udp(HOST, 80);
        let claim = pool.claim();

        // The server was killed; nobody looks after the host's rules.
        drop(pool);
        world.host.run(|| nftables::commit(vec![nftables::flush_ruleset()]).unwrap());
        assert_eq!(world.tables(), Vec::<String>::new());
        for (what, address, port) in [("a server", SERVER, 80), ("a resolver", RESOLVER, 53), ("an opened network", OPENED, 80)] {
            assert!(guest.inside.hear((address, port)).is_ok(), "{what} does not answer");
        }
        assert_nothing_denied_answers(&guest, claim, [slot.index(), other.index()]);
        // Someone who broke out of the machine, and has the rights of its process, gets no further.
        let slot_ns = Namespace::of_slot(&slot);
        for address in [HOST, SERVER, way_out(claim, slot.index(), 0)] {
            assert!(slot_ns.ask((address, 80)).is_err(), "{address} answered the slot's namespace");
        }
        drop((guest, slot, other));
    });
}

#[test]
fn an_adopted_slot_follows_the_networks_that_its_new_server_opens() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let (index, pid) = (slot.index(), machine_in(&slot));
        assert!(guest.inside.hear((OPENED, 80)).is_ok() && guest.inside.ask((PRIVATE, 80)).is_err());
        slot.release();
        drop(pool);

        let reachable = vec![format!("{PRIVATE}/32").parse().unwrap()];
        let config = NetworkConfig { reachable, ..world.config("a") };
        // A process that another test is starting has the claim's file until it runs its program.
        let deadline = Instant::now() + PATIENCE;
        let again = loop {
            let pool = NetworkPool::open(config.clone()).await.unwrap();
            if pool.survivors().contains(&index) {
                break pool;
            }
            assert!(Instant::now() < deadline, "the claim is not free");
            pool.close().await.unwrap();
        };
        let slot = again.adopt(pid, index).await.unwrap();
        assert!(guest.inside.hear((PRIVATE, 80)).is_ok(), "a network that was opened is not reached");
        assert!(guest.inside.ask((OPENED, 80)).is_err(), "a network that was closed is reached");
        kill(pid);
        drop((guest, slot));
        eventually("ways out are gone", || world.interfaces("fk").is_empty()).await;
        again.close().await.unwrap();
    });
}
