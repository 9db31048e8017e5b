//! Address, route and gateway of the guest's one interface, by rtnetlink (rtnetlink(7), `linux/rtnetlink.h`).
//!
//! All requests go out in one send and each asks for an acknowledgement: a resume costs one system call each way. Written by
//! hand because five fixed messages do not carry an asynchronous netlink stack into a binary that is frozen into every snapshot.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
};

use firkin_wire::control::GuestNetwork;
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto, setsockopt, socket,
            sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// The interface of every guest.
const INTERFACE: &str = "eth0";

/// An address that is nobody's (RFC 5737); nothing is sent there.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 9);

/// Why the kernel did not take the settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// No interface of that name.
    #[error("cannot find interface `{name}`")]
    NoInterface {
        /// The name.
        name: &'static str,
        /// Why.
        #[source]
        source: nix::Error,
    },
    /// The gateway's hardware address does not parse.
    #[error("cannot read hardware address `{0}`")]
    Mac(String),
    /// The prefix is longer than an address.
    #[error("cannot use a prefix of {0} bits")]
    Prefix(u8),
    /// The socket fails.
    #[error("cannot speak rtnetlink")]
    Socket(#[source] nix::Error),
    /// The kernel's answer makes no sense.
    #[error("cannot read the kernel's answer")]
    Answer,
    /// The kernel refuses a step.
    #[error("cannot {step}")]
    Refused {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

// Numbers of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/neighbour.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWNEIGH: u16 = 28;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;

/// One request and what it is for.
struct Request {
    purpose: &'static str,
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

/// Changes of interfaces, of IPv4 addresses and of IPv4 routes (`RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`).
const CHANGES: u32 = 0x1 | 0x10 | 0x40;

/// Room for one change or two; that there were more is all that is asked.
const KEPT_BYTES: usize = 4096;

/// Tells whether anybody has touched the network. Asking costs one system call, which is why it is asked in each life: to look at
/// everything that must be in force would be a tenth of what an emulated guest does to become somebody.
#[derive(Debug)]
pub(super) struct Watch(OwnedFd);

impl Watch {
    /// Begins to watch.
    pub(super) fn begin() -> Result<Self, NetworkError> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
            setsockopt(&fd, sockopt::RcvBuf, &KEPT_BYTES)?;
            bind(fd.as_raw_fd(), &NetlinkAddr::new(0, CHANGES))?;
            Ok(Self(fd))
        };
        open().map_err(NetworkError::Socket)
    }

    /// Whether something has changed since this was asked last. When in doubt, it has.
    pub(super) fn has_changed(&self) -> bool {
        let mut seen = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut [0; 16], MsgFlags::empty()) {
                Err(Errno::EAGAIN) => return seen,
                // More than there is room for. What there was room for follows.
                Ok(_) | Err(Errno::ENOBUFS) => seen = true,
                Err(_) => return true,
            }
        }
    }
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> Result<(), NetworkError> {
    carry_out(&[link_up(index_of("lo")?)])
}

/// How the gateway's hardware address comes to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Neighbours {
    /// By an entry that never ages, so that nobody is asked after a restore.
    Permanent,
    /// By asking: a kernel that has no such entries.
    Asked,
}

/// Makes `eth0` have `wanted`, taking back the address of `before`.
pub(super) fn apply(
    wanted: Option<&GuestNetwork>,
    before: Option<&GuestNetwork>,
    neighbours: Neighbours,
) -> Result<(), NetworkError> {
    let Some(wanted) = wanted else { return Ok(()) };
    if wanted.prefix > 32 {
        return Err(NetworkError::Prefix(wanted.prefix));
    }
    let mac = parse_mac(&wanted.gateway_mac)?;
    let index = index_of(INTERFACE)?;
    let mut requests = Vec::with_capacity(5);
    if let Some(before) = before
        && (before.address, before.prefix) != (wanted.address, wanted.prefix)
    {
        requests.push(address("remove the old address", RTM_DELADDR, 0, index, before));
    }
    requests.push(link_up(index));
    requests.push(address("set the address", RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, index, wanted));
    if neighbours == Neighbours::Permanent {
        requests.push(neighbour(index, wanted.gateway, mac));
    }
    requests.push(default_route(index, wanted.gateway));
    carry_out(&requests)
}

