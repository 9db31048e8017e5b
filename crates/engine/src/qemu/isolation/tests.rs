//! What a process with exactly a machine's identity and jail finds of its host. The process is this test, run again in the jail.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::{BufRead, BufReader},
    os::{
        fd::{AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
            process::{CommandExt, ExitStatusExt},
        },
    },
    process::{Child, Stdio},
};

use firkin_jail::{Allowed, Confinement, Network};
use nix::libc;

use super::*;
use crate::qemu::probe::PROGRAM;

/// Tells the process in the jail that it is there, and what to look for: a line for each.
const VICTIMS: &str = "FIRKIN_TEST_VICTIMS";
/// A user that nobody else is.
const UID: u32 = 1_899_999_999;
/// More system calls than there are.
const CALLS: libc::c_long = 600;

/// What every system call that matters answers where it is not allowed.
const FORBIDDEN: [(&str, libc::c_long, [libc::c_long; 3]); 24] = [
    ("vsock", libc::SYS_socket, [40, 1, 0]),
    ("inet", libc::SYS_socket, [2, 1, 0]),
    ("unix", libc::SYS_socket, [1, 1, 0]),
    ("netlink", libc::SYS_socket, [16, 3, 12]),
    ("packet", libc::SYS_socket, [17, 3, 0]),
    ("socketpair", libc::SYS_socketpair, [1, 1, 0]),
    ("io_uring_setup", libc::SYS_io_uring_setup, [8, 0, 0]),
    ("userfaultfd", libc::SYS_userfaultfd, [1, 0, 0]),
    ("keyctl", libc::SYS_keyctl, [0, -3, 0]),
    ("add_key", libc::SYS_add_key, [0, 0, 0]),
    ("ptrace", libc::SYS_ptrace, [0, 0, 0]),
    ("process_vm_readv", libc::SYS_process_vm_readv, [1, 0, 0]),
    ("memfd_create", libc::SYS_memfd_create, [0, 0, 0]),
    ("bpf", libc::SYS_bpf, [0, 0, 0]),
    ("perf_event_open", libc::SYS_perf_event_open, [0, 0, -1]),
    ("mount", libc::SYS_mount, [0, 0, 0]),
    ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as libc::c_long, 0, 0]),
    ("setns", libc::SYS_setns, [0, 0, 0]),
    ("fork", libc::SYS_clone, [libc::SIGCHLD as libc::c_long, 0, 0]),
    ("clone3", libc::SYS_clone3, [0, 0, 0]),
    ("kill", libc::SYS_kill, [-1, 0, 0]),
    ("tiocsti", libc::SYS_ioctl, [2, libc::TIOCSTI.cast_signed(), 0]),
    ("chmod", libc::SYS_fchmodat, [libc::AT_FDCWD as libc::c_long, 0, 0]),
    ("init_module", libc::SYS_init_module, [0, 0, 0]),
];

#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn jails_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIP: a jail needs root");
    }
    root
}

fn jail_of(path: &Path, files: &[PathBuf], calls: &[Allowed]) -> Jail {
    Jail::new(&Program { path, files, devices: &DEVICES.map(PathBuf::from), calls })
}

fn confinement() -> Confinement {
    Confinement {
        uid: UID,
        network: Network::Fresh,
        groups: Vec::new(),
        limits: limits(1, 0),
        huge_pages: true,
        handed: Vec::new(),
    }
}

/// What is on the host for every user to find.
struct Victims {
    dir: tempfile::TempDir,
    shared: tempfile::NamedTempFile,
    neighbour: Child,
    _named: UnixListener,
    _abstract: UnixListener,
}

impl Victims {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = || std::fs::Permissions::from_mode(0o777);
        fs_err::set_permissions(dir.path(), open()).unwrap();
        let named = UnixListener::bind(dir.path().join("socket")).unwrap();
        fs_err::set_permissions(dir.path().join("socket"), open()).unwrap();
        let name = SocketAddr::from_abstract_name(dir.path().as_os_str().as_encoded_bytes()).unwrap();
        let shared = tempfile::Builder::new().permissions(open()).tempfile_in("/dev/shm").unwrap();
        // Of the same user: what the kernel lets users do to their own processes, they may.
        let neighbour = Command::new("/bin/cat").uid(UID).gid(UID).current_dir("/").stdin(Stdio::piped()).spawn().unwrap();
        Self { dir, shared, neighbour, _named: named, _abstract: UnixListener::bind_addr(&name).unwrap() }
    }

    fn told(&self) -> String {
        format!("{}\n{}\n{}", self.dir.path().display(), self.shared.path().display(), self.neighbour.id())
    }
}

impl Drop for Victims {
    fn drop(&mut self) {
        self.neighbour.kill().unwrap();
        self.neighbour.wait().unwrap();
    }
}

