//! Tokens by which others know a sandbox: JWTs that this installation signs, for an audience each and for minutes.
//!
//! They are made for the request that carries them, outside of the sandbox, so that none is ever in it. Whoever is to believe them asks
//! the server for the key (JWKS, RFC 7517). The form is that of a JWT-SVID (SPIFFE): the subject is a path below the trust domain, which is the
//! host of the issuer.
//!
//! The key is made when it is first needed, in a file of its owner's. It is read once. Hosts that share a catalogue have one key together, so that
//! who asks any of them believes the tokens of all.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use firkin_files::private;
use jiff::Timestamp;
use ring::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::ground::team::TeamId;

/// How long a token counts. It is made for one request; servers exchange it at once.
const LIFETIME_SECONDS: i64 = 300;
/// The clocks of others may be behind.
const BACKDATED_SECONDS: i64 = 30;
/// Tokens of one sandbox, by E2B's contract.
pub const MAX_TOKENS: usize = 5;
/// Bytes of an audience: a URL.
pub const MAX_AUDIENCE_BYTES: usize = 2048;
/// The key of a host that is alone.
const FILE: &str = "workload.key";
/// A key of this curve has some 140 bytes.
const MAX_KEY_BYTES: u64 = 4 << 10;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// The key's file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file has no such key.
    #[error("`{}` has no key that tokens could be signed with", .0.display())]
    Key(PathBuf),
    /// The key of the cluster is none that tokens could be signed with, or cannot be opened.
    #[error("the key of the cluster that tokens are signed with cannot be opened: what is on record of it was changed")]
    Shared,
    /// Signing failed: there is no randomness.
    #[error("cannot sign a token")]
    Sign,
}

/// Where the key is.
enum Place {
    /// In a file of this host's.
    File(PathBuf),
    /// With all hosts of the cluster, unless it cannot be opened.
    Shared(Option<Zeroizing<Vec<u8>>>),
}

/// The key of an installation, and the public part of it.
pub struct Workload {
    place: Place,
    issuer: String,
    signer: Mutex<Option<Signer>>,
}

struct Signer {
    pair: EcdsaKeyPair,
    /// Its name in tokens and in the set of keys: its thumbprint (RFC 7638).
    id: String,
}

/// One key in a set of keys. The names are those of RFC 7517 and 7518.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PublicKey {
    /// `EC`.
    pub kty: &'static str,
    /// `P-256`.
    pub crv: &'static str,
    /// `ES256`.
    pub alg: &'static str,
    /// `sig`.
    #[serde(rename = "use")]
    pub usage: &'static str,
    /// What tokens call it.
    pub kid: String,
    /// One coordinate, in Base64 of URLs.
    pub x: String,
    /// The other.
    pub y: String,
}

#[derive(Serialize)]
struct Head<'a> {
    alg: &'static str,
    typ: &'static str,
    kid: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    sub: String,
    aud: [&'a str; 1],
    iat: i64,
    nbf: i64,
    exp: i64,
    jti: String,
}

impl Workload {
    /// The key of this state directory. Nothing is read yet. Tokens say that `issuer`, a URL without a slash at its end, made them.
    pub(crate) fn of(state_dir: &Path, issuer: String) -> Self {
        Self { place: Place::File(state_dir.join(FILE)), issuer, signer: Mutex::default() }
    }

    /// The key that this host shares with others, unless it cannot be opened.
    pub(crate) fn shared(key: Option<Zeroizing<Vec<u8>>>, issuer: String) -> Self {
        Self { place: Place::Shared(key), issuer, signer: Mutex::default() }
    }

    /// A key for all hosts: the one that this host has had alone, or a new one. Blocks.
    pub(crate) fn offer(state_dir: &Path) -> Result<Zeroizing<Vec<u8>>, WorkloadError> {
        let own = state_dir.join(FILE);
        let failed = |source| WorkloadError::File { path: own.clone(), source };
        match private::read(&own, MAX_KEY_BYTES).map_err(failed)?.map(Zeroizing::new) {
            Some(key) if Signer::of(&key).is_some() => Ok(key),
            Some(_) | None => made(),
        }
    }

    /// Whom tokens say that they are from.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// By what others tell our tokens.
    pub fn public_keys(&self) -> Result<Vec<PublicKey>, WorkloadError> {
        self.with(|signer| Ok(vec![signer.public()]))
    }

    /// A token that says to `audience` which sandbox it speaks for.
    pub fn mint(&self, (team, sandbox): (&TeamId, &str), audience: &str) -> Result<Zeroizing<String>, WorkloadError> {
        self.mint_at((team, sandbox), audience, Timestamp::now())
    }

    fn mint_at(
        &self,
        (team, sandbox): (&TeamId, &str),
        audience: &str,
        now: Timestamp,
    ) -> Result<Zeroizing<String>, WorkloadError> {
        self.with(|signer| {
            let now = now.as_second();
            let claims = Claims {
                iss: &self.issuer,
                sub: format!("spiffe://{}{}/sandbox/{sandbox}", self.trust_domain(), path_of(team)),
                aud: [audience],
                iat: now,
                nbf: now - BACKDATED_SECONDS,
                exp: now + LIFETIME_SECONDS,
                jti: crate::ground::random::hex::<16>(),
            };
            let head = Head { alg: "ES256", typ: "JWT", kid: &signer.id };
            let signed = format!("{}.{}", part(&head), part(&claims));
            let signature = signer.pair.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| WorkloadError::Sign)?;
            Ok(Zeroizing::new(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))))
        })
    }

    /// The host of the issuer.
    fn trust_domain(&self) -> &str {
        let rest = self.issuer.split_once("://").map_or(&self.issuer[..], |(_, rest)| rest);
        rest.split(['/', ':']).next().unwrap_or_default()
    }

    fn with<T>(&self, sign: impl FnOnce(&Signer) -> Result<T, WorkloadError>) -> Result<T, WorkloadError> {
        let mut signer = self.signer.lock().unwrap_or_else(PoisonError::into_inner);
        if signer.is_none() {
            *signer = Some(match &self.place {
                Place::File(file) => Signer::open(file)?,
                Place::Shared(key) => key.as_ref().and_then(|key| Signer::of(key)).ok_or(WorkloadError::Shared)?,
            });
        }
        sign(signer.as_ref().expect("it was opened above"))
    }
}

