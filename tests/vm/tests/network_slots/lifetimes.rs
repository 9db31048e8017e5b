//! What comes must go: slots, servers and crashes leave nothing, and servers on one host do not meet.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    os::fd::AsRawFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use firkin_engine::{Attachment, AttachmentKind};
use firkin_network::{
    Egress, GATEWAY_ADDRESS, GUEST_ADDRESS, NetworkConfig, NetworkPool, NetworkSlot, OpenError, SlotError, SweptNetwork, open_tap,
};

use tokio::io::AsyncReadExt;

use crate::world::{
    Guest, HOST, Namespace, PATIENCE, SERVER, World, alone_in_world, eventually, in_world, is_from, is_referenced, open_files,
};

#[test]
fn many_slots_leave_nothing() {
    alone_in_world("lifetimes::many_slots_leave_nothing", async |world| {
        for attachment in [AttachmentKind::Tap, AttachmentKind::Interface] {
            many_slots(&world, NetworkConfig { attachment, prepared: 3, prepared_sealed: 1, ..world.config("a") }).await;
        }
    });
}

async fn many_slots(world: &World, config: NetworkConfig) {
    // Once for what a process opens only once.
    NetworkPool::open(config.clone()).await.unwrap().close().await.unwrap();
    // A thread of the pool that has just closed may still hold descriptors: the count can only be too high by a few, which
    // is why fewer are fine at the end. A slot that leaked would show with several for each of twenty.
    let before = (world.interfaces(""), world.tables(), open_files());

    let pool = NetworkPool::open(config).await.unwrap();
    let mut namespaces = BTreeSet::new();
    let mut uids = BTreeSet::new();
    for round in 0..5 {
        let mut slots = Vec::new();
        for egress in [Egress::Allowed, Egress::Denied, Egress::Allowed, Egress::Allowed] {
            slots.push(pool.acquire(egress).await.unwrap());
        }
        for slot in &slots {
            assert!(namespaces.insert(Namespace::of_slot(slot).identity()) || round > 0);
            assert!(uids.insert(slot.uid()), "user id {} was used again at once", slot.uid());
        }
    }
    eventually("the pool is full again", || pool.ready() == (3, 1)).await;
    eventually("ways out of used slots are gone", || world.interfaces("fk").len() == 3).await;
    pool.close().await.unwrap();

    assert_eq!((&before.0, &before.1), (&world.interfaces(""), &world.tables()));
    eventually("threads have closed their descriptors", || open_files() <= before.2).await;
    for namespace in namespaces {
        eventually("nobody holds a slot's namespace", || !is_referenced(&namespace)).await;
    }
}

#[test]
fn cancelled_acquires_leave_nothing() {
    alone_in_world("lifetimes::cancelled_acquires_leave_nothing", async |world| {
        NetworkPool::open(world.config("a")).await.unwrap().close().await.unwrap();
        let before = (world.interfaces(""), world.tables(), open_files());
        let pool = NetworkPool::open(world.config("a")).await.unwrap();
        for step in 0..20 {
            let acquire = pool.acquire(Egress::Allowed);
            drop(tokio::time::timeout(Duration::from_micros(step * 300), acquire).await);
        }
        pool.close().await.unwrap();
        assert_eq!((&before.0, &before.1), (&world.interfaces(""), &world.tables()));
        eventually("threads have closed their descriptors", || open_files() <= before.2).await;
    });
}

#[test]
fn slots_are_bounded_and_come_back() {
    in_world(async |world| {
        let config = NetworkConfig { max_slots: 2, prepared_sealed: 1, ..world.config("a") };
        let pool = NetworkPool::open(config).await.unwrap();
        eventually("one slot is ready", || pool.ready() == (0, 1)).await;
        let first = pool.acquire(Egress::Allowed).await.unwrap();
        // The other number lies in the slot that was prepared without egress.
        let second = pool.acquire(Egress::Allowed).await.unwrap();
        assert_eq!(second.egress(), Egress::Allowed);
        let error = pool.acquire(Egress::Denied).await.unwrap_err();
        assert!(matches!(error, SlotError::Exhausted { limit: 2 }), "{error}");
        drop(first);
        let third = pool.acquire(Egress::Denied).await.unwrap();
        drop((second, third));
        pool.close().await.unwrap();

        let config = NetworkConfig { max_slots: 2, prepared: 3, ..world.config("a") };
        let error = NetworkPool::open(config).await.unwrap_err();
        assert!(matches!(error, OpenError::TooManySlots { slots: 2, prepared: 3 }), "{error}");
    });
}