/// Whether packets to anywhere would leave from the address of `wanted`. It takes no packet to know: a socket is given its route when
/// it is given its peer. A route of the user's own, into a tunnel say, is as good as ours. The gateway's
/// entry among the neighbours is not looked at: no socket tells of it.
pub(super) fn is_in_force(wanted: &GuestNetwork) -> bool {
    let routed = UdpSocket::bind((wanted.address, 0)).and_then(|socket| socket.connect(ANYWHERE));
    routed.is_ok()
}

fn index_of(name: &'static str) -> Result<u32, NetworkError> {
    if_nametoindex(name).map_err(|source| NetworkError::NoInterface { name, source })
}

fn parse_mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| NetworkError::Mac(text.to_owned()))
}

fn link_up(index: u32) -> Request {
    // struct ifinfomsg: family, pad, type, index, flags, change mask.
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    Request { purpose: "bring the interface up", kind: RTM_NEWLINK, flags: 0, body }
}

fn address(purpose: &'static str, kind: u16, flags: u16, index: u32, network: &GuestNetwork) -> Request {
    // struct ifaddrmsg: family, prefix, flags, scope, index.
    let mut body = vec![AF_INET, network.prefix, 0, 0];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, IFA_LOCAL, &network.address.octets());
    attribute(&mut body, IFA_ADDRESS, &network.address.octets());
    Request { purpose, kind, flags, body }
}

fn neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Request {
    // struct ndmsg: family, pads, index, state, flags, type.
    let mut body = vec![AF_INET, 0, 0, 0];
    body.extend(index.to_ne_bytes());
    body.extend(NUD_PERMANENT.to_ne_bytes());
    body.extend([0, 0]);
    attribute(&mut body, NDA_DST, &address.octets());
    attribute(&mut body, NDA_LLADDR, &mac);
    Request { purpose: "enter the gateway as a neighbour", kind: RTM_NEWNEIGH, flags: NLM_F_CREATE | NLM_F_REPLACE, body }
}

fn default_route(index: u32, gateway: Ipv4Addr) -> Request {
    // struct rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags.
    let mut body = vec![AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, 0, RTN_UNICAST, 0, 0, 0, 0];
    attribute(&mut body, RTA_GATEWAY, &gateway.octets());
    attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    Request { purpose: "set the default route", kind: RTM_NEWROUTE, flags: NLM_F_CREATE | NLM_F_REPLACE, body }
}

/// Appends one attribute, padded to four bytes.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("attributes here are a few bytes long");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// All requests as one buffer; the sequence number is the request's position plus one.
fn encode(requests: &[Request]) -> Vec<u8> {
    let mut out = Vec::new();
    for (position, request) in requests.iter().enumerate() {
        let length = u32::try_from(16 + request.body.len()).expect("requests here are some dozen bytes long");
        let sequence = u32::try_from(position + 1).expect("a handful of requests");
        out.extend(length.to_ne_bytes());
        out.extend(request.kind.to_ne_bytes());
        out.extend((NLM_F_REQUEST | NLM_F_ACK | request.flags).to_ne_bytes());
        out.extend(sequence.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(&request.body);
    }
    out
}

fn carry_out(requests: &[Request]) -> Result<(), NetworkError> {
    let socket = open().map_err(NetworkError::Socket)?;
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &encode(requests), &kernel, MsgFlags::empty()).map_err(NetworkError::Socket)?;
    let mut left = requests.len();
    let mut buffer = [0; 8192];
    while left > 0 {
        let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(NetworkError::Socket)?;
        left = left.saturating_sub(acknowledged(&buffer[..count], requests)?);
    }
    Ok(())
}

