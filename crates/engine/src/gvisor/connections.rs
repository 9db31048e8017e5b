//! Ends the connections that the host has to a guest, as if the host had reset them (sock_diag(7), `linux/inet_diag.h`).
//!
//! A checkpoint cannot hold a connection to the outside: what is open then is broken off inside. Debian's build does that in a way that a
//! clone does not survive: when it is restored, epoll is told of the connection's end before it is whole itself, and from then on misses
//! events of others, or never ends to tell of this one. What the other side has reset before the checkpoint is an ordinary event.

use std::{io, os::fd::AsRawFd, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

// Numbers of linux/netlink.h, linux/sock_diag.h and net/tcp_states.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
/// All in which a connection is more than a memory of one: not `TIME_WAIT`, `CLOSE` and `LISTEN`.
const CONNECTED: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Of `struct inet_diag_sockid`, and where it is in `struct inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;
/// The kernel fills no more in one answer.
const ANSWER_BYTES: usize = 32 << 10;

/// Resets every TCP connection over IPv4 of the calling thread's network namespace, and tells how many there were.
pub(super) fn end_all() -> io::Result<usize> {
    let socket = open()?;
    send(&socket, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &[0; ID])?;
    let mut found = Vec::new();
    answers(&socket, |id| found.push(id))?;
    for id in &found {
        send(&socket, SOCK_DESTROY, NLM_F_ACK, id)?;
        match answers(&socket, |_| {}) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            done => done?,
        }
    }
    Ok(found.len())
}

fn open() -> nix::Result<OwnedFd> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag)?;
    // The kernel answers before `sendto` returns; a limit only guards against the impossible.
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2))?;
    Ok(socket)
}

/// One request: `struct inet_diag_req_v2` behind a header.
fn send(socket: &OwnedFd, kind: u16, flags: u16, id: &[u8; ID]) -> nix::Result<usize> {
    let mut message = Vec::new();
    message.extend(u32::try_from(HEADER + 8 + ID).expect("it has 72 bytes").to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([AF_INET, IPPROTO_TCP, 0, 0]);
    message.extend(CONNECTED.to_ne_bytes());
    message.extend(id);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())
}

/// Hands on the ids of the sockets in an answer, to its end.
fn answers(socket: &OwnedFd, mut found: impl FnMut([u8; ID])) -> io::Result<()> {
    let mut buffer = vec![0; ANSWER_BYTES];
    loop {
        let count = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..count];
        while let Some((kind, body, after)) = message(rest) {
            rest = after;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                SOCK_DIAG_BY_FAMILY => {
                    let id = body.get(ID_AT..).and_then(<[u8]>::first_chunk);
                    found(*id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?);
                }
                _ => {}
            }
        }
    }
}

/// The kind and the body of the first message, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((kind, bytes.get(HEADER..length)?, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{Ipv4Addr, TcpListener, TcpStream},
    };

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn connections_end_and_listeners_stay() {
        let in_a_network_of_its_own = std::thread::spawn(|| {
            match unshare(CloneFlags::CLONE_NEWNET) {
                // Only root gets one.
                Err(Errno::EPERM) => return,
                made => made.unwrap(),
            }
            assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            assert_eq!(end_all().unwrap(), 0);
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut connections: Vec<_> = (0..300).map(|_| (connect(), listener.accept().unwrap().0)).collect();
            assert_eq!(end_all().unwrap(), 600);
            for (near, far) in &mut connections {
                let ends = [near, far].map(|end| end.read(&mut [0; 1]).unwrap_err().kind());
                assert!(
                    ends.iter().all(|end| [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset].contains(end)),
                    "{ends:?}"
                );
            }
            assert_eq!(end_all().unwrap(), 0);
            drop((connect(), listener.accept().unwrap()));
        });
        in_a_network_of_its_own.join().unwrap();
    }
}
