//! Command line, environment and defaults become one set of values, once.
//!
//! Every default of the command line is decided here and nowhere else; the rest of the program gets values, never options.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, stderr, stdin, stdout},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use firkin_runtime::{
    config::EncryptionConfig,
    engines::Acceleration,
    warm::{Depth, WarmConfig},
};
use firkin_server::{AllowedHosts, HostPattern};
use firkin_traces::Collector;
use ipnet::Ipv4Net;

use crate::{
    args::{
        Cli, Command, EncryptionArgs, EngineChoice, GlobalArgs, HostArgs, JailChoice, KeyCommand, OnExit, ServeArgs,
        TemplateCommand, Warm, catalog::CatalogArgs, cluster::ClusterCommand, configuring::ConfigCommand,
        node::ClusterAccessArgs,
    },
    capacity::CapacitySettings,
    catalog::CatalogSettings,
    cluster::NodeSettings,
    copies::CopySettings,
    hostnames,
    images::ImageSettings,
    logging::LogFormat,
    rates::RateSettings,
    secretfile::{self, Credentials, SecretFile},
};

const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 3000);
const DEFAULT_STATE_DIR: &str = "/var/lib/firkin";
/// One create is answered from the pool while the next session is being made. The other commands make few sandboxes, or none.
const DEFAULT_WARM: u32 = 2;
/// Below `localhost` (RFC 6761), so that names need no server: the C library's `myhostname` module resolves them.
pub(crate) const LOCAL_DOMAIN: &str = "firkin.localhost";
/// From power-on to power-off of the guest that shows whether hardware virtualisation works: 0.2 s where it does.
const DEFAULT_KVM_DEADLINE: Duration = Duration::from_secs(20);
const DEFAULT_CACHE_DIR: &str = "/var/cache/firkin";
/// Name of the credential by which systemd hands the encryption key over.
const ENCRYPTION_CREDENTIAL: &str = "firkin-encryption-key";

/// The surroundings of the program, read once so that resolution is a pure function.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// `E2B_API_URL`
    pub(crate) api_url: Option<String>,
    /// `E2B_API_KEY`
    pub(crate) api_key: Option<String>,
    /// `E2B_SANDBOX_URL`
    pub(crate) sandbox_url: Option<String>,
    /// The state directory was named by the configuration file, and by nobody who is here now.
    pub(crate) state_dir_from_file: bool,
    /// Where sockets listen that systemd handed to this process.
    pub(crate) handed: Vec<SocketAddr>,
    /// What systemd keeps for this process.
    pub(crate) credentials: Credentials,
    /// The key among the credentials that systemd gave this process, if there is one.
    pub(crate) encryption_key: Option<PathBuf>,
    /// Standard input is a terminal.
    pub(crate) stdin_tty: bool,
    /// Standard output is a terminal.
    pub(crate) stdout_tty: bool,
    /// Standard error is a terminal.
    pub(crate) stderr_tty: bool,
}

impl Surroundings {
    /// Those of this process. An empty variable counts as absent, as in every shell script.
    pub(crate) fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            api_url: variable("E2B_API_URL"),
            api_key: variable("E2B_API_KEY"),
            sandbox_url: variable("E2B_SANDBOX_URL"),
            state_dir_from_file: false,
            handed: Vec::new(),
            credentials: Credentials::of_process(),
            encryption_key: variable("CREDENTIALS_DIRECTORY")
                .map(|dir| Path::new(&dir).join(ENCRYPTION_CREDENTIAL))
                .filter(|path| path.exists()),
            stdin_tty: stdin().is_terminal(),
            stdout_tty: stdout().is_terminal(),
            stderr_tty: stderr().is_terminal(),
        }
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Who answers questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// `--yes`: everything is agreed to.
    Given,
    /// The person at the terminal.
    Ask,
    /// Nobody: what needs an answer is not done.
    Nobody,
}

/// Where client commands find the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerSource {
    /// The files that a server left in the state directory.
    StateDir,
    /// The variables that point the SDKs at a server.
    Variables {
        /// `E2B_API_URL`
        api_url: String,
        /// `E2B_SANDBOX_URL`, else the same.
        sandbox_url: String,
        /// `E2B_API_KEY`
        api_key: Option<String>,
    },
}

