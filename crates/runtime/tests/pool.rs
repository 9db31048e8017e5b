//! The warm pool as users have it: claims, what a claimed guest is, what happens when one fails, and that nothing stays.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use firkin_engine::{
    BootFile, BootFiles,
    fake::{Connection, FakeEngine, Fault, Point},
};
use firkin_runtime::{
    capacity::{CapacityUsage, HostCapacity},
    config::{AdmissionConfig, GuestSystem, RuntimeConfig},
    disk::{DiskPressureProbe, DiskSpace},
    memory_pressure::HostMemory,
    network::NetworkChoice,
    owner::OnExit,
    runtime::Runtime,
    sandbox::{CreateSandbox, InternetAccess},
    standard::BuildTemplate,
    warm::{Depth, PoolStatus, WarmConfig},
};
use firkin_wire::control::{Answer, Call, Decoder, GENERATION, Identity, Request, Response, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

const DEADLINE: Duration = Duration::from_secs(120);
/// How long a ready command may take in a warm session.
const READY_COMMAND: Duration = Duration::from_secs(60);
/// A host that is never full.
const NEVER: HostCapacity = HostCapacity { cpus: 1000, memory_mib: 1 << 20, disk_mib: 1 << 30 };

/// A host for so many sandboxes.
fn room_for(sandboxes: u32) -> HostCapacity {
    HostCapacity { cpus: sandboxes, ..NEVER }
}

/// Every identity that any guest took, in order, with the machine's disk to tell the guests apart.
type Taken = Arc<Mutex<Vec<(String, Identity)>>>;

struct Bench {
    runtime: Runtime,
    engine: FakeEngine,
    taken: Taken,
    dir: tempfile::TempDir,
}

fn engine(taken: &Taken) -> FakeEngine {
    let taken = Arc::clone(taken);
    FakeEngine::with_agent(move |connection| serve(connection, Arc::clone(&taken)))
}

async fn serve(connection: Connection, taken: Taken) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        decoder.push(&buffer[..read]);
        while let Some(Request { id, call, .. }) = decoder.next() {
            let answer = match call {
                Call::Hello => Answer::Hello { generation: GENERATION, version: "test".into(), epoch: 0, envd_ready: true },
                Call::Resume(identity) => {
                    let epoch = identity.epoch;
                    taken.lock().unwrap().push((guest.root_disk().display().to_string(), *identity));
                    Answer::Resumed { epoch, clock_behind_ns: 0, volumes: None }
                }
                Call::Stats | Call::Sync | Call::Shrink | Call::PowerOff => Answer::Done,
            };
            if stream.write_all(&encode(&Response { id, answer, proof: None }).unwrap()).await.is_err() {
                return;
            }
        }
    }
}

fn config(dir: &Path, capacity: HostCapacity, depth: Depth) -> RuntimeConfig {
    let file = |name: &str| {
        let path = dir.join(name);
        fs_err::write(&path, vec![0; 4096]).unwrap();
        path
    };
    let guest = GuestSystem {
        boot: BootFiles::new(
            BootFile { path: file("kernel"), digest: "k".into() },
            BootFile { path: file("initrd"), digest: "i".into() },
        ),
        rootfs: file("rootfs"),
        rootfs_digest: "r".into(),
        rootfs_bytes: 1 << 20,
    };
    RuntimeConfig {
        admission: AdmissionConfig { warm_percent: 100, ..AdmissionConfig::default() },
        warm: WarmConfig { depth, prepared: Some(0), ..WarmConfig::default() },
        disk_floor_mib: Some(0),
        memory_probe: Arc::new(HostMemory::PLENTY),
        ..RuntimeConfig::new(dir.join("state"), capacity, NetworkChoice::Loopback, guest)
    }
}

fn base() -> BuildTemplate {
    BuildTemplate { ready: None, ..BuildTemplate::base() }
}

/// The first stage of the pool alone, or beside the second.
fn prepared(dir: &Path, depth: Depth, count: u32) -> RuntimeConfig {
    let warm = WarmConfig { depth, prepared: Some(count), ..WarmConfig::default() };
    RuntimeConfig { warm, ..config(dir, NEVER, depth) }
}

impl Bench {
    /// A runtime with the template `base`.
    async fn start(depth: Depth) -> Self {
        Self::with_capacity(NEVER, depth).await
    }

