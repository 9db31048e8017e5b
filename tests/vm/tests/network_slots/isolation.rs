//! Who reaches whom: the host its guest, a guest the internet when allowed, and nobody anything else.

use std::{net::Ipv4Addr, time::Duration};

use firkin_network::{
    ConnectError, Egress, EgressFilter, GATEWAY_ADDRESS, GUEST_ADDRESS, MAX_RULES, NetworkConfig, NetworkPool, Rates,
};
use tokio::io::AsyncReadExt;

use crate::world::{
    Flow, Guest, HOST, METADATA, Namespace, OPENED, PATIENCE, PRIVATE, RESOLVER, SERVER, SILENCE, assert_nothing_denied_answers,
    eventually, in_each_world, in_world, is_from, way_out,
};

#[test]
fn the_host_reaches_guest_ports_and_is_told_why_not() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Denied).await.unwrap();
        let guest = Guest::start(&slot);
        guest.inside.serve(GUEST_ADDRESS, 8080);

        let mut text = String::new();
        slot.connect(8080, PATIENCE).await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, GATEWAY_ADDRESS.to_string(), "the guest sees its gateway as the peer");

        let refused = slot.connect(8081, PATIENCE).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Refused { port: 8081 }), "{refused}");

        drop(guest);
        let timeout = slot.connect(8080, SILENCE).await.unwrap_err();
        assert!(matches!(timeout, ConnectError::Timeout { port: 8080, .. }), "{timeout}");

        let connector = slot.connector();
        drop(slot);
        let gone = connector.connect(8080, PATIENCE).await.unwrap_err();
        assert!(matches!(gone, ConnectError::Gone { .. }), "{gone}");
        pool.close().await.unwrap();
    });
}

#[test]
fn an_allowed_guest_reaches_the_internet_and_nothing_else() {
    in_each_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let other = pool.acquire(Egress::Allowed).await.unwrap();
        let other_guest = Guest::start(&other);
        other_guest.inside.serve(Ipv4Addr::UNSPECIFIED, 80);
        world.host.serve(Ipv4Addr::UNSPECIFIED, 80);
        world.host.serve_udp(HOST, 80);
        Namespace::of_slot(&slot).serve(Ipv4Addr::UNSPECIFIED, 80);
        Namespace::of_slot(&other).serve(Ipv4Addr::UNSPECIFIED, 80);

        for (address, port) in [(SERVER, 80), (RESOLVER, 53), (OPENED, 80)] {
            let tcp = guest.inside.hear((address, port));
            assert!(is_from(&tcp, HOST), "tcp to {address}:{port}: {tcp:?}");
            let udp = guest.inside.hear_udp(GUEST_ADDRESS, (address, port));
            assert!(is_from(&udp, HOST), "udp to {address}:{port}: {udp:?}");
        }

        assert_nothing_denied_answers(&guest, pool.claim(), [slot.index(), other.index()]);

        // Even someone who broke out of the machine into the slot's namespace meets the host's rules.
        let slot_ns = Namespace::of_slot(&slot);
        for (what, address) in
            [("the host", HOST), ("another slot", way_out(pool.claim(), other.index(), 1)), ("metadata", METADATA)]
        {
            assert!(slot_ns.ask((address, 80)).is_err(), "{what} answered the slot's namespace");
        }
        let spoofed = Ipv4Addr::new(203, 0, 113, 77);
        guest.inside.ip(&[format!("address add {spoofed}/32 dev lo")]);
        let answer = guest.inside.ask_udp(spoofed, (SERVER, 80));
        assert!(answer.is_err(), "a foreign source address left the guest: {answer:?}");
        assert!(world.host.ask((way_out(pool.claim(), slot.index(), 1), 80)).is_err(), "the host reaches a slot by its way out");

        drop((guest, other_guest, slot, other));
        pool.close().await.unwrap();
    });
}

