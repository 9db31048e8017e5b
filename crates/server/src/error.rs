//! Errors as clients see them. The only module that knows which failure is which status.
//!
//! Every answer is the contract's `{"code", "message"[, "error_code"]}`. Clients choose exceptions by `code` and `error_code`
//! and decide about a retry by `Should-Retry` and `Retry-After`, so both are stated wherever the default would be wrong.

use std::fmt;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use firkin_causes::chain;
use firkin_runtime::{
    admission::AdmissionError,
    agent::AgentError,
    artifact::IntegrityError,
    capacity::TeamQuotaError,
    disk::DiskPressure,
    launch::{BootError, LaunchError},
    memory_pressure::MemoryPressure,
    outbound::OutboundError,
    owner::{DeadlineError, KillError, NetworkError, ResumeError, RollbackError, SnapshotError},
    reference::NoTemplate,
    restore::SnapshotRestoreError,
    runtime::{DialError, ForkError, TeamError},
    sandbox::{CreateError, InvalidSandboxId, InvalidTimeout, MountsError, NoSuchSandbox, SandboxId},
    sandbox_quota::QuotaError,
    secrets::SecretError,
    store::{KeyScope, StoreError},
    trust::GuestTrustError,
};
use firkin_wire::rest;
use http::{HeaderValue, StatusCode, header};

use crate::{discreet::without_paths, logging::LogFilterError, nodes::NoRoom, target::InvalidTarget};

mod archives;
mod nodes;
mod relocating;
mod templates;

/// Seconds after which a full host may have room again: a sandbox ends or pauses about that often on a busy one.
const CAPACITY_RETRY_SECONDS: u32 = 1;

/// Seconds after which a full queue may have a place again: all who wait in it now have been let in or refused by then.
const QUEUE_RETRY_SECONDS: u32 = 5;

/// A database that was restarted is back by then, or its standby serves.
const CATALOG_RETRY_SECONDS: u32 = 5;

/// Seconds after which a host that was short of memory may have some: its pressure is an average of so many.
const MEMORY_RETRY_SECONDS: u32 = 10;

/// Seconds after which a team may have ended something of its own.
const TEAM_QUOTA_RETRY_SECONDS: u32 = 5;

/// Seconds that a restart of the server takes.
const RESTART_RETRY_SECONDS: u32 = 5;

/// Advice for whoever asked for a restore that is refused.
#[derive(Debug, Clone, Copy)]
struct Remedies {
    /// The artifact is damaged.
    damaged: &'static str,
    /// It is larger than all that this server promises.
    too_large: &'static str,
}

/// A create.
const OF_A_TEMPLATE: Remedies = Remedies {
    damaged: "`firkin verify` says what is damaged; build the template again (one of the host's own with `firkin template build NAME \
              --force`), or create from another snapshot",
    too_large: "build the template smaller, or let the server promise more of its host",
};

/// A resume: what the sandbox holds is nowhere else.
const OF_A_SANDBOX: Remedies = Remedies {
    damaged: "`firkin sandbox resume --reboot` boots it from its files, if they are whole; `firkin verify` says what is damaged",
    too_large: "let the server promise more of its host, or resume it on a larger one",
};

/// A way back: the sandbox itself goes on.
const OF_A_CHECKPOINT: Remedies = Remedies {
    damaged: "roll back to another snapshot; `firkin verify` says what is damaged",
    too_large: OF_A_SANDBOX.too_large,
};

/// The kind of a refusal, attached to its answer for whoever counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ErrorKind(pub(crate) &'static str);

impl ErrorKind {
    fn of(status: StatusCode, error_code: Option<&'static str>) -> Self {
        Self(error_code.unwrap_or(match status {
            StatusCode::BAD_REQUEST => "bad_request",
            StatusCode::UNAUTHORIZED => "unauthorized",
            StatusCode::FORBIDDEN => "forbidden",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::REQUEST_TIMEOUT => "request_timeout",
            StatusCode::CONFLICT => "conflict",
            StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
            StatusCode::TOO_MANY_REQUESTS => "too_many_requests",
            StatusCode::BAD_GATEWAY => "sandbox_unreachable",
            StatusCode::SERVICE_UNAVAILABLE => "unavailable",
            _ => "other",
        }))
    }
}

