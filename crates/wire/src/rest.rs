//! The bodies of E2B's control plane, as they are on the wire.
//!
//! Field names follow the wire, not our vocabulary. The contract is that unknown fields are ignored. The edge counts them while it
//! reads, which it can only where serde does not read ahead: so the body of a request flattens nothing, and no enum of it finds its
//! variant by a tag among its fields. Options are `Option` wherever the wire may omit them; defaults
//! differ between the two generations of routes and therefore belong to the edge, not here.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

mod outbound;

pub use self::outbound::{
    EgressProxy, EgressProxyTls, Iam, IamToken, NetworkAttempt, NetworkDecision, NetworkRule, NetworkTransform,
};

pub mod activity;
pub mod storage;
pub mod tags;

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Repeats the HTTP status: clients decide by this number.
    pub code: u16,
    /// For people.
    pub message: String,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
}

/// `POST /sandboxes` and `POST /v2/sandboxes`. The second generation knows no `secure`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NewSandbox {
    /// Template or snapshot: an id, a name, or either with `:tag`.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Seconds to live. Default 15 in v1, 300 in v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Pause instead of kill at the end of life.
    #[serde(rename = "autoPause", default, skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<bool>,
    /// Whether that pause keeps memory. Default true.
    #[serde(rename = "autoPauseMemory", default, skip_serializing_if = "Option::is_none")]
    pub auto_pause_memory: Option<bool>,
    /// Resume a paused sandbox when traffic arrives.
    #[serde(rename = "autoResume", default, skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<AutoResume>,
    /// Whether envd demands a token (v1 only).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secure: Option<bool>,
    /// `false` denies every outbound connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// Finer rules for traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// Free labels, filtered on by list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Environment of every command.
    #[serde(rename = "envVars", default, skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// Configuration of an MCP gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Value>,
    /// Identity tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iam: Option<Iam>,
    /// Volumes to mount.
    #[serde(rename = "volumeMounts", default, skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// Whether traffic resumes a paused sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoResume {
    /// It does.
    pub enabled: bool,
}

/// A volume inside a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Its name.
    pub name: String,
    /// Where it appears.
    pub path: String,
    /// Whether nothing of it can be changed from there. Not of the contract's, whose clients leave it out: default false.
    #[serde(rename = "readOnly", default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// Traffic rules of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Whether the proxy lets strangers in. Default true.
    #[serde(rename = "allowPublicTraffic", default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Destinations that are allowed even when denied below.
    #[serde(rename = "allowOut", default, skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Destinations that are denied.
    #[serde(rename = "denyOut", default, skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Resolvers.
    #[serde(rename = "dnsServers", default, skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
    /// SOCKS5 proxy for outbound traffic.
    #[serde(rename = "egressProxy", default, skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
    /// `Host` header that guests see; `${PORT}` is the port.
    #[serde(rename = "maskRequestHost", default, skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Guest ports that speak TLS themselves.
    #[serde(rename = "httpsPorts", default, skip_serializing_if = "Option::is_none")]
    pub https_ports: Option<Vec<u16>>,
    /// Header transforms by domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<BTreeMap<String, Vec<NetworkRule>>>,
}

/// `PUT /sandboxes/{id}/network`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateNetwork {
    /// `false` denies every destination that is not allowed by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// As in [`NetworkConfig`], like all that follow.
    #[serde(rename = "allowPublicTraffic", default, skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Destinations that are allowed even when denied below.
    #[serde(rename = "allowOut", default, skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Destinations that are denied.
    #[serde(rename = "denyOut", default, skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Resolvers.
    #[serde(rename = "dnsServers", default, skip_serializing_if = "Option::is_none")]
    pub dns_servers: Option<Vec<String>>,
    /// SOCKS5 proxy for outbound traffic.
    #[serde(rename = "egressProxy", default, skip_serializing_if = "Option::is_none")]
    pub egress_proxy: Option<EgressProxy>,
    /// `Host` header that guests see.
    #[serde(rename = "maskRequestHost", default, skip_serializing_if = "Option::is_none")]
    pub mask_request_host: Option<String>,
    /// Guest ports that speak TLS themselves.
    #[serde(rename = "httpsPorts", default, skip_serializing_if = "Option::is_none")]
    pub https_ports: Option<Vec<u16>>,
    /// Header transforms by domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<BTreeMap<String, Vec<NetworkRule>>>,
}

