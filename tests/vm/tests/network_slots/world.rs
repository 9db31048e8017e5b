//! A little world for network tests: a namespace that plays the host, one that plays the internet, and guests behind taps.
//!
//! Nothing here touches the real host's interfaces, rules or parameters: every world has its own namespaces, which vanish with
//! its threads. Needs root and `ip`.

use std::{
    cell::Cell,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use firkin_engine::{Attachment, AttachmentKind};
use firkin_network::{
    GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, NetworkConfig, NetworkSlot, open_tap,
};
use firkin_vm_tests::users::NETWORK_SLOTS;
use nix::{
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, setns, unshare},
};

/// The host's address on its uplink.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// A public server.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A server in a private network.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// A server in a private network that the operator opened.
pub(crate) const OPENED: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// A resolver in a private network.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 53, 0, 53);
/// Cloud metadata.
pub(crate) const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Long enough for anything here that succeeds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Worlds of one process.
const TESTS_MAX: u32 = 64;
/// How long something that must not arrive is waited for.
pub(crate) const SILENCE: Duration = Duration::from_millis(400);

/// A namespace that a test made.
#[derive(Clone)]
pub(crate) struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// The calling thread's.
    pub(crate) fn current() -> Self {
        Self(Arc::new(fs_err::File::open("/proc/thread-self/ns/net").unwrap().into_parts().0.into()))
    }

    /// A new one.
    pub(crate) fn new() -> Self {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self::current()
        })
        .join()
        .unwrap()
    }

    pub(crate) fn of_slot(slot: &NetworkSlot) -> Self {
        Self(Arc::new(slot.netns().try_clone_to_owned().unwrap()))
    }

    /// Runs `job` inside, on a thread of its own.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let fd = Arc::clone(&self.0);
        let job = move || {
            setns(fd.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            job()
        };
        std::thread::spawn(job).join().unwrap()
    }

    pub(crate) fn ip(&self, commands: &[String]) {
        let commands = commands.to_vec();
        self.run(move || commands.iter().for_each(|command| ip(command)));
    }

    /// For programs that take a namespace by path.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// `net:[inode]`, as links in `/proc` show it.
    pub(crate) fn identity(&self) -> String {
        fs_err::read_link(self.path()).unwrap().display().to_string()
    }

    /// Answers every TCP connection to `port` with the address it came from, until the world ends.
    pub(crate) fn serve(&self, address: Ipv4Addr, port: u16) {
        let listener = self.run(move || TcpListener::bind((address, port)).unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream);
            }
        });
    }

    /// Answers every datagram to `port` with the address it came from, and what stood after its first byte.
    pub(crate) fn serve_udp(&self, address: Ipv4Addr, port: u16) {
        let socket = self.run(move || UdpSocket::bind((address, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let more = buffer.get(1..length).unwrap_or_default();
                // A peer that cannot be answered is what some tests are about.
                drop(socket.send_to(&[peer.ip().to_string().as_bytes(), more].concat(), peer));
            }
        });
    }

    /// What a server at `to` says about the caller, or why it says nothing. Whoever is not to answer is not waited for long.
    pub(crate) fn ask(&self, to: impl Into<SocketAddr>) -> io::Result<String> {
        self.ask_within(SILENCE, to.into())
    }

    /// The same of a server that is to answer: what is lost on the way is sent again, and a refusal comes as soon.
    pub(crate) fn hear(&self, to: impl Into<SocketAddr>) -> io::Result<String> {
        self.ask_within(PATIENCE, to.into())
    }

    fn ask_within(&self, deadline: Duration, to: SocketAddr) -> io::Result<String> {
        self.run(move || {
            let mut stream = TcpStream::connect_timeout(&to, deadline)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    }

    /// What [`Self::ask`] asks, by UDP, from the source address `from`.
    pub(crate) fn ask_udp(&self, from: Ipv4Addr, to: impl Into<SocketAddr>) -> io::Result<String> {
        self.ask_udp_within(SILENCE, from, to.into())
    }

    /// What [`Self::hear`] hears, by UDP: asks again, each time for longer, until it is answered.
    pub(crate) fn hear_udp(&self, from: Ipv4Addr, to: impl Into<SocketAddr>) -> io::Result<String> {
        let (to, mut deadline) = (to.into(), SILENCE);
        loop {
            let answer = self.ask_udp_within(deadline, from, to);
            if answer.is_ok() || deadline > PATIENCE {
                return answer;
            }
            deadline *= 2;
        }
    }

    fn ask_udp_within(&self, deadline: Duration, from: Ipv4Addr, to: SocketAddr) -> io::Result<String> {
        self.run(move || {
            let socket = UdpSocket::bind((from, 0))?;
            socket.set_read_timeout(Some(deadline))?;
            socket.send_to(b"?", to)?;
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })
    }
}

/// Datagrams of one guest to one server and back. Each question has a number, so that no late answer is taken for that to a later one.
pub(crate) struct Flow {
    socket: UdpSocket,
    asked: Cell<u32>,
}

impl Flow {
    pub(crate) fn open(guest: &Guest, to: impl Into<SocketAddr>) -> Self {
        let to = to.into();
        let socket = guest.inside.run(move || {
            let socket = UdpSocket::bind((GUEST_ADDRESS, 0)).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket.connect(to).unwrap();
            socket
        });
        Self { socket, asked: Cell::new(0) }
    }

    /// Asks once, and tells whether an answer comes to what was asked since `first`.
    fn is_answered_since(&self, first: u32) -> bool {
        self.asked.set(self.asked.get() + 1);
        let mut buffer = [0; 64];
        // What was refused before is told by the next call, whichever it is.
        if self.socket.send(&[&b"?"[..], &self.asked.get().to_be_bytes()].concat()).is_err() {
            return false;
        }
        while let Ok(length) = self.socket.recv(&mut buffer) {
            if buffer[..length].last_chunk().is_some_and(|number| u32::from_be_bytes(*number) >= first) {
                return true;
            }
        }
        false
    }

    /// Whether a question is answered that is not to be.
    pub(crate) fn goes_on(&self) -> bool {
        self.is_answered_since(self.asked.get() + 1)
    }

    /// Asks until it is answered.
    pub(crate) async fn must_go_on(&self) {
        let first = self.asked.get() + 1;
        eventually("a question is answered", || self.is_answered_since(first)).await;
    }
}

fn answer(mut stream: TcpStream) {
    let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
    // A client that hung up is no concern of the server's.
    drop(peer.and_then(|peer| stream.write_all(peer.as_bytes())));
}

fn ip(command: &str) {
    let status = Command::new("ip").args(command.split_whitespace()).status().expect("these tests need `ip`");
    assert!(status.success(), "ip {command}");
}

/// The host and the internet of one test.
pub(crate) struct World {
    pub(crate) host: Namespace,
    pub(crate) internet: Namespace,
    pub(crate) claims: tempfile::TempDir,
    /// User ids that no server outside this test looks at.
    pub(crate) first_uid: u32,
    /// What its slots have for guests.
    pub(crate) attachment: AttachmentKind,
}

/// Set for the process of a test that runs alone, to the user ids that it has.
const ALONE: &str = "FIRKIN_NETWORK_TEST_ALONE";

/// [`in_world`] in a process of its own, for the test `name`: it counts descriptors, of which others have some too.
pub(crate) fn alone_in_world<F: Future<Output = ()>>(name: &str, test: impl FnOnce(World) -> F + Send + 'static) {
    if std::env::var_os(ALONE).is_some() {
        return in_world(test);
    }
    let itself = std::env::current_exe().unwrap();
    let output = Command::new(itself).args(["--exact", name]).env(ALONE, own_uids().to_string()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// [`in_world`], once with slots of each kind.
pub(crate) fn in_each_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Copy + Send + 'static) {
    for attachment in [AttachmentKind::Tap, AttachmentKind::Interface] {
        in_world(move |world| test(World { attachment, ..world }));
    }
}

/// Runs `test` on threads whose namespace plays the host, linked to one that plays the internet.
pub(crate) fn in_world<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
        let world = World {
            host: Namespace::current(),
            internet: Namespace::new(),
            claims: tempfile::tempdir().unwrap(),
            first_uid: own_uids(),
            attachment: AttachmentKind::Tap,
        };
        ip("link set lo up");
        ip(&format!("link add up0 type veth peer name srv0 netns {}", world.internet.path()));
        ip(&format!("address add {HOST}/24 dev up0"));
        ip("link set up0 up");
        ip(&format!("route add default via {SERVER}"));
        let mut commands =
            vec!["link set lo up".to_owned(), "link set srv0 up".into(), format!("address add {SERVER}/24 dev srv0")];
        commands.extend([PRIVATE, OPENED, RESOLVER, METADATA].map(|address| format!("address add {address}/32 dev lo")));
        world.internet.ip(&commands);
        for address in [SERVER, PRIVATE, OPENED, RESOLVER, METADATA] {
            for port in [53, 80] {
                world.internet.serve(address, port);
                world.internet.serve_udp(address, port);
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test(world));
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// The first of 65,536 user ids for one test of one process, or of the process that a test has for itself.
fn own_uids() -> u32 {
    static TESTS: AtomicU32 = AtomicU32::new(0);
    if let Ok(ours) = std::env::var(ALONE) {
        return ours.parse().unwrap();
    }
    let test = TESTS.fetch_add(1, Ordering::Relaxed);
    assert!(test < TESTS_MAX, "TESTS_MAX has not grown with the tests");
    NETWORK_SLOTS + (std::process::id() % 32 * TESTS_MAX + test) * 0x1_0000
}

impl World {
    /// A server's configuration that prepares nothing ahead.
    pub(crate) fn config(&self, owner: &str) -> NetworkConfig {
        NetworkConfig {
            claims_dir: self.claims.path().to_owned(),
            first_uid: self.first_uid,
            attachment: self.attachment,
            prepared: 0,
            resolvers: Some(vec![RESOLVER]),
            reachable: vec!["192.168.77.0/24".parse().unwrap()],
            ..NetworkConfig::new(owner)
        }
    }

    /// Interfaces of the host whose names begin with `prefix`.
    pub(crate) fn interfaces(&self, prefix: &'static str) -> Vec<String> {
        let listed = self.host.run(|| Command::new("ip").args(["-brief", "link"]).output().unwrap().stdout);
        let text = String::from_utf8(listed).unwrap();
        text.lines()
            .map(|line| line.split(['@', ' ']).next().unwrap().to_owned())
            .filter(|name| name.starts_with(prefix))
            .collect()
    }

    pub(crate) fn tables(&self) -> Vec<String> {
        self.host.run(|| firkin_network::host_tables().unwrap())
    }

    /// Whether the host's rules are watched by a server of this process.
    pub(crate) fn is_guarded(&self) -> bool {
        let mut tasks = fs_err::read_dir("/proc/self/task").unwrap().flatten().map(|task| task.path());
        let is_guard = |task: &Path| fs_err::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "firkin-guard");
        let host = self.host.identity();
        let is_ours = |task: &Path| fs_err::read_link(task.join("ns/net")).is_ok_and(|net| net.as_os_str() == host.as_str());
        tasks.any(|task| is_guard(&task) && is_ours(&task))
    }

    pub(crate) fn forwards(&self) -> bool {
        self.host.run(|| fs_err::read_to_string("/proc/sys/net/ipv4/conf/up0/forwarding").unwrap().trim() == "1")
    }
}

/// A guest without a machine: a namespace with a slot's interface, or with one that is pumped to and from a slot's tap.
pub(crate) struct Guest {
    pub(crate) inside: Namespace,
    pumping: Arc<AtomicBool>,
    pumps: Vec<JoinHandle<()>>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.pumping.store(false, Ordering::Relaxed);
        self.pumps.drain(..).for_each(|pump| pump.join().unwrap());
    }
}

impl Guest {
    /// Configures itself as a real guest does from `slot.guest_network()`.
    pub(crate) fn start(slot: &NetworkSlot) -> Self {
        let engine = slot.engine_slot().unwrap();
        let network = slot.guest_network();
        assert_eq!((network.address, network.gateway, network.prefix), (GUEST_ADDRESS, GATEWAY_ADDRESS, GUEST_PREFIX));
        assert_eq!(network.gateway_mac, mac(GATEWAY_MAC));
        assert_eq!(engine.mac, GUEST_MAC);
        match engine.attachment {
            Attachment::Tap(tap) => Self::on(tap),
            // What a sandbox's kernel takes over, the host's own can be left to have.
            Attachment::Interface(inside) => {
                Self { inside: Namespace(Arc::new(inside)), pumping: Arc::default(), pumps: Vec::new() }
            }
        }
    }

    /// The guest at the other end of `tap`.
    pub(crate) fn on(tap: OwnedFd) -> Self {
        let inside = Namespace::new();
        let own = inside.run(|| open_tap("eth0").unwrap());
        inside.ip(&[
            "link set lo up".into(),
            format!("link set eth0 address {} up", mac(GUEST_MAC)),
            format!("address add {GUEST_ADDRESS}/{GUEST_PREFIX} dev eth0"),
            format!("neighbour add {GATEWAY_ADDRESS} lladdr {} dev eth0 nud permanent", mac(GATEWAY_MAC)),
            format!("route add default via {GATEWAY_ADDRESS}"),
        ]);
        let (theirs, own) = (Arc::new(tap), Arc::new(own));
        let pumping = Arc::new(AtomicBool::new(true));
        let start = |from: &Arc<OwnedFd>, to: &Arc<OwnedFd>| {
            let (from, to, pumping) = (Arc::clone(from), Arc::clone(to), Arc::clone(&pumping));
            std::thread::spawn(move || pump(&from, &to, &pumping))
        };
        let pumps = vec![start(&own, &theirs), start(&theirs, &own)];
        Self { inside, pumping, pumps }
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Carries frames until told to stop.
fn pump(from: &OwnedFd, to: &OwnedFd, pumping: &AtomicBool) {
    let mut frame = [0; 2048];
    while pumping.load(Ordering::Relaxed) {
        let mut waiting = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, 20u8).unwrap() == 0 {
            continue;
        }
        match nix::unistd::read(from, &mut frame) {
            // A device that is down loses frames, as a wire does.
            Ok(length) => nix::unistd::write(to, &frame[..length]).map_or((), |_| ()),
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(error) => panic!("cannot read from a tap: {error}"),
        }
    }
}

/// An end of the way out of the slot `index` of a claim: 0 is the host's, 1 the slot's.
pub(crate) fn way_out(claim: u16, index: u16, end: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, u8::try_from(claim * 8).unwrap(), u8::try_from(index).unwrap() * 2 + end)
}

/// Nothing that no guest reaches answers this one, which is in the slot `own` beside `other`, whichever rules stand.
pub(crate) fn assert_nothing_denied_answers(guest: &Guest, claim: u16, [own, other]: [u16; 2]) {
    for (what, address) in [
        ("the host", HOST),
        ("the host's end of its way out", way_out(claim, own, 0)),
        ("the host's end of another's way out", way_out(claim, other, 0)),
        ("another slot", way_out(claim, other, 1)),
        ("its own slot", GATEWAY_ADDRESS),
        ("its own slot's way out", way_out(claim, own, 1)),
        ("a private network", PRIVATE),
        ("a resolver's other ports", RESOLVER),
        ("cloud metadata", METADATA),
    ] {
        let tcp = guest.inside.ask((address, 80));
        assert!(tcp.is_err(), "{what} ({address}) answered by tcp: {tcp:?}");
        let udp = guest.inside.ask_udp(GUEST_ADDRESS, (address, 80));
        assert!(udp.is_err(), "{what} ({address}) answered by udp: {udp:?}");
    }
}

/// Waits for a level, with a deadline.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether anything in this process refers to the namespace `identity`. Nobody else can: descriptors of slots are closed in children.
/// And nobody else is looked at, because the number of a namespace that is gone is that of the next one that anybody makes.
pub(crate) fn is_referenced(identity: &str) -> bool {
    let links = |dir: &str| fs_err::read_dir(dir).unwrap().flatten().map(|entry| entry.path());
    let is_it = |path: &Path| fs_err::read_link(path).is_ok_and(|target| target.as_os_str() == identity);
    links("/proc/self/fd").any(|fd| is_it(&fd)) || links("/proc/self/task").any(|task| is_it(&task.join("ns/net")))
}

/// Descriptors of this process.
pub(crate) fn open_files() -> usize {
    fs_err::read_dir("/proc/self/fd").unwrap().count()
}

pub(crate) fn is_from(answer: &io::Result<String>, address: Ipv4Addr) -> bool {
    answer.as_ref().is_ok_and(|peer| peer.parse() == Ok(IpAddr::V4(address)))
}
