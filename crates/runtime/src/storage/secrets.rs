//! Secrets by name, each team's apart: written, replaced, listed and destroyed, and never read back by a client.
//!
//! A host that is alone has all of them in one file, sealed as a whole by ChaCha20-Poly1305 under a key that has a file of its own beside it: a copy
//! of one file without the other tells nothing, and a change of a single bit is noticed. The file is read when secrets are first
//! used, so that a damaged one does not keep a server from serving sandboxes (`secrets/file.rs`). Hosts that share a catalogue have them there, and
//! whoever knows that catalogue seals them (`secrets/shared.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use firkin_causes::chain;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ground::team::{Scope, TeamId};

mod file;
mod shared;

use file::SealedFile;
pub(crate) use shared::Held;
#[cfg(test)]
pub(crate) use shared::tests::Row;
pub use shared::{Added, SharedError, SharedSecrets};
use shared::{Shared, called};

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

/// Bytes of the metadata of one secret as JSON, where hosts share them: as much as the other limits allow, unless most of it has to be escaped.
pub const MAX_SHARED_METADATA_BYTES: usize = 96 << 10;

/// How many secrets that a host had alone are brought to where all have theirs, until they leave its file.
const BROUGHT_AT_ONCE: usize = 20;

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

impl SecretInfo {
    /// What it is once its value was replaced.
    pub fn renew(&mut self, metadata: Option<BTreeMap<String, String>>, at: Timestamp) {
        self.version += 1;
        self.updated_at = at;
        if let Some(metadata) = metadata {
            self.metadata = metadata;
        }
    }
}

/// A secret with its value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// What is told of it.
    pub info: SecretInfo,
    /// What is not.
    pub value: Zeroizing<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are not for logs.
        f.debug_struct("Secret").field("info", &self.info).finish_non_exhaustive()
    }
}

/// What a secret gets instead of what it had.
#[derive(Clone)]
pub struct NewValue {
    /// Its value.
    pub value: Zeroizing<String>,
    /// Its labels; none for those that it has.
    pub metadata: Option<BTreeMap<String, String>>,
    /// When.
    pub at: Timestamp,
}

impl fmt::Debug for NewValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values are not for logs.
        f.debug_struct("NewValue").field("metadata", &self.metadata).field("at", &self.at).finish_non_exhaustive()
    }
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
    /// The metadata is too much once it is written down.
    #[error("the metadata of a secret of a cluster has at most {MAX_SHARED_METADATA_BYTES} bytes as JSON, not {0}")]
    MetadataBytes(usize),
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
    /// Those of the cluster are not to be had now.
    #[error("the secrets of the cluster cannot be read or changed")]
    Shared(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cluster has it, and it cannot be opened.
    #[error(
        "secret `{0}` cannot be opened: what is on record of it was changed, or is sealed under another secret than the cluster's; give it its value again, or destroy it"
    )]
    Unreadable(String),
}

/// Where secrets are.
#[derive(Debug)]
enum Place {
    /// In a file of this host's.
    File(Box<SealedFile>),
    /// In the catalogue that this host shares with others.
    Shared(Shared),
}

/// All secrets of a host.
#[derive(Debug)]
pub struct Secrets(Place);

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