impl UpdateNetwork {
    /// Whether the internet is allowed at all, and the rules.
    pub fn split(self) -> (Option<bool>, NetworkConfig) {
        let rules = NetworkConfig {
            allow_public_traffic: self.allow_public_traffic,
            allow_out: self.allow_out,
            deny_out: self.deny_out,
            dns_servers: self.dns_servers,
            egress_proxy: self.egress_proxy,
            mask_request_host: self.mask_request_host,
            https_ports: self.https_ports,
            rules: self.rules,
        };
        (self.allow_internet_access, rules)
    }
}

/// `POST /sandboxes/{id}/connect` and its v2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectSandbox {
    /// Seconds to live from now; never shortens. Required in v1, default 300 in v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// `false` boots the file system afresh instead of restoring memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{id}/resume`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ResumedSandbox {
    /// Seconds to live from now. Default 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Pause instead of kill at the end of life; absent keeps what was set.
    #[serde(rename = "autoPause", default, skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<bool>,
    /// `false` boots the file system afresh instead of restoring memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{id}/pause`; the body may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PauseSandbox {
    /// Whether memory is kept. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
    /// Refuse when the guest does not answer. Default false.
    #[serde(rename = "requireHealthyGuest", default, skip_serializing_if = "Option::is_none")]
    pub require_healthy_guest: Option<bool>,
}

/// `POST /sandboxes/{id}/rollback`, which is Firkin's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RollbackSandbox {
    /// Id or name of one of the sandbox's own snapshots.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
}

/// `POST /sandboxes/{id}/fork`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ForkSandbox {
    /// Seconds that each child lives. Default 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
    /// Number of children, 1 to 100. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
}

/// `POST /sandboxes/{id}/snapshots`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NewSnapshot {
    /// Name, with an optional `:tag`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether memory is kept. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// `POST /sandboxes/{id}/timeout`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetTimeout {
    /// Seconds to live from now; 0 ends it now.
    pub timeout: i64,
}

/// `POST /sandboxes/{id}/refreshes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Refresh {
    /// Seconds to live from now, at most 3600; never shortens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<i64>,
}

/// A sandbox as create, connect, resume and fork answer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Template it was restored from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Required by every client, read by none.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// Version of envd, by which clients choose their features.
    #[serde(rename = "envdVersion")]
    pub envd_version: String,
    /// First name of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Token for envd.
    #[serde(rename = "envdAccessToken", default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Token for the other ports, when they are private.
    #[serde(rename = "trafficAccessToken", default, skip_serializing_if = "Option::is_none")]
    pub traffic_access_token: Option<String>,
    /// Domain of its host names; `null` leaves the client's own setting in force.
    #[serde(default)]
    pub domain: Option<String>,
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It does.
    Running,
    /// It waits on disk, or is on its way there.
    Paused,
}

/// The action at the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// The sandbox ends.
    Kill,
    /// The sandbox is paused.
    Pause,
}

/// Whether a pause kept the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PauseMode {
    /// Only the file system.
    Filesystem,
    /// Memory too.
    Full,
}

/// A sandbox's end of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// Whether traffic resumes it.
    #[serde(rename = "autoResume")]
    pub auto_resume: bool,
    /// The action at its deadline.
    #[serde(rename = "onTimeout")]
    pub on_timeout: OnTimeout,
}

/// A sandbox as lists show it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedSandbox {
    /// Template it was restored from.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Required by every client, read by none.
    #[serde(rename = "clientID")]
    pub client_id: String,
    /// When it was created.
    #[serde(rename = "startedAt")]
    pub started_at: Timestamp,
    /// When it will end.
    #[serde(rename = "endAt")]
    pub end_at: Timestamp,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount")]
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Whether it runs.
    pub state: SandboxState,
    /// Version of envd.
    #[serde(rename = "envdVersion")]
    pub envd_version: String,
    /// First name of the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Whether it was paused although its agent did not answer. Said of paused ones.
    #[serde(rename = "envdUnresponsiveAtPause", default, skip_serializing_if = "Option::is_none")]
    pub envd_unresponsive_at_pause: Option<bool>,
    /// Its volumes. Absent where it has none.
    #[serde(rename = "volumeMounts", default, skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
}

