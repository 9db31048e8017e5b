//! Turns what is sent to a guest away for the time of a checkpoint, without a word to who sends it: a connection that begins then would be in
//! the checkpoint, and one that is refused would be an error for somebody. What is lost is sent again a moment later.
//!
//! The host's end of the guest's interface gets a queue of so few bytes: what does not fit is lost there. (A sandbox takes frames for whatever
//! address on the link, so that a wrong one among the neighbours keeps nothing from it.) The ends of connections have to arrive first, while
//! none begins, and who loses one begins another at once: so at first the queue holds just those. Nobody else gives that interface a
//! queue, so whoever finds one after a crash takes it away.

use std::{io, net::Ipv4Addr};

use nix::{errno::Errno, net::if_::if_nametoindex, sys::socket::SockProtocol};

use super::netlink::Netlink;

/// The flags of an entry among the neighbours that was entered and stays, as the kernel prints them. A slot knows its guest by one.
const PERMANENT: &str = "0x6";

// Numbers of linux/rtnetlink.h, linux/netlink.h and linux/pkt_sched.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TC_H_ROOT: u32 = u32::MAX;
const AF_UNSPEC: u8 = 0;
/// A queue that the kernel has wherever it has queues. Its only option is how many bytes it holds.
const KIND: &[u8; 8] = b"bfifo\0\0\0";
const KIND_BYTES: usize = 6;
/// Ethernet, IPv4, TCP and its time stamps: a segment without data, such as a reset. The first one of a connection has more options.
const END_BYTES: u32 = 14 + 20 + 20 + 12;
/// What the queue is called; a number, like a major one of a device.
const HANDLE: u32 = 0xf1f0_0000;

/// What still comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// The ends of connections, and what was said last on them.
    Ends,
    Closed,
}

/// Lets no more than that through to the guests of the calling thread's network namespace until [`open`].
pub(super) fn set(gate: Gate) -> io::Result<()> {
    let bytes = match gate {
        Gate::Ends => END_BYTES,
        Gate::Closed => 0,
    };
    let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    for interface in interfaces()? {
        let options = [attribute(TCA_KIND, KIND_BYTES, KIND)?, attribute(TCA_OPTIONS, 4, &bytes.to_ne_bytes())?].concat();
        netlink.order(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, &[head(interface, HANDLE), options].concat())?;
    }
    Ok(())
}

/// Lets all through again, if that is not so.
pub(super) fn open() -> io::Result<()> {
    let netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    for interface in interfaces()? {
        match netlink.order(RTM_DELQDISC, 0, &head(interface, 0)) {
            // There is none; or there never is, with a kernel that has no queues.
            Err(error) if [Errno::ENOENT, Errno::EOPNOTSUPP].map(|none| Some(none as i32)).contains(&error.raw_os_error()) => {}
            done => done?,
        }
    }
    Ok(())
}

/// `struct tcmsg`, of the queue that all that is sent by this interface goes through.
fn head(interface: u32, handle: u32) -> Vec<u8> {
    let mut head = vec![AF_UNSPEC, 0, 0, 0];
    for number in [interface, handle, TC_H_ROOT, 0] {
        head.extend(number.to_ne_bytes());
    }
    head
}