    async fn with_capacity(capacity: HostCapacity, depth: Depth) -> Self {
        let (taken, dir) = (Taken::default(), tempfile::tempdir().unwrap());
        let engine = engine(&taken);
        Self::with_config(config(dir.path(), capacity, depth), engine, taken, dir).await
    }

    async fn with_config(config: RuntimeConfig, engine: FakeEngine, taken: Taken, dir: tempfile::TempDir) -> Self {
        let runtime = Runtime::open(config, Arc::new(engine.clone())).await.unwrap();
        Box::pin(runtime.build_template(base(), &|_| {})).await.unwrap();
        // What the build's own machine took: the pool may have begun with the new template already.
        let live = engine.live_dirs();
        taken.lock().unwrap().retain(|(disk, _)| live.iter().any(|dir| Path::new(disk).starts_with(dir)));
        Self { runtime, engine, taken, dir }
    }

    /// A runtime with the template `base` on a host for so many, with so many engines prepared.
    async fn with_prepared(sandboxes: u32, depth: Depth, count: u32) -> Self {
        let (taken, dir) = (Taken::default(), tempfile::tempdir().unwrap());
        let engine = engine(&taken);
        let config = RuntimeConfig { capacity: room_for(sandboxes), ..prepared(dir.path(), depth, count) };
        Self::with_config(config, engine, taken, dir).await
    }

    async fn waiting(&self, warm: usize, prepared: usize) -> PoolStatus {
        let reached = |status: &PoolStatus| {
            let of = status.templates.values().next();
            of.is_some_and(|shelf| (shelf.ready, shelf.prepared, shelf.making) == (warm, prepared, 0))
        };
        self.until("both stages fill", reached).await
    }

    /// The next server on the same host, with the same template and another pool.
    async fn reopened(self, depth: Depth, before: impl FnOnce(&FakeEngine)) -> Self {
        let Self { runtime, engine, taken, dir } = self;
        let capacity = runtime.capacity().capacity;
        runtime.shutdown(OnExit::Kill).await;
        drop(runtime);
        before(&engine);
        let runtime = Runtime::open(config(dir.path(), capacity, depth), Arc::new(engine.clone())).await.unwrap();
        Self { runtime, engine, taken, dir }
    }

    async fn create(&self) -> firkin_runtime::sandbox::RuntimeSandbox {
        let request = CreateSandbox::from_template("base");
        tokio::time::timeout(DEADLINE, self.runtime.create(request)).await.expect("a create ends").unwrap()
    }

