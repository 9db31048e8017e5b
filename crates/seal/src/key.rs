//! Keys: made by chance, zeroed when they are dropped, and never printed.

use std::fmt;

use aes_gcm::{
    Aes256Gcm,
    aead::{AeadInOut, KeyInit},
};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Bytes of every key.
pub const KEY_BYTES: usize = 32;

/// Bytes of a nonce of AES-GCM.
const NONCE_BYTES: usize = 12;

/// Bytes of a tag.
const TAG_BYTES: usize = 16;

/// What a key's name is a digest for, and no other key's.
const ID_CONTEXT: &str = "firkin 2026 name of an installation's key";

/// Bytes of a key's name: enough that two keys of one installation never share it.
const ID_BYTES: usize = 8;

/// What a wrapped key is bound to, before its owner's name.
const WRAP_CONTEXT: &[u8] = b"firkin wrapped key 1\n";

type Secret = Zeroizing<[u8; KEY_BYTES]>;

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("a running Linux always has random bytes");
    bytes
}

/// What a key is called: a digest of it, which tells nothing else of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(String);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The key of an installation. It wraps data keys, and does nothing else.
#[derive(Clone)]
pub struct InstallationKey(Secret);

/// The key of one artifact or layer.
pub struct DataKey(Secret);

impl fmt::Debug for InstallationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InstallationKey").field(&self.id().0).finish()
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").finish_non_exhaustive()
    }
}

/// A data key that only one key of an installation opens, and only for the owner that it was wrapped for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The key that opens it.
    pub key: KeyId,
    /// Nonce, data key and tag, hexadecimal.
    wrapped: String,
}

/// Why a wrapped key was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnwrapError {
    /// It was wrapped with another key.
    #[error("it was sealed under key `{needs}` of the installation, which is not known here")]
    OtherKey {
        /// The key that would open it.
        needs: KeyId,
    },
    /// It was changed, or is somebody else's.
    #[error("its wrapped key is damaged, or belongs to something else")]
    Damaged,
}

impl InstallationKey {
    /// A new one.
    pub fn random() -> Self {
        Self(Zeroizing::new(random()))
    }

    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let mut secret: Secret = Zeroizing::new([0; KEY_BYTES]);
        of_hex(text, &mut *secret).then_some(Self(secret))
    }

    pub(crate) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(to_hex(&*self.0))
    }

    /// What it is called.
    pub fn id(&self) -> KeyId {
        let mut hasher = blake3::Hasher::new_derive_key(ID_CONTEXT);
        hasher.update(&*self.0);
        KeyId(to_hex(&hasher.finalize().as_bytes()[..ID_BYTES]))
    }

    /// Wraps the key of what is called `owner`.
    pub fn wrap(&self, data: &DataKey, owner: &str) -> WrappedKey {
        let nonce = random::<NONCE_BYTES>();
        let mut body = data.0.to_vec();
        self.cipher()
            .encrypt_in_place(&nonce.into(), &bound_to(owner), &mut body)
            .expect("a key is far below the cipher's limit");
        WrappedKey { key: self.id(), wrapped: to_hex(&[&nonce[..], &body].concat()) }
    }

    /// Opens the wrapped key of what is called `owner`.
    pub fn unwrap(&self, wrapped: &WrappedKey, owner: &str) -> Result<DataKey, UnwrapError> {
        if wrapped.key != self.id() {
            return Err(UnwrapError::OtherKey { needs: wrapped.key.clone() });
        }
        let mut bytes = [0; NONCE_BYTES + KEY_BYTES + TAG_BYTES];
        if !of_hex(&wrapped.wrapped, &mut bytes) {
            return Err(UnwrapError::Damaged);
        }
        let mut nonce = [0; NONCE_BYTES];
        nonce.copy_from_slice(&bytes[..NONCE_BYTES]);
        let mut body = Zeroizing::new(bytes[NONCE_BYTES..].to_vec());
        self.cipher().decrypt_in_place(&nonce.into(), &bound_to(owner), &mut *body).map_err(|_| UnwrapError::Damaged)?;
        let mut secret: Secret = Zeroizing::new([0; KEY_BYTES]);
        secret.copy_from_slice(&body);
        Ok(DataKey(secret))
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new(&(*self.0).into())
    }
}

impl DataKey {
    /// A new one.
    pub fn random() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// The cipher of one stream: no other stream has its key, so its nonces may count from zero.
    pub(crate) fn cipher(&self, salt: &[u8], name: &str) -> Aes256Gcm {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(salt).update(name.as_bytes());
        let mut key: [u8; KEY_BYTES] = hasher.finalize().into();
        let cipher = Aes256Gcm::new(&key.into());
        hasher.reset();
        key.zeroize();
        cipher
    }
}

fn bound_to(owner: &str) -> Vec<u8> {
    [WRAP_CONTEXT, owner.as_bytes()].concat()
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

/// Fills `bytes` from as many digits. Whether `text` is exactly that.
fn of_hex(text: &str, bytes: &mut [u8]) -> bool {
    let digit = |at: u8| char::from(at).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if text.len() != bytes.len() * 2 {
        return false;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return false };
        *byte = high << 4 | low;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_for_its_owner_and_its_key_only() {
        let (key, other) = (InstallationKey::random(), InstallationKey::random());
        let data = DataKey::random();
        let wrapped = key.wrap(&data, "layer:a");
        assert_eq!(*key.unwrap(&wrapped, "layer:a").unwrap().0, *data.0);
        assert_eq!(key.unwrap(&wrapped, "layer:b").unwrap_err(), UnwrapError::Damaged, "it was moved to another");
        assert_eq!(other.unwrap(&wrapped, "layer:a").unwrap_err(), UnwrapError::OtherKey { needs: key.id() });
        for at in 0..wrapped.wrapped.len() {
            let mut changed = wrapped.clone();
            let digit = if changed.wrapped.as_bytes()[at] == b'0' { "1" } else { "0" };
            changed.wrapped.replace_range(at..=at, digit);
            assert_eq!(key.unwrap(&changed, "layer:a").unwrap_err(), UnwrapError::Damaged, "digit {at}");
        }
    }

    #[test]
    fn no_key_is_printed() {
        let (key, data) = (InstallationKey::random(), DataKey::random());
        let shown = format!("{key:?} {data:?} {:?}", key.wrap(&data, "x"));
        assert!(!shown.contains(&*key.to_text()) && !shown.contains(&to_hex(&*data.0)), "{shown}");
        assert!(!key.to_text().contains(&key.id().0), "a key's name is no part of it");
    }
}
