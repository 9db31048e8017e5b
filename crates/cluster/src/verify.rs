//! Whom the peer port lets in, and whom this node believes there: who has a certificate of the cluster's authority that names a node and
//! a term, and is that node in that term by the members that are known. Both ends look at each other, at every handshake: nothing is
//! resumed, because a ticket would outlive what it was given for.

use std::{
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use firkin_server::nodes::{NodeId, Peer};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

use crate::{
    certificate::{Authority, OwnCertificate, named, peer_of},
    members::{Member, Members},
};

/// Peers speak this and nothing else: it has switches of protocols, and one connection for each exchange that goes on.
const PROTOCOL: &[u8] = b"http/1.1";

/// Refusals are logged so often at most: whoever causes them must not fill the log.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Why a peer is none.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PeerRefused {
    /// Its certificate leads to another authority.
    #[error("its certificate is of another cluster's secret; `firkin node ls` with each secret shows whose is which")]
    OtherSecret,
    /// Its certificate is not good any more.
    #[error("its certificate has expired; the clocks of the two nodes differ, or it does not renew it")]
    Expired,
    /// Its certificate is not good yet.
    #[error("its certificate is of the future; the clocks of the two nodes differ by more than an hour")]
    NotYetValid,
    /// It does not say which node it is.
    #[error("its certificate does not name one node and its term")]
    Unnamed,
    /// It is another node than the one that was called.
    #[error("it is node `{shown}`, and node `{wanted}` was called; the address of one of them is wrong")]
    OtherNode {
        /// Which it is.
        shown: NodeId,
        /// Which was called.
        wanted: NodeId,
    },
    /// It is on no record.
    #[error("node `{0}` is not on record in this cluster")]
    Unknown(NodeId),
    /// It is of another term than the present one: an earlier server of that node, or a copy of it; or one so new that it was not heard of.
    #[error("it is node `{node}` in its term {shown}, and the present one is {present}")]
    OtherTerm {
        /// The node.
        node: NodeId,
        /// As its certificate says.
        shown: u64,
        /// As it is known here.
        present: u64,
    },
    /// Its lease is over.
    #[error("node `{0}` does not hold its lease")]
    NotAlive(NodeId),
    /// Something else is wrong with its certificate.
    #[error("its certificate is not good: {0}")]
    Certificate(CertificateError),
}

impl PeerRefused {
    /// As rustls carries it.
    fn into_tls(self) -> rustls::Error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }

    /// The refusal in an error of a handshake, if that is what ended it at this end.
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.get_ref()?.downcast_ref()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(refused))) => {
                let refused: &(dyn Error + Send + Sync) = &**refused;
                refused.downcast_ref().cloned()
            }
            _ => None,
        }
    }
}