    /// Waits until the pool is as it should be.
    async fn until(&self, what: &str, reached: impl Fn(&PoolStatus) -> bool) -> PoolStatus {
        let reaching = async {
            loop {
                let status = self.runtime.pool();
                if reached(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match tokio::time::timeout(DEADLINE, reaching).await {
            Ok(status) => status,
            Err(_) => panic!("{what}: {:?}", self.runtime.pool()),
        }
    }

    async fn ready(&self, count: usize) -> PoolStatus {
        self.until("the pool fills", |status| ready(status) == count).await
    }

    fn taken(&self) -> Vec<(String, Identity)> {
        self.taken.lock().unwrap().clone()
    }

    /// Stops the runtime; nothing is left.
    async fn stop(self) {
        tokio::time::timeout(DEADLINE, self.runtime.shutdown(OnExit::Kill)).await.expect("the runtime stops");
        assert_eq!(self.engine.live(), 0);
        assert_eq!(self.runtime.capacity().usage, CapacityUsage::default());
        assert_eq!(fs_err::read_dir(self.dir.path().join("state/run")).unwrap().count(), 0);
    }
}

fn ready(status: &PoolStatus) -> usize {
    status.templates.values().map(|shelf| shelf.ready).sum()
}

#[tokio::test]
async fn a_create_claims_a_warm_session_with_its_capacity_and_the_pool_is_filled_again() {
    let bench = Bench::start(Depth { min: 1, max: 1 }).await;
    bench.ready(1).await;
    assert_eq!(bench.runtime.capacity().usage.warm.sessions, 1);
    let dirs = bench.engine.live_dirs();
    let sandbox = bench.create().await;
    assert!(bench.engine.live_dirs().contains(&dirs[0]), "the machine is the one that waited");
    let status = bench.until("the pool fills again", |status| status.refills == 2).await;
    assert_eq!((status.hits, status.prepared_hits, status.misses), (1, 0, 0));
    assert_eq!((bench.engine.restores(), bench.engine.live()), (2, 2));
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (1, 1));
    bench.runtime.kill(&sandbox.id).await.unwrap();
    assert_eq!(bench.engine.live(), 1);
    bench.stop().await;
}

#[tokio::test]
async fn a_claimed_guest_is_renewed_before_its_sandbox_is_answered_and_shares_nothing_with_another() {
    let bench = Bench::start(Depth { min: 2, max: 2 }).await;
    bench.ready(2).await;
    let warm = bench.taken();
    assert_eq!(warm.len(), 2);
    let sandboxes = [bench.create().await, bench.create().await];
    let taken = bench.taken();
    let own = sandboxes.each_ref().map(|sandbox| {
        let found: Vec<_> = taken.iter().filter(|(_, identity)| identity.sandbox_id == sandbox.id.as_str()).collect();
        let [(disk, identity)] = &found[..] else { panic!("not one identity of {}: {found:?}", sandbox.id) };
        assert_eq!(identity.access_token, sandbox.envd_access_token);
        assert!(identity.machine_id.is_some() && identity.access_token.is_some());
        let (_, before) = warm.iter().find(|(of, _)| of == disk).expect("the guest was a warm one");
        assert!(identity.epoch > before.epoch, "a new life for those who are connected to the guest");
        assert!(identity.realtime_ns > before.realtime_ns, "with the time of the claim");
        assert!(before.access_token.is_some(), "nobody can reach envd of a warm guest");
        identity.clone()
    });
    let all = [&warm[0].1, &warm[1].1, &own[0], &own[1]];
    for (n, one) in all.iter().enumerate() {
        for other in &all[..n] {
            assert_ne!(one.entropy, other.entropy);
            assert_ne!(one.access_token, other.access_token);
            assert_ne!(one.sandbox_id, other.sandbox_id);
        }
    }
    assert_ne!(own[0].machine_id, own[1].machine_id);
    bench.stop().await;
}

#[tokio::test]
async fn a_warm_session_that_cannot_be_claimed_is_discarded_and_the_create_is_restored() {
    for (point, fault) in [(Point::Resume, Fault::Refuse), (Point::Resume, Fault::Crash)] {
        // Without room for another warm session, nobody but the claim meets the fault.
        let bench = Bench::with_capacity(room_for(1), Depth { min: 1, max: 1 }).await;
        bench.ready(1).await;
        bench.engine.inject(point, fault);
        let sandbox = bench.create().await;
        let status = bench.runtime.pool();
        assert_eq!((status.hits, status.failed_claims), (0, 1), "{fault:?}");
        assert!(bench.taken().iter().any(|(_, identity)| identity.sandbox_id == sandbox.id.as_str()));
        assert_eq!(bench.engine.live(), 1, "the failed one is gone");
        bench.stop().await;
    }
}

#[tokio::test]
async fn a_warm_session_that_dies_is_replaced() {
    let bench = Bench::start(Depth { min: 1, max: 1 }).await;
    bench.ready(1).await;
    assert!(bench.engine.crash(&bench.engine.live_dirs()[0]));
    let status = bench.until("another is made", |status| status.refills == 2).await;
    assert_eq!((status.lost, bench.engine.live(), bench.runtime.capacity().usage.warm.sessions), (1, 1, 1));
    bench.stop().await;
}

/// A guest that takes connections and says nothing, as one whose machine has died does.
fn silent_envd() -> (NetworkChoice, std::net::TcpListener) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    (NetworkChoice::LoopbackPorts([(49983, listener.local_addr().unwrap().port())].into()), listener)
}

#[tokio::test]
async fn a_machine_that_dies_while_it_is_warmed_up_is_noticed_at_once() {
    let Bench { runtime, engine, taken, dir } = Bench::start(Depth::NONE).await;
    runtime.shutdown(OnExit::Kill).await;
    drop(runtime);
    // As if its ready command had been there from the start: then the build would have waited for it.
    let store = rusqlite::Connection::open(dir.path().join("state/firkin.db")).unwrap();
    let changed = store.execute("UPDATE versions SET body = json_set(body, '$.warm_up', 'true')", []).unwrap();
    assert_eq!(changed, 1);
    drop(store);
    let (network, envd) = silent_envd();
    let config = RuntimeConfig { network, ..config(dir.path(), NEVER, Depth { min: 1, max: 1 }) };
    let runtime = Runtime::open(config, Arc::new(engine.clone())).await.unwrap();
    let bench = Bench { runtime, engine, taken, dir };
    let (_connection, _) = tokio::task::spawn_blocking(move || envd.accept().unwrap()).await.unwrap();
    assert!(bench.engine.crash(&bench.engine.live_dirs()[0]));
    let noticed = bench.until("it is noticed", |status| status.failed_refills == 1);
    tokio::time::timeout(READY_COMMAND / 2, noticed).await.expect("long before the ready command's own deadline");
    bench.stop().await;
}

#[tokio::test]
async fn without_a_warm_session_a_create_is_restored_and_counted_as_demand() {
    let bench = Bench::start(Depth { min: 0, max: 3 }).await;
    let status = bench.until("the template is known", |status| status.templates.len() == 1).await;
    assert_eq!(status.templates.values().next().unwrap().wanted, 0);
    let sandbox = bench.create().await;
    assert_eq!(bench.runtime.pool().misses, 1);
    bench.ready(1).await;
    // Forks and resumes are no creates of a template.
    let forks = bench.runtime.fork(&sandbox.id, 1, Duration::from_secs(60)).await.unwrap();
    bench.runtime.pause(&sandbox.id).await.unwrap();
    bench.runtime.resume(&sandbox.id, Duration::from_secs(60)).await.unwrap();
    assert!(forks.iter().all(Result::is_ok));
    assert_eq!((bench.runtime.pool().hits, bench.runtime.pool().misses), (0, 1));
    bench.stop().await;
}

#[tokio::test]
async fn a_sandbox_without_internet_may_be_claimed_too() {
    let bench = Bench::start(Depth { min: 1, max: 1 }).await;
    bench.ready(1).await;
    let request = CreateSandbox { internet: InternetAccess::Denied, ..CreateSandbox::from_template("base") };
    bench.runtime.create(request).await.unwrap();
    assert_eq!(bench.runtime.pool().hits, 1);
    bench.stop().await;
}

#[tokio::test]
async fn a_refill_that_fails_leaves_nothing_and_creates_go_on() {
    let bench = Bench::start(Depth::NONE).await.reopened(Depth { min: 1, max: 1 }, |engine| {
        engine.inject(Point::Restore, Fault::Refuse);
        engine.inject(Point::Pause, Fault::Refuse);
    });
    let bench = bench.await;
    bench.until("the first refill fails", |status| status.failed_refills == 1).await;
    assert_eq!((bench.engine.live(), bench.runtime.capacity().usage), (0, CapacityUsage::default()));
    bench.create().await;
    let status = bench.until("it is tried again, and fails when it is stopped", |status| status.failed_refills == 2).await;
    assert_eq!(status.misses, 1);
    bench.ready(1).await;
    assert_eq!(bench.engine.live(), 2);
    bench.stop().await;
}

#[tokio::test]
async fn active_work_gets_the_capacity_of_warm_sessions_after_they_ended() {
    let bench = Bench::with_capacity(room_for(3), Depth { min: 2, max: 2 }).await;
    bench.ready(2).await;
    let sandbox = bench.create().await;
    bench.ready(2).await;
    // Forks are not served by the pool, and the host is full.
    let forks = bench.runtime.fork(&sandbox.id, 2, Duration::from_secs(60)).await.unwrap();
    assert!(forks.iter().all(Result::is_ok), "{forks:?}");
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (3, 0));
    assert_eq!((bench.engine.live(), bench.runtime.pool().evictions), (3, 2));
    bench.stop().await;
}

