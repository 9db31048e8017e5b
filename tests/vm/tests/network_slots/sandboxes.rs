//! Sandboxes of gVisor in slots: reached as machines are, held by the same rules, from one life to the next and over their server's end.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use firkin_engine::{Engine, contract::Guest};
use firkin_network::{Egress, GATEWAY_ADDRESS, GUEST_ADDRESS, NetworkConfig, NetworkPool, NetworkSlot};
use firkin_vm_tests::{agent_guest::AgentGuest, engine_gvisor::GvisorHarness};
use firkin_wire::ENVD_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    lifetimes::kill,
    sandbox::{Sandbox, exchange, pool},
    world::{
        HOST, METADATA, Namespace, OPENED, PATIENCE, PRIVATE, RESOLVER, SERVER, World, eventually, in_world, is_referenced,
        way_out,
    },
};

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n";
/// Many times what the buffers between a guest and its host hold.
const LARGE: usize = 48 << 20;

/// Bytes that are nowhere the same for long (xorshift).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).take(length / 8).flatten().collect()
}

const ECHO_PORT: u16 = 8000;

/// A server on the internet's side that says this to who comes, and then hears them out.
fn echoed(world: &World, said: Vec<u8>) -> JoinHandle<Vec<u8>> {
    let listener = world.internet.run(|| TcpListener::bind((SERVER, ECHO_PORT)).unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&said).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard
    })
}

/// Processes that run as a user of this world's slots.
fn processes(world: &World) -> Vec<u32> {
    let ours = world.first_uid..world.first_uid + 0x1_0000;
    let user = |pid: u32| {
        let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok().filter(|status| !status.contains("State:\tZ"))?;
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse::<u32>().ok())
    };
    let pids = fs_err::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| user(*pid).is_some_and(|user| ours.contains(&user))).collect()
}

#[test]
fn a_sandbox_is_reached_from_its_first_life_to_its_clones() {
    in_world(async |world| {
        let Some(harness) = GvisorHarness::open().await else { return };
        let pool = pool(&world, &harness, "a").await;
        let mut first = Sandbox::boot(&harness, pool.acquire(Egress::Denied).await.unwrap()).await;
        let sent = noise(1, LARGE);
        first.upload("/root/large", &sent).await;
        assert!(first.download("/root/large").await == sent, "what came back is what was sent");
        assert_eq!(first.download("/etc/resolv.conf").await, format!("nameserver {RESOLVER}\n").as_bytes());
        let six = harness.shell(&first.dir, "while read line; do echo $line; done </proc/net/if_inet6").unwrap();
        assert!(six.lines().all(|line| line.ends_with(" lo")), "IPv6 is for itself alone: {six}");

        let mut open = first.slot.connect(ENVD_PORT, PATIENCE).await.unwrap();
        open.write_all(b"GET /health HTTP/1.1\r\nhost: guest\r\n\r\n").await.unwrap();
        assert_ne!(open.read(&mut [0; 1024]).await.unwrap(), 0);
        let snapshot = first.cut(&harness).await;
        assert!(matches!(open.read(&mut [0; 1024]).await, Ok(0) | Err(_)), "a connection does not outlive a snapshot");
        let answer = exchange(&first.slot, HEALTH).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204"), "it goes on: {}", String::from_utf8_lossy(&answer));

        let slots = (pool.acquire(Egress::Denied).await.unwrap(), pool.acquire(Egress::Denied).await.unwrap());
        let (one, two) =
            tokio::join!(Sandbox::restore(&harness, slots.0, &snapshot), Sandbox::restore(&harness, slots.1, &snapshot));
        one.upload("/root/own", b"one").await;
        two.upload("/root/own", b"two").await;
        assert_eq!((one.download("/root/own").await, two.download("/root/own").await), (b"one".to_vec(), b"two".to_vec()));
        assert!(one.download("/root/large").await == sent, "a clone sends what it had");

        let namespaces = [&first, &one, &two].map(|sandbox| Namespace::of_slot(&sandbox.slot).identity());
        let mounts = fs_err::read_to_string("/proc/self/mountinfo").unwrap();
        for Sandbox { machine, dir, .. } in [&first, &one, &two] {
            let hidden = [dir.display().to_string(), format!("/proc/{}/", machine.pid().unwrap()), "/proc/sys/net".to_owned()];
            assert!(hidden.iter().all(|path| !mounts.contains(path)), "the host sees mounts of a sandbox's command: {mounts}");
        }
        first.end().await;
        one.end().await;
        two.end().await;
        pool.close().await.unwrap();
        assert_eq!(processes(&world), Vec::<u32>::new());
        for namespace in namespaces {
            eventually("nobody holds a slot", || !is_referenced(&namespace)).await;
        }
    });
}