/// How HTTPS is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tls {
    /// Where.
    pub(crate) listen: SocketAddr,
    /// The operator's certificate chain and key; absent for an authority of the server's own.
    pub(crate) files: Option<(PathBuf, SecretFile)>,
}

/// Everything that is decided before a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// How results are printed.
    pub(crate) format: Format,
    /// Who answers questions.
    pub(crate) consent: Consent,
    /// Progress may redraw its line.
    pub(crate) live_progress: bool,
    /// Standard input is a terminal.
    pub(crate) stdin_tty: bool,
    /// Standard output is one.
    pub(crate) stdout_tty: bool,
    /// Where the server keeps its state.
    pub(crate) state_dir: PathBuf,
    /// Where client commands find the server.
    pub(crate) server: ServerSource,
    /// Where the operator keeps the API key, or the client its.
    pub(crate) secret_key: Option<SecretFile>,
    /// `E2B_API_KEY`: used when the state directory's key cannot be read.
    pub(crate) api_key: Option<String>,
    /// Downloads and builds that servers share.
    pub(crate) cache_dir: PathBuf,
    /// What runs sandboxes: the first what is new. Not empty.
    pub(crate) engines: Vec<EngineChoice>,
    /// How long a guest may take to show that KVM works.
    pub(crate) kvm_deadline: Duration,
    /// Kernel of virtual machines that the host's owner brings.
    pub(crate) guest_kernel: Option<PathBuf>,
    /// What a host means that does not give all of a machine's jail.
    pub(crate) jail: JailChoice,
    /// Address to serve on.
    pub(crate) listen: SocketAddr,
    /// The address was chosen by the user, so no other will do.
    pub(crate) listen_chosen: bool,
    /// Domain of the sandboxes' host names, with the port of HTTPS unless that is 443.
    pub(crate) domain: Option<String>,
    /// Sandboxes to keep restored and ready.
    pub(crate) warm: WarmConfig,
    /// HTTPS, if it is served.
    pub(crate) tls: Option<Tls>,
    /// What becomes of running sandboxes when the server stops.
    pub(crate) on_exit: OnExit,
    /// The part of the host that is promised to sandboxes.
    pub(crate) capacity: CapacitySettings,
    /// What one sandbox may have of the network.
    pub(crate) rates: RateSettings,
    /// Where what is durable is copied to, if anywhere.
    pub(crate) copies: Option<CopySettings>,
    /// Where images come from that templates are built on.
    pub(crate) images: ImageSettings,
    /// Guests trust the authorities of this host's administrator.
    pub(crate) trust_host_certificates: bool,
    /// Whether clients may build templates whose guests run guests.
    pub(crate) allow_nested_virtualization: bool,
    /// Connections that one peer may hold.
    pub(crate) max_connections_per_peer: Option<u32>,
    /// Host names that the server answers to beside its own.
    pub(crate) allowed_hosts: Vec<HostPattern>,
    /// Other hosts may come by plain HTTP.
    pub(crate) allow_plain_http: bool,
    /// Other hosts may come where machines are emulated.
    pub(crate) allow_emulation: bool,
    /// Whom identity tokens of sandboxes name as their issuer, if not nobody in particular.
    pub(crate) identity_issuer: Option<String>,
    /// How lines of the log look.
    pub(crate) log_format: LogFormat,
    /// Where spans are sent, if they are.
    pub(crate) collector: Option<Collector>,
    /// Networks that are not the internet's and that webhooks may point into.
    pub(crate) webhook_networks: Vec<Ipv4Net>,
    /// What paused sandboxes are encrypted with, if they are.
    pub(crate) encryption: EncryptionConfig,
    /// Where it is recorded what there is, if not in the state directory.
    pub(crate) catalog: Option<CatalogSettings>,
    /// The cluster that it is a node of, if it is of any.
    pub(crate) node: Option<NodeSettings>,
}

impl Settings {
    /// Environment of every template's sandboxes: how programs that bring authorities of their own are told of others.
    pub(crate) fn template_env(&self) -> BTreeMap<String, String> {
        if self.trust_host_certificates { firkin_image::certificate_variables().collect() } else { BTreeMap::new() }
    }

