//! Connections through a SOCKS5 proxy, which stands here and writes down what it is told.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    error::Error,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use firkin_egress::{
    Bounds, Connection, Dial, DialError, Found, HostName, Resolve, ResolveError, Socks, SocksSettings, SocksSettingsError,
    SocksTls,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(30);
const PASSWORD: &str = "correct horse battery";

/// Knows `proxy.test`, on loopback.
#[derive(Debug)]
struct Loopback;

#[async_trait]
impl Resolve for Loopback {
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError> {
        if name.as_str() != "proxy.test" {
            return Err(ResolveError::NoName);
        }
        Ok(Found { addresses: vec![Ipv4Addr::LOCALHOST], lifetime: Duration::from_secs(1) })
    }
}

/// Loopback is open in tests, unless it is closed.
fn bounds(closed: &[&str]) -> Arc<Bounds> {
    Arc::new(Bounds { own: Vec::new(), opened: Vec::new(), closed: closed.iter().map(|net| net.parse().unwrap()).collect() })
}

fn socks(settings: SocksSettings<'_>) -> Result<Socks, SocksSettingsError> {
    Socks::new(settings, Arc::new(Loopback), bounds(&[]))
}

/// What a proxy was told by one client.
#[derive(Debug, PartialEq, Eq)]
struct Heard {
    credentials: Option<(String, String)>,
    to: SocketAddrV4,
}

/// Takes one client by RFC 1928, answers it with `reply`, and echoes four bytes.
async fn socks_server(mut client: impl Connection, password: Option<&str>, reply: u8) -> Heard {
    let methods = usize::from(read(&mut client, 2).await[1]);
    let methods = read(&mut client, methods).await;
    let mut credentials = None;
    if let Some(expected) = password {
        assert!(methods.contains(&2));
        client.write_all(&[5, 2]).await.unwrap();
        assert_eq!(read(&mut client, 1).await, [1], "the version of the exchange");
        let mut text = async || {
            let length = usize::from(read(&mut client, 1).await[0]);
            String::from_utf8(read(&mut client, length).await).unwrap()
        };
        let (name, given) = (text().await, text().await);
        let wrong = given != expected;
        credentials = Some((name, given));
        client.write_all(&[1, u8::from(wrong)]).await.unwrap();
        if wrong {
            return Heard { credentials, to: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0) };
        }
    } else {
        assert!(methods.contains(&0));
        client.write_all(&[5, 0]).await.unwrap();
    }
    assert_eq!(read(&mut client, 4).await, [5, 1, 0, 1], "a connection to an address, not to a name");
    let address: [u8; 4] = read(&mut client, 4).await.try_into().unwrap();
    let port = client.read_u16().await.unwrap();
    client.write_all(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    if reply == 0 {
        let bytes = read(&mut client, 4).await;
        client.write_all(&bytes).await.unwrap();
    }
    Heard { credentials, to: SocketAddrV4::new(address.into(), port) }
}

async fn read(from: &mut impl Connection, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(PATIENCE, from.read_exact(&mut bytes)).await.expect("it comes").unwrap();
    bytes
}

/// A proxy that takes one client; over TLS if it has a certificate.
async fn proxy(tls: Option<TlsAcceptor>, password: Option<&'static str>, reply: u8) -> (SocketAddr, JoinHandle<Heard>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        match tls {
            None => socks_server(client, password, reply).await,
            Some(tls) => socks_server(tls.accept(client).await.unwrap(), password, reply).await,
        }
    });
    (address, task)
}

fn target() -> SocketAddrV4 {
    "1.2.3.4:443".parse().unwrap()
}

async fn passes(socks: &Socks) {
    let mut connection = timeout(PATIENCE, socks.dial(target())).await.unwrap().unwrap();
    connection.write_all(b"ping").await.unwrap();
    assert_eq!(read(&mut connection, 4).await, b"ping");
}