#[test]
fn one_pool_serves_engines_of_both_kinds() {
    in_world(async |world| {
        let pool = NetworkPool::open(NetworkConfig { max_slots: 2, prepared: 2, ..world.config("a") }).await.unwrap();
        eventually("slots are ready", || pool.ready() == (2, 0)).await;
        // All numbers lie in slots that were prepared for another engine.
        let other = pool.acquire_for(AttachmentKind::Interface, Egress::Denied).await.unwrap();
        let own = pool.acquire(Egress::Allowed).await.unwrap();
        assert!(matches!(own.engine_slot().unwrap().attachment, Attachment::Tap(_)));
        assert!(matches!(other.engine_slot().unwrap().attachment, Attachment::Interface(_)));
        for slot in [&own, &other] {
            let guest = Guest::start(slot);
            guest.inside.serve(GUEST_ADDRESS, 8080);
            let mut text = String::new();
            slot.connect(8080, PATIENCE).await.unwrap().read_to_string(&mut text).await.unwrap();
            assert_eq!(text, GATEWAY_ADDRESS.to_string());
            match slot.egress() {
                Egress::Allowed => assert!(is_from(&guest.inside.hear((SERVER, 80)), HOST)),
                Egress::Denied => assert!(guest.inside.ask((SERVER, 80)).is_err()),
            }
        }
        drop((own, other));
        pool.close().await.unwrap();
    });
}

#[test]
fn two_servers_on_one_host_do_not_meet() {
    in_world(async |world| {
        let a = NetworkPool::open(world.config("a")).await.unwrap();
        let b = NetworkPool::open(world.config("b")).await.unwrap();
        assert_ne!(a.claim(), b.claim());
        let (slot_a, slot_b) = (a.acquire(Egress::Allowed).await.unwrap(), b.acquire(Egress::Allowed).await.unwrap());
        assert_ne!(slot_a.uid(), slot_b.uid());
        let (guest_a, guest_b) = (Guest::start(&slot_a), Guest::start(&slot_b));
        for guest in [&guest_a, &guest_b] {
            assert!(is_from(&guest.inside.hear((SERVER, 80)), HOST));
        }
        Namespace::of_slot(&slot_b).serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        let b_out = std::net::Ipv4Addr::new(198, 18, u8::try_from(b.claim() * 8).unwrap(), 1);
        assert!(guest_a.inside.ask((b_out, 80)).is_err(), "a guest of one server reached a slot of another");

        drop((guest_a, slot_a));
        a.close().await.unwrap();
        assert!(world.forwards(), "the other server still needs its uplink");
        assert!(is_from(&guest_b.inside.hear((SERVER, 80)), HOST), "one server's end cut another's guests off");
        drop((guest_b, slot_b));
        b.close().await.unwrap();
        assert!(world.tables().is_empty());
    });
}

/// Set for the child of the crash tests: directory of claims, first user id, and whether to leave a machine running.
const CHILD: &str = "FIRKIN_NETWORK_TEST_CHILD";

/// Not a test of its own: the server that the crash tests kill.
#[test]
#[expect(clippy::print_stdout, reason = "how it tells the test that it is ready")]
fn crash_child() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let [dir, first_uid, machine] = role.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let config = NetworkConfig {
        claims_dir: dir.into(),
        first_uid: first_uid.parse().unwrap(),
        prepared: 2,
        resolvers: Some(vec![]),
        ..NetworkConfig::new("child")
    };
    runtime.block_on(async {
        let pool = NetworkPool::open(config).await.unwrap();
        let slot = pool.acquire(Egress::Allowed).await.unwrap();
        eventually("slots are prepared", || pool.ready().0 == 2).await;
        let pid = if machine == "machine" { start_machine(&slot.netns().as_raw_fd().to_string(), slot.uid()) } else { 0 };
        let comm = format!("/proc/{pid}/comm");
        eventually("the machine runs", || pid == 0 || fs_err::read_to_string(&comm).unwrap().trim() == "sleep").await;
        println!("\nREADY {} {} {pid}", pool.claim(), slot.index());
        std::future::pending::<()>().await;
    });
}

