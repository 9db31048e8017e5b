//! The checks: what is looked at, and what it means.
//!
//! Each looks at one thing and cannot fail itself: what cannot be looked at is a finding too. A failure is something without
//! which no sandbox starts; a warning is something that one will run into.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use firkin_causes::chain;
use firkin_engine::qemu::probe::{PROGRAM as QEMU, ProbeError, last_fallback, try_smallest_guest};
use firkin_engine::qemu::safeguards_of_host;
use firkin_image::command::{capture, command};
use firkin_image::{compare_versions, sources};

use super::{
    choice,
    finding::{Check, Finding, Lack, Status, which},
    guests, gvisor,
    jail::{HINT, lacking},
    packages, pvm,
};
use crate::args::EngineChoice;

/// The first QEMU whose `file:` migration restores a template as fast as we promise.
const QEMU_WANTED: &str = "8.2";
/// Snapshots of running sandboxes ask the kernel which pages were written; before this one they read a table for it.
const KERNEL_WITH_PAGEMAP_SCAN: (u32, u32) = (6, 7);
/// What Debian 11 has. Nothing older was ever tried.
const KERNEL_LEAST: (u32, u32) = (5, 10);
/// The guest system while it is built, and one template.
const DISK_LEAST_GIB: u64 = 5;
/// The floor below which no sandbox is created, and some sandboxes.
const DISK_WANTED_GIB: u64 = 20;
/// One sandbox, an emulator's own needs and the server.
const MEMORY_LEAST_MIB: u64 = 1024;
const MEMORY_WANTED_MIB: u64 = 4096;
/// A sandbox takes some thirty descriptors of the server.
const FILES_WANTED: u64 = 4096;
/// Ten instructions, on a host that may have much else to do.
const SMALLEST_GUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long a program may take to tell its version.
const ASK_DEADLINE: Duration = Duration::from_secs(30);
/// The capabilities that a server uses, by their numbers in linux/capability.h.
const CAPABILITIES: &[(u32, &str)] = &[
    (0, "CHOWN"),
    (1, "DAC_OVERRIDE"),
    (5, "KILL"),
    (6, "SETGID"),
    (7, "SETUID"),
    (12, "NET_ADMIN"),
    (19, "SYS_PTRACE"),
    (21, "SYS_ADMIN"),
    (27, "MKNOD"),
];

/// The check that tells whether guests are emulated.
const KVM: &str = "kvm";

/// Things to check beside the host itself. The directories need not exist yet.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    pub(crate) state_dir: PathBuf,
    pub(crate) cache_dir: PathBuf,
    /// The last start's finding about the acceleration.
    pub(crate) acceleration_file: PathBuf,
    /// How long a guest may take to show that KVM works.
    pub(crate) kvm_deadline: Duration,
    /// What is to run sandboxes.
    pub(crate) engines: Vec<EngineChoice>,
    /// Guests boot a kernel that the host's owner brings.
    pub(crate) own_kernel: bool,
}

/// Looks at everything, in the order in which a person would want to know.
pub(crate) async fn check(places: &Places) -> Vec<Check> {
    let mut checks = vec![
        root().named("root", "namespaces, taps and separate users for every machine"),
        kernel().named("kernel", "snapshots of running machines, and networks of their own"),
        pvm::told(kvm(places).await, Path::new(pvm::MODULES), places.own_kernel)
            .named(KVM, "machines at full speed; without it there are gVisor and emulation"),
        qemu().await.named("qemu", "it runs the machines"),
        jail().named("jail", "a machine that its guest has taken over finds nothing of this host"),
    ];
    if places.engines.contains(&EngineChoice::Gvisor) {
        checks.push(gvisor::programs().named("runsc", "it runs sandboxes of gVisor, and mkfs.erofs makes their root images"));
    }
    for (name, programs, package, why) in [
        ("mmdebstrap", &["mmdebstrap"][..], "mmdebstrap", "it makes the root file system from Debian packages"),
        ("e2fsprogs", &["mke2fs", "e2fsck"][..], "e2fsprogs", "it makes the disk image"),
        ("dpkg", &["dpkg-deb", "apt-get"][..], "apt", "it unpacks the guest kernel"),
        ("kmod", &["depmod"][..], "kmod", "it indexes the guest kernel's modules"),
        ("mount", &["mount", "unshare", "chroot"][..], "mount", "the root file system is made in a mount namespace"),
    ] {
        checks.push(program(programs, package).named(name, why));
    }
    checks.push(package_sources().await.named("package sources", "guest kernel and root file system come from them"));
    checks.push(tun().named("tun", "each machine's network interface"));
    checks.push(namespaces().await.named("network namespaces", "each machine has a network of its own"));
    checks.push(nftables().named("nftables", "guests must not reach this host, and reach the internet by masquerade"));
    checks.push(forwarding().named("forwarding", "guests reach the internet through this host"));
    checks.push(host_names().await.named("host names", "`https://PORT-ID.firkin.localhost` on this host"));
    checks.push(disk(&places.cache_dir).named("disk for the cache", "the guest system is built and kept there"));
    checks.push(disk(&places.state_dir).named("disk for state", "templates, snapshots and sandboxes' disks"));
    checks.push(memory().named("memory", "sandboxes live in it"));
    checks.push(control_groups().named("control groups", "one sandbox takes no memory and no processor from others"));
    checks.push(files().named("open files", "each sandbox takes some"));
    checks
}