impl Secrets {
    /// Those of this directory. Nothing is read yet.
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self(Place::File(Box::new(SealedFile::of(state_dir))))
    }

    /// Those that this host shares with others. What it had of its own is brought there, as far as its names are free; the rest stays in its file,
    /// and is named.
    pub(crate) async fn shared(state_dir: &Path, rows: Arc<dyn SharedSecrets>) -> Result<Self, SecretError> {
        let own = SealedFile::of(state_dir);
        let is_there = own.path().try_exists().map_err(|source| SecretError::File { path: own.path().to_owned(), source })?;
        if is_there {
            bring(&own, &*rows).await?;
        }
        Ok(Self(Place::Shared(Shared::of(rows))))
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
        self.check_shared(&metadata)?;
        let (id, now) = (format!("{ID_PREFIX}{}", crate::ground::random::alphanumeric(20)), Timestamp::now());
        let info = SecretInfo { id, owner, name, version: 1, metadata, created_at: now, updated_at: now };
        let secret = Secret { info: info.clone(), value: Zeroizing::new(value) };
        match &self.0 {
            Place::File(file) => file.add(secret).await?,
            Place::Shared(shared) => match shared.rows().add(secret, MAX_SECRETS).await? {
                Added::Kept | Added::Before => shared.has_changed(),
                Added::NameTaken => return Err(SecretError::Exists(info.name)),
                Added::TooMany => return Err(SecretError::Limit),
            },
        }
        Ok(info)
    }

    /// Replaces the value of a secret, and its metadata if there is some. The value before is forgotten.
    async fn update(
        &self,
        scope: &Scope,
        (reference, value): (&str, String),
        metadata: Option<BTreeMap<String, String>>,
    ) -> Result<SecretInfo, SecretError> {
        check(&value, metadata.as_ref().unwrap_or(&BTreeMap::new()))?;
        metadata.as_ref().map_or(Ok(()), |metadata| self.check_shared(metadata))?;
        let new = NewValue { value: Zeroizing::new(value), metadata, at: Timestamp::now() };
        match &self.0 {
            Place::File(file) => file.renew(scope, reference, new).await,
            Place::Shared(shared) => {
                let renewed = shared.rows().renew(scope, reference, new).await;
                // Also where nobody knows whether it was.
                shared.has_changed();
                renewed?.ok_or_else(|| SecretError::NotFound(reference.to_owned()))
            }
        }
    }

    /// Refuses metadata that is too much for a row of all hosts.
    fn check_shared(&self, metadata: &BTreeMap<String, String>) -> Result<(), SecretError> {
        let bytes = || serde_json::to_vec(metadata).map_or(usize::MAX, |json| json.len());
        match &self.0 {
            Place::File(_) => Ok(()),
            Place::Shared(_) => Some(bytes())
                .filter(|bytes| *bytes > MAX_SHARED_METADATA_BYTES)
                .map_or(Ok(()), |bytes| Err(SecretError::MetadataBytes(bytes))),
        }
    }

    /// The public part of a secret, by id or name.
    pub(crate) async fn get(&self, scope: &Scope, reference: &str) -> Result<SecretInfo, SecretError> {
        match &self.0 {
            Place::File(file) => Ok(file.find(scope, reference).await?.info),
            Place::Shared(shared) => {
                let found = shared.rows().look(scope, reference).await?;
                found.ok_or_else(|| SecretError::NotFound(reference.to_owned()))
            }
        }
    }

    /// Whether a secret can be used by whoever begins now.
    pub(crate) async fn demand(&self, scope: &Scope, reference: &str) -> Result<(), SecretError> {
        match &self.0 {
            Place::File(_) => self.get(scope, reference).await.map(drop),
            Place::Shared(shared) => {
                let found = shared.rows().open(scope, reference).await?;
                found.map(drop).ok_or_else(|| SecretError::NotFound(reference.to_owned()))
            }
        }
    }

    /// Whether other hosts have them too.
    pub(crate) fn are_shared(&self) -> bool {
        matches!(self.0, Place::Shared(_))
    }

    /// Each of these once, where several spellings of a name would cost more than one.
    pub(crate) fn each_once(&self, references: BTreeSet<String>) -> Vec<String> {
        match self.0 {
            Place::File(_) => references.into_iter().collect(),
            Place::Shared(_) => {
                references.iter().map(|reference| called(reference)).collect::<BTreeSet<_>>().into_iter().collect()
            }
        }
    }

    /// Has the values be there for as long as what is given, as far as they are known.
    pub(crate) async fn hold(&self, team: &TeamId, references: &[String]) -> Held {
        match &self.0 {
            Place::File(_) => Held::default(),
            Place::Shared(shared) => shared.hold(team, references).await,
        }
    }

    /// The value of a secret, by id or name: for who puts it where it belongs, and for no client.
    pub(crate) async fn value(&self, scope: &Scope, reference: &str) -> Result<Zeroizing<String>, SecretError> {
        match &self.0 {
            Place::File(file) => Ok(file.find(scope, reference).await?.value),
            Place::Shared(shared) => shared.value(scope, reference).await,
        }
    }

    /// The public parts of all secrets, in no order.
    async fn list(&self, scope: &Scope) -> Result<Vec<SecretInfo>, SecretError> {
        match &self.0 {
            Place::File(file) => file.list(scope).await,
            Place::Shared(shared) => Ok(shared.rows().list(scope).await?),
        }
    }

    /// Forgets a secret and all its values.
    async fn destroy(&self, scope: &Scope, reference: &str) -> Result<(), SecretError> {
        match &self.0 {
            Place::File(file) => file.remove(scope, reference).await,
            Place::Shared(shared) => {
                let removed = shared.rows().remove(scope, reference).await;
                shared.has_changed();
                if removed? { Ok(()) } else { Err(SecretError::NotFound(reference.to_owned())) }
            }
        }
    }
}

