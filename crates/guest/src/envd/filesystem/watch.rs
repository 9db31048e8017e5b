//! Watches as clients see them: a stream of events, or a queue that is asked again and again.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use connectrpc::ConnectError;
use firkin_causes::chain;
use firkin_wire::envd::filesystem::{
    __buffa::oneof::watch_dir_response::Event,
    EventType, FilesystemEvent, WatchDirResponse,
    watch_dir_response::{KeepAlive, StartEvent},
};
use futures::{Stream, StreamExt, stream};
use tokio::task::AbortHandle;

use super::{
    blocking, entry,
    inotify::{Change, Tree, WatchError},
    io_error,
};
use crate::envd::{trouble::Trouble, users::UserDb};

/// Watches kept for clients that ask. One that is forgotten costs an inotify instance.
const MAX_WATCHERS: usize = 1024;

/// Events kept for a client that does not ask.
const MAX_PENDING: usize = 65_536;

/// File systems that other machines change unseen: NFS, CIFS, SMB, SMB2, FUSE (`linux/magic.h`).
const NETWORK_MAGICS: [i64; 5] = [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42, 0x6573_5546];

/// The directory to watch, and how.
#[derive(Debug)]
pub(super) struct WatchOptions {
    /// The directory.
    pub(super) path: PathBuf,
    /// Whether what is below its directories counts too.
    pub(super) recursive: bool,
    /// Whether events describe the file.
    pub(super) include_entry: bool,
    /// Whether a directory that other machines share will do.
    pub(super) allow_network_mounts: bool,
}

/// A watch in force.
#[derive(Debug)]
pub(super) struct Watcher {
    tree: Tree,
    root: PathBuf,
    include_entry: bool,
}

impl From<WatchError> for ConnectError {
    fn from(error: WatchError) -> Self {
        let text = chain(&error);
        match error {
            WatchError::TooMany => Self::failed_precondition(text),
            WatchError::Overflow => Self::data_loss(text),
            WatchError::Add { source, .. } => Trouble::of(&source).connect(text),
            WatchError::Open(_) | WatchError::Read(_) => Self::internal(text),
        }
    }
}

/// Begins to watch.
pub(super) fn open(options: &WatchOptions) -> Result<Watcher, ConnectError> {
    let shown = options.path.display();
    let found = fs_err::metadata(&options.path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ConnectError::not_found(format!("path {shown} not found: {error}")),
        _ => io_error(&error),
    })?;
    if !found.is_dir() {
        return Err(ConnectError::invalid_argument(format!("path {shown} not a directory")));
    }
    if !options.allow_network_mounts && is_network_mount(&options.path)? {
        return Err(ConnectError::invalid_argument(format!("cannot watch path on network filesystem: {shown}")));
    }
    let tree = Tree::open(&options.path, options.recursive)?;
    Ok(Watcher { tree, root: options.path.clone(), include_entry: options.include_entry })
}

fn is_network_mount(path: &PathBuf) -> Result<bool, ConnectError> {
    let found = nix::sys::statfs::statfs(path)
        .map_err(|error| ConnectError::internal(format!("cannot inspect the file system of `{}`: {error}", path.display())))?;
    Ok(NETWORK_MAGICS.contains(&found.filesystem_type().0))
}

impl Watcher {
    fn drain(&mut self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let changes = self.tree.drain()?;
        let db = if self.include_entry && !changes.is_empty() { UserDb::load()? } else { UserDb::default() };
        Ok(changes.into_iter().map(|change| self.event_of(&change, &db)).collect())
    }

    fn event_of(&self, change: &Change, db: &UserDb) -> FilesystemEvent {
        // After a removal or a rename, what is at the path now is something else.
        let lasting =
            matches!(change.kind, EventType::EVENT_TYPE_CREATE | EventType::EVENT_TYPE_WRITE | EventType::EVENT_TYPE_CHMOD);
        let wanted = self.include_entry && lasting;
        let entry = wanted.then(|| entry::describe(&super::paths::clean(&self.root.join(&change.name)), db).ok()).flatten();
        FilesystemEvent {
            name: change.name.to_string_lossy().into_owned(),
            r#type: change.kind.into(),
            entry: entry.into(),
            ..Default::default()
        }
    }
}

/// Waits until there may be events, then takes them.
async fn next_events(watcher: Watcher) -> Result<(Watcher, Vec<FilesystemEvent>), ConnectError> {
    let queue = watcher.tree.queue();
    let mut ready = queue.readable().await.map_err(|error| ConnectError::internal(error.to_string()))?;
    let mut watcher = watcher;
    let result = blocking(move || {
        let events = watcher.drain()?;
        Ok((watcher, events))
    })
    .await;
    ready.clear_ready();
    result
}

