//! Stops a process at any one of its steps: each system call that makes, renames, removes or syncs a file.
//!
//! What a server has done when it is killed is what the kernel has done for it, so these calls *are* its steps: of the store,
//! the artifacts, the instance directories, and of a fake machine too, which lives in files. No list of them is kept anywhere,
//! so none can be forgotten: a seccomp filter has the kernel stop the process at each call and ask us whether it goes on.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};

/// Calls that change what a later process finds. Writing is left out: what is written means nothing before its sync or rename.
const STEPS: &[libc::c_long] = &[
    libc::SYS_mkdirat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
];

/// Asked by the process to say where steps begin to count, and where they end. It has no other use for it.
const MARK: libc::c_long = libc::SYS_getppid;

/// Milliseconds. No step of a process takes this long to come.
const PATIENCE_MS: u16 = 60_000;

/// Filters this thread and those that it will start, and gives whoever is at the other end of `to` the say over their steps.
pub(crate) fn submit(to: &UnixStream) -> io::Result<()> {
    let listener = install()?;
    let descriptors = [listener.as_raw_fd()];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"!")], &[ControlMessage::ScmRights(&descriptors)], MsgFlags::empty(), None)?;
    Ok(())
}

/// Says that steps begin to count, or that they end.
pub(crate) fn mark() {
    nix::unistd::getppid();
}

fn instruction(code: u32, jt: usize, jf: usize, k: u32) -> libc::sock_filter {
    let near = |distance: usize| u8::try_from(distance).expect("the program is short");
    libc::sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt: near(jt), jf: near(jf), k }
}

/// Asks about every step, every mark, and every file that is created; allows the rest.
fn program() -> Vec<libc::sock_filter> {
    let (load, equal, set) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_JMP | libc::BPF_JSET);
    let asked: Vec<u32> = STEPS.iter().chain([&MARK]).map(|&call| u32::try_from(call).expect("a number of a call")).collect();
    // Offsets in `seccomp_data`: the number of the call, and the low half of its third argument, an open's flags.
    let (number, flags) = (0, 32);
    let mut program = vec![instruction(load, 0, 0, number)];
    for (at, call) in asked.iter().enumerate() {
        program.push(instruction(equal, asked.len() - at + 3, 0, *call));
    }
    program.push(instruction(equal, 0, 2, u32::try_from(libc::SYS_openat).expect("a number of a call")));
    program.push(instruction(load, 0, 0, flags));
    program.push(instruction(set, 1, 0, u32::try_from(libc::O_CREAT).expect("a flag")));
    program.push(instruction(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(instruction(libc::BPF_RET, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    program
}

#[expect(unsafe_code, reason = "the system call has no safe wrapper")]
fn install() -> io::Result<OwnedFd> {
    let mut filter = program();
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).expect("short"), filter: filter.as_mut_ptr() };
    nix::sys::prctl::set_no_new_privs()?;
    // SAFETY: `program` points to `filter`, and both outlive the call, which only reads them.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    let listener = RawFd::try_from(listener).expect("a descriptor fits");
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor, for us.
    Ok(unsafe { OwnedFd::from_raw_fd(listener) })
}

/// Where a process was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// About to do this step, a call by its number.
    Before(i32),
    /// After it had marked the end: there were so many steps.
    AtTheEnd(usize),
    /// By itself.
    Ended,
}

/// The say over a process's steps.
#[derive(Debug)]
pub(crate) struct Steps {
    listener: OwnedFd,
}

impl Steps {
    /// What the process at the other end of `from` has [submitted](submit) to.
    #[expect(unsafe_code, reason = "a descriptor that comes by message is owned by whoever receives it")]
    pub(crate) fn receive(from: &UnixStream) -> io::Result<Self> {
        let mut space = nix::cmsg_space!(RawFd);
        let mut byte = [0];
        let mut vectors = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(from.as_raw_fd(), &mut vectors, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let descriptor = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let descriptor = descriptor.ok_or(io::ErrorKind::UnexpectedEof)?;
        // SAFETY: the kernel has just made this descriptor, for us.
        Ok(Self { listener: unsafe { OwnedFd::from_raw_fd(descriptor) } })
    }

    /// Lets the process go on until it is about to do step number `stop` after its first mark, or has set its second. There it
    /// stands still: whoever asked for that kills it.
    pub(crate) fn run_until(&self, stop: usize) -> io::Result<Stopped> {
        let mut counted = None;
        loop {
            let mut poll = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            if nix::poll::poll(&mut poll, PollTimeout::from(PATIENCE_MS))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !poll[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN)) {
                return Ok(Stopped::Ended);
            }
            let Some((id, call)) = self.question()? else { continue };
            counted = match counted {
                None if libc::c_long::from(call) == MARK => Some(0),
                None => None,
                Some(steps) if libc::c_long::from(call) == MARK => return Ok(Stopped::AtTheEnd(steps)),
                Some(steps) if steps == stop => return Ok(Stopped::Before(call)),
                Some(steps) => Some(steps + 1),
            };
            self.go_on(id)?;
        }
    }

    /// A call that waits for an answer, or none if its process is gone by now.
    #[expect(unsafe_code, reason = "an ioctl on a structure of the kernel's")]
    fn question(&self) -> io::Result<Option<(u64, i32)>> {
        // SAFETY: a structure of integers, for which zero is a value; the kernel demands it.
        let mut question: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one that this request fills.
        match unsafe { ioctl::receive(self.listener.as_raw_fd(), &raw mut question) } {
            Ok(_) => Ok(Some((question.id, question.data.nr))),
            Err(nix::errno::Errno::ENOENT | nix::errno::Errno::EINTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    #[expect(unsafe_code, reason = "an ioctl on a structure of the kernel's")]
    fn go_on(&self, id: u64) -> io::Result<()> {
        let flags = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("a flag");
        let mut answer = libc::seccomp_notif_resp { id, val: 0, error: 0, flags };
        // SAFETY: the structure is the one that this request reads.
        match unsafe { ioctl::send(self.listener.as_raw_fd(), &raw mut answer) } {
            Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

mod ioctl {
    //! `SECCOMP_IOCTL_NOTIF_RECV` and `_SEND` of `linux/seccomp.h`.

    nix::ioctl_readwrite!(receive, b'!', 0, nix::libc::seccomp_notif);
    nix::ioctl_readwrite!(send, b'!', 1, nix::libc::seccomp_notif_resp);
}
