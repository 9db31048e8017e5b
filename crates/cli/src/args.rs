//! What may be typed: the grammar of the command line, and nothing else.
//!
//! Defaults that depend on anything but the text itself are not here: `settings` resolves them, so that this file stays a
//! description and every value has one place where it is decided.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use firkin_image::oci::registry::MirrorError;
use firkin_runtime::{
    reference::{BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY, Reference},
    runtime::MAX_FORK,
};
use firkin_traces::Collector;
use firkin_wire::DEFAULT_USER;
use ipnet::Ipv4Net;

pub(crate) mod bench;
pub(crate) mod catalog;
pub(crate) mod cluster;
pub(crate) mod configuring;
pub(crate) mod moving;
pub(crate) mod node;
pub(crate) mod teams;
pub(crate) mod watching;

use self::{
    bench::BenchArgs,
    catalog::CatalogArgs,
    cluster::ClusterCommand,
    configuring::ConfigCommand,
    moving::{ExportArgs, ImportArgs, ImportNamedArgs, SnapshotCommand},
    node::{NodeArgs, NodeCommand, WardenArgs},
    teams::{AddKeyArgs, AuditArgs, ExpireKeyArgs, ListKeysArgs, RevokeKeyArgs, TeamCommand},
    watching::{CompletionsArgs, CopyArgs, EventsArgs, ForwardArgs, LogLevelArgs, LogsArgs, ManArgs, WatchArgs, WebhookCommand},
};
use crate::{
    capacity::CapacityArgs,
    copies::{CopiesArgs, RestoreFromArgs},
    hostnames::HostnameArgs,
    images::ImageSettings,
    logging::LogFormat,
    rates::RateArgs,
    standard::Part,
};

/// Life of a sandbox, unless the user says otherwise: as long as E2B's SDKs give theirs.
const LIFE_SECONDS: u32 = 300;

/// Sandboxes for AI agents, each a virtual machine restored from a snapshot.
#[derive(Debug, Parser)]
#[command(name = "firkin", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// Where the server keeps its state, and where other commands find it [default: /var/lib/firkin]
    #[arg(long, global = true, value_name = "DIR", env = "FIRKIN_STATE_DIR", hide_env_values = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// The API key, in a file that is nobody else's: servers accept it, other commands show it
    /// [default: for `up` systemd's credential `api-key`; for others the key in the state directory, else E2B_API_KEY]
    #[arg(long, global = true, value_name = "FILE", env = "FIRKIN_API_KEY_FILE", hide_env_values = true)]
    pub(crate) api_key_file: Option<PathBuf>,
    /// File that says what options do, for what is neither typed nor set by a variable [default: /etc/firkin/firkin.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "FIRKIN_CONFIG", hide_env_values = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON even on a terminal
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Answer every question with yes
    #[arg(long, short = 'y', global = true)]
    pub(crate) yes: bool,
}

/// Options of the commands that run machines themselves.
#[derive(Debug, Default, Args)]
pub(crate) struct HostArgs {
    /// Downloads and builds that servers share [default: /var/cache/firkin]
    #[arg(long, value_name = "DIR", env = "FIRKIN_CACHE_DIR", hide_env_values = true)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// What runs sandboxes; several to have what was made by each, the first for what is new [default: auto]
    #[arg(long, value_enum, value_name = "ENGINE", value_delimiter = ',', env = "FIRKIN_ENGINE", hide_env_values = true)]
    pub(crate) engine: Vec<EngineChoice>,
    /// The same by its earlier name, for one more release
    #[arg(long, value_enum, env = "FIRKIN_ACCEL", hide_env_values = true, hide = true, conflicts_with = "engine")]
    pub(crate) accel: Option<EngineChoice>,
    /// How long a guest may take to show that KVM works, in seconds; more for a very busy host [default: 20]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=600), env = "FIRKIN_KVM_DEADLINE", hide_env_values = true)]
    pub(crate) kvm_deadline: Option<u64>,
    /// Kernel that virtual machines boot in place of Debian's, a bzImage or an ELF `vmlinux`, for variants of KVM that need one of their
    /// own. Built in must be virtio (PCI and MMIO; block, net, console, rng, balloon), ext4, devtmpfs, initramfs and an 8250 serial console
    #[arg(long, value_name = "FILE", env = "FIRKIN_GUEST_KERNEL", hide_env_values = true)]
    pub(crate) guest_kernel: Option<PathBuf>,
    /// What to do where this host lacks a part of the jail that machines run in [default: best]
    #[arg(long, value_enum, env = "FIRKIN_JAIL", hide_env_values = true)]
    pub(crate) jail: Option<JailChoice>,
}

