//! The owners of one runtime: where each is found, and what each is given besides its record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use super::Handle;
use crate::{
    shared::Shared,
    start::pool::WarmPool,
    store::spec::{SandboxId, SandboxState},
};

/// The owners of every sandbox, and what they share.
#[derive(Debug)]
pub(crate) struct Owners {
    pub(crate) shared: Arc<Shared>,
    /// Where a new one's session may be waiting.
    pub(crate) pool: Arc<WarmPool>,
    handles: Mutex<HashMap<SandboxId, Handle>>,
}

impl Owners {
    pub(crate) fn new(shared: Arc<Shared>, pool: Arc<WarmPool>) -> Arc<Self> {
        Arc::new(Self { shared, pool, handles: Mutex::default() })
    }

    /// How each is reached. Never held across a wait.
    pub(crate) fn handles(&self) -> MutexGuard<'_, HashMap<SandboxId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sandboxes that run now.
    pub(crate) fn running(&self) -> usize {
        self.handles().values().filter(|handle| handle.view.borrow().sandbox.state == SandboxState::Running).count()
    }

    /// Counts a sandbox that has just begun to run.
    pub(super) fn note_start(&self) {
        self.shared.activity.started(self.running(), Timestamp::now());
    }
}
