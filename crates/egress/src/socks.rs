//! Connections through a SOCKS5 proxy of the user's, over TLS if they want, with a name and a password if it asks.
//!
//! It is given addresses that we found and looked at, never names: what it would find under them we would not know. Its own address is
//! inside the bounds too, or whoever names a proxy would be connected to what is ours.
//!
//! A password is in no text that comes out of here: not in errors, which do not even repeat an address, since people write passwords
//! there; not in what is printed for debugging.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
};

use async_trait::async_trait;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_socks::tcp::Socks5Stream;
use zeroize::Zeroizing;

use crate::{
    dial::{Connection, Dial, DialError, Direct},
    name::HostName,
    policy::Bounds,
    resolve::{Found, Nowhere, Resolve, ResolveError, look_up, within},
    trust::{self, TrustError},
};

/// Bytes of a name or password (RFC 1929, 2).
const MAX_CREDENTIAL_BYTES: usize = 255;

/// What a user says of a proxy.
#[derive(Clone, Copy, Default)]
pub struct SocksSettings<'a> {
    /// `host:port`, the host being a name or an IPv4 address.
    pub address: &'a str,
    /// Who we are there, and what proves it.
    pub credentials: Option<(&'a str, &'a str)>,
    /// Speak TLS with it.
    pub tls: Option<SocksTls<'a>>,
}

/// TLS with a proxy.
#[derive(Debug, Clone, Copy, Default)]
pub struct SocksTls<'a> {
    /// The name in its certificate, if that is not the one in its address.
    pub server_name: Option<&'a str>,
    /// PEM of the authorities that it is believed of, in the place of the host's.
    pub authorities: Option<&'a str>,
}

/// Why settings describe no proxy. None of it repeats what they say.
#[derive(Debug, thiserror::Error)]
pub enum SocksSettingsError {
    /// Not `host:port`.
    #[error("the address of a proxy is a name or an IPv4 address, `:` and a port")]
    Address,
    /// What SOCKS5 cannot carry.
    #[error("name and password of a proxy have 1 to {MAX_CREDENTIAL_BYTES} bytes each")]
    Credentials,
    /// No name that a certificate could have.
    #[error("the server name of a proxy is not a name of a host")]
    ServerName,
    /// Nobody can be believed that he is the proxy.
    #[error("cannot speak TLS with the proxy")]
    Trust(#[source] TrustError),
}

/// Connects through a SOCKS5 proxy.
pub struct Socks {
    host: Host,
    port: u16,
    credentials: Option<(Zeroizing<String>, Zeroizing<String>)>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    resolver: Arc<dyn Resolve>,
    bounds: Arc<Bounds>,
    way: Arc<dyn Dial>,
}

/// Where the proxy is.
#[derive(Debug)]
enum Host {
    Address(Ipv4Addr),
    Name(HostName),
}

/// Why the proxy is not reached. Private: callers print it.
#[derive(Debug, thiserror::Error)]
enum SocksError {
    #[error("the proxy is nowhere that may be reached")]
    Nowhere(#[source] Nowhere),
    #[error("cannot connect to the proxy")]
    Connect(#[source] DialError),
    #[error("cannot agree on TLS with the proxy")]
    Tls(#[source] std::io::Error),
    #[error("the proxy does not connect")]
    Refused(#[source] tokio_socks::Error),
}

impl Socks {
    /// A proxy, whose own name `resolver` knows. Reads the host's authorities where they are needed.
    pub fn new(settings: SocksSettings<'_>, resolver: Arc<dyn Resolve>, bounds: Arc<Bounds>) -> Result<Self, SocksSettingsError> {
        let (host, port) = settings.address.rsplit_once(':').ok_or(SocksSettingsError::Address)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(SocksSettingsError::Address)?;
        let host = match host.parse() {
            Ok(address) => Host::Address(address),
            Err(_) => Host::Name(host.parse().map_err(|_| SocksSettingsError::Address)?),
        };
        let fits = |text: &str| (1..=MAX_CREDENTIAL_BYTES).contains(&text.len());
        if settings.credentials.is_some_and(|(name, password)| !fits(name) || !fits(password)) {
            return Err(SocksSettingsError::Credentials);
        }
        let credentials = settings.credentials.map(|(name, password)| (secret(name), secret(password)));
        let tls = settings.tls.map(|tls| connector(tls, &host)).transpose()?;
        Ok(Self { host, port, credentials, tls, resolver, bounds, way: Arc::new(Direct) })
    }

    /// The same, reached by `way` and not from where this process is.
    #[must_use]
    pub fn through(self, way: Arc<dyn Dial>) -> Self {
        Self { way, ..self }
    }

    async fn connect(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, SocksError> {
        let socket = self.reach().await?;
        let socket: Box<dyn Connection> = match &self.tls {
            None => socket,
            Some((tls, name)) => Box::new(tls.connect(name.clone(), socket).await.map_err(SocksError::Tls)?),
        };
        let to = SocketAddr::V4(to);
        let connected = match &self.credentials {
            None => Socks5Stream::connect_with_socket(socket, to).await,
            Some((name, password)) => Socks5Stream::connect_with_password_and_socket(socket, to, name, password).await,
        };
        Ok(connected.map_err(SocksError::Refused)?.into_inner())
    }

    /// A connection to the proxy itself.
    async fn reach(&self) -> Result<Box<dyn Connection>, SocksError> {
        let found = match &self.host {
            Host::Address(address) => Found { addresses: vec![*address], lifetime: std::time::Duration::ZERO },
            Host::Name(name) => {
                look_up(&*self.resolver, name).await.map_err(|error| SocksError::Nowhere(Nowhere::Resolve(error)))?
            }
        };
        let mut found = within(found, &self.bounds).map_err(SocksError::Nowhere)?.addresses;
        let last = found.pop().ok_or(SocksError::Nowhere(Nowhere::Resolve(ResolveError::NoAddress)))?;
        for address in found {
            if let Ok(connection) = self.way.dial(SocketAddrV4::new(address, self.port)).await {
                return Ok(connection);
            }
        }
        self.way.dial(SocketAddrV4::new(last, self.port)).await.map_err(SocksError::Connect)
    }
}

fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

fn connector(tls: SocksTls<'_>, host: &Host) -> Result<(TlsConnector, ServerName<'static>), SocksSettingsError> {
    let name = match (tls.server_name, host) {
        (Some(name), _) => ServerName::try_from(name.to_owned()).map_err(|_| SocksSettingsError::ServerName)?,
        (None, Host::Name(name)) => ServerName::try_from(name.as_str().to_owned()).map_err(|_| SocksSettingsError::ServerName)?,
        (None, Host::Address(address)) => ServerName::from(std::net::IpAddr::V4(*address)),
    };
    let config = trust::client(tls.authorities).map_err(SocksSettingsError::Trust)?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

#[async_trait]
impl Dial for Socks {
    async fn dial(&self, to: SocketAddrV4) -> Result<Box<dyn Connection>, DialError> {
        self.connect(to).await.map_err(|error| DialError::Proxy(to, error.into()))
    }
}

impl fmt::Debug for Socks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (credentials, tls) = (self.credentials.is_some(), self.tls.is_some());
        let mut shown = f.debug_struct("Socks");
        shown.field("host", &self.host).field("port", &self.port);
        shown.field("credentials", &credentials).field("tls", &tls).finish_non_exhaustive()
    }
}

impl fmt::Debug for SocksSettings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = self.credentials.is_some();
        f.debug_struct("SocksSettings").field("credentials", &credentials).field("tls", &self.tls).finish_non_exhaustive()
    }
}