/// Looks at how current is what machines run and are made of, and at what would run them better. No sandbox needs it to start, and apt
/// takes seconds to answer. `checks` are those of the host itself.
pub(crate) async fn upkeep(places: &Places, checks: &[Check]) -> Vec<Check> {
    let kvm = checks.iter().find(|check| check.name == KVM);
    let (gvisor, standing) = gvisor::gvisor(kvm.is_some_and(|kvm| kvm.status == Status::Ok)).await;
    let mut upkeep = vec![
        packages::qemu_package().await.named("qemu package", "it is the wall between guests and this host: updates mend it"),
        guests::guest_system(&places.cache_dir).await.named("guest system", "updates of guests' packages come with it alone"),
        gvisor.named("gvisor", "it runs sandboxes at the processor's speed on hosts without KVM"),
    ];
    upkeep.extend(kvm.map(|kvm| choice::told(&places.engines, kvm, &standing).named("engine", "it is what runs sandboxes")));
    upkeep
}

fn root() -> Finding {
    if !nix::unistd::geteuid().is_root() {
        return Finding::fail(format!("user id {}", nix::unistd::geteuid()), "run it as root, for example with `sudo`");
    }
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else {
        return Finding::warn("root, capabilities unknown", "mount /proc");
    };
    let missing: Vec<&str> = CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Finding::ok("root with all capabilities needed")
    } else {
        let remedy = "run it outside of the container, or give the container these capabilities";
        Finding::fail(format!("root without {}", missing.join(", ")), remedy)
    }
}

fn kernel() -> Finding {
    let Ok(names) = nix::sys::utsname::uname() else { return Finding::fail("unknown", "run it on Linux") };
    let release = names.release().to_string_lossy().into_owned();
    match two_numbers(&release) {
        Some(version) if version >= KERNEL_WITH_PAGEMAP_SCAN => Finding::ok(format!("Linux {release}")),
        Some(version) if version >= KERNEL_LEAST => {
            Finding::ok(format!("Linux {release} (from 6.7 on, snapshots of running sandboxes take less time)"))
        }
        _ => Finding::fail(format!("Linux {release}"), "run it on Debian 12 or newer"),
    }
}

