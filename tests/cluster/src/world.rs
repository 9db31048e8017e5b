//! Hosts that are network namespaces on one bridge, and what is cut between them.
//!
//! A cut is an address of the link layer that nobody has: what is sent goes out and is lost, and no error tells the sender, as with a cable
//! that is broken in one direction. The addresses are those of documents (RFC 5737) and are in no network but these.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    process::Command,
    thread,
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns, unshare};

use crate::schedule::Party;

/// Where clients are, and where machines speak to, which nothing cuts: another address of the same host.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 254);
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 253);
const BRIDGE: &str = "br0";

/// On the link layer, nobody.
const NOBODY: &str = "02:00:00:00:00:99";

/// Where somebody is.
pub(crate) fn address(party: Party) -> Ipv4Addr {
    match party {
        Party::Clients => CLIENTS,
        Party::Postgres => Ipv4Addr::new(198, 51, 100, 1),
        Party::Node(node) => Ipv4Addr::new(198, 51, 100, 11 + u8::try_from(node).unwrap_or(u8::MAX)),
    }
}

/// All hosts.
#[derive(Debug)]
pub(crate) struct World {
    postgres: Host,
    nodes: Vec<Host>,
}

/// One of them.
#[derive(Debug)]
struct Host {
    namespace: OwnedFd,
}

impl World {
    /// Makes the hosts, so many nodes among them, around this process, whose own network is outside of them all.
    pub(crate) fn new(nodes: usize) -> anyhow::Result<Self> {
        for words in [
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge"),
            format!("link set {BRIDGE} up"),
            format!("address add {CLIENTS}/24 dev {BRIDGE}"),
            format!("address add {SINK}/24 dev {BRIDGE}"),
        ] {
            ip(&words)?;
        }
        let postgres = Host::new(Party::Postgres, "pg")?;
        let nodes = (0..nodes).map(|node| Host::new(Party::Node(node), &format!("n{node}"))).collect::<anyhow::Result<_>>()?;
        Ok(Self { postgres, nodes })
    }

    fn host(&self, party: Party) -> Option<&Host> {
        match party {
            Party::Clients => None,
            Party::Postgres => Some(&self.postgres),
            Party::Node(node) => self.nodes.get(node),
        }
    }

    /// Runs something on a thread that is on this host; what it starts is there too.
    pub(crate) fn on<T: Send>(&self, party: Party, job: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let Some(host) = self.host(party) else { return job() };
        let inside = || {
            setns(host.namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a host")?;
            job()
        };
        thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow::anyhow!("a thread panicked"))?
    }

    /// Loses whatever one sends to the other from now on.
    pub(crate) fn cut(&self, from: Party, to: Party) -> anyhow::Result<()> {
        self.on(from, || ip(&format!("neighbour replace {} lladdr {NOBODY} nud permanent dev {}", address(to), interface(from))))
    }

    /// Has it arrive again.
    pub(crate) fn mend(&self, from: Party, to: Party) -> anyhow::Result<()> {
        self.on(from, || ip(&format!("neighbour del {} dev {}", address(to), interface(from))))
    }
}

fn interface(party: Party) -> &'static str {
    match party {
        Party::Clients => BRIDGE,
        Party::Postgres | Party::Node(_) => "eth0",
    }
}

impl Host {
    fn new(party: Party, name: &str) -> anyhow::Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            anyhow::Ok(OwnedFd::from(fs_err::File::open("/proc/thread-self/ns/net")?.into_parts().0))
        };
        let made = thread::scope(|scope| scope.spawn(make).join()).map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        let host = Self { namespace: made.context("cannot make a network namespace")? };
        let path = format!("/proc/{}/fd/{}", std::process::id(), host.namespace.as_raw_fd());
        ip(&format!("link add {name} type veth peer name eth0 netns {path}"))?;
        ip(&format!("link set {name} master {BRIDGE} up"))?;
        let inside = || {
            setns(host.namespace.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a host")?;
            for words in [
                "link set lo up".to_owned(),
                format!("address add {}/24 dev eth0", address(party)),
                "link set eth0 up".to_owned(),
            ] {
                ip(&words)?;
            }
            anyhow::Ok(())
        };
        thread::scope(|scope| scope.spawn(inside).join()).map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        Ok(host)
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).output().context("cannot run `ip`")?;
    if !output.status.success() {
        bail!("`ip {words}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