/// A process in the slot, as the slot's user, that waits to be killed.
#[expect(clippy::zombie_processes, reason = "it outlives the process that starts it, which is killed: that is the test")]
fn start_machine(netns_fd: &str, uid: u32) -> u32 {
    let child = Command::new("nsenter")
        .arg(format!("--net=/proc/{}/fd/{netns_fd}", std::process::id()))
        .args(["setpriv", "--reuid", &uid.to_string(), "--regid", &uid.to_string(), "--clear-groups", "sleep", "600"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    child.id()
}

/// Starts the child server in this world, waits until it has slots, and kills it. Returns claim, slot and machine.
fn crash(world: &World, machine: &str) -> (u16, u16, u32) {
    let role = format!("{} {} {machine}", world.claims.path().display(), world.first_uid);
    let mut child: Child = world.host.run(move || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifetimes::crash_child", "--nocapture"])
            .env(CHILD, role)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).find(|line| line.starts_with("READY")).expect("the child became ready");
    let words: Vec<u32> = ready.split(' ').skip(1).map(|word| word.parse().unwrap()).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    (words[0].try_into().unwrap(), words[1].try_into().unwrap(), words[2])
}

#[test]
fn a_crashed_server_is_swept_by_the_next_one() {
    in_world(async |world| {
        let (claim, _, _) = crash(&world, "none");
        assert_eq!(world.tables(), [format!("firkin_{claim:02}")], "a crash leaves its table");
        let live = NetworkPool::open(world.config("another")).await.unwrap();
        assert_eq!(world.tables(), [format!("firkin_{:02}", live.claim())], "the next server sweeps it");
        eventually("the kernel has deleted the dead server's interfaces", || world.interfaces("fk").is_empty()).await;
        live.close().await.unwrap();
        assert!(world.tables().is_empty());
        assert!(!world.forwards());

        let (claim, _, _) = crash(&world, "none");
        let again = NetworkPool::open(world.config("child")).await.unwrap();
        assert_eq!(again.claim(), claim, "the same owner gets its claim again");
        assert_eq!(world.interfaces("fk"), Vec::<String>::new());
        again.close().await.unwrap();
    });
}

#[test]
fn a_restarted_server_adopts_its_machines() {
    in_world(async |world| {
        let (claim, index, pid) = crash(&world, "machine");
        let interface = format!("fk{claim:02}-{index}");
        // Prepared slots die with their server; the one with a machine lives.
        eventually("only the machine's way out is left", || world.interfaces("fk") == [interface.clone()]).await;

        let stranger = NetworkPool::open(world.config("stranger")).await.unwrap();
        assert_ne!(stranger.claim(), claim, "machines keep their dead server's claim");
        stranger.close().await.unwrap();
        assert!(world.forwards(), "machines of a dead server still need the uplink");

        let pool = NetworkPool::open(world.config("child")).await.unwrap();
        assert_eq!((pool.claim(), pool.survivors()), (claim, BTreeSet::from([index])));
        assert_eq!(world.interfaces("fk"), [interface]);
        let fresh = pool.acquire(Egress::Denied).await.unwrap();
        assert_ne!(fresh.index(), index, "a survivor's number is not given out");

        let refused = pool.adopt(std::process::id(), index).await.unwrap_err();
        assert!(matches!(refused, SlotError::NotOurs { .. }), "{refused}");
        let slot = pool.adopt(pid, index).await.unwrap();
        assert_eq!((slot.index(), slot.egress()), (index, Egress::Allowed));
        assert!(slot.engine_slot().is_err(), "its machine has the tap");
        let guest = Guest::on(Namespace::of_slot(&slot).run(|| open_tap("tap0").unwrap()));
        assert!(is_from(&guest.inside.hear((SERVER, 80)), HOST), "it still has egress");
        let twice = pool.adopt(pid, index).await;
        assert!(twice.is_err(), "a slot was adopted twice");

        // A server that ends in order can leave machines running, too.
        slot.release();
        drop(fresh);
        pool.close().await.unwrap();
        let pool = NetworkPool::open(world.config("child")).await.unwrap();
        assert_eq!((pool.claim(), pool.survivors()), (claim, BTreeSet::from([index])));
        let slot = pool.adopt(pid, index).await.unwrap();
        assert!(is_from(&guest.inside.hear((SERVER, 80)), HOST), "it lost its egress to a restart");

        kill(pid);
        drop((slot, guest));
        eventually("the machine is gone", || !is_running(pid)).await;
        pool.close().await.unwrap();
        assert!(!world.forwards());
    });
}

/// Whether `pid` runs; a zombie does not.
fn is_running(pid: u32) -> bool {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| !status.contains("State:\tZ"))
}

/// Starts a machine in a slot, as an engine would.
pub(crate) fn machine_in(slot: &NetworkSlot) -> u32 {
    let pid = start_machine(&slot.netns().as_raw_fd().to_string(), slot.uid());
    while fs_err::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() != "sleep") {
        std::thread::yield_now();
    }
    pid
}