/// That the device opens proves nothing, so a guest is run: the smallest there is, since the product's own may not be made yet.
async fn kvm(places: &Places) -> Finding {
    const ACCEPT: &str = "or choose `--engine gvisor`, or accept emulated guests";
    if let Err(error) = fs_err::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return if error.kind() == std::io::ErrorKind::NotFound {
            Finding::warn("no /dev/kvm", format!("enable virtualisation on this host, {ACCEPT}"))
        } else {
            let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            Finding::warn(format!("/dev/kvm cannot be opened: {reason}"), format!("mend what is behind it, {ACCEPT}"))
        };
    }
    if !nix::unistd::geteuid().is_root() {
        return Finding::warn("/dev/kvm opens; only root can try a guest", "run it as root, for example with `sudo`");
    }
    match try_smallest_guest(None, places.kvm_deadline.min(SMALLEST_GUEST_DEADLINE)).await {
        Ok(()) => match last_fallback(&places.acceleration_file) {
            None => Finding::ok("a guest ran with KVM"),
            Some(reason) => Finding::warn(
                format!("a small guest ran with KVM, but at the last start Linux did not: {}", first_line(&reason)),
                format!("start again; raise `--kvm-deadline` if this host is slow, {ACCEPT}"),
            ),
        },
        Err(ProbeError::Missing { .. }) => Finding::warn("/dev/kvm opens; there is no QEMU to try it with", "install QEMU"),
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
            Finding::warn(first_line(&cause), format!("see whether other programs can use KVM here, {ACCEPT}"))
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

async fn qemu() -> Finding {
    let mut ask = command(QEMU);
    ask.arg("--version");
    let Ok(answer) = capture(ask, ASK_DEADLINE).await else { return Finding::lacks(format!("no {QEMU}"), Lack::Qemu) };
    match qemu_version(&answer) {
        Some(version) if compare_versions(version, QEMU_WANTED).is_ge() => Finding::ok(format!("QEMU {version}")),
        Some(version) => Finding::lacks(format!("QEMU {version}, older than {QEMU_WANTED}"), Lack::Qemu),
        None => Finding::lacks(format!("a {QEMU} that does not tell its version"), Lack::Qemu),
    }
}

fn jail() -> Finding {
    let safeguards = safeguards_of_host();
    match lacking(&safeguards) {
        None => Finding::ok(format!("all {} parts", safeguards.len())),
        Some(parts) => Finding::warn(format!("lacks {parts}"), HINT),
    }
}

/// `10.0.2` of `QEMU emulator version 10.0.2 (Debian ...)`.
fn qemu_version(answer: &str) -> Option<&str> {
    answer.lines().next()?.split_once("version ")?.1.split_whitespace().next()
}

fn program(programs: &[&str], package: &'static str) -> Finding {
    let missing: Vec<&str> = programs.iter().copied().filter(|program| which(program).is_none()).collect();
    match which(programs[0]) {
        Some(path) if missing.is_empty() => Finding::ok(path.display().to_string()),
        _ => Finding::lacks(format!("no {}", missing.join(", ")), Lack::Package(package)),
    }
}

/// Whether names below the local domain are this host's, which RFC 6761 asks for and the C library leaves to a module.
async fn host_names() -> Finding {
    let name = format!("3000-iabc.{}", crate::settings::LOCAL_DOMAIN);
    let found = tokio::time::timeout(ASK_DEADLINE, tokio::net::lookup_host((name.as_str(), 443))).await;
    let local = found.is_ok_and(|found| found.is_ok_and(|mut addresses| addresses.any(|address| address.ip().is_loopback())));
    if local {
        Finding::ok(format!("{name} is this host"))
    } else {
        Finding {
            lack: Some(Lack::Package("libnss-myhostname")),
            ..Finding::warn(format!("{name} is not resolved"), "`firkin doctor --fix` installs libnss-myhostname")
        }
    }
}

async fn package_sources() -> Finding {
    match sources::mirrors(Path::new("/")).await {
        Ok(mirrors) => Finding::ok(format!("Debian {} from {}", mirrors.codename, mirrors.main.uri)),
        // What is installed and cached works without.
        Err(error) => Finding::warn(chain(&error), "add Debian's own archive to /etc/apt/sources.list"),
    }
}

fn tun() -> Finding {
    match fs_err::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::ok("/dev/net/tun"),
        Err(error) => Finding::fail(error.to_string(), "load the kernel module: `modprobe tun`"),
    }
}

async fn namespaces() -> Finding {
    let mut attempt = command("unshare");
    attempt.args(["--net", "--", "true"]);
    match capture(attempt, ASK_DEADLINE).await {
        Ok(_) => Finding::ok("can be made"),
        Err(error) => Finding::fail(chain(&error), "run it as root on the host itself, or in a privileged container"),
    }
}

/// Asks nf_tables for the number of its rule set's generation: it answers if the kernel has it. Changes nothing.
fn nftables() -> Finding {
    const GET_GENERATION: u16 = (10 << 8) | 16;
    const REQUEST: u16 = 1;
    const ERROR: u16 = 2;
    let asked = || -> std::io::Result<u16> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        let mut socket = std::fs::File::from(socket);
        // Length, type, flags, sequence, sender; family, version, resource.
        let mut message = Vec::from(20_u32.to_ne_bytes());
        message.extend(GET_GENERATION.to_ne_bytes());
        message.extend(REQUEST.to_ne_bytes());
        message.extend([0; 12]);
        socket.write_all(&message)?;
        // The kernel has answered by the time it took the request.
        let mut answer = [0; 256];
        let length = socket.read(&mut answer)?;
        let kind: [u8; 2] = answer.get(4..6).filter(|_| length >= 20).and_then(|kind| kind.try_into().ok()).unwrap_or_default();
        Ok(u16::from_ne_bytes(kind))
    };
    let remedy = "run it on a kernel with nf_tables, such as Debian's: `modprobe nf_tables`";
    match asked() {
        Ok(ERROR | 0) => Finding::fail("the kernel refuses it", remedy),
        Ok(_) => Finding::ok("the kernel has it"),
        Err(error) => Finding::fail(error.to_string(), remedy),
    }
}