/// A sandbox as `GET /sandboxes/{id}` shows it: what lists show, and more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxDetail {
    /// The fields that lists show.
    #[serde(flatten)]
    pub listed: ListedSandbox,
    /// Token for envd.
    #[serde(rename = "envdAccessToken", default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Whether outbound connections are allowed.
    #[serde(rename = "allowInternetAccess", default, skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// Domain of its host names.
    #[serde(default)]
    pub domain: Option<String>,
    /// Its end of life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
    /// Traffic rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfig>,
    /// Whether the pause kept the memory; while paused.
    #[serde(rename = "pauseMode", default, skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<PauseMode>,
}

/// The kind of a node of `GET /lineage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineageKind {
    /// A template.
    Template,
    /// A snapshot.
    Snapshot,
    /// A sandbox.
    Sandbox,
}

/// A node of `GET /lineage`, which is Firkin's own: something, and what came from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageNode {
    /// Its kind.
    pub kind: LineageKind,
    /// Its id.
    pub id: String,
    /// Its full names.
    pub names: Vec<String>,
    /// Present for a sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<SandboxState>,
    /// When it was made; of a sandbox, when it was last started.
    pub since: Timestamp,
    /// Its children, oldest first.
    pub children: Vec<LineageNode>,
}

/// One child of a fork: exactly one of the two is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkResult {
    /// The child.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Sandbox>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// May be given as `templateID` to create.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// Its names, with tags.
    pub names: Vec<String>,
}

/// One sample of a sandbox's use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SandboxMetric {
    /// When.
    pub timestamp: Timestamp,
    /// When, Unix seconds.
    #[serde(rename = "timestampUnix")]
    pub timestamp_unix: i64,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount")]
    pub cpu_count: u32,
    /// Use of all of them, 0 to 100.
    #[serde(rename = "cpuUsedPct")]
    pub cpu_used_pct: f64,
    /// Bytes of memory in use, page cache excluded.
    #[serde(rename = "memUsed")]
    pub mem_used: u64,
    /// Bytes of memory.
    #[serde(rename = "memTotal")]
    pub mem_total: u64,
    /// Bytes of page cache.
    #[serde(rename = "memCache")]
    pub mem_cache: u64,
    /// Bytes used on the root file system.
    #[serde(rename = "diskUsed")]
    pub disk_used: u64,
    /// Size of the root file system in bytes.
    #[serde(rename = "diskTotal")]
    pub disk_total: u64,
}

/// `GET /sandboxes/metrics`: the newest sample of each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxesMetrics {
    /// By sandbox id.
    pub sandboxes: BTreeMap<String, SandboxMetric>,
}

/// How much a line of a log matters, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// For those who look for a fault.
    Debug,
    /// The ordinary.
    Info,
    /// Something is odd.
    Warn,
    /// Something failed.
    Error,
}

/// One line of a log, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When.
    pub timestamp: Timestamp,
    /// For people.
    pub message: String,
    /// How much it matters.
    pub level: LogLevel,
    /// For programs.
    pub fields: BTreeMap<String, String>,
}

/// One line of a log as the first generation has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub timestamp: Timestamp,
    /// A JSON object with `level`, `message`, `logger` and fields.
    pub line: String,
}

/// `GET /sandboxes/{id}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLogs {
    /// The lines.
    pub logs: Vec<LogLine>,
    /// The same, taken apart.
    #[serde(rename = "logEntries")]
    pub log_entries: Vec<LogEntry>,
}

/// `GET /v2/sandboxes/{id}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLogsV2 {
    /// The lines.
    pub logs: Vec<LogEntry>,
}

/// A team, in `GET /teams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Team {
    /// Its id.
    #[serde(rename = "teamID")]
    pub team_id: String,
    /// Its name.
    pub name: String,
    /// A key of it.
    #[serde(rename = "apiKey")]
    pub api_key: String,
    /// Whether it is used when none is named.
    #[serde(rename = "isDefault")]
    pub is_default: bool,
}

/// `POST /templates/tags`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AssignTags {
    /// `name` or `name:tag`.
    pub target: String,
    /// What it shall be called too.
    pub tags: Vec<String>,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedTags {
    /// The tags.
    pub tags: Vec<String>,
    /// The build that they name.
    #[serde(rename = "buildID")]
    pub build_id: String,
}

/// `DELETE /templates/tags`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RemoveTags {
    /// The name.
    pub name: String,
    /// Its tags that go.
    pub tags: Vec<String>,
}

