//! The engines of a host. What was made by one is brought back by that one; what is new is made by the first, unless another is asked for.

use std::{io, path::Path, sync::Arc};

pub use firkin_engine::Acceleration;
use firkin_engine::{Engine, Fingerprint, Machine, OwnMemory, Safeguard, StartError};

use crate::host::disk::bytes_below;

/// The host does not have the engine that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this server has no engine `{}`, only {}: start it with `--engine {}` too", wanted.word(), words(here), wanted.word())]
pub struct NoEngine {
    /// What was asked for.
    pub wanted: Acceleration,
    /// What there is.
    pub here: Vec<Acceleration>,
}

fn words(all: &[Acceleration]) -> String {
    all.iter().map(|one| format!("`{}`", one.word())).collect::<Vec<_>>().join(", ")
}

/// Which of these is of the kind that made it; else the first of the same name, else the first.
pub(crate) fn which<'a>(all: impl Iterator<Item = &'a Fingerprint> + Clone, made: &Fingerprint) -> usize {
    let named = |engine: &Fingerprint| engine.engine == made.engine;
    let same = |engine: &Fingerprint| named(engine) && engine.acceleration == made.acceleration;
    all.clone().position(same).or_else(|| all.clone().position(named)).unwrap_or_default()
}

/// At least one.
#[derive(Debug, Clone)]
pub struct Engines {
    first: Arc<dyn Engine>,
    others: Vec<Arc<dyn Engine>>,
}

impl From<Arc<dyn Engine>> for Engines {
    fn from(only: Arc<dyn Engine>) -> Self {
        Self { first: only, others: Vec::new() }
    }
}

impl<E: Engine + 'static> From<Arc<E>> for Engines {
    fn from(only: Arc<E>) -> Self {
        Self::from(only as Arc<dyn Engine>)
    }
}

impl Engines {
    /// The first makes what is made for nobody's choice.
    pub fn new(first: Arc<dyn Engine>, others: Vec<Arc<dyn Engine>>) -> Self {
        Self { first, others }
    }

    /// The one that is used unless another is asked for.
    pub fn first(&self) -> &Arc<dyn Engine> {
        &self.first
    }

    /// All of them, the first first.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Engine>> + Clone {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The one that can tell whether it brings back what was made like this.
    pub(crate) fn of(&self, made: &Fingerprint) -> &Arc<dyn Engine> {
        let at = which(self.all().map(|engine| engine.fingerprint()), made);
        self.all().nth(at).unwrap_or(&self.first)
    }

    /// The one of the same name that made it, if there is one.
    pub(crate) fn its_own(&self, made: &Fingerprint) -> Option<&Arc<dyn Engine>> {
        Some(self.of(made)).filter(|engine| engine.fingerprint().engine == made.engine)
    }

    /// The one that was asked for, or the first.
    pub(crate) fn asked(&self, wanted: Option<Acceleration>) -> Result<&Arc<dyn Engine>, NoEngine> {
        let Some(wanted) = wanted else { return Ok(&self.first) };
        let found = self.all().find(|engine| engine.fingerprint().acceleration == wanted);
        found.ok_or_else(|| NoEngine { wanted, here: self.accelerations() })
    }

    /// Takes over the machine in `dir`, by the engine whose it is.
    pub(crate) async fn adopt(&self, dir: &Path) -> Result<(Arc<dyn Engine>, Box<dyn Machine>), StartError> {
        let engine = self.all().find(|engine| engine.has_started(dir)).unwrap_or(&self.first);
        Ok((Arc::clone(engine), engine.adopt(dir).await?))
    }

    /// What the machine in `dir` holds of the disk, whichever of them it is of, in bytes: what lies there, and what has no name. Blocks.
    pub(crate) fn bytes_of(&self, dir: &Path) -> io::Result<u64> {
        let engine = self.all().find(|engine| engine.has_started(dir));
        // One that is just ending has nothing to add.
        let unnamed = engine.and_then(|engine| engine.unnamed_bytes(dir).ok()).unwrap_or_default();
        Ok(bytes_below(dir)? + unnamed)
    }

    /// How they execute guests, the first first.
    pub(crate) fn accelerations(&self) -> Vec<Acceleration> {
        self.all().map(|engine| engine.fingerprint().acceleration).collect()
    }

    /// What keeps their machines from this host.
    pub(crate) fn safeguards(&self) -> Vec<Safeguard> {
        self.all().flat_map(|engine| engine.safeguards()).collect()
    }

    /// What a machine of any of them takes beside its guest, at most.
    pub(crate) fn own_memory(&self) -> OwnMemory {
        let each = || self.all().map(|engine| engine.own_memory());
        let most = |of: fn(OwnMemory) -> u64| each().map(of).max().unwrap_or_default();
        OwnMemory { usual_mib: most(|memory| memory.usual_mib), most_mib: most(|memory| memory.most_mib) }
    }
}
