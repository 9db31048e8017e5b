//! The runtime's public face: everything the server, the CLI or an embedding program can ask for.
//!
//! Each method finds the owner task of the sandbox it concerns and talks to it; nothing here holds a lock across a wait.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{
    error::*,
    sandbox::{CreateSandbox, RuntimeSandbox, SandboxId},
    template::{TemplateInfo, BuildTemplate},
};

/// A running Firkin without its HTTP edge. Clones share it.
#[derive(Debug, Clone)]
pub struct Runtime {
    shared: Arc<()>,
}

/// A sandbox after [`Runtime::connect`].
#[derive(Debug, Clone)]
pub struct Connected {
    /// The sandbox.
    pub sandbox: RuntimeSandbox,
    /// Whether it was paused before.
    pub resumed: bool,
}

/// A named state of a sandbox, from which others are created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// What a create names as its template.
    pub snapshot_id: String,
    /// Full names, `<team>/<name>:<tag>`.
    pub names: Vec<String>,
    /// The sandbox it was taken of.
    pub sandbox_id: SandboxId,
    /// When.
    pub created_at: Timestamp,
}

/// A connection into a sandbox.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub stream: TcpStream,
    /// Cancelled when this generation of the sandbox ends (paused, killed, crashed): connections must then be cut.
    pub ended: CancellationToken,
    /// Distinguishes this life of the sandbox from the one before its last pause.
    pub generation: u64,
}

/// What happens to running sandboxes when the runtime stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// They end.
    Kill,
    /// They are paused, and can be resumed by the next server with this state directory.
    Pause,
}

impl Runtime {
    /// Creates a sandbox by restoring a template or a snapshot.
    pub async fn create(&self, request: CreateSandbox) -> Result<RuntimeSandbox, CreateError> { todo!() }
    /// One sandbox.
    pub fn sandbox(&self, id: &SandboxId) -> Result<RuntimeSandbox, NoSuchSandbox> { todo!() }
    /// Every sandbox, running and paused, in no order.
    pub fn sandboxes(&self) -> Vec<RuntimeSandbox> { todo!() }
    /// A running sandbox as it is (its deadline may only move outwards), or a paused one after resuming it.
    pub async fn connect(&self, id: &SandboxId, timeout: Duration) -> Result<Connected, ResumeError> { todo!() }
    /// Resumes a paused sandbox; a running one is an error.
    pub async fn resume(&self, id: &SandboxId, timeout: Duration) -> Result<RuntimeSandbox, ResumeError> { todo!() }
    /// Pauses with memory. Returns when the state is durable.
    pub async fn pause(&self, id: &SandboxId) -> Result<(), SnapshotError> { todo!() }
    /// `count` copies of a running sandbox, which goes on. One result per child.
    pub async fn fork(&self, id: &SandboxId, count: u32, timeout: Duration)
        -> Result<Vec<Result<RuntimeSandbox, CreateError>>, ForkError> { todo!() }
    /// A named state of a running or paused sandbox.
    pub async fn snapshot(&self, id: &SandboxId, name: Option<String>) -> Result<SnapshotInfo, SnapshotError> { todo!() }
    /// Every snapshot, newest first.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, StoreError> { todo!() }
    /// Ends a sandbox, running or paused, and returns when it is gone.
    pub async fn kill(&self, id: &SandboxId) -> Result<(), KillError> { todo!() }
    /// Sets the deadline to `timeout` from now; zero expires it now.
    pub async fn set_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), DeadlineError> { todo!() }
    /// Moves the deadline to `timeout` from now, but never inwards.
    pub async fn extend_timeout(&self, id: &SandboxId, timeout: Duration) -> Result<(), DeadlineError> { todo!() }
    /// Current resource use as the guest agent sees it.
    pub async fn stats(&self, id: &SandboxId) -> Result<firkin_wire::control::Stats, NoSuchSandbox> { todo!() }
    /// A TCP connection to a port inside a sandbox. Traffic wakes a paused sandbox that was created with `auto_resume`.
    pub async fn dial(&self, id: &SandboxId, port: u16) -> Result<Dialled, DialError> { todo!() }

    /// Every template (snapshots excluded), newest first.
    pub async fn templates(&self) -> Result<Vec<TemplateInfo>, StoreError> { todo!() }
    /// A template or snapshot by id, name, or `name:tag`.
    pub async fn template(&self, reference: &str) -> Result<Option<TemplateInfo>, StoreError> { todo!() }
    /// Boots, prepares and snapshots a template.
    pub async fn build_template(&self, build: BuildTemplate, report: &(dyn Fn(&str) + Send + Sync)) -> Result<TemplateInfo, BuildError> { todo!() }
    /// Deletes a template or a snapshot.
    pub async fn delete_template(&self, reference: &str) -> Result<(), DeleteError> { todo!() }

    /// Whether this API key may use the server. Compares digests in constant time.
    pub fn authenticate(&self, key: &str) -> bool { todo!() }
    /// The acceleration in use, for output.
    pub fn acceleration(&self) -> firkin_engine::Acceleration { todo!() }
    /// Stops: no new work, then every running sandbox ends or is paused. Returns when nothing is left.
    pub async fn shutdown(&self, on_exit: OnExit) { todo!() }
}
