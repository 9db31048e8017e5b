//! Shared by `up`, `quickstart` and `template build`: a host made ready, a runtime opened on it, and a server in front of it.
//!
//! ```text
//!   bind ─► open: host checked ─► guest system built ─► acceleration chosen ─► runtime opened ─► base template built ─► serve
//! ```
//!
//! The listener comes first because a taken port should be told at once, not after minutes of building.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use firkin_cgroup::Groups;
use firkin_image::{
    Additions, Cache, GuestKernel, OwnKernel, RootSpec, base_rootfs, certificate_variables, guest_kernel, host_certificates,
    initramfs, own_kernel, register_user, remove_unnamed_roots, renewed_kernel, renewed_rootfs, rootfs,
};
use firkin_runtime::{
    artifact::ArtifactStore,
    capacity::HostCapacity,
    config::{GuestSystem, Guests, Overcommit, RuntimeConfig},
    disk::{DiskPressureProbe as _, StatvfsProbe},
    groups,
    network::NetworkChoice,
    owner::OnExit,
    root_image::RootImage,
    runtime::Runtime,
    standard::BuildTemplate,
    state_dir::OpenError,
    template::TemplateInfo,
    verify::in_use,
};
use firkin_server::{About, Listener, ServeError, ServerConfig, TlsIdentity};
use firkin_traces::Traces;
use fs_err as fs;
use tokio::{
    net::TcpSocket,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    about::about,
    command::{
        catalog, engines,
        joining::{self, Joined, Joining, Keeping},
    },
    copies::CopySettings,
    failure::{Advise as _, advised},
    host::Check,
    images::{self, Images},
    progress::Progress,
    serverfile::{self, Https, ServerFile, Target},
    service::{Door, Handed},
    settings::{Settings, Tls},
};

/// Connections that wait to be accepted: a burst of creates is some hundreds.
const BACKLOG: u32 = 1024;

/// Descriptors for each connection: its own, one into a sandbox, and as many again for machines, disks and the database.
const PER_CONNECTION: usize = 4;

/// Between two looks for root images that nothing stands on: they are old by days.
const IMAGES_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Ctrl-C and SIGTERM.
pub(crate) struct Interrupts {
    int: Signal,
    term: Signal,
}

impl Interrupts {
    /// From now on the signals end nothing by themselves.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let int = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
        let term = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        Ok(Self { int, term })
    }

    /// Ends with the next signal. Cancel-safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }

    /// `work`, or `None` if a signal comes first; the work is then dropped.
    pub(crate) async fn unless<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        tokio::select! {
            result = work => result.map(Some),
            () = self.next() => Ok(None),
        }
    }
}

/// How far a server is that begins, and whether it is to go on.
#[derive(Debug, Default)]
pub(crate) struct Begins {
    takes_over: AtomicBool,
    is_open: AtomicBool,
    stop: CancellationToken,
}

impl Begins {
    /// Whether it may have taken over what runs.
    pub(crate) fn has_taken_over(&self) -> bool {
        self.takes_over.load(Ordering::SeqCst)
    }

    /// Has it stop, and leave what it has taken over. Whether it can: in the middle of taking over, nobody knows yet what there is to be left.
    pub(crate) fn stop(&self) -> bool {
        self.stop.cancel();
        self.is_open.load(Ordering::SeqCst)
    }
}

/// How to go on when an address is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IfTaken {
    /// Say so.
    Fail,
    /// Take any free port of the same address, unless the user chose the port.
    AnyFreePort,
}

/// What helps where an address is taken.
const TAKEN: &str = "another server may run there: choose another address with `--listen`, and another `--state-dir`";

