//! What a child does to itself between fork and exec. No allocation, no locks, no panics: raw system calls.
//!
//! The order is forced: what needs privileges comes before they are dropped, the user namespace after the user (a process may map
//! itself), the rules after the last file was opened, the filter after everything that it forbids.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::libc::{self, c_int, c_long};
use seccompiler::sock_filter;

use crate::{Limits, Part, part::Held};

/// More capabilities than any kernel has; the first unknown one ends the loop.
const CAPABILITIES: c_long = 64;
/// What a jailed process takes the host's name to be.
const HOST_NAME: &[u8] = b"jail";

/// What is to be done, made ready before the fork.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) held: Held,
    pub(crate) uid: u32,
    /// The only line of the maps of its user namespace.
    pub(crate) id_map: Vec<u8>,
    /// Absent: a new one.
    pub(crate) network: Option<RawFd>,
    pub(crate) groups: Vec<RawFd>,
    pub(crate) root: Option<RawFd>,
    pub(crate) rules: Option<OwnedFd>,
    pub(crate) limits: Limits,
    pub(crate) huge_pages: bool,
    pub(crate) handed: Vec<RawFd>,
    pub(crate) then: Then,
}

/// What comes after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The program.
    Run,
    /// Nothing: the process ends well.
    End,
}

pub(crate) fn enter(plan: &Plan, filter: Option<&[sock_filter]>) -> io::Result<()> {
    call(libc::SYS_setsid, [0; 5])?;
    for &group in &plan.groups {
        write(group, b"0")?;
    }
    match plan.network {
        Some(namespace) => call(libc::SYS_setns, [namespace.into(), libc::CLONE_NEWNET.into(), 0, 0, 0])?,
        None => call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0, 0])?,
    };
    // The maps of a user namespace are files of the host's `/proc`, which is about to go.
    let own = if plan.held.has(Part::Users) { Some(open(libc::AT_FDCWD, c"/proc/self", libc::O_PATH)?) } else { None };
    namespaces(plan)?;
    call(libc::SYS_umask, [0o077, 0, 0, 0, 0])?;
    no_capabilities()?;
    become_user(plan.uid.into())?;
    if let Some(own) = own {
        user_namespace(own, &plan.id_map)?;
        // Whoever makes a user namespace has all capabilities in it. Those in effect end at exec, as those of any user do.
        no_capabilities()?;
    }
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
    if !plan.huge_pages {
        // Stays over exec.
        prctl(libc::PR_SET_THP_DISABLE, 1)?;
    }
    close_all_but(&plan.handed)?;
    // Last of those that open nothing: until exec all descriptors of the server count, however many those are.
    limits(plan.limits)?;
    if let Some(rules) = &plan.rules {
        call(libc::SYS_landlock_restrict_self, [rules.as_raw_fd().into(), 0, 0, 0, 0])?;
    }
    if let Some(filter) = filter {
        seccomp(filter)?;
    }
    match plan.then {
        Then::Run => Ok(()),
        Then::End => call(libc::SYS_exit_group, [0; 5]).map(|_| ()),
    }
}

/// Enters the root, and copies of everything that a process could otherwise share with those of the host.
fn namespaces(plan: &Plan) -> io::Result<()> {
    let held = plan.held;
    if let Some(root) = plan.root {
        // Makes the namespace's root this process's root and working directory.
        call(libc::SYS_setns, [root.into(), libc::CLONE_NEWNS.into(), 0, 0, 0])?;
    }
    let wanted = [
        (Part::Files, libc::CLONE_NEWNS),
        (Part::Ipc, libc::CLONE_NEWIPC),
        (Part::HostName, libc::CLONE_NEWUTS),
        (Part::Groups, libc::CLONE_NEWCGROUP),
    ];
    let mut flags = 0;
    for (part, flag) in wanted {
        flags |= if held.has(part) { flag } else { 0 };
    }
    call(libc::SYS_unshare, [flags.into(), 0, 0, 0, 0])?;
    if held.has(Part::HostName) {
        let length = c_long::try_from(HOST_NAME.len()).unwrap_or_default();
        call(libc::SYS_sethostname, [address(HOST_NAME.as_ptr()), length, 0, 0, 0])?;
    }
    if held.has(Part::Files) { own_proc() } else { Ok(()) }
}

