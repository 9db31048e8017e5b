//! Connections to other nodes' peer ports: how one is opened, and how a dead one is noticed. Keeping them between requests is
//! `hyper-util`'s, by node and term, so that a node that was restarted is called anew.

use std::{
    io,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use firkin_server::nodes::NodeId;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::TcpStream,
    time::{Interval, MissedTickBehavior},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower::Service;

use crate::{certificate::peer_of, members::Members, verify::PeerRefused};

/// How long a node may take to be connected to: a handshake on a busy host, or a lost packet or two.
const DEADLINE: Duration = Duration::from_secs(10);

/// A connection over which nothing goes is looked after so often, in seconds.
const KEEPALIVE_SECONDS: u32 = 10;

/// So often that is not answered until the other node is held to be gone.
const KEEPALIVE_MISSES: u32 = 3;

/// Between two looks at whether what was sent arrives.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What was sent has to be acknowledged within this time, in milliseconds, or the other host is held to be gone.
const SILENT_FOR_MS: u32 = 20_000;

/// And so often it was sent again by then: after 13 s at least, for an acknowledgement may have come long before anything was sent.
const SENT_AGAIN: u8 = 6;

/// Why there is no connection to a node.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It is not on record, or is not in the term that was called.
    #[error("node `{0}` is not in this cluster any more, or was restarted just now")]
    Gone(String),
    /// Nobody listens at its address, or nobody is there.
    #[error("nobody answers at `{address}`")]
    Unreached {
        /// As it is on record.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Whoever answers there is not that node.
    #[error("whoever answers at `{address}` is refused")]
    Refused {
        /// As it is on record.
        address: String,
        /// Why.
        #[source]
        source: PeerRefused,
    },
    /// The other end broke off, as it does with whom it refuses.
    #[error("the node at `{address}` did not shake hands; its log says why, if it refused this one")]
    Handshake {
        /// As it is on record.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("the node at `{address}` did not answer within {} s", DEADLINE.as_secs())]
    Late {
        /// As it is on record.
        address: String,
    },
}

/// Opens connections to nodes. An address is the name of a node in a term (`certificate.rs`).
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    pub(crate) members: Arc<dyn Members>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl Connector {
    async fn connect(self, name: String) -> Result<PeerStream, ConnectError> {
        let gone = || ConnectError::Gone(name.clone());
        let peer = peer_of(&name).ok_or_else(gone)?;
        let is_it = |id: &NodeId, term| *id == peer.node && term == peer.term;
        let nodes = self.members.nodes();
        let address = nodes.iter().find(|member| is_it(&member.id, member.term)).ok_or_else(gone)?.address.clone();
        let server = ServerName::try_from(name.clone()).map_err(|_| gone())?;
        let connecting = async {
            let unreached = |source| ConnectError::Unreached { address: address.clone(), source };
            let stream = TcpStream::connect(&address).await.map_err(unreached)?;
            watch(&stream).map_err(unreached)?;
            TlsConnector::from(self.tls).connect(server, stream).await.map_err(|source| match PeerRefused::of(&source) {
                Some(source) => ConnectError::Refused { address: address.clone(), source },
                None => ConnectError::Handshake { address: address.clone(), source },
            })
        };
        let connected = tokio::time::timeout(DEADLINE, connecting).await;
        let stream = connected.unwrap_or_else(|_| Err(ConnectError::Late { address: address.clone() }))?;
        Ok(PeerStream::over(stream))
    }
}

/// Has a connection over which nothing goes break soon after the other host is gone without a word. One over which something was sent is looked
/// after here ([`is_silent`]): the kernel knows one bound for hosts that are gone and for guests that do not read (`TCP_USER_TIMEOUT`), and those are
/// waited for.
fn watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_MISSES)?;
    Ok(())
}

impl Service<Uri> for Connector {
    type Response = PeerStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<PeerStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let name = address.host().unwrap_or_default().to_owned();
        Box::pin(self.clone().connect(name))
    }
}

/// Whether the other host has acknowledged nothing for so long that it is gone. One that is there acknowledges also what nobody reads.
fn is_silent(stream: &TcpStream) -> bool {
    // SAFETY: all of it is numbers, for which zeros are values.
    #[expect(unsafe_code, reason = "no library at hand reads what the kernel knows of a connection")]
    let mut info: nix::libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = u32::try_from(size_of_val(&info)).expect("some hundred bytes");
    let (level, name, fd) = (nix::libc::IPPROTO_TCP, nix::libc::TCP_INFO, stream.as_raw_fd());
    // SAFETY: the descriptor is open as long as `stream` is, and no more than `length` bytes are written.
    #[expect(unsafe_code, reason = "no library at hand reads what the kernel knows of a connection")]
    let told = unsafe { nix::libc::getsockopt(fd, level, name, (&raw mut info).cast(), &raw mut length) };
    told == 0 && info.tcpi_retransmits >= SENT_AGAIN && info.tcpi_last_ack_recv >= SILENT_FOR_MS
}

/// A connection to a node, which breaks once its host acknowledges nothing any more.
#[derive(Debug)]
pub(crate) struct PeerStream {
    stream: TokioIo<TlsStream<TcpStream>>,
    looks: Interval,
}

impl PeerStream {
    fn over(stream: TlsStream<TcpStream>) -> Self {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { stream: TokioIo::new(stream), looks }
    }

    /// Looks when it is time to. Wakes the task when it is again.
    fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        while self.looks.poll_tick(cx).is_ready() {
            if is_silent(self.stream.inner().get_ref().0) {
                return true;
            }
        }
        false
    }
}

impl Connection for PeerStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for PeerStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.is_gone(cx) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "its host acknowledges nothing any more")));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for PeerStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    #[tokio::test]
    async fn who_does_not_read_is_waited_for() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        watch(&stream).unwrap();
        assert!(getsockopt(&stream, sockopt::KeepAlive).unwrap());
        // By this the kernel would cut a connection whose other end reads nothing: a terminal whose program waits, an upload to a slow disk.
        assert_eq!(getsockopt(&stream, sockopt::TcpUserTimeout).unwrap(), 0);
        let full = loop {
            match stream.try_write(&[0; 1 << 16]) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_silent(&stream));
    }
}
