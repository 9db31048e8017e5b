//! The `filesystem.Filesystem` service: look, list, make, move, remove, watch.
//!
//! Files are touched with the agent's own rights, as E2B's envd does: the user of a request decides what relative paths mean and
//! who owns what is created. Whoever holds the sandbox's token may name any user, root among them, so this admits nobody new.

mod entry;
mod inotify;
mod tree;
mod watch;

use std::{io, path::PathBuf};

use connectrpc::{ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream};
use firkin_wire::envd::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, Filesystem as FilesystemRpc, GetWatcherEventsRequest, GetWatcherEventsResponse,
    ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest, MoveResponse, RemoveRequest, RemoveResponse,
    RemoveWatcherRequest, RemoveWatcherResponse, StatRequest, StatResponse, WatchDirRequest, WatchDirResponse,
};
use futures::StreamExt;

use self::watch::{WatchOptions, Watchers};
use super::{
    auth, keepalive,
    paths::{self, PathError},
    state::EnvdState,
    trouble::Trouble,
    users::{User, UserDb},
};

/// Serves files.
#[derive(Debug)]
pub(crate) struct FilesystemService {
    state: EnvdState,
    watchers: Watchers,
}

/// Who asks, and what the machine's ids mean.
struct Caller {
    user: User,
    db: UserDb,
    default_workdir: Option<String>,
}

impl Caller {
    fn path(&self, path: &str) -> Result<PathBuf, ConnectError> {
        Ok(paths::resolve(path, &self.user, self.default_workdir.as_deref())?)
    }
}

impl From<PathError> for ConnectError {
    fn from(error: PathError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

impl FilesystemService {
    pub(crate) fn new(state: EnvdState) -> Self {
        Self { state, watchers: Watchers::default() }
    }

    fn caller(&self, ctx: &RequestContext) -> Result<Caller, ConnectError> {
        let settings = self.state.settings();
        let db = UserDb::load()?;
        let user = auth::user_of(ctx.headers(), &settings, &db)?;
        Ok(Caller { user, db, default_workdir: settings.default_workdir.clone() })
    }
}

/// Runs what touches the disk where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| ConnectError::internal(error.to_string()))?
}

/// An I/O error for the client. `fs-err` names the path.
fn io_error(error: &io::Error) -> ConnectError {
    match Trouble::of(error) {
        Trouble::Absent => ConnectError::not_found(format!("file not found: {error}")),
        trouble => trouble.connect(error.to_string()),
    }
}

impl FilesystemRpc for FilesystemService {
    async fn stat<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx)?;
        let path = caller.path(request.path)?;
        let entry = blocking(move || entry::describe(&path, &caller.db).map_err(|error| io_error(&error))).await?;
        Response::ok(StatResponse { entry: entry.into(), ..Default::default() })
    }

    async fn make_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx)?;
        let path = caller.path(request.path)?;
        let entry = blocking(move || tree::make_dir(&path, &caller.user, &caller.db)).await?;
        Response::ok(MakeDirResponse { entry: entry.into(), ..Default::default() })
    }

    async fn r#move<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx)?;
        let (source, destination) = (caller.path(request.source)?, caller.path(request.destination)?);
        let entry = blocking(move || tree::rename(&source, &destination, &caller.user, &caller.db)).await?;
        Response::ok(MoveResponse { entry: entry.into(), ..Default::default() })
    }

    async fn list_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let caller = self.caller(&ctx)?;
        let path = caller.path(request.path)?;
        // Zero is what a client that does not know the field sends.
        let depth = request.depth.max(1);
        let entries = blocking(move || tree::list(&path, depth, &caller.db)).await?;
        Response::ok(ListDirResponse { entries, ..Default::default() })
    }

    async fn remove<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let path = self.caller(&ctx)?.path(request.path)?;
        blocking(move || tree::remove(&path)).await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let options = WatchOptions {
            path: self.caller(&ctx)?.path(request.path)?,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let interval = keepalive::interval(ctx.headers());
        let watcher = blocking(move || watch::open(&options)).await?;
        Response::stream_ok(watch::events(watcher, interval).boxed())
    }

    async fn create_watcher<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let options = WatchOptions {
            path: self.caller(&ctx)?.path(request.path)?,
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watcher = blocking(move || watch::open(&options)).await?;
        let watcher_id = self.watchers.keep(watcher)?;
        Response::ok(CreateWatcherResponse { watcher_id, ..Default::default() })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let kept = self.watchers.find(request.watcher_id)?;
        let events = blocking(move || kept.take()).await?;
        Response::ok(GetWatcherEventsResponse { events, ..Default::default() })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        self.watchers.remove(request.watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }
}