#[tokio::test]
async fn a_session_that_is_being_made_is_given_up_for_active_work() {
    let bench = Bench::with_capacity(room_for(2), Depth::NONE).await.reopened(Depth { min: 1, max: 1 }, |engine| {
        engine.inject(Point::Resume, Fault::Hang);
    });
    let bench = bench.await;
    bench.until("one is being made", |status| status.templates.values().any(|shelf| shelf.making == 1)).await;
    tokio::time::timeout(DEADLINE, async {
        while bench.engine.faults() > 0 {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    let sandbox = bench.create().await;
    let forks = bench.runtime.fork(&sandbox.id, 1, Duration::from_secs(60)).await.unwrap();
    assert!(forks.iter().all(Result::is_ok), "{forks:?}");
    assert_eq!((bench.engine.live(), bench.runtime.pool().evictions), (2, 1));
    bench.stop().await;
}

#[tokio::test]
async fn a_full_host_is_left_to_active_work() {
    let bench = Bench::with_capacity(room_for(2), Depth { min: 4, max: 4 }).await;
    bench.ready(2).await;
    let sandboxes = [bench.create().await, bench.create().await];
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (2, 0), "a claim needs no more room than the session had");
    bench.until("no refill finds room", |status| status.templates.values().all(|shelf| shelf.making == 0)).await;
    for sandbox in sandboxes {
        bench.runtime.kill(&sandbox.id).await.unwrap();
    }
    assert_eq!(bench.runtime.pool().failed_refills, 0, "want of room is no failure");
    bench.stop().await;
}

#[tokio::test]
async fn sessions_of_a_deleted_or_rebuilt_template_end() {
    let bench = Bench::start(Depth { min: 1, max: 1 }).await;
    bench.ready(1).await;
    let before = bench.engine.live_dirs();
    Box::pin(bench.runtime.build_template(base(), &|_| {})).await.unwrap();
    bench.until("the new build's session is ready", |status| status.retired == 1 && ready(status) == 1).await;
    bench.create().await;
    assert!(!bench.engine.live_dirs().contains(&before[0]), "no create gets an earlier build");
    assert_eq!(bench.runtime.pool().hits, 1);
    let id = bench.runtime.template("base").await.unwrap().unwrap().id;
    for sandbox in bench.runtime.sandboxes() {
        bench.runtime.kill(&sandbox.id).await.unwrap();
    }
    bench.runtime.delete_template(&id).await.unwrap();
    bench.until("its shelf goes", |status| status.templates.is_empty()).await;
    bench.stop().await;
}

#[test]
fn a_restarted_server_keeps_claimed_sandboxes_and_removes_what_waited() {
    let tokio = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = tokio();
    let (bench, claimed, sandbox) = first.block_on(async {
        let bench = Bench::start(Depth { min: 1, max: 1 }).await;
        bench.ready(1).await;
        let claimed = bench.engine.live_dirs();
        let sandbox = bench.create().await;
        bench.until("another waits", |status| status.refills == 2).await;
        (bench, claimed, sandbox)
    });
    // As `kill -9` does: its tasks are never polled again, nor dropped. A process's end would release its lock.
    std::mem::forget(first);
    let Bench { runtime, engine, taken, dir } = bench;
    std::mem::forget(runtime);
    fs_err::remove_file(dir.path().join("state/lock")).unwrap();
    assert_eq!(engine.live(), 2);
    tokio().block_on(async {
        let config = config(dir.path(), NEVER, Depth::NONE);
        let runtime = Runtime::open(config, Arc::new(engine.clone())).await.unwrap();
        assert_eq!(engine.live_dirs(), claimed, "the one that waited had no owner");
        assert_eq!(runtime.sandbox(&sandbox.id).unwrap().envd_access_token, sandbox.envd_access_token);
        runtime.pause(&sandbox.id).await.unwrap();
        runtime.resume(&sandbox.id, Duration::from_secs(60)).await.unwrap();
        Bench { runtime, engine, taken, dir }.stop().await;
    });
}

#[tokio::test]
async fn a_create_without_a_warm_session_takes_a_prepared_engine_and_its_guest_is_its_own() {
    let bench = Bench::with_prepared(9, Depth::NONE, 2).await;
    let status = bench.waiting(0, 2).await;
    assert_eq!((status.refills, bench.engine.restores(), bench.taken().len()), (2, 0, 0), "there is no guest yet");
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (0, 2));
    let waited = bench.engine.live_dirs();
    let sandboxes = [bench.create().await, bench.create().await];
    assert!(waited.iter().all(|dir| bench.engine.live_dirs().contains(dir)), "the engines are those that waited");
    let taken = bench.taken();
    let own = sandboxes.each_ref().map(|sandbox| {
        let found: Vec<_> = taken.iter().filter(|(_, identity)| identity.sandbox_id == sandbox.id.as_str()).collect();
        let [(_, identity)] = &found[..] else { panic!("not one identity of {}: {found:?}", sandbox.id) };
        assert_eq!(identity.access_token, sandbox.envd_access_token);
        identity.clone()
    });
    assert_ne!(own[0].entropy, own[1].entropy);
    assert!(own[0].machine_id.is_some() && own[0].machine_id != own[1].machine_id);
    assert_eq!(taken.len(), 2, "the guests were nobody before");
    let status = bench.waiting(0, 2).await;
    assert_eq!((status.hits, status.prepared_hits, status.misses), (0, 2, 0));
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (2, 2));
    for sandbox in sandboxes {
        bench.runtime.pause(&sandbox.id).await.unwrap();
        bench.runtime.resume(&sandbox.id, Duration::from_secs(60)).await.unwrap();
    }
    assert_eq!(bench.runtime.pool().prepared_hits, 2, "a resume is no create of a template");
    bench.stop().await;
}

