//! A machine that is none: the whole seam in memory, for tests of everything above it.
//!
//! A [`FakeEngine`] keeps the contract's states, writes small files where a real one writes large ones, and speaks to an *agent*
//! that the test supplies: a closure that is given the guest's end of every control connection. The agent's [`Guest`] has a
//! memory that survives pauses, snapshots and restores exactly as RAM does, so a test sees whether state was carried over.
//! Failures are injected by [`FakeEngine::inject`], crashes by [`FakeEngine::crash`]; [`FakeEngine::live`] counts what was not
//! cleaned up. Clones of an engine are views of one host: a test of a restarted server gives a clone to the second server. Where
//! the first server is to be a process that is killed, [`FakeEngine::kept_in`] has the machines live in files.

mod body;
mod files;
mod kept;
mod machine;
mod prepared;
mod trees;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::{io::DuplexStream, sync::watch};

pub use self::trees::Trees;
use self::{
    body::{Body, Program},
    machine::FakeMachine,
    prepared::FakePrepared,
};
use crate::{
    Acceleration, BootFiles, BootSpec, Compatibility, DiskFormat, Engine, Exit, Fingerprint, Machine, OwnMemory, Prepared,
    RestoreSpec, Safeguard, StartError, gvisor::Marks, qcow2::Qcow2,
};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// [`Engine::boot`].
    Boot,
    /// [`Engine::prepare`], and so [`Engine::restore`], before anything is done.
    Restore,
    /// [`Prepared::load`], and so the second half of [`Engine::restore`].
    Load,
    /// [`Engine::adopt`].
    Adopt,
    /// [`Machine::resume`] of a paused machine.
    Resume,
    /// [`Machine::pause`] of a running machine.
    Pause,
    /// [`Machine::prepare_cut`].
    PrepareCut,
    /// [`Machine::snapshot`].
    Snapshot,
    /// [`Machine::switch_disk`].
    SwitchDisk,
    /// [`Machine::control`].
    Control,
    /// [`Machine::answer`].
    Answer,
}

/// How it fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The engine refuses; the machine stays as it was.
    Refuse,
    /// The engine dies during the call.
    Crash,
    /// The call never returns.
    Hang,
    /// The call takes this much longer, then works.
    Delay(Duration),
}

/// In which form an engine keeps what it makes. The seam allows either, so who works above it is tested with both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeping {
    /// As QEMU does: memory in files of its own, of which clones keep the difference, and disks in qcow2 files. A booted machine is sealed
    /// by its snapshot.
    #[default]
    Files,
    /// Memory within the state, all of it each time, and each layer of a disk in a directory. A booted machine may go on.
    InStateAndTrees,
    /// As gVisor does: memory and what guests wrote within the state, and nothing to boot but the root image, which has the agent.
    AllInState,
}

/// What agents are given: one end of a control connection, and the guest behind it.
#[derive(Debug)]
pub struct Connection {
    /// The guest's end. What the host writes while the machine is paused arrives when it runs again.
    pub stream: DuplexStream,
    /// The guest that the agent is in.
    pub guest: Guest,
}

/// A guest, as its agent sees it.
#[derive(Debug, Clone)]
pub struct Guest {
    core: Arc<Core>,
}

impl Guest {
    /// What the guest remembers.
    pub fn memory(&self) -> Vec<u8> {
        lock(&self.core.memory).clone()
    }

    /// Makes the guest remember something else.
    pub fn remember(&self, memory: impl Into<Vec<u8>>) {
        *lock(&self.core.memory) = memory.into();
        self.core.keep();
    }

    /// The file in which its machine is written down, for who has to see from elsewhere that it lives. None where machines are not kept.
    pub fn kept(&self) -> Option<PathBuf> {
        let host = self.core.host.upgrade()?;
        host.kept_in.as_deref().map(|path| kept::file_of(path, &self.core.dir))
    }

    /// The file or directory that the guest's root disk is at the moment.
    pub fn root_disk(&self) -> PathBuf {
        lock(&self.core.root_disk).clone()
    }

    /// The file that the guest writes, when it writes to its root disk. On an engine that keeps what guests write in their state it is no
    /// part of the disk, and need not be there yet.
    pub fn written(&self) -> PathBuf {
        let disk = self.root_disk();
        let is_mark = disk.extension().is_some_and(|extension| extension == Marks.extension());
        if is_mark { disk.with_file_name("written") } else { trees::written(&disk) }
    }

