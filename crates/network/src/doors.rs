//! The doors of a slot: sockets in its namespace to which a guest's traffic is led, and connections outward in its place.
//!
//! Whoever decides by name stands behind them. He connects from inside the slot, as the guest would: by its way out, within its rates and
//! flows, behind its address, so that the host's rules judge what he connects to as if it were the guest, and closing the way out
//! cuts him off too. The slot's own rules let out of its sockets only those that bear a mark, which root of the host alone can set.
//!
//! The ports are always the same, so that a steering needs to know nothing of who is behind the doors: a server that is killed leaves
//! the steering and takes the doors with it, and the next one opens them again.

use std::{io, net::SocketAddrV4, os::fd::AsFd};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{
    GATEWAY_ADDRESS, ThreadLost, namespace,
    rules::{DNS_PORT, OUTWARD, PROXY_PORT},
    slot::SlotConnector,
};

/// Sockets of one slot.
#[derive(Debug)]
pub struct Doors {
    /// Connections, whatever they were meant for: [`original_destination`] tells.
    pub connections: TcpListener,
    /// Questions to resolvers.
    pub questions: UdpSocket,
    /// The same over TCP.
    pub questions_tcp: TcpListener,
}

/// Why doors are not open.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The slot is gone, and the guest with it.
    #[error("cannot open the doors of a network slot: it is gone")]
    Gone,
    /// One of the sockets could not be had.
    #[error("cannot open the door {door} of a network slot")]
    Open {
        /// Which.
        door: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thread that did it is gone.
    #[error(transparent)]
    Thread(#[from] ThreadLost),
}

impl SlotConnector {
    /// Opens the doors. They keep the slot's namespace alive until they are closed. Must be called inside a tokio runtime.
    pub async fn open_doors(&self) -> Result<Doors, DoorError> {
        let netns = self.netns.upgrade().ok_or(DoorError::Gone)?;
        let failed = |door| move |source| DoorError::Open { door, source };
        let job = move || {
            namespace::enter(netns.as_fd()).map_err(failed("into its namespace"))?;
            let listen = |port| {
                let listener = std::net::TcpListener::bind((GATEWAY_ADDRESS, port))?;
                listener.set_nonblocking(true).map(|()| listener)
            };
            let connections = listen(PROXY_PORT).map_err(failed("for connections"))?;
            let questions_tcp = listen(DNS_PORT).map_err(failed("for questions over TCP"))?;
            let questions = std::net::UdpSocket::bind((GATEWAY_ADDRESS, DNS_PORT));
            let questions = questions.and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
            Ok::<_, DoorError>((connections, questions_tcp, questions.map_err(failed("for questions"))?))
        };
        let (connections, questions_tcp, questions) = namespace::on_own_thread(job).await?;
        Ok(Doors {
            connections: TcpListener::from_std(connections).map_err(failed("for connections"))?,
            questions: UdpSocket::from_std(questions).map_err(failed("for questions"))?,
            questions_tcp: TcpListener::from_std(questions_tcp).map_err(failed("for questions over TCP"))?,
        })
    }

    /// Connects to `to` by the slot's way out, in the place of its guest: the host's rules let through what they let through of a
    /// guest. The stream sends small writes at once (`TCP_NODELAY`).
    pub async fn connect_outward(&self, to: SocketAddrV4) -> io::Result<TcpStream> {
        let netns = self.netns.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let socket = self.opener.open(netns).await?;
        setsockopt(&socket, sockopt::Mark, &OUTWARD)?;
        let stream = socket.connect(to.into()).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Where a connection was meant to go that a steering led to a door. Fails for one that came by itself.
pub fn original_destination(client: &TcpStream) -> io::Result<SocketAddrV4> {
    let meant = getsockopt(&client.as_fd(), sockopt::OriginalDst)?;
    Ok(SocketAddrV4::new(u32::from_be(meant.sin_addr.s_addr).into(), u16::from_be(meant.sin_port)))
}