/// `struct rtattr` with its content, padded to words already.
fn attribute(kind: u16, bytes: usize, content: &[u8]) -> io::Result<Vec<u8>> {
    let length = u16::try_from(4 + bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok([&length.to_ne_bytes(), &kind.to_ne_bytes(), content].concat())
}

/// Those by which guests are reached.
fn interfaces() -> io::Result<Vec<u32>> {
    let found = neighbours(|words| Some(words.get(5)?.to_string()))?;
    found.iter().map(|device| Ok(if_nametoindex(device.as_str())?)).collect()
}

/// The addresses of the guests of the calling thread's network namespace.
pub(super) fn guests() -> io::Result<Vec<Ipv4Addr>> {
    neighbours(|words| words.first()?.parse().ok())
}

/// Something of each line of `/proc/net/arp` that is of a permanent neighbour.
fn neighbours<T>(of_line: impl Fn(&[&str]) -> Option<T>) -> io::Result<Vec<T>> {
    let table = fs_err::read_to_string("/proc/thread-self/net/arp")?;
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    Ok(lines.filter(|words| words.get(2) == Some(&PERMANENT)).filter_map(|words| of_line(&words)).collect())
}

#[cfg(test)]
mod tests {
    use std::{
        net::UdpSocket,
        os::fd::AsRawFd,
        process::Command,
        time::{Duration, Instant},
    };

    use nix::{
        sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare},
        sys::{
            socket::{AddressFamily, LinkAddr, SockFlag, SockType, recvfrom, setsockopt, socket, sockopt::ReceiveTimeout},
            time::TimeVal,
        },
        unistd::Pid,
    };

    use super::*;

    /// Headers of UDP are shorter than those of TCP.
    const END: usize = END_BYTES as usize - 42;
    const BEGINNING: usize = END + 1;

    fn ip(words: &str) {
        let done = Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(done.status.success(), "{words}: {done:?}");
    }

    /// On one processor frames arrive in the order in which they were sent, if not at once.
    fn stay_on_one_processor() {
        let this = Pid::from_raw(0);
        let may = sched_getaffinity(this).unwrap();
        let first = (0..CpuSet::count()).find(|cpu| may.is_set(*cpu).unwrap()).unwrap();
        let mut one = CpuSet::new();
        one.set(first).unwrap();
        sched_setaffinity(this, &one).unwrap();
    }

    fn send(letter: u8, length: usize) {
        // Whether it is told that its datagram was lost is the kernel's affair.
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(&vec![letter; length], "169.254.0.21:9").ok();
    }

    /// What has arrived, at a socket for all frames as a sandbox's is, when a last word does: by its letters. It is sent until then.
    fn until(last: u8, frames: &impl AsRawFd) -> String {
        let (since, mut arrived, mut frame) = (Instant::now(), String::new(), [0; 2048]);
        let guests_end = if_nametoindex("eth0").unwrap() as usize;
        loop {
            assert!(since.elapsed() < Duration::from_secs(60), "nothing comes through an open gate; there was `{arrived}`");
            send(last, END);
            while let Ok((bytes, from)) = recvfrom::<LinkAddr>(frames.as_raw_fd(), &mut frame) {
                // It is seen at the other end too, when it leaves.
                if from.is_none_or(|from| from.ifindex() != guests_end) {
                    continue;
                }
                let Some((letter, rest)) = frame[..bytes].split_last() else { continue };
                if *letter == last && rest.ends_with(&[last; END - 1]) {
                    return arrived;
                }
                // Others are the kernel's own, and the last ones of before.
                if letter.is_ascii_lowercase() && rest.ends_with(&[*letter; END - 1]) {
                    arrived.push(char::from(*letter));
                }
            }
        }
    }

    #[test]
    fn nothing_reaches_a_guest_that_is_turned_away() {
        let in_a_network_of_its_own = std::thread::spawn(|| {
            match unshare(CloneFlags::CLONE_NEWNET) {
                // Only root gets one.
                Err(Errno::EPERM) => return,
                made => made.unwrap(),
            }
            stay_on_one_processor();
            ip("link add tap0 type veth peer name eth0");
            ip("addr add 169.254.0.22/30 dev tap0");
            ip("link set tap0 up");
            ip("link set eth0 up");
            ip("neigh replace 169.254.0.21 lladdr 02:66:6b:00:00:15 nud permanent dev tap0");
            let frames = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), SockProtocol::EthAll).unwrap();
            setsockopt(&frames, ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
            open().unwrap();
            // The kernel lets an interface that was just set up send a little later.
            assert_eq!(until(b'A', &frames), "", "nothing was sent yet");
            let both = |end, beginning| {
                send(end, END);
                send(beginning, BEGINNING);
            };
            open().unwrap();
            both(b'a', b'b');
            for letters in [b"cdef", b"ghij"] {
                set(Gate::Ends).unwrap();
                both(letters[0], letters[1]);
                set(Gate::Closed).unwrap();
                both(letters[2], letters[3]);
            }
            open().unwrap();
            both(b'k', b'l');
            assert_eq!(
                until(b'Z', &frames),
                "abcgkl",
                "all; the end of a connection and not the beginning, and nothing, twice; all"
            );
        });
        in_a_network_of_its_own.join().unwrap();
    }
}