    /// Has its machine hold so much of the disk in files without a name.
    pub fn hold_unnamed(&self, bytes: u64) {
        self.core.unnamed_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Ends the machine from within.
    pub fn power_off(&self) {
        self.core.end(Exit::GuestPoweroff);
    }
}

type Agent = dyn Fn(Connection) -> BoxFuture<'static, ()> + Send + Sync;

/// The engine. Cheap to clone; clones share their machines.
#[derive(Clone)]
pub struct FakeEngine {
    host: Arc<Host>,
    compatibility: Compatibility,
}

impl fmt::Debug for FakeEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeEngine").field("live", &self.live()).finish_non_exhaustive()
    }
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new()
    }
}

/// What all clones of an engine share.
struct Host {
    agent: Box<Agent>,
    machines: Mutex<HashMap<PathBuf, Arc<Core>>>,
    faults: Mutex<VecDeque<(Point, Fault)>>,
    boots: AtomicU64,
    restores: AtomicU64,
    /// Whose guest answers on the control socket in a directory that is not its own.
    crossed: Mutex<HashMap<PathBuf, PathBuf>>,
    /// Where machines are written down.
    kept_in: Option<PathBuf>,
    /// What each of them is a process of.
    program: OnceLock<Box<Program>>,
    keeping: Keeping,
    /// Those that it keeps for what they made.
    programs: Mutex<Vec<String>>,
}

impl FakeEngine {
    /// Has it keep a program of this name.
    pub fn keep_program(&self, name: &str) {
        lock(&self.host.programs).push(name.to_owned());
    }

    /// An engine whose guests send back what they are sent.
    pub fn new() -> Self {
        Self::with_agent(|connection| async move {
            let (mut read, mut write) = tokio::io::split(connection.stream);
            if let Err(error) = tokio::io::copy(&mut read, &mut write).await {
                tracing::debug!(%error, "a fake guest's echo ended");
            }
        })
    }

    /// An engine whose guests run `agent` for every control connection. A new connection ends the one before it.
    pub fn with_agent<F, A>(agent: F) -> Self
    where
        F: Fn(Connection) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let host = Host::new(Box::new(move |connection| Box::pin(agent(connection))), None);
        Self { host: Arc::new(host), compatibility: compatibility() }
    }

    /// An engine whose machines outlive its process: they live in files in `dir`, and those that an earlier engine left there
    /// are machines of this one. Whoever kills a process with such an engine kills no machine.
    pub fn kept_in<F, A>(dir: &Path, agent: F) -> std::io::Result<Self>
    where
        F: Fn(Connection) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let host = Host::new(Box::new(move |connection| Box::pin(agent(connection))), Some(dir.to_owned()));
        let host = Arc::new(host);
        for core in kept::find(dir, &host)? {
            lock(&host.machines).insert(core.dir.clone(), core);
        }
        Ok(Self { host, compatibility: compatibility() })
    }

    /// Has it keep what it makes in another form.
    ///
    /// # Panics
    /// If it has been cloned, or has machines.
    #[must_use]
    pub fn keeping(mut self, keeping: Keeping) -> Self {
        let host = Arc::get_mut(&mut self.host).expect("an engine that nobody shares yet");
        assert!(lock(&host.machines).is_empty(), "its machines are kept in another form");
        host.keeping = keeping;
        self
    }

    /// Has each machine that is started from now on be a process, too: of the program that is made of the file in which it is written down and of the
    /// number in that file by which it is told from others. It is killed when the machine ends. It has to leave the session in which it is started,
    /// so that the kernel does not let it go on when that ends.
    ///
    /// # Panics
    /// If they are processes already.
    #[must_use]
    pub fn embodied(self, program: impl Fn(&Path, u64) -> Command + Send + Sync + 'static) -> Self {
        assert!(self.host.program.set(Box::new(program)).is_ok(), "its machines are processes of another program");
        self
    }

    /// The same host behind another fingerprint, as after an upgrade of the engine.
    pub fn with_fingerprint(&self, fingerprint: Fingerprint) -> Self {
        Self { host: Arc::clone(&self.host), compatibility: Compatibility { plain: fingerprint, ..self.compatibility.clone() } }
    }

    /// Makes the next call of this kind fail. Several faults of one kind are used in order, one a call.
    pub fn inject(&self, point: Point, fault: Fault) {
        lock(&self.host.faults).push_back((point, fault));
    }

    /// Faults that were injected and have not been met yet.
    pub fn faults(&self) -> usize {
        lock(&self.host.faults).len()
    }

    /// Ends the machine or prepared engine in `dir` as if its process had died. Whether there was one.
    pub fn crash(&self, dir: &Path) -> bool {
        let core = lock(&self.host.machines).get(dir).cloned();
        core.is_some_and(|core| core.end(crashed()))
    }

    /// Swaps the control sockets of the machines in two directories, as who renames them does. Connections that are open stay.
    pub fn cross(&self, one: &Path, other: &Path) {
        let mut crossed = lock(&self.host.crossed);
        let mut now = |dir: &Path| crossed.remove(dir).unwrap_or_else(|| dir.to_owned());
        let (of_one, of_other) = (now(one), now(other));
        crossed.insert(one.to_owned(), of_other);
        crossed.insert(other.to_owned(), of_one);
    }

    /// Machines and prepared engines that are not gone.
    pub fn live(&self) -> usize {
        lock(&self.host.machines).len()
    }

    /// Their directories, sorted.
    pub fn live_dirs(&self) -> Vec<PathBuf> {
        let mut dirs: Vec<PathBuf> = lock(&self.host.machines).keys().cloned().collect();
        dirs.sort();
        dirs
    }

    /// Boots that succeeded.
    pub fn boots(&self) -> u64 {
        self.host.boots.load(Ordering::Relaxed)
    }

    /// Restores that succeeded.
    pub fn restores(&self) -> u64 {
        self.host.restores.load(Ordering::Relaxed)
    }
}

