//! Which builds there are: those under way in memory, with what they say; all of them in the store, also after they ended.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{BuildInfo, log::BuildLog};
use crate::{
    ground::{
        ids::{BuildId, TemplateId},
        reference::Tag,
    },
    shared::Shared,
    start::pool::WarmPool,
    storage::uploads::FilesInUse,
    store::{BuildReason, BuildRecord, StoreError},
};

/// Builds that run at a time. Most wait for commands of theirs; capacity is admitted besides.
const AT_ONCE: usize = 8;

/// Builds that are remembered after their end.
const MAX_ENDED: usize = 500;

impl BuildRecord {
    pub(crate) fn show(&self) -> BuildInfo {
        BuildInfo {
            id: self.id.to_string(),
            template_id: self.template_id.to_string(),
            tags: self.tags.iter().map(Tag::to_string).collect(),
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            disk_mib: self.disk_mib,
            state: self.state,
            reason: self.reason.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
            finished_at: self.finished_at,
        }
    }
}

/// A build that is under way.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) record: BuildRecord,
    pub(crate) log: BuildLog,
    /// Asks it to end. Its record has been removed by then.
    pub(crate) cancel: CancellationToken,
    /// Asks it to end, and to be on record as one that failed.
    pub(crate) abandoned: CancellationToken,
    /// Asks it to end because the disk has no room for what it writes.
    pub(crate) crowded_out: CancellationToken,
    /// Cancelled once it has, and all of its machine is gone.
    pub(crate) ended: CancellationToken,
}

/// A build that is under way, and what is only then.
#[derive(Debug)]
struct UnderWay {
    build: Arc<Live>,
    #[expect(dead_code, reason = "held, not read")]
    files: FilesInUse,
}

/// Who prepares a source, by its key.
type Turns = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// The builds of one runtime, and where they work.
#[derive(Debug)]
pub(crate) struct Builds {
    pub(crate) shared: Arc<Shared>,
    /// Keeps templates warm that builds make and replace.
    pub(super) pool: Arc<WarmPool>,
    live: Mutex<HashMap<BuildId, UnderWay>>,
    pub(crate) permits: Semaphore,
    turns: Turns,
    /// Signs what lets files in.
    pub(crate) signing_key: [u8; 32],
}

impl Builds {
    pub(crate) fn new(shared: Arc<Shared>, pool: Arc<WarmPool>) -> Arc<Self> {
        Arc::new(Self {
            shared,
            pool,
            live: Mutex::default(),
            permits: Semaphore::new(AT_ONCE),
            turns: Turns::default(),
            signing_key: crate::ground::random::bytes::<32>(),
        })
    }

    fn all_live(&self) -> MutexGuard<'_, HashMap<BuildId, UnderWay>> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a build that begins, with the files that it may copy; `None` if it has begun.
    pub(crate) fn begin(&self, record: BuildRecord, files: FilesInUse) -> Option<Arc<Live>> {
        let mut live = self.all_live();
        if live.contains_key(&record.id) {
            return None;
        }
        let id = record.id.clone();
        let begun = Arc::new(Live {
            record,
            log: BuildLog::default(),
            cancel: CancellationToken::new(),
            abandoned: CancellationToken::new(),
            crowded_out: CancellationToken::new(),
            ended: CancellationToken::new(),
        });
        live.insert(id, UnderWay { build: Arc::clone(&begun), files });
        Some(begun)
    }

    pub(crate) fn live(&self, id: &BuildId) -> Option<Arc<Live>> {
        self.all_live().get(id).map(|live| Arc::clone(&live.build))
    }

    /// Those of one template.
    pub(crate) fn live_of(&self, template: &TemplateId) -> Vec<Arc<Live>> {
        let all = self.all_live();
        let of_it = all.values().map(|live| &live.build).filter(|build| build.record.template_id == *template);
        of_it.cloned().collect()
    }

    /// Where the machine of each build writes, by the build's id.
    pub(crate) fn workplaces(&self) -> Vec<(BuildId, PathBuf)> {
        let place = |(id, live): (&BuildId, &UnderWay)| Some((id.clone(), live.build.log.workplace()?));
        self.all_live().iter().filter_map(place).collect()
    }

    /// Ends a build for which the disk has no room. Gives what is cancelled once it has ended, unless it has already.
    pub(crate) fn crowd_out(&self, id: &BuildId) -> Option<CancellationToken> {
        let live = self.live(id)?;
        live.crowded_out.cancel();
        Some(live.ended.clone())
    }

    /// Its record is in the store from now on, or nowhere.
    pub(crate) fn end(&self, live: &Live) {
        self.all_live().remove(&live.record.id);
        live.ended.cancel();
    }

    /// One at a time prepares what has this key.
    pub(crate) fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(key.to_owned()).or_default())
    }
}

/// Has builds of an earlier server end: their machines are gone with it.
pub(crate) async fn recover(shared: &Shared) -> Result<(), StoreError> {
    let message = "the server stopped before the build ended; build it again".to_owned();
    shared.store.fail_builds_under_way(BuildReason { message, step: "base".to_owned() }, Timestamp::now()).await
}

/// Forgets the oldest builds that ended, beyond what is kept, but none that a template stands on.
pub(crate) async fn forget_old(shared: &Shared) -> Result<(), StoreError> {
    shared.store.forget_ended_builds(MAX_ENDED).await
}

/// Ends the builds of a template, of which nothing is on record any more.
pub(crate) async fn cancel_all(builds: &Builds, template: &TemplateId) {
    let live: Vec<Arc<Live>> = builds.live_of(template);
    for build in &live {
        build.cancel.cancel();
    }
    for build in &live {
        build.ended.cancelled().await;
    }
}
