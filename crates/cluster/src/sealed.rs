//! Secrets of a cluster, and the keys that its nodes have together: rows of its catalogue, each sealed under a key that the cluster's secret makes.
//!
//! ```text
//!   version (1) │ nonce (12) │ value, sealed by ChaCha20-Poly1305 with its tag (16)
//!                              and with it, as what it is of: "firkin cluster secret 1\n" and what is told of the secret, as it is on record
//! ```
//!
//! What is told of a secret has its id, team, name and version in it, so that no row opens in the place of another, nor with a value that it had before.
//! Whoever looks needs no key; whoever opens what was changed, or was sealed under another secret, is told that it is so.

use std::{collections::BTreeMap, fmt, sync::Arc};

use firkin_causes::chain;
use firkin_postgres::{Inserted, Members, Membership, NodeCatalogue, Reseal, SecretHead, SecretRow, SharedKeyRow, Wanted};
use firkin_runtime::{
    secrets::{Added, NewValue, Secret, SecretInfo, SharedError, SharedSecrets},
    store::StoreError,
    team::{Scope, TeamId},
};
use futures::future::BoxFuture;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::secret::ClusterSecret;

/// The form of what is sealed.
const FORM: u8 = 1;

/// What a value of a secret is sealed with.
const OF_A_SECRET: &str = "firkin cluster secret 1\n";

/// What a key of all nodes is sealed with.
const OF_A_KEY: &str = "firkin cluster key 1\n";

/// Seals and opens, for whoever has a cluster's secret.
#[derive(Clone)]
struct Seal(Arc<LessSafeKey>);

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

impl Seal {
    fn of(secret: &ClusterSecret) -> Self {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &secret.seal()[..]).expect("as many bytes are derived as a key has");
        Self(Arc::new(LessSafeKey::new(key)))
    }

    /// Under a nonce that is drawn: some billions are far from a likely repetition.
    fn seal(&self, value: &[u8], (kind, of): (&str, &str)) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).expect("the kernel's random generator works");
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + value.len() + CHACHA20_POLY1305.tag_len());
        sealed.push(FORM);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(value);
        let aad = Aad::from([kind.as_bytes(), of.as_bytes()].concat());
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed[1 + NONCE_LEN..])
            .expect("a value is far below the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    fn open(&self, sealed: &[u8], (kind, of): (&str, &str)) -> Option<Zeroizing<Vec<u8>>> {
        let rest = sealed.strip_prefix(&[FORM])?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
        let mut body = Zeroizing::new(body.to_vec());
        let aad = Aad::from([kind.as_bytes(), of.as_bytes()].concat());
        let length = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut body).ok()?.len();
        body.truncate(length);
        Some(body)
    }

    fn row(&self, Secret { info, value }: &Secret) -> SecretRow {
        let body = serde_json::to_string(info).expect("maps with text as keys are JSON");
        let sealed = self.seal(value.as_bytes(), (OF_A_SECRET, &body));
        let version = i64::try_from(info.version).unwrap_or(i64::MAX);
        let head = SecretHead { id: info.id.clone(), team: info.owner.to_string(), name: info.name.clone(), version, body };
        SecretRow { head, sealed }
    }

    fn secret(&self, row: &SecretRow) -> Result<Secret, SharedError> {
        let unreadable = || SharedError::Unreadable(row.head.name.clone());
        let info = info(&row.head)?;
        let value = self.open(&row.sealed, (OF_A_SECRET, &row.head.body)).ok_or_else(unreadable)?;
        let value = std::str::from_utf8(&value).map_err(|_| unreadable())?;
        Ok(Secret { info, value: Zeroizing::new(value.to_owned()) })
    }
}

