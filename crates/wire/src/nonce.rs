//! How a guest proves on the control channel which machine it is, and how the host proves which one it means.
//!
//! The host gives each machine a [`Nonce`] with its first identity after a restore. From then on every request says for which
//! machine it is, and every response from which it comes, by a [`Proof`]: a digest of the nonce, the direction and the request's id.
//! The nonce itself is told once, so whoever is called in another machine's place learns nothing that it could answer with, and a
//! guest that is called in another's place does nothing. A proof says who speaks, not what is said: it does not hold against somebody
//! between the two who changes messages on their way, and only root can stand there.
//!
//! A nonce is in the guest's memory, so a snapshot holds it; its artifact names it, and what is restored is called by it once more
//! while it is given its own. Agents that were frozen before there were nonces ignore them, and answer without a proof.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use crate::secret::equal;

/// Bytes of a nonce: as many as nobody guesses.
pub const NONCE_BYTES: usize = 32;

/// Says on the wire what these bytes are of.
const DOMAIN: &[u8] = b"firkin control 1";

/// A secret of the host and one machine.
#[derive(Clone)]
pub struct Nonce([u8; NONCE_BYTES]);

/// The side that speaks. A proof of one side is none of the other's, so that nobody answers with what he was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It asks.
    Host,
    /// It answers.
    Guest,
}

/// Proof that the sender of a message knows a machine's nonce.
#[derive(Clone)]
pub struct Proof([u8; NONCE_BYTES]);

impl Nonce {
    /// A nonce of these random bytes.
    pub fn new(bytes: [u8; NONCE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The proof of the message with this id. What is hashed has one length, so no proof is the beginning of another.
    pub fn proof(&self, side: Side, id: u64) -> Proof {
        let side = match side {
            Side::Host => [0],
            Side::Guest => [1],
        };
        let digest = Sha256::new().chain_update(DOMAIN).chain_update(self.0).chain_update(side).chain_update(id.to_be_bytes());
        Proof(digest.finalize().into())
    }
}

/// A guest's part: which machine it is. Without a nonce before the first identity, and where the host gave none.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bond(Option<Nonce>);

impl Bond {
    /// Whether the request with this id is for this machine: with its proof where it has a nonce, with none where it has not.
    pub fn admits(&self, id: u64, proof: Option<&Proof>) -> bool {
        proof == self.0.as_ref().map(|nonce| nonce.proof(Side::Host, id)).as_ref()
    }

    /// The proof for the response with this id.
    pub fn proof(&self, id: u64) -> Option<Proof> {
        self.0.as_ref().map(|nonce| nonce.proof(Side::Guest, id))
    }

    /// Is the machine with this nonce from now on; absent: the one that it was.
    pub fn take(&mut self, nonce: Option<&Nonce>) {
        if let Some(nonce) = nonce {
            self.0 = Some(nonce.clone());
        }
    }
}

impl PartialEq for Nonce {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Nonce {}

impl PartialEq for Proof {
    fn eq(&self, other: &Self) -> bool {
        equal(&self.0, &other.0)
    }
}

impl Eq for Proof {}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce")
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proof({})", STANDARD.encode(self.0))
    }
}

impl Serialize for Nonce {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes(deserializer).map(Self)
    }
}

impl Serialize for Proof {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(self.0))
    }
}

impl<'de> Deserialize<'de> for Proof {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes(deserializer).map(Self)
    }
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; NONCE_BYTES], D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
    bytes.try_into().map_err(|_| D::Error::custom(format!("these are not {NONCE_BYTES} bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_answers_its_own_calls_only() {
        let (own, other) = (Nonce::new([1; 32]), Nonce::new([2; 32]));
        let mut bond = Bond::default();
        let admits =
            |bond: &Bond, id, nonce: Option<&Nonce>| bond.admits(id, nonce.map(|nonce| nonce.proof(Side::Host, 7)).as_ref());
        assert!(admits(&bond, 7, None) && bond.proof(7).is_none());
        assert!(!admits(&bond, 7, Some(&own)), "a call for a machine that it is not yet");
        bond.take(Some(&own));
        bond.take(None);
        assert!(admits(&bond, 7, Some(&own)));
        assert!(!admits(&bond, 7, None) && !admits(&bond, 7, Some(&other)));
        assert!(!admits(&bond, 8, Some(&own)), "the proof of another call");
    }

    #[test]
    fn no_answer_is_made_of_a_question() {
        let nonce = Nonce::new([3; 32]);
        assert_ne!(nonce.proof(Side::Host, 1), nonce.proof(Side::Guest, 1));
        let mut bond = Bond::default();
        bond.take(Some(&nonce));
        assert_eq!(bond.proof(1), Some(nonce.proof(Side::Guest, 1)));
    }

    #[test]
    fn they_read_back_and_a_nonce_is_not_printed() {
        let nonce = Nonce::new([5; 32]);
        let text = serde_json::to_string(&nonce).unwrap();
        assert_eq!(serde_json::from_str::<Nonce>(&text).unwrap(), nonce);
        assert_eq!(format!("{nonce:?}"), "Nonce");
        assert!(serde_json::from_str::<Nonce>("\"AAAA\"").is_err());
        let proof = nonce.proof(Side::Guest, 9);
        assert_eq!(serde_json::from_str::<Proof>(&serde_json::to_string(&proof).unwrap()).unwrap(), proof);
    }
}
