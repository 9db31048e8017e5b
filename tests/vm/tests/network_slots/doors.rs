//! The doors of a slot: what is led to them, what passes beside them, and what is reached from behind them.

use std::net::SocketAddrV4;

use firkin_network::{Doors, Egress, EgressFilter, NetworkConfig, NetworkPool, Steering, original_destination};
use tokio::{io::AsyncWriteExt, task::JoinSet, time::timeout};

use crate::world::{
    Flow, Guest, HOST, METADATA, Namespace, OPENED, PATIENCE, PRIVATE, RESOLVER, SERVER, SILENCE, eventually, in_each_world,
    in_world, way_out,
};

/// All is denied but these.
fn only(allow: &[&str]) -> EgressFilter {
    let allow = allow.iter().map(|net| net.parse().unwrap()).collect();
    EgressFilter { allow, deny: vec!["0.0.0.0/0".parse().unwrap()] }
}

/// Answers everything that comes to the doors with where it was meant to go, or with `door`.
fn stand_behind(doors: Doors) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let Doors { connections, questions, questions_tcp } = doors;
    tasks.spawn(async move {
        while let Ok((mut client, _)) = connections.accept().await {
            let meant = original_destination(&client).map_or_else(|error| error.to_string(), |meant| meant.to_string());
            // One that waits no longer is no concern of those that come after it.
            client.write_all(meant.as_bytes()).await.ok();
        }
    });
    tasks.spawn(async move {
        while let Ok((mut client, _)) = questions_tcp.accept().await {
            client.write_all(b"door").await.ok();
        }
    });
    tasks.spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = questions.recv_from(&mut buffer).await {
            questions.send_to(b"door", from).await.unwrap();
        }
    });
    tasks
}

