//! HTTPS for the sandboxes' host names, `https://<port>-<id>.<domain>`.
//!
//! Either the operator has a certificate for `*.<domain>`, or the server is its own certificate authority for that domain alone:
//! the authority's certificate is constrained to names below the domain, so that who trusts it trusts it with nothing else, and
//! a stolen key is good for nothing else. Its key stays in the state directory; the server's own certificate is made anew at
//! every start and never stored.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use firkin_files::private;
use fs_err as fs;
use jiff::{ToSpan, Zoned, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Browsers take no certificate that is valid for longer; a server is restarted more often.
const SERVER_DAYS: i64 = 397;
/// An authority that is pinned in images and shells should not surprise anybody.
const AUTHORITY_DAYS: i64 = 3650;
/// The clocks of clients may be behind.
const BACKDATED_DAYS: i64 = 1;
/// A certificate chain with a key is some kilobytes.
const MAX_PEM_BYTES: u64 = 1 << 20;
/// Spoken on a connection, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where connections come in.
#[derive(Debug)]
pub enum Listener {
    /// In the clear.
    Plain(TcpListener),
    /// HTTPS.
    Tls(TcpListener, TlsIdentity),
    /// Other nodes of the server's cluster ([`ServerConfig::nodes`](crate::ServerConfig::nodes)), and nobody else.
    Peers(TcpListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Plain(listener)
    }
}

/// A certificate for the domain and its key, ready to serve.
#[derive(Clone)]
pub struct TlsIdentity(pub(crate) TlsAcceptor);

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsIdentity")
    }
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("cannot find {what} in `{}`", path.display())]
    Pem {
        /// Which one.
        path: PathBuf,
        /// The kind of PEM block that was expected.
        what: &'static str,
    },
    /// The domain cannot stand in a certificate.
    #[error("cannot make a certificate for `{domain}`")]
    Certificate {
        /// The domain.
        domain: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// Certificate and key do not go together.
    #[error("cannot serve with this certificate and key")]
    Unusable(#[source] rustls::Error),
}

impl TlsIdentity {
    /// The operator's own certificate chain in a file, and its key, which came from `key`; both PEM.
    pub fn from_chain(chain: &Path, key: &Path, secret: &str) -> Result<Self, TlsError> {
        let missing = |path: &Path, what| TlsError::Pem { path: path.to_owned(), what };
        let text = read(chain)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok).collect();
        if certificates.is_empty() {
            return Err(missing(chain, "a certificate"));
        }
        let key = PrivateKeyDer::from_pem_slice(secret.as_bytes()).map_err(|_| missing(key, "a private key"))?;
        Self::new(certificates, key)
    }

    /// A certificate for `*.domain` by an authority of our own, which is kept in `dir`. Returns where the authority's
    /// certificate is, for clients to trust.
    pub fn internal(dir: &Path, domain: &str) -> Result<(Self, PathBuf), TlsError> {
        let unusable = |source| TlsError::Certificate { domain: domain.to_owned(), source };
        let (authority, path) = authority(dir, domain)?;
        let mut params = CertificateParams::new([format!("*.{domain}"), domain.to_owned()]).map_err(unusable)?;
        params.distinguished_name.push(DnType::CommonName, format!("*.{domain}"));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, SERVER_DAYS);
        let key = KeyPair::generate().map_err(unusable)?;
        let certificate = params.signed_by(&key, &authority).map_err(unusable)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| unusable(rcgen::Error::CouldNotParseKeyPair))?;
        Ok((Self::new(vec![certificate.der().clone()], key)?, path))
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(TlsError::Unusable)?;
        config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

/// The authority for a domain: the one in `dir`, or a new one when there is none or it is for another domain.
fn authority(dir: &Path, domain: &str) -> Result<(Issuer<'static, KeyPair>, PathBuf), TlsError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { path, source }
    };
    let unusable = |source| TlsError::Certificate { domain: domain.to_owned(), source };
    let (key_path, path, domain_path) = (dir.join("ca-key.pem"), dir.join("ca.pem"), dir.join("domain"));
    let params = authority_params(domain).map_err(unusable)?;
    // The certificate is there only when everything before it was written.
    if path.exists() && read(&domain_path)? == domain.as_bytes() {
        let missing = || TlsError::Pem { path: key_path.clone(), what: "the authority's private key" };
        let text = String::from_utf8(read(&key_path)?).map_err(|_| missing())?;
        let key = KeyPair::from_pem(&text).map_err(|_| missing())?;
        return Ok((Issuer::new(params, key), path));
    }
    let key = KeyPair::generate().map_err(unusable)?;
    let certificate = params.self_signed(&key).map_err(unusable)?;
    fs::create_dir_all(dir).map_err(file(dir))?;
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(&path)(error)),
        _ => {}
    }
    write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
    write(&domain_path, domain.as_bytes(), 0o644)?;
    write(&path, certificate.pem().as_bytes(), 0o644)?;
    Ok((Issuer::new(params, key), path))
}

