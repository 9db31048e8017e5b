//! Templates: golden snapshots that sandboxes are restored from, and how they are built.
//!
//! A build boots a machine, lets it become nobody in particular, runs the template's commands, waits until it is ready, makes
//! it small, and cuts it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use firkin_engine::{Fingerprint, MachineError, Processor, Shape, qcow2};
use firkin_network::SlotError;
use firkin_wire::control;
use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    admission::AdmissionError,
    agent::{TEMPLATE_EPOCH, nobody},
    artifact::{
        Artifact, ArtifactKind, DiskMembers, FORMAT, GuestIdentity, MemoryMember, PublishError, SnapshotArtifactManifest,
    },
    boot::{self, BootRequest, Booted},
    capacity::ResourceBudget,
    command::{self, GuestCommand},
    core::Core,
    disk::DiskPressure,
    guest_file::{self, GuestFile},
    images::RootDisk,
    launch::{BootError, LaunchError, Obituary},
    link::Connector,
    progress::Report,
    random::uuid,
    reference::{CODE_INTERPRETER, DEFAULT, MCP_GATEWAY, valid_name},
    sandbox::{InternetAccess, SandboxId},
    store::{BuildState, Defaults, Setup, StoreError, TemplateRecord},
};

/// One command of a build.
const SETUP_DEADLINE: Duration = Duration::from_secs(3600);

/// Pause between two runs of a ready command.
const READY_INTERVAL: Duration = Duration::from_secs(2);

/// A template as the API shows it. Of a template without a build that has ended, its newest build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateInfo {
    /// Its id, whatever its tags.
    pub id: String,
    /// Its name, without team and tag. Absent for snapshots, and where none was given.
    pub name: Option<String>,
    /// Id of the build that is shown, a UUID: that of the tag that was asked for, else that of `default`, else the newest.
    pub build_id: String,
    /// How far that build has come.
    pub state: BuildState,
    /// How many builds of it are remembered.
    pub builds: usize,
    /// Names without team, e.g. `base`, with `:tag` unless that is `default`.
    pub aliases: Vec<String>,
    /// What its tags stand for.
    pub tags: Vec<TagInfo>,
    /// Size of the sandboxes of what is shown.
    pub budget: ResourceBudget,
    /// Asked for first.
    pub created_at: Timestamp,
    /// Last built.
    pub updated_at: Timestamp,
    /// How many sandboxes were started from it.
    pub spawn_count: u64,
    /// When the last one was.
    pub last_spawned_at: Option<Timestamp>,
    /// The sandbox that it is a snapshot of; absent for a template.
    pub snapshot_of: Option<SandboxId>,
    /// Whether it is marked as public. There is one team, so that changes nothing.
    pub public: bool,
    /// What it is for, if somebody said so.
    pub description: Option<String>,
}

/// What a tag of a template stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagInfo {
    /// Without the name.
    pub tag: String,
    /// The build.
    pub build_id: String,
    /// When the tag was given to it.
    pub assigned_at: Timestamp,
    /// When that was built.
    pub built_at: Timestamp,
}

/// What is to be changed of a template. What is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateUpdate {
    /// Whether it is marked as public.
    pub public: Option<bool>,
    /// What it is for. An empty text takes away what was said.
    pub description: Option<String>,
}

/// What to build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildTemplate {
    /// Name, e.g. `base`. An existing template of that name is replaced for new sandboxes.
    pub name: String,
    /// Virtual CPUs of its sandboxes.
    pub cpus: u32,
    /// Memory of its sandboxes in MiB.
    pub memory_mib: u32,
    /// Whether its guests may run guests: they are shown the host's virtualisation.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested_virtualization: bool,
    /// Root image to build on; none: the one of the host's guest system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootDisk>,
    /// Files put there before the commands are run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<GuestFile>,
    /// Environment of its sandboxes' commands.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Commands run as root, in order, before the snapshot.
    pub setup: Vec<String>,
    /// Command left running in the snapshot, as the default user.
    pub start: Option<String>,
    /// Command that exits 0 when the template is ready, as the default user.
    pub ready: Option<String>,
    /// How long to wait for that.
    pub ready_deadline: Duration,
}

impl BuildTemplate {
    fn processor(&self) -> Processor {
        if self.nested_virtualization { Processor::Nested } else { Processor::Plain }
    }

    /// The template that every server has. Its ready command runs what most first commands need, so that those pages are
    /// in the snapshot's memory.
    pub fn base() -> Self {
        Self {
            name: "base".to_owned(),
            cpus: 1,
            memory_mib: 512,
            nested_virtualization: false,
            root: None,
            files: Vec::new(),
            env: BTreeMap::new(),
            setup: Vec::new(),
            start: None,
            ready: Some("python3 -c 'import json, sys' && true | cat && echo ready".to_owned()),
            ready_deadline: Duration::from_secs(120),
        }
    }