/// Why the peer port cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VerifierError {
    /// Its rules cannot be put together.
    #[error("cannot verify peers' certificates")]
    Rules(#[from] VerifierBuilderError),
    /// Its protocol cannot.
    #[error("cannot speak TLS with peers")]
    Tls(#[from] rustls::Error),
}

/// Who is a peer.
#[derive(Debug)]
pub(crate) struct Judge {
    members: Arc<dyn Members>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    logged: Mutex<Option<Instant>>,
}

impl Judge {
    pub(crate) fn new(authority: &Authority, members: Arc<dyn Members>) -> Result<Arc<Self>, VerifierError> {
        let provider = Arc::new(ring::default_provider());
        let servers = WebPkiServerVerifier::builder_with_provider(authority.roots(), Arc::clone(&provider)).build()?;
        let clients = WebPkiClientVerifier::builder_with_provider(authority.roots(), provider).build()?;
        Ok(Arc::new(Self { members, servers, clients, logged: Mutex::default() }))
    }

    /// Whether this is a node in its present term, and there.
    pub(crate) fn admits(&self, peer: &Peer) -> Result<(), PeerRefused> {
        let nodes = self.members.nodes();
        let member = nodes.iter().find(|member| member.id == peer.node);
        let Some(Member { id, term, alive, .. }) = member else {
            self.members.look_again();
            return Err(PeerRefused::Unknown(peer.node.clone()));
        };
        if *term < peer.term {
            self.members.look_again();
        }
        match (*term == peer.term, alive) {
            (false, _) => Err(PeerRefused::OtherTerm { node: id.clone(), shown: peer.term, present: *term }),
            (true, false) => Err(PeerRefused::NotAlive(id.clone())),
            (true, true) => Ok(()),
        }
    }

    /// A verdict for rustls.
    fn verdict<T>(&self, verdict: Result<T, PeerRefused>) -> Result<T, rustls::Error> {
        verdict.map_err(|refused| {
            let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.is_none_or(|last| last.elapsed() >= LOG_EVERY) {
                *logged = Some(Instant::now());
                tracing::warn!(why = %refused, "refused a peer");
            }
            refused.into_tls()
        })
    }
}

/// What rustls found, in our words.
fn refusal(error: rustls::Error) -> PeerRefused {
    use CertificateError as Found;
    let rustls::Error::InvalidCertificate(found) = error else { return PeerRefused::Certificate(CertificateError::BadEncoding) };
    match found {
        Found::UnknownIssuer | Found::BadSignature => PeerRefused::OtherSecret,
        Found::Expired | Found::ExpiredContext { .. } => PeerRefused::Expired,
        Found::NotValidYet | Found::NotValidYetContext { .. } => PeerRefused::NotYetValid,
        found => PeerRefused::Certificate(found),
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checked = self.servers.verify_server_cert(certificate, between, name, ocsp, now);
        let judged = || {
            let shown = || named(certificate).ok_or(PeerRefused::Unnamed);
            match checked {
                Ok(verified) => self.admits(&shown()?).map(|()| verified),
                Err(rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                )) => {
                    let wanted = if let ServerName::DnsName(name) = name { peer_of(name.as_ref()) } else { None };
                    let (shown, wanted) = (shown()?, wanted.ok_or(PeerRefused::Unnamed)?);
                    if shown.node == wanted.node {
                        if shown.term > wanted.term {
                            self.members.look_again();
                        }
                        return Err(PeerRefused::OtherTerm { node: shown.node, shown: shown.term, present: wanted.term });
                    }
                    Err(PeerRefused::OtherNode { shown: shown.node, wanted: wanted.node })
                }
                Err(error) => Err(refusal(error)),
            }
        };
        self.verdict(judged())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.servers.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.servers.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.clients.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let judged = || {
            let verified = self.clients.verify_client_cert(certificate, between, now).map_err(refusal)?;
            let shown = named(certificate).ok_or(PeerRefused::Unnamed)?;
            self.admits(&shown).map(|()| verified)
        };
        self.verdict(judged())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.clients.supported_verify_schemes()
    }
}

/// The end of the peer port.
pub(crate) fn server(judge: &Arc<Judge>, own: &Arc<OwnCertificate>) -> Result<ServerConfig, VerifierError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(judge) as Arc<dyn ClientCertVerifier>)
        .with_cert_resolver(Arc::clone(own) as _);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// The end of whoever calls.
pub(crate) fn client(judge: &Arc<Judge>, own: &Arc<OwnCertificate>) -> Result<ClientConfig, VerifierError> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(judge) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(own) as _);
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// Whether a connection ended because the other side did not accept this side's certificate. It looks at that after this side has begun to send, and
/// reads nothing of it.
pub(crate) fn is_let_in_nowhere(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    // What an I/O error was made of is not its source.
    let of_tls = causes.filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>());
    of_tls.into_iter().any(|error| match error {
        rustls::Error::AlertReceived(alert) => [
            AlertDescription::BadCertificate,
            AlertDescription::UnsupportedCertificate,
            AlertDescription::CertificateRevoked,
            AlertDescription::CertificateExpired,
            AlertDescription::CertificateUnknown,
            AlertDescription::UnknownCA,
            AlertDescription::AccessDenied,
            AlertDescription::DecryptError,
            AlertDescription::CertificateRequired,
        ]
        .contains(alert),
        _ => false,
    })
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