#[tokio::test]
async fn a_warm_session_is_taken_before_a_prepared_engine() {
    let bench = Bench::with_prepared(9, Depth { min: 1, max: 1 }, 1).await;
    bench.waiting(1, 1).await;
    bench.create().await;
    let status = bench.waiting(1, 1).await;
    assert_eq!((status.hits, status.prepared_hits), (1, 0));
    bench.stop().await;
}

#[tokio::test]
async fn a_prepared_engine_that_dies_is_replaced_and_never_handed_out() {
    let bench = Bench::with_prepared(9, Depth::NONE, 1).await;
    bench.waiting(0, 1).await;
    let dead = bench.engine.live_dirs();
    assert!(bench.engine.crash(&dead[0]));
    bench.create().await;
    let status = bench.until("another is made", |status| status.refills >= 2).await;
    assert_eq!((status.lost, status.failed_claims), (1, 0), "its end was seen before its claim");
    assert!(!bench.engine.live_dirs().contains(&dead[0]));
    bench.stop().await;
}

#[tokio::test]
async fn a_prepared_engine_that_cannot_be_loaded_is_discarded_and_the_create_is_restored() {
    for fault in [Fault::Refuse, Fault::Crash] {
        for point in [Point::Load, Point::Resume] {
            let bench = Bench::with_prepared(9, Depth::NONE, 1).await;
            bench.waiting(0, 1).await;
            bench.engine.inject(point, fault);
            let sandbox = bench.create().await;
            let status = bench.waiting(0, 1).await;
            assert_eq!((status.prepared_hits, status.failed_claims), (0, 1), "{point:?} {fault:?}");
            assert!(bench.taken().iter().any(|(_, identity)| identity.sandbox_id == sandbox.id.as_str()));
            assert_eq!(bench.engine.live(), 2, "the failed one is gone");
            bench.stop().await;
        }
    }
}

