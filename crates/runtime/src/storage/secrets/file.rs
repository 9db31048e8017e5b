//! The secrets of a host that has them alone: one file, sealed as a whole.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use firkin_files::private::{PRIVATE, read, replace};
use fs_err as fs;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::{MAX_SECRETS, NewValue, Secret, SecretError, SecretInfo};
use crate::ground::team::Scope;

/// Prefix of the sealed part, which the seal covers. The number is the version of the format.
const HEAD: &[u8] = b"firkin secrets 1\n";

/// Bytes of the key.
const KEY_BYTES: usize = 32;

/// The largest file that is written and read: all that the limits allow one team, and many teams whose secrets are of usual size.
const MAX_FILE_BYTES: u64 = 96 << 20;

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
pub(super) struct SealedFile {
    file: PathBuf,
    key_file: PathBuf,
    book: Mutex<Option<Book>>,
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are not for logs.
        f.debug_struct("Book").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl SealedFile {
    /// That of this directory. Nothing is read yet.
    pub(super) fn of(state_dir: &Path) -> Self {
        Self { file: state_dir.join("secrets"), key_file: state_dir.join("secrets.key"), book: Mutex::default() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.file
    }

    /// Keeps a new secret. Durable when this returns.
    pub(super) async fn add(&self, Secret { info, value }: Secret) -> Result<(), SecretError> {
        self.change(move |secrets| {
            let own = || secrets.values().filter(|kept| kept.info.owner == info.owner);
            if own().any(|kept| kept.info.name == info.name) {
                return Err(SecretError::Exists(info.name));
            }
            if own().count() >= MAX_SECRETS {
                return Err(SecretError::Limit);
            }
            secrets.insert(info.id.clone(), Kept { info, value: value.to_string() });
            Ok(())
        })
        .await
    }

    /// Replaces the value of a secret. The value before is forgotten.
    pub(super) async fn renew(&self, scope: &Scope, reference: &str, new: NewValue) -> Result<SecretInfo, SecretError> {
        let (scope, reference) = (scope.clone(), reference.to_owned());
        self.change(move |secrets| {
            let id = find(secrets, &scope, &reference)?;
            let kept = secrets.get_mut(&id).ok_or(SecretError::NotFound(reference))?;
            kept.value = new.value.to_string();
            kept.info.renew(new.metadata, new.at);
            Ok(kept.info.clone())
        })
        .await
    }

    /// A secret with its value, by id or name.
    pub(super) async fn find(&self, scope: &Scope, reference: &str) -> Result<Secret, SecretError> {
        let mut book = self.book.lock().await;
        let secrets = &self.opened(&mut book)?.secrets;
        let Kept { info, value } = &secrets[&find(secrets, scope, reference)?];
        Ok(Secret { info: info.clone(), value: Zeroizing::new(value.clone()) })
    }

    /// The public parts of all secrets, in no order.
    pub(super) async fn list(&self, scope: &Scope) -> Result<Vec<SecretInfo>, SecretError> {
        let mut book = self.book.lock().await;
        let infos = self.opened(&mut book)?.secrets.values().map(|kept| &kept.info);
        Ok(infos.filter(|info| scope.sees(&info.owner)).cloned().collect())
    }

    /// Forgets a secret and all its values.
    pub(super) async fn remove(&self, scope: &Scope, reference: &str) -> Result<(), SecretError> {
        let (scope, reference) = (scope.clone(), reference.to_owned());
        self.change(move |secrets| {
            let id = find(secrets, &scope, &reference)?;
            secrets.remove(&id);
            Ok(())
        })
        .await
    }

    /// All of them, with their values.
    pub(super) async fn all(&self) -> Result<Vec<Secret>, SecretError> {
        let mut book = self.book.lock().await;
        let whole = |kept: &Kept| Secret { info: kept.info.clone(), value: Zeroizing::new(kept.value.clone()) };
        Ok(self.opened(&mut book)?.secrets.values().map(whole).collect())
    }

    /// Forgets all but some; where nothing is left, the file goes.
    pub(super) async fn keep_only(&self, stays: impl Fn(&str) -> bool) -> Result<(), SecretError> {
        let left = self.change(|secrets| {
            secrets.retain(|id, _| stays(id));
            Ok(secrets.len())
        });
        if left.await? > 0 {
            return Ok(());
        }
        let file = self.file.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_file(file)).await.map_err(io::Error::other);
        removed.and_then(|removed| removed).map_err(|source| SecretError::File { path: self.file.clone(), source })
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
