//! A store that all nodes have beside their disks: a bucket of S3, or a directory that all see. What holds a paused sandbox, and what templates are made of, is
//! copied there, and comes from there where no node that answers has it.
//!
//! ```text
//!   installation.json             whose it is: the cluster's, by its id
//!   artifacts/<id>/archive.json   what its archive says of itself; written last
//!   blobs/<blake3>                what an archive carries, each content once, packed
//! ```
//!
//! What is kept is what an archive has in it, and what comes is an archive, checked as any is. So a copy says nothing of the host that made it. Which artifacts
//! are there whole is on record, not read off the store.

use std::{
    collections::HashSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use firkin_copies::{Backoff, Blob, Copies, CopyError, Digest, Name, NameError, Record};
use firkin_postgres::{Membership, Storing};
use firkin_runtime::{
    artifact::{
        AlreadyHere, Coming, FetchError, MemberIntegrity, Offered,
        archive::{Content, Packed, UnpackError, composed},
    },
    ids::ArtifactId,
    moving::ExportError,
    runtime::Runtime,
    store::StoreError,
};
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::OnceCell,
    time::{Instant, sleep, timeout},
};

/// What it is called where artifacts come from.
pub(crate) const PLACE: &str = "the store";

/// The version of what is written of whose it is.
const FORMAT: u32 = 1;

/// How long copying one artifact may take: less than until another node may begin with it.
const STORE_WITHIN: Duration = Duration::from_secs(45 * 60);

/// How long one may take to come: less than what is not needed any more is kept for.
const FETCH_WITHIN: Duration = Duration::from_secs(60 * 60);

/// The least for which what is not needed any more is kept: whoever has begun to fetch it has it by then.
pub const KEPT_AT_LEAST: Duration = Duration::from_secs(2 * 60 * 60);

/// How long one cleaning may take: less than until another node may begin.
const CLEAN_WITHIN: Duration = Duration::from_secs(45 * 60);

/// How many names are asked about at once.
const AT_A_TIME: usize = 500;

/// After a failure of the store itself it is left alone for so long, then for twice that, and so on.
const LEFT_FIRST: Duration = Duration::from_secs(2);

/// The longest that it is left alone.
const LEFT_LAST: Duration = Duration::from_secs(5 * 60);