/// An error with everything that it comes from, in both forms.
fn told(error: &dyn Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(" {error} {error:?}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_proxy_is_given_the_address_and_passes_bytes_on() {
    for by_name in [true, false] {
        let (address, heard) = proxy(None, None, 0).await;
        let address = if by_name { format!("proxy.test:{}", address.port()) } else { address.to_string() };
        passes(&socks(SocksSettings { address: &address, ..SocksSettings::default() }).unwrap()).await;
        assert_eq!(heard.await.unwrap(), Heard { credentials: None, to: target() });
    }
}

#[tokio::test]
async fn a_proxy_that_asks_is_given_name_and_password() {
    let (address, heard) = proxy(None, Some(PASSWORD), 0).await;
    let address = address.to_string();
    passes(&socks(SocksSettings { address: &address, credentials: Some(("me", PASSWORD)), tls: None }).unwrap()).await;
    let credentials = Some(("me".to_owned(), PASSWORD.to_owned()));
    assert_eq!(heard.await.unwrap(), Heard { credentials, to: target() });
}

#[tokio::test]
async fn a_password_is_in_nothing_that_is_printed() {
    let (address, _heard) = proxy(None, Some("another"), 0).await;
    let address = address.to_string();
    let settings = SocksSettings { address: &address, credentials: Some(("me", PASSWORD)), tls: None };
    let dialer = socks(settings).unwrap();
    let error = timeout(PATIENCE, dialer.dial(target())).await.unwrap().err().unwrap();
    assert!(matches!(error, DialError::Proxy(..)));
    for text in [told(&error), format!("{dialer:?}"), format!("{settings:?}")] {
        assert!(!text.contains(PASSWORD) && !text.contains("battery"), "{text}");
    }
    // Where people write it, too.
    let written = format!("socks5://me:{PASSWORD}@proxy.test:1080");
    let settings = SocksSettings { address: &written, ..SocksSettings::default() };
    let error = socks(settings).unwrap_err();
    assert!(!told(&error).contains(PASSWORD) && !format!("{settings:?}").contains(PASSWORD));
}

#[tokio::test]
async fn tls_with_a_proxy_is_believed_of_its_authority_and_name_only() {
    let key = rcgen::generate_simple_self_signed(["proxy.test".to_owned()]).unwrap();
    let pem = key.cert.pem();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let private = rustls::pki_types::PrivateKeyDer::Pkcs8(key.signing_key.serialize_der().into());
    let config = config.with_no_client_auth().with_single_cert(vec![key.cert.der().clone()], private).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let other = rcgen::generate_simple_self_signed(["proxy.test".to_owned()]).unwrap().cert.pem();
    for (host, server_name, authorities, believed) in [
        ("proxy.test", None, &pem, true),
        ("127.0.0.1", Some("proxy.test"), &pem, true),
        ("127.0.0.1", None, &pem, false),
        ("proxy.test", Some("other.test"), &pem, false),
        ("proxy.test", None, &other, false),
    ] {
        let (address, heard) = proxy(Some(acceptor.clone()), Some(PASSWORD), 0).await;
        let address = format!("{host}:{}", address.port());
        let tls = Some(SocksTls { server_name, authorities: Some(authorities) });
        let socks = socks(SocksSettings { address: &address, credentials: Some(("me", PASSWORD)), tls }).unwrap();
        if believed {
            passes(&socks).await;
            assert_eq!(heard.await.unwrap().to, target());
        } else {
            assert!(timeout(PATIENCE, socks.dial(target())).await.unwrap().is_err(), "{host} {server_name:?}");
            assert!(heard.await.is_err(), "it was told nothing");
        }
    }
}

#[tokio::test]
async fn a_proxy_is_not_reached_out_of_bounds_and_its_refusal_is_one() {
    let (address, heard) = proxy(None, None, 0).await;
    for host in ["127.0.0.1", "proxy.test", "other.test"] {
        let address = format!("{host}:{}", address.port());
        let settings = SocksSettings { address: &address, ..SocksSettings::default() };
        let socks = Socks::new(settings, Arc::new(Loopback), bounds(&["127.0.0.0/8"])).unwrap();
        assert!(socks.dial(target()).await.is_err(), "{host}");
    }
    heard.abort();
    let (address, heard) = proxy(None, None, 2).await;
    let address = address.to_string();
    let socks = socks(SocksSettings { address: &address, ..SocksSettings::default() }).unwrap();
    assert!(timeout(PATIENCE, socks.dial(target())).await.unwrap().is_err(), "it is not allowed there");
    assert_eq!(heard.await.unwrap().to, target());
}

#[test]
fn settings_that_are_no_proxy_are_refused() {
    let refused = |address: &str| socks(SocksSettings { address, ..SocksSettings::default() }).unwrap_err();
    for address in [
        "",
        "proxy.test",
        "proxy.test:0",
        "proxy.test:65536",
        ":1080",
        "[::1]:1080",
        "a b:1",
        "http://proxy.test:1080",
        "127.1:1",
    ] {
        assert!(matches!(refused(address), SocksSettingsError::Address), "{address}");
    }
    let with = |credentials, tls| socks(SocksSettings { address: "proxy.test:1080", credentials, tls }).unwrap_err();
    let long = "x".repeat(256);
    for credentials in [("", PASSWORD), ("me", ""), ("me", &long), (&long, PASSWORD)] {
        assert!(matches!(with(Some(credentials), None), SocksSettingsError::Credentials));
    }
    let tls = |server_name, authorities| Some(SocksTls { server_name, authorities });
    assert!(matches!(with(None, tls(None, Some("no certificate"))), SocksSettingsError::Trust(_)));
    let pem = rcgen::generate_simple_self_signed(["proxy.test".to_owned()]).unwrap().cert.pem();
    assert!(matches!(with(None, tls(Some("a b"), Some(&pem))), SocksSettingsError::ServerName));
}