/// The events of one client: start, then changes and keep-alives until the client leaves.
pub(super) fn events(
    watcher: Watcher,
    keepalive: Duration,
) -> impl Stream<Item = Result<WatchDirResponse, ConnectError>> + Send + use<> {
    let start = response(StartEvent::default());
    // Kept over keep-alives: a wait that was dropped half way would lose the events it has taken.
    let first = Box::pin(next_events(watcher));
    let rest = stream::unfold((Some(first), VecDeque::new()), move |(waiting, mut pending)| async move {
        if let Some(event) = pending.pop_front() {
            return Some((Ok(response(event)), (waiting, pending)));
        }
        let mut waiting = waiting?;
        loop {
            match tokio::time::timeout(keepalive, &mut waiting).await {
                Err(_) => return Some((Ok(response(KeepAlive::default())), (Some(waiting), pending))),
                Ok(Err(error)) => return Some((Err(error), (None, pending))),
                Ok(Ok((watcher, events))) => {
                    waiting = Box::pin(next_events(watcher));
                    pending.extend(events);
                    if let Some(event) = pending.pop_front() {
                        return Some((Ok(response(event)), (Some(waiting), pending)));
                    }
                }
            }
        }
    });
    stream::once(async { Ok(start) }).chain(rest)
}

fn response(event: impl Into<Event>) -> WatchDirResponse {
    WatchDirResponse { event: Some(event.into()), ..Default::default() }
}

/// Watches whose events wait to be asked for.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<BTreeMap<String, Arc<Kept>>>);

/// One of them.
#[derive(Debug)]
pub(super) struct Kept {
    state: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    watcher: Watcher,
    events: Vec<FilesystemEvent>,
    failure: Option<ConnectError>,
    /// The task that empties the kernel's queue between two questions.
    task: Option<AbortHandle>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The events since the last question, up to this moment.
    pub(super) fn take(&self) -> Result<Vec<FilesystemEvent>, ConnectError> {
        let mut state = self.state();
        state.collect();
        match &state.failure {
            Some(error) => Err(error.clone()),
            None => Ok(std::mem::take(&mut state.events)),
        }
    }
}

impl Pending {
    fn collect(&mut self) {
        if self.failure.is_some() {
            return;
        }
        match self.watcher.drain() {
            Ok(events) if self.events.len() + events.len() > MAX_PENDING => {
                self.failure = Some(ConnectError::data_loss(format!("more than {MAX_PENDING} events were not asked for")));
                self.events = Vec::new();
            }
            Ok(mut events) => self.events.append(&mut events),
            Err(error) => self.failure = Some(error),
        }
    }
}

impl Watchers {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Kept>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a watch; answers its id. Needs a runtime.
    pub(super) fn keep(&self, watcher: Watcher) -> Result<String, ConnectError> {
        let mut all = self.all();
        if all.len() >= MAX_WATCHERS {
            return Err(ConnectError::failed_precondition(format!("{MAX_WATCHERS} watchers exist already; remove some")));
        }
        let id = new_id()?;
        let queue = watcher.tree.queue();
        let state = Pending { watcher, events: Vec::new(), failure: None, task: None };
        let kept = Arc::new(Kept { state: Mutex::new(state) });
        let weak = Arc::downgrade(&kept);
        let task = tokio::spawn(async move {
            while let Ok(mut ready) = queue.readable().await {
                let Some(kept) = weak.upgrade() else { return };
                let collected = tokio::task::spawn_blocking(move || {
                    kept.state().collect();
                    kept.state().failure.is_none()
                });
                if !collected.await.unwrap_or(false) {
                    return;
                }
                ready.clear_ready();
            }
        });
        kept.state().task = Some(task.abort_handle());
        all.insert(id.clone(), kept);
        Ok(id)
    }

    /// The watch of this id.
    pub(super) fn find(&self, id: &str) -> Result<Arc<Kept>, ConnectError> {
        self.all().get(id).cloned().ok_or_else(|| absent(id))
    }

    /// Ends a watch.
    pub(super) fn remove(&self, id: &str) -> Result<(), ConnectError> {
        self.all().remove(id).map(drop).ok_or_else(|| absent(id))
    }
}

fn absent(id: &str) -> ConnectError {
    ConnectError::not_found(format!("watcher with id {id} not found"))
}

/// From the kernel each time: a generator in our memory would repeat itself in every clone.
fn new_id() -> Result<String, ConnectError> {
    let number = getrandom::u64().map_err(|error| ConnectError::internal(format!("cannot draw random bytes: {error}")))?;
    Ok(format!("w{number:016x}"))
}