fn open() -> nix::Result<OwnedFd> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // The kernel answers before `sendto` returns; a limit only guards against the impossible.
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    Ok(fd)
}

/// How many requests this datagram acknowledges; the first refusal is an error.
fn acknowledged(mut datagram: &[u8], requests: &[Request]) -> Result<usize, NetworkError> {
    let word = |at: usize, bytes: &[u8]| -> Option<[u8; 4]> { bytes.get(at..at + 4)?.try_into().ok() };
    let mut count = 0;
    while !datagram.is_empty() {
        let length = word(0, datagram).map(u32::from_ne_bytes).ok_or(NetworkError::Answer)? as usize;
        let message = datagram.get(..length).filter(|message| message.len() >= 20).ok_or(NetworkError::Answer)?;
        if u16::from_ne_bytes([message[4], message[5]]) != NLMSG_ERROR {
            return Err(NetworkError::Answer);
        }
        let sequence = word(8, message).map_or(0, u32::from_ne_bytes) as usize;
        let code = word(16, message).map_or(0, i32::from_ne_bytes);
        let request = requests.get(sequence.wrapping_sub(1)).ok_or(NetworkError::Answer)?;
        // An old address that is gone already is as good as removed.
        if code != 0 && request.kind != RTM_DELADDR {
            return Err(NetworkError::Refused { step: request.purpose, source: io::Error::from_raw_os_error(-code) });
        }
        count += 1;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_six_hex_bytes() {
        assert_eq!(parse_mac("02:fc:00:00:00:01").unwrap(), [2, 0xfc, 0, 0, 0, 1]);
        for bad in ["", "02:fc", "02:fc:00:00:00:zz", "02:fc:00:00:00:01:02"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_that_is_not_there_is_not_in_force() {
        let address = Ipv4Addr::new(192, 0, 2, 77);
        let network = GuestNetwork { address, prefix: 24, gateway: address, gateway_mac: String::new(), dns: Vec::new() };
        assert!(!is_in_force(&network));
    }

    #[test]
    fn changes_are_seen_once() {
        let in_a_network_of_its_own = std::thread::spawn(|| {
            match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                // Only root gets one.
                Err(Errno::EPERM) => return,
                made => made.unwrap(),
            }
            let watch = Watch::begin().unwrap();
            assert!(!watch.has_changed());
            loopback_up().unwrap();
            assert!(watch.has_changed());
            assert!(!watch.has_changed());
            let index = index_of("lo").unwrap();
            for last in 1..=100 {
                let address = Ipv4Addr::new(192, 0, 2, last);
                let network = GuestNetwork { address, prefix: 32, gateway: address, gateway_mac: String::new(), dns: Vec::new() };
                carry_out(&[super::address("set the address", RTM_NEWADDR, NLM_F_CREATE, index, &network)]).unwrap();
            }
            assert!(watch.has_changed(), "more than there is room for");
            assert!(!watch.has_changed());
        });
        in_a_network_of_its_own.join().unwrap();
    }

    #[test]
    fn a_refusal_names_its_step() {
        let requests = [link_up(1), default_route(1, Ipv4Addr::LOCALHOST)];
        let answer = |sequence: u32, code: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(NLMSG_ERROR.to_ne_bytes());
            bytes.extend([0; 2]);
            bytes.extend(sequence.to_ne_bytes());
            bytes.extend([0; 4]);
            bytes.extend(code.to_ne_bytes());
            bytes.extend([0; 16]);
            bytes
        };
        let both = [answer(1, 0), answer(2, 0)].concat();
        assert_eq!(acknowledged(&both, &requests).unwrap(), 2);
        let Err(NetworkError::Refused { step, .. }) = acknowledged(&answer(2, -101), &requests) else { panic!("not refused") };
        assert_eq!(step, "set the default route");
        assert!(acknowledged(&answer(9, 0), &requests).is_err());
        assert!(acknowledged(&[1, 2, 3], &requests).is_err());
    }
}
