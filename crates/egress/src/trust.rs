//! Whom we believe that a server is the host that we want: TLS as a client.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Why nobody can be believed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// No authority in the PEM, or none on this host.
    #[error("there is no authority whose certificate could be believed")]
    NoAuthorities,
    /// TLS cannot be set up.
    #[error("cannot set TLS up")]
    Tls(#[source] rustls::Error),
}

/// A client of TLS that believes the authorities of a PEM, or else this host's, which are read.
pub(crate) fn client(authorities: Option<&str>) -> Result<ClientConfig, TrustError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| TrustError::NoAuthorities)?;
                roots.add(certificate).map_err(|_| TrustError::NoAuthorities)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(TrustError::NoAuthorities);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(TrustError::Tls)?.with_root_certificates(roots).with_no_client_auth())
}
