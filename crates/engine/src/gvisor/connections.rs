//! Ends the connections that the host has to a guest, as if the host had reset them (sock_diag(7), `linux/inet_diag.h`).
//!
//! A checkpoint cannot hold a connection to the outside: what is open then is broken off inside. Debian's build does that in a way that a
//! clone does not survive: when it is restored, epoll is told of the connection's end before it is whole itself, and from then on misses
//! events of others, or never ends to tell of this one. What the other side has reset before the checkpoint is an ordinary event.

use std::io;

use nix::{errno::Errno, sys::socket::SockProtocol};

use super::netlink::Netlink;

// Numbers of linux/sock_diag.h and net/tcp_states.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
/// All in which the other side has a connection, too: not `SYN_SENT`, which may have been lost, and not `TIME_WAIT`, `CLOSE` and `LISTEN`.
const CONNECTED: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Of `struct inet_diag_sockid`, and where it is in `struct inet_diag_msg`.
const ID: usize = 48;
const ID_AT: usize = 4;

/// Resets every TCP connection over IPv4 of the calling thread's network namespace, and tells how many there were.
pub(super) fn end_all() -> io::Result<usize> {
    let netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let found = all(&netlink)?;
    for id in &found {
        match netlink.order(SOCK_DESTROY, 0, &request(id)) {
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            done => done?,
        }
    }
    Ok(found.len())
}

/// How many there are.
pub(super) fn count() -> io::Result<usize> {
    Ok(all(&Netlink::open(SockProtocol::NetlinkSockDiag)?)?.len())
}

fn all(netlink: &Netlink) -> io::Result<Vec<[u8; ID]>> {
    let mut found = Vec::new();
    netlink.list(SOCK_DIAG_BY_FAMILY, &request(&[0; ID]), |kind, body| {
        if kind == SOCK_DIAG_BY_FAMILY {
            let id = body.get(ID_AT..).and_then(<[u8]>::first_chunk);
            found.push(*id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// `struct inet_diag_req_v2`.
fn request(id: &[u8; ID]) -> Vec<u8> {
    [&[AF_INET, IPPROTO_TCP, 0, 0], &CONNECTED.to_ne_bytes(), &id[..]].concat()
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
            assert_eq!(count().unwrap(), 600);
            assert_eq!(end_all().unwrap(), 600);
            for (near, far) in &mut connections {
                let ends = [near, far].map(|end| end.read(&mut [0; 1]).unwrap_err().kind());
                assert!(
                    ends.iter().all(|end| [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset].contains(end)),
                    "{ends:?}"
                );
            }
            assert_eq!(count().unwrap(), 0);
            drop((connect(), listener.accept().unwrap()));
        });
        in_a_network_of_its_own.join().unwrap();
    }
}
