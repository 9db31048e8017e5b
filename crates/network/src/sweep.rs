//! Taking away what has a number of ours and no owner: processes, ways out, and the numbers themselves.
//!
//! A claim's user ids and interface names are its server's alone while the claim's file is locked, so whatever bears one is
//! ours, and no journal has to say so. Its owner is whoever holds the lease of the number. The order of looking makes this safe
//! beside launches: a thing is seen first, and only then is its number looked up. A number is leased before anything bears
//! it, so a thing whose number is free at that moment was left by an earlier holder.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    OpenError, SetupError,
    claim::{self, uid_of},
    lease::Host,
    namespace,
    netlink::Netlink,
    pool::NetworkPool,
};

/// Milliseconds that a process without an owner has to end by itself: one that was killed a moment ago is on its way.
const LEAVE_MS: u16 = 500;

/// Milliseconds from SIGKILL until a process is gone. Gigabytes of memory are unmapped in less.
const DEATH_MS: u16 = 5_000;

/// Processes that one pass ends. There are not so many but after something went very wrong, and then the next pass goes on.
const PROCESSES_PER_PASS: usize = 64;

/// The things that one sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweptNetwork {
    /// Processes that were ended.
    pub processes: Vec<u32>,
    /// Interfaces that were deleted.
    pub interfaces: Vec<String>,
    /// Slot numbers of machines that are gone, which can be used again.
    pub numbers: Vec<u16>,
}

impl NetworkPool {
    /// Ends and deletes what has a number of this pool's and no owner: no slot that is in use, and no machine that was
    /// [released](super::NetworkSlot::release). Machines of an earlier server that nobody has adopted have none. What belongs
    /// to other claims is not looked at.
    pub async fn sweep(&self) -> Result<SweptNetwork, OpenError> {
        let (host, waiting) = (Arc::clone(self.host()), self.survivors());
        let job = move || sweep(&host, waiting);
        let swept = namespace::on_own_thread(job).await?;
        self.forget_survivors(&swept.numbers);
        Ok(swept)
    }
}

/// Runs on a thread of its own in the host's namespace. `waiting` are the numbers of survivors that nobody has adopted.
fn sweep(host: &Arc<Host>, waiting: BTreeSet<u16>) -> Result<SweptNetwork, OpenError> {
    let system = |step| move |source| SetupError::System { step, source };
    let mut swept = SweptNetwork::default();
    let is_owned = |number| host.is_used(number) && !waiting.contains(&number);
    let mut lingering = BTreeSet::new();
    let processes = claim::processes(host.uids).map_err(system("look for machines without an owner"))?;
    for (pid, number) in processes.into_iter().filter_map(|(pid, claim, number)| (claim == host.claim).then_some((pid, number))) {
        match end(host, pid, number, &is_owned).map_err(system("end a machine without an owner"))? {
            Outcome::Owned | Outcome::Gone => {}
            Outcome::Ended => swept.processes.push(pid),
            Outcome::Lingers => drop(lingering.insert(number)),
        }
        if swept.processes.len() == PROCESSES_PER_PASS {
            lingering.extend(&waiting);
            break;
        }
    }
    swept.numbers = waiting.iter().copied().filter(|number| !lingering.contains(number)).collect();
    let delete = async {
        let netlink = Netlink::open()?;
        for veth in netlink.veths(&host.claim.interface_prefix()).await? {
            let is_owned = host.claim.slot_of(&veth.name).is_some_and(|number| is_owned(number) || lingering.contains(&number));
            // By its index, which no later interface of this name has.
            if !is_owned && netlink.delete_index("sweep a way out without a machine", veth.index).await? {
                swept.interfaces.push(veth.name);
            }
        }
        Ok::<_, SetupError>(())
    };
    namespace::block_on(delete).map_err(system("start a runtime"))??;
    Ok(swept)
}

enum Outcome {
    Owned,
    Gone,
    Ended,
    Lingers,
}

/// Ends process `pid` unless its number has an owner, or it is none of ours.
fn end(host: &Host, pid: u32, number: u16, is_owned: &impl Fn(u16) -> bool) -> io::Result<Outcome> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(Outcome::Gone) };
    // From here on, the process is this one or none.
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else { return Ok(Outcome::Gone) };
    let Ok(netns) = fs_err::File::open(format!("/proc/{pid}/ns/net")) else { return Ok(Outcome::Gone) };
    if uid_of(pid)? != Some(host.uid(number)) {
        return Ok(Outcome::Gone);
    }
    // A machine enters its slot before it becomes the slot's user. What is in the host's namespace never was one.
    if is_owned(number) || identity(netns.file().as_fd())? == identity(host.netns.as_fd())? {
        return Ok(Outcome::Owned);
    }
    if has_ended(&pidfd, LEAVE_MS)? {
        return Ok(Outcome::Gone);
    }
    tracing::warn!(pid, slot = number, "ending a process that has a slot's user id and no owner");
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(if has_ended(&pidfd, DEATH_MS)? { Outcome::Ended } else { Outcome::Lingers })
}

fn has_ended(pidfd: &OwnedFd, within_ms: u16) -> io::Result<bool> {
    let mut poll = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(nix::poll::poll(&mut poll, PollTimeout::from(within_ms))? > 0)
}

fn identity(namespace: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    let stat = nix::sys::stat::fstat(namespace)?;
    Ok((stat.st_dev, stat.st_ino))
}