#[tokio::test]
async fn a_prepared_engine_that_hangs_at_its_claim_leaves_nothing_when_the_create_is_given_up() {
    let bench = Bench::with_prepared(9, Depth::NONE, 1).await;
    bench.waiting(0, 1).await;
    bench.engine.inject(Point::Load, Fault::Hang);
    let create = bench.runtime.create(CreateSandbox::from_template("base"));
    let hanging = async {
        while bench.engine.faults() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        created = create => panic!("a load that hangs ended: {created:?}"),
        () = hanging => {}
    }
    bench.stop().await;
}

#[tokio::test]
async fn active_work_ends_prepared_engines_before_warm_sessions() {
    let bench = Bench::with_prepared(3, Depth { min: 1, max: 1 }, 1).await;
    bench.waiting(1, 1).await;
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions), (0, 2));
    let sandbox = bench.create().await;
    bench.waiting(1, 1).await;
    let forks = bench.runtime.fork(&sandbox.id, 1, Duration::from_secs(60)).await.unwrap();
    assert!(forks.iter().all(Result::is_ok), "{forks:?}");
    let status = bench.runtime.pool();
    let shelf = status.templates.values().next().unwrap();
    assert_eq!((shelf.ready, shelf.prepared, status.evictions), (1, 0, 1));
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions, bench.engine.live()), (2, 1, 3));
    bench.stop().await;
}