/// Brings what is in a host's own file to where all have theirs. What is there leaves the file, some at a time; a crash before that leaves those
/// in both, and they are brought again, as what they were.
async fn bring(own: &SealedFile, rows: &dyn SharedSecrets) -> Result<(), SecretError> {
    let path = own.path().display();
    let secrets = match own.all().await {
        Ok(secrets) => secrets,
        Err(error) => {
            tracing::error!(file = %path, error = chain(&error), "the secrets that this host had alone cannot be read, and are not the cluster's");
            return Ok(());
        }
    };
    let (mut left, all) = (Vec::new(), secrets.len());
    if all == 0 {
        own.keep_only(|_| true).await?;
    }
    let mut secrets = secrets.into_iter();
    while secrets.len() > 0 {
        let (mut there, mut failed) = (BTreeSet::new(), None);
        for secret in secrets.by_ref().take(BROUGHT_AT_ONCE) {
            let info = secret.info.clone();
            match rows.add(secret, MAX_SECRETS).await {
                Ok(Added::Kept | Added::Before) => {
                    there.insert(info.id);
                }
                Ok(Added::NameTaken | Added::TooMany) => left.push(format!("`{}` of team `{}`", info.name, info.owner)),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if !there.is_empty() {
            own.keep_only(|id| !there.contains(id)).await?;
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
    }
    let brought = all - left.len();
    if left.is_empty() {
        tracing::info!(brought, "the secrets that this host had alone are the cluster's now");
    } else {
        let left = left.join(", ");
        tracing::warn!(
            file = %path, brought, left,
            "secrets that this host had alone are not the cluster's, which has others of their names, or too many: they stay in the file, and nothing uses them"
        );
    }
    Ok(())
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
    async fn what_was_brought_to_where_all_have_theirs_leaves_the_file_also_where_the_rest_could_not_be() {
        let dir = tempfile::tempdir().unwrap();
        let own = Secrets::of(dir.path());
        for n in 0..4 {
            host(&own).create(&format!("k{n}"), "v".into(), labels(0)).await.unwrap();
        }
        let row = Arc::new(Row::default());
        row.fails_at(3);
        let refused = Secrets::shared(dir.path(), Arc::clone(&row) as _).await.unwrap_err();
        assert!(matches!(refused, SecretError::Shared(_)), "{refused:?}");
        assert_eq!(host(&Secrets::of(dir.path())).list().await.unwrap().len(), 2, "two are brought");
        let all = Secrets::shared(dir.path(), row).await.unwrap();
        assert!(!dir.path().join("secrets").exists());
        // As many bytes as the other limits allow, and six times as many where each has to be escaped.
        let most =
            |byte: &str| (10..10 + MAX_METADATA).map(|n| (format!("{n}{}", byte.repeat(1022)), byte.repeat(1024))).collect();
        host(&all).create("plain", "v".into(), most("x")).await.unwrap();
        let refused = host(&all).create("escaped", "v".into(), most("\u{1}")).await.unwrap_err();
        assert!(matches!(refused, SecretError::MetadataBytes(_)), "{refused:?}");
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