#[test]
fn egress_is_denied_by_absence_and_changes_at_run_time() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Denied).await.unwrap();
        let guest = Guest::start(&slot);
        assert!(guest.inside.ask((SERVER, 80)).is_err());
        assert_eq!(world.interfaces("fk"), Vec::<String>::new());

        slot.set_egress(Egress::Allowed).await.unwrap();
        assert_eq!(slot.egress(), Egress::Allowed);
        let answer = guest.inside.hear((SERVER, 80));
        assert!(is_from(&answer, HOST), "{answer:?}");

        slot.set_egress(Egress::Denied).await.unwrap();
        assert!(guest.inside.ask((SERVER, 80)).is_err());
        assert_eq!(world.interfaces("fk"), Vec::<String>::new());

        slot.set_egress(Egress::Allowed).await.unwrap();
        let answer = guest.inside.hear((SERVER, 80));
        assert!(is_from(&answer, HOST), "{answer:?}");
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn a_filter_takes_away_and_never_gives() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let (server, opened) = (format!("{SERVER}/32"), format!("{OPENED}/32"));
        let private = format!("{PRIVATE}/32");
        // allowed, denied, whether the server and whether the opened network answer
        let table: [(&[&str], &[&str], bool, bool); 6] = [
            (&[], &[&server], false, true),
            (&[], &["203.0.113.0/24"], false, true),
            (&[&server], &["0.0.0.0/0"], true, false),
            (&[&server, &opened], &[&server, &opened, "0.0.0.0/0"], true, true),
            (&[], &["0.0.0.0/0"], false, false),
            (&[&private], &[], true, true),
        ];
        for (allow, deny, to_server, to_opened) in table {
            let filter = EgressFilter { allow: nets(allow), deny: nets(deny) };
            slot.set_filter(Some(&filter)).await.unwrap();
            for (address, reached) in [(SERVER, to_server), (OPENED, to_opened), (PRIVATE, false)] {
                let answer = if reached { guest.inside.hear((address, 80)) } else { guest.inside.ask((address, 80)) };
                assert_eq!(answer.is_ok(), reached, "{address} with {filter:?}: {answer:?}");
            }
        }
        slot.set_filter(None).await.unwrap();
        let answer = guest.inside.hear((SERVER, 80));
        assert!(is_from(&answer, HOST), "{answer:?}");

        // The longest lists that are accepted fit one transaction.
        let many = |third: u8| (0..=127).map(|last| format!("9.9.{third}.{last}/32").parse().unwrap()).collect::<Vec<_>>();
        assert_eq!(many(0).len(), MAX_RULES);
        slot.set_filter(Some(&EgressFilter { allow: many(1), deny: many(2) })).await.unwrap();
        assert!(guest.inside.hear((SERVER, 80)).is_ok());
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn a_filter_ends_what_was_under_way() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let flow = Flow::open(&guest, (SERVER, 80));
        flow.must_go_on().await;
        slot.set_filter(Some(&EgressFilter { allow: Vec::new(), deny: vec!["203.0.113.1/32".parse().unwrap()] })).await.unwrap();
        assert!(!flow.goes_on(), "an established flow went on");
        slot.set_filter(None).await.unwrap();
        flow.must_go_on().await;
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn a_cancelled_change_of_egress_is_not_forgotten() {
    in_world(async |world| {
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        let mut slot = pool.acquire(Egress::Denied).await.unwrap();
        for microseconds in [0, 50, 200, 800, 2000] {
            let change = slot.set_egress(Egress::Allowed);
            drop(tokio::time::timeout(Duration::from_micros(microseconds), change).await);
            slot.set_egress(Egress::Denied).await.unwrap();
            assert_eq!(world.interfaces("fk"), Vec::<String>::new(), "after {microseconds} us");
        }
        let change = slot.set_egress(Egress::Allowed);
        drop(tokio::time::timeout(Duration::from_micros(300), change).await);
        drop(slot);
        pool.close().await.unwrap();
        eventually("no way out is left", || world.interfaces("fk").is_empty()).await;
    });
}

