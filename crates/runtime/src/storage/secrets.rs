//! Secrets by name, each team's apart: written, replaced, listed and destroyed, and never read back by a client.
//!
//! All of them are one file, sealed as a whole by ChaCha20-Poly1305 under a key that has a file of its own beside it: a copy of
//! one file without the other tells nothing, and a change of a single bit is noticed. The file is read when secrets are first
//! used, so that a damaged one does not keep a server from serving sandboxes.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use firkin_files::private::{PRIVATE, read, replace};
use jiff::Timestamp;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use crate::ground::team::{Scope, TeamId};

/// Prefix of the sealed part, which the seal covers. The number is the version of the format.
const HEAD: &[u8] = b"firkin secrets 1\n";

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// Secrets of a team: each costs memory and a part of the file that every change writes anew.
pub const MAX_SECRETS: usize = 1000;

/// Bytes of one value: keys, tokens and certificates are far smaller.
pub const MAX_VALUE_BYTES: usize = 16 << 10;

/// Bytes of a name.
pub const MAX_NAME_BYTES: usize = 128;

/// Entries of metadata, by contract.
pub const MAX_METADATA: usize = 32;

/// Bytes of one key or value of metadata.
pub const MAX_METADATA_BYTES: usize = 1024;

/// The largest file that is written and read: all that the limits above allow one team, and many teams whose secrets are of usual size.
const MAX_FILE_BYTES: u64 = 96 << 20;

/// The prefix of ids, which no name may have.
const ID_PREFIX: &str = "sec_";

/// The public part of a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretInfo {
    /// Its id, `sec_` and more.
    pub id: String,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "TeamId::is_first")]
    pub owner: TeamId,
    /// Its name, in lower case, unique in its team.
    pub name: String,
    /// Counts its values, from 1.
    pub version: u64,
    /// Free labels.
    pub metadata: BTreeMap<String, String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its value was last replaced.
    pub updated_at: Timestamp,
}

/// Why something was not done with a secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The name cannot be one.
    #[error(
        "a secret's name has 1 to {MAX_NAME_BYTES} bytes, no control characters and no braces, and does not begin with `{ID_PREFIX}`"
    )]
    Name,
    /// The value is empty or too long.
    #[error("a secret's value has 1 to {MAX_VALUE_BYTES} bytes, not {0}")]
    Value(usize),
    /// The metadata is too much.
    #[error("a secret has at most {MAX_METADATA} entries of metadata, each of at most {MAX_METADATA_BYTES} bytes")]
    Metadata,
    /// The name is in use.
    #[error("a secret with the name `{0}` exists already")]
    Exists(String),
    /// There is none.
    #[error("secret `{0}` not found")]
    NotFound(String),
    /// There are too many.
    #[error("cannot keep more than {MAX_SECRETS} secrets")]
    Limit,
    /// A file cannot be read or written.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file was changed, or belongs to another key or version.
    #[error("cannot unseal `{}` with the key beside it", path.display())]
    Sealed {
        /// Which one.
        path: PathBuf,
    },
}

/// One secret as it is kept.
#[derive(Clone, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    info: SecretInfo,
    value: String,
}

/// The secrets that were read, with the key that seals them.
struct Book {
    key: LessSafeKey,
    secrets: BTreeMap<String, Kept>,
}

/// All secrets of a state directory.
#[derive(Debug)]
pub struct Secrets {
    file: PathBuf,
    key_file: PathBuf,
    book: Mutex<Option<Book>>,
}

/// The secrets of one team, or of the host: all by id, and the first team's by name.
#[derive(Debug, Clone, Copy)]
pub struct TeamSecrets<'a> {
    pub(crate) secrets: &'a Secrets,
    pub(crate) scope: &'a Scope,
}