/// Forwarding is switched on interface by interface when a sandbox may reach out, so it only has to be possible.
fn forwarding() -> Finding {
    let switch = Path::new("/proc/sys/net/ipv4/conf/all/forwarding");
    match nix::unistd::access(switch, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Finding::ok("can be switched on for single interfaces"),
        Err(errno) => {
            let remedy = "run it where /proc/sys can be written, or create sandboxes without internet access";
            Finding::warn(format!("cannot be switched on: {}", errno.desc()), remedy)
        }
    }
}

fn disk(dir: &Path) -> Finding {
    // The directory is made on first use: what counts is the file system that it will be on.
    let Some(place) = dir.ancestors().find(|place| place.exists()) else {
        return Finding::warn(format!("no directory above {}", dir.display()), "choose another directory");
    };
    let stat = match nix::sys::statvfs::statvfs(place) {
        Ok(stat) => stat,
        Err(errno) => return Finding::warn(format!("{}: {}", place.display(), errno.desc()), "choose another directory"),
    };
    let free = (stat.blocks_available() * stat.fragment_size()) >> 30;
    let found = format!("{free} GiB free for {}", dir.display());
    let remedy = format!("make room (at least {DISK_WANTED_GIB} GiB), or choose a directory on another file system");
    match free {
        ..DISK_LEAST_GIB => Finding::fail(found, remedy),
        DISK_LEAST_GIB..DISK_WANTED_GIB => Finding::warn(found, remedy),
        DISK_WANTED_GIB.. => Finding::ok(found),
    }
}

fn memory() -> Finding {
    let text = fs_err::read_to_string("/proc/meminfo").unwrap_or_default();
    let available =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next()?.parse::<u64>().ok());
    let Some(available) = available.map(|kib| kib >> 10) else { return Finding::warn("unknown", "mount /proc") };
    let found = format!("{available} MiB available");
    match available {
        ..MEMORY_LEAST_MIB => Finding::fail(found, format!("free at least {MEMORY_WANTED_MIB} MiB")),
        MEMORY_LEAST_MIB..MEMORY_WANTED_MIB => Finding::warn(found, format!("free at least {MEMORY_WANTED_MIB} MiB")),
        MEMORY_WANTED_MIB.. => Finding::ok(found),
    }
}

fn control_groups() -> Finding {
    let lacks: Vec<String> = firkin_cgroup::look().iter().map(ToString::to_string).collect();
    if lacks.is_empty() {
        Finding::ok("memory, processors, processes and I/O can be limited")
    } else {
        let remedy = "mount them where the server can write; sandboxes run without, less well kept apart";
        Finding::warn(lacks.join("; "), remedy)
    }
}

fn files() -> Finding {
    let limits = fs_err::read_to_string("/proc/self/limits").unwrap_or_default();
    let hard =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().nth(1)?.parse::<u64>().ok());
    match hard {
        Some(hard) if hard >= FILES_WANTED => Finding::ok(format!("up to {hard} for a process")),
        Some(hard) => {
            Finding::warn(format!("up to {hard} for a process"), format!("raise the limit: `ulimit -Hn {FILES_WANTED}`"))
        }
        None => Finding::warn("unknown", "look at `ulimit -Hn`"),
    }
}

/// Major and minor number at the beginning of a version.
fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(qemu_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some("10.0.2"));
        assert_eq!(qemu_version("QEMU emulator version 7.2.19"), Some("7.2.19"));
        assert_eq!(qemu_version("nonsense"), None);
        assert!(compare_versions("7.2.19", QEMU_WANTED).is_lt());
        assert!(compare_versions("8.2.0", QEMU_WANTED).is_ge());
        assert_eq!(two_numbers("6.1.0-50-cloud-amd64"), Some((6, 1)));
        assert_eq!(two_numbers("x"), None);
    }

    #[tokio::test]
    async fn every_check_says_what_it_found_and_what_to_do() {
        let here = std::env::temp_dir().join("firkin-not-made");
        let places = Places {
            state_dir: here.clone(),
            acceleration_file: here.join("acceleration.json"),
            cache_dir: here,
            kvm_deadline: Duration::from_secs(1),
            engines: vec![EngineChoice::Gvisor, EngineChoice::Auto],
            own_kernel: false,
        };
        let mut checks = check(&places).await;
        assert!(checks.len() > 10);
        let upkeep = upkeep(&places, &checks).await;
        checks.extend(upkeep);
        for name in ["runsc", "engine"] {
            assert!(checks.iter().any(|check| check.name == name), "{name}");
        }
        for check in checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.remedy.is_some(), check.status != Status::Ok, "{check:?}");
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_a_lack() {
        let finding = program(&["firkin-no-such-program"], "somepackage");
        assert_eq!((finding.status, finding.lack), (Status::Fail, Some(Lack::Package("somepackage"))));
        assert_eq!(program(&["sh"], "dash").status, Status::Ok);
    }
}
