//! A sandbox as others see it: its id, the request that created it, and its published state.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv4Addr,
    str::FromStr,
    time::Duration,
};

use firkin_network::EgressFilter;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{capacity::ResourceBudget, ground::team::TeamId};

/// Life of a sandbox whose creator names none, in seconds.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest life that may be asked for at once: the contract's 24 hours.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

const MAX_ID_LENGTH: usize = 64;

/// Id of a sandbox: lower-case letters and digits, so that it can stand in a host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// A text that is not a sandbox id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a sandbox id: it must be 1 to {MAX_ID_LENGTH} lower-case letters and digits")]
pub struct InvalidSandboxId(String);

impl SandboxId {
    /// Characters of an id.
    pub(crate) const LENGTH: usize = 21;

    /// A new id: `i` and 20 random characters, 103 bits.
    pub fn generate() -> Self {
        Self(format!("i{}", crate::ground::random::alphanumeric(Self::LENGTH - 1)))
    }

    /// Whether [`SandboxId::generate`] could have given it.
    pub fn is_generated(&self) -> bool {
        self.0.len() == Self::LENGTH && self.0.starts_with('i')
    }

    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidSandboxId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid =
            (1..=MAX_ID_LENGTH).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidSandboxId(text.chars().take(MAX_ID_LENGTH).collect())) }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidSandboxId;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The action at a sandbox's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It ends and its state is gone.
    Kill,
    /// It is paused with its memory.
    Pause,
    /// It is paused without its memory: its files are kept, and it boots from them when it is resumed.
    PauseFiles,
}

/// Whether a pause, snapshot or resume keeps the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Memory {
    /// It is kept: processes go on where they were.
    Kept,
    /// It is dropped: the disk is kept, and its guest boots from it. No process lives on.
    Dropped,
}

/// Whether the guest reaches anything outside its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InternetAccess {
    /// Through the host, masqueraded. Never the host itself, never another guest.
    Allowed,
    /// Nothing.
    Denied,
    /// As `Allowed`, but only where the filter lets it.
    Filtered(EgressFilter),
    /// As `Allowed`, but only where rules with names let it, or by way of a proxy.
    Steered(Box<Steered>),
}

impl InternetAccess {
    /// The same for a sandbox of this team that has these identity tokens.
    pub(crate) fn of_team(mut self, team: TeamId, tokens: &BTreeMap<String, WorkloadToken>) -> Self {
        if let Self::Steered(steered) = &mut self {
            steered.team = team;
            steered.tokens.clone_from(tokens);
        }
        self
    }
}

/// Outbound rules that packets cannot be judged by: somebody has to listen to what a guest calls its hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steered {
    /// Names, `*.` names, addresses and networks that are allowed whatever is denied.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Addresses and networks that are denied.
    #[serde(default)]
    pub deny: Vec<String>,
    /// Who is asked for the addresses of allowed names; with none, no name leads anywhere. `None`: whom the host asks.
    #[serde(default)]
    pub resolvers: Option<Vec<Ipv4Addr>>,
    /// What TCP goes through.
    #[serde(default)]
    pub proxy: Option<SocksProxy>,
    /// What is put into requests, by host. Not more than one entry for a set of hosts.
    #[serde(default)]
    pub filled: Vec<Filled>,
    /// Whose secrets these are.
    #[serde(default)]
    pub team: TeamId,
    /// The sandbox's identity tokens, which may be among it.
    #[serde(default)]
    pub tokens: BTreeMap<String, WorkloadToken>,
}

/// What a sandbox can be known by: for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadToken {
    /// Who is to believe it.
    pub audience: String,
}

/// Headers that are put into requests over TLS to some hosts.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// A name, or `*.` and one for all below it.
    pub host: String,
    /// Names and texts, with places for secrets and identity tokens in E2B's notation.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Names of secrets whose placeholder is replaced wherever the sandbox itself sends it in a header.
    #[serde(default)]
    pub placeholders: Vec<String>,
}

/// Without the texts: people write values into them.
impl fmt::Debug for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Filled").field("host", &self.host).field("headers", &names).finish_non_exhaustive()
    }
}

/// A SOCKS5 proxy of the user's.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocksProxy {
    /// `host:port`.
    pub address: String,
    /// Name and password.
    #[serde(default)]
    pub credentials: Option<(String, String)>,
    /// Speak TLS with it.
    #[serde(default)]
    pub tls: Option<SocksProxyTls>,
}

/// How TLS is spoken with a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocksProxyTls {
    /// The name in its certificate, if that is not the one in its address.
    #[serde(default)]
    pub server_name: Option<String>,
    /// PEM of the authorities that it is believed of, in the place of the host's.
    #[serde(default)]
    pub authorities: Option<String>,
}

/// Without its password, which is in no log.
impl fmt::Debug for SocksProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("SocksProxy");
        shown.field("credentials", &self.credentials.is_some()).field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// Who may reach the ports of a sandbox, other than envd's, and as whom they come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// Whether callers must show the sandbox's own traffic token.
    #[serde(default)]
    pub private: bool,
    /// `Host` header that servers in the guest see; `${PORT}` stands for the port. `None` leaves it as it came.
    #[serde(default)]
    pub mask_host: Option<String>,
    /// Ports whose servers in the guest speak TLS: they are spoken to in it, and whatever certificate they show is taken.
    #[serde(default)]
    pub https_ports: BTreeSet<u16>,
}

