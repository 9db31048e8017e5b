//! Turns what is sent to a guest away for the time of a checkpoint, without a word to who sends it: a connection that begins then would be in
//! the checkpoint, and one that is refused would be an error for somebody. What is lost is sent again a moment later.
//!
//! A slot knows its guest as a permanent neighbour. While it is turned away, that has another address on the link, which is nobody's, and
//! from which the first is told: whoever finds it so after a crash puts it right.
#![expect(unsafe_code, reason = "neighbours are set by an ioctl that nobody wraps")]

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    libc,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

nix::ioctl_write_ptr_bad!(set_neighbour, libc::SIOCSARP, libc::arpreq);

/// Set in the first byte of an address on the link that is nobody's: of those that slots give, none has it.
const AWAY: u8 = 0x08;
/// Of `sys/socket.h`, in the width of an address.
const AF_INET: libc::sa_family_t = 2;
/// The flags of an entry that was entered and stays, as the kernel prints them.
const PERMANENT: &str = "0x6";

/// Where packets to the neighbours of the calling thread's network namespace go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Nowhere.
    Away,
    /// To them.
    There,
}

/// Has all permanent neighbours of that namespace be reached, or not.
pub(super) fn turn(way: Way) -> io::Result<()> {
    let table = fs_err::read_to_string("/proc/thread-self/net/arp")?;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for neighbour in table.lines().skip(1).filter_map(Neighbour::parse) {
        let turned = neighbour.turned(way);
        if turned != neighbour {
            turned.set(&socket)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Neighbour {
    address: Ipv4Addr,
    mac: [u8; 6],
    device: String,
}

impl Neighbour {
    /// A line of `/proc/net/arp`, if it is of a permanent one.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let (address, _kind, flags, mac) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let device = words.nth(1)?;
        if flags != PERMANENT || device.len() >= libc::IFNAMSIZ {
            return None;
        }
        let mut bytes = [0; 6];
        let mut parts = mac.split(':');
        for byte in &mut bytes {
            *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
        }
        Some(Self { address: address.parse().ok()?, mac: bytes, device: device.to_owned() })
    }

    fn turned(&self, way: Way) -> Self {
        let mut mac = self.mac;
        mac[0] = match way {
            Way::Away => mac[0] | AWAY,
            Way::There => mac[0] & !AWAY,
        };
        Self { mac, ..self.clone() }
    }

    fn set(&self, socket: &OwnedFd) -> io::Result<()> {
        // SAFETY: all of it is numbers, for which zeros are a value.
        let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
        request.arp_pa.sa_family = AF_INET;
        // A port, then the address.
        for (to, from) in request.arp_pa.sa_data[2..6].iter_mut().zip(self.address.octets()) {
            *to = from.cast_signed();
        }
        request.arp_ha.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in request.arp_ha.sa_data.iter_mut().zip(self.mac) {
            *to = from.cast_signed();
        }
        request.arp_flags = libc::ATF_PERM | libc::ATF_COM;
        for (to, from) in request.arp_dev.iter_mut().zip(self.device.bytes()) {
            *to = from.cast_signed();
        }
        // SAFETY: the kernel reads one `arpreq`, which lives until the call returns.
        unsafe { set_neighbour(socket.as_raw_fd(), &raw const request) }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::{
        errno::Errno,
        sched::{CloneFlags, unshare},
    };

    use super::*;

    #[test]
    fn a_neighbour_is_turned_away_and_found_again() {
        let in_a_network_of_its_own = std::thread::spawn(|| {
            match unshare(CloneFlags::CLONE_NEWNET) {
                // Only root gets one.
                Err(Errno::EPERM) => return,
                made => made.unwrap(),
            }
            let ip = |words: &str| {
                let done = Command::new("ip").args(words.split(' ')).output().unwrap();
                assert!(done.status.success(), "{words}: {done:?}");
                String::from_utf8(done.stdout).unwrap()
            };
            ip("link add tap0 type veth peer name eth0");
            ip("addr add 169.254.0.22/30 dev tap0");
            ip("link set tap0 up");
            ip("neigh replace 169.254.0.21 lladdr 02:66:6b:00:00:15 nud permanent dev tap0");
            let shown = || ip("neigh show dev tap0");
            for _ in 0..2 {
                turn(Way::Away).unwrap();
                assert!(shown().contains("0a:66:6b:00:00:15 PERMANENT"), "{}", shown());
            }
            for _ in 0..2 {
                turn(Way::There).unwrap();
                assert!(shown().contains("02:66:6b:00:00:15 PERMANENT"), "{}", shown());
            }
        });
        in_a_network_of_its_own.join().unwrap();
    }
}