/// Takes the address to serve on, or the socket that was handed over there.
pub(crate) fn bind(settings: &Settings, if_taken: IfTaken, handed: &mut Handed) -> anyhow::Result<Door> {
    let wanted = settings.listen;
    for secret in settings.secrets() {
        // Used much later; what is wrong with it is told at once too.
        serverfile::read_secret(secret)?;
    }
    if settings.is_in_the_clear() {
        return Err(anyhow::anyhow!(
            "cannot serve plain HTTP on `{wanted}`: keys and tokens would pass the network in the clear"
        ))
        .hint(
            "leave `--listen` on the loopback and serve HTTPS with `--tls-listen ADDR:PORT`, or say `--allow-plain-http` where \
                 the network or a proxy before it protects them",
        );
    }
    let of_systemd = handed.take(wanted);
    // systemd would go on to take connections there that nobody answers.
    if let Some(other) =
        handed.addresses().into_iter().find(|address| Some(*address) != settings.tls.as_ref().map(|tls| tls.listen))
    {
        return Err(anyhow::anyhow!("systemd handed over a socket at `{other}` that nothing is served on"))
            .hint("`firkin.socket` has one `ListenStream=` for plain HTTP, and one that is exactly `tls-listen`");
    }
    if let Some(listener) = of_systemd {
        return Ok(Door::Handed(listener));
    }
    if if_taken == IfTaken::AnyFreePort && !settings.listen_chosen {
        // An address that is only bound can be bound by another too, and the later of the two to listen fails: this one listens at once.
        return match take(wanted).and_then(|socket| socket.listen(BACKLOG)) {
            Ok(listener) => Ok(Door::Listening(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let any = take(SocketAddr::new(wanted.ip(), 0)).and_then(|socket| socket.listen(BACKLOG));
                any.map(Door::Listening).with_context(|| format!("cannot take any port of `{}`", wanted.ip()))
            }
            Err(error) => Err(error).with_context(|| format!("cannot serve on `{wanted}`")),
        };
    }
    let taken = once_left(LEFT_FOR, || take(wanted), |error| error.kind() == io::ErrorKind::AddrInUse);
    taken.map(Door::Taken).with_context(|| format!("cannot serve on `{wanted}`")).hint(TAKEN)
}

/// How long a server that was killed may still seem to be there. A process that it was just starting has all that it had, its address and its locks, until
/// it becomes what it is to be.
const LEFT_FOR: Duration = Duration::from_secs(2);

/// Tries again for so long what fails as if somebody were there.
fn once_left<T, E>(within: Duration, mut attempt: impl FnMut() -> Result<T, E>, is_there: impl Fn(&E) -> bool) -> Result<T, E> {
    let begun = Instant::now();
    loop {
        match attempt() {
            Err(error) if is_there(&error) && begun.elapsed() < within => std::thread::park_timeout(Duration::from_millis(20)),
            ended => return ended,
        }
    }
}

fn take(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier server that linger must not keep this one from starting.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// A runtime that is open and has its base template.
pub(crate) struct Host {
    runtime: Runtime,
    api_key: String,
    admin_token: String,
    about: About,
    joined: Option<Joined>,
}

/// Makes the host ready, as far as it is not, and opens the runtime with its base template.
pub(crate) async fn open(settings: &Settings, progress: &Progress, begins: &Begins) -> anyhow::Result<Host> {
    let (runtime, checks, joining) = open_looking(settings, progress, begins).await?;
    let opened = Box::pin(async {
        // Before any template is looked for: its files may be another node's.
        let joined = match joining {
            Some(joining) => Some(joining.join(&runtime).await?),
            None => None,
        };
        let base = BuildTemplate { env: settings.template_env(), ..BuildTemplate::base() };
        ensure(&runtime, base, progress).await?;
        anyhow::Ok((api_key(&runtime, settings).await?, admin_token(settings)?, joined))
    });
    let opened = async {
        tokio::select! {
            opened = opened => opened,
            () = begins.stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
        }
    };
    match opened.await {
        Ok((api_key, admin_token, joined)) => Ok(Host { runtime, api_key, admin_token, about: about(settings, &checks), joined }),
        Err(error) => {
            // What ran before must not end because this server cannot begin.
            runtime.shutdown(OnExit::Leave).await;
            Err(error)
        }
    }
}

/// Fails if a server uses the state directory: before anything is made ready that takes minutes.
pub(crate) fn demand_unused(settings: &Settings) -> anyhow::Result<()> {
    let is_there = |error: &OpenError| matches!(error, OpenError::Locked { .. });
    once_left(LEFT_FOR, || in_use(&settings.state_dir), is_there).map_err(refused)
}

/// Why a runtime was not opened, with what helps.
fn refused(error: OpenError) -> anyhow::Error {
    let hint = match &error {
        OpenError::Locked { .. } => {
            Some("stop that server first (`firkin up --on-exit pause` keeps its sandboxes), or choose another `--state-dir`")
        }
        OpenError::Directory { .. } => Some("`--state-dir` chooses another directory"),
        OpenError::Engine { .. } => Some("name it too, as in `--engine kvm,gvisor`: the first of them is for what is new"),
        OpenError::Network(_) => Some("`firkin doctor` checks what the network needs"),
        OpenError::CatalogElsewhere { address, .. } => {
            let hint = catalog::elsewhere(address);
            return advised(error, Some(hint), None);
        }
        OpenError::CatalogHere { .. } => Some("`firkin cluster init` brings it there; or leave `--catalog` out"),
        OpenError::Store(_) => return catalog::advising(error),
        OpenError::CatalogLost { .. } => Some(
            "put `firkin.db` back, or `firkin cluster init --from BACKUP`; to begin anew all the same, take `artifacts` and `layers` away",
        ),
        OpenError::Fence(_) => Some("start it again: a node begins with a lease of its own"),
        // It is the catalogue that they are in, or a file that it names.
        OpenError::Secrets(_) => return catalog::advising(error),
        OpenError::Restoring { .. } | OpenError::Encryption(_) => None,
    };
    advised(error, hint.map(str::to_owned), None)
}

/// Makes the host ready and opens the runtime, without any template.
pub(crate) async fn open_runtime(settings: &Settings, progress: &Progress) -> anyhow::Result<Runtime> {
    open_looking(settings, progress, &Begins::default()).await.map(|(runtime, ..)| runtime)
}

/// The same, with what the look at the host found.
async fn open_looking(
    settings: &Settings,
    progress: &Progress,
    begins: &Begins,
) -> anyhow::Result<(Runtime, Vec<Check>, Option<Joining>)> {
    demand_unused(settings)?;
    let checks = super::doctor::ensure_ready(settings, progress).await?;
    let cache = Cache::open(&settings.cache_dir).await.hint("`--cache-dir` chooses another directory")?;
    fs::create_dir_all(&settings.state_dir)?;
    let state_dir = fs::canonicalize(&settings.state_dir)?;
    register_user(&cache, &state_dir)?;
    let joining = match &settings.node {
        Some(node) => Some(Joining::of(node, settings.copies.as_ref(), (&state_dir, settings.log_format)).await?),
        None => None,
    };
    let collected = (cache.clone(), state_dir.clone());
    let own_kernel = brought_kernel(&cache, settings).await?;
    let (guest, additions) = guest_system(settings, own_kernel.as_ref(), progress).await?;
    let guest = Guests::from(guest);
    let images = Images::new(cache, settings.images.clone(), additions, settings.template_env(), guest.clone());
    let images = Arc::new(images.booting(own_kernel));
    let engines = engines::choose(settings, (&guest.now(), &images), progress).await?;
    let step = progress.step("opening the state directory");
    let network = NetworkChoice::Isolated(settings.rates.network(state_dir.display().to_string()));
    let capacity = capacity(&state_dir, settings.capacity.overcommit)?;
    let defaults = RuntimeConfig::new(state_dir.clone(), capacity, network, GuestSystem::clone(&guest.now()));
    let config = RuntimeConfig {
        images,
        catalog: match &joining {
            Some(joining) => Some(joining.catalog()),
            None => {
                settings.catalog.as_ref().map(|catalog| anyhow::Ok(Arc::new(catalog::catalogue(catalog)?) as _)).transpose()?
            }
        },
        fetch: joining.as_ref().map(Joining::fetch),
        claims: joining.as_ref().map(Joining::claims),
        secrets: joining.as_ref().map(Joining::secrets),
        fence: joining.as_ref().map(Joining::fence),
        admission: settings.capacity.admission.clone(),
        disk_floor_mib: settings.capacity.disk_floor_mib,
        disk_budget_mib: settings.capacity.disk_budget_mib,
        sandboxes: settings.capacity.sandboxes,
        volumes: settings.capacity.volumes,
        warm: settings.warm.clone(),
        encryption: settings.encryption.clone(),
        // A node's go into the store of its cluster, and its catalogue is PostgreSQL's to keep.
        copies: settings.copies.as_ref().filter(|_| joining.is_none()).map(CopySettings::open).transpose()?,
        authority_variables: certificate_variables().collect(),
        issuer: settings.identity_issuer.clone().unwrap_or(defaults.issuer),
        webhook_networks: settings.webhook_networks.clone(),
        groups: Some(limits(&state_dir, progress)),
        guest,
        ..defaults
    };
    begins.takes_over.store(true, Ordering::SeqCst);
    let runtime = Box::pin(Runtime::open(config, engines)).await.map_err(refused)?;
    begins.is_open.store(true, Ordering::SeqCst);
    step.done(&format!("state directory {}", settings.state_dir.display()));
    drop(tokio::spawn(remove_unnamed_images(collected.0, collected.1)));
    Ok((runtime, checks, joining))
}

/// Takes root images away that no template, snapshot or sandbox of this host's servers stands on any more, now and then. It ends with the
/// process, and what it was at is done by the next.
async fn remove_unnamed_images(cache: Cache, state_dir: PathBuf) {
    let mut turns = tokio::time::interval(IMAGES_EVERY);
    loop {
        turns.tick().await;
        let (cache, state_dir) = (cache.clone(), state_dir.clone());
        let removed = tokio::task::spawn_blocking(move || {
            // How long a directory that is not there is waited for counts from here.
            register_user(&cache, &state_dir)?;
            remove_unnamed_roots(&cache, SystemTime::now(), ArtifactStore::root_images)
        });
        match removed.await.map_err(io::Error::other).and_then(|removed| removed) {
            Ok(removed) => {
                removed.iter().for_each(|entry| tracing::info!(entry = %entry.display(), "removed an unused root image"))
            }
            Err(error) => tracing::warn!(error = firkin_causes::chain(&error), "no root image is removed from the cache"),
        }
    }
}

/// Builds a template unless it is there already, made of the same parts.
pub(crate) async fn ensure(runtime: &Runtime, build: BuildTemplate, progress: &Progress) -> anyhow::Result<(TemplateInfo, bool)> {
    let name = build.name.clone();
    let step = progress.step(&format!("template {name}"));
    let (template, built) = Box::pin(runtime.ensure_template(build, &|line: &str| step.at(line)))
        .await
        .with_context(|| format!("cannot build template `{name}`"))?;
    step.done(&format!("template {name}{}", if built { " built" } else { "" }));
    Ok((template, built))
}

/// Builds a template even if it is there already.
pub(crate) async fn build(runtime: &Runtime, build: BuildTemplate, progress: &Progress) -> anyhow::Result<TemplateInfo> {
    let name = build.name.clone();
    let step = progress.step(&format!("template {name}"));
    let template = Box::pin(runtime.build_template(build, &|line: &str| step.at(line))).await;
    let template = template.with_context(|| format!("cannot build template `{name}`"))?;
    step.done(&format!("template {name} built"));
    Ok(template)
}

/// How much of a digest tells one kernel from another at a glance.
const DIGEST_SHOWN: usize = 12;

/// The kernel that the host's owner brings, if one was named.
async fn brought_kernel(cache: &Cache, settings: &Settings) -> anyhow::Result<Option<OwnKernel>> {
    let Some(file) = &settings.guest_kernel else { return Ok(None) };
    let kernel = own_kernel(cache, file).await.hint("`--guest-kernel` takes a bzImage, or an ELF `vmlinux` with PVH's entry")?;
    Ok(Some(kernel))
}

/// Kernel, initial RAM file system and root image, from the cache or built into it.
async fn guest_system(
    settings: &Settings,
    own_kernel: Option<&OwnKernel>,
    progress: &Progress,
) -> anyhow::Result<(GuestSystem, Additions)> {
    let cache = Cache::open(&settings.cache_dir).await.hint("`--cache-dir` chooses another directory")?;
    let step = progress.step("guest kernel");
    let kernel = guest_kernel(&cache, &|event| step.at(&described(&event))).await.context("cannot make the guest kernel")?;
    step.done(&match own_kernel {
        Some(own) => format!("guest kernel of your own, {}; modules of {}", &own.digest[..DIGEST_SHOWN], kernel.version),
        None => format!("guest kernel {}", kernel.version),
    });
    let step = progress.step("initial RAM file system with the guest agent");
    let initrd = initramfs(&cache, &kernel, crate::host::agent()).await.context("cannot make the initial RAM file system")?;
    step.done("initial RAM file system with the guest agent");
    let step = progress.step("guest root file system");
    let additions = additions(settings, kernel)?;
    let root = base_rootfs(&cache, &additions, &|event| step.at(&described(&event))).await;
    let root = root.context("cannot make the guest root file system")?;
    step.done("guest root file system");
    Ok((images::guest_system(&additions, own_kernel, initrd, root), additions))
}

/// Makes guest kernel and root image anew, of what the mirror has now: the next runtime that is opened is made of them. What is there
/// stays.
pub(crate) async fn renew(settings: &Settings, progress: &Progress) -> anyhow::Result<()> {
    let cache = Cache::open(&settings.cache_dir).await.hint("`--cache-dir` chooses another directory")?;
    let step = progress.step("newest guest kernel");
    let kernel = renewed_kernel(&cache, &|event| step.at(&described(&event))).await.context("cannot renew the guest kernel")?;
    step.done(&format!("guest kernel {}", kernel.version));
    renewed_root_of(settings, "base", &RootSpec::default(), progress).await.map(drop)
}

/// The root image of a template, made anew unless it is fresh.
pub(crate) async fn renewed_root_of(
    settings: &Settings,
    name: &str,
    spec: &RootSpec,
    progress: &Progress,
) -> anyhow::Result<RootImage> {
    let cache = Cache::open(&settings.cache_dir).await.hint("`--cache-dir` chooses another directory")?;
    let title = format!("root file system of {name}, made anew");
    let step = progress.step(&title);
    let kernel = guest_kernel(&cache, &|event| step.at(&described(&event))).await.context("cannot make the guest kernel")?;
    let additions = additions(settings, kernel)?;
    let root = renewed_rootfs(&cache, spec, &additions, &|event| step.at(&described(&event))).await;
    let root = root.with_context(|| format!("cannot make the {title}"))?;
    step.done(&title);
    Ok(RootImage { path: root.path, digest: root.digest, bytes: root.virtual_bytes })
}

/// Files for every root file system of this host, whoever made the rest.
fn additions(settings: &Settings, kernel: GuestKernel) -> anyhow::Result<Additions> {
    let certificates = if settings.trust_host_certificates { host_certificates(Path::new("/"))? } else { Vec::new() };
    Ok(Additions { kernel, certificates })
}

/// The root image of a template, from the cache or built into it.
pub(crate) async fn root_of(settings: &Settings, name: &str, spec: &RootSpec, progress: &Progress) -> anyhow::Result<RootImage> {
    let cache = Cache::open(&settings.cache_dir).await.hint("`--cache-dir` chooses another directory")?;
    let title = format!("root file system of {name}");
    let step = progress.step(&title);
    let kernel = guest_kernel(&cache, &|event| step.at(&described(&event))).await.context("cannot make the guest kernel")?;
    let additions = additions(settings, kernel)?;
    let root = rootfs(&cache, spec, &additions, &|event| step.at(&described(&event))).await;
    let root = root.with_context(|| format!("cannot make the {title}"))?;
    step.done(&title);
    Ok(RootImage { path: root.path, digest: root.digest, bytes: root.virtual_bytes })
}

fn described(event: &firkin_image::Event) -> String {
    match event.progress {
        Some(progress) => format!("{}: {} ({} of {})", event.step, event.detail, progress.done, progress.total),
        None => format!("{}: {}", event.step, event.detail),
    }
}

/// Memory that is never taken from a server, bytes: what one has that serves some hundred sandboxes.
const SERVER_MEMORY_BYTES: u64 = 512 << 20;

/// The control groups of this server's machines, and of itself. What of that the host lacks is said, and serving goes on.
fn limits(state_dir: &Path, progress: &Progress) -> Groups {
    let step = progress.step("control groups");
    let groups = groups::open(state_dir);
    let lacks = groups.lacks().iter().cloned().chain(groups.prefer_server(SERVER_MEMORY_BYTES));
    let lacks: Vec<String> = lacks.map(|lack| lack.to_string()).collect();
    step.done(&match lacks.as_slice() {
        [] => "control groups: sandboxes are held to their size".to_owned(),
        lacks => format!("control groups, with lacks: {}", lacks.join("; ")),
    });
    groups
}

/// The part of this host that sandboxes may use together.
fn capacity(state_dir: &Path, overcommit: Overcommit) -> anyhow::Result<HostCapacity> {
    let cpus = std::thread::available_parallelism().context("cannot count the processors")?;
    let memory = nix::sys::sysinfo::sysinfo().context("cannot read the size of the memory")?.ram_total();
    let disk =
        StatvfsProbe.probe(state_dir).with_context(|| format!("cannot read the free space of `{}`", state_dir.display()))?;
    Ok(HostCapacity::with_overcommit(u32::try_from(cpus.get())?, memory >> 20, disk.free >> 20, overcommit))
}

/// The key that clients on this host use: the operator's; or the one in the state directory while the store knows it, else a new one.
async fn api_key(runtime: &Runtime, settings: &Settings) -> anyhow::Result<String> {
    if let Some(file) = &settings.secret_key {
        let key = serverfile::read_secret(file)?;
        let accepted = runtime.accept_api_key(&key).with_context(|| format!("cannot use `{}`", file.path.display()));
        accepted.hint("make one with `(umask 77; echo e2b_$(openssl rand -hex 20) > FILE)`")?;
        return Ok(key);
    }
    let path = settings.api_key_file();
    if let Some(key) = serverfile::read_api_key(&path)?
        && runtime.authenticate(&key).is_some()
    {
        return Ok(key);
    }
    let key = runtime.issue_api_key().await.context("cannot make an API key")?;
    serverfile::write_api_key(&path, &key)?;
    Ok(key)
}

/// The token that administers teams and keys: the one in the state directory, made now if there is none. To replace it is to remove the
/// file and start the server again.
fn admin_token(settings: &Settings) -> anyhow::Result<String> {
    let path = settings.admin_token_file();
    if let Some(token) = serverfile::read_api_key(&path)? {
        return Ok(token);
    }
    let token = firkin_runtime::runtime::new_admin_token();
    serverfile::write_api_key(&path, &token)?;
    Ok(token)
}

impl Host {
    /// Lets go of what runs, for the next server.
    pub(crate) async fn leave(self) {
        self.runtime.shutdown(OnExit::Leave).await;
    }

    /// How guest instructions are executed, for people.
    pub(crate) fn acceleration(&self) -> String {
        self.runtime.acceleration().to_string()
    }

    /// Serves at `door` from now on, and where HTTPS is to be, and leaves word of it in the state directory. Spans have their places in `traces`, if
    /// they go anywhere.
    pub(crate) async fn serve(
        self,
        settings: &Settings,
        door: Door,
        mut handed: Handed,
        traces: Option<Traces>,
    ) -> anyhow::Result<Server> {
        let path = settings.server_file();
        let listening = || {
            let listener = door.listen(BACKLOG);
            let listener = listener.with_context(|| format!("cannot listen on `{}`", settings.listen)).hint(TAKEN)?;
            let address = listener.local_addr().context("cannot read the address of the listener")?;
            let url = format!("http://{}", reachable(address));
            let (https, secure) = https(settings, &mut handed)?.unzip();
            let file = ServerFile {
                url,
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                acceleration: self.acceleration(),
                https,
            };
            file.write(&path)?;
            anyhow::Ok((std::iter::once(Listener::from(listener)).chain(secure).collect::<Vec<_>>(), file))
        };
        let (mut listeners, file) = match listening() {
            Ok(parts) => parts,
            Err(error) => {
                self.runtime.shutdown(OnExit::Leave).await;
                return Err(error);
            }
        };
        let url = file.url.clone();
        let shutdown = CancellationToken::new();
        let defaults = ServerConfig::default();
        let per_peer = settings.max_connections_per_peer.and_then(|count| usize::try_from(count).ok());
        let mut config = ServerConfig {
            domain: settings.domain.clone(),
            allowed_hosts: settings.hosts(),
            nested_virtualization: settings.allow_nested_virtualization,
            admin: Some(firkin_server::admin_digest(&self.admin_token)),
            log: crate::logging::control(),
            traces,
            about: self.about,
            audit: Some(settings.audit_dir()),
            max_connections: connections(defaults.max_connections),
            max_connections_per_peer: per_peer.unwrap_or(defaults.max_connections_per_peer),
            ..defaults
        };
        let mut keeping = None;
        if let Some(joined) = self.joined {
            config.nodes = Some(joined.nodes());
            config.second_copies = joined.second_copies();
            let (kept, peers) = joined.serve(shutdown.clone());
            listeners.push(peers);
            keeping = Some(kept);
        }
        let task = tokio::spawn(firkin_server::serve(listeners, self.runtime.clone(), config, shutdown.clone()));
        let target = Target { api_url: url.clone(), sandbox_url: url, api_key: self.api_key, https: file.https.clone() };
        Ok(Server { target, runtime: self.runtime, shutdown, task, file, path, keeping })
    }
}

/// How many connections this process has descriptors for, up to `most`.
fn connections(most: usize) -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.and_then(|count| usize::try_from(count).ok()).map_or(most, |count| (count / PER_CONNECTION).clamp(1, most))
}

/// HTTPS, if it is to be served: what clients are told, and where it comes in.
fn https(settings: &Settings, handed: &mut Handed) -> anyhow::Result<Option<(Https, Listener)>> {
    let (Some(Tls { listen, files }), Some(domain)) = (&settings.tls, &settings.domain) else { return Ok(None) };
    let name = domain.split(':').next().unwrap_or(domain);
    let (identity, bundle) = match files {
        Some((chain, key)) => {
            let secret = serverfile::read_secret(key)?;
            (TlsIdentity::from_chain(chain, &key.path, &secret)?, None)
        }
        None => {
            let dir = settings.state_dir.join("tls");
            let (identity, authority) = TlsIdentity::internal(&dir, name)?;
            let bundle = dir.join("bundle.pem");
            serverfile::write_bundle(&bundle, &authority)?;
            (identity, Some(bundle))
        }
    };
    let door = handed.take(*listen).map(Door::Handed).map_or_else(|| take(*listen).map(Door::Taken), Ok);
    let taken = door.and_then(|door| door.listen(BACKLOG));
    let listener = taken
        .with_context(|| format!("cannot serve HTTPS on `{listen}`"))
        .hint("another program may use it: choose another address with `--tls-listen`")?;
    Ok(Some((Https { domain: domain.clone(), bundle }, Listener::Tls(listener, identity))))
}

/// Where clients on this host reach a listener: one on every address is reached by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// A server of this process.
pub(crate) struct Server {
    target: Target,
    runtime: Runtime,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
    file: ServerFile,
    path: PathBuf,
    /// Of a node, while it is one.
    keeping: Option<Keeping>,
}

impl Server {
    /// How clients reach it.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Ends when the server does by itself, which is an error. Cancel-safe.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<()> {
        (&mut self.task).await.context("the server ended badly")?.context("the server stopped serving")?;
        // It was not told to.
        if self.keeping.as_ref().is_some_and(Keeping::is_lost) { Err(joining::lost()) } else { Ok(()) }
    }

    /// Stops serving and ends or pauses every sandbox. Nothing of it is left when this returns.
    pub(crate) async fn stop(self, on_exit: OnExit) -> anyhow::Result<()> {
        let removed = self.file.remove(&self.path);
        self.shutdown.cancel();
        // A server that ended by itself has said why to whoever waited for it.
        let served = if self.task.is_finished() { Ok(Ok(())) } else { self.task.await };
        self.runtime.shutdown(on_exit).await;
        if let Some(keeping) = self.keeping {
            keeping.end();
        }
        served.context("the server ended badly")?.context("the server stopped serving")?;
        removed
    }
}