/// What an answer of ours says, attached to it for whoever shows it otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// In words.
    pub(crate) message: String,
    /// In one word, if it has one.
    pub(crate) error_code: Option<String>,
    /// Seconds after which it may go better.
    pub(crate) retry_after_s: Option<u32>,
}

/// Whether a client should try again, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// The client's own rule fits.
    Unsaid,
    /// The same request will fail the same way.
    Never,
    /// The same request may succeed after so many seconds.
    After(u32),
}

/// A refusal, as the client sees it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    error_code: Option<&'static str>,
    retry: Retry,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), error_code: None, retry: Retry::Unsaid }
    }

    fn code(mut self, error_code: &'static str) -> Self {
        self.error_code = Some(error_code);
        self
    }

    fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The request is malformed, or asks for what is not offered.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// An option that would change behaviour and is not supported. Refused, so that nobody believes it is in force.
    pub(crate) fn unsupported(option: &str) -> Self {
        Self::bad_request(format!("`{option}` is not supported by this server; leave it out"))
    }

    /// No API key, or a wrong one.
    pub(crate) fn unauthorized(message: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, message)
    }

    /// The peer's signatures were nobody's, again and again.
    pub(crate) fn wrong_too_often() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too many signatures of this address were of no sandbox")
            .retry(Retry::After(CAPACITY_RETRY_SECONDS))
    }

    /// It asks for a host that this server does not answer to. The name is one that was understood.
    pub(crate) fn foreign_host(name: &str) -> Self {
        let message = format!(
            "this server does not answer to the host `{name}`; ask it by its address, as `localhost` or by a name of its domain, or have \
             its operator start it with `--allowed-host {name}`"
        );
        Self::new(StatusCode::MISDIRECTED_REQUEST, message).code("host_not_allowed").retry(Retry::Never)
    }

    /// Too much is under way of those who have shown no key.
    pub(crate) fn crowded() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too many connections are in use; requests with an API key are served")
            .retry(Retry::After(CAPACITY_RETRY_SECONDS))
    }

    /// As many watch as may.
    pub(crate) fn too_many_streams() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too many event streams are open").retry(Retry::After(CAPACITY_RETRY_SECONDS))
    }

    /// The key is good, and not for this.
    pub(crate) fn beyond_key(scope: KeyScope) -> Self {
        Self::forbidden(match scope {
            KeyScope::Read => "this API key is for looking only".to_owned(),
            KeyScope::Sandboxes => "this API key is for sandboxes only".to_owned(),
            KeyScope::Full => "this API key is not for this".to_owned(),
        })
    }

    /// It concerns more than one team.
    pub(crate) fn for_the_host() -> Self {
        Self::forbidden("this is for who administers the host".to_owned())
    }

    /// The team has as much as it may. Which sandboxes it has is its own affair, so that waiting may help or not.
    pub(crate) fn team_quota(error: &TeamQuotaError) -> Self {
        let seconds = match error {
            TeamQuotaError::Most { .. } => TEAM_QUOTA_RETRY_SECONDS,
            TeamQuotaError::Rate { wait_s, .. } => *wait_s,
        };
        Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).code("team_quota_exceeded").retry(Retry::After(seconds))
    }

    /// Who asks may not.
    pub(crate) fn forbidden(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// No such route.
    pub(crate) fn no_route(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("no route `{path}`"))
    }

    /// The route exists with other methods.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method not allowed")
    }

    /// The body is longer than the limit.
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the request body is longer than {limit} bytes"))
    }

    /// The client did not finish its request in time.
    pub(crate) fn request_timeout() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time")
    }

    /// No such template or snapshot.
    pub(crate) fn template_not_found(reference: &str) -> Self {
        NoTemplate::Absent(reference.to_owned()).into()
    }

    /// Something that is named is not there.
    pub(crate) fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Something that is there stands in the way.
    pub(crate) fn conflict(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// There are as many secrets as there may be.
    pub(crate) fn secret_limit(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, message).code("secret_limit_reached")
    }

    /// There is a secret, and it cannot be opened. Whoever may use it mends that, and no node is worse than another for it.
    pub(crate) fn secret_unreadable(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, message).code("secret_unreadable")
    }

    /// An idempotency key was used before with another body.
    pub(crate) fn idempotency_mismatch() -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "this idempotency key was used before with another request")
            .code("idempotency_request_mismatch")
    }

    /// The first request with this idempotency key has not ended.
    pub(crate) fn idempotency_in_progress() -> Self {
        Self::new(StatusCode::CONFLICT, "a request with this idempotency key is in progress")
            .code("idempotency_in_progress")
            .retry(Retry::After(CAPACITY_RETRY_SECONDS))
    }

    /// Its status.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Its answer as programs get it, also where others get a page.
    pub(crate) fn into_json(self) -> Response {
        let mut response = self.into_response();
        response.extensions_mut().remove::<Told>();
        response
    }

    /// Why envd did not do what it was asked for.
    pub(crate) fn of_envd(error: &connectrpc::ConnectError) -> Self {
        use connectrpc::ErrorCode;
        let words = error.message.clone().unwrap_or_else(|| error.code.as_str().to_owned());
        match error.code {
            ErrorCode::NotFound => Self::not_found(words),
            ErrorCode::PermissionDenied => Self::forbidden(words),
            ErrorCode::AlreadyExists => Self::conflict(words),
            ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition | ErrorCode::ResourceExhausted => Self::bad_request(words),
            _ => Self::new(StatusCode::BAD_GATEWAY, words),
        }
    }

    /// There are as many terminals as there may be.
    pub(crate) fn too_many_terminals(most: usize) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, format!("{most} terminals are open in pages, which is the limit: close one"))
            .retry(Retry::After(TEAM_QUOTA_RETRY_SECONDS))
    }

    /// As many cells run in pages as may at once, or of the team as may of one.
    pub(crate) fn too_many_cells(most: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            format!("some cells of pages run already, of all teams at most {most}: wait for one"),
        )
        .retry(Retry::After(TEAM_QUOTA_RETRY_SECONDS))
    }

    /// The guest of a sandbox did not do what it was asked for.
    pub(crate) fn unreachable(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::BAD_GATEWAY, chain(error))
    }

    /// The body that answers it, for a place inside a larger answer.
    pub(crate) fn to_body(&self) -> rest::Error {
        let error_code = self.error_code.map(str::to_owned);
        let mut message = self.message.clone();
        if self.status.is_server_error() {
            let (shown, reference) = without_paths(&self.message).unzip();
            let status = self.status.as_u16();
            tracing::warn!(status, error_code = self.error_code, reference = reference.as_deref(), message = %self.message, "request failed");
            message = shown.unwrap_or(message);
        }
        rest::Error { code: self.status.as_u16(), message, error_code }
    }

    /// What went wrong is ours. Where it is that the catalogue is not there, that passes.
    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        let causes = std::iter::successors(Some(error), |error| error.source());
        if causes.clone().any(|error| matches!(error.downcast_ref(), Some(SecretError::Unreadable(_)))) {
            return Self::secret_unreadable(chain(error));
        }
        match causes.filter_map(|error| error.downcast_ref::<StoreError>()).next() {
            Some(StoreError::Away { .. }) => Self::catalog_away(error).retry(Retry::After(CATALOG_RETRY_SECONDS)),
            // To do it again may be to do it twice.
            Some(StoreError::Unknown { .. }) => Self::catalog_away(error).retry(Retry::Never),
            _ => Self::failed(error),
        }
    }

    fn catalog_away(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(error)).code("catalog_unavailable")
    }

    fn failed(error: &dyn std::error::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(error)).code("internal_server_error").retry(Retry::Never)
    }

    fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping").retry(Retry::After(RESTART_RETRY_SECONDS))
    }

    pub(crate) fn disk(what: &(dyn std::error::Error + 'static), pressure: &DiskPressure) -> Self {
        match pressure {
            DiskPressure::BelowFloor { .. } | DiskPressure::OverBudget { .. } => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("{}; free space, or delete templates and snapshots", chain(what)),
            )
            .code("sandbox_capacity_unavailable")
            .retry(Retry::Never),
            DiskPressure::ProbeFailed { .. } => Self::internal(what),
        }
    }

    /// As much is kept for who asks as may be, and this would be more.
    pub(crate) fn quota(what: &dyn std::error::Error, remedy: &str) -> Self {
        Self::new(StatusCode::INSUFFICIENT_STORAGE, format!("{}; {remedy}", chain(what))).retry(Retry::Never)
    }

    fn sandbox_quota(what: &(dyn std::error::Error + 'static), source: &QuotaError) -> Self {
        match source {
            QuotaError::Disk { .. } => {
                Self::quota(what, "delete snapshots of it, or have the server give each more (`--sandbox-disk-quota`)")
            }
            QuotaError::Snapshots { .. } => {
                Self::quota(what, "delete one, or have the server keep more (`--max-snapshots-per-sandbox`)")
            }
            QuotaError::Team(error) => Self::team_quota(error),
            QuotaError::Disks(_) | QuotaError::Unmeasured(_) | QuotaError::Store(_) => Self::internal(what),
        }
    }

    fn admission(what: &(dyn std::error::Error + 'static), refused: &AdmissionError, remedies: Remedies) -> Self {
        match refused {
            // Not the server's state but what was asked of it: no server of this size will ever do it.
            AdmissionError::NeverFits(_) => Self::bad_request(format!("{}; {}", chain(what), remedies.too_large))
                .code("sandbox_no_compatible_node")
                .retry(Retry::Never),
            AdmissionError::QueueFull { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                .code("sandbox_capacity_unavailable")
                .retry(Retry::After(QUEUE_RETRY_SECONDS)),
            AdmissionError::Memory(MemoryPressure::ProbeFailed(_)) => Self::internal(what),
            AdmissionError::Memory(MemoryPressure::BelowFloor { .. } | MemoryPressure::Stalled { .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                    .code("sandbox_capacity_unavailable")
                    .retry(Retry::After(MEMORY_RETRY_SECONDS))
            }
            // It has waited already.
            AdmissionError::Deadline { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                .code("sandbox_placement_timeout")
                .retry(Retry::After(CAPACITY_RETRY_SECONDS)),
        }
    }

    fn outbound(refused: &OutboundError) -> Self {
        if refused.is_asked_for() { Self::bad_request(chain(refused)) } else { Self::internal(refused) }
    }

    fn restore(what: &(dyn std::error::Error + 'static), source: &SnapshotRestoreError, remedies: Remedies) -> Self {
        match source {
            SnapshotRestoreError::Admission(refused) => Self::admission(what, refused, remedies),
            // Until the lease is held again, and watched.
            SnapshotRestoreError::Launch(LaunchError::Fence(_))
            | SnapshotRestoreError::Boot(BootError::Up { source: LaunchError::Fence(_), .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                    .code("catalog_unavailable")
                    .retry(Retry::After(CATALOG_RETRY_SECONDS))
            }
            SnapshotRestoreError::Network(_) | SnapshotRestoreError::Launch(LaunchError::Network(_)) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                    .code("sandbox_capacity_unavailable")
                    .retry(Retry::After(CAPACITY_RETRY_SECONDS))
            }
            SnapshotRestoreError::DiskPressure(pressure) => Self::disk(what, pressure),
            SnapshotRestoreError::FilesInMemory(_) => Self::bad_request(chain(what)),
            // It says itself what helps.
            SnapshotRestoreError::Sealed { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(what)).code("sandbox_create_failed").retry(Retry::Never)
            }
            SnapshotRestoreError::Incompatible { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(what)).code("sandbox_no_compatible_node").retry(Retry::Never)
            }
            SnapshotRestoreError::Integrity { source: IntegrityError::Elsewhere(why), .. } => Self::elsewhere(what, why),
            SnapshotRestoreError::Integrity { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{}; {}", chain(what), remedies.damaged))
                    .code("sandbox_create_failed")
                    .retry(Retry::Never)
            }
            SnapshotRestoreError::Boot(BootError::Network(_)) => Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(what))
                .code("sandbox_capacity_unavailable")
                .retry(Retry::After(CAPACITY_RETRY_SECONDS)),
            // An option that the guest cannot keep.
            SnapshotRestoreError::Launch(LaunchError::Agent(AgentError::NoVolumes)) => {
                Self::bad_request(format!("{}; build the template again, or leave `volumeMounts` out", chain(what)))
            }
            SnapshotRestoreError::Launch(_) | SnapshotRestoreError::Boot(_) | SnapshotRestoreError::NoMemory { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(what)).code("sandbox_create_failed").retry(Retry::Never)
            }
        }
    }
}

impl From<InvalidSandboxId> for ApiError {
    fn from(error: InvalidSandboxId) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<InvalidTimeout> for ApiError {
    fn from(error: InvalidTimeout) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<NoSuchSandbox> for ApiError {
    fn from(error: NoSuchSandbox) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("Sandbox \"{}\" doesn't exist or you don't have access to it", error.0))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::internal(&error)
    }
}

impl From<NoTemplate> for ApiError {
    fn from(error: NoTemplate) -> Self {
        Self::new(StatusCode::NOT_FOUND, error.to_string())
    }
}

impl From<CreateError> for ApiError {
    fn from(error: CreateError) -> Self {
        match &error {
            CreateError::NoTemplate(absent) => absent.clone().into(),
            CreateError::InvalidTimeout(invalid) => (*invalid).into(),
            CreateError::TeamQuota(error) => Self::team_quota(error),
            CreateError::FilesInMemory(_) | CreateError::Metadata(_) => Self::bad_request(error.to_string()),
            CreateError::Outbound(refused) => Self::outbound(refused),
            CreateError::Volumes(MountsError::Volumes(_)) => Self::internal(&error),
            CreateError::Volumes(_) => Self::bad_request(error.to_string()),
            CreateError::Restore { source, .. } => Self::restore(&error, source, OF_A_TEMPLATE),
            CreateError::Stopping => Self::stopping(),
            CreateError::Trust(_) | CreateError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<ResumeError> for ApiError {
    fn from(error: ResumeError) -> Self {
        match &error {
            ResumeError::NotFound(absent) => absent.clone().into(),
            ResumeError::AlreadyRunning(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            ResumeError::InvalidTimeout(invalid) => (*invalid).into(),
            ResumeError::Restore { source, .. } => Self::restore(&error, source, OF_A_SANDBOX),
            ResumeError::Quota { source, .. } => Self::sandbox_quota(&error, source),
            ResumeError::Stale(_) => Self::internal(&error),
            ResumeError::Stopping => Self::stopping(),
            ResumeError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<RollbackError> for ApiError {
    fn from(error: RollbackError) -> Self {
        match error {
            RollbackError::NotFound(absent) => absent.into(),
            RollbackError::SnapshotNotFound(_) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            RollbackError::NotItsOwn { .. } => Self::bad_request(error.to_string()),
            RollbackError::Checkpoint(ref source) => Self::restore(&error, source, OF_A_CHECKPOINT),
            RollbackError::Save(error) => error.into(),
            RollbackError::Restore { source: ResumeError::Restore { ref source, .. }, .. } => {
                Self::restore(&error, source, OF_A_CHECKPOINT)
            }
            RollbackError::Restore { source, .. } => source.into(),
            RollbackError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<SnapshotError> for ApiError {
    fn from(error: SnapshotError) -> Self {
        match &error {
            SnapshotError::NotFound(absent) => absent.clone().into(),
            SnapshotError::AlreadyPaused(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            SnapshotError::InvalidName(_) => Self::bad_request(error.to_string()),
            SnapshotError::FilesInMemory { .. } => Self::bad_request(chain(&error)),
            SnapshotError::DiskPressure { source, .. } => Self::disk(&error, source),
            SnapshotError::Quota { source, .. } => Self::sandbox_quota(&error, source),
            SnapshotError::Guest { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error))
                .code("sandbox_snapshot_guest_agent_unresponsive")
                .retry(Retry::Never),
            SnapshotError::Stopping => Self::stopping(),
            SnapshotError::Integrity { source: IntegrityError::Elsewhere(why), .. } => Self::elsewhere(&error, why),
            SnapshotError::Integrity { .. }
            | SnapshotError::Machine { .. }
            | SnapshotError::Publish { .. }
            | SnapshotError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<connectrpc::ConnectError> for ApiError {
    fn from(error: connectrpc::ConnectError) -> Self {
        Self::of_envd(&error)
    }
}

impl From<ForkError> for ApiError {
    fn from(error: ForkError) -> Self {
        match error {
            ForkError::Count { .. } => Self::bad_request(error.to_string()),
            ForkError::InvalidTimeout(invalid) => invalid.into(),
            ForkError::TeamQuota(error) => Self::team_quota(&error),
            ForkError::Snapshot(error) => error.into(),
        }
    }
}

impl From<KillError> for ApiError {
    fn from(error: KillError) -> Self {
        match error {
            KillError::NotFound(absent) => absent.into(),
            KillError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<DeadlineError> for ApiError {
    fn from(error: DeadlineError) -> Self {
        match error {
            DeadlineError::NotFound(absent) => absent.into(),
            DeadlineError::InvalidTimeout(invalid) => invalid.into(),
            DeadlineError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<LogFilterError> for ApiError {
    fn from(error: LogFilterError) -> Self {
        match error {
            LogFilterError::Invalid(_) => Self::bad_request(chain(&error)),
            LogFilterError::Log(_) => Self::internal(&error),
        }
    }
}

impl From<TeamError> for ApiError {
    fn from(error: TeamError) -> Self {
        match &error {
            TeamError::Malformed(_) | TeamError::Name | TeamError::Ended => Self::bad_request(error.to_string()),
            TeamError::NoTeam(_) | TeamError::NoKey(_) => Self::not_found(error.to_string()),
            TeamError::Exists(_) | TeamError::Limit { .. } => Self::conflict(error.to_string()),
            TeamError::NotTheHost => Self::for_the_host(),
            TeamError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::NotFound(absent) => absent.into(),
            NetworkError::NotRunning(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            NetworkError::Refused(refused) => Self::outbound(&refused),
            NetworkError::Trust(GuestTrustError::Gone(absent)) => absent.into(),
            NetworkError::Trust(_) | NetworkError::Apply { .. } | NetworkError::Store(_) => Self::internal(&error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.to_body();
        let mut response = json(self.status, &body);
        response.extensions_mut().insert(ErrorKind::of(self.status, self.error_code));
        if self.error_code.is_some_and(nodes::is_of_this_node) {
            response.extensions_mut().insert(NoRoom);
        }
        let retry_after_s = if let Retry::After(seconds) = self.retry { Some(seconds) } else { None };
        response.extensions_mut().insert(Told { message: body.message, error_code: body.error_code, retry_after_s });
        let headers = response.headers_mut();
        match self.retry {
            Retry::Unsaid => {}
            Retry::Never => {
                headers.insert("should-retry", HeaderValue::from_static("false"));
            }
            Retry::After(seconds) => {
                headers.insert("should-retry", HeaderValue::from_static("true"));
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
        }
        response
    }
}

/// Why a request for a sandbox did not reach it.
#[derive(Debug)]
pub(crate) enum ProxyError {
    /// The routing headers or the host name are malformed.
    Target(InvalidTarget),
    /// A route of envd that only the host may call.
    HostOnly(String),
    /// No such sandbox, or it ended meanwhile.
    NotFound(SandboxId),
    /// It lets in only who shows its traffic token.
    Private {
        /// The sandbox.
        id: SandboxId,
        /// Whether a token was shown, and a wrong one.
        shown: bool,
    },
    /// Nothing listens on the port.
    PortClosed(SandboxId, u16),
    /// It is being paused or resumed.
    Transitioning(SandboxId),
    /// Traffic should have woken it, and waking failed.
    Wake(Box<ResumeError>),
    /// The server on the port broke off, or does not speak HTTP.
    BadAnswer(SandboxId, u16, String),
}

impl From<DialError> for ProxyError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NotFound(NoSuchSandbox(id)) => Self::NotFound(id),
            DialError::Transitioning(id) => Self::Transitioning(id),
            DialError::PortClosed { id, port, .. } => Self::PortClosed(id, port),
            DialError::Wake { source, .. } => match *source {
                // It was killed while traffic waited for it.
                ResumeError::NotFound(NoSuchSandbox(id)) => Self::NotFound(id),
                other => Self::Wake(Box::new(other)),
            },
        }
    }
}

impl std::error::Error for ProxyError {}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Target(reason) => reason.fmt(f),
            Self::HostOnly(path) => write!(f, "no route `{path}`"),
            Self::Wake(error) => error.fmt(f),
            Self::NotFound(_) => f.write_str("The sandbox was not found"),
            Self::PortClosed(..) => f.write_str("The sandbox is running but port is not open"),
            Self::Private { shown, .. } => {
                let what = if *shown { "is not valid" } else { "is missing" };
                write!(f, "The sandbox is private: header `e2b-traffic-access-token` {what}")
            }
            Self::Transitioning(_) => f.write_str("The sandbox is changing its state, please try again"),
            Self::BadAnswer(_, _, reason) => write!(f, "The sandbox did not answer with HTTP: {reason}"),
        }
    }
}

impl IntoResponse for ProxyError {
    fn into_response(self) -> Response {
        let message = self.to_string();
        let (status, id, port) = match self {
            Self::Target(reason) => return ApiError::bad_request(reason.to_string()).into_response(),
            Self::HostOnly(path) => return ApiError::no_route(&path).into_response(),
            Self::Wake(error) => return ApiError::from(*error).into_response(),
            Self::NotFound(id) => (StatusCode::BAD_GATEWAY, id, None),
            Self::PortClosed(id, port) | Self::BadAnswer(id, port, _) => (StatusCode::BAD_GATEWAY, id, Some(port)),
            Self::Private { id, .. } => (StatusCode::FORBIDDEN, id, None),
            Self::Transitioning(id) => (StatusCode::CONFLICT, id, None),
        };
        let mut body = serde_json::json!({ "sandboxId": id.as_str(), "message": message, "code": status.as_u16() });
        if let Some(port) = port {
            body["port"] = port.into();
        }
        let mut response = json(status, &body);
        response.extensions_mut().insert(ErrorKind::of(status, None));
        let headers = response.headers_mut();
        // A page of another origin could not read the message otherwise.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        if port.is_none() && status == StatusCode::BAD_GATEWAY {
            headers.insert("should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

/// As E2B says it of its refusals.
const JSON: &str = "application/json; charset=utf-8";

fn json<T: serde::Serialize>(status: StatusCode, body: &T) -> Response {
    // These bodies are made of strings and numbers, which always serialise.
    let body = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