/// The same for the same domain, which is how an authority is found again by its key alone.
fn authority_params(domain: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, format!("Firkin authority for {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.to_owned())],
        excluded_subtrees: Vec::new(),
    });
    valid_for(&mut params, AUTHORITY_DAYS);
    Ok(params)
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let today = Zoned::now().with_time_zone(TimeZone::UTC);
    let date = |days: i64| {
        let day = today.saturating_add(days.days());
        let (month, day_of_month) = (day.month().unsigned_abs(), day.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(day.year()), month, day_of_month)
    };
    (params.not_before, params.not_after) = (date(-BACKDATED_DAYS), date(days));
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let found = private::read(path, MAX_PEM_BYTES).and_then(|bytes| bytes.ok_or_else(|| io::ErrorKind::NotFound.into()));
    found.map_err(|source| TlsError::File { path: path.to_owned(), source })
}

/// Writes a file whole or not at all.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), TlsError> {
    private::replace(path, content, mode).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// Says hello over TLS to `identity` as a client that trusts `authority` and asks for `name`.
    async fn hello(identity: &TlsIdentity, authority: &Path, name: &'static str) -> io::Result<()> {
        let mut roots = RootCertStore::empty();
        let text = fs::read(authority).unwrap();
        roots.add(CertificateDer::from_pem_slice(&text).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let (client, server) = tokio::io::duplex(1 << 16);
        let serving = async {
            let mut stream = identity.0.accept(server).await?;
            stream.write_all(b"hi").await?;
            stream.shutdown().await
        };
        let asking = async {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let mut stream = connector.connect(ServerName::try_from(name).unwrap(), client).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            assert_eq!(text, "hi");
            Ok(())
        };
        // The server's end of a refused handshake says nothing of interest.
        let (asked, _served): (io::Result<()>, io::Result<()>) = tokio::join!(asking, serving);
        asked
    }

    #[tokio::test]
    async fn an_authority_outlives_restarts_and_is_good_for_its_domain_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (first, authority) = TlsIdentity::internal(dir.path(), "firkin.localhost").unwrap();
        let text = fs::read(&authority).unwrap();
        hello(&first, &authority, "3000-iabc.firkin.localhost").await.unwrap();
        let (second, _) = TlsIdentity::internal(dir.path(), "firkin.localhost").unwrap();
        assert_eq!(fs::read(&authority).unwrap(), text, "clients need not be told again");
        hello(&second, &authority, "49983-ixyz.firkin.localhost").await.unwrap();
        hello(&second, &authority, "a.b.firkin.localhost").await.unwrap_err();
        hello(&second, &authority, "bank.example").await.unwrap_err();

        // Another domain's certificate by the same key is not believed under the first authority's certificate.
        let other = tempfile::tempdir().unwrap();
        for name in ["ca-key.pem", "ca.pem"] {
            fs::copy(dir.path().join(name), other.path().join(name)).unwrap();
        }
        fs::write(other.path().join("domain"), "bank.example").unwrap();
        let (forged, _) = TlsIdentity::internal(other.path(), "bank.example").unwrap();
        hello(&forged, &authority, "www.bank.example").await.unwrap_err();
    }

    #[test]
    fn a_new_domain_gets_a_new_authority_and_its_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (_, authority) = TlsIdentity::internal(dir.path(), "a.test").unwrap();
        let before = fs::read(&authority).unwrap();
        TlsIdentity::internal(dir.path(), "b.test").unwrap();
        assert_ne!(fs::read(&authority).unwrap(), before);
        let mode = fs::metadata(dir.path().join("ca-key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        fs::write(&path, "hello").unwrap();
        assert!(matches!(TlsIdentity::from_chain(&path, &path, ""), Err(TlsError::Pem { what: "a certificate", .. })));
        assert!(matches!(TlsIdentity::from_chain(&dir.path().join("none"), &path, ""), Err(TlsError::File { .. })));
        TlsIdentity::internal(dir.path(), "a.test").unwrap();
        let (chain, key) = (dir.path().join("ca.pem"), dir.path().join("ca-key.pem"));
        let secret = fs::read_to_string(&key).unwrap();
        TlsIdentity::from_chain(&chain, &key, &secret).unwrap();
        assert!(matches!(TlsIdentity::from_chain(&chain, &key, "hello"), Err(TlsError::Pem { what: "a private key", .. })));
    }
}
