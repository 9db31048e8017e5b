//! Signed URLs that name no sandbox.
//!
//! A client of a local server signs `http://<server>/files?path=...&signature=...`: no host name and no header says whose file is
//! meant. The signature does, because it is made with the sandbox's own token. So it is compared with what each sandbox's token
//! would have given; envd decides afterwards, as always, whether it is still valid.
//!
//! Whoever asks has shown nothing yet, so a question is kept cheap: what does not look like a signature is not looked at, a
//! token costs a block or two of the digest and no copy, and a peer whose signatures are nobody's is soon told to wait
//! (`misses.rs`). Signatures are compared in constant time.

use axum::extract::Request;
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use firkin_wire::secret::equal;
use http::{Method, Uri};
use sha2::{Digest, Sha256};

use crate::listing::Query;

/// Longest path that is hashed: `PATH_MAX`, past which no guest can open it.
const MAX_PATH_BYTES: usize = 4096;

/// A SHA-256.
const DIGEST_BYTES: usize = 32;

/// A signed URL, read: what its signature is to be made of, and the signature that it bears.
#[derive(Debug)]
pub(crate) struct Signed {
    /// What stands before the token, digested.
    before: Sha256,
    /// What stands after it.
    after: String,
    signature: [u8; DIGEST_BYTES],
}

impl Signed {
    /// `None` for what is not a signed URL.
    pub(crate) fn read(method: &Method, uri: &Uri) -> Option<Self> {
        if uri.path() != "/files" {
            return None;
        }
        Self::of(method, &Query::parse(uri.query()))
    }

    /// The same, of its query.
    pub(crate) fn of(method: &Method, query: &Query) -> Option<Self> {
        let operation = match *method {
            // Who may read a file may hear of it what a read would begin with.
            Method::GET | Method::HEAD => "read",
            Method::POST => "write",
            _ => return None,
        };
        let encoded = query.get("signature")?.strip_prefix("v1_")?;
        let mut signature = [0; DIGEST_BYTES];
        STANDARD_NO_PAD.decode_slice(encoded, &mut signature).ok().filter(|&bytes| bytes == DIGEST_BYTES)?;
        let path = query.get("path").filter(|path| path.len() <= MAX_PATH_BYTES)?;
        let expires: Option<i64> = query.get("signature_expiration").map(str::parse).transpose().ok()?;
        let user = query.get("username").unwrap_or_default();
        let before = Sha256::new_with_prefix(format!("{path}:{operation}:{user}:"));
        Some(Self { before, after: expires.map(|expires| format!(":{expires}")).unwrap_or_default(), signature })
    }

    /// Whether this token signed it.
    pub(crate) fn by(&self, token: &str) -> bool {
        let digest = self.before.clone().chain_update(token).chain_update(&self.after).finalize();
        equal(&digest, &self.signature)
    }
}

/// Whether a request has the form of a signed URL, whoever signed it.
pub(crate) fn is_signed(request: &Request) -> bool {
    Signed::read(request.method(), request.uri()).is_some()
}
