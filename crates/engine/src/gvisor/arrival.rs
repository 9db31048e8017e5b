//! Waits until a guest's kernel has taken all that was sent to it, by a question that it answers by itself, whether its tasks run or not:
//! a datagram to a port that nobody listens on is refused, and that after everything before it.
//!
//! Without that, nothing tells whether a guest that rests has heard of the end of its connections: on a busy host a frame was seen to wait for
//! 20 ms.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

/// Where what is sent is thrown away (RFC 863), if anybody listens there at all.
const DISCARD: u16 = 9;
/// A datagram may be lost on the way, as any other.
const ATTEMPTS: u32 = 3;
/// What a guest that is short of CPU takes. The guest stands still meanwhile.
const DEADLINE: Duration = Duration::from_millis(80);

/// Whether the guest with this address of the calling thread's network namespace has taken what was sent to it before. Blocks.
pub(super) fn wait(guest: Ipv4Addr) -> io::Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    socket.connect((guest, DISCARD))?;
    for _ in 0..ATTEMPTS {
        match socket.send(&[]).and_then(|_| socket.recv(&mut [0; 1])) {
            // Whoever listens and answers has taken it, too.
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(true),
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_an_answer_and_silence_is_none() {
        let in_a_network_of_its_own = std::thread::spawn(|| {
            match nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                // Only root gets one.
                Err(nix::errno::Errno::EPERM) => return,
                made => made.unwrap(),
            }
            assert!(wait(Ipv4Addr::LOCALHOST).is_err(), "there is no way to it");
            assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
            assert!(wait(Ipv4Addr::LOCALHOST).unwrap());
            let _silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, DISCARD)).unwrap();
            assert!(!wait(Ipv4Addr::LOCALHOST).unwrap());
        });
        in_a_network_of_its_own.join().unwrap();
    }
}
