//! Certificates of nodes. Every node signs its own, with the key that the cluster's secret makes, so that none has to be brought to it
//! and none can expire while nobody looks.
//!
//! ```text
//!   secret ─► authority ─signs─► certificate of (node, term): 24 h, a new key each
//!                                     └ at half of its life the next handshake finds a new one; connections that stand keep theirs
//! ```
//!
//! The name in it says whose it is: `t<term>.<node>.firkin.internal`. Whether that is somebody is for `verify.rs`.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use firkin_server::nodes::{NodeId, Peer};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519,
    date_time_ymd,
};
use rustls::{
    RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring::sign::any_eddsa_type,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::secret::ClusterSecret;

/// How long a certificate is good.
const LIFE: Duration = Duration::from_secs(24 * 3600);

/// From then on a handshake has a new one made.
const HALF_LIFE: Duration = Duration::from_secs(12 * 3600);

/// The clocks of others may be behind by so much.
pub(crate) const BACKDATED: Duration = Duration::from_secs(3600);

/// What stands behind term and node in a certificate's name. Nobody else's: the top is kept for private use.
const SUFFIX: &str = "firkin.internal";

/// A PKCS #8 private key of Ed25519 (RFC 8410, section 7), up to the seed.
const ED25519_PKCS8: [u8; 16] = [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Why a certificate cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// It cannot be put together or signed.
    #[error("cannot sign a certificate of this node")]
    Sign(#[from] rcgen::Error),
    /// Its key cannot be used.
    #[error("cannot use the key of a certificate of this node")]
    Key(#[from] rustls::Error),
}

/// The name that is in the certificate of a node in a term.
pub(crate) fn name_of(peer: &Peer) -> String {
    format!("t{}.{}.{SUFFIX}", peer.term, peer.node)
}

/// Whose name that is.
pub(crate) fn peer_of(name: &str) -> Option<Peer> {
    let (term, node) = name.strip_suffix(SUFFIX)?.strip_suffix('.')?.split_once('.')?;
    let term = term.strip_prefix('t')?;
    // A number has one form only.
    let is_number = term.bytes().all(|byte| byte.is_ascii_digit()) && (term == "0" || !term.starts_with('0'));
    let node: NodeId = node.parse().ok()?;
    Some(Peer { node, term: term.parse().ok().filter(|_| is_number)? })
}

/// The certificate authority of a cluster, the same on each of its nodes.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    roots: Arc<RootCertStore>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    pub(crate) fn new(secret: &ClusterSecret) -> Result<Self, MintError> {
        let seed = secret.authority();
        let key = Zeroizing::new([&ED25519_PKCS8[..], &seed[..]].concat());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&key[..]), &PKCS_ED25519)?;
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, "Firkin cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // It is as good as the secret is.
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(4096, 1, 1));
        let mut roots = RootCertStore::empty();
        roots.add(params.self_signed(&key)?.der().clone())?;
        Ok(Self { issuer: Issuer::new(params, key), roots: Arc::new(roots) })
    }

    /// What peers' certificates have to lead to.
    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.roots)
    }

    fn mint(&self, peer: &Peer, now: SystemTime) -> Result<Arc<CertifiedKey>, MintError> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        let mut params = CertificateParams::new([name_of(peer)])?;
        params.distinguished_name.push(DnType::CommonName, peer.node.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = date_time_ymd(1970, 1, 1) + since_1970;
        (params.not_before, params.not_after) = (now - BACKDATED, now + LIFE);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let der = Zeroizing::new(key.serialize_der());
        let signing = any_eddsa_type(&PrivatePkcs8KeyDer::from(&der[..]))?;
        Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signing)))
    }
}

/// The certificate of this node, for both ends of a connection.
#[derive(Debug)]
pub(crate) struct OwnCertificate {
    authority: Arc<Authority>,
    me: Peer,
    current: Mutex<(Arc<CertifiedKey>, SystemTime)>,
}

impl OwnCertificate {
    /// Of this node, as of now.
    pub(crate) fn new(authority: Arc<Authority>, me: Peer, now: SystemTime) -> Result<Self, MintError> {
        let first = authority.mint(&me, now)?;
        Ok(Self { authority, me, current: Mutex::new((first, now)) })
    }

    /// One that was made at some time, and is as it was then.
    #[cfg(test)]
    pub(crate) fn frozen(authority: Arc<Authority>, me: Peer, at: SystemTime) -> Result<Self, MintError> {
        let made = authority.mint(&me, at)?;
        Ok(Self { authority, me, current: Mutex::new((made, SystemTime::now())) })
    }

    /// One that is good for half of its life yet. Where none can be made, the one before, for as long as it is good.
    fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let (certificate, since) = &mut *current;
        // A clock that was set back by more than that makes it one of the future.
        let is_good = now.duration_since(*since).map_or_else(|early| early.duration() < BACKDATED, |age| age < HALF_LIFE);
        if !is_good {
            match self.authority.mint(&self.me, now) {
                Ok(fresh) => (*certificate, *since) = (fresh, now),
                Err(error) => tracing::warn!(%error, "cannot renew this node's certificate"),
            }
        }
        Arc::clone(certificate)
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Whose certificate this is, by what it says.
pub(crate) fn named(certificate: &CertificateDer<'_>) -> Option<Peer> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = certificate.valid_dns_names();
    let peer = peer_of(names.next()?)?;
    // One that is two is neither.
    names.next().is_none().then_some(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer { node: "a".repeat(20).parse().unwrap(), term: 12 }
    }

    #[test]
    fn a_name_says_who_it_is_and_has_one_form() {
        let name = name_of(&peer());
        assert_eq!(peer_of(&name), Some(peer()));
        let node = "a".repeat(20);
        for bad in [
            format!("t012.{node}.firkin.internal"),
            format!("t.{node}.firkin.internal"),
            format!("t-1.{node}.firkin.internal"),
            format!("12.{node}.firkin.internal"),
            format!("t12.{node}a.firkin.internal"),
            format!("t12.{node}.firkin.internal.example"),
            format!("t12.{node}firkin.internal"),
            format!("x.t12.{node}.firkin.internal"),
            format!("t99999999999999999999.{node}.firkin.internal"),
            "*.firkin.internal".to_owned(),
        ] {
            assert_eq!(peer_of(&bad), None, "{bad}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_half_of_its_life() {
        let dir = tempfile::tempdir().unwrap();
        let secret = ClusterSecret::create(&dir.path().join("secret")).unwrap();
        let authority = Arc::new(Authority::new(&secret).unwrap());
        let start = SystemTime::now();
        let own = OwnCertificate::new(authority, peer(), start).unwrap();
        let at = |after: Duration| own.at(start + after).cert[0].clone();
        let first = at(Duration::ZERO);
        assert_eq!(named(&first), Some(peer()));
        assert_eq!(at(HALF_LIFE - Duration::from_secs(1)), first);
        let second = at(HALF_LIFE);
        assert_ne!(second, first);
        assert_eq!(at(HALF_LIFE + Duration::from_secs(9)), second);
        assert_ne!(own.at(start - BACKDATED).cert[0], second, "a clock that was set back has one of its time");
    }
}
