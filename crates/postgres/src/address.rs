//! Where a catalogue is, and how far who answers there is believed.
//!
//! What is said to a database on this host is in the clear: through a socket or the loopback address nobody else hears it. Anywhere else it
//! is encrypted, and whoever answers has to prove the name that was called, by an authority that is named or one of the host's.

use std::{fmt, net::IpAddr, path::Path, str::FromStr, sync::Arc, time::Duration};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio_postgres::{
    Config,
    config::{Host, SslMode},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::holding::NodeId;

/// How long a host may take to be reached, where the address does not say.
const CONNECT: Duration = Duration::from_secs(5);

/// And to let us in.
const ENTER: Duration = Duration::from_secs(15);

/// How long what was sent may stay without an answer of the other host's kernel.
const UNANSWERED: Duration = Duration::from_secs(15);

/// What the database itself holds each of our sessions to, in milliseconds: no statement, no wait for a lock and no silence in a transaction
/// is longer. Whoever is waited for that long is dead.
/// What it has to say of a statement beside its answer is told where that is a warning. A host that is gone without a word is noticed by it within
/// half a minute: until then its session holds the lock of its server, and the host, back again, would be told that it runs already.
const BOUNDS: &str = "-c statement_timeout=10000 -c lock_timeout=8000 -c idle_in_transaction_session_timeout=15000 \
                      -c client_min_messages=warning -c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 \
                      -c search_path=firkin";

/// Why a text is no address of a catalogue. It is not quoted, for it may have a password in it.
#[derive(Debug, thiserror::Error)]
pub enum InvalidAddress {
    /// It is none of PostgreSQL.
    #[error("a catalogue is at an address of the form `postgres://USER:PASSWORD@HOST:PORT/DATABASE`")]
    Form,
    /// It is another host's, and in the clear.
    #[error("`{host}` is another host: what is said to it is encrypted, so `sslmode=disable` cannot be had")]
    Clear {
        /// The host.
        host: String,
    },
    /// The authority cannot be read.
    #[error("cannot read the authority that a catalogue proves itself by, `{path}`")]
    Authority {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Where a catalogue is. It is shown without its password.
#[derive(Clone)]
pub struct Address {
    pub(crate) config: Config,
    pub(crate) tls: MakeRustlsConnect,
    /// How long a connection may take until it can be used: whoever takes one may still say nothing.
    pub(crate) within: Duration,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.config.get_hosts().iter().map(name).collect();
        let ports: Vec<_> = self.config.get_ports().iter().map(u16::to_string).collect();
        let port = ports.first().map(|port| format!(":{port}")).unwrap_or_default();
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        write!(f, "postgres://{}{port}/{database}", hosts.join(","))
    }
}

fn name(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(path) => path.display().to_string(),
    }
}

fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback()),
    }
}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        Self::with_authority(text, None)
    }
}

impl Address {
    /// That of a URL, whose host proves itself by the authority in a file of PEM, or by one of the host's.
    pub fn with_authority(text: &str, authority: Option<&Path>) -> Result<Self, InvalidAddress> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(InvalidAddress::Form);
        }
        let says = |mode: &str| text.contains(&format!("sslmode={mode}"));
        let disabled = says("disable");
        // What is believed is decided here, and nothing less than a proven name is asked for.
        let text = ["verify-full", "verify-ca"]
            .iter()
            .fold(text.to_owned(), |text, mode| text.replace(&format!("sslmode={mode}"), "sslmode=require"));
        let mut config: Config = text.parse().map_err(|_| InvalidAddress::Form)?;
        // An address that is said beside a name is the one that is gone to.
        let addresses = config.get_hostaddrs().iter().map(|address| Host::Tcp(address.to_string()));
        let away = config.get_hosts().iter().cloned().chain(addresses).find(|host| !is_here(host));
        match away {
            Some(host) if disabled => return Err(InvalidAddress::Clear { host: name(&host) }),
            Some(_) => config.ssl_mode(SslMode::Require),
            None if config.get_hosts().is_empty() => return Err(InvalidAddress::Form),
            None if says("require") || says("verify-full") || authority.is_some() => config.ssl_mode(SslMode::Require),
            None => config.ssl_mode(SslMode::Disable),
        };
        // Each of its hosts in turn.
        let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
        let within = config.get_connect_timeout().copied().unwrap_or(ENTER).saturating_mul(hosts);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        config.tcp_user_timeout(UNANSWERED).application_name("firkin");
        let given = config.get_options().map(|given| format!("{given} ")).unwrap_or_default();
        config.options(format!("{given}{BOUNDS}"));
        Ok(Self { config, tls: MakeRustlsConnect::new(believing(authority)?), within })
    }
}

impl Address {
    /// The same with this password.
    #[must_use]
    pub fn with_password(mut self, password: &str) -> Self {
        self.config.password(password);
        self
    }

    /// The same for a node's sessions: they find first what is the node's in its term.
    pub(crate) fn of_node(mut self, node: &NodeId, term: i64) -> Self {
        let given = self.config.get_options().unwrap_or_default();
        // What comes later holds.
        let options = format!("{given} -c search_path=firkin_node,firkin -c firkin.node={node} -c firkin.term={term}");
        self.config.options(options);
        self
    }

    /// Whether there is a password in it.
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }
}

fn believing(authority: Option<&Path>) -> Result<ClientConfig, InvalidAddress> {
    let mut roots = RootCertStore::empty();
    match authority {
        Some(path) => {
            let unreadable = |source: Box<dyn std::error::Error + Send + Sync>| InvalidAddress::Authority {
                path: path.display().to_string(),
                source,
            };
            let pem = fs_err::read(path).map_err(|error| unreadable(error.into()))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| unreadable(error.to_string().into()))?;
                roots.add(certificate).map_err(|error| unreadable(error.into()))?;
            }
            if roots.is_empty() {
                return Err(unreadable("it has no certificate".into()));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| InvalidAddress::Authority { path: "TLS".to_owned(), source: error.into() })?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_shown_without_its_password_and_encrypted_away_from_here() {
        let away: Address = "postgres://me:hush@db.example:5433/catalogue".parse().unwrap();
        assert_eq!(format!("{away} {away:?}"), ["postgres://db.example:5433/catalogue"; 2].join(" "));
        assert_eq!(away.config.get_ssl_mode(), SslMode::Require);
        let here: Address = "postgres://me:hush@127.0.0.1/catalogue".parse().unwrap();
        assert_eq!(here.config.get_ssl_mode(), SslMode::Disable);
        let socket: Address = "postgres:///catalogue?host=/run/postgresql".parse().unwrap();
        assert_eq!(socket.config.get_ssl_mode(), SslMode::Disable);
        // What is called one of this host, and is gone to elsewhere, is elsewhere.
        let named: Address = "postgres://me:hush@localhost/catalogue?hostaddr=192.0.2.7".parse().unwrap();
        assert_eq!(named.config.get_ssl_mode(), SslMode::Require);
        let odd: Address = "postgres://me:verify-full@db.example/catalogue?sslmode=verify-full".parse().unwrap();
        assert_eq!(odd.config.get_password(), Some(&b"verify-full"[..]));
        for refused in ["mysql://me:hush@db/x", "postgres://me:hush@db.example/x?sslmode=disable", "postgres://%zz:hush@"] {
            let error = refused.parse::<Address>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }
}