/// The request that created a sandbox. Kept for its whole life, through pauses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSandbox {
    /// Template id, template name, `name:tag`, or a snapshot's id.
    pub template: String,
    /// Time until the deadline.
    pub timeout: Duration,
    /// The action at the deadline.
    pub on_timeout: OnTimeout,
    /// Whether traffic to a paused sandbox resumes it.
    pub auto_resume: bool,
    /// Environment of every command.
    pub env: BTreeMap<String, String>,
    /// The creator's own labels.
    pub metadata: BTreeMap<String, String>,
    /// Outbound network.
    pub internet: InternetAccess,
    /// Resolvers that names in the outbound rules may be asked of. Kept and shown, and of no effect where rules have no names.
    #[serde(default)]
    pub dns_servers: Option<Vec<Ipv4Addr>>,
    /// Inbound network.
    #[serde(default)]
    pub ingress: Ingress,
    /// By what it can be known to others, by name.
    #[serde(default)]
    pub tokens: BTreeMap<String, WorkloadToken>,
    /// Volumes that it has.
    #[serde(default)]
    pub volumes: Vec<VolumeMount>,
    /// Whether envd demands an access token. The v2 API always does.
    pub secure: bool,
}

/// A volume in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// What it was called when the sandbox was created.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// Whether nothing of it can be changed from there.
    #[serde(default)]
    pub read_only: bool,
    /// Its id. Empty in a request: the create looks it up.
    #[serde(default)]
    pub(crate) volume: String,
}

impl VolumeMount {
    /// The volume of this name, at this path, to read and write.
    pub fn new(name: impl Into<String>, path: impl Into<String>) -> Self {
        Self { name: name.into(), path: path.into(), read_only: false, volume: String::new() }
    }
}

/// Bytes of the labels of one sandbox, names and values together. They are kept with it, and shown with it wherever it is listed.
pub const MAX_METADATA_BYTES: usize = 64 << 10;

/// Labels that are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`metadata` has {bytes} bytes, the limit is {MAX_METADATA_BYTES}")]
pub struct TooMuchMetadata {
    /// How much there is.
    pub bytes: usize,
}

/// What labels take, bytes: names and values.
pub(crate) fn metadata_bytes(metadata: &BTreeMap<String, String>) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

impl CreateSandbox {
    /// Refuses more labels than are kept.
    pub(crate) fn check_metadata(&self) -> Result<(), TooMuchMetadata> {
        let bytes = metadata_bytes(&self.metadata);
        if bytes > MAX_METADATA_BYTES { Err(TooMuchMetadata { bytes }) } else { Ok(()) }
    }

    /// Whether it has the volume with this id.
    pub(crate) fn has_volume(&self, id: &str) -> bool {
        self.volumes.iter().any(|mount| mount.volume == id)
    }

    /// A request with every default: 300 s, then killed; internet; secured.
    pub fn from_template(template: impl Into<String>) -> Self {
        Self {
            template: template.into(),
            timeout: DEFAULT_TIMEOUT,
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
            env: BTreeMap::new(),
            metadata: BTreeMap::new(),
            internet: InternetAccess::Allowed,
            dns_servers: None,
            ingress: Ingress::default(),
            tokens: BTreeMap::new(),
            volumes: Vec::new(),
            secure: true,
        }
    }
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// It runs, or is being restored.
    Running,
    /// It is held as a snapshot (or is becoming one) and costs no memory.
    Paused,
}

/// A sandbox as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeSandbox {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub owner: TeamId,
    /// Id of the template or snapshot it came from.
    pub template_id: String,
    /// Which build of that; absent for sandboxes of earlier servers.
    pub build_id: Option<String>,
    /// Name of that template, when it has one.
    pub alias: Option<String>,
    /// Running or paused.
    pub state: SandboxState,
    /// Whether there is memory that a resume goes on with. A running sandbox has it.
    pub memory: Memory,
    /// Whether it runs in a machine that had been kept warm for it.
    pub claimed: bool,
    /// When it was created or last resumed.
    pub started_at: Timestamp,
    /// Its deadline. For a paused sandbox, when it was paused.
    pub end_at: Timestamp,
    /// cpu, memory, disk.
    pub budget: ResourceBudget,
    /// The token that envd demands in `X-Access-Token`, if any.
    pub envd_access_token: Option<String>,
    /// The token that callers of other ports must show, if any.
    pub traffic_access_token: Option<String>,
    /// The request that created it.
    pub spec: CreateSandbox,
}

/// No such sandbox, or no longer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("sandbox `{0}` does not exist")]
pub struct NoSuchSandbox(pub SandboxId);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded() {
        let with = |bytes: usize| CreateSandbox {
            metadata: [("a".to_owned(), "b".repeat(bytes - 1))].into(),
            ..CreateSandbox::from_template("base")
        };
        assert_eq!(with(MAX_METADATA_BYTES).check_metadata(), Ok(()));
        assert_eq!(with(MAX_METADATA_BYTES + 1).check_metadata(), Err(TooMuchMetadata { bytes: MAX_METADATA_BYTES + 1 }));
    }
}