#[test]
fn the_host_routes_for_its_guests_only() {
    in_world(async |world| {
        // A neighbour on the uplink's network who would like to use the host as a router.
        let inner = Namespace::new();
        world.host.ip(&[
            format!("link add in0 type veth peer name in1 netns {}", inner.path()),
            "address add 172.31.0.1/24 dev in0".into(),
            "link set in0 up".into(),
        ]);
        inner.ip(&[
            "link set in1 up".into(),
            "address add 172.31.0.2/24 dev in1".into(),
            "route add default via 172.31.0.1".into(),
        ]);
        inner.serve(Ipv4Addr::UNSPECIFIED, 80);
        world.internet.ip(&[format!("route add 172.31.0.0/24 via {HOST}")]);
        let inner_server = Ipv4Addr::new(172, 31, 0, 2);

        assert!(!world.forwards());
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        assert!(world.forwards(), "replies to guests come in by the uplink");
        assert!(world.internet.ask((inner_server, 80)).is_err(), "the host became a router for strangers");
        pool.close().await.unwrap();
        assert!(!world.forwards(), "the last server leaves the host as it was");
    });
}

#[test]
fn one_guest_cannot_fill_the_table_of_flows() {
    in_world(async |world| {
        let table = fs_err::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
        let config = NetworkConfig { max_slots: 64, flow_percent: 25, ..world.config("a") };
        // A share of the host's table for each slot, so that all of them have a quarter; never more than 4096, never less than 512.
        let share = (table.trim().parse::<u32>().unwrap() / 4 / u32::from(config.max_slots)).clamp(512, 4096);
        let pool = NetworkPool::open(config).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        let flows = |namespace: &Namespace| {
            let read = || fs_err::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap();
            namespace.run(read).trim().parse::<u32>().unwrap()
        };
        let inside = guest.inside.clone();
        let flood = move || {
            inside.run(|| {
                let socket = std::net::UdpSocket::bind((GUEST_ADDRESS, 0)).unwrap();
                for port in 10_000..16_000 {
                    // Some are lost on the way, as they may be; refusals of earlier ones come back as errors.
                    socket.send_to(b"?", (SERVER, port)).ok();
                }
            });
        };
        let slot_ns = Namespace::of_slot(&slot);
        eventually("the bound is reached", || {
            flood();
            flows(&slot_ns) >= share - 96
        })
        .await;
        flood();
        assert!(flows(&slot_ns) <= share + 104, "{} flows of one guest", flows(&slot_ns));
        assert!(flows(&world.host) <= share + 104, "{} flows on the host", flows(&world.host));
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}

#[test]
fn one_guest_sends_no_more_than_its_rate() {
    in_world(async |world| {
        let rates = Rates { packets_per_second: 100, bytes_per_second: 125_000_000 };
        let pool = NetworkPool::open(NetworkConfig { rates, ..world.config("a") }).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        let guest = Guest::start(&slot);
        assert!(guest.inside.hear((SERVER, 80)).is_ok());
        let answers = guest.inside.run(|| {
            let socket = std::net::UdpSocket::bind((GUEST_ADDRESS, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.connect((SERVER, 80)).unwrap();
            let start = std::time::Instant::now();
            for _ in 0..2000 {
                socket.send(b"?").unwrap();
            }
            socket.recv(&mut [0; 64]).expect("one is answered");
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            let answers = 1 + std::iter::from_fn(|| socket.recv(&mut [0; 64]).ok()).count();
            (answers, start.elapsed())
        });
        let (answered, millis) = (u128::try_from(answers.0).unwrap(), answers.1.as_millis());
        assert!(answered < (millis / 10 + 120).min(1500), "{answers:?}");
        drop((guest, slot));
        pool.close().await.unwrap();
    });
}