/// Options of the commands that serve.
#[derive(Debug, Default, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Address and port to serve on [default: 127.0.0.1:3000]
    #[arg(long, value_name = "ADDR:PORT", env = "FIRKIN_LISTEN", hide_env_values = true)]
    pub(crate) listen: Option<SocketAddr>,
    /// Domain of the sandboxes' host names, as in PORT-ID.DOMAIN [default with --tls-listen: firkin.localhost]
    #[arg(long, env = "FIRKIN_DOMAIN", hide_env_values = true)]
    pub(crate) domain: Option<String>,
    /// Sandboxes to keep restored and ready, of each template or of one; more under demand, none for 0; may be repeated
    /// [default: 2 for up, else 0]
    #[arg(long, value_name = "[TEMPLATE=]COUNT", value_parser = warm)]
    pub(crate) warm: Vec<Warm>,
    /// Engines to keep prepared for creates that find no such sandbox, of each template or of one; may be repeated
    /// [default: as many as --warm, at most 2]
    #[arg(long, value_name = "[TEMPLATE=]COUNT", value_parser = warm)]
    pub(crate) prepared: Vec<Warm>,
    /// Serve HTTPS here too, for <https://PORT-ID.DOMAIN>
    #[arg(long, value_name = "ADDR:PORT", env = "FIRKIN_TLS_LISTEN", hide_env_values = true)]
    pub(crate) tls_listen: Option<SocketAddr>,
    /// Certificate chain for *.DOMAIN, PEM [default: with --domain, systemd's credential `tls-cert`, else one by an authority of the
    /// server's own]
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_listen", "domain"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Private key of that certificate, PEM, in a file that is nobody else's [default: systemd's credential `tls-key`]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// What becomes of running sandboxes when the server stops [default: kill]
    #[arg(long, value_enum, value_name = "WHAT", env = "FIRKIN_ON_EXIT", hide_env_values = true)]
    pub(crate) on_exit: Option<OnExit>,
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    #[command(flatten)]
    pub(crate) capacity: CapacityArgs,
    #[command(flatten)]
    pub(crate) rates: RateArgs,
    #[command(flatten)]
    pub(crate) images: ImageArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) hostnames: HostnameArgs,
    #[command(flatten)]
    pub(crate) encryption: EncryptionArgs,
    #[command(flatten)]
    pub(crate) copies: CopiesArgs,
    /// URL under which others reach this server to ask for the key of sandboxes' identity tokens; tokens name it as their issuer
    /// [default: `https://firkin.localhost`, which nobody reaches]
    #[arg(long, value_name = "URL", env = "FIRKIN_IDENTITY_ISSUER", hide_env_values = true, value_parser = issuer)]
    pub(crate) identity_issuer: Option<String>,
    /// How lines of the log look, on standard error [default: text]
    #[arg(long, value_enum, value_name = "FORMAT", env = "FIRKIN_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: Option<LogFormat>,
    /// Send spans of what is done for requests to this collector of OpenTelemetry, by OTLP over HTTP, at /v1/traces below it
    /// [default: nothing is sent]
    #[arg(long, value_name = "URL", env = "FIRKIN_OTLP_ENDPOINT", hide_env_values = true)]
    pub(crate) otlp_endpoint: Option<Collector>,
    /// Let webhooks point into this network, which is not the internet's, also by plain HTTP; may be repeated
    #[arg(long, value_name = "NETWORK", env = "FIRKIN_WEBHOOK_ALLOW", hide_env_values = true, value_delimiter = ',')]
    pub(crate) webhook_allow: Vec<Ipv4Net>,
    /// Let clients build templates whose guests may run guests: they see the host's virtualisation
    #[arg(long, env = "FIRKIN_ALLOW_NESTED_VIRTUALIZATION", hide_env_values = true)]
    pub(crate) allow_nested_virtualization: bool,
    /// Connections that one peer may hold, unless it is this host; more for a proxy or a network behind one address
    /// [default: 2048]
    #[arg(long, value_name = "COUNT", env = "FIRKIN_MAX_CONNECTIONS_PER_PEER", hide_env_values = true,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections_per_peer: Option<u32>,
    /// Let other hosts in by plain HTTP: keys and tokens pass the network in the clear
    #[arg(long, env = "FIRKIN_ALLOW_PLAIN_HTTP", hide_env_values = true)]
    pub(crate) allow_plain_http: bool,
    /// Let other hosts in where machines are emulated: the emulator is no boundary against what runs in them
    #[arg(long, env = "FIRKIN_ALLOW_EMULATION", hide_env_values = true)]
    pub(crate) allow_emulation: bool,
}