    /// The template of E2B's code interpreter SDK, with its processors and memory. Its root image has IPython, so its guest
    /// serves the interpreter, which is healthy once Python's kernel is warm: then it is warm in the snapshot.
    pub fn code_interpreter(root: RootDisk) -> Self {
        let base = Self::base();
        // Healthy says that Python's kernel is warm; the rest is for warm sessions, whose emulator has forgotten what it translated.
        let warm = "curl -sf http://127.0.0.1:49999/health && curl -sfX POST http://127.0.0.1:49999/warm-up";
        let keep = "python3 -B /run/firkin-kernels/keep.py";
        Self {
            name: CODE_INTERPRETER.to_owned(),
            cpus: 2,
            memory_mib: 2048,
            root: Some(root),
            setup: vec![keep.to_owned()],
            ready: base.ready.as_ref().map(|ready| format!("{ready} && {warm}")),
            ready_deadline: Duration::from_secs(600),
            ..base
        }
    }

    /// The template of sandboxes with MCP servers: `base` with the gateway, which the SDK starts, and memory for servers.
    pub fn mcp_gateway(program: &'static [u8]) -> Self {
        let gateway = GuestFile { path: "/usr/local/bin/mcp-gateway".to_owned(), mode: 0o755, content: program };
        Self { name: MCP_GATEWAY.to_owned(), memory_mib: 1024, files: vec![gateway], ..Self::base() }
    }
}

/// Digest of all that a build depends on. Equal recipes give interchangeable templates.
pub(crate) fn recipe(core: &Core, build: &BuildTemplate) -> String {
    let guest = &core.config.guest;
    let engine = core.gates.engine.fingerprint(build.processor());
    let all = serde_json::json!({
        "format": FORMAT, "generation": control::GENERATION, "engine": engine.kind(), "build": build,
        "kernel": guest.kernel_digest, "initrd": guest.initrd_digest, "rootfs": guest.rootfs_digest,
    });
    blake3::hash(all.to_string().as_bytes()).to_hex().to_string()
}