    /// Whether other hosts can come by plain HTTP and nobody said that they may.
    pub(crate) fn is_in_the_clear(&self) -> bool {
        !self.listen.ip().is_loopback() && !self.allow_plain_http
    }

    /// Whether other hosts can come.
    pub(crate) fn is_open(&self) -> bool {
        let elsewhere = |address: &SocketAddr| !address.ip().is_loopback();
        elsewhere(&self.listen) || self.tls.as_ref().is_some_and(|tls| elsewhere(&tls.listen))
    }

    /// Under which names it is asked.
    pub(crate) fn hosts(&self) -> AllowedHosts {
        hostnames::allowed(&self.allowed_hosts, self.domain.as_deref(), self.is_open())
    }

    /// Whether other hosts can come at all and nobody said that they may where machines are emulated.
    pub(crate) fn is_for_real_machines(&self) -> bool {
        self.is_open() && !self.allow_emulation
    }

    /// Where the server writes its address.
    pub(crate) fn server_file(&self) -> PathBuf {
        self.state_dir.join("server.json")
    }

    /// Where clients on this host find the API key that the server accepts.
    pub(crate) fn known_key_file(&self) -> PathBuf {
        self.secret_key.as_ref().map_or_else(|| self.api_key_file(), |file| absolute(&file.path))
    }

    /// The operator's secrets that a server is given.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &SecretFile> {
        let certificate = self.tls.iter().filter_map(|tls| tls.files.as_ref()).map(|(_, key)| key);
        let catalogs = self.catalog.iter().chain(self.node.iter().map(|node| &node.access.catalog));
        self.secret_key.iter().chain(certificate).chain(catalogs.filter_map(CatalogSettings::password))
    }

    /// Where the API key is kept in plain, readable by its owner only, unless the operator keeps it.
    pub(crate) fn api_key_file(&self) -> PathBuf {
        self.state_dir.join("api-key")
    }

    /// Where the token is kept that administers teams and keys, readable by its owner only.
    pub(crate) fn admin_token_file(&self) -> PathBuf {
        self.state_dir.join("admin-token")
    }

    /// Where the server writes down who changed what.
    pub(crate) fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// The last start's finding about this host's acceleration.
    pub(crate) fn acceleration_file(&self) -> PathBuf {
        self.cache_dir.join("acceleration.json")
    }

    /// The options that make another command of ours find the same directories and key, for hints to paste.
    pub(crate) fn state_option(&self) -> String {
        let mut options = String::new();
        if self.state_dir != Path::new(DEFAULT_STATE_DIR) {
            options += &format!(" --state-dir {}", self.state_dir.display());
        }
        if let Some(file) = &self.secret_key {
            options += &format!(" --api-key-file {}", absolute(&file.path).display());
        }
        options
    }

    /// The engine that a template was asked to be for, if one was.
    pub(crate) fn asked_engine(&self) -> Option<Acceleration> {
        match self.engines[0] {
            EngineChoice::Auto => None,
            EngineChoice::Kvm => Some(Acceleration::Kvm),
            EngineChoice::Gvisor => Some(Acceleration::Gvisor),
            EngineChoice::Emulated => Some(Acceleration::Tcg),
        }
    }

    /// The options that make another server of ours run like this one, for hints to paste.
    pub(crate) fn serve_options(&self) -> String {
        let mut options = String::new();
        if self.listen_chosen {
            options += &format!(" --listen {}", self.listen);
        }
        if self.cache_dir != Path::new(DEFAULT_CACHE_DIR) {
            options += &format!(" --cache-dir {}", self.cache_dir.display());
        }
        if self.engines != [EngineChoice::Auto] {
            let words: Vec<&str> = self.engines.iter().map(|engine| engine.word()).collect();
            options += &format!(" --engine {}", words.join(","));
        }
        if self.kvm_deadline != DEFAULT_KVM_DEADLINE {
            options += &format!(" --kvm-deadline {}", self.kvm_deadline.as_secs());
        }
        if let Some(file) = &self.guest_kernel {
            options += &format!(" --guest-kernel {}", file.display());
        }
        if self.jail == JailChoice::Strict {
            options += " --jail strict";
        }
        if let Some(catalog) = &self.catalog {
            options += &catalog.options();
        }
        if let Some(node) = &self.node {
            options += &node.options();
        }
        options += &self.capacity.options();
        options += &self.rates.options();
        options += &self.images.options();
        if self.trust_host_certificates {
            options += " --trust-host-certificates";
        }
        if self.allow_nested_virtualization {
            options += " --allow-nested-virtualization";
        }
        if let Some(count) = self.max_connections_per_peer {
            options += &format!(" --max-connections-per-peer {count}");
        }
        options += &hostnames::options(&self.allowed_hosts);
        if self.allow_plain_http {
            options += " --allow-plain-http";
        }
        if self.allow_emulation {
            options += " --allow-emulation";
        }
        if let Some(issuer) = &self.identity_issuer {
            options += &format!(" --identity-issuer {issuer}");
        }
        for network in &self.webhook_networks {
            options += &format!(" --webhook-allow {network}");
        }
        if let Some(copies) = &self.copies {
            options += &copies.options();
        }
        if self.encryption.seal {
            options += " --encrypt-at-rest";
        }
        options
    }
}

