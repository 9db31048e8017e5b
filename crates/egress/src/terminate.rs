//! Requests of TLS to named hosts, with headers put in on the way whose values the client must not hold.
//!
//! The client speaks TLS with us, by a certificate of an authority that it trusts for this, and we with the host, by what this host
//! believes. A request is read, gets its headers, and goes on; nothing else of it is changed, and nothing is of the answer. So a
//! host that repeats what it was sent shows it to the client: whom to send a value to is the rule's business.
//!
//! * **Whose connection it is.** It was made to an address that was found under the name in the greeting, with a certificate for that
//!   name, and each request must be to that name: a server of many names would else be asked, with the value, for somebody else's.
//! * **When a value is read.** For each request, from whoever keeps it: a new value counts at once, and one that is gone fails.
//! * **What both sides speak.** What the host agrees to of what the client offers, HTTP/2 or HTTP/1.1, so that nothing is translated.
//! * **Without TLS** nothing is put in: what anybody on the way could read is no place for a secret.

use std::{
    fmt::{self, Debug},
    io,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rustls::{
    ClientConfig, ServerConfig,
    pki_types::ServerName,
    server::{Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsConnector, client, server};
use zeroize::Zeroizing;

mod authority;
mod forward;
mod rewound;
mod tasks;
mod template;
mod transform;

pub use authority::{Authority, AuthorityError};
pub use template::{Reference, Template, TemplateError};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use transform::MAX_FILLED_BYTES;
pub use transform::{MAX_HEADERS, MAX_HOSTS, Transform, TransformError, Transforms};

use forward::Forward;
use rewound::Rewound;

use crate::{
    dial::Connection,
    name::HostName,
    relay::Heard,
    trust::{self, TrustError},
};

/// What is spoken inside of TLS, best first.
const PROTOCOLS: [&[u8]; 2] = [HTTP2, HTTP1];
const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Knows the values that are put in. Calls may be dropped.
#[async_trait]
pub trait Values: Debug + Send + Sync {
    /// The value of `reference` at this moment, for a request to `host`.
    async fn value(&self, reference: &Reference, host: &HostName) -> Result<Zeroizing<String>, ValueError>;
}

/// Why there is no value.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// Nothing is called so.
    #[error("there is none")]
    None,
    /// It cannot be had now.
    #[error("it cannot be read")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Whom hosts are believed to be, of what the client is shown.
pub struct Sides {
    authority: Arc<Authority>,
    servers: Arc<ClientConfig>,
}

/// What is put in, and all that it takes.
#[derive(Debug, Clone)]
pub struct Termination {
    /// What, for which hosts.
    pub transforms: Arc<Transforms>,
    /// Where values come from.
    pub values: Arc<dyn Values>,
    /// TLS on both sides.
    pub sides: Arc<Sides>,
}

/// Why a connection was not terminated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminateError {
    /// The client went away, or does not speak TLS as it began.
    #[error("cannot agree on TLS with the client")]
    Client(#[source] io::Error),
    /// The host is not whom it should be, or does not speak TLS.
    #[error("cannot agree on TLS with the host")]
    Host(#[source] io::Error),
    /// A certificate for the name.
    #[error("cannot take the place of the host")]
    Certificate(#[from] AuthorityError),
    /// TLS cannot be set up.
    #[error("cannot set TLS up")]
    Tls(#[from] rustls::Error),
    /// One of both takes too long.
    #[error("agreeing on TLS takes too long")]
    TooLong(#[from] Elapsed),
    /// A connection was cut, or something was said on it that is not HTTP.
    #[error("a connection ended early")]
    Cut(#[source] hyper::Error),
}

impl Sides {
    /// Clients are shown certificates of `authority`. Hosts are believed of the authorities in `believed`, a PEM, or else of this
    /// host's, which are read.
    pub fn new(authority: Arc<Authority>, believed: Option<&str>) -> Result<Self, TrustError> {
        Ok(Self { authority, servers: Arc::new(trust::client(believed)?) })
    }
}

impl Debug for Sides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sides").finish_non_exhaustive()
    }
}

/// One connection that was allowed, between both ends.
pub(crate) struct Between {
    pub(crate) client: TcpStream,
    /// What was read of it.
    pub(crate) bytes: Vec<u8>,
    pub(crate) host: Box<dyn Connection>,
    pub(crate) name: HostName,
}

/// What is put in at this moment.
pub(crate) type Current = Box<dyn Fn() -> Option<Termination> + Send + Sync>;

/// Passes requests on, each as it is said at its time, until one side has closed or nothing has come for `idle`.
pub(crate) async fn terminate(
    between: Between,
    sides: &Sides,
    current: Current,
    handshake: Duration,
    idle: Duration,
) -> Result<(), TerminateError> {
    let Between { client, bytes, host, name } = between;
    let heard = Arc::new(Heard::new());
    let client = Rewound::new(bytes, client, Arc::clone(&heard));
    let (client, host) = timeout(handshake, agree(client, host, &name, sides)).await??;
    tokio::select! {
        ended = Forward::new(name, current).pass(client, host) => ended.map_err(TerminateError::Cut),
        () = heard.nothing_for(idle) => Ok(()),
    }
}

type ClientSide = server::TlsStream<Rewound>;
type HostSide = client::TlsStream<Box<dyn Connection>>;

/// TLS on both sides, in which the same is spoken.
async fn agree(
    client: Rewound,
    host: Box<dyn Connection>,
    name: &HostName,
    sides: &Sides,
) -> Result<(ClientSide, HostSide), TerminateError> {
    let begun = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(TerminateError::Client)?;
    let mut config = ClientConfig::clone(&sides.servers);
    config.alpn_protocols = offered(&begun);
    let server_name = ServerName::try_from(name.as_str().to_owned())
        .map_err(|error| TerminateError::Host(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let host = TlsConnector::from(Arc::new(config)).connect(server_name, host).await.map_err(TerminateError::Host)?;
    let agreed = host.get_ref().1.alpn_protocol().unwrap_or(HTTP1).to_vec();
    let config = shown(sides.authority.certified(name)?, agreed)?;
    let client = begun.into_stream(Arc::new(config)).await.map_err(TerminateError::Client)?;
    Ok((client, host))
}

/// Of what the client offers, what we speak too; without any offer it speaks HTTP/1.1.
fn offered(begun: &StartHandshake<Rewound>) -> Vec<Vec<u8>> {
    let hello = begun.client_hello();
    let offers: Vec<&[u8]> = hello.alpn().into_iter().flatten().collect();
    PROTOCOLS.iter().filter(|protocol| offers.contains(protocol)).map(|protocol| protocol.to_vec()).collect()
}

/// What the client is shown.
fn shown(certified: Arc<CertifiedKey>, agreed: Vec<u8>) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_no_client_auth().with_cert_resolver(Arc::new(Always(certified)));
    config.alpn_protocols = vec![agreed];
    // The next connection may be of another time.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The name is known before TLS begins.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}