impl TeamSecrets<'_> {
    /// Keeps a new secret. Durable when this returns.
    pub async fn create(&self, name: &str, value: String, metadata: BTreeMap<String, String>) -> Result<SecretInfo, SecretError> {
        self.secrets.create(self.scope.owner(), (name, value), metadata).await
    }

    /// Replaces the value of a secret, and its metadata if there is some. The value before is forgotten.
    pub async fn update(
        &self,
        reference: &str,
        value: String,
        metadata: Option<BTreeMap<String, String>>,
    ) -> Result<SecretInfo, SecretError> {
        self.secrets.update(self.scope, (reference, value), metadata).await
    }

    /// The public part of a secret, by id or name.
    pub async fn get(&self, reference: &str) -> Result<SecretInfo, SecretError> {
        self.secrets.get(self.scope, reference).await
    }

    /// The public parts of all secrets, in no order.
    pub async fn list(&self) -> Result<Vec<SecretInfo>, SecretError> {
        self.secrets.list(self.scope).await
    }

    /// Forgets a secret and all its values.
    pub async fn destroy(&self, reference: &str) -> Result<(), SecretError> {
        self.secrets.destroy(self.scope, reference).await
    }
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are not for logs.
        f.debug_struct("Book").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl Secrets {
    /// Those of this directory. Nothing is read yet.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self { file: state_dir.join("secrets"), key_file: state_dir.join("secrets.key"), book: Mutex::default() }
    }

    /// Keeps a new secret. Durable when this returns.
    async fn create(
        &self,
        owner: TeamId,
        (name, value): (&str, String),
        metadata: BTreeMap<String, String>,
    ) -> Result<SecretInfo, SecretError> {
        let name = name.to_lowercase();
        check_name(&name)?;
        check(&value, &metadata)?;
        self.change(move |secrets| {
            let own = || secrets.values().filter(|kept| kept.info.owner == owner);
            if own().any(|kept| kept.info.name == name) {
                return Err(SecretError::Exists(name));
            }
            if own().count() >= MAX_SECRETS {
                return Err(SecretError::Limit);
            }
            let (id, now) = (format!("{ID_PREFIX}{}", crate::ground::random::alphanumeric(20)), Timestamp::now());
            let info = SecretInfo { id: id.clone(), owner, name, version: 1, metadata, created_at: now, updated_at: now };
            secrets.insert(id, Kept { info: info.clone(), value });
            Ok(info)
        })
        .await
    }

    /// Replaces the value of a secret, and its metadata if there is some. The value before is forgotten.
    async fn update(
        &self,
        scope: &Scope,
        (reference, value): (&str, String),
        metadata: Option<BTreeMap<String, String>>,
    ) -> Result<SecretInfo, SecretError> {
        check(&value, metadata.as_ref().unwrap_or(&BTreeMap::new()))?;
        let (scope, reference) = (scope.clone(), reference.to_owned());
        self.change(move |secrets| {
            let id = find(secrets, &scope, &reference)?;
            let kept = secrets.get_mut(&id).ok_or(SecretError::NotFound(reference))?;
            kept.value = value;
            kept.info.version += 1;
            kept.info.updated_at = Timestamp::now();
            if let Some(metadata) = metadata {
                kept.info.metadata = metadata;
            }
            Ok(kept.info.clone())
        })
        .await
    }

    /// The public part of a secret, by id or name.
    pub(crate) async fn get(&self, scope: &Scope, reference: &str) -> Result<SecretInfo, SecretError> {
        let mut book = self.book.lock().await;
        let secrets = &self.opened(&mut book)?.secrets;
        let id = find(secrets, scope, reference)?;
        Ok(secrets[&id].info.clone())
    }

    /// The value of a secret, by id or name: for who puts it where it belongs, and for no client.
    pub(crate) async fn value(&self, scope: &Scope, reference: &str) -> Result<Zeroizing<String>, SecretError> {
        let mut book = self.book.lock().await;
        let secrets = &self.opened(&mut book)?.secrets;
        let id = find(secrets, scope, reference)?;
        Ok(Zeroizing::new(secrets[&id].value.clone()))
    }

    /// The public parts of all secrets, in no order.
    async fn list(&self, scope: &Scope) -> Result<Vec<SecretInfo>, SecretError> {
        let mut book = self.book.lock().await;
        let infos = self.opened(&mut book)?.secrets.values().map(|kept| &kept.info);
        Ok(infos.filter(|info| scope.sees(&info.owner)).cloned().collect())
    }

    /// Forgets a secret and all its values.
    async fn destroy(&self, scope: &Scope, reference: &str) -> Result<(), SecretError> {
        let (scope, reference) = (scope.clone(), reference.to_owned());
        self.change(move |secrets| {
            let id = find(secrets, &scope, &reference)?;
            secrets.remove(&id);
            Ok(())
        })
        .await
    }

    /// Changes a copy, writes it, and lets it count only then.
    async fn change<T>(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Kept>) -> Result<T, SecretError>,
    ) -> Result<T, SecretError> {
        let mut guard = self.book.lock().await;
        let book = self.opened(&mut guard)?;
        let mut secrets = book.secrets.clone();
        let answer = change(&mut secrets)?;
        let (sealed, file) = (seal(&book.key, &secrets), self.file.clone());
        // All teams' together: what is not read again must not be written.
        if sealed.len() as u64 > MAX_FILE_BYTES {
            return Err(SecretError::Limit);
        }
        let written = tokio::task::spawn_blocking(move || replace(&file, &sealed, PRIVATE)).await.map_err(io::Error::other);
        written.and_then(|written| written).map_err(|source| SecretError::File { path: self.file.clone(), source })?;
        book.secrets = secrets;
        Ok(answer)
    }

    /// The secrets, read now unless they were before. One small file: not worth a thread of its own.
    fn opened<'a>(&self, book: &'a mut Option<Book>) -> Result<&'a mut Book, SecretError> {
        if book.is_none() {
            let key = key(&self.key_file).map_err(|source| SecretError::File { path: self.key_file.clone(), source })?;
            let sealed = read(&self.file, MAX_FILE_BYTES);
            let sealed = sealed.map_err(|source| SecretError::File { path: self.file.clone(), source })?;
            let secrets = match sealed {
                None => BTreeMap::new(),
                Some(sealed) => unseal(&key, sealed).ok_or_else(|| SecretError::Sealed { path: self.file.clone() })?,
            };
            *book = Some(Book { key, secrets });
        }
        Ok(book.as_mut().expect("it was opened above"))
    }
}