/// What runs sandboxes, each once.
fn engines(host: &HostArgs) -> Vec<EngineChoice> {
    let mut engines: Vec<EngineChoice> = Vec::new();
    for choice in host.engine.iter().copied().chain(host.accel) {
        if !engines.contains(&choice) {
            engines.push(choice);
        }
    }
    if engines.is_empty() { vec![EngineChoice::Auto] } else { engines }
}

/// What was given of what serves and of what runs machines; `none` where a command does neither.
fn given<'a>(command: &'a Command, none: &'a ServeArgs) -> (&'a ServeArgs, &'a HostArgs) {
    match command {
        Command::Up(serve) | Command::Quickstart(serve) => (serve, &serve.host),
        Command::Config(ConfigCommand::Show(serve)) => (serve, &serve.host),
        Command::Doctor(doctor) => (none, &doctor.host),
        Command::Bench(bench) => (none, &bench.host),
        Command::Template(TemplateCommand::Build(build)) => (none, &build.host),
        Command::Template(TemplateCommand::Refresh(refresh)) => (none, &refresh.host),
        Command::Env
        | Command::Verify(_)
        | Command::Cluster(_)
        | Command::Node(_)
        | Command::Warden(_)
        | Command::RestoreFrom(_)
        | Command::Sandbox(_)
        | Command::Template(_)
        | Command::Audit(_)
        | Command::Team(_)
        | Command::Events(_)
        | Command::Top
        | Command::Webhook(_)
        | Command::Config(_)
        | Command::UpgradeCheck
        | Command::Completions(_)
        | Command::Man(_)
        | Command::LogLevel(_)
        | Command::Snapshot(_)
        | Command::Key(_) => (none, &none.host),
    }
}

/// What was given of the catalogue.
fn given_catalog<'a>(command: &'a Command, none: &'a ServeArgs) -> &'a CatalogArgs {
    match command {
        Command::Verify(verify) => &verify.catalog,
        Command::Doctor(doctor) => &doctor.catalog,
        Command::Template(TemplateCommand::Build(build)) => &build.catalog,
        Command::Template(TemplateCommand::Refresh(refresh)) => &refresh.catalog,
        Command::Cluster(ClusterCommand::Init(init)) => &init.catalog,
        Command::Cluster(ClusterCommand::Backup(backup)) => &backup.catalog,
        Command::Cluster(ClusterCommand::RestoreCheck(check)) => &check.catalog,
        command => &given(command, none).0.catalog,
    }
}

/// What a server was given of its cluster.
fn given_cluster(serve: &ServeArgs) -> ClusterAccessArgs {
    ClusterAccessArgs {
        cluster: serve.node.cluster.clone(),
        cluster_secret_file: serve.node.cluster_secret_file.clone(),
        catalog_password_file: serve.catalog.catalog_password_file.clone(),
        catalog_authority: serve.catalog.catalog_authority.clone(),
    }
}

