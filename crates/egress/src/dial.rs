//! How a connection is made to an address that was found and looked at: a seam, and the plain way.

use std::{error::Error, fmt::Debug, io, net::SocketAddrV4};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// A connection in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Makes connections.
///
/// Any number of calls may be under way. A call that is dropped leaves no connection behind. The address is final: whoever
/// connects elsewhere undoes the policy.
#[async_trait]
pub trait Dial: Debug + Send + Sync {
    /// Connects to `to`, or to what passes all bytes on to it.
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError>;
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host did not take it.
    #[error("cannot connect to {0}")]
    Connect(SocketAddrV4, #[source] io::Error),
    /// What connections go through did not make it.
    #[error("cannot connect to {0} through the proxy")]
    Proxy(SocketAddrV4, #[source] Box<dyn Error + Send + Sync>),
}

/// Connects from where this process is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Direct;

#[async_trait]
impl Dial for Direct {
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError> {
        let connect = async {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = connect.await.map_err(|source| DialError::Connect(to, source))?;
        Ok(Box::new(stream))
    }
}