#[test]
fn a_sweep_ends_what_nobody_owns_and_nothing_else() {
    in_world(async |world| {
        let (claim, index, orphan) = crash(&world, "machine");
        let (other_claim, _, stranger) = {
            let dead = NetworkPool::open(world.config("stranger")).await.unwrap();
            let slot = dead.acquire(Egress::Allowed).await.unwrap();
            let found = (dead.claim(), slot.index(), machine_in(&slot));
            slot.release();
            dead.close().await.unwrap();
            found
        };
        assert_ne!(other_claim, claim);
        let pool = NetworkPool::open(world.config("child")).await.unwrap();
        assert_eq!((pool.claim(), pool.survivors()), (claim, BTreeSet::from([index])));
        let owned = pool.acquire(Egress::Allowed).await.unwrap();
        let released = pool.acquire(Egress::Allowed).await.unwrap();
        let machines = [machine_in(&owned), machine_in(&released)];
        released.release();

        let swept = pool.sweep().await.unwrap();
        assert_eq!((swept.processes, swept.numbers), (vec![orphan], vec![index]));
        assert!(!is_running(orphan));
        eventually("the orphan's way out is gone", || !world.interfaces("fk").contains(&format!("fk{claim:02}-{index}"))).await;
        assert!(machines.into_iter().all(is_running), "a machine with an owner was ended");
        assert!(is_running(stranger), "another server's machine was ended");
        assert!(pool.survivors().is_empty());
        assert_eq!(pool.sweep().await.unwrap(), SweptNetwork::default(), "a second sweep finds nothing");

        for pid in machines.into_iter().chain([stranger]) {
            kill(pid);
            eventually("a machine is gone", || !is_running(pid)).await;
        }
        drop(owned);
        pool.close().await.unwrap();
        NetworkPool::open(world.config("stranger")).await.unwrap().close().await.unwrap();
        assert_eq!(fs_err::read_dir(world.claims.path()).unwrap().count(), 0, "claims that nobody holds have no files");
    });
}

#[test]
fn a_sweep_never_takes_a_machine_that_is_being_launched() {
    in_world(async |world| {
        let pool = NetworkPool::open(NetworkConfig { max_slots: 8, ..world.config("a") }).await.unwrap();
        let launches = async {
            for _ in 0..20 {
                let slot = pool.acquire(Egress::Allowed).await.unwrap();
                let pid = tokio::task::block_in_place(|| machine_in(&slot));
                tokio::task::yield_now().await;
                assert!(is_running(pid), "a machine was taken while its owner had it");
                kill(pid);
                // One that was killed and takes long to die is no machine that is launched.
                eventually("the machine is gone", || !is_running(pid)).await;
                drop(slot);
            }
        };
        let sweeps = async {
            loop {
                let swept = pool.sweep().await.unwrap();
                assert_eq!((swept.processes, swept.numbers), (vec![], vec![]));
            }
        };
        tokio::select! {
            () = launches => {}
            () = sweeps => {}
        }
        pool.close().await.unwrap();
    });
}

pub(crate) fn kill(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), nix::sys::signal::Signal::SIGKILL).unwrap();
}