/// Decides every value.
pub(crate) fn resolve(cli: &Cli, around: &Surroundings) -> Settings {
    let GlobalArgs { state_dir, api_key_file, config: _, json, yes } = &cli.global;
    let no_serve = ServeArgs::default();
    let (serve, host) = given(&cli.command, &no_serve);
    // A state directory that was named is more to the point than variables left over in a shell, and these than a file for everybody.
    let server = match (state_dir.as_ref().filter(|_| !around.state_dir_from_file), &around.api_url) {
        (None, Some(api_url)) => ServerSource::Variables {
            api_url: api_url.clone(),
            sandbox_url: around.sandbox_url.clone().unwrap_or_else(|| api_url.clone()),
            api_key: around.api_key.clone(),
        },
        (Some(_), _) | (None, None) => ServerSource::StateDir,
    };
    // The one that is not for HTTPS. It listens already: what else is said of the address came too late.
    let handed = around.handed.iter().copied().find(|address| Some(*address) != serve.tls_listen);
    Settings {
        format: if *json || !around.stdout_tty { Format::Json } else { Format::Table },
        consent: match (yes, around.stdin_tty && around.stderr_tty) {
            (true, _) => Consent::Given,
            (false, true) => Consent::Ask,
            (false, false) => Consent::Nobody,
        },
        live_progress: around.stderr_tty,
        stdout_tty: around.stdout_tty,
        stdin_tty: around.stdin_tty,
        state_dir: absolute(state_dir.as_deref().unwrap_or(Path::new(DEFAULT_STATE_DIR))),
        server,
        secret_key: match (api_key_file, &cli.command) {
            (Some(path), _) => Some(around.credentials.file(path)),
            // Whatever runs in a unit has that unit's credentials: a client must not show to a server what may be meant for another.
            (None, Command::Up(_)) => around.credentials.named(secretfile::API_KEY),
            (None, _) => None,
        },
        api_key: around.api_key.clone(),
        cache_dir: absolute(host.cache_dir.as_deref().unwrap_or(Path::new(DEFAULT_CACHE_DIR))),
        engines: engines(host),
        kvm_deadline: host.kvm_deadline.map_or(DEFAULT_KVM_DEADLINE, Duration::from_secs),
        guest_kernel: host.guest_kernel.as_deref().map(absolute),
        jail: host.jail.unwrap_or(JailChoice::Best),
        listen: handed.or(serve.listen).unwrap_or(DEFAULT_LISTEN),
        listen_chosen: handed.is_some() || serve.listen.is_some(),
        warm: warm(serve, if matches!(cli.command, Command::Up(_)) { DEFAULT_WARM } else { 0 }),
        domain: domain(serve),
        tls: serve.tls_listen.map(|listen| Tls { listen, files: certificate(serve, &around.credentials) }),
        on_exit: serve.on_exit.unwrap_or(OnExit::Kill),
        capacity: CapacitySettings::resolve(&serve.capacity),
        rates: RateSettings::resolve(&serve.rates),
        copies: CopySettings::resolve(&serve.copies, &around.credentials),
        images: ImageSettings::parse(&serve.images.registry_mirror, &serve.images.own_image)
            .expect("each mirror was understood when it was read from the command line"),
        identity_issuer: serve.identity_issuer.clone(),
        log_format: serve.log_format.unwrap_or_default(),
        collector: serve.otlp_endpoint.clone(),
        webhook_networks: serve.webhook_allow.clone(),
        allow_nested_virtualization: serve.allow_nested_virtualization,
        max_connections_per_peer: serve.max_connections_per_peer,
        allowed_hosts: serve.hostnames.allowed_host.clone(),
        allow_plain_http: serve.allow_plain_http,
        allow_emulation: serve.allow_emulation,
        encryption: encryption(&cli.command, &serve.encryption, around),
        catalog: CatalogSettings::resolve(given_catalog(&cli.command, &no_serve), &around.credentials, absolute),
        node: NodeSettings::resolve(&serve.node, given_cluster(serve), &around.credentials, absolute),
        trust_host_certificates: match &cli.command {
            Command::Template(TemplateCommand::Build(build)) => build.trust.trust_host_certificates,
            Command::Template(TemplateCommand::Refresh(refresh)) => refresh.trust.trust_host_certificates,
            _ => serve.trust.trust_host_certificates,
        },
    }
}

