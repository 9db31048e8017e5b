//! How a sandbox gets the network of its slot.
//!
//! `runsc` looks into the namespace of the sandbox's process when it starts or restores one, and takes over what is up there: the sandbox
//! gets a socket to each interface, and the addresses and routes. In a slot's namespace that would be the host's end of everything. So
//! the process is in the slot's namespace, which lives as long as it does and by which it is found, as with any other machine; and the
//! command is shown the namespace of the [interface](crate::Attachment::Interface) in its place, by a mount that no one else sees.
//!
//! A command that may look into a namespace is never in the host's: what it takes over there, the host would lose.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::{
    arrival, connections,
    gate::{self, Gate},
};
use crate::process::Process;

/// Where the kernel has the parameters of networks.
const PARAMETERS: &str = "/proc/sys/net";

/// Whether sandboxes have a network, and how; found by the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// Their loopback.
    None,
    /// That of their slot.
    OfSlot {
        /// Whether the kernel's parameters of networks are hidden from the command. The build of 2024 refuses a namespace that has one
        /// of them, which only the host's own had then; with newer kernels all have it.
        hiding: bool,
    },
}

impl Network {
    /// For another build than the one that was tried. What is hidden is only looked at.
    pub(super) fn of_another_build(self) -> Self {
        match self {
            Self::None => Self::None,
            Self::OfSlot { .. } => Self::OfSlot { hiding: true },
        }
    }

    /// Flags of a sandbox with it. Connections to the outside end at a snapshot: without that, a snapshot with an open one fails.
    pub(super) fn flags(self) -> &'static [&'static str] {
        match self {
            Self::None => &["--network=none"],
            Self::OfSlot { .. } => &["--network=sandbox", "--net-disconnect-ok"],
        }
    }
}

/// The network namespaces that a run of the command is shown.
#[derive(Debug)]
pub(super) enum View {
    /// This process's: sandboxes have none.
    Ours,
    /// It is in this one, and so will be the sandbox that it makes.
    Within(OwnedFd),
    /// It is in that of process `pid`.
    Beside(u32),
    /// It is in this one, and so seems to be the sandbox that is process `pid`, which takes it over.
    Instead { pid: u32, interface: OwnedFd, hiding: bool },
}

impl View {
    /// For the run that makes a sandbox.
    pub(super) fn of_maker(network: Network, slot: OwnedFd) -> Self {
        match network {
            Network::None => Self::Ours,
            Network::OfSlot { .. } => Self::Within(slot),
        }
    }

    /// For the run that puts something into the sandbox `pid`.
    pub(super) fn of_starter(network: Network, pid: u32, interface: OwnedFd) -> Self {
        match network {
            Network::None => Self::Ours,
            Network::OfSlot { hiding } => Self::Instead { pid, interface, hiding },
        }
    }

    /// For a run that asks something of the sandbox `pid`.
    pub(super) fn of_asker(network: Network, pid: u32) -> Self {
        match network {
            Network::None => Self::Ours,
            Network::OfSlot { .. } => Self::Beside(pid),
        }
    }

    /// Makes it that of the calling thread, whose mounts are its own.
    pub(super) fn enter(&self) -> io::Result<()> {
        match self {
            Self::Ours => Ok(()),
            Self::Within(namespace) => enter(namespace),
            Self::Beside(pid) => enter(fs_err::File::open(format!("/proc/{pid}/ns/net"))?.file()),
            Self::Instead { pid, interface, hiding } => {
                enter(interface)?;
                let namespaces = PathBuf::from(format!("/proc/{pid}/ns"));
                empty(&namespaces)?;
                let network = namespaces.join("net");
                fs_err::File::create(&network)?;
                let interface = format!("/proc/thread-self/fd/{}", interface.as_raw_fd());
                mount(Some(interface.as_str()), &network, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
                if *hiding { empty(Path::new(PARAMETERS)) } else { Ok(()) }
            }
        }
    }
}

fn enter(namespace: impl AsFd) -> io::Result<()> {
    Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
}

fn empty(dir: &Path) -> io::Result<()> {
    Ok(mount(None::<&str>, dir, Some("tmpfs"), MsFlags::empty(), None::<&str>)?)
}

/// The namespace of a sandbox's slot, which its process is in. Never the host's own, whoever may have the number of that process by now.
pub(super) fn of_slot(process: &Process) -> io::Result<OwnedFd> {
    let path = format!("/proc/{}/ns/net", process.pid());
    let (namespace, ours) = (fs_err::File::open(&path)?, fs_err::metadata("/proc/self/ns/net")?);
    let found = namespace.metadata()?;
    // It was its own if the process lives still.
    if process.has_ended() || (found.dev(), found.ino()) == (ours.dev(), ours.ino()) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the sandbox is not in a slot any more"));
    }
    Ok(namespace.into_file().into())
}

/// Resets the connections that the host has to the guest in this slot, and has no more begin until [`hear`]. The guest's kernel knows of
/// it on return, its tasks may not. Blocks.
pub(super) fn end_connections(slot: OwnedFd) -> io::Result<usize> {
    on_own_thread(move || {
        enter(slot)?;
        gate::set(Gate::Ends)?;
        let ended = connections::end_all()?;
        for guest in gate::guests()? {
            // What a guest sends in answer is its own affair: connections end whatever it says.
            if !arrival::wait(guest).unwrap_or(false) {
                tracing::debug!(%guest, "a guest does not tell what it has heard");
            }
        }
        Ok(ended)
    })
}

/// Lets nothing at all come through to the guest in this slot until [`hear`], and tells how many connections to it are open all the same:
/// what was on its way when the others were ended. Blocks.
pub(super) fn shut(slot: OwnedFd) -> io::Result<usize> {
    on_own_thread(move || {
        enter(slot)?;
        gate::set(Gate::Closed)?;
        connections::count()
    })
}

/// Lets what is sent to the guest in this slot through again. Blocks.
pub(super) fn hear(slot: OwnedFd) -> io::Result<()> {
    on_own_thread(move || {
        enter(slot)?;
        gate::open()
    })
}

/// Whether a process is in this namespace.
pub(super) fn is_in(pid: u32, namespace: &OwnedFd) -> bool {
    let own = fs_err::metadata(format!("/proc/{pid}/ns/net"));
    let other = nix::sys::stat::fstat(namespace);
    own.is_ok_and(|own| other.is_ok_and(|other| (own.dev(), own.ino()) == (other.st_dev, other.st_ino)))
}

/// A namespace in which there is nothing.
pub(super) fn empty_namespace() -> io::Result<OwnedFd> {
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(fs_err::File::open("/proc/thread-self/ns/net")?.into_file().into())
    })
}

/// A namespace is entered by a thread, which ends with the job.
fn on_own_thread<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("firkin-netns".into()).spawn(job)?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread that entered a namespace has panicked")))
}