#[test]
fn a_steered_guest_comes_to_the_doors_and_nowhere_else() {
    in_each_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        slot.set_steering(Some(&only(&[])), Some(Steering::ByName)).await.unwrap();
        let asks = |address, port| guest.inside.ask((address, port)).ok();
        let asks_udp = |address, port| guest.inside.ask_udp(firkin_network::GUEST_ADDRESS, (address, port)).ok();
        let hears = |address, port| guest.inside.hear((address, port)).unwrap();
        let hears_udp = |address, port| guest.inside.hear_udp(firkin_network::GUEST_ADDRESS, (address, port)).unwrap();

        // Nobody is behind the doors: nothing passes.
        for port in [53, 80] {
            assert_eq!((asks(SERVER, port), asks_udp(SERVER, port)), (None, None), "{port}");
        }
        for _ in 0..2 {
            let mut behind = stand_behind(slot.connector().open_doors().await.unwrap());
            assert_eq!(hears(SERVER, 80), format!("{SERVER}:80"));
            assert_eq!(hears(SERVER, 4711), format!("{SERVER}:4711"), "whether or not a server is there");
            for resolver in [SERVER, RESOLVER] {
                assert_eq!((hears(resolver, 53), hears_udp(resolver, 53)), ("door".into(), "door".into()));
            }
            assert_eq!(asks_udp(SERVER, 80), None, "what is not TCP has no name, and is denied");
            // What no guest reaches is not led anywhere, nor is what is the slot's own.
            for address in [HOST, PRIVATE, METADATA, firkin_network::GATEWAY_ADDRESS] {
                assert_eq!(asks(address, 80), None, "{address}");
            }
            assert_eq!(asks(firkin_network::GATEWAY_ADDRESS, 15_001), None, "by itself nothing comes to a door");
            behind.shutdown().await;
            assert_eq!((asks(SERVER, 80), asks_udp(RESOLVER, 53)), (None, None), "the doors are closed");
        }
        slot.set_filter(None).await.unwrap();
        assert_eq!(hears(SERVER, 80), HOST.to_string());
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn what_is_allowed_by_address_passes_beside_the_doors_unless_all_is_steered() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let asks = |address, port| guest.inside.ask((address, port)).ok();
        let asks_udp = |address, port| guest.inside.ask_udp(firkin_network::GUEST_ADDRESS, (address, port)).ok();
        let hears = |address, port| guest.inside.hear((address, port)).unwrap();
        let hears_udp = |address, port| guest.inside.hear_udp(firkin_network::GUEST_ADDRESS, (address, port)).unwrap();
        let allowed = only(&[&format!("{SERVER}/32")]);
        // Under way before there was a rule.
        let old = Flow::open(&guest, (RESOLVER, 53));
        old.must_go_on().await;

        slot.set_steering(Some(&allowed), Some(Steering::ByName)).await.unwrap();
        assert_eq!((hears(SERVER, 80), hears_udp(SERVER, 80)), (HOST.to_string(), HOST.to_string()));
        assert_eq!((asks(OPENED, 80), asks_udp(OPENED, 80)), (None, None));
        assert_eq!((asks(SERVER, 53), asks_udp(SERVER, 53)), (None, None), "questions are answered behind the doors, or not");
        assert!(!old.goes_on(), "questions go on to a resolver");

        slot.set_steering(None, Some(Steering::AllTcp)).await.unwrap();
        assert_eq!((asks(SERVER, 80), hears_udp(SERVER, 80)), (None, HOST.to_string()));
        let behind = stand_behind(slot.connector().open_doors().await.unwrap());
        assert_eq!(hears(SERVER, 80), format!("{SERVER}:80"));
        drop((behind, guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn from_behind_the_doors_one_reaches_what_a_guest_would() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let other = pool.acquire(Egress::Allowed).await.unwrap();
        world.host.serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        Namespace::of_slot(&other).serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        let connector = slot.connector();
        let reaches = async |address, deadline| {
            let connected = timeout(deadline, connector.connect_outward(SocketAddrV4::new(address, 80))).await;
            let Ok(Ok(mut stream)) = connected else { return None };
            let mut answer = String::new();
            timeout(PATIENCE, tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer)).await.unwrap().unwrap();
            Some(answer)
        };
        for address in [SERVER, OPENED] {
            assert_eq!(reaches(address, PATIENCE).await, Some(HOST.to_string()), "{address}");
        }
        for address in [HOST, PRIVATE, METADATA, way_out(pool.claim(), slot.index(), 0), way_out(pool.claim(), other.index(), 1)]
        {
            assert_eq!(reaches(address, SILENCE).await, None, "{address}");
        }
        // Whoever is in the slot's namespace and may not mark sockets gets out of it as little as before.
        assert!(Namespace::of_slot(&slot).ask((SERVER, 80)).is_err());
        slot.set_egress(Egress::Denied).await.unwrap();
        assert_eq!(reaches(SERVER, SILENCE).await, None);
        drop((slot, other));
        pool.close().await.unwrap();
    });
}

#[test]
fn what_comes_to_the_doors_is_as_bounded_as_what_leaves() {
    in_world(async |world| {
        // Shared by so many slots, each has the fewest flows that one may have.
        let pool = NetworkPool::open(NetworkConfig { flow_percent: 1, ..world.config("a") }).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        slot.set_steering(Some(&only(&[])), Some(Steering::ByName)).await.unwrap();
        let behind = stand_behind(slot.connector().open_doors().await.unwrap());
        let inside = guest.inside.clone();
        let flood = move || {
            inside.run(|| {
                for port in 10_000..12_000 {
                    let socket = std::net::UdpSocket::bind((firkin_network::GUEST_ADDRESS, port)).unwrap();
                    // Some are lost on the way, as they may be.
                    socket.send_to(b"?", (SERVER, 53)).ok();
                }
            });
        };
        let slot_ns = Namespace::of_slot(&slot);
        let flows = || {
            let read = || fs_err::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            slot_ns.run(read).trim().parse::<u32>().unwrap()
        };
        eventually("the bound is reached", || {
            flood();
            flows() >= 500
        })
        .await;
        flood();
        assert!(flows() <= 520, "{} flows of one guest", flows());
        drop((behind, guest, slot));
        pool.close().await.unwrap();
    });
}
