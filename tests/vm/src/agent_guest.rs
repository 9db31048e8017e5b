//! The real agent as the contract's guest, behind the control channel of whatever engine it runs in.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::ensure;
use async_trait::async_trait;
use firkin_engine::{ControlStream, contract::Guest};
use firkin_wire::{
    control::{Answer, Call, Decoder, GuestNetwork, Identity, Request, Response, encode},
    nonce::{Nonce, Side},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::guest_link::{guest_network, write_file};

/// The answer to one request; an agent that has just been resumed translates its code anew.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// From the start of a machine to its agent's first answer: an emulated boot on a busy host, with room.
const READY_DEADLINE: Duration = Duration::from_secs(180);

/// Ids of one connection must not be taken for those of the one before, whose answers may still come.
fn rand_id() -> u64 {
    static CONNECTIONS: AtomicU32 = AtomicU32::new(1);
    u64::from(CONNECTIONS.fetch_add(1, Ordering::Relaxed)) << 32
}

/// The real agent. The number that it remembers is its epoch, and what it writes to disk is a file that envd is given.
#[derive(Debug)]
pub struct AgentGuest {
    stream: Box<dyn ControlStream>,
    decoder: Decoder,
    last_id: u64,
    epoch: u64,
    /// Absent: another process made the instance.
    way: Option<Way>,
    /// What it is told about its network.
    network: Option<GuestNetwork>,
}

/// How its disk is written to.
#[derive(Debug, Clone)]
pub enum Way {
    /// By its envd, over this network.
    Network(Arc<OwnedFd>),
    /// By a command in a sandbox of gVisor, which has no network.
    Command {
        /// The `runsc` that it runs with.
        program: PathBuf,
        /// The instance directory.
        dir: PathBuf,
    },
}

impl AgentGuest {
    /// The one at the other end of this channel.
    pub fn behind(stream: Box<dyn ControlStream>, way: Option<Way>) -> Self {
        let network = (!matches!(way, Some(Way::Command { .. }))).then(guest_network);
        Self { stream, decoder: Decoder::default(), last_id: rand_id(), epoch: 0, way, network }
    }

    /// The same, told of this network.
    #[must_use]
    pub fn in_network(self, network: GuestNetwork) -> Self {
        Self { network: Some(network), ..self }
    }

    async fn call(&mut self, call: Call) -> std::io::Result<Answer> {
        self.ask(call, None).await.map(|response| response.answer)
    }

    /// An answer to a call for the machine with the nonce `called`, and whether it is proven to come from the one with the nonce `of`.
    async fn exchange(&mut self, call: Call, called: Option<&Nonce>, of: &Nonce) -> (Answer, bool) {
        let asked = tokio::time::timeout(READY_DEADLINE, self.ask(call, called)).await;
        let response = asked.expect("the agent answers in time").expect("the agent answers");
        (response.answer, response.proof == Some(of.proof(Side::Guest, response.id)))
    }

    async fn ask(&mut self, call: Call, called: Option<&Nonce>) -> std::io::Result<Response> {
        self.last_id += 1;
        let proof = called.map(|nonce| nonce.proof(Side::Host, self.last_id));
        let frame = encode(&Request { id: self.last_id, call, proof }).expect("a request fits a frame");
        self.stream.write_all(&frame).await?;
        let mut buffer = [0; 4096];
        loop {
            while let Some(response) = self.decoder.next::<Response>() {
                if response.id == self.last_id {
                    return Ok(response);
                }
            }
            match self.stream.read(&mut buffer).await? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    async fn hello(&mut self) -> Option<(u64, bool)> {
        match tokio::time::timeout(ANSWER_DEADLINE, self.call(Call::Hello)).await {
            Ok(Ok(Answer::Hello { epoch, envd_ready, .. })) => Some((epoch, envd_ready)),
            Ok(Ok(other)) => panic!("an answer to no question: {other:?}"),
            Ok(Err(error)) => panic!("the control channel broke: {error}"),
            Err(_) => None,
        }
    }

    async fn resume(&mut self, epoch: u64) {
        self.epoch = epoch;
        let machine_id = format!("{:032x}", u128::from(self.last_id) << 64 | u128::from(epoch));
        let identity = Identity { network: self.network.clone(), ..identity(epoch, machine_id, None) };
        let answer = self.call(Call::Resume(Box::new(identity))).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Resumed { epoch: in_force, .. } if in_force == epoch), "{answer:?}");
    }
}

fn identity(epoch: u64, machine_id: String, nonce: Option<Nonce>) -> Identity {
    Identity {
        epoch,
        sandbox_id: "contract".into(),
        template_id: String::new(),
        entropy: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into(),
        realtime_ns: 1_800_000_000_000_000_000,
        machine_id: Some(machine_id),
        nonce,
        network: None,
        env: BTreeMap::new(),
        access_token: None,
        default_user: None,
        default_workdir: None,
        volumes: None,
    }
}

/// Gives the real agent behind this channel an identity with this nonce, by which it is called from then on.
pub async fn bind(stream: Box<dyn ControlStream>, epoch: u64, nonce: &Nonce) {
    let identity = Box::new(identity(epoch, format!("{epoch:032x}"), Some(nonce.clone())));
    let mut guest = unbound(stream);
    let (answer, is_its) = guest.exchange(Call::Resume(identity), None, nonce).await;
    assert!(matches!(answer, Answer::Resumed { .. }) && is_its, "{answer:?}");
}

/// What the real agent behind this channel says to a hello for the machine with the nonce `called`, or for one that has none, and
/// whether it proves to be the one with the nonce `of`.
pub async fn hello_for(stream: Box<dyn ControlStream>, called: Option<&Nonce>, of: &Nonce) -> (Answer, bool) {
    unbound(stream).exchange(Call::Hello, called, of).await
}

fn unbound(stream: Box<dyn ControlStream>) -> AgentGuest {
    AgentGuest::behind(stream, None)
}

#[async_trait]
impl Guest for AgentGuest {
    async fn ready(&mut self) {
        let deadline = tokio::time::Instant::now() + READY_DEADLINE;
        loop {
            if let Some((epoch, true)) = self.hello().await {
                self.epoch = epoch;
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "the guest did not come up within {READY_DEADLINE:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn remember(&mut self, number: u64) {
        self.resume(number).await;
    }

    async fn recall(&mut self) -> u64 {
        let deadline = tokio::time::Instant::now() + READY_DEADLINE;
        loop {
            if let Some((epoch, _)) = self.hello().await {
                return epoch;
            }
            assert!(tokio::time::Instant::now() < deadline, "the guest did not answer within {READY_DEADLINE:?}");
        }
    }

    async fn write_disk(&mut self) {
        self.resume(self.epoch).await;
        let way = self.way.clone().expect("this process made the instance");
        // What is in it is new each time: a page that is clean is not written.
        let content = rand_id();
        let written = tokio::task::spawn_blocking(move || match way {
            Way::Network(network) => write_file(&network, "/root/written", &content.to_be_bytes()),
            Way::Command { program, dir } => shell(&program, &dir, "0:0", &format!("echo {content} >/root/written")).map(drop),
        });
        written.await.expect("no panic").expect("a file is written");
        let answer = self.call(Call::Sync).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Done), "{answer:?}");
    }

    async fn power_off(&mut self) {
        let answer = self.call(Call::PowerOff).await.expect("the agent answers");
        assert!(matches!(answer, Answer::Done), "{answer:?}");
    }

    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // Ended by the other side in one way or another.
        drop(self.stream.read_to_end(&mut rest).await);
    }
}

/// What a shell of this user and group says that runs this script in the sandbox of gVisor whose instance directory this is.
pub fn shell(program: &Path, instance: &Path, user: &str, script: &str) -> anyhow::Result<String> {
    let mut root = OsString::from("--root=");
    root.push(instance.join("runsc"));
    let mut runsc = Command::new(program);
    runsc.arg(root).args(["exec", "--user", user, "sandbox", "/bin/sh", "-c", script]).stdin(Stdio::null());
    let said = runsc.output()?;
    ensure!(said.status.success(), "`{script}` failed: {said:?}");
    Ok(String::from_utf8(said.stdout)?)
}