/// What of a state directory is encrypted.
#[derive(Debug, Default, Args)]
pub(crate) struct EncryptionArgs {
    /// Encrypt memory, device state and disks of paused sandboxes and snapshots from now on
    #[arg(long, env = "FIRKIN_ENCRYPT_AT_REST", hide_env_values = true)]
    pub(crate) encrypt_at_rest: bool,
    #[command(flatten)]
    pub(crate) key: KeyFileArgs,
}

/// Where an installation's key is.
#[derive(Debug, Default, Args)]
pub(crate) struct KeyFileArgs {
    /// File with the key that states are encrypted with, 64 hexadecimal digits
    /// [default: firkin-encryption-key of systemd's credentials, else encryption.key in the state directory]
    #[arg(long, value_name = "FILE", env = "FIRKIN_ENCRYPTION_KEY_FILE", hide_env_values = true)]
    pub(crate) encryption_key_file: Option<PathBuf>,
}

/// Whom guests trust.
#[derive(Debug, Default, Args)]
pub(crate) struct TrustArgs {
    /// Have guests trust the authorities in /usr/local/share/ca-certificates of this host
    #[arg(long, env = "FIRKIN_TRUST_HOST_CERTIFICATES", hide_env_values = true)]
    pub(crate) trust_host_certificates: bool,
}

/// Where images come from that templates are built on.
#[derive(Debug, Default, Args)]
pub(crate) struct ImageArgs {
    /// Ask this host for images of a registry [default registry: docker.io]; may be repeated
    #[arg(long, value_name = "[REGISTRY=]HOST[:PORT]", value_parser = mirror)]
    pub(crate) registry_mirror: Vec<String>,
    /// Image that this host's own root image stands for, beside e2bdev/base; may be repeated
    #[arg(long, value_name = "IMAGE")]
    pub(crate) own_image: Vec<String>,
}

/// What runs sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineChoice {
    /// KVM if a tiny guest runs under it, else gVisor if it has all that E2B's SDKs need, else the emulator
    Auto,
    /// Virtual machines by the host's hardware, or fail
    Kvm,
    /// No virtual machines: gVisor's kernel on the host's processor, or fail
    Gvisor,
    /// QEMU's emulator: works everywhere, slow CPU
    #[value(alias = "tcg")]
    Emulated,
}

impl EngineChoice {
    /// As it is written on a command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Gvisor => "gvisor",
            Self::Emulated => "emulated",
        }
    }
}

/// What a host that does not give all of a machine's jail means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum JailChoice {
    /// Machines run in what it gives; what is missing is said
    Best,
    /// Nothing is served
    Strict,
}

/// How many sandboxes to keep ready, or engines prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Warm {
    /// Of this template, or of all that are not named.
    pub(crate) template: Option<Reference>,
    pub(crate) count: u32,
}

/// What becomes of running sandboxes when the server stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnExit {
    /// They end
    Kill,
    /// They are paused with their memory and can be resumed later
    Pause,
    /// They go on, and the next server takes them over: for an upgrade
    Leave,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve in the foreground until Ctrl-C
    Up(ServeArgs),
    /// Set up this host, try every part of the product once, say how to go on
    Quickstart(ServeArgs),
    /// Say whether this host is ready, and what is missing
    Doctor(DoctorArgs),
    /// Print the export lines that point the E2B SDKs at the server: eval "$(firkin env)"
    Env,
    /// Measure creates, pauses, forks and density
    Bench(BenchArgs),
    /// Read every template and snapshot, and say what is damaged and who needs it
    Verify(VerifyArgs),
    /// Make a state directory anew of what `firkin up --copy-to` has copied, and say what is lost
    RestoreFrom(RestoreFromArgs),
    /// Create, use and end sandboxes
    #[command(subcommand, visible_alias = "sbx")]
    Sandbox(SandboxCommand),
    /// Build, list and remove templates
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Move snapshots between hosts
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Tell what happened to sandboxes, or with --follow what happens to everything
    Events(EventsArgs),
    /// Watch sandboxes and the host live, on this terminal
    Top,
    /// Send events of sandboxes to URLs, signed
    #[command(subcommand)]
    Webhook(WebhookCommand),
    /// Say whether this program can go on with what the server left or still runs, before it is replaced
    UpgradeCheck,
    /// Have what is on record in a database, back it up, and say how a cluster is
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at the nodes of a cluster, and say that one is off
    #[command(subcommand)]
    Node(NodeCommand),
    /// Stop machines when the lease of a node is over: a node starts this itself
    #[command(hide = true)]
    Warden(WardenArgs),
    /// Check and show the configuration of `up`
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a script that completes commands and options in a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write one of each command
    Man(ManArgs),
    /// Show what the server logs, or change it while it runs
    LogLevel(LogLevelArgs),
    /// Say who changed what, when, from where and with which outcome
    Audit(AuditArgs),
    /// Make and list teams, and say what each may have
    #[command(subcommand)]
    Team(TeamCommand),
    /// Make, list and end API keys, and work on the key that paused sandboxes are encrypted with
    #[command(subcommand)]
    Key(KeyCommand),
}