/// One tag of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateTag {
    /// The tag.
    pub tag: String,
    /// The build that it names.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// When that was made.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
}

/// How far a template build has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuildStatus {
    /// Not started.
    Waiting,
    /// Under way.
    Building,
    /// Usable.
    Ready,
    /// Failed.
    Error,
}

/// Who made a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamUser {
    /// UUID.
    pub id: String,
    /// Address, if known.
    pub email: Option<String>,
}

/// A template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its id.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The build that its default tag names.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount")]
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    /// Whether other teams may use it.
    pub public: bool,
    /// Names without a team; kept for older clients.
    pub aliases: Vec<String>,
    /// Names, with the team.
    pub names: Vec<String>,
    /// Tags of its builds. Ours: the contract has a route for them.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Its description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether SDKs name it when their users do not.
    #[serde(rename = "isDefault", default, skip_serializing_if = "Option::is_none")]
    pub is_default: Option<bool>,
    /// When it was made.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// When it was last built.
    #[serde(rename = "updatedAt")]
    pub updated_at: Timestamp,
    /// Who made it.
    #[serde(rename = "createdBy")]
    pub created_by: Option<TeamUser>,
    /// When a sandbox was last created from it.
    #[serde(rename = "lastSpawnedAt")]
    pub last_spawned_at: Option<Timestamp>,
    /// How many sandboxes were created from it.
    #[serde(rename = "spawnCount")]
    pub spawn_count: u64,
    /// How often it was built.
    #[serde(rename = "buildCount")]
    pub build_count: u64,
    /// Version of envd inside.
    #[serde(rename = "envdVersion")]
    pub envd_version: String,
    /// How far its build has come.
    #[serde(rename = "buildStatus")]
    pub build_status: BuildStatus,
}

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateBuild {
    /// UUID.
    #[serde(rename = "buildID")]
    pub build_id: String,
    /// How far it has come.
    pub status: BuildStatus,
    /// When it was asked for.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// When it last changed.
    #[serde(rename = "updatedAt")]
    pub updated_at: Timestamp,
    /// When it ended.
    #[serde(rename = "finishedAt", default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// Virtual CPUs.
    #[serde(rename = "cpuCount")]
    pub cpu_count: u32,
    /// Memory, MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Disk, MiB.
    #[serde(rename = "diskSizeMB", default, skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u64>,
    /// Version of envd inside.
    #[serde(rename = "envdVersion", default, skip_serializing_if = "Option::is_none")]
    pub envd_version: Option<String>,
}

/// `GET /templates/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TemplateWithBuilds {
    /// The template.
    #[serde(flatten)]
    pub template: Template,
    /// Its builds, newest first.
    pub builds: Vec<TemplateBuild>,
}

/// `GET /templates/aliases/{alias}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateAlias {
    /// The template that bears the name.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Whether other teams may use it.
    pub public: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_ignored_and_known_ones_are_read() {
        let body: NewSandbox =
            serde_json::from_str(r#"{"templateID":"base","timeout":60,"network":{"denyOut":["0.0.0.0/0"],"y":2},"x":1}"#)
                .unwrap();
        assert_eq!((body.template_id.as_str(), body.timeout), ("base", Some(60)));
        assert_eq!(body.network.unwrap().deny_out, Some(vec!["0.0.0.0/0".to_owned()]));
    }

    #[test]
    fn a_sandbox_says_domain_null_and_omits_absent_tokens() {
        let sandbox = Sandbox {
            template_id: "base".into(),
            sandbox_id: "i1".into(),
            client_id: "c".into(),
            envd_version: "0.6.13".into(),
            alias: None,
            envd_access_token: None,
            traffic_access_token: None,
            domain: None,
        };
        assert_eq!(
            serde_json::to_string(&sandbox).unwrap(),
            r#"{"templateID":"base","sandboxID":"i1","clientID":"c","envdVersion":"0.6.13","domain":null}"#
        );
    }

    #[test]
    fn a_request_writes_nothing_for_what_is_absent() {
        assert_eq!(serde_json::to_string(&ConnectSandbox::default()).unwrap(), "{}");
        assert_eq!(
            serde_json::to_string(&PauseSandbox { memory: Some(false), ..Default::default() }).unwrap(),
            r#"{"memory":false}"#
        );
    }
}