fn check_name(name: &str) -> Result<(), SecretError> {
    let bad = |c: char| c.is_control() || c == '{' || c == '}' || c == '/';
    let good = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(bad) && !name.starts_with(ID_PREFIX);
    if good { Ok(()) } else { Err(SecretError::Name) }
}

fn check(value: &str, metadata: &BTreeMap<String, String>) -> Result<(), SecretError> {
    if !(1..=MAX_VALUE_BYTES).contains(&value.len()) {
        return Err(SecretError::Value(value.len()));
    }
    let long = |(key, value): (&String, &String)| key.len() > MAX_METADATA_BYTES || value.len() > MAX_METADATA_BYTES;
    if metadata.len() > MAX_METADATA || metadata.iter().any(long) { Err(SecretError::Metadata) } else { Ok(()) }
}

/// The id of the scope's secret that has this id or name.
fn find(secrets: &BTreeMap<String, Kept>, scope: &Scope, reference: &str) -> Result<String, SecretError> {
    let name = reference.to_lowercase();
    let owner = scope.owner();
    let named = |kept: &&Kept| kept.info.name == name && kept.info.owner == owner;
    let by_id = secrets.get(reference).filter(|kept| scope.sees(&kept.info.owner));
    let found = by_id.or_else(|| secrets.values().find(named));
    found.map(|kept| kept.info.id.clone()).ok_or_else(|| SecretError::NotFound(reference.to_owned()))
}

fn seal(key: &LessSafeKey, secrets: &BTreeMap<String, Kept>) -> Vec<u8> {
    // A nonce is drawn for each change of a small file: a billion changes are far from a likely repetition.
    let nonce = crate::ground::random::bytes::<NONCE_LEN>();
    let all: Vec<&Kept> = secrets.values().collect();
    let mut body = serde_json::to_vec(&all).expect("maps with text as keys are JSON");
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(HEAD), &mut body)
        .expect("the file is far below the cipher's limit");
    [HEAD, &nonce, &body].concat()
}

fn unseal(key: &LessSafeKey, sealed: Vec<u8>) -> Option<BTreeMap<String, Kept>> {
    let rest = sealed.strip_prefix(HEAD)?;
    let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
    let mut body = body.to_vec();
    let text = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(HEAD), &mut body).ok()?;
    let all: Vec<Kept> = serde_json::from_slice(text).ok()?;
    Some(all.into_iter().map(|kept| (kept.info.id.clone(), kept)).collect())
}

