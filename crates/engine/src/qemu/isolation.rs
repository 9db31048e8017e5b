//! What a QEMU process may do: nothing but use the descriptors and files it was given.
//!
//! Between fork and exec the child enters its network namespace and a session of its own, drops every capability and group,
//! becomes its sandbox's user, and forbids itself to gain anything back. QEMU never holds privileges, not even while it
//! starts: its own `-run-with user=` would come after it has parsed everything, and makes the process undumpable so that its
//! memory could not be read for a snapshot. QEMU's system call filter comes on top ([`SANDBOX`]).

use std::{
    os::fd::{OwnedFd, RawFd},
    process::Command,
};

/// QEMU's own seccomp filter: no obsolete calls, no set-uid, no new processes, no scheduler or resource changes.
pub(super) const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The network that the process sees.
#[derive(Debug)]
pub(super) enum Network {
    /// The namespace that its tap device is in.
    Enter(OwnedFd),
    /// A new one, with nothing in it.
    Fresh,
}

/// The user of the process.
#[derive(Debug)]
pub(super) struct Isolation {
    /// User and group id.
    pub(super) uid: u32,
    pub(super) network: Network,
    /// As [`crate::Slot::groups`].
    pub(super) groups: Vec<OwnedFd>,
    /// Whether its memory may be in huge pages. They make a heap of 5 MB one of 10, and clones gain nothing: memory that is mapped
    /// from a file has none. An emulator's code cache does gain.
    pub(super) huge_pages: bool,
}

/// Makes `command` start isolated, with the `kept` descriptors and the three standard ones open and no others.
#[expect(unsafe_code, reason = "code between fork and exec is unsafe by its nature")]
pub(super) fn apply(command: &mut Command, isolation: Isolation, kept: Vec<RawFd>) {
    use std::os::unix::process::CommandExt;

    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed: `child::enter` makes raw
    // system calls and allocates nothing. What it borrows was allocated before the fork.
    unsafe { command.pre_exec(move || child::enter(&isolation, &kept)) };
}

#[expect(unsafe_code, reason = "raw system calls: the library's wrappers may take locks that another thread held at the fork")]
mod child {
    //! Runs after fork, before exec. No allocation, no locks, no panics.

    use std::{
        io,
        os::fd::{AsRawFd, OwnedFd, RawFd},
    };

    use nix::libc;

    use super::{Isolation, Network};

    /// More capabilities than any kernel has; the first unknown one ends the loop.
    const CAPABILITIES: libc::c_long = 64;

    pub(super) fn enter(isolation: &Isolation, kept: &[RawFd]) -> io::Result<()> {
        let uid = libc::c_long::from(isolation.uid);
        join(&isolation.groups)?;
        call(libc::SYS_setsid, [0; 5])?;
        match &isolation.network {
            Network::Enter(netns) => call(libc::SYS_setns, [netns.as_raw_fd().into(), libc::CLONE_NEWNET.into(), 0, 0, 0])?,
            Network::Fresh => call(libc::SYS_unshare, [libc::CLONE_NEWNET.into(), 0, 0, 0, 0])?,
        };
        call(libc::SYS_umask, [0o077, 0, 0, 0, 0])?;
        for capability in 0..CAPABILITIES {
            if prctl(libc::PR_CAPBSET_DROP, capability).is_err() {
                break;
            }
        }
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.into())?;
        call(libc::SYS_setgroups, [0; 5])?;
        call(libc::SYS_setresgid, [uid, uid, uid, 0, 0])?;
        // Leaving user 0 clears the permitted and effective sets.
        call(libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        if !isolation.huge_pages {
            // Stays over exec.
            prctl(libc::PR_SET_THP_DISABLE, 1)?;
        }
        no_core_dumps()?;
        close_all_but(kept)
    }

    /// Goes into control groups: while there is one thread, and with the rights of whoever opened these files.
    fn join(groups: &[OwnedFd]) -> io::Result<()> {
        for group in groups {
            // SAFETY: the buffer is a constant of one byte.
            let written = unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// Guest memory must not end up in a core file.
    fn no_core_dumps() -> io::Result<()> {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `none` is a valid structure that outlives the call.
        if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Closed at exec and not now: the parent's own error pipe is among them.
    fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
        let close_on_exec = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
        call(libc::SYS_close_range, [3, libc::c_long::from(u32::MAX), close_on_exec, 0, 0])?;
        for &descriptor in kept {
            call(libc::SYS_fcntl, [descriptor.into(), libc::F_SETFD.into(), 0, 0, 0])?;
        }
        Ok(())
    }

    fn prctl(option: libc::c_int, argument: libc::c_long) -> io::Result<libc::c_long> {
        call(libc::SYS_prctl, [option.into(), argument, 0, 0, 0])
    }

    fn call(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> io::Result<libc::c_long> {
        // SAFETY: every call above takes integers only, or a null pointer for an empty list of groups.
        let result = unsafe { libc::syscall(number, a, b, c, d, e) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[test]
    fn a_machine_with_kvm_has_no_huge_pages() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: another user's process needs root");
            return;
        }
        for huge_pages in [true, false] {
            let mut command = Command::new("/bin/cat");
            command.arg("/proc/self/status").current_dir("/");
            apply(&mut command, Isolation { uid: 65_534, network: Network::Fresh, groups: Vec::new(), huge_pages }, Vec::new());
            let status = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let enabled = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).unwrap().trim();
            assert_eq!(enabled, if huge_pages { "1" } else { "0" }, "{status}");
        }
    }

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[test]
    fn a_machine_tells_its_groups_before_anything_else() {
        use std::io::{Read as _, Seek as _};
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIP: another user's process needs root");
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        let groups = vec![file.try_clone().unwrap().into(), file.try_clone().unwrap().into()];
        let mut command = Command::new("/bin/ls");
        command.arg("/proc/self/fd").current_dir("/");
        apply(&mut command, Isolation { uid: 65_534, network: Network::Fresh, groups, huge_pages: false }, Vec::new());
        let open = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(open.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "and takes none of their files along");
        let mut told = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut told).unwrap();
        assert_eq!(told, "00");
    }
}