/// `firkin key ...`
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make an API key of a team, and print it: it cannot be shown again
    Add(AddKeyArgs),
    /// List API keys, without the keys, also those that ended
    #[command(visible_alias = "list")]
    Ls(ListKeysArgs),
    /// Have a key open nothing any more, at once and for good
    Revoke(RevokeKeyArgs),
    /// Say when a key ends
    Expire(ExpireKeyArgs),
    /// Encrypt with a new key from now on; data keys are wrapped anew, nothing else is written
    Rotate(KeyFileArgs),
}

/// `firkin doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// Look also at the cluster that has its catalogue in this PostgreSQL: its database, its secret, clocks, and the peer ports of its nodes
    #[arg(long, value_name = "URL", env = "FIRKIN_CLUSTER", hide_env_values = true, conflicts_with = "catalog",
          value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) cluster: Option<String>,
    /// The cluster's secret, in a file that is nobody else's
    #[arg(long, value_name = "FILE", env = "FIRKIN_CLUSTER_SECRET_FILE", hide_env_values = true)]
    pub(crate) cluster_secret_file: Option<PathBuf>,
    /// Install and change what is missing, after asking
    #[arg(long)]
    pub(crate) fix: bool,
}

/// `firkin verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
}

/// `firkin sandbox ...`
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Create a sandbox from a template
    Create(CreateArgs),
    /// List sandboxes, newest first
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Show one sandbox
    Info(OneSandbox),
    /// Run a command, stream its output, end with its exit status
    Exec(ExecArgs),
    /// Open a login shell on this terminal
    Shell(ShellArgs),
    /// Stop sandboxes, keeping memory and files
    Pause(PauseArgs),
    /// Continue paused sandboxes
    Resume(ResumeArgs),
    /// Copy a running sandbox, memory included; the source goes on
    Fork(ForkArgs),
    /// Snapshot a running sandbox; new sandboxes can be created from the snapshot
    Snapshot(SnapshotArgs),
    /// Take a sandbox back to one of its own snapshots; it keeps its id and deadline
    Rollback(RollbackArgs),
    /// Have a sandbox go to another node of the cluster, where it goes on under the same id; connections into it are cut once
    Move(MoveArgs),
    /// Show templates, sandboxes and snapshots below what they came from
    Tree,
    /// Show what was decided on what a sandbox tried to reach by name or through a proxy
    NetworkLog(OneSandbox),
    /// Show what became of a sandbox, also after its end
    Logs(LogsArgs),
    /// Copy a file into a sandbox or out of it: `ID:PATH` is in a sandbox
    Cp(CopyArgs),
    /// Make a port of a sandbox one of this host, for anything that speaks TCP
    PortForward(ForwardArgs),
    /// Tell what changes in a directory of a sandbox
    Watch(WatchArgs),
    /// Write a paused sandbox, with all that it stands on, to one file; it stays as it is
    Export(ExportArgs),
    /// Take in a sandbox that was exported: it is paused, and has its id
    Import(ImportArgs),
    /// Set how long a sandbox lives from now on
    Timeout(TimeoutArgs),
    /// End sandboxes for good
    Kill(KillArgs),
}

