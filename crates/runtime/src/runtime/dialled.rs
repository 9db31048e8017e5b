//! Connections into sandboxes, and why there is none.

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    sandbox::owner::ResumeError,
    store::spec::{NoSuchSandbox, SandboxId},
};

/// A connection into a sandbox.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Cancelled when this generation of the sandbox ends (paused, killed, crashed): connections must then be cut.
    pub ended: CancellationToken,
    /// Cancelled when the sandbox begins to pause: nothing new should be sent over this connection from then on.
    pub leaving: CancellationToken,
    /// Distinguishes this life of the sandbox from the one before its last pause.
    pub generation: u64,
    /// Whether the server in the guest speaks TLS, as the sandbox's creator said.
    pub https: bool,
}

/// Why a port inside a sandbox could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No such sandbox, or it is paused without auto-resume.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is being paused or resumed right now.
    #[error("sandbox `{0}` is changing its state")]
    Transitioning(SandboxId),
    /// Nothing listens there.
    #[error("port {port} of sandbox `{id}` is not open")]
    PortClosed {
        /// The sandbox.
        id: SandboxId,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Traffic woke the sandbox, and waking failed.
    #[error("sandbox `{id}` could not be woken by traffic")]
    Wake {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Box<ResumeError>,
    },
}