/// How deep the warm pool is. Of what is said twice, the last counts.
fn warm(serve: &ServeArgs, default: u32) -> WarmConfig {
    let mut config = WarmConfig { depth: Depth::at_least(default), ..WarmConfig::default() };
    for Warm { template, count } in &serve.warm {
        match template {
            Some(name) => drop(config.templates.insert(name.clone(), Depth::at_least(*count))),
            None => config.depth = Depth::at_least(*count),
        }
    }
    for Warm { template, count } in &serve.prepared {
        match template {
            Some(name) => drop(config.prepared_templates.insert(name.clone(), *count)),
            None => config.prepared = Some(*count),
        }
    }
    config
}

/// What is encrypted, and with which key. A file that was named is more to the point than one of the surroundings.
fn encryption(command: &Command, serve: &EncryptionArgs, around: &Surroundings) -> EncryptionConfig {
    let named = match command {
        Command::Key(KeyCommand::Rotate(args)) => &args.encryption_key_file,
        _ => &serve.key.encryption_key_file,
    };
    let key_file = named.as_deref().map(absolute).or_else(|| around.encryption_key.clone());
    EncryptionConfig { seal: serve.encrypt_at_rest, key_file }
}

/// The domain that clients are told. With HTTPS it names the port too, because clients make URLs of it.
fn domain(serve: &ServeArgs) -> Option<String> {
    let Some(tls) = serve.tls_listen else { return serve.domain.clone() };
    let domain = serve.domain.as_deref().unwrap_or(LOCAL_DOMAIN);
    let named = tls.port() == 443 || domain.contains(':');
    Some(if named { domain.to_owned() } else { format!("{domain}:{}", tls.port()) })
}

/// The operator's certificate: what the options name, else what systemd keeps, if it is said for which domain.
fn certificate(serve: &ServeArgs, credentials: &Credentials) -> Option<(PathBuf, SecretFile)> {
    if let Some((chain, key)) = serve.tls_cert.as_ref().zip(serve.tls_key.as_ref()) {
        return Some((chain.clone(), credentials.file(key)));
    }
    serve.domain.as_ref()?;
    Some((credentials.named(secretfile::TLS_CERT)?.path, credentials.named(secretfile::TLS_KEY)?))
}