/// A `/proc` with nothing but the processes of the new pid namespace, of which there is one.
fn own_proc() -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    let [kind, place, options] = [c"proc", c"/proc", c"subset=pid,hidepid=2"].map(|text: &CStr| address(text.as_ptr().cast()));
    let flags = c_long::try_from(flags).unwrap_or_default();
    call(libc::SYS_mount, [kind, place, kind, flags, options]).map(|_| ())
}

fn limits(limits: Limits) -> io::Result<()> {
    // A write beyond the limit is to fail and not to end the process.
    // SAFETY: the call takes integers only.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    let wanted = [
        (libc::RLIMIT_FSIZE, limits.file_bytes),
        (libc::RLIMIT_NOFILE, limits.descriptors),
        (libc::RLIMIT_NPROC, limits.threads),
        // What is in the memory of a process must not end up in a core file.
        (libc::RLIMIT_CORE, 0),
    ];
    for (resource, most) in wanted {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `limit` is a valid structure that outlives the call.
        if unsafe { libc::setrlimit(resource, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// No capability can be gained any more, by whatever program.
fn no_capabilities() -> io::Result<()> {
    for capability in 0..CAPABILITIES {
        if prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
            break;
        }
    }
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.into()).map(|_| ())
}

fn become_user(uid: c_long) -> io::Result<()> {
    call(libc::SYS_setgroups, [0; 5])?;
    call(libc::SYS_setresgid, [uid, uid, uid, 0, 0])?;
    // Leaving user 0 clears the permitted and effective sets.
    call(libc::SYS_setresuid, [uid, uid, uid, 0, 0]).map(|_| ())
}

/// A user namespace in which this user is itself and there is no other.
fn user_namespace(own: RawFd, map: &[u8]) -> io::Result<()> {
    // A process that has changed its user has files of root's in `/proc` until it is said to be no secret; it is one again below,
    // until exec. Nobody else has its user.
    prctl(libc::PR_SET_DUMPABLE, 1)?;
    call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0, 0, 0])?;
    for (name, text) in [(c"setgroups", b"deny".as_slice()), (c"uid_map", map), (c"gid_map", map)] {
        write(open(own, name, libc::O_WRONLY)?, text)?;
    }
    prctl(libc::PR_SET_DUMPABLE, 0).map(|_| ())
}

/// Closed at exec and not now: the parent's own error pipe is among them.
fn close_all_but(handed: &[RawFd]) -> io::Result<()> {
    let close_on_exec = c_long::from(libc::CLOSE_RANGE_CLOEXEC);
    call(libc::SYS_close_range, [3, c_long::from(u32::MAX), close_on_exec, 0, 0])?;
    for &descriptor in handed {
        call(libc::SYS_fcntl, [descriptor.into(), libc::F_SETFD.into(), 0, 0, 0])?;
    }
    Ok(())
}

fn seccomp(filter: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filter.as_ptr().cast::<libc::sock_filter>().cast_mut(),
    };
    let mode = c_long::from(libc::SECCOMP_SET_MODE_FILTER);
    call(libc::SYS_seccomp, [mode, 0, address((&raw const program).cast()), 0, 0]).map(|_| ())
}

fn open(dir: c_int, name: &CStr, flags: c_int) -> io::Result<RawFd> {
    let flags = c_long::from(flags | libc::O_CLOEXEC);
    let opened = call(libc::SYS_openat, [dir.into(), address(name.as_ptr().cast()), flags, 0, 0])?;
    RawFd::try_from(opened).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn write(file: RawFd, text: &[u8]) -> io::Result<()> {
    let length = c_long::try_from(text.len()).unwrap_or_default();
    let written = call(libc::SYS_write, [file.into(), address(text.as_ptr()), length, 0, 0])?;
    if written == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn prctl(option: c_int, argument: c_long) -> io::Result<c_long> {
    call(libc::SYS_prctl, [option.into(), argument, 0, 0, 0])
}

#[expect(clippy::cast_possible_wrap, reason = "an address goes to the kernel as it is")]
fn address(pointer: *const u8) -> c_long {
    pointer.expose_provenance() as c_long
}

fn call(number: c_long, [a, b, c, d, e]: [c_long; 5]) -> io::Result<c_long> {
    // SAFETY: every call above takes integers, or addresses of what its caller borrows until the call returns; none of them is
    // written to.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