fn compatibility() -> Compatibility {
    let plain = Fingerprint {
        engine: "fake".into(),
        version: "1".into(),
        machine: "none".into(),
        acceleration: Acceleration::None,
        cpu: "none".into(),
        devices: None,
        program: None,
        announces: false,
    };
    Compatibility { plain, nested_cpu: "nested".into(), earlier_cpus: Vec::new() }
}

impl Host {
    fn new(agent: Box<Agent>, kept_in: Option<PathBuf>) -> Self {
        Self {
            agent,
            machines: Mutex::default(),
            faults: Mutex::default(),
            boots: AtomicU64::new(0),
            restores: AtomicU64::new(0),
            crossed: Mutex::default(),
            kept_in,
            program: OnceLock::new(),
            keeping: Keeping::default(),
            programs: Mutex::default(),
        }
    }

    /// The machine whose guest answers on this one's control socket.
    fn answering(&self, core: &Arc<Core>) -> Arc<Core> {
        let crossed = lock(&self.crossed).get(&core.dir).cloned();
        crossed.and_then(|dir| lock(&self.machines).get(&dir).cloned()).unwrap_or_else(|| Arc::clone(core))
    }

    /// Suffers the next fault of this kind: delays and hangs here, and gives the others to be turned into an error.
    async fn suffer(&self, point: Point) -> Option<Failed> {
        let fault = {
            let mut faults = lock(&self.faults);
            let at = faults.iter().position(|(at, _)| *at == point)?;
            faults.remove(at)?.1
        };
        match fault {
            Fault::Refuse => Some(Failed::Refused),
            Fault::Crash => Some(Failed::Crashed),
            Fault::Hang => std::future::pending().await,
            Fault::Delay(delay) => {
                tokio::time::sleep(delay).await;
                None
            }
        }
    }

    /// The fault of a start, as its error.
    async fn suffer_start(&self, point: Point) -> Result<(), StartError> {
        match self.suffer(point).await {
            None => Ok(()),
            Some(Failed::Refused) => Err(StartError::Refused { phase: "its start", reason: INJECTED.into() }),
            Some(Failed::Crashed) => Err(StartError::Died { phase: "its start", log: INJECTED.into() }),
        }
    }
}

enum Failed {
    Refused,
    Crashed,
}

const INJECTED: &str = "a test asked for it";

fn crashed() -> Exit {
    Exit::Crashed { status: "signal: 11 (SIGSEGV)".into(), log: INJECTED.into() }
}

/// Where a machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// Without the state of its snapshot.
    Prepared,
    Running,
    Paused,
    Sealed,
    Gone(Exit),
}

/// Whose memory a machine's is.
#[derive(Debug)]
enum Origin {
    Booted { memory_file: PathBuf },
    Restored { memory_bytes: u64 },
}

/// A machine, apart from whoever holds it.
#[derive(Debug)]
struct Core {
    dir: PathBuf,
    /// Another one for each machine, for who sees only its file: nanoseconds since 1970 when it was started.
    started: u64,
    origin: Origin,
    phase: watch::Sender<Phase>,
    memory: Mutex<Vec<u8>>,
    root_disk: Mutex<PathBuf>,
    unnamed_bytes: AtomicU64,
    body: Mutex<Option<Body>>,
    host: std::sync::Weak<Host>,
}

impl Core {
    /// Ends the machine, once. Whether this call did.
    fn end(&self, exit: Exit) -> bool {
        let ended = self.phase.send_if_modified(|phase| {
            let alive = !matches!(phase, Phase::Gone(_));
            if alive {
                *phase = Phase::Gone(exit);
            }
            alive
        });
        if let Some(body) = lock(&self.body).take() {
            body.end();
        }
        if let Some(host) = self.host.upgrade() {
            lock(&host.machines).remove(&self.dir);
        }
        self.keep();
        ended
    }