/// The key, made now if there is none.
fn key(path: &Path) -> io::Result<LessSafeKey> {
    let bytes = match read(path, KEY_BYTES as u64)? {
        Some(bytes) => bytes,
        None => {
            let bytes = crate::ground::random::bytes::<KEY_BYTES>().to_vec();
            replace(path, &bytes, PRIVATE)?;
            bytes
        }
    };
    let unusable = |_| io::Error::new(io::ErrorKind::InvalidData, format!("a key has {KEY_BYTES} bytes, this {}", bytes.len()));
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(unusable)?))
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    fn host(secrets: &Secrets) -> TeamSecrets<'_> {
        TeamSecrets { secrets, scope: &Scope::Host }
    }

    fn labels(count: usize) -> BTreeMap<String, String> {
        (0..count).map(|n| (format!("k{n}"), "v".to_owned())).collect()
    }

    #[tokio::test]
    async fn secrets_outlive_a_restart_sealed_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let all = Secrets::of(dir.path());
        let made = host(&all).create("OpenAI", "sk-very-secret".into(), labels(1)).await.unwrap();
        assert_eq!((made.name.as_str(), made.version), ("openai", 1));
        let file = fs::read(dir.path().join("secrets")).unwrap();
        for clear in ["sk-very-secret", "openai", &made.id] {
            assert!(!file.windows(clear.len()).any(|window| window == clear.as_bytes()), "{clear} is not on the disk");
        }

        let again = Secrets::of(dir.path());
        let again = host(&again);
        assert_eq!(again.get("openai").await.unwrap(), made);
        let updated = again.update(&made.id, "other".into(), None).await.unwrap();
        assert_eq!((updated.version, &updated.metadata), (2, &made.metadata));

        let mut damaged = fs::read(dir.path().join("secrets")).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        fs::write(dir.path().join("secrets"), damaged).unwrap();
        assert!(matches!(host(&Secrets::of(dir.path())).list().await, Err(SecretError::Sealed { .. })));
    }

    #[tokio::test]
    async fn each_team_has_secrets_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(dir.path());
        let team = |id: &str| Scope::Team(id.parse().unwrap());
        let (a, b) = (team("a"), team("b"));
        let of = |scope| TeamSecrets { secrets: &secrets, scope };
        let made = of(&a).create("key", "of a".into(), labels(0)).await.unwrap();
        for reference in ["key", &made.id] {
            assert!(matches!(of(&b).get(reference).await, Err(SecretError::NotFound(_))));
            assert!(matches!(of(&b).update(reference, "x".into(), None).await, Err(SecretError::NotFound(_))));
            assert!(matches!(of(&b).destroy(reference).await, Err(SecretError::NotFound(_))));
        }
        let other = of(&b).create("key", "of b".into(), labels(0)).await.unwrap();
        assert_eq!((of(&a).list().await.unwrap(), of(&b).get("key").await.unwrap()), (vec![made], other));
        assert_eq!(host(&secrets).list().await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(dir.path());
        let secrets = host(&secrets);
        for name in ["", "a{b", "a}", "a\nb", "a/b", "sec_x", "SEC_x", &"n".repeat(MAX_NAME_BYTES + 1)] {
            let refused = secrets.create(name, "v".into(), BTreeMap::new()).await;
            assert!(matches!(refused, Err(SecretError::Name)), "{name:?}");
        }
        for value in [String::new(), "v".repeat(MAX_VALUE_BYTES + 1)] {
            assert!(matches!(secrets.create("a", value, BTreeMap::new()).await, Err(SecretError::Value(_))));
        }
        assert!(matches!(secrets.create("a", "v".into(), labels(MAX_METADATA + 1)).await, Err(SecretError::Metadata)));
        secrets.create("a", "v".into(), labels(MAX_METADATA)).await.unwrap();
        assert!(matches!(secrets.create("A", "v".into(), BTreeMap::new()).await, Err(SecretError::Exists(_))));
        secrets.destroy("a").await.unwrap();
        assert!(matches!(secrets.destroy("a").await, Err(SecretError::NotFound(_))));
        assert!(matches!(secrets.update("a", "v".into(), None).await, Err(SecretError::NotFound(_))));
    }
}