/// The engine's processes run elsewhere: no path may depend on the working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn resolved(line: &str, around: &Surroundings) -> Settings {
        resolve(&Cli::try_parse_from(line.split(' ')).unwrap(), around)
    }

    #[test]
    fn without_a_word_the_defaults_hold() {
        let settings = resolved("firkin up", &Surroundings::default());
        assert_eq!(settings.listen.to_string(), "127.0.0.1:3000");
        assert!(!settings.listen_chosen);
        assert_eq!(settings.state_dir, Path::new("/var/lib/firkin"));
        assert_eq!(settings.cache_dir, Path::new("/var/cache/firkin"));
        assert_eq!(settings.engines, [EngineChoice::Auto]);
        assert_eq!(settings.kvm_deadline, DEFAULT_KVM_DEADLINE);
        assert_eq!((settings.on_exit, settings.warm.depth), (OnExit::Kill, Depth::at_least(2)));
        assert_eq!(resolved("firkin quickstart", &Surroundings::default()).warm, WarmConfig::default());
        assert_eq!((settings.state_option().as_str(), settings.serve_options().as_str()), ("", ""));
        let settings = resolved(
            "firkin up --listen 127.0.0.1:4000 --cache-dir /c --accel tcg --kvm-deadline 60 --guest-kernel /k --jail strict --warm-share 9",
            &Surroundings::default(),
        );
        assert_eq!(
            settings.serve_options(),
            " --listen 127.0.0.1:4000 --cache-dir /c --engine emulated --kvm-deadline 60 --guest-kernel /k --jail strict --warm-share 9"
        );
    }

    #[test]
    fn the_pools_depth_is_said_for_all_and_for_one() {
        let named = |text: &str| text.parse::<firkin_runtime::reference::Reference>().unwrap();
        let settings = resolved("firkin up --warm 4 --warm firkin/Ci:default=8 --warm big=0", &Surroundings::default());
        assert_eq!(settings.warm.depth, Depth::at_least(4));
        assert_eq!(settings.warm.templates[&named("ci")], Depth::at_least(8));
        assert_eq!(settings.warm.templates[&named("big")], Depth::NONE);
        assert_eq!(resolved("firkin up --warm 0", &Surroundings::default()).warm, WarmConfig::default());
        let warm = resolved("firkin up --prepared 4 --prepared ci=0 --prepared 3", &Surroundings::default()).warm;
        assert_eq!((warm.depth, warm.prepared, warm.prepared_templates[&named("ci")]), (Depth::at_least(2), Some(3), 0));
    }

    #[test]
    fn json_is_for_pipes_and_for_who_asks() {
        let terminal = Surroundings { stdout_tty: true, ..Surroundings::default() };
        assert_eq!(resolved("firkin sandbox ls", &Surroundings::default()).format, Format::Json);
        assert_eq!(resolved("firkin sandbox ls", &terminal).format, Format::Table);
        assert_eq!(resolved("firkin sandbox ls --json", &terminal).format, Format::Json);
    }

    #[test]
    fn nobody_is_asked_where_nobody_is() {
        let person = Surroundings { stdin_tty: true, stderr_tty: true, ..Surroundings::default() };
        assert_eq!(resolved("firkin quickstart", &person).consent, Consent::Ask);
        assert_eq!(resolved("firkin quickstart", &Surroundings::default()).consent, Consent::Nobody);
        assert_eq!(resolved("firkin quickstart --yes", &Surroundings::default()).consent, Consent::Given);
    }

    #[test]
    fn a_named_state_directory_wins_over_variables() {
        let around = Surroundings {
            api_url: Some("http://127.0.0.1:9".to_owned()),
            api_key: Some("e2b_0".to_owned()),
            ..Surroundings::default()
        };
        assert_eq!(
            resolved("firkin sandbox ls", &around).server,
            ServerSource::Variables {
                api_url: "http://127.0.0.1:9".to_owned(),
                sandbox_url: "http://127.0.0.1:9".to_owned(),
                api_key: Some("e2b_0".to_owned()),
            }
        );
        let named = resolved("firkin sandbox ls --state-dir /s", &around);
        assert_eq!(named.server, ServerSource::StateDir);
        assert_eq!(named.state_option(), " --state-dir /s");
        let filed = Surroundings { state_dir_from_file: true, ..around };
        assert_ne!(resolved("firkin sandbox ls --state-dir /s", &filed).server, ServerSource::StateDir);
    }

    #[test]
    fn credentials_stand_in_for_options_that_are_not_given() {
        let dir = tempfile::tempdir().unwrap();
        for name in [secretfile::API_KEY, secretfile::TLS_CERT, secretfile::TLS_KEY] {
            fs_err::write(dir.path().join(name), "secret").unwrap();
        }
        let around = Surroundings { credentials: Credentials::within(dir.path().to_owned()), ..Surroundings::default() };
        let found = |options: &str| {
            let settings = resolved(&format!("firkin up{options}"), &around);
            let files = settings.tls.clone().and_then(|tls| tls.files);
            (settings.known_key_file(), files.map(|(chain, key)| (chain, key.path)))
        };
        let named = |name: &str| dir.path().join(name);
        let kept = Some((named(secretfile::TLS_CERT), named(secretfile::TLS_KEY)));
        assert_eq!(found(" --tls-listen 127.0.0.1:1 --domain a.test"), (named(secretfile::API_KEY), kept));
        assert_eq!(
            found(" --tls-listen 127.0.0.1:1"),
            (named(secretfile::API_KEY), None),
            "its own authority is for its own domain"
        );
        let given = " --api-key-file /k --tls-listen 127.0.0.1:1 --domain a.test --tls-cert /c --tls-key /t";
        assert_eq!(found(given), ("/k".into(), Some(("/c".into(), "/t".into()))));
        assert_eq!(resolved("firkin env --api-key-file /k", &around).state_option(), " --api-key-file /k");
        for client in ["env", "sandbox ls", "verify", "quickstart"] {
            assert_eq!(resolved(&format!("firkin {client}"), &around).secret_key, None, "{client}");
        }
    }

    #[test]
    fn a_named_key_file_wins_over_a_credential() {
        let around = Surroundings { encryption_key: Some("/cred/key".into()), ..Surroundings::default() };
        let encryption = |line: &str| resolved(line, &around).encryption;
        let of = |seal, path: &str| EncryptionConfig { seal, key_file: Some(path.into()) };
        assert_eq!(resolved("firkin up", &Surroundings::default()).encryption, EncryptionConfig::default());
        assert_eq!(encryption("firkin up --encrypt-at-rest"), of(true, "/cred/key"));
        assert_eq!(encryption("firkin up --encryption-key-file /k"), of(false, "/k"));
        assert_eq!(encryption("firkin key rotate --encryption-key-file /k"), of(false, "/k"));
        assert_eq!(encryption("firkin key rotate"), of(false, "/cred/key"));
    }

    #[test]
    fn with_https_the_domain_names_its_port() {
        let domain = |line: &str| resolved(line, &Surroundings::default()).domain;
        assert_eq!(domain("firkin up"), None);
        assert_eq!(domain("firkin up --domain a.test").as_deref(), Some("a.test"));
        assert_eq!(domain("firkin up --tls-listen 127.0.0.1:3443").as_deref(), Some("firkin.localhost:3443"));
        assert_eq!(domain("firkin up --tls-listen 0.0.0.0:443 --domain a.test").as_deref(), Some("a.test"));
        assert_eq!(domain("firkin up --tls-listen 0.0.0.0:8443 --domain a.test:443").as_deref(), Some("a.test:443"));
    }

    #[test]
    fn other_hosts_come_encrypted_and_to_real_machines_unless_it_is_said() {
        for (line, clear, real) in [
            ("firkin up", false, false),
            ("firkin up --listen 127.8.8.8:1", false, false),
            ("firkin up --listen [::1]:1 --tls-listen 127.0.0.1:2", false, false),
            ("firkin up --listen 0.0.0.0:1", true, true),
            ("firkin up --listen [::]:1 --allow-plain-http", false, true),
            ("firkin quickstart --listen 192.0.2.1:1 --allow-emulation", true, false),
            ("firkin up --tls-listen 0.0.0.0:443", false, true),
            ("firkin up --tls-listen 0.0.0.0:443 --allow-emulation", false, false),
        ] {
            let settings = resolved(line, &Surroundings::default());
            assert_eq!((settings.is_in_the_clear(), settings.is_for_real_machines()), (clear, real), "{line}");
        }
    }

    #[test]
    fn a_socket_that_was_handed_over_is_where_the_server_is() {
        let around = Surroundings {
            handed: vec!["0.0.0.0:443".parse().unwrap(), "0.0.0.0:80".parse().unwrap()],
            ..Surroundings::default()
        };
        let settings = resolved("firkin up --listen 127.0.0.1:3000 --tls-listen 0.0.0.0:443", &around);
        assert_eq!((settings.listen.to_string().as_str(), settings.listen_chosen), ("0.0.0.0:80", true));
        assert!(settings.is_in_the_clear(), "what systemd opened is judged as what was typed");
        let only_https = Surroundings { handed: vec!["0.0.0.0:443".parse().unwrap()], ..Surroundings::default() };
        assert_eq!(resolved("firkin up --tls-listen 0.0.0.0:443", &only_https).listen, DEFAULT_LISTEN);
    }

    #[test]
    fn whom_guests_trust_is_said_to_servers_and_builds() {
        for command in ["up", "template build", "template build code-interpreter-v1"] {
            let plain = resolved(&format!("firkin {command}"), &Surroundings::default());
            assert!(!plain.trust_host_certificates && plain.template_env().is_empty(), "{command}");
            let trusting = resolved(&format!("firkin {command} --trust-host-certificates"), &Surroundings::default());
            assert!(trusting.serve_options().contains("--trust-host-certificates"), "{command}");
            assert_eq!(trusting.template_env()["PIP_CERT"], "/etc/ssl/certs/ca-certificates.crt", "{command}");
        }
    }

    #[test]
    fn a_relative_directory_becomes_absolute() {
        let settings = resolved("firkin up --state-dir s --cache-dir c", &Surroundings::default());
        assert!(settings.state_dir.is_absolute() && settings.state_dir.ends_with("s"));
        assert!(settings.cache_dir.is_absolute() && settings.cache_dir.ends_with("c"));
        let kernel = resolved("firkin doctor --guest-kernel k", &Surroundings::default()).guest_kernel.unwrap();
        assert!(kernel.is_absolute() && kernel.ends_with("k"));
    }
}