/// Where a team's sandboxes are below the trust domain. Nothing that fits those of one team fits another's.
fn path_of(team: &TeamId) -> String {
    if team.is_first() { String::new() } else { format!("/team/{team}") }
}

/// A new key.
fn made() -> Result<Zeroizing<Vec<u8>>, WorkloadError> {
    let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
    Ok(Zeroizing::new(made.map_err(|_| WorkloadError::Sign)?.as_ref().to_vec()))
}

fn part(content: &impl Serialize) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(content).expect("these are JSON"))
}

impl Signer {
    /// The key of `file`, made now if there is none.
    fn open(file: &Path) -> Result<Self, WorkloadError> {
        let failed = |source| WorkloadError::File { path: file.to_owned(), source };
        let bytes = match private::read(file, MAX_KEY_BYTES).map_err(failed)? {
            Some(bytes) => Zeroizing::new(bytes),
            None => {
                let made = made()?;
                private::replace(file, &made, private::PRIVATE).map_err(failed)?;
                made
            }
        };
        Self::of(&bytes).ok_or_else(|| WorkloadError::Key(file.to_owned()))
    }

    /// None where this is no such key.
    fn of(key: &[u8]) -> Option<Self> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &SystemRandom::new()).ok()?;
        let mut signer = Self { pair, id: String::new() };
        let PublicKey { x, y, .. } = signer.public();
        // The members that a thumbprint is made of, in their order.
        let canonical = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        signer.id = BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes()));
        Some(signer)
    }

    fn public(&self) -> PublicKey {
        // Not compressed: a byte that says so, and both coordinates (SEC 1, 2.3.3).
        let point = self.pair.public_key().as_ref();
        let coordinate = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(&point[range]);
        let (x, y) = (coordinate(1..33), coordinate(33..65));
        PublicKey { kty: "EC", crv: "P-256", alg: "ES256", usage: "sig", kid: self.id.clone(), x, y }
    }
}

impl fmt::Debug for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workload").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::{Value, json};

    use super::*;

    fn decoded(text: &str) -> Vec<u8> {
        BASE64_URL_SAFE_NO_PAD.decode(text).unwrap()
    }

    /// What a token says to somebody who believes `keys`; `None` if he does not believe it.
    fn believed(token: &str, keys: &[PublicKey]) -> Option<Value> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (head, claims) = signed.split_once('.')?;
        let head: Value = serde_json::from_slice(&decoded(head)).unwrap();
        assert_eq!(head["alg"], "ES256");
        let key = keys.iter().find(|key| head["kid"] == key.kid)?;
        let point = [vec![4], decoded(&key.x), decoded(&key.y)].concat();
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        key.verify(signed.as_bytes(), &decoded(signature)).ok()?;
        Some(serde_json::from_slice(&decoded(claims)).unwrap())
    }

    #[test]
    fn a_token_says_which_sandbox_it_is_to_whom_and_until_when() {
        let dir = tempfile::tempdir().unwrap();
        let workload = Workload::of(dir.path(), "https://firkin.example:8443".to_owned());
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let token = workload.mint_at((&TeamId::first(), "iabc"), "sts.example", now).unwrap();
        let claims = believed(&token, &workload.public_keys().unwrap()).unwrap();
        let expected = json!({
            "iss": "https://firkin.example:8443",
            "sub": "spiffe://firkin.example/sandbox/iabc",
            "aud": ["sts.example"],
            "iat": 1_800_000_000, "nbf": 1_799_999_970, "exp": 1_800_000_300,
            "jti": claims["jti"],
        });
        assert_eq!(claims, expected);
        let team: TeamId = "b".parse().unwrap();
        let token_of_team = workload.mint_at((&team, "iabc"), "sts.example", now).unwrap();
        let claims = believed(&token_of_team, &workload.public_keys().unwrap()).unwrap();
        assert_eq!(claims["sub"], "spiffe://firkin.example/team/b/sandbox/iabc");
        assert_ne!(
            token,
            workload.mint_at((&TeamId::first(), "iabc"), "sts.example", now).unwrap(),
            "each has a number of its own"
        );
    }

    #[test]
    fn the_key_outlives_restarts_and_is_its_owners() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let first = Workload::of(dir.path(), "https://a".to_owned());
        let token = first.mint((&TeamId::first(), "i1"), "b").unwrap();
        let second = Workload::of(dir.path(), "https://a".to_owned());
        assert!(believed(&token, &second.public_keys().unwrap()).is_some());
        let file = dir.path().join("workload.key");
        assert_eq!(fs_err::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        let other = tempfile::tempdir().unwrap();
        let other = Workload::of(other.path(), "https://a".to_owned());
        assert!(believed(&token, &other.public_keys().unwrap()).is_none());
        let forged = token.replacen('.', ".e30", 1);
        assert!(believed(&forged, &first.public_keys().unwrap()).is_none());

        fs_err::write(&file, b"damaged").unwrap();
        let damaged = Workload::of(dir.path(), "https://a".to_owned());
        assert!(matches!(damaged.mint((&TeamId::first(), "i1"), "b").unwrap_err(), WorkloadError::Key(_)));
    }
}