/// Runs the test `name` of this file in a jail, and gives what it said.
fn run_jailed(name: &str, calls: &[Allowed]) -> (Vec<PathBuf>, String) {
    let program = fs_err::canonicalize(std::env::current_exe().unwrap()).unwrap();
    let jail = jail_of(&program, &[], calls);
    assert_eq!(jail.lacking().count(), 0, "{:?}", jail.parts());
    let victims = Victims::new();
    let mut command = Command::new(&program);
    let name = format!("qemu::isolation::tests::{name}");
    // A file that everybody may write to, handed to be read.
    let handed: OwnedFd = fs_err::File::open(victims.shared.path()).unwrap().into_parts().0.into();
    let told = format!("{}\n{}", victims.told(), handed.as_raw_fd());
    command.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env_clear().env(VICTIMS, told);
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let confinement = Confinement { handed: vec![handed], ..confinement() };
    let output = jail.spawn(command, confinement).unwrap().wait_with_output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", output.status);
    (said.lines().filter_map(|line| line.strip_prefix("FOUND ")).map(PathBuf::from).collect(), said)
}

#[test]
fn a_machine_s_process_finds_nothing_of_its_host() {
    if !jails_run() {
        return;
    }
    let (found, said) = run_jailed("walks_the_host", &calls::allowed());
    assert!(said.contains("REFUSED"), "{said}");
    let own = fs_err::canonicalize(std::env::current_exe().unwrap()).unwrap();
    let known = |path: &Path| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        path == own || name.contains(".so") || path == Path::new("/dev/urandom") || path == Path::new("/etc/ld.so.cache")
    };
    let strange: Vec<&PathBuf> = found.iter().filter(|path| !known(path)).collect();
    assert!(found.contains(&own) && strange.is_empty(), "{strange:?}");
}

/// The filter hides what the other parts do, so they are tried without it.
#[test]
fn without_its_filter_it_finds_nothing_either() {
    if jails_run() {
        let all: Vec<Allowed> = (0..CALLS).map(|call| Allowed { call, only: &[] }).collect();
        run_jailed("walks_the_host", &all);
    }
}

/// A QEMU with somebody else's code in it, from before its first instruction: the loader runs that.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
#[test]
fn a_qemu_that_was_taken_over_is_refused() {
    if !jails_run() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("taken.c"), taken_over()).unwrap();
    let library = dir.path().join("taken.so");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(dir.path().join("taken.c")).status();
    let qemu = ["/usr/bin", "/usr/local/bin"].map(|dir| Path::new(dir).join(PROGRAM)).into_iter().find(|path| path.is_file());
    let (Ok(true), Some(qemu)) = (compiled.map(|status| status.success()), qemu) else {
        eprintln!("SKIP: a QEMU is taken over with a C compiler and QEMU in /usr/bin");
        return;
    };
    let mut files = files(&qemu).unwrap();
    files.push(library.clone());
    let jail = jail_of(&qemu, &files, &calls::allowed());
    assert_eq!(jail.lacking().count(), 0, "{:?}", jail.parts());
    let mut command = Command::new(&qemu);
    command.args(["-nodefaults", "-display", "none", "-machine", "none", "-S", "-sandbox", SANDBOX]).env_clear();
    command.env("LD_PRELOAD", &library).current_dir("/").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut process = jail.spawn(command, confinement()).unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(process.stderr.take().unwrap());
    while !said.ends_with("done\n") && lines.read_line(&mut said).unwrap() > 0 {}
    process.kill().unwrap();
    process.wait().unwrap();
    let expected: String = FORBIDDEN.iter().map(|(name, ..)| format!("{name} {}\n", libc::ENOSYS)).collect();
    assert_eq!(said, expected + "done\n");
}

/// A library that tries [`FORBIDDEN`] when it is loaded, and says how each ended.
fn taken_over() -> String {
    let tries: String = FORBIDDEN
        .iter()
        .map(|(name, number, [a, b, c])| {
            format!("r = syscall({number}L, {a}L, {b}L, {c}L, 0L, 0L, 0L); dprintf(2, \"{name} %d\\n\", r < 0 ? errno : 0);\n")
        })
        .collect();
    format!(
        "#define _GNU_SOURCE\n#include <errno.h>\n#include <stdio.h>\n#include <unistd.h>\n\
         __attribute__((constructor)) static void taken(void) {{ long r;\n{tries}dprintf(2, \"done\\n\"); }}\n"
    )
}

