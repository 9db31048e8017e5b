//! The authority of this installation: the certificates by which clients take us for the hosts that they connect to.
//!
//! Whoever has its key is every host to the clients that trust it. So the key stays where it was made, in a file of its owner's,
//! clients trust the certificate only where they are told to, and what is issued lasts a day and lives in memory.

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use firkin_files::private;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::name::HostName;

/// An authority that is in snapshots should not end before they do.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3650 * DAY);
/// A certificate for one name.
const LEAF_LIFETIME: Duration = Duration::from_secs(2 * DAY);
/// It is made anew well before it ends: connections that began with it go on.
const LEAF_KEPT: Duration = Duration::from_secs(DAY);
/// The clocks of clients may be behind.
const BACKDATED: Duration = Duration::from_secs(DAY);
const DAY: u64 = 24 * 60 * 60;
/// Certificates that are kept: one takes a KiB and a millisecond.
const MAX_LEAVES: usize = 256;
/// A key and a certificate have less than 2 KiB.
const MAX_PEM_BYTES: u64 = 64 << 10;

/// Issues certificates for the hosts of other people, to clients that trust it.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    /// Of all certificates that it issues. It is in no file.
    key: KeyPair,
    leaves: Mutex<HashMap<HostName, (SystemTime, Arc<CertifiedKey>)>>,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not one that we wrote.
    #[error("cannot find the key and certificate of an authority in `{}`", .0.display())]
    Unusable(PathBuf),
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A key cannot sign.
    #[error("cannot sign with a key that was made")]
    Key(#[from] rustls::Error),
}

impl Authority {
    /// The authority of `file`, which is made with a new one where there is none. Its key and its certificate are one file, so that one
    /// is never without the other.
    pub fn open(file: &Path) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::File { path: file.to_owned(), source };
        let unusable = || AuthorityError::Unusable(file.to_owned());
        let text = match private::read(file, MAX_PEM_BYTES).map_err(failed)? {
            Some(bytes) => String::from_utf8(bytes).map_err(|_| unusable())?,
            None => {
                let text = Self::make()?;
                private::replace(file, text.as_bytes(), private::PRIVATE).map_err(failed)?;
                text
            }
        };
        Self::of(&text)?.ok_or_else(unusable)
    }

    /// Key and certificate of a new authority, in PEM, for whoever keeps them elsewhere than in a file of their own.
    pub fn make() -> Result<String, AuthorityError> {
        let key = KeyPair::generate()?;
        Ok(key.serialize_pem() + &params(AUTHORITY_LIFETIME)?.self_signed(&key)?.pem())
    }

    /// The authority of this key and certificate. None where the text has not both.
    pub fn of(text: &str) -> Result<Option<Self>, AuthorityError> {
        let (Ok(key), Some(begin)) = (KeyPair::from_pem(text), text.find("-----BEGIN CERTIFICATE-----")) else { return Ok(None) };
        if CertificateDer::from_pem_slice(&text.as_bytes()[begin..]).is_err() {
            return Ok(None);
        }
        let issuer = Issuer::new(params(AUTHORITY_LIFETIME)?, key);
        Ok(Some(Self { issuer, certificate: text[begin..].to_owned(), key: KeyPair::generate()?, leaves: Mutex::default() }))
    }

    /// Its certificate, in PEM, for clients to trust.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for one name, and its key.
    pub(crate) fn certified(&self, name: &HostName) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        // By the clock that a certificate goes by, which goes on while a host sleeps.
        let now = SystemTime::now();
        if let Some((made, leaf)) = leaves.get(name)
            && now.duration_since(*made).is_ok_and(|age| age < LEAF_KEPT)
        {
            return Ok(Arc::clone(leaf));
        }
        if leaves.len() >= MAX_LEAVES {
            // Clients choose the names: whoever asks for many loses time, and no memory of ours is theirs.
            leaves.clear();
        }
        let leaf = Arc::new(self.issue(name)?);
        leaves.insert(name.clone(), (now, Arc::clone(&leaf)));
        Ok(leaf)
    }

    fn issue(&self, name: &HostName) -> Result<CertifiedKey, AuthorityError> {
        let mut params = CertificateParams::new([name.as_str().to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "Firkin egress");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(random_serial()?));
        valid_for(&mut params, LEAF_LIFETIME);
        let certificate = params.signed_by(&self.key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&key)?))
    }
}

/// The same each time but for the dates, which is how the authority is found again by its key alone.
fn params(lifetime: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new([])?;
    params.distinguished_name.push(DnType::CommonName, "Firkin egress authority of this installation");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, lifetime);
    Ok(params)
}

fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + lifetime).into());
}

/// No two certificates of an authority have the same number: browsers refuse the second.
fn random_serial() -> Result<Vec<u8>, AuthorityError> {
    let mut bytes = [0; 16];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    // Positive, and not shorter than it is.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(bytes.to_vec())
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn an_authority_outlives_restarts_in_a_file_of_its_owner() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("authority.pem");
        let first = Authority::open(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let second = Authority::open(&file).unwrap();
        assert_eq!(first.certificate(), second.certificate());
        assert!(!first.certificate().contains("PRIVATE"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("authority.pem");
        let whole = {
            Authority::open(&file).unwrap();
            fs::read_to_string(&file).unwrap()
        };
        for content in ["", "nonsense", &whole[..whole.len() / 2], &"x".repeat(usize::try_from(MAX_PEM_BYTES).unwrap() + 1)] {
            fs::write(&file, content).unwrap();
            Authority::open(&file).unwrap_err();
            assert_eq!(fs::read_to_string(&file).unwrap(), *content);
        }
    }

    #[test]
    fn certificates_are_kept_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(&dir.path().join("a.pem")).unwrap();
        let first = authority.certified(&name("a.test")).unwrap();
        assert!(Arc::ptr_eq(&first, &authority.certified(&name("A.test.")).unwrap()));
        let other = authority.certified(&name("b.test")).unwrap();
        assert_ne!(first.cert, other.cert);
        for n in 0..2 * MAX_LEAVES {
            authority.certified(&name(&format!("n{n}.test"))).unwrap();
        }
        assert!(authority.leaves.lock().unwrap().len() <= MAX_LEAVES);
    }
}
