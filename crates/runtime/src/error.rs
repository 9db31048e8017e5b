//! Why an operation on a sandbox, template or snapshot was not carried out: one enum per operation.
//!
//! Denied, absent, exhausted and broken are different variants, because the HTTP edge answers them differently.

mod boot;

use std::path::PathBuf;

use firkin_engine::{MachineError, StartError};

use crate::{admission::AdmissionError, network::SlotError, sandbox::SandboxId};
pub use crate::{reference::NoTemplate, tags::TagError};

pub use self::boot::{BootError, Obituary};

/// No such sandbox, or no longer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("sandbox `{0}` does not exist")]
pub struct NoSuchSandbox(pub SandboxId);

/// A restore that did not happen. Whatever the variant, nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotRestoreError {
    /// The artifact is damaged or incomplete. Nothing was launched.
    #[error("snapshot artifact `{artifact}` is not intact")]
    Integrity {
        /// The artifact.
        artifact: String,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// The artifact was made by another engine, kernel, CPU or agent generation. Nothing was launched.
    #[error(
        "snapshot artifact `{artifact}` cannot be restored here: it has {what} `{made_with}`, this host has `{here}`; {remedy}"
    )]
    Incompatible {
        /// The artifact.
        artifact: String,
        /// Which property differs.
        what: &'static str,
        /// The artifact's value.
        made_with: String,
        /// This host's value.
        here: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// The host has no room. Nothing was launched.
    #[error("the host has no room for this sandbox")]
    Admission(#[source] AdmissionError),
    /// The disk has less free space than the floor. Nothing was launched.
    #[error("the disk is too full to start a sandbox")]
    DiskPressure(#[source] DiskPressure),
    /// No network slot is left. Nothing was launched.
    #[error("no network slot for this sandbox")]
    Network(#[source] SlotError),
    /// The artifact has no memory, and what was to be restored is memory.
    #[error("snapshot artifact `{artifact}` has no memory: its guest must be booted")]
    NoMemory {
        /// The artifact.
        artifact: String,
    },
    /// A guest without memory could not be booted from its disk.
    #[error("the guest could not be booted from its disk")]
    Boot(#[source] BootError),
    /// The launch failed and was undone.
    #[error("the sandbox could not be launched")]
    Launch(#[source] LaunchError),
}

/// What is wrong with an artifact.
#[derive(Debug, thiserror::Error)]
pub enum IntegrityError {
    /// A file of it cannot be read.
    #[error("cannot read `{}`", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A sidecar is not what a sidecar must be.
    #[error("`{}` is not a valid sidecar", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A sidecar was written in a format that this version does not know.
    #[error("`{}` has format version {found}, this version reads {known}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// A member that the manifest names is not in the integrity record.
    #[error("member `{member}` has no recorded digest")]
    Unrecorded {
        /// The member.
        member: String,
    },
    /// A member has another size than was recorded.
    #[error("member `{member}` has {found} bytes, {expected} were recorded")]
    Size {
        /// The member.
        member: String,
        /// Recorded.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// It was found damaged before, and has not been read since.
    #[error("it is in quarantine since {since} ({reason}); `firkin verify` reads it again and lets it out if it is intact")]
    Quarantined {
        /// When it was found damaged.
        since: jiff::Timestamp,
        /// What was found then.
        reason: String,
    },
    /// A member has other content than was recorded.
    #[error("member `{member}` has digest `{found}`, `{expected}` was recorded")]
    Digest {
        /// The member.
        member: String,
        /// Recorded.
        expected: String,
        /// Found.
        found: String,
    },
}

/// The free-space floor is not met, or could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum DiskPressure {
    /// Less is free than the floor.
    #[error("`{}` has {free_mib} MiB free, the floor is {floor_mib} MiB", path.display())]
    BelowFloor {
        /// A path on the file system.
        path: PathBuf,
        /// Free space.
        free_mib: u64,
        /// The floor.
        floor_mib: u64,
    },
    /// More is held than the budget, and nothing of it can be made again.
    #[error("`{}` holds {held_mib} MiB that are needed, the disk budget is {budget_mib} MiB", path.display())]
    OverBudget {
        /// The state directory.
        path: PathBuf,
        /// What it holds.
        held_mib: u64,
        /// What it may.
        budget_mib: u64,
    },
    /// The probe failed, which is not the same as a full disk.
    #[error("cannot measure the free space of `{}`", path.display())]
    ProbeFailed {
        /// A path on the file system.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The host is short of memory, or it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MemoryPressure {
    /// Less is available than the floor.
    #[error("the host has {available_mib} MiB of memory available, the floor is {floor_mib} MiB")]
    BelowFloor {
        /// What can be had without swapping.
        available_mib: u64,
        /// The floor.
        floor_mib: u64,
    },
    /// The whole host waits for memory.
    #[error("the host waited for memory in {percent} % of the last ten seconds, the limit is {limit_percent} %")]
    Stalled {
        /// How long everything waited.
        percent: u8,
        /// From this on no new work is taken.
        limit_percent: u8,
    },
    /// The probe failed, which is not the same as a lack of memory.
    #[error("cannot measure the host's memory")]
    ProbeFailed(#[source] std::io::Error),
}

/// Which step of a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No network slot. Nothing was launched.
    #[error("no network slot")]
    Network(#[source] SlotError),
    /// The record that was to be taken over is of no running session.
    #[error("the sandbox is not recorded as running")]
    NotRecorded,
    /// A file of the session could not be made.
    #[error("cannot stage `{}`", path.display())]
    Stage {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The engine did not start the machine.
    #[error("the machine did not start")]
    Start(#[source] StartError),
    /// The machine failed after it was started.
    #[error("the machine failed after its start")]
    Machine(#[source] MachineError),
    /// The booted guest did not come up.
    #[error("the guest did not come up; its console ended with:\n{console}")]
    Silent {
        /// The last of its console.
        console: String,
        /// What was seen of it.
        #[source]
        source: Box<LaunchError>,
    },
    /// The guest agent did not become this sandbox.
    #[error("the guest agent did not answer as it must")]
    Agent(#[source] AgentError),
}

/// What went wrong on the control channel.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No answer in time.
    #[error("no answer to `{call}` within {deadline_ms} ms")]
    Deadline {
        /// The call.
        call: &'static str,
        /// The deadline.
        deadline_ms: u128,
    },
    /// The channel broke.
    #[error("the control channel broke during `{call}`")]
    Channel {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A request could not be framed.
    #[error("cannot frame `{call}`")]
    Encode {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: firkin_wire::control::EncodeError,
    },
    /// The agent said no.
    #[error("the guest agent refused `{call}`: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its words.
        message: String,
    },
    /// The agent answered something else than was asked.
    #[error("the guest agent gave the wrong kind of answer to `{call}`")]
    Unexpected {
        /// The call.
        call: &'static str,
    },
    /// The agent speaks a generation that this host does not.
    #[error("the guest agent speaks control generation {found}, this host speaks up to {known}")]
    Generation {
        /// The agent's.
        found: u32,
        /// Ours.
        known: u32,
    },
}

/// Why a sandbox was not created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is nothing to create it from.
    #[error(transparent)]
    NoTemplate(#[from] NoTemplate),
    /// The timeout is zero or longer than may be asked for.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The restore failed.
    #[error("sandbox cannot be started from template `{template}`")]
    Restore {
        /// The template.
        template: String,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the sandbox")]
    Store(#[source] StoreError),
}

/// A life that cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTimeout {
    /// Zero where a life is needed.
    #[error("Timeout must be greater than 0")]
    Zero,
    /// Longer than the maximum.
    #[error("Timeout cannot be greater than {max_hours} hours")]
    TooLong {
        /// The maximum.
        max_hours: u64,
    },
}

/// The artifact that a sandbox's record names does not hold the state that was recorded last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot artifact `{artifact}` holds sandbox `{of}` in epoch {found}, on record is sandbox `{id}` in epoch {expected}")]
pub struct StaleState {
    /// The sandbox.
    pub id: SandboxId,
    /// The artifact on its record.
    pub artifact: String,
    /// Whose state that is.
    pub of: String,
    /// The epoch of that state.
    pub found: u64,
    /// The epoch on record.
    pub expected: u64,
}

/// Why a sandbox was not connected to or resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It runs already (only where that is an error).
    #[error("sandbox `{0}` is already running")]
    AlreadyRunning(SandboxId),
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The restore failed; the paused state is untouched.
    #[error("sandbox `{id}` cannot be resumed")]
    Restore {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: SnapshotRestoreError,
    },
    /// What is held of it is not its last durable state. Nothing was launched.
    #[error("cannot resume another state than the last durable one")]
    Stale(#[source] StaleState),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the resumed sandbox")]
    Store(#[source] StoreError),
}

/// Why a sandbox did not go back to a checkpoint. It is what it was; where that could not be restored either, it is paused as it
/// was.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// No such snapshot.
    #[error("snapshot '{0}' not found")]
    SnapshotNotFound(String),
    /// A template, or a snapshot of another sandbox.
    #[error("'{snapshot}' is not a snapshot of sandbox `{id}`")]
    NotItsOwn {
        /// What was named.
        snapshot: String,
        /// The sandbox.
        id: SandboxId,
    },
    /// The checkpoint cannot be restored here. The sandbox was not touched.
    #[error("the checkpoint cannot be restored")]
    Checkpoint(#[source] SnapshotRestoreError),
    /// What the sandbox is now could not be made durable. It goes on running.
    #[error("the present state could not be saved before going back")]
    Save(#[from] SnapshotError),
    /// The checkpoint was not restored.
    #[error("sandbox `{id}` could not be restored from its checkpoint")]
    Restore {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: ResumeError,
    },
    /// The store failed.
    #[error("cannot record the rollback")]
    Store(#[source] StoreError),
}

/// Why a snapshot (pause, fork, named snapshot) was not taken. The sandbox goes on running.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is paused already (only where that is an error).
    #[error("sandbox `{0}` is already paused")]
    AlreadyPaused(SandboxId),
    /// The disk has less free space than the floor.
    #[error("the disk is too full for a snapshot of sandbox `{id}`")]
    DiskPressure {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: DiskPressure,
    },
    /// The guest agent did not get ready.
    #[error("the guest of sandbox `{id}` did not get ready for a snapshot")]
    Guest {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: AgentError,
    },
    /// The state it was restored from is damaged.
    #[error("the snapshot that sandbox `{id}` came from is not intact")]
    Integrity {
        /// The sandbox.
        id: SandboxId,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// The engine failed.
    #[error("the machine of sandbox `{id}` could not be cut")]
    Machine {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: MachineError,
    },
    /// The artifact could not be written.
    #[error("the snapshot of sandbox `{id}` could not be published")]
    Publish {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: PublishError,
    },
    /// The name is taken or malformed.
    #[error("`{0}` is not a usable snapshot name: lower-case letters, digits, `-`, `_` and at most one `:tag`")]
    InvalidName(String),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The store failed.
    #[error("cannot record the snapshot")]
    Store(#[source] StoreError),
}

/// Why an artifact could not be published. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A file could not be written, synced or renamed.
    #[error("cannot write `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A member that the artifact would share is damaged.
    #[error("snapshot artifact `{base}`, which it builds on, is not intact")]
    Base {
        /// The artifact whose memory it would share.
        base: String,
        /// What is wrong.
        #[source]
        source: IntegrityError,
    },
    /// A sidecar does not serialise.
    #[error("cannot serialise a sidecar")]
    Serialise(#[source] serde_json::Error),
}

/// Why a fork produced no children at all. A child's own failure stands in the list of results instead.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// The number of children is zero or too large.
    #[error("a fork makes 1 to {max} sandboxes, {asked} were asked for")]
    Count {
        /// Asked for.
        asked: u32,
        /// The most.
        max: u32,
    },
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The snapshot failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Why a sandbox was not killed.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// The store failed.
    #[error("cannot record the end of the sandbox")]
    Store(#[source] StoreError),
}

/// Why a deadline was not moved.
#[derive(Debug, thiserror::Error)]
pub enum DeadlineError {
    /// No such running sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// The timeout is invalid.
    #[error("{0}")]
    InvalidTimeout(InvalidTimeout),
    /// The store failed.
    #[error("cannot record the deadline")]
    Store(#[source] StoreError),
}

/// Why a port inside a sandbox could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No such sandbox, or it is paused without auto-resume.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is being paused or resumed right now.
    #[error("sandbox `{0}` is changing its state")]
    Transitioning(SandboxId),
    /// Nothing listens there.
    #[error("port {port} of sandbox `{id}` is not open")]
    PortClosed {
        /// The sandbox.
        id: SandboxId,
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Traffic woke the sandbox, and waking failed.
    #[error("sandbox `{id}` could not be woken by traffic")]
    Wake {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: Box<ResumeError>,
    },
}

/// Why a template or a snapshot was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// No template or snapshot by that name or id.
    #[error(transparent)]
    NotFound(#[from] NoTemplate),
    /// Others are built on it.
    #[error("template '{template}' is in use by {}", users.join(", "))]
    InUse {
        /// The template.
        template: String,
        /// Sandboxes, snapshots and templates that need it.
        users: Vec<String>,
    },
    /// The store failed.
    #[error("cannot record the deletion")]
    Store(#[source] StoreError),
}

/// Why a template was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The name is malformed.
    #[error("`{0}` is not a template name: lower-case letters, digits, `-` and `_`")]
    InvalidName(String),
    /// The host has no room for the build.
    #[error("the host has no room for a template build")]
    Admission(#[source] AdmissionError),
    /// The disk has less free space than the floor.
    #[error("the disk is too full for a template build")]
    DiskPressure(#[source] DiskPressure),
    /// No network slot is left.
    #[error("no network slot for a template build")]
    Network(#[source] SlotError),
    /// The guest did not come up, after every attempt.
    #[error("the guest did not come up in {attempts} attempts")]
    Boot {
        /// How many boots were tried.
        attempts: u32,
        /// The last failure.
        #[source]
        source: LaunchError,
    },
    /// The guest ended before the template was ready.
    #[error("{0}")]
    Died(Obituary),
    /// A file cannot be put into the guest.
    #[error("cannot put a file into the template")]
    File(#[source] crate::guest_file::PutError),
    /// A command of the build failed.
    #[error("failed to run command '{command}': {reason}")]
    Command {
        /// The command.
        command: String,
        /// Exit status and the tail of its output.
        reason: String,
    },
    /// The template was not ready in time.
    #[error("the template was not ready within {} s", deadline.as_secs())]
    NotReady {
        /// The deadline.
        deadline: std::time::Duration,
    },
    /// The snapshot failed.
    #[error("the machine could not be cut")]
    Machine(#[source] MachineError),
    /// The artifact could not be written.
    #[error("the template could not be published")]
    Publish(#[source] PublishError),
    /// The store failed.
    #[error("cannot record the template")]
    Store(#[source] StoreError),
}

impl From<BootError> for BuildError {
    fn from(error: BootError) -> Self {
        match error {
            BootError::Network(source) => Self::Network(source),
            BootError::Up { attempts, source } => Self::Boot { attempts, source },
            BootError::Died(obituary) => Self::Died(obituary),
            BootError::Shrink(source) => Self::Boot { attempts: 1, source: LaunchError::Agent(source) },
            BootError::Machine(source) => Self::Machine(source),
            BootError::Publish(source) => Self::Publish(source),
        }
    }
}

/// What went wrong in the database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its file cannot be made, or not be made private.
    #[error("cannot keep `{}` private", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// SQLite says no.
    #[error("the database refused {operation}")]
    Sqlite {
        /// What was tried.
        operation: &'static str,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A row cannot be read by this version.
    #[error("a row of `{table}` cannot be read")]
    Row {
        /// The table.
        table: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The database was written by a newer version.
    #[error("the database has schema version {found}, this version reads up to {known}")]
    Schema {
        /// Found.
        found: i64,
        /// Known.
        known: i64,
    },
    /// The database's thread is gone.
    #[error("the database is closed")]
    Closed,
}

/// Why the runtime could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory of the state could not be made or read.
    #[error("cannot use `{}`", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another server uses this state directory.
    #[error("another server uses the state directory `{}`", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The store could not be opened.
    #[error("cannot open the database")]
    Store(#[source] StoreError),
    /// The network could not be prepared.
    #[error("cannot prepare the network")]
    Network(#[source] crate::network::OpenError),
}

/// Why a sandbox's network was not changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such sandbox.
    #[error(transparent)]
    NotFound(#[from] NoSuchSandbox),
    /// It is paused.
    #[error("cannot change the network of sandbox `{0}`: it does not run; resume it first")]
    NotRunning(SandboxId),
    /// The new rules are recorded, but may not be in force. Asking again is safe.
    #[error("cannot change the network of sandbox `{id}`")]
    Apply {
        /// The sandbox.
        id: SandboxId,
        /// Why.
        #[source]
        source: SlotError,
    },
    /// The change could not be recorded, and was not made.
    #[error("cannot record the change of a sandbox's network")]
    Store(#[source] StoreError),
}