#[test]
fn a_machine_with_kvm_has_no_huge_pages() {
    if !jails_run() {
        return;
    }
    let program = fs_err::canonicalize("/bin/cat").unwrap();
    let jail = jail_of(&program, &[], &calls::allowed());
    for huge_pages in [true, false] {
        let mut command = Command::new(&program);
        command.arg("/proc/self/status").current_dir("/").stdout(Stdio::piped());
        let child = jail.spawn(command, Confinement { huge_pages, ..confinement() }).unwrap();
        let status = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let enabled = status.lines().find_map(|line| line.strip_prefix("THP_enabled:")).unwrap().trim();
        assert_eq!(enabled, if huge_pages { "1" } else { "0" }, "{status}");
    }
}

/// The first process of a pid namespace is spared signals, but not those of its own faults.
#[test]
fn a_machine_s_process_ends_by_its_own_faults() {
    if !jails_run() {
        return;
    }
    let program = fs_err::canonicalize(std::env::current_exe().unwrap()).unwrap();
    let jail = jail_of(&program, &[], &calls::allowed());
    let mut command = Command::new(&program);
    command.args(["--exact", "qemu::isolation::tests::ends_itself", "--test-threads=1"]).env_clear().env(VICTIMS, "");
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    let status = jail.spawn(command, confinement()).unwrap().wait().unwrap();
    assert!(status.signal().is_some(), "{status}");
}

#[test]
fn ends_itself() {
    if std::env::var(VICTIMS).is_ok_and(|victims| victims.is_empty()) {
        std::process::abort();
    }
}

/// The process in the jail.
#[expect(clippy::print_stdout, reason = "what it finds goes to the test outside")]
#[test]
fn walks_the_host() {
    let Ok(victims) = std::env::var(VICTIMS) else { return };
    let mut victims = victims.lines();
    let [dir, shared, neighbour, handed] = [(); 4].map(|()| victims.next().unwrap());
    for file in files_below(Path::new("/")) {
        println!("FOUND {}", file.display());
    }
    let processes: BTreeSet<_> = fs_err::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(processes, ["1", "self", "thread-self"].map(Into::into).into());
    for path in [dir, shared, "/dev/shm", "/tmp", "/run", "/sys", "/etc/passwd", "/proc/sys", "/proc/kallsyms"] {
        assert_eq!(std::fs::metadata(path).unwrap_err().kind(), io::ErrorKind::NotFound, "{path}");
    }
    let handed = format!("/proc/self/fd/{handed}");
    std::fs::File::open(&handed).unwrap();
    assert!(std::fs::OpenOptions::new().write(true).open(&handed).is_err(), "what was handed to be read");
    for path in ["/x", "/proc/x", "/dev/x"] {
        assert!(std::fs::File::create(path).is_err(), "{path}");
    }
    assert_eq!(nix::unistd::getpid().as_raw(), 1);
    assert_ne!(fs_err::read_to_string("/proc/self/status").unwrap().find("CapEff:\t0000000000000000"), None);
    let map = fs_err::read_to_string("/proc/self/uid_map").unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), [UID.to_string(), UID.to_string(), 1.to_string()]);
    assert_eq!(nix::sys::utsname::uname().unwrap().nodename(), "jail");
    let pid: i32 = neighbour.parse().unwrap();
    assert!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_err(), "a signal");
    assert!(std::os::unix::net::UnixStream::connect(Path::new(dir).join("socket")).is_err(), "a socket with a name");
    let name = SocketAddr::from_abstract_name(dir).unwrap();
    assert!(std::os::unix::net::UnixStream::connect_addr(&name).is_err(), "an abstract socket");
    assert!(memory_of(pid).is_err(), "the memory of another");
    if call(libc::SYS_socket, [1, 1, 0]) == Err(libc::ENOSYS) {
        for (name, number, arguments) in FORBIDDEN {
            assert_eq!(call(number, arguments), Err(libc::ENOSYS), "{name}");
        }
        println!("REFUSED");
    }
}

/// Files and devices below `dir`, and nothing of `/proc`.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match fs_err::symlink_metadata(&path).unwrap().file_type() {
            kind if kind.is_dir() && path != Path::new("/proc") => files.extend(files_below(&path)),
            kind if kind.is_dir() => {}
            _ => files.push(path),
        }
    }
    files
}

#[expect(unsafe_code, reason = "a system call that may be refused")]
fn memory_of(pid: i32) -> Result<libc::c_long, i32> {
    let mut byte = 0_u8;
    let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: one byte is read to where there is one.
    let read = unsafe { libc::process_vm_readv(pid, &raw const own, 1, &raw const own, 1, 0) };
    if read < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(0) }
}

#[expect(unsafe_code, reason = "a system call that is to be refused")]
fn call(number: libc::c_long, [a, b, c]: [libc::c_long; 3]) -> Result<libc::c_long, i32> {
    // SAFETY: it is refused; where it is not, it is made with integers and null pointers.
    let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) } else { Ok(result) }
}