/// What is told of a secret, which has to be what the row was found by.
fn info(head: &SecretHead) -> Result<SecretInfo, SharedError> {
    let info: Option<SecretInfo> = serde_json::from_str(&head.body).ok();
    let is_of_row = |info: &SecretInfo| {
        (&info.id, info.owner.as_str(), &info.name) == (&head.id, &head.team[..], &head.name)
            && i64::try_from(info.version).is_ok_and(|version| version == head.version)
    };
    info.filter(is_of_row).ok_or_else(|| SharedError::Unreadable(head.name.clone()))
}

/// What is left of a secret whose row was changed, before its value is given again: what the row is found by, and no labels.
fn info_of_columns(head: &SecretHead, new: &NewValue) -> Option<SecretInfo> {
    Some(SecretInfo {
        id: head.id.clone(),
        owner: head.team.parse().ok()?,
        name: head.name.clone(),
        version: u64::try_from(head.version).unwrap_or_default(),
        metadata: BTreeMap::new(),
        created_at: new.at,
        updated_at: new.at,
    })
}

/// None for what is no reference: no id and no name has a control character, and PostgreSQL's texts have no NUL.
fn wanted(scope: &Scope, reference: &str) -> Option<Wanted> {
    if reference.contains(char::is_control) {
        return None;
    }
    let (team, anyones) = match scope {
        Scope::Host => (TeamId::first(), true),
        Scope::Team(team) => (team.clone(), false),
    };
    Some(Wanted { id: reference.to_owned(), name: reference.to_lowercase(), team: team.to_string(), anyones })
}

fn store(error: StoreError) -> SharedError {
    SharedError::Store(error.into())
}

/// The secrets of a cluster, as one of its nodes has them.
#[derive(Debug)]
pub struct SealedSecrets {
    catalogue: Arc<NodeCatalogue>,
    seal: Seal,
}

impl SealedSecrets {
    /// Those of the cluster of this secret, which the node has once its catalogue is open.
    pub fn of(catalogue: Arc<NodeCatalogue>, secret: &ClusterSecret) -> Arc<Self> {
        Arc::new(Self { catalogue, seal: Seal::of(secret) })
    }

    fn membership(&self) -> Result<Arc<Membership>, SharedError> {
        self.catalogue.membership().ok_or_else(|| store(StoreError::Closed))
    }

    async fn row(&self, scope: &Scope, reference: &str) -> Result<Option<SecretRow>, SharedError> {
        let Some(wanted) = wanted(scope, reference) else { return Ok(None) };
        let membership = self.membership()?;
        membership.members().secret(&wanted).await.map_err(store)
    }

    async fn renewed(&self, wanted: Wanted, new: NewValue) -> Result<Option<SecretInfo>, SharedError> {
        let (seal, (send, receive)) = (self.seal.clone(), std::sync::mpsc::sync_channel(1));
        let change = move |row: &SecretRow| {
            let before = info(&row.head).or_else(|error| info_of_columns(&row.head, &new).ok_or(error));
            let renewed = before.map(|mut info| {
                info.renew(new.metadata, new.at);
                Secret { info, value: new.value }
            });
            let row = renewed.as_ref().ok().map(|secret| seal.row(secret));
            // Nobody waits for it if the rest fails.
            send.send(renewed.map(|secret| secret.info)).ok();
            row
        };
        match self.membership()?.change_secret(wanted, change).await.map_err(store)? {
            Some(_) => receive.recv().map_err(|_| store(StoreError::Closed))?.map(Some),
            None => Ok(None),
        }
    }

    fn opened(&self, row: &SharedKeyRow) -> Result<Zeroizing<Vec<u8>>, SharedError> {
        self.seal.open(&row.sealed, (OF_A_KEY, &row.name)).ok_or_else(|| SharedError::Unreadable(row.name.clone()))
    }
}