    /// Writes the machine down, if it is to outlive us.
    fn keep(&self) {
        if let Some(host) = self.host.upgrade()
            && let Some(path) = &host.kept_in
        {
            kept::keep(path, self).expect("the directory of a test's machines can be written");
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").finish_non_exhaustive()
    }
}

impl FakeEngine {
    fn start(&self, dir: PathBuf, root_disk: PathBuf, (origin, phase, memory): (Origin, Phase, Vec<u8>)) -> Arc<Core> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let core = Arc::new(Core {
            dir: dir.clone(),
            started: u64::try_from(started).unwrap_or(u64::MAX),
            origin,
            phase: watch::Sender::new(phase),
            memory: Mutex::new(memory),
            root_disk: Mutex::new(root_disk),
            unnamed_bytes: AtomicU64::new(0),
            body: Mutex::default(),
            host: Arc::downgrade(&self.host),
        });
        core.keep();
        if let (Some(program), Some(path)) = (self.host.program.get(), &self.host.kept_in) {
            let body = Body::start(program(&kept::file_of(path, &dir), core.started));
            *lock(&core.body) = Some(body.expect("the program of a test's machines can be run"));
            core.keep();
        }
        lock(&self.host.machines).insert(dir, Arc::clone(&core));
        core
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn own_memory(&self) -> OwnMemory {
        OwnMemory { usual_mib: 0, most_mib: 0 }
    }

    fn most_threads(&self) -> u32 {
        0
    }

    /// None: it has no processes.
    fn safeguards(&self) -> Vec<Safeguard> {
        Vec::new()
    }

    fn disks(&self) -> &'static dyn DiskFormat {
        match self.host.keeping {
            Keeping::Files => &Qcow2,
            Keeping::InStateAndTrees => &Trees,
            Keeping::AllInState => &Marks,
        }
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Machine>, StartError> {
        self.host.suffer_start(Point::Boot).await?;
        match &spec.boot {
            BootFiles::InRootImage { .. } if self.host.keeping == Keeping::AllInState => {}
            boot => {
                let boot = boot.kernel()?;
                files::exists(&boot.kernel.path)?;
                files::exists(&boot.initrd.path)?;
            }
        }
        files::exists(&spec.disk.overlay)?;
        if self.host.keeping == Keeping::Files {
            files::create_memory(&spec.memory_file, spec.shape)?;
        }
        self.host.boots.fetch_add(1, Ordering::Relaxed);
        let origin = Origin::Booted { memory_file: spec.memory_file };
        let core = self.start(spec.dir, spec.disk.overlay, (origin, Phase::Running, Vec::new()));
        Ok(Box::new(FakeMachine::new(core, Arc::clone(&self.host))))
    }

    async fn prepare(&self, spec: RestoreSpec) -> Result<Box<dyn Prepared>, StartError> {
        self.host.suffer_start(Point::Restore).await?;
        files::exists(&spec.disk.overlay)?;
        let memory = files::read_snapshot(&spec)?;
        let origin = Origin::Restored { memory_bytes: u64::from(spec.shape.memory_mib) << 20 };
        let core = self.start(spec.dir, spec.disk.overlay, (origin, Phase::Prepared, memory));
        Ok(Box::new(FakePrepared::new(FakeMachine::new(core, Arc::clone(&self.host)))))
    }

    fn has_started(&self, dir: &Path) -> bool {
        lock(&self.host.machines).contains_key(dir)
    }

    fn spare_programs(&self) -> std::io::Result<Vec<String>> {
        Ok(lock(&self.host.programs).clone())
    }

    fn forget_program(&self, program: &str) -> std::io::Result<()> {
        lock(&self.host.programs).retain(|kept| kept != program);
        Ok(())
    }

    fn unnamed_bytes(&self, dir: &Path) -> std::io::Result<u64> {
        Ok(lock(&self.host.machines).get(dir).map_or(0, |core| core.unnamed_bytes.load(Ordering::SeqCst)))
    }

    async fn adopt(&self, dir: &Path) -> Result<Box<dyn Machine>, StartError> {
        self.host.suffer_start(Point::Adopt).await?;
        let core = lock(&self.host.machines).get(dir).cloned();
        let core = core.ok_or_else(|| StartError::File {
            path: dir.to_path_buf(),
            source: std::io::Error::new(std::io::ErrorKind::NotFound, "no machine runs there"),
        })?;
        if *core.phase.borrow() == Phase::Prepared {
            core.end(Exit::Killed);
            return Err(StartError::Refused { phase: "to be adopted", reason: "its machine was never whole".into() });
        }
        Ok(Box::new(FakeMachine::new(core, Arc::clone(&self.host))))
    }
}

/// A lock that a panicking test poisoned still guards consistent data: every critical section is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