/// A command that names one sandbox.
#[derive(Debug, Args)]
pub(crate) struct OneSandbox {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// A command that names sandboxes.
#[derive(Debug, Args)]
pub(crate) struct SomeSandboxes {
    /// Sandbox ids
    #[arg(value_name = "ID", required = true)]
    pub(crate) ids: Vec<String>,
}

/// `firkin sandbox create`
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Template name, template id or snapshot id
    #[arg(default_value = BASE)]
    pub(crate) template: String,
    /// Seconds until the sandbox ends
    #[arg(long, short, value_name = "SECONDS", default_value_t = LIFE_SECONDS)]
    pub(crate) timeout: u32,
    /// Pause, instead of kill, when the timeout is over
    #[arg(long)]
    pub(crate) auto_pause: bool,
    /// Cut the sandbox off from the internet
    #[arg(long)]
    pub(crate) no_internet: bool,
    /// Environment variable of every command; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Metadata to find it by; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
}

/// `firkin sandbox ls`
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those in this state
    #[arg(long, value_enum)]
    pub(crate) state: Option<StateFilter>,
    /// Only those with this metadata; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) metadata: Vec<(String, String)>,
    /// Only those of this template
    #[arg(long)]
    pub(crate) template: Option<String>,
}

/// Which sandboxes are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StateFilter {
    /// Running ones
    Running,
    /// Paused ones
    Paused,
}

/// `firkin sandbox exec`
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Run as this user
    #[arg(long, short, default_value = DEFAULT_USER)]
    pub(crate) user: String,
    /// Working directory [default: the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Environment variable; may be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Seconds until the command is killed [default: none]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Give the command a terminal and connect this one to it
    #[arg(long, short = 't')]
    pub(crate) tty: bool,
    /// The command and its arguments, after `--`
    #[arg(value_name = "CMD", required = true, last = true)]
    pub(crate) command: Vec<String>,
}

/// `firkin sandbox shell`
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Log in as this user
    #[arg(long, short, default_value = DEFAULT_USER)]
    pub(crate) user: String,
    /// Working directory [default: the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(crate) cwd: Option<String>,
}

/// `firkin sandbox pause`
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    pub(crate) sandboxes: SomeSandboxes,
    /// Drop the memory: only files are kept, and a resume boots from them
    #[arg(long)]
    pub(crate) files_only: bool,
}

/// `firkin sandbox resume`
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    pub(crate) sandboxes: SomeSandboxes,
    /// Seconds until the sandbox ends, from now on
    #[arg(long, short, value_name = "SECONDS", default_value_t = LIFE_SECONDS)]
    pub(crate) timeout: u32,
    /// Drop the memory that was kept, and boot from the files
    #[arg(long)]
    pub(crate) reboot: bool,
}

/// `firkin sandbox fork`
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// How many copies
    #[arg(long, short = 'n', default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FORK)))]
    pub(crate) count: u32,
    /// Seconds until the copies end
    #[arg(long, short, value_name = "SECONDS", default_value_t = LIFE_SECONDS)]
    pub(crate) timeout: u32,
}

/// `firkin sandbox snapshot`
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Name for the snapshot
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Leave the memory out: what is created from the snapshot boots from its files
    #[arg(long)]
    pub(crate) files_only: bool,
}

/// `firkin sandbox rollback`
#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Id or name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    pub(crate) snapshot: String,
}

/// `firkin sandbox move`
#[derive(Debug, Args)]
pub(crate) struct MoveArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Name or id of the node [default: the one where it fits best]
    #[arg(value_name = "NODE")]
    pub(crate) node: Option<String>,
}

/// `firkin sandbox timeout`
#[derive(Debug, Args)]
pub(crate) struct TimeoutArgs {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Seconds until it ends, from now on; 0 ends it at once
    pub(crate) seconds: u32,
}

/// `firkin sandbox kill`
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Sandbox ids
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) ids: Vec<String>,
    /// All of them, running and paused
    #[arg(long)]
    pub(crate) all: bool,
}

/// `firkin template ...`
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// Build a template, by the server that runs or without one
    Build(BuildArgs),
    /// Renew guest kernel and root images from this host's mirror, and the host's own templates on them
    Refresh(RefreshArgs),
    /// List templates
    #[command(visible_alias = "list")]
    Ls,
    /// Remove templates and their files
    Rm(RemoveArgs),
    /// Write what a template's tag stands for, with all that it stands on, to one file
    Export(ExportArgs),
    /// Take in a template that was exported
    Import(ImportNamedArgs),
}

