//! Values that are put into requests of a sandbox: secrets and identity tokens, which it never has.
//!
//! Everything that it takes belongs to the installation and not to a sandbox: its secrets, the key of its tokens, and the authority that
//! sandboxes with such rules trust. The authority is made when the first of them comes.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use firkin_egress::{
    Authority, AuthorityError, HostName, Reference, Sides, Termination, Transform, TransformError, Transforms, TrustError,
    ValueError, Values,
};
use zeroize::Zeroizing;

use crate::{
    ground::team::Scope,
    storage::{
        secrets::{SecretError, Secrets},
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
    /// Secrets cannot be read.
    #[error("cannot look for a secret")]
    Secret(#[source] SecretError),
    /// There is no authority to be trusted.
    #[error("cannot take the place of hosts")]
    Authority(#[from] AuthorityError),
    /// No host can be believed.
    #[error("cannot speak with hosts")]
    Trust(#[from] TrustError),
}

impl FillingError {
    /// Whether what was asked for is at fault.
    pub(super) fn is_asked_for(&self) -> bool {
        match self {
            Self::Rules(_) | Self::NoToken(_) | Self::NoSecret(_) => true,
            Self::Secret(_) | Self::Authority(_) | Self::Trust(_) => false,
        }
    }
}

/// What an installation fills requests with.
#[derive(Debug)]
pub(crate) struct Filling {
    secrets: Arc<Secrets>,
    workload: Arc<Workload>,
    file: PathBuf,
    sides: Mutex<Option<(Arc<Authority>, Arc<Sides>)>>,
}

impl Filling {
    /// Nothing is read yet.
    pub(crate) fn of(state_dir: &Path, secrets: Arc<Secrets>, workload: Arc<Workload>) -> Arc<Self> {
        Arc::new(Self { secrets, workload, file: state_dir.join("egress-authority.pem"), sides: Mutex::default() })
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
        for reference in transforms(&steered.filled)?.references() {
            if let Reference::Secret(name) = reference {
                self.secrets.get(&team, name).await.map_err(|error| match error {
                    SecretError::NotFound(name) => FillingError::NoSecret(name),
                    other => FillingError::Secret(other),
                })?;
            }
        }
        Ok(())
    }

    fn sides(&self) -> Result<(Arc<Authority>, Arc<Sides>), FillingError> {
        let mut sides = self.sides.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = &*sides {
            return Ok(there.clone());
        }
        let authority = Arc::new(Authority::open(&self.file)?);
        let made = (Arc::clone(&authority), Arc::new(Sides::new(authority, None)?));
        *sides = Some(made.clone());
        Ok(made)
    }
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
    use crate::storage::secrets::TeamSecrets;

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
