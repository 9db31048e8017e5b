//! Starting a child without copying its parent.
//!
//! Between fork and exec a child of the usual kind has a copy of the agent's page tables, and both pay for each page that either
//! writes: in an emulated guest that is more than the rest of a short command together. `posix_spawn(3)` shares the memory until the
//! exec instead, but cannot change who the child is. So a thread of its own becomes the user first, enters the working directory, and
//! lets the child inherit both: credentials and directory are a thread's own in Linux, as long as nobody calls the C library's
//! functions for them, which change every thread.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use nix::{
    spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn},
    sys::signal::SigSet,
    unistd::{Gid, Pid, Uid},
};
use rustix::thread::{UnshareFlags, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// `POSIX_SPAWN_SETSID` of glibc's `spawn.h`: the child leads a session. nix has no name for it.
const SET_SESSION: i32 = 0x80;

/// `PATH` of programs whose sandbox sets none, and of the image's hooks.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to start, and as whom.
#[derive(Debug)]
pub(crate) struct Order {
    /// Path of the program.
    pub(crate) program: CString,
    /// Its arguments, its own name first.
    pub(crate) args: Vec<CString>,
    /// `NAME=value` each.
    pub(crate) env: Vec<CString>,
    /// Working directory, entered as the user.
    pub(crate) cwd: CString,
    /// Who it is; the agent's own user when absent.
    pub(crate) user: Option<Credentials>,
    /// Standard input, output and error.
    pub(crate) streams: [OwnedFd; 3],
}

/// A user and the groups that it is in.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// The thread that starts children.
#[derive(Debug, Clone)]
pub(crate) struct Spawner(SyncSender<(Order, SyncSender<io::Result<Pid>>)>);

impl Spawner {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (orders, queue) = sync_channel(0);
        thread::Builder::new().name("spawner".to_owned()).spawn(move || serve(&queue))?;
        Ok(Self(orders))
    }

    /// Starts a child. Blocks until it has executed its program, or could not.
    pub(crate) fn spawn(&self, order: Order) -> io::Result<Pid> {
        let (answer, outcome) = sync_channel(1);
        let gone = || io::Error::other("the spawner is gone");
        self.0.send((order, answer)).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }
}

fn serve(queue: &Receiver<(Order, SyncSender<io::Result<Pid>>)>) {
    #[expect(unsafe_code, reason = "unsharing could break what relies on the shared; a directory of one's own does not")]
    // SAFETY: only this thread's working directory, root and umask become its own; no descriptor and no memory does.
    let unshared = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) };
    if let Err(error) = unshared {
        tracing::error!(%error, "cannot give the spawner a working directory of its own");
        return;
    }
    for (order, answer) in queue {
        let outcome = spawn(&order);
        drop(order);
        // Whoever asked may have gone; the child is the reaper's then.
        answer.send(outcome).ok();
    }
}

fn spawn(order: &Order) -> io::Result<Pid> {
    let _identity = order.user.as_ref().map(Identity::assume).transpose()?;
    nix::unistd::chdir(order.cwd.as_c_str())?;
    let mut actions = PosixSpawnFileActions::init()?;
    for (number, stream) in (0..).zip(&order.streams) {
        actions.add_dup2(stream.as_raw_fd(), number)?;
    }
    let mut attributes = PosixSpawnAttr::init()?;
    // The standard library ignores SIGPIPE, which a child would inherit.
    attributes.set_sigdefault(&SigSet::all())?;
    attributes.set_sigmask(&SigSet::empty())?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK;
    attributes.set_flags(flags | PosixSpawnFlags::from_bits_retain(SET_SESSION))?;
    Ok(posix_spawn(order.program.as_c_str(), &actions, &attributes, &order.args, &order.env)?)
}

/// This thread as another user. It is the agent's again on drop.
struct Identity;

impl Identity {
    /// The saved user stays the agent's, so that there is a way back; an exec forgets it.
    fn assume(user: &Credentials) -> io::Result<Self> {
        let groups: Vec<rustix::process::Gid> =
            user.groups.iter().map(|gid| rustix::process::Gid::from_raw(gid.as_raw())).collect();
        let (uid, gid) = (rustix::process::Uid::from_raw(user.uid.as_raw()), rustix::process::Gid::from_raw(user.gid.as_raw()));
        let identity = Self;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, rustix::process::Gid::ROOT)?;
        set_thread_res_uid(uid, uid, rustix::process::Uid::ROOT)?;
        Ok(identity)
    }
}

impl Drop for Identity {
    fn drop(&mut self) {
        let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
        set_thread_res_uid(uid, uid, uid).expect("the saved user is root");
        set_thread_res_gid(gid, gid, gid).expect("root may be in every group");
        set_thread_groups(&[]).expect("root may leave every group");
    }
}
