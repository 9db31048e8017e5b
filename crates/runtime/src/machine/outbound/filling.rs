//! Values that are put into requests of a sandbox: secrets and identity tokens, which it never has.
//!
//! Everything that it takes belongs to the installation and not to a sandbox: its secrets, the key of its tokens, and the authority that
//! sandboxes with such rules trust. The authority is made when the first of them comes. Of hosts that share a catalogue, all of that is all hosts': a
//! sandbox goes on wherever its memory does, and trusts the same authority there.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use firkin_egress::{
    Authority, AuthorityError, HostName, Reference, Sides, Termination, Transform, TransformError, Transforms, TrustError,
    ValueError, Values,
};
use firkin_files::private;
use zeroize::Zeroizing;

use crate::{
    ground::team::Scope,
    storage::{
        secrets::{Held, SecretError, Secrets},
        workload::Workload,
    },
    store::spec::{Filled, Steered, WorkloadToken},
};

/// Why nothing can be put into requests.
#[derive(Debug, thiserror::Error)]
pub enum FillingError {
    /// The rules are none.
    #[error("cannot put these headers into requests")]
    Rules(#[from] TransformError),
    /// A rule names a token that the sandbox does not have.
    #[error("the sandbox has no identity token `{0}`")]
    NoToken(String),
    /// A rule names a secret that there is not.
    #[error("there is no secret `{0}`")]
    NoSecret(String),
    /// The rules name too many secrets, each of which has to be there while the sandbox runs.
    #[error("the rules of a sandbox of a cluster name at most {MAX_SECRETS_OF_SANDBOX} secrets, not {0}")]
    TooManySecrets(usize),
    /// Secrets cannot be read.
    #[error("cannot look for a secret")]
    Secret(#[source] SecretError),
    /// There is no authority to be trusted.
    #[error("cannot take the place of hosts")]
    Authority(#[from] AuthorityError),
    /// The authority of the cluster is none, or cannot be opened.
    #[error("the authority of the cluster cannot be opened: what is on record of it was changed")]
    SharedAuthority,
    /// No host can be believed.
    #[error("cannot speak with hosts")]
    Trust(#[from] TrustError),
}

impl FillingError {
    /// Whether what was asked for is at fault.
    pub(super) fn is_asked_for(&self) -> bool {
        match self {
            Self::Rules(_) | Self::NoToken(_) | Self::NoSecret(_) | Self::TooManySecrets(_) => true,
            Self::Secret(_) | Self::Authority(_) | Self::SharedAuthority | Self::Trust(_) => false,
        }
    }
}

/// How many secrets the rules of a sandbox may name where hosts share them: the value of each is remembered while it runs.
const MAX_SECRETS_OF_SANDBOX: usize = 100;

/// The authority of a host that is alone.
const FILE: &str = "egress-authority.pem";

/// What a key and a certificate have at most.
const MAX_PEM_BYTES: u64 = 64 << 10;

/// Where the authority is.
enum Place {
    /// In a file of this host's.
    File(PathBuf),
    /// With all hosts of the cluster, unless it cannot be opened.
    Shared(Option<Zeroizing<Vec<u8>>>),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Shared(_) => f.write_str("Shared"),
        }
    }
}

/// What an installation fills requests with.
#[derive(Debug)]
pub(crate) struct Filling {
    secrets: Arc<Secrets>,
    workload: Arc<Workload>,
    authority: Place,
    sides: Mutex<Option<(Arc<Authority>, Arc<Sides>)>>,
}

impl Filling {
    /// Nothing is read yet.
    pub(crate) fn of(state_dir: &Path, secrets: Arc<Secrets>, workload: Arc<Workload>) -> Arc<Self> {
        Arc::new(Self { secrets, workload, authority: Place::File(state_dir.join(FILE)), sides: Mutex::default() })
    }

    /// With the authority that this host shares with others, unless it cannot be opened.
    pub(crate) fn shared(authority: Option<Zeroizing<Vec<u8>>>, secrets: Arc<Secrets>, workload: Arc<Workload>) -> Arc<Self> {
        Arc::new(Self { secrets, workload, authority: Place::Shared(authority), sides: Mutex::default() })
    }

    /// An authority for all hosts: the one that this host has had alone, or a new one. Blocks.
    pub(crate) fn offer(state_dir: &Path) -> Result<Zeroizing<Vec<u8>>, FillingError> {
        match Self::own(state_dir)? {
            Some(own) => Ok(own),
            None => Ok(Zeroizing::new(Authority::make()?.into_bytes())),
        }
    }

    /// The authority that this host has had alone, if it is one. Blocks.
    pub(crate) fn own(state_dir: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, FillingError> {
        let file = state_dir.join(FILE);
        let own = private::read(&file, MAX_PEM_BYTES).map_err(|source| AuthorityError::File { path: file, source })?;
        Ok(own.map(Zeroizing::new).filter(|own| matches!(authority(own), Ok(Some(_)))))
    }

    /// The certificate that sandboxes must trust, PEM. Blocks.
    pub(crate) fn certificate(&self) -> Result<String, FillingError> {
        Ok(self.sides()?.0.certificate().to_owned())
    }

    /// All that it takes to keep these rules for this sandbox. Blocks.
    pub(super) fn termination(self: &Arc<Self>, sandbox: &str, steered: &Steered) -> Result<Option<Termination>, FillingError> {
        let Steered { filled: rules, tokens, team, .. } = steered;
        if rules.is_empty() {
            return Ok(None);
        }
        let transforms = Arc::new(transforms(rules)?);
        let missing = transforms.references().find_map(|reference| match reference {
            Reference::Token(name) if !tokens.contains_key(name) => Some(name.clone()),
            Reference::Token(_) | Reference::Secret(_) => None,
        });
        if let Some(name) = missing {
            return Err(FillingError::NoToken(name));
        }
        let values = OfSandbox {
            filling: Arc::clone(self),
            sandbox: sandbox.to_owned(),
            team: Scope::Team(team.clone()),
            tokens: tokens.clone(),
        };
        Ok(Some(Termination { transforms, values: Arc::new(values), sides: self.sides()?.1 }))
    }

    /// Refuses rules that name a secret which there is not. It may come and go later: then requests fail.
    pub(crate) async fn check_secrets(&self, steered: &Steered) -> Result<(), FillingError> {
        let team = Scope::Team(steered.team.clone());
        let names = self.named(steered)?;
        if self.secrets.are_shared() && names.len() > MAX_SECRETS_OF_SANDBOX {
            return Err(FillingError::TooManySecrets(names.len()));
        }
        for name in names {
            self.secrets.demand(&team, &name).await.map_err(|error| match error {
                SecretError::NotFound(name) => FillingError::NoSecret(name),
                other => FillingError::Secret(other),
            })?;
        }
        Ok(())
    }

    /// Has the values that these rules name be there for as long as what is given, whoever else is away meanwhile.
    pub(crate) async fn hold(&self, steered: &Steered) -> Result<Held, FillingError> {
        if steered.filled.is_empty() || !self.secrets.are_shared() {
            return Ok(Held::default());
        }
        Ok(self.secrets.hold(&steered.team, &self.named(steered)?).await)
    }

    /// The secrets that these rules need.
    fn named(&self, steered: &Steered) -> Result<Vec<String>, TransformError> {
        let transforms = transforms(&steered.filled)?;
        let names = transforms.references().filter_map(|reference| match reference {
            Reference::Secret(name) => Some(name.clone()),
            Reference::Token(_) => None,
        });
        Ok(self.secrets.each_once(names.collect()))
    }

    fn sides(&self) -> Result<(Arc<Authority>, Arc<Sides>), FillingError> {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = &*sides {
            return Ok(there.clone());
        }
        let authority = Arc::new(match &self.authority {
            Place::File(file) => Authority::open(file)?,
            Place::Shared(Some(pem)) => authority(pem)?.ok_or(FillingError::SharedAuthority)?,
            Place::Shared(None) => return Err(FillingError::SharedAuthority),
        });
        let made = (Arc::clone(&authority), Arc::new(Sides::new(authority, None)?));
        *sides = Some(made.clone());
        Ok(made)
    }
}

fn authority(pem: &[u8]) -> Result<Option<Authority>, AuthorityError> {
    std::str::from_utf8(pem).map_or(Ok(None), Authority::of)
}

fn transforms(rules: &[Filled]) -> Result<Transforms, TransformError> {
    let transform = |rule: &Filled| {
        let headers: Vec<_> = rule.headers.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let replaced = rule.placeholders.iter().cloned().map(Reference::Secret).collect();
        Transform::new(headers.into_iter(), replaced)
    };
    let rules: Vec<_> = rules.iter().map(|rule| Ok((rule.host.as_str(), transform(rule)?))).collect::<Result<_, _>>()?;
    Transforms::parse(rules.into_iter())
}

/// The values of one sandbox.
#[derive(Debug)]
struct OfSandbox {
    filling: Arc<Filling>,
    sandbox: String,
    /// Whose secrets it has.
    team: Scope,
    tokens: BTreeMap<String, WorkloadToken>,
}

#[async_trait]
impl Values for OfSandbox {
    async fn value(&self, reference: &Reference, host: &HostName) -> Result<Zeroizing<String>, ValueError> {
        let value = match reference {
            Reference::Secret(name) => self.filling.secrets.value(&self.team, name).await.map_err(|error| match error {
                SecretError::NotFound(_) => ValueError::None,
                other => ValueError::Failed(other.into()),
            })?,
            Reference::Token(name) => {
                let token = self.tokens.get(name).ok_or(ValueError::None)?;
                let minted = self.filling.workload.mint((&self.team.owner(), &self.sandbox), &token.audience);
                minted.map_err(|error| ValueError::Failed(error.into()))?
            }
        };
        tracing::debug!(sandbox = self.sandbox, %reference, %host, "a value is put into a request");
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::secrets::{Row, TeamSecrets};

    fn filling(dir: &Path) -> Arc<Filling> {
        let workload = Workload::of(dir, "https://firkin.test".to_owned());
        Filling::of(dir, Arc::new(Secrets::of(dir)), Arc::new(workload))
    }

    fn rule(text: &str) -> Steered {
        let headers = vec![("x".into(), text.into())];
        Steered { filled: vec![Filled { host: "a.test".into(), headers, placeholders: Vec::new() }], ..Steered::default() }
    }

    fn secrets(filling: &Filling) -> TeamSecrets<'_> {
        TeamSecrets { secrets: &filling.secrets, scope: &Scope::Host }
    }

    #[tokio::test]
    async fn rules_that_name_what_there_is_not_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let filling = filling(dir.path());
        let refused = filling.termination("i1", &rule("${e2b.identity.tokens.aws}")).unwrap_err();
        assert!(matches!(&refused, FillingError::NoToken(name) if name == "aws") && refused.is_asked_for());
        let secret = rule("${e2b.secrets.key}");
        assert!(matches!(filling.check_secrets(&secret).await.unwrap_err(), FillingError::NoSecret(name) if name == "key"));
        secrets(&filling).create("key", "VALUE".into(), BTreeMap::new()).await.unwrap();
        filling.check_secrets(&secret).await.unwrap();
        assert!(!dir.path().join("egress-authority.pem").exists(), "nobody has needed an authority yet");
    }

    #[tokio::test]
    async fn where_secrets_are_shared_a_sandbox_has_so_many_at_most_and_each_once() {
        let dir = tempfile::tempdir().unwrap();
        let row = Arc::new(Row::default());
        row.set(Some("VALUE"));
        let secrets = Arc::new(Secrets::shared(dir.path(), row).await.unwrap());
        let filling = Filling::of(dir.path(), secrets, Arc::new(Workload::of(dir.path(), "https://firkin.test".to_owned())));
        let named = |names: Vec<String>| Steered {
            filled: vec![Filled { host: "a.test".into(), headers: Vec::new(), placeholders: names }],
            ..Steered::default()
        };
        let many = |count: usize| (0..count).map(|n| format!("k{n}")).collect::<Vec<_>>();
        let most = named(many(MAX_SECRETS_OF_SANDBOX));
        filling.check_secrets(&most).await.unwrap();
        let refused = filling.check_secrets(&named(many(MAX_SECRETS_OF_SANDBOX + 1))).await.unwrap_err();
        assert!(matches!(refused, FillingError::TooManySecrets(101)) && refused.is_asked_for(), "{refused:?}");
        let spelt = named(["key", "KEY", "kEy", "sec_a", "sec_A"].map(str::to_owned).to_vec());
        assert_eq!(filling.named(&spelt).unwrap(), ["key", "sec_A", "sec_a"]);
    }

    #[tokio::test]
    async fn values_are_those_of_the_moment_and_of_the_sandbox() {
        let dir = tempfile::tempdir().unwrap();
        let filling = filling(dir.path());
        secrets(&filling).create("Key", "VALUE".into(), BTreeMap::new()).await.unwrap();
        let tokens = BTreeMap::from([("aws".to_owned(), WorkloadToken { audience: "sts.test".into() })]);
        let values = OfSandbox { filling: Arc::clone(&filling), sandbox: "i1".into(), team: Scope::Host, tokens };
        let host = "a.test".parse().unwrap();
        let value = async |reference| values.value(&reference, &host).await.map(|value| value.to_string());
        let secret = || Reference::Secret("key".into());
        assert_eq!(value(secret()).await.unwrap(), "VALUE");
        secrets(&filling).update("key", "NEWER".into(), None).await.unwrap();
        assert_eq!(value(secret()).await.unwrap(), "NEWER");
        secrets(&filling).destroy("key").await.unwrap();
        assert!(matches!(value(secret()).await.unwrap_err(), ValueError::None));
        assert_eq!(value(Reference::Token("aws".into())).await.unwrap().split('.').count(), 3);
        assert!(matches!(value(Reference::Token("gcp".into())).await.unwrap_err(), ValueError::None));
    }
}