/// Somebody who asks envd for ever, and again as soon as his connection ends. Ends when it is dropped.
struct Asker {
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Asker {
    /// Returns once he was answered.
    fn start(slot: &NetworkSlot) -> Self {
        let (enough, namespace) = (Arc::new(AtomicBool::new(false)), Namespace::of_slot(slot));
        let (answered, first) = std::sync::mpsc::channel();
        let until = Arc::clone(&enough);
        let ask = move || {
            while !until.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect((GUEST_ADDRESS, ENVD_PORT)) else { continue };
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let ask = |stream: &mut TcpStream| {
                    stream.write_all(b"GET /health HTTP/1.1\r\nhost: guest\r\n\r\n")?;
                    stream.read(&mut [0; 1024])
                };
                while !until.load(Ordering::Relaxed) && ask(&mut stream).is_ok_and(|read| read > 0) {
                    // Whoever started this hears of the first answer only.
                    answered.send(()).ok();
                }
            }
        };
        let thread = Some(std::thread::spawn(move || namespace.run(ask)));
        first.recv_timeout(PATIENCE).expect("he is answered");
        Self { enough, thread }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is dropped once").join().expect("he ends");
    }
}

#[test]
fn clones_answer_whoever_asked_while_they_were_cut() {
    in_world(async |world| {
        let Some(harness) = GvisorHarness::open().await else { return };
        let pool = pool(&world, &harness, "a").await;
        let mut first = Sandbox::boot(&harness, pool.acquire(Egress::Denied).await.unwrap()).await;
        let askers = [(); 3].map(|()| Asker::start(&first.slot));
        for _ in 0..3 {
            let snapshot = first.cut(&harness).await;
            let clone = Sandbox::restore(&harness, pool.acquire(Egress::Denied).await.unwrap(), &snapshot).await;
            let answer = tokio::time::timeout(PATIENCE, exchange(&clone.slot, HEALTH)).await.expect("a clone answers").unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
            clone.end().await;
        }
        drop(askers);
        first.end().await;
        pool.close().await.unwrap();
    });
}

#[test]
fn a_sandbox_reaches_what_a_machine_does() {
    in_world(async |world| {
        let Some(harness) = GvisorHarness::open().await else { return };
        let pool = pool(&world, &harness, "a").await;
        let mut sandbox = Sandbox::boot(&harness, pool.acquire(Egress::Denied).await.unwrap()).await;
        let answering = sandbox.answering(&harness, &[SERVER, OPENED, RESOLVER, HOST], 53);
        assert_eq!(answering, [].into(), "a sandbox without egress was answered");
        sandbox.slot.set_egress(Egress::Allowed).await.unwrap();
        let host = Some(HOST.to_string());
        assert_eq!(sandbox.hears(&harness, SERVER, 80), host);
        assert_eq!(sandbox.hears(&harness, OPENED, 80), host, "the operator opened it");
        assert!(sandbox.is_answered(&harness, RESOLVER, 53));
        let sent = noise(3, LARGE / 2);
        let echo = echoed(&world, sent.clone());
        sandbox.echoes(&harness, SERVER, ECHO_PORT);
        eventually("the server has heard it", || echo.is_finished()).await;
        assert!(echo.join().unwrap() == sent, "what came back from the internet's side is what was sent");
        let other = pool.acquire(Egress::Allowed).await.unwrap();
        Namespace::of_slot(&other).serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        Namespace::of_slot(&sandbox.slot).serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        world.host.serve(std::net::Ipv4Addr::UNSPECIFIED, 80);
        let (claim, own) = (pool.claim(), sandbox.slot.index());
        let slots = [way_out(claim, own, 0), way_out(claim, other.index(), 1), GATEWAY_ADDRESS];
        assert_eq!(sandbox.hears(&harness, SERVER, 80), host);
        assert!(sandbox.is_answered(&harness, SERVER, 80));
        // Of a resolver only one port is reached.
        let servers = [HOST, PRIVATE, RESOLVER, METADATA, slots[0], slots[1], slots[2]];
        assert_eq!(sandbox.answering(&harness, &servers, 80), [].into(), "what a machine does not reach was reached");
        sandbox.slot.set_egress(Egress::Denied).await.unwrap();
        assert_eq!(sandbox.answering(&harness, &[SERVER], 80), [].into(), "its way out was closed");
        sandbox.end().await;
        drop(other);
        pool.close().await.unwrap();
    });
}

/// Set for the child of the tests below: directory of claims, and first user id.
const CHILD: &str = "FIRKIN_GVISOR_TEST_CHILD";