/// The root image that a build stands on.
fn root_of(core: &Core, build: &BuildTemplate) -> RootDisk {
    build.root.clone().unwrap_or_else(|| core.config.guest.root())
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

/// Builds a template and records it under its name.
pub(crate) async fn build(core: &Arc<Core>, build: BuildTemplate, report: Report<'_>) -> Result<TemplateRecord, BuildError> {
    if !valid_name(&build.name) {
        return Err(BuildError::InvalidName(build.name));
    }
    core.gates.disk.check().map_err(BuildError::DiskPressure)?;
    crate::budget::admit(core).await.map_err(BuildError::DiskPressure)?;
    let root = root_of(core, &build);
    let budget = ResourceBudget { cpus: build.cpus, memory_mib: u64::from(build.memory_mib), disk_mib: root.bytes >> 20 };
    let reservation = core.gates.admission.admit(budget).await.map_err(BuildError::Admission)?;
    let request = BootRequest {
        shape: Shape { vcpus: build.cpus, memory_mib: build.memory_mib },
        processor: build.processor(),
        disk: vec![qcow2::Backing { path: root.path, format: qcow2::Format::Raw }],
        disk_bytes: root.bytes,
        internet: InternetAccess::Allowed,
        identity: nobody(),
    };
    let mut booted = boot::boot(core, &request, report).await?;
    let cut = make(&mut booted, &build, report).await;
    booted.end().await;
    drop(reservation);
    cut?;
    let artifact = publish(core, &build, budget, booted, report).await?;
    record(core, build, budget, artifact).await
}

/// From a machine that came up to one that is cut.
async fn make(booted: &mut Booted, build: &BuildTemplate, report: Report<'_>) -> Result<(), BuildError> {
    let connector = booted.link.connector();
    booted.while_it_lives(Box::pin(prepare(&connector, build, report))).await??;
    booted.shrink(report).await?;
    // Once more: the files that it reads are in the snapshot's page cache then, where all clones share them. Without, each clone
    // would read and keep them for itself.
    booted.while_it_lives(Box::pin(wait_until_ready(&connector, build, report))).await??;
    if build.setup.is_empty() && build.start.is_none() && build.ready.is_none() {
        return Ok(booted.cut(report).await?);
    }
    Ok(booted.cut_at_rest(report).await?)
}

async fn prepare(connector: &Connector, build: &BuildTemplate, report: Report<'_>) -> Result<(), BuildError> {
    for file in &build.files {
        report(&format!("writing {}", file.path));
        guest_file::put(connector, file).await.map_err(BuildError::File)?;
        run(connector, &GuestCommand { user: Some("root".to_owned()), ..GuestCommand::new(file.permit()) }).await?;
    }
    for script in &build.setup {
        report(&format!("running: {script}"));
        let mut command = GuestCommand::new(script);
        command.user = Some("root".to_owned());
        command.deadline = SETUP_DEADLINE;
        run(connector, &command).await?;
    }
    if let Some(start) = &build.start {
        report(&format!("starting: {start}"));
        // The shell returns at once; what it started is an orphan that lives on in the snapshot.
        let mut command = GuestCommand::new("nohup setsid /bin/bash -l -c \"$FIRKIN_START\" >/tmp/start.log 2>&1 </dev/null &");
        command.env.insert("FIRKIN_START".to_owned(), start.clone());
        run(connector, &command).await?;
    }
    wait_until_ready(connector, build, report).await
}

async fn wait_until_ready(connector: &Connector, build: &BuildTemplate, report: Report<'_>) -> Result<(), BuildError> {
    if let Some(ready) = &build.ready {
        report("waiting until the template is ready");
        let deadline = Instant::now() + build.ready_deadline;
        let mut command = GuestCommand::new(ready);
        command.deadline = build.ready_deadline;
        while run(connector, &command).await.is_err() {
            if Instant::now() + READY_INTERVAL > deadline {
                return Err(BuildError::NotReady { deadline: build.ready_deadline });
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }
    Ok(())
}

async fn run(connector: &Connector, command: &GuestCommand) -> Result<(), BuildError> {
    let failed = |reason| BuildError::Command { command: command.script.clone(), reason };
    let output = command::run(connector.clone(), None, command).await.map_err(|e| failed(crate::causes::chain(&e)))?;
    if output.exit_code == 0 {
        return Ok(());
    }
    let text = String::from_utf8_lossy(if output.stderr.is_empty() { &output.stdout } else { &output.stderr }).into_owned();
    let tail: String = text.chars().rev().take(500).collect::<Vec<_>>().into_iter().rev().collect();
    Err(failed(format!("exit status {}: {}", output.exit_code, tail.trim_end())))
}

async fn publish(
    core: &Arc<Core>,
    build: &BuildTemplate,
    budget: ResourceBudget,
    booted: Booted,
    report: Report<'_>,
) -> Result<Artifact, BuildError> {
    let Fingerprint { program, version, .. } = &core.gates.engine.plain;
    report(&format!("writing the template, made with {} {version}", program.as_deref().unwrap_or("engine")));
    let guest = &core.config.guest;
    let root = root_of(core, build);
    let manifest = SnapshotArtifactManifest {
        format: FORMAT,
        id: booted.id().to_owned(),
        kind: ArtifactKind::BaseTemplate,
        reason: None,
        logical_id: build.name.clone(),
        parent: None,
        created_at: Timestamp::now(),
        engine: core.gates.engine.fingerprint(build.processor()),
        guest: GuestIdentity {
            kernel: guest.kernel_digest.clone(),
            agent: guest.initrd_digest.clone(),
            agent_generation: control::GENERATION,
            nonce: None,
        },
        shape: Shape { vcpus: build.cpus, memory_mib: build.memory_mib },
        budget,
        epoch: TEMPLATE_EPOCH,
        memory: MemoryMember::Full,
        disk: DiskMembers { rootfs: root.digest, rootfs_path: root.path, layers: vec![booted.layer.clone()] },
    };
    Ok(booted.publish(core, manifest).await?)
}

async fn record(
    core: &Arc<Core>,
    build: BuildTemplate,
    budget: ResourceBudget,
    artifact: Artifact,
) -> Result<TemplateRecord, BuildError> {
    let now = Timestamp::now();
    let pin = core.artifacts.pin(artifact.manifest.id.clone());
    let name = format!("{}:{DEFAULT}", build.name);
    let defaults = Defaults { env: build.env.clone(), ..Defaults::default() };
    let setup = Setup { public: false, defaults, start: build.start.clone(), ready: build.ready.clone() };
    let record = TemplateRecord {
        // A rebuilt template keeps its id: those who name it by id get the new build, like those who name it by name.
        id: crate::random::alphanumeric(20),
        build_id: uuid(),
        artifact: artifact.manifest.id,
        budget,
        created_at: now,
        updated_at: now,
        spawn_count: 0,
        last_spawned_at: None,
        description: None,
        snapshot_of: None,
        made_from: None,
        recipe: Some(recipe(core, &build)),
        warm_up: build.ready,
        setup,
        names: vec![name],
    };
    let record = core.store.put_template(record).await.map_err(BuildError::Store)?;
    drop(pin);
    core.pool.templates_changed();
    core.collect();
    Ok(record)
}