#[tokio::test]
async fn a_warm_session_is_made_in_the_room_of_a_prepared_engine() {
    let bench = Bench::with_prepared(2, Depth { min: 0, max: 1 }, 2).await;
    bench.waiting(0, 2).await;
    let sandbox = bench.create().await;
    // It was demanded once, so from now on a session is kept warm, and the host has room for no engine besides.
    let status = bench.waiting(1, 0).await;
    assert_eq!((status.prepared_hits, status.retired, status.evictions, status.failed_refills), (1, 1, 0, 0));
    let usage = bench.runtime.capacity().usage;
    assert_eq!((usage.active.sessions, usage.warm.sessions, bench.engine.live()), (1, 1, 2));
    bench.runtime.kill(&sandbox.id).await.unwrap();
    bench.stop().await;
}

#[test]
fn a_restarted_server_ends_the_engines_that_waited() {
    let tokio = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = tokio();
    let bench = first.block_on(async {
        let bench = Bench::with_prepared(9, Depth::NONE, 2).await;
        bench.waiting(0, 2).await;
        bench
    });
    // As `kill -9` does.
    std::mem::forget(first);
    let Bench { runtime, engine, taken, dir } = bench;
    std::mem::forget(runtime);
    fs_err::remove_file(dir.path().join("state/lock")).unwrap();
    assert_eq!(engine.live(), 2);
    tokio().block_on(async {
        let config = config(dir.path(), NEVER, Depth::NONE);
        let runtime = Runtime::open(config, Arc::new(engine.clone())).await.unwrap();
        assert_eq!(engine.live(), 0, "nobody takes over what has no guest");
        Bench { runtime, engine, taken, dir }.stop().await;
    });
}

/// A disk that is as full as a test says.
#[derive(Debug, Default)]
struct Disk {
    free_mib: AtomicU64,
}

impl DiskPressureProbe for Disk {
    fn probe(&self, _: &Path) -> std::io::Result<DiskSpace> {
        Ok(DiskSpace { free: self.free_mib.load(Ordering::SeqCst) << 20, total: 1 << 50 })
    }
}

/// What the pool's keeper says aloud.
#[derive(Debug, Default, Clone)]
struct Said(Arc<Mutex<Vec<tracing::Level>>>);

impl<S: tracing::Subscriber> Layer<S> for Said {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if metadata.target() == "firkin_runtime::start::pool::keeper" && *metadata.level() <= tracing::Level::INFO {
            self.0.lock().unwrap().push(*metadata.level());
        }
    }
}

#[tokio::test]
async fn a_disk_too_full_for_warm_sessions_is_told_once_and_its_end_too() {
    let said = Said::default();
    // All of the runtime is on this thread.
    let _listening = tracing_subscriber::registry().with(said.clone()).set_default();
    let (taken, dir, disk) = (Taken::default(), tempfile::tempdir().unwrap(), Arc::new(Disk::default()));
    // Enough for a create, not for a warm session.
    disk.free_mib.store(150, Ordering::SeqCst);
    let engine = engine(&taken);
    let config = RuntimeConfig {
        disk_floor_mib: Some(100),
        disk_probe: Arc::clone(&disk) as Arc<dyn DiskPressureProbe>,
        ..config(dir.path(), NEVER, Depth { min: 1, max: 1 })
    };
    let bench = Bench::with_config(config, engine, taken, dir).await;
    bench.until("the disk is found too full", |status| status.short_of_disk).await;
    // A template that is built anew is tried at once.
    Box::pin(bench.runtime.build_template(base(), &|_| {})).await.unwrap();
    let metrics = bench.runtime.render_metrics(false);
    let told = metrics.lines().find(|line| line.starts_with("firkin_pool_short_of_disk{"));
    assert!(told.is_some_and(|line| line.ends_with(" 1")), "{told:?}");
    disk.free_mib.store(200, Ordering::SeqCst);
    Box::pin(bench.runtime.build_template(base(), &|_| {})).await.unwrap();
    bench.ready(1).await;
    assert!(!bench.runtime.pool().short_of_disk);
    disk.free_mib.store(150, Ordering::SeqCst);
    bench.create().await;
    bench.until("the disk is found too full again", |status| status.short_of_disk).await;
    assert_eq!(*said.0.lock().unwrap(), [tracing::Level::WARN, tracing::Level::INFO, tracing::Level::WARN]);
    bench.stop().await;
}
