//! Contexts: a language, a directory and the kernel that keeps what cells have made; in the order of their creation.
//!
//! Each language has a default context, made when it is first wanted. Those of Python and JavaScript are there from the start,
//! as the contract has it, and Python's kernel is running. Node keeps random state that cannot all be renewed, so no template of
//! ours holds one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firkin_causes::chain;
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard, OwnedSemaphorePermit, Semaphore};

use super::{
    Setup,
    group::Group,
    kernel::{Kernel, Launcher, StartError},
    language::Language,
};
use crate::{
    envd::{EnvdState, Settings},
    reaper::Reaper,
};

/// Contexts at once beside the default ones: each holds a process of 50 MB and more.
const MAX_CONTEXTS: usize = 64;

/// The name of Python's default context, beside its id.
const DEFAULT: &str = "default";

/// How long a restart waits for the cell that it has cut off.
const CUT_DEADLINE: Duration = Duration::from_secs(10);

/// A context.
#[derive(Debug)]
pub(super) struct Context {
    /// Its id, a UUID.
    pub(super) id: String,
    /// Its language.
    pub(super) language: Language,
    /// Where its kernel starts.
    pub(super) cwd: String,
    is_default: bool,
    /// Its place among [`MAX_CONTEXTS`]; the default contexts need none.
    _place: Option<OwnedSemaphorePermit>,
    /// The kernel; whoever holds the lock runs a cell. Cells wait here in order.
    kernel: AsyncMutex<Option<Kernel>>,
    /// To signal a kernel whose lock another holds.
    group: Mutex<Option<Group>>,
}

/// A context as the API shows it.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    id: String,
    language: &'static str,
    cwd: String,
}

/// Why a context is not made or renewed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    /// Too many.
    #[error("cannot create another context: there are {MAX_CONTEXTS}")]
    TooMany,
    /// No kernel.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The cell that runs does not end.
    #[error("cannot restart the kernel: it does not end")]
    Stuck,
}

/// All contexts.
#[derive(Debug, Clone)]
pub(super) struct Contexts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    launcher: Launcher,
    list: Mutex<Vec<Arc<Context>>>,
    places: Arc<Semaphore>,
    ready: AtomicBool,
}

impl Contexts {
    /// The contexts of a fresh interpreter. Starts the default Python kernel; needs a runtime.
    pub(super) fn new(setup: Setup, state: EnvdState, reaper: Reaper) -> Self {
        let launcher = Launcher::new(setup, state, reaper);
        let places = Arc::new(Semaphore::new(MAX_CONTEXTS));
        let contexts = Self(Arc::new(Inner { launcher, list: Mutex::default(), places, ready: AtomicBool::new(false) }));
        let python = contexts.default_of(Language::Python);
        if Language::JavaScript.is_installed(&contexts.settings().env) {
            contexts.default_of(Language::JavaScript);
        }
        let starting = contexts.clone();
        // Not joined: it ends by itself, and the interpreter lives as long as the process.
        tokio::spawn(async move {
            let mut kernel = python.kernel.lock().await;
            match starting.ensure(&python, &mut kernel).await {
                Ok(()) => starting.0.ready.store(true, Ordering::Release),
                Err(error) => tracing::error!(error = chain(&error), "the Python kernel does not start"),
            }
        });
        contexts
    }

    /// Whether the default Python kernel has become ready.
    pub(super) fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// The sandbox's settings.
    pub(super) fn settings(&self) -> Arc<Settings> {
        self.0.launcher.state.settings()
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Context>>> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All, in the order of their creation.
    pub(super) fn shown(&self) -> Vec<Shown> {
        self.list().iter().map(|context| context.shown()).collect()
    }

    /// The context of this id.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Context>> {
        if id == DEFAULT {
            return Some(self.default_of(Language::Python));
        }
        self.list().iter().find(|context| context.id == id).cloned()
    }

    /// The default context of a language; its kernel starts with its first cell.
    pub(super) fn default_of(&self, language: Language) -> Arc<Context> {
        let mut list = self.list();
        if let Some(found) = list.iter().find(|context| context.is_default && context.language == language) {
            return Arc::clone(found);
        }
        let context = Arc::new(Context::new(language, self.0.launcher.setup.workdir.clone(), None));
        list.push(Arc::clone(&context));
        context
    }

    /// Makes a context whose kernel is running.
    pub(super) async fn create(&self, language: Language, cwd: Option<String>) -> Result<Shown, ContextError> {
        let place = Arc::clone(&self.0.places).try_acquire_owned().map_err(|_| ContextError::TooMany)?;
        let cwd = cwd.unwrap_or_else(|| self.0.launcher.setup.workdir.clone());
        let context = Arc::new(Context::new(language, cwd, Some(place)));
        self.ensure(&context, &mut *context.kernel.lock().await).await?;
        self.list().push(Arc::clone(&context));
        Ok(context.shown())
    }

    /// Ends the kernel of a context, whatever it does, and starts another.
    pub(super) async fn restart(&self, context: &Context) -> Result<(), ContextError> {
        context.kill();
        let locked = tokio::time::timeout(CUT_DEADLINE, context.kernel.lock()).await;
        let mut kernel = locked.map_err(|_| ContextError::Stuck)?;
        *kernel = None;
        Ok(self.ensure(context, &mut kernel).await?)
    }

    /// Forgets a context and ends its kernel; whether there was one.
    pub(super) fn remove(&self, id: &str) -> bool {
        let mut list = self.list();
        let Some(at) = list.iter().position(|context| context.id == id) else { return false };
        // A cell that runs hears of the kernel's end; the last to hold the context drops it.
        list.remove(at).kill();
        true
    }

    /// Starts the kernel of a context if it has none or a dead one.
    pub(super) async fn ensure(&self, context: &Context, kernel: &mut Option<Kernel>) -> Result<(), StartError> {
        if kernel.as_ref().is_some_and(|kernel| !kernel.is_dead()) {
            return Ok(());
        }
        *kernel = None;
        let started = |group| *context.group() = Some(group);
        *kernel = Some(self.0.launcher.start(context.language, &context.cwd, started).await?);
        Ok(())
    }
}

impl Context {
    fn new(language: Language, cwd: String, place: Option<OwnedSemaphorePermit>) -> Self {
        let (is_default, id) = (place.is_none(), uuid());
        Self { id, language, cwd, is_default, _place: place, kernel: AsyncMutex::default(), group: Mutex::default() }
    }

    fn group(&self) -> MutexGuard<'_, Option<Group>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> Shown {
        Shown { id: self.id.clone(), language: self.language.name(), cwd: self.cwd.clone() }
    }

    /// Waits for its turn to run a cell.
    pub(super) async fn turn(&self) -> AsyncMutexGuard<'_, Option<Kernel>> {
        self.kernel.lock().await
    }

    fn kill(&self) {
        if let Some(group) = self.group().take() {
            group.signal(Signal::SIGKILL);
        }
    }
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel has a random generator");
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
