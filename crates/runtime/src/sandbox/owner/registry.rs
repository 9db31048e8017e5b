//! The owners of one runtime: where each is found, and what each is given besides its record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use firkin_wire::secret::equal;
use jiff::Timestamp;

use super::Handle;
use crate::{ground::team::TeamId, shared::Shared, start::pool::WarmPool, store::spec::SandboxId};

/// The owners of every sandbox, and what they share.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) shared: Arc<Shared>,
    /// Where a new one's session may be waiting.
    pub(crate) pool: Arc<WarmPool>,
    handles: Mutex<HashMap<SandboxId, Handle>>,
    /// Whose a token is, by its digest: a wrong one costs the same however many sandboxes there are.
    by_token: Mutex<HashMap<blake3::Hash, SandboxId>>,
}

impl Owners {
    pub(crate) fn new(shared: Arc<Shared>, pool: Arc<WarmPool>) -> Arc<Self> {
        Arc::new(Self { shared, pool, handles: Mutex::default(), by_token: Mutex::default() })
    }

    /// How each is reached. Never held across a wait.
    pub(crate) fn handles(&self) -> MutexGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on a sandbox is found, by its id and by its token, which it keeps for good.
    pub(super) fn register(&self, id: SandboxId, token: Option<&str>, handle: Handle) {
        if let Some(token) = token {
            self.by_token().insert(digest(token), id.clone());
        }
        self.handles().insert(id, handle);
    }

    /// It is found no more. Whether it was until now.
    pub(super) fn forget(&self, id: &SandboxId, token: Option<&str>) -> bool {
        if let Some(token) = token {
            self.by_token().remove(&digest(token));
        }
        self.handles().remove(id).is_some()
    }

    /// The sandbox that has this token.
    pub(crate) fn with_token(&self, token: &str) -> Option<SandboxId> {
        let id = self.by_token().get(&digest(token)).cloned()?;
        let handle = self.handles().get(&id).cloned()?;
        let own = handle.view.borrow().sandbox.envd_access_token.clone()?;
        equal(own.as_bytes(), token.as_bytes()).then_some(id)
    }

    fn by_token(&self) -> MutexGuard<'_, HashMap<blake3::Hash, SandboxId>> {
        self.by_token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sandboxes of a team that run now.
    fn running_of(&self, team: &TeamId) -> usize {
        self.handles().values().filter(|handle| handle.team == *team && handle.is_running()).count()
    }

    /// How many there are, and how many of them run.
    pub(crate) fn count(&self) -> (usize, usize) {
        let handles = self.handles();
        (handles.len(), handles.values().filter(|handle| handle.is_running()).count())
    }

    /// Sandboxes that run now, of each team that has any.
    pub(crate) fn running(&self) -> HashMap<TeamId, usize> {
        let mut running = HashMap::new();
        for handle in self.handles().values() {
            *running.entry(handle.team.clone()).or_default() += usize::from(handle.is_running());
        }
        running
    }

    /// Counts a sandbox of a team that has just begun to run.
    pub(super) fn note_start(&self, team: &TeamId) {
        self.shared.activity.started(team, self.running_of(team), Timestamp::now());
    }
}

/// What a token is found by. Nobody comes nearer to one by how long the search for its digest takes.
fn digest(token: &str) -> blake3::Hash {
    blake3::hash(token.as_bytes())
}