/// Not a test of its own: the server that the tests below kill.
#[test]
#[expect(clippy::print_stdout, reason = "how it tells the test that it is ready")]
fn a_server_with_a_sandbox() {
    let Ok(role) = std::env::var(CHILD) else { return };
    let (claims_dir, first_uid) = role.split_once(' ').unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let harness = GvisorHarness::open().await.unwrap();
        let config = NetworkConfig {
            claims_dir: claims_dir.into(),
            first_uid: first_uid.parse().unwrap(),
            attachment: harness.engine.attachment(),
            prepared: 1,
            resolvers: Some(vec![]),
            ..NetworkConfig::new("child")
        };
        let pool = NetworkPool::open(config).await.unwrap();
        let mut sandbox = Sandbox::boot(&harness, pool.acquire(Egress::Allowed).await.unwrap()).await;
        println!("\nREADY {} {} {}", sandbox.slot.index(), sandbox.machine.pid().unwrap(), sandbox.dir.display());
        sandbox.machine.wait().await;
    });
}

/// Starts that server in this world, waits until it has a sandbox, and kills it. Returns the sandbox's slot, process and directory.
fn crash(world: &World) -> (u16, u32, PathBuf) {
    let role = format!("{} {}", world.claims.path().display(), world.first_uid);
    let mut child = world.host.run(move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "sandboxes::a_server_with_a_sandbox", "--nocapture"]).env(CHILD, role);
        command.stdout(Stdio::piped()).spawn().unwrap()
    });
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map(Result::unwrap).find(|line| line.starts_with("READY")).expect("the child became ready");
    let [index, pid, dir] = ready.split(' ').skip(1).collect::<Vec<_>>().try_into().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    (index.parse().unwrap(), pid.parse().unwrap(), dir.into())
}

/// The directory of the harness that the server had.
fn remove_harness_of(instance: &Path) {
    fs_err::remove_dir_all(instance.parent().unwrap()).unwrap();
}

#[test]
fn a_sandbox_keeps_its_network_when_its_server_is_killed() {
    in_world(async |world| {
        let Some(harness) = GvisorHarness::open().await else { return };
        let (index, pid, dir) = crash(&world);
        let again = pool(&world, &harness, "child").await;
        eventually("only the sandbox's way out is left", || world.interfaces("fk").len() == 1).await;
        let slot = again.adopt(pid, index).await.unwrap();
        assert!(slot.engine_slot().is_err(), "its sandbox has the interface");
        let machine = harness.engine.adopt(&dir).await.unwrap();
        let mut adopted = Sandbox { slot, machine, dir: dir.clone() };
        let mut guest = AgentGuest::behind(adopted.machine.control().await.unwrap(), None);
        assert_eq!(guest.recall().await, 1, "its guest did not notice");
        let sent = noise(2, LARGE / 8);
        adopted.upload("/root/after", &sent).await;
        assert_eq!(adopted.hears(&harness, SERVER, 80), Some(HOST.to_string()));
        let snapshot = adopted.cut(&harness).await;
        let clone = Sandbox::restore(&harness, again.acquire(Egress::Denied).await.unwrap(), &snapshot).await;
        assert!(clone.download("/root/after").await == sent);
        clone.end().await;
        adopted.end().await;
        again.close().await.unwrap();
        assert_eq!(processes(&world), Vec::<u32>::new());
        assert_eq!((world.interfaces("fk"), world.tables()), (vec![], vec![]));
        remove_harness_of(&dir);
    });
}

#[test]
fn a_sandbox_that_nobody_adopts_is_swept() {
    in_world(async |world| {
        let Some(harness) = GvisorHarness::open().await else { return };
        let (index, pid, dir) = crash(&world);
        let again = pool(&world, &harness, "child").await;
        assert_eq!(again.survivors().into_iter().collect::<Vec<_>>(), [index]);
        let other = Sandbox::boot(&harness, again.acquire(Egress::Denied).await.unwrap()).await;
        let swept = again.sweep().await.unwrap();
        assert!(swept.processes.contains(&pid), "{swept:?}");
        eventually("the orphan is gone", || !Path::new(&format!("/proc/{pid}")).exists()).await;
        let answer = exchange(&other.slot, HEALTH).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 204"), "one with an owner was ended");
        kill(other.machine.pid().unwrap());
        other.end().await;
        again.close().await.unwrap();
        assert_eq!(processes(&world), Vec::<u32>::new());
        assert_eq!((world.interfaces("fk"), world.tables()), (vec![], vec![]));
        remove_harness_of(&dir);
    });
}