/// Why something was not copied to the store, or the store not cleaned.
#[derive(Debug, thiserror::Error)]
pub enum StoreFailure {
    /// It does not take anything, or does not answer.
    #[error("the store does not do it")]
    Store(#[from] CopyError),
    /// It failed a moment ago.
    #[error("the store failed a moment ago, and is tried again in {} s", again_in.as_secs())]
    Failing {
        /// When.
        again_in: Duration,
    },
    /// What is there is another's, or was never the cluster's.
    #[error("the store is not that of this cluster: it is of `{found}`")]
    Foreign {
        /// Whose it is.
        found: String,
    },
    /// What is there does not say whose it is, in words of this version.
    #[error("the store does not say whose it is in words of this version")]
    Unreadable(#[source] serde_json::Error),
    /// The artifact is not here as it must be.
    #[error("the artifact cannot be read here")]
    Export(#[from] ExportError),
    /// What is here of it has a digest that is none.
    #[error("the artifact has a digest that is none")]
    Digest(#[from] NameError),
    /// Another node is at it, or something of it is being removed there just now.
    #[error("another node is at it")]
    Others,
    /// It took too long, so that another may have begun.
    #[error("it takes too long")]
    Late,
    /// The records are away.
    #[error("cannot look what the store has")]
    Records(#[from] StoreError),
}

impl StoreFailure {
    /// Whether the store would fail at anything else too.
    fn is_of_the_store(&self) -> bool {
        match self {
            Self::Store(error) => !matches!(error, CopyError::Damaged { .. } | CopyError::File { .. } | CopyError::Absent { .. }),
            Self::Foreign { .. } | Self::Unreadable(_) | Self::Late => true,
            Self::Failing { .. } | Self::Export(_) | Self::Digest(_) | Self::Others | Self::Records(_) => false,
        }
    }
}

/// Whose copies are at a place, as a single server writes it too.
#[derive(Debug, Serialize, Deserialize)]
struct Installation {
    format: u32,
    id: String,
}

/// The store of a cluster, as one of its nodes has it.
#[derive(Debug)]
pub struct Store {
    copies: Copies,
    keep: Duration,
    clean_every: Duration,
    /// That it is the cluster's was seen.
    is_ours: OnceCell<()>,
    /// Until when it is left alone, and how long the next time.
    left: Mutex<(Backoff, Option<Instant>)>,
}

impl Store {
    /// The store that is reached by `copies`. What no row needs any more is kept there for as long as `keep`, and what is to go is looked for every
    /// `clean_every`, by one node at a time. Nothing is asked yet.
    pub fn of(copies: Copies, keep: Duration, clean_every: Duration) -> Arc<Self> {
        let left = Mutex::new((Backoff::new(LEFT_FIRST, LEFT_LAST), None));
        Arc::new(Self { copies, keep, clean_every, is_ours: OnceCell::new(), left })
    }

    /// Copies an artifact of this node there, with all that it stands on: what is there already is not sent. It is on record there when this returns.
    pub(crate) async fn keep(
        &self,
        membership: &Membership,
        runtime: &Runtime,
        artifact: &ArtifactId,
    ) -> Result<(), StoreFailure> {
        self.answering(async {
            self.demand_ours(membership).await?;
            let kept = timeout(STORE_WITHIN, self.keep_whole(membership, runtime, artifact)).await;
            kept.unwrap_or(Err(StoreFailure::Late))
        })
        .await
    }

    async fn keep_whole(&self, membership: &Membership, runtime: &Runtime, artifact: &ArtifactId) -> Result<(), StoreFailure> {
        // It stays here as long as this is held.
        let export = runtime.export_artifact(artifact).await?;
        let contents: Vec<Content> = export.contents().collect();
        let digests = contents.iter().map(|content| content.integrity.blake3.clone()).collect();
        let anew = match membership.begin_storing(artifact, digests).await? {
            Storing::Begun { anew } => anew,
            Storing::Whole => return Ok(()),
            Storing::Others | Storing::Going => return Err(StoreFailure::Others),
        };
        let begun = Instant::now();
        for content in contents {
            let blob = blob_of(&content.integrity)?;
            if !anew && self.copies.has(&blob.blake3).await? {
                continue;
            }
            let path = content.path().to_owned();
            let opened = path.clone();
            let open = Box::new(move || match content.open() {
                Ok(open) => Ok(open as Box<dyn io::Read>),
                Err(source) => Err(CopyError::File { path: opened, source }),
            });
            self.copies.put_read(&blob, &path, open).await?;
        }
        self.copies.put_record(&Record::Archive(name_of(artifact)), export.header().to_vec()).await?;
        let ms = begun.elapsed().as_millis();
        tracing::info!(%artifact, anew, ms, "an artifact is in the store of the cluster");
        if membership.stored(artifact).await? { Ok(()) } else { Err(StoreFailure::Late) }
    }

    /// What the store has of an artifact, if it has it. Nobody is asked whether it is on record there: what comes is checked.
    pub(crate) async fn offer(self: &Arc<Self>, artifact: &ArtifactId) -> Result<Option<Offered>, StoreFailure> {
        let found = self.answering(async { Ok(self.copies.record(&Record::Archive(name_of(artifact))).await?) }).await;
        let header: Bytes = match found {
            Ok(header) => header.into(),
            Err(StoreFailure::Store(CopyError::Absent { .. })) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (store, said) = (Arc::clone(self), header.clone());
        let take = Box::new(move |here| async move { store.take(said, here) }.boxed());
        Ok(Some(Offered { place: PLACE.to_owned(), header, take }))
    }

    fn take(self: Arc<Self>, header: Bytes, here: AlreadyHere) -> Result<Coming, FetchError> {
        let without: HashSet<String> = here.whole.into_iter().collect();
        // What has begun is packed there, and comes again from its beginning.
        let coming = composed(header, &without, move |content| self.content(content));
        let away =
            |source: io::Error| FetchError::Away { place: format!("{PLACE} does not give it"), source: Some(source.into()) };
        Ok(coming.map_err(away)?.take_until(sleep(FETCH_WITHIN)).boxed())
    }

    fn content(&self, content: MemberIntegrity) -> BoxFuture<'static, io::Result<Packed>> {
        let copies = self.copies.clone();
        Box::pin(async move {
            let blob = blob_of(&content).map_err(io::Error::other)?;
            Ok(copies.packed(&blob).await.map_err(io::Error::other)?.map_err(io::Error::other).boxed())
        })
    }

    /// Removes what no row has needed for long enough, if it is this node's turn. How many files went.
    pub(crate) async fn clean(&self, membership: &Membership) -> Result<usize, StoreFailure> {
        self.answering(async {
            self.demand_ours(membership).await?;
            if !membership.begin_cleaning(self.clean_every).await? {
                return Ok(0);
            }
            let cleaned = timeout(CLEAN_WITHIN, self.clean_now(membership)).await.unwrap_or(Err(StoreFailure::Late));
            membership.end_cleaning(cleaned.is_ok()).await?;
            cleaned
        })
        .await
    }

    async fn clean_now(&self, membership: &Membership) -> Result<usize, StoreFailure> {
        let forgotten = membership.forget_stored(self.keep).await?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        // What nobody has on record may be of records that came back from a backup: it is kept for as long as what was.
        let old = i64::try_from(now.saturating_sub(self.keep).as_secs()).unwrap_or(i64::MAX);
        let archives = self.copies.archives().await?.into_iter().map(|(name, since)| (Lies::Archive(name), since));
        let blobs = self.copies.blobs().await?.into_iter().map(|(digest, since)| (Lies::Blob(digest), since));
        let candidates: Vec<Lies> = archives.chain(blobs).filter(|(_, since)| *since <= old).map(|(lies, _)| lies).collect();
        let mut gone = 0;
        for some in candidates.chunks(AT_A_TIME) {
            let names = some.iter().map(Lies::name).collect();
            let going = membership.let_go(names).await?.ok_or(StoreFailure::Late)?;
            let going: HashSet<String> = going.into_iter().collect();
            for lies in some.iter().filter(|lies| going.contains(&lies.name())) {
                match lies {
                    Lies::Archive(name) => self.copies.remove_record(&Record::Archive(name.clone())).await?,
                    Lies::Blob(digest) => self.copies.remove_blob(digest).await?,
                }
                gone += 1;
            }
        }
        tracing::debug!(artifacts = forgotten, files = gone, "the store was cleaned");
        Ok(gone)
    }

    /// That the store is this cluster's. Where nobody has used it, it is from now on: unless something is on record there.
    async fn demand_ours(&self, membership: &Membership) -> Result<(), StoreFailure> {
        let look = || async {
            let id = membership.cluster().id.clone();
            let found = match self.copies.record(&Record::Installation).await {
                Ok(text) => serde_json::from_slice::<Installation>(&text).map_err(StoreFailure::Unreadable)?,
                Err(CopyError::Absent { .. }) if membership.has_stored().await? => {
                    return Err(StoreFailure::Foreign { found: "nobody".to_owned() });
                }
                Err(CopyError::Absent { .. }) => {
                    let ours = Installation { format: FORMAT, id: id.clone() };
                    let text = serde_json::to_vec_pretty(&ours).map_err(StoreFailure::Unreadable)?;
                    self.copies.put_record(&Record::Installation, text).await?;
                    ours
                }
                Err(error) => return Err(error.into()),
            };
            if found.id == id && found.format == FORMAT { Ok(()) } else { Err(StoreFailure::Foreign { found: found.id }) }
        };
        self.is_ours.get_or_try_init(look).await.copied()
    }

    /// Does something with the store, unless that failed a moment ago.
    async fn answering<T>(&self, doing: impl Future<Output = Result<T, StoreFailure>>) -> Result<T, StoreFailure> {
        let until = self.left.lock().unwrap_or_else(PoisonError::into_inner).1;
        if let Some(again_in) = until.and_then(|until| until.checked_duration_since(Instant::now())) {
            return Err(StoreFailure::Failing { again_in });
        }
        let done = doing.await;
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let (backoff, until) = &mut *left;
        match &done {
            Err(error) if error.is_of_the_store() => {
                // Of many who were at it, one says for how long.
                if until.is_none_or(|until| until <= Instant::now()) {
                    let wait = backoff.next_wait();
                    *until = Some(Instant::now() + wait);
                    tracing::warn!(
                        error = firkin_causes::chain(error),
                        again_in_s = wait.as_secs(),
                        "the store of the cluster fails"
                    );
                }
            }
            Ok(_) => {
                backoff.worked();
                *until = None;
            }
            Err(_) => {}
        }
        done
    }
}

/// Whether what came of an artifact shows that the store's copy of it is not what it must be: not where it only broke off on its way.
pub(crate) fn is_bad_copy(error: &FetchError) -> bool {
    match error {
        FetchError::Away { .. } | FetchError::Disk(_) => false,
        FetchError::Another { .. } => true,
        FetchError::Unpack(UnpackError::Read { source, .. } | UnpackError::NotAnArchive(source)) => {
            // What the store said of it, and otherwise it cannot be unpacked.
            let said = source.get_ref().and_then(|source| source.downcast_ref::<CopyError>());
            said.is_none_or(|said| matches!(said, CopyError::Absent { .. } | CopyError::Damaged { .. }))
        }
        FetchError::Unpack(_) => true,
    }
}

/// What lies in the store.
enum Lies {
    Archive(Name),
    Blob(Digest),
}

impl Lies {
    fn name(&self) -> String {
        match self {
            Self::Archive(name) => name.to_string(),
            Self::Blob(digest) => digest.to_string(),
        }
    }
}

fn name_of(artifact: &ArtifactId) -> Name {
    artifact.as_str().parse().expect("an id has 1 to 64 letters, digits, `-` and `_`, and so have names")
}

fn blob_of(content: &MemberIntegrity) -> Result<Blob, NameError> {
    Ok(Blob { blake3: content.blake3.parse()?, bytes: content.bytes })
}