/// `firkin template build`
#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// Name of the template
    #[arg(default_value = BASE)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub(crate) cpus: Option<u32>,
    /// Guest memory in MiB [default: 512]
    #[arg(long, value_name = "MIB")]
    pub(crate) memory: Option<u32>,
    /// Let its guests run guests: they see the host's virtualisation
    #[arg(long)]
    pub(crate) nested_virtualization: bool,
    /// Large parts to leave out of the code interpreter, which has all of them otherwise
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub(crate) without: Vec<Part>,
    /// Command to start before the snapshot; it is running in every sandbox
    #[arg(long, value_name = "CMD")]
    pub(crate) start_cmd: Option<String>,
    /// Command that succeeds once the snapshot may be taken
    #[arg(long, value_name = "CMD")]
    pub(crate) ready_cmd: Option<String>,
    /// Build again even if nothing changed
    #[arg(long)]
    pub(crate) force: bool,
}

/// `firkin template refresh`
#[derive(Debug, Args)]
pub(crate) struct RefreshArgs {
    /// Names of the host's own templates [default: those that are there]
    #[arg(value_name = "NAME", value_parser = [BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY])]
    pub(crate) names: Vec<String>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    #[command(flatten)]
    pub(crate) catalog: CatalogArgs,
    /// Large parts to leave out of the code interpreter [default: those that were left out before]
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    pub(crate) without: Option<Vec<Part>>,
}

/// `firkin template rm`
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Template names or ids
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// More warm sandboxes than network slots cannot be.
const MAX_WARM: u32 = 1024;

fn mirror(text: &str) -> Result<String, MirrorError> {
    ImageSettings::parse(&[text.to_owned()], &[]).map(|_| text.to_owned())
}

fn warm(text: &str) -> Result<Warm, String> {
    let (template, count) = match text.rsplit_once('=') {
        Some(("", _)) => return Err("expected a template's name before `=`".to_owned()),
        Some((template, count)) => {
            let named = Reference::of_first(template).map_err(|error| error.to_string())?;
            (Some(named.short()), count)
        }
        None => (None, text),
    };
    let count = count.parse().ok().filter(|count| *count <= MAX_WARM);
    Ok(Warm { template, count: count.ok_or_else(|| format!("expected a count up to {MAX_WARM}"))? })
}

/// A URL of a server as it stands in tokens: whoever compares it takes a slash at its end for another one.
fn issuer(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let plain = |rest: &str| !rest.is_empty() && !rest.contains(['?', '#', '@', ' ']);
    if rest.is_some_and(plain) { Ok(url.to_owned()) } else { Err("expected a URL such as https://firkin.example".to_owned()) }
}

/// Parses `KEY=VALUE`; the value may hold more `=`, the key may not be empty.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command).map_err(|error| error.kind())
    }

    #[test]
    fn the_grammar_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let Ok(Command::Sandbox(SandboxCommand::Exec(exec))) =
            parse("firkin sandbox exec i1 --user root --env A=b=c -- ls --json -la")
        else {
            panic!("exec did not parse");
        };
        assert_eq!(exec.command, ["ls", "--json", "-la"]);
        assert_eq!(exec.user, "root");
        assert_eq!(exec.env, [("A".to_owned(), "b=c".to_owned())]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        use clap::error::ErrorKind;
        for (line, kind) in [
            ("firkin sandbox exec i1", ErrorKind::MissingRequiredArgument),
            ("firkin sandbox kill", ErrorKind::MissingRequiredArgument),
            ("firkin sandbox kill i1 --all", ErrorKind::ArgumentConflict),
            ("firkin sandbox create --env novalue", ErrorKind::ValueValidation),
            ("firkin sandbox create --metadata =x", ErrorKind::ValueValidation),
            ("firkin sandbox fork i1 --count 0", ErrorKind::ValueValidation),
            ("firkin sandbox fork i1 --count 101", ErrorKind::ValueValidation),
            ("firkin up --listen nowhere", ErrorKind::ValueValidation),
            ("firkin up --on-exit explode", ErrorKind::InvalidValue),
            ("firkin up --warm =3", ErrorKind::ValueValidation),
            ("firkin up --warm base=many", ErrorKind::ValueValidation),
            ("firkin up --warm 1025", ErrorKind::ValueValidation),
            ("firkin up --prepared base=", ErrorKind::ValueValidation),
            ("firkin up --identity-issuer firkin.example", ErrorKind::ValueValidation),
            ("firkin frobnicate", ErrorKind::InvalidSubcommand),
        ] {
            assert_eq!(parse(line).map(|_| ()), Err(kind), "{line}");
        }
    }
}