impl SharedSecrets for SealedSecrets {
    fn add(&self, secret: Secret, most: usize) -> BoxFuture<'_, Result<Added, SharedError>> {
        Box::pin(async move {
            let row = self.seal.row(&secret);
            Ok(match self.membership()?.insert_secret(row, most).await.map_err(store)? {
                Inserted::Kept => Added::Kept,
                Inserted::Before => Added::Before,
                Inserted::NameTaken => Added::NameTaken,
                Inserted::TooMany => Added::TooMany,
            })
        })
    }

    fn renew<'a>(
        &'a self,
        scope: &'a Scope,
        reference: &'a str,
        new: NewValue,
    ) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>> {
        Box::pin(async move {
            match wanted(scope, reference) {
                Some(wanted) => self.renewed(wanted, new).await,
                None => Ok(None),
            }
        })
    }

    fn look<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<Option<SecretInfo>, SharedError>> {
        Box::pin(async move { self.row(scope, reference).await?.map(|row| info(&row.head)).transpose() })
    }

    fn open<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<Option<Secret>, SharedError>> {
        Box::pin(async move { self.row(scope, reference).await?.map(|row| self.seal.secret(&row)).transpose() })
    }

    fn list<'a>(&'a self, scope: &'a Scope) -> BoxFuture<'a, Result<Vec<SecretInfo>, SharedError>> {
        Box::pin(async move {
            let team = match scope {
                Scope::Host => None,
                Scope::Team(team) => Some(team.as_str()),
            };
            let (membership, mut all, mut after) = (self.membership()?, Vec::new(), String::new());
            loop {
                let page = membership.members().secrets(team, &after).await.map_err(store)?;
                let Some(last) = page.last() else { return Ok(all) };
                after.clone_from(&last.id);
                for head in &page {
                    match info(head) {
                        Ok(info) => all.push(info),
                        Err(error) => {
                            tracing::warn!(
                                id = head.id,
                                team = head.team,
                                error = chain(&error),
                                "a secret is left out of a list"
                            );
                        }
                    }
                }
            }
        })
    }

    fn remove<'a>(&'a self, scope: &'a Scope, reference: &'a str) -> BoxFuture<'a, Result<bool, SharedError>> {
        Box::pin(async move {
            let Some(wanted) = wanted(scope, reference) else { return Ok(false) };
            self.membership()?.remove_secret(wanted).await.map_err(store)
        })
    }

    fn key<'a>(&'a self, name: &'static str) -> BoxFuture<'a, Result<Option<Zeroizing<Vec<u8>>>, SharedError>> {
        Box::pin(async move {
            let membership = self.membership()?;
            let found = membership.members().shared_key(name).await.map_err(store)?;
            found.map(|row| self.opened(&row)).transpose()
        })
    }

    fn keep_key(&self, name: &'static str, key: Zeroizing<Vec<u8>>) -> BoxFuture<'_, Result<Zeroizing<Vec<u8>>, SharedError>> {
        Box::pin(async move {
            let row = SharedKeyRow { name: name.to_owned(), sealed: self.seal.seal(&key, (OF_A_KEY, name)) };
            self.opened(&self.membership()?.keep_shared_key(row).await.map_err(store)?)
        })
    }
}

/// Seals what a cluster has under its next secret.
struct Anew {
    from: Seal,
    to: Seal,
}

impl Reseal for Anew {
    fn secret(&mut self, row: &SecretRow) -> Option<Vec<u8>> {
        let of = (OF_A_SECRET, &row.head.body[..]);
        Some(self.to.seal(&self.from.open(&row.sealed, of)?, of))
    }

    fn key(&mut self, row: &SharedKeyRow) -> Option<Vec<u8>> {
        let of = (OF_A_KEY, &row.name[..]);
        Some(self.to.seal(&self.from.open(&row.sealed, of)?, of))
    }
}

/// Has a cluster be of another secret, with all that is sealed under the one that it had: what could not be opened is named, and stays. None where the
/// secret is what it was ([`Members::rotate`]).
pub async fn rotate(members: &Members, (from, to): (&ClusterSecret, &ClusterSecret)) -> Result<Option<Vec<String>>, StoreError> {
    let mut anew = Anew { from: Seal::of(from), to: Seal::of(to) };
    members.rotate(&to.fingerprint(), &mut anew).await
}