/// How this program is called from the shell that called it, for hints to paste.
pub(crate) fn program() -> String {
    let Ok(program) = std::env::current_exe() else { return "firkin".to_owned() };
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|dir| dir.join("firkin")).find(|candidate| candidate.exists());
    if found.and_then(|found| fs::canonicalize(found).ok()).is_some_and(|found| found == program) {
        return "firkin".to_owned();
    }
    match std::env::current_dir().ok().and_then(|dir| program.strip_prefix(dir).ok().map(Path::to_owned)) {
        Some(relative) => format!("./{}", relative.display()),
        None => program.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_address_is_reached_by_loopback() {
        for (listener, expected) in
            [("0.0.0.0:3000", "127.0.0.1:3000"), ("[::]:3000", "[::1]:3000"), ("192.0.2.1:80", "192.0.2.1:80")]
        {
            assert_eq!(reachable(listener.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn plain_http_for_other_hosts_is_refused_with_the_remedy() {
        let cli = <crate::args::Cli as clap::Parser>::try_parse_from(["firkin", "up", "--listen", "0.0.0.0:0"]).unwrap();
        let settings = crate::settings::resolve(&cli, &crate::settings::Surroundings::default());
        let error = crate::failure::render(&bind(&settings, IfTaken::Fail, &mut Handed::default()).unwrap_err());
        assert!(error.starts_with("error: cannot serve plain HTTP on `0.0.0.0:0`"), "{error}");
        assert!(error.contains("--tls-listen") && error.contains("--allow-plain-http"), "{error}");
    }

    #[test]
    fn what_a_killed_server_was_starting_is_waited_for_and_nothing_else() {
        let mut tries = ["there", "there", "free"].into_iter();
        let freed = once_left(Duration::MAX, || tries.next().filter(|found| *found == "free").ok_or("there"), |_| true);
        assert_eq!((freed, tries.len()), (Ok("free"), 0));
        let fails = |within, is_there| once_left(within, || Err::<(), _>("there"), |_| is_there);
        assert_eq!([fails(Duration::MAX, false), fails(Duration::ZERO, true)], [Err("there"); 2]);
    }

    #[tokio::test]
    async fn two_that_begin_at_once_have_an_address_each() {
        let free = take("127.0.0.1:0".parse().unwrap()).unwrap().local_addr().unwrap();
        let cli = <crate::args::Cli as clap::Parser>::try_parse_from(["firkin", "quickstart"]).unwrap();
        let settings = crate::settings::resolve(&cli, &crate::settings::Surroundings::default());
        let settings = Settings { listen: free, listen_chosen: false, ..settings };
        let own = || bind(&settings, IfTaken::AnyFreePort, &mut Handed::default()).unwrap();
        let doors = [own(), own()];
        let [first, second] = doors.map(|door| door.listen(BACKLOG).unwrap().local_addr().unwrap());
        assert_ne!(first, second);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_before_anything_is_made_ready() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key.pem");
        fs::write(&key, "secret").unwrap();
        fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        let key = key.to_str().unwrap();
        let tls = ["--tls-listen", "127.0.0.1:0", "--domain", "a.test", "--tls-cert", "/c", "--tls-key", key];
        for options in [&["--api-key-file", key][..], &tls] {
            let line = ["firkin", "up", "--listen", "127.0.0.1:0"].into_iter().chain(options.iter().copied());
            let cli = <crate::args::Cli as clap::Parser>::try_parse_from(line).unwrap();
            let settings = crate::settings::resolve(&cli, &crate::settings::Surroundings::default());
            let error = crate::failure::render(&bind(&settings, IfTaken::Fail, &mut Handed::default()).unwrap_err());
            assert!(error.contains("lets other users in") && error.contains("hint: `chmod 600"), "{error}");
        }
    }

    #[test]
    fn there_are_as_many_connections_as_descriptors_allow() {
        assert_eq!(connections(1), 1);
        assert!((1..=1 << 40).contains(&connections(1 << 40)));
    }

    #[test]
    fn this_host_has_some_capacity() {
        let capacity = capacity(Path::new("/"), Overcommit::default()).unwrap();
        assert!(capacity.cpus > 0 && capacity.memory_mib > 0 && capacity.disk_mib > 0, "{capacity:?}");
    }
}
