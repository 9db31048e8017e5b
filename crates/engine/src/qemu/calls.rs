//! The system calls that QEMU is left: what a machine needs to run, be cut, moved between disks, and end.
//!
//! Found by running the engine's contract, emulated and with KVM, and by reading what QEMU's parts do; each is here because
//! something of ours stops without it. What is refused by its absence, to name what matters: sockets of every family (QEMU accepts
//! on one that it was handed), `bind` and `connect`, io_uring, `memfd_create`, `userfaultfd`, keys, `ptrace` and the memory of other
//! processes, `bpf`, `perf_event_open`, mounts, namespaces, kernels and modules, new processes, and every change of a file's name,
//! owner or mode. QEMU asks for some of these to see what the host has, and does without.

use firkin_jail::{Allowed, Condition};
use nix::libc;

/// All of them.
pub(super) fn allowed() -> Vec<Allowed> {
    let whole = WHOLE.iter().chain(LEGACY).map(|&call| Allowed { call, only: &[] });
    let conditions = ARGUMENTS.iter().map(|&(call, only)| Allowed { call, only });
    whole.chain(conditions).collect()
}

/// With any arguments.
const WHOLE: &[libc::c_long] = &[
    // Start and end. The filter is there before the program is: what it may run is itself, and QEMU's own filter ends that, too.
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, signals, time.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_tgkill,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_restart_syscall,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    // Files, by descriptor and by the few names that there are.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_fchdir,
    libc::SYS_umask,
    // Sockets that it was handed, and those accepted on them.
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // What it asks of itself and of the host.
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrusage,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getppid,
    // A filter of its own can only take away more.
    libc::SYS_seccomp,
];

/// Older forms, which the C library of x86 still uses.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[libc::c_long] = &[
    libc::SYS_arch_prctl,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_dup2,
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[libc::c_long] = &[];

/// Everything in which a namespace is asked for, and what makes a thread of a process.
const CLONE_FLAGS: u64 = (libc::CLONE_THREAD
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// With these arguments only. A call that stands here twice may be made in either way.
const ARGUMENTS: &[(libc::c_long, &[Condition])] = &[
    // A thread, and no process. Its newer form hides its flags from filters: libraries go on with this one.
    (libc::SYS_clone, &[Condition { argument: 0, mask: CLONE_FLAGS, value: libc::CLONE_THREAD.unsigned_abs() as u64 }]),
    // Limits are read and not set.
    (libc::SYS_prlimit64, &[Condition { argument: 2, mask: u64::MAX, value: 0 }]),
    (libc::SYS_prctl, &[option(libc::PR_SET_NAME)]),
    (libc::SYS_prctl, &[option(libc::PR_SET_TIMERSLACK)]),
    (libc::SYS_prctl, &[option(libc::PR_MCE_KILL)]),
    (libc::SYS_prctl, &[option(libc::PR_SET_NO_NEW_PRIVS)]),
    (libc::SYS_prctl, &[option(libc::PR_CAPBSET_READ)]),
    // Of machines, of taps, of block devices; whether a descriptor waits, how much there is to read, whether it is a terminal.
    (libc::SYS_ioctl, &[Condition { argument: 1, mask: 0xff00, value: 0xae00 }]),
    (libc::SYS_ioctl, &[Condition { argument: 1, mask: 0xffc0, value: 0x54c0 }]),
    (libc::SYS_ioctl, &[Condition { argument: 1, mask: 0xff00, value: 0x1200 }]),
    (libc::SYS_ioctl, &[request(libc::FIONBIO)]),
    (libc::SYS_ioctl, &[request(libc::FIONREAD)]),
    (libc::SYS_ioctl, &[request(libc::TCGETS)]),
];

const fn option(option: libc::c_int) -> Condition {
    Condition { argument: 0, mask: 0xffff_ffff, value: option.unsigned_abs() as u64 }
}

const fn request(request: libc::Ioctl) -> Condition {
    Condition { argument: 1, mask: 0xffff_ffff, value: request }
}
