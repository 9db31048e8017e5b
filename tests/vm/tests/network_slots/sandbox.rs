//! A sandbox of gVisor in a slot, as a server makes one, and what it and its host say to each other over that slot.

use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use firkin_engine::{
    BootSpec, Engine, Machine, RestoreSpec, SnapshotMemory,
    contract::{Guest, Harness, Snapshot},
    parts,
};
use firkin_network::{ConnectError, NetworkConfig, NetworkPool, NetworkSlot};
use firkin_vm_tests::{agent_guest::AgentGuest, engine_gvisor::GvisorHarness};
use firkin_wire::ENVD_PORT;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{PATIENCE, World};

/// Long enough, in seconds, for a program in a sandbox to start and be answered; and for one that is not to be answered.
const ANSWERED: u8 = 30;
const UNANSWERED: u8 = 4;

/// Slots for sandboxes.
pub(crate) async fn pool(world: &World, harness: &GvisorHarness, owner: &str) -> NetworkPool {
    let config = NetworkConfig { attachment: harness.engine.attachment(), ..world.config(owner) };
    NetworkPool::open(config).await.unwrap()
}

pub(crate) struct Sandbox {
    pub(crate) slot: NetworkSlot,
    pub(crate) machine: Box<dyn Machine>,
    pub(crate) dir: PathBuf,
}

impl Sandbox {
    pub(crate) async fn boot(harness: &GvisorHarness, slot: NetworkSlot) -> Self {
        let spec = BootSpec { slot: slot.engine_slot().unwrap(), ..harness.boot_spec().await };
        let dir = spec.dir.clone();
        let machine = harness.engine.boot(spec).await.unwrap();
        let mut booted = Self { slot, machine, dir };
        booted.become_somebody(1).await;
        booted
    }

    /// A clone: it becomes the second that the snapshot ever was.
    pub(crate) async fn restore(harness: &GvisorHarness, slot: NetworkSlot, snapshot: &Snapshot) -> Self {
        let spec = RestoreSpec { slot: slot.engine_slot().unwrap(), ..harness.restore_spec(snapshot).await };
        let dir = spec.dir.clone();
        let mut machine = harness.engine.restore(spec).await.unwrap();
        machine.resume().await.unwrap();
        let mut restored = Self { slot, machine, dir };
        restored.become_somebody(2).await;
        restored
    }

    async fn become_somebody(&mut self, epoch: u64) {
        let stream = self.machine.control().await.unwrap();
        let mut guest = AgentGuest::behind(stream, None).in_network(self.slot.guest_network());
        guest.ready().await;
        guest.remember(epoch).await;
    }

    /// A cut of what it is now. It goes on.
    pub(crate) async fn cut(&mut self, harness: &GvisorHarness) -> Snapshot {
        let dir = harness.snapshot_dir().await;
        self.machine.pause().await.unwrap();
        self.machine.snapshot(&dir).await.unwrap();
        self.machine.resume().await.unwrap();
        Snapshot { memory: SnapshotMemory::InState, state: dir.join(parts::STATE), disk: self.machine.root_disk() }
    }

    pub(crate) async fn end(mut self) {
        self.machine.kill().await;
    }

    /// Has its envd write a file.
    pub(crate) async fn upload(&self, path: &str, content: &[u8]) {
        let head = format!(
            "POST /files?username=root&path={path} HTTP/1.1\r\nhost: guest\r\ncontent-type: application/octet-stream\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            content.len()
        );
        let answer = exchange(&self.slot, &[head.as_bytes(), content].concat()).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }

    /// What its envd reads from a file.
    pub(crate) async fn download(&self, path: &str) -> Vec<u8> {
        let head = format!("GET /files?username=root&path={path} HTTP/1.1\r\nhost: guest\r\nconnection: close\r\n\r\n");
        let mut answer = exchange(&self.slot, head.as_bytes()).await.unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an answer has a head");
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200 ") && !head.contains("transfer-encoding"), "{head}");
        answer.split_off(end + 4)
    }

    /// What a program in it is told by a server that speaks first, by TCP.
    pub(crate) fn hears(&self, harness: &GvisorHarness, server: Ipv4Addr, port: u16) -> Option<String> {
        self.dial(harness, &format!("exec 3<>/dev/tcp/{server}/{port} && read -r said <&3; echo $said"), ANSWERED)
    }

    /// Has a program in it keep what a server says by TCP, to its end, and then say the same to that server.
    pub(crate) fn echoes(&self, harness: &GvisorHarness, server: Ipv4Addr, port: u16) {
        let script = format!("exec 3<>/dev/tcp/{server}/{port} && /bin/cat <&3 >/tmp/said && /bin/cat /tmp/said >&3");
        assert_eq!(self.dial(harness, &script, 4 * ANSWERED), None);
    }

    /// Whether datagrams to that server are answered. The shell reads a byte of the answer.
    pub(crate) fn is_answered(&self, harness: &GvisorHarness, server: Ipv4Addr, port: u16) -> bool {
        let asks = "while echo >&3; ! read -rt 1 -n 1 said <&3; do :; done";
        self.dial(harness, &format!("exec 3<>/dev/udp/{server}/{port}; {asks}; echo $said"), ANSWERED).is_some()
    }

    /// Which of these servers answer it, in any way, in so short a time that those that must not can be waited for.
    pub(crate) fn answering(&self, harness: &GvisorHarness, servers: &[Ipv4Addr], port: u16) -> BTreeSet<Ipv4Addr> {
        let ask = |protocol: &str, server: &Ipv4Addr| {
            format!("(exec 3<>/dev/{protocol}/{server}/{port}; echo >&3; read -rn 1 <&3 && echo {server}) & ")
        };
        let script: String = servers.iter().flat_map(|server| [ask("tcp", server), ask("udp", server)]).collect();
        let said = self.dial(harness, &format!("{script} wait"), UNANSWERED).unwrap_or_default();
        said.lines().map(|server| server.parse().unwrap()).collect()
    }

    fn dial(&self, harness: &GvisorHarness, script: &str, seconds: u8) -> Option<String> {
        // The shell that has these files has no limit for a connection.
        let script = format!("/usr/bin/timeout {seconds} /bin/bash -c '{script}' 2>/dev/null || true");
        let said = harness.shell(&self.dir, &script).unwrap();
        Some(said.trim().to_owned()).filter(|said| !said.is_empty())
    }
}

/// All that the guest's envd answers to a request.
pub(crate) async fn exchange(slot: &NetworkSlot, request: &[u8]) -> Result<Vec<u8>, ConnectError> {
    let stream = slot.connect(ENVD_PORT, PATIENCE).await?;
    let (mut answers, mut asks) = stream.into_split();
    let mut answer = Vec::new();
    let (asked, answered) = tokio::join!(asks.write_all(request), answers.read_to_end(&mut answer));
    // A request that is refused is not read to its end.
    let spoken = if answer.is_empty() { asked.and(answered.map(drop)) } else { Ok(()) };
    spoken.map(|()| answer).map_err(|source| ConnectError::Io { port: ENVD_PORT, source })
}
