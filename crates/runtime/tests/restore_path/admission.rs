//! Who is let in, through the restore path: free capacity, warm sessions, the queue, its deadline; and every interleaving.

use std::{
    future::Future,
    num::NonZeroUsize,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use firkin_runtime::{
    admission::WarmAdmissionError,
    capacity::{ActiveSessionReservation, CapacityUsage, ClassUsage, WarmEviction, WarmSessionReservation},
    memory_pressure::{MemoryPressure, MemoryPressureProbe},
    restore::SnapshotRestoreReport,
};
use proptest::{prelude::*, sample::Index};
use tokio::{sync::oneshot, task::JoinHandle};

use super::*;

/// How long a warm session takes to end.
const ENDING: Duration = Duration::from_millis(20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Warm sessions that are nothing but their reservations.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<WarmSessionReservation>>);

#[async_trait]
impl WarmEviction for Pool {
    async fn evict_one(&self) -> bool {
        let Some(session) = lock(&self.0).pop() else { return false };
        tokio::time::sleep(ENDING).await;
        drop(session);
        true
    }
}

fn cpus(cpus: u32) -> ResourceBudget {
    ResourceBudget { cpus, ..BUDGET }
}

fn admission(config: &AdmissionConfig) -> (Admission, Arc<Pool>) {
    admission_on(HostMemory::PLENTY, config)
}

fn admission_on(memory: impl MemoryPressureProbe + 'static, config: &AdmissionConfig) -> (Admission, Arc<Pool>) {
    let pool = Arc::new(Pool::default());
    let ledger = CapacityLedger::new(HOST, HOST.share(100));
    let admission = Admission::new(ledger, Arc::new(memory), config);
    (Admission { warm: Arc::clone(&pool) as Arc<dyn WarmEviction>, ..admission }, pool)
}

type Admitting<'a> = Pin<Box<dyn Future<Output = Result<ActiveSessionReservation, AdmissionError>> + 'a>>;

/// A request that has been polled: it waits, if it did not end.
async fn asked(admission: &Admission, budget: ResourceBudget) -> Admitting<'_> {
    let mut admitting: Admitting<'_> = Box::pin(admission.admit(budget));
    tokio::select! {
        biased;
        ended = &mut admitting => panic!("it must wait: {ended:?}"),
        () = std::future::ready(()) => admitting,
    }
}

#[tokio::test(start_paused = true)]
async fn warm_sessions_make_room_and_only_once_they_have_ended() {
    let (admission, pool) = admission(&AdmissionConfig::default());
    for _ in 0..2 {
        let warm = admission.ledger.reserve_warm(BUDGET).unwrap();
        lock(&pool.0).push(warm);
    }
    let begun = tokio::time::Instant::now();
    let held = admission.admit(BUDGET).await.unwrap();
    assert_eq!(begun.elapsed(), ENDING, "not before the warm session has ended");
    let usage = admission.ledger.usage();
    assert_eq!((usage.active.sessions, usage.warm.sessions), (1, 1), "no more than needed is ended");
    let all = admission.admit(cpus(2)).await.unwrap_err();
    let short = CapacityError::Cpu { requested: 2, available: 1 };
    assert!(matches!(all, AdmissionError::Deadline { source, .. } if source == short), "{all:?}");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_cancelled_leaves_the_queue_and_loses_nothing() {
    let (admission, _) = admission(&AdmissionConfig::default());
    let held = admission.admit(BUDGET).await.unwrap();
    let large = asked(&admission, cpus(2)).await;
    let small = asked(&admission, BUDGET).await;
    assert_eq!(admission.ledger.view().waiting, 2);
    drop(large);
    let small = small.await.unwrap();
    // Granted to a request that is dropped before it can look.
    let unlucky = asked(&admission, BUDGET).await;
    let next = asked(&admission, BUDGET).await;
    drop(held);
    assert_eq!(admission.ledger.view().waiting, 1, "the first of them has it");
    drop(unlucky);
    drop((next.await.unwrap(), small));
    assert_eq!(admission.ledger.usage(), CapacityUsage::default());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_a_full_queue_and_the_impossible_are_told_apart() {
    let config = AdmissionConfig { queue_length: NonZeroUsize::MIN, ..AdmissionConfig::default() };
    let (admission, _) = admission(&config);
    let never = admission.admit(cpus(3)).await.unwrap_err();
    let short = CapacityError::Cpu { requested: 3, available: 2 };
    assert!(matches!(never, AdmissionError::NeverFits(source) if source == short), "{never:?}");
    let held = admission.admit(cpus(2)).await.unwrap();
    let begun = tokio::time::Instant::now();
    let waits = asked(&admission, BUDGET).await;
    let short = CapacityError::Cpu { requested: 1, available: 0 };
    let refused = admission.admit(BUDGET).await.unwrap_err();
    assert!(matches!(refused, AdmissionError::QueueFull { waiting: 1, source } if source == short), "{refused:?}");
    let late = waits.await.unwrap_err();
    let waited = config.queue_deadline;
    assert!(matches!(late, AdmissionError::Deadline { waited: found, source } if (found, source) == (waited, short)), "{late:?}");
    assert_eq!(begun.elapsed(), config.queue_deadline);
    drop(held);
}

/// A host whose memory is what is free plus what each warm session that ends gives back.
#[derive(Debug, Clone)]
struct Memory {
    ledger: CapacityLedger,
    /// Available when no session is warm.
    free_mib: u64,
    stalled_percent: Arc<AtomicU32>,
}

impl MemoryPressureProbe for Memory {
    fn probe(&self) -> io::Result<HostMemory> {
        let available = self.free_mib.saturating_sub(self.ledger.usage().warm.held.memory_mib) << 20;
        let stalled = u8::try_from(self.stalled_percent.load(Ordering::SeqCst)).unwrap();
        Ok(HostMemory { available, total: 64 * GIB, stalled_percent: Some(stalled) })
    }
}

/// An admission whose memory falls as sessions are warmed, and those.
fn short_of_memory(free_mib: u64, warm: usize) -> (Admission, Arc<Pool>, Memory) {
    let (mut admission, pool) = admission(&AdmissionConfig::default());
    let memory = Memory { ledger: admission.ledger.clone(), free_mib, stalled_percent: Arc::default() };
    admission.memory.probe = Arc::new(memory.clone());
    let small = ResourceBudget { cpus: 0, memory_mib: 100, disk_mib: 0 };
    lock(&pool.0).extend((0..warm).map(|_| admission.ledger.reserve_warm(small).unwrap()));
    (admission, pool, memory)
}

#[tokio::test(start_paused = true)]
async fn a_host_short_of_memory_ends_warm_sessions_and_then_refuses() {
    // Two of three must end before 1024 MiB are available.
    let (admission, pool, _) = short_of_memory(1150, 3);
    let warm = admission.admit_warm(BUDGET).unwrap_err();
    assert!(matches!(warm, WarmAdmissionError::Memory(MemoryPressure::BelowFloor { .. })), "{warm:?}");
    let held = admission.admit(BUDGET).await.unwrap();
    assert_eq!(lock(&pool.0).len(), 1, "no more than needed is ended");
    drop(held);
    let (admission, pool, _) = short_of_memory(1000, 3);
    let refused = admission.admit(BUDGET).await.unwrap_err();
    let AdmissionError::Memory(MemoryPressure::BelowFloor { available_mib: 1000, floor_mib: 1024 }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((lock(&pool.0).len(), admission.ledger.used()), (0, ResourceBudget::default()));
    let impossible = admission.admit(cpus(3)).await.unwrap_err();
    assert!(matches!(impossible, AdmissionError::NeverFits(_)), "{impossible:?}");
}

#[tokio::test(start_paused = true)]
async fn while_a_host_stalls_nothing_is_let_in_and_warm_sessions_end_one_by_one() {
    let (admission, pool, memory) = short_of_memory(10_000, 3);
    memory.stalled_percent.store(40, Ordering::SeqCst);
    let refused = admission.admit(BUDGET).await.unwrap_err();
    let AdmissionError::Memory(MemoryPressure::Stalled { percent: 40, limit_percent: 10 }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(lock(&pool.0).len(), 3, "an average is not mended by one request's doing");
    let watch = admission.clone();
    let watch = tokio::spawn(async move { watch.watch_memory().await });
    let begun = tokio::time::Instant::now();
    while !lock(&pool.0).is_empty() {
        tokio::time::sleep(ENDING).await;
    }
    assert!(begun.elapsed() > 3 * ENDING, "not all at once: {:?}", begun.elapsed());
    memory.stalled_percent.store(9, Ordering::SeqCst);
    drop(admission.admit(BUDGET).await.unwrap());
    watch.abort();
}

#[tokio::test(start_paused = true)]
async fn memory_that_went_while_a_request_waited_is_noticed() {
    let (admission, _, memory) = short_of_memory(10_000, 0);
    let held = admission.admit(cpus(2)).await.unwrap();
    let waits = asked(&admission, BUDGET).await;
    memory.stalled_percent.store(99, Ordering::SeqCst);
    drop(held);
    let refused = waits.await.unwrap_err();
    assert!(matches!(refused, AdmissionError::Memory(MemoryPressure::Stalled { .. })), "{refused:?}");
    assert_eq!(admission.ledger.used(), ResourceBudget::default());
}

/// Launches end when the test says so.
#[derive(Debug, Default)]
struct Stage(Mutex<Vec<Launching>>);

#[derive(Debug)]
struct Launching {
    id: String,
    budget: ResourceBudget,
    succeeds: oneshot::Sender<bool>,
}

/// Takes a launch off the stage however it ends.
struct OnStage<'a>(&'a Stage, String);

impl Drop for OnStage<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).retain(|launching| launching.id != self.1);
    }
}

#[async_trait]
impl SnapshotSessionLauncher for Stage {
    type Session = String;

    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(String, LaunchTimings), LaunchError> {
        let id = request.identity.sandbox_id.clone();
        let (succeeds, decided) = oneshot::channel();
        lock(&self.0).push(Launching { id: id.clone(), budget: request.budget, succeeds });
        let _on_stage = OnStage(self, id.clone());
        if decided.await == Ok(true) { Ok((id, LaunchTimings::default())) } else { Err(LaunchError::NotRecorded) }
    }
}

/// What happens. An index chooses among those that there are.
#[derive(Debug, Clone)]
enum Step {
    Create(ResourceBudget),
    Cancel(Index),
    Launched { which: Index, succeeds: bool },
    Kill(Index),
    Warm(ResourceBudget),
    Claim,
    Evict,
    Pass(Duration),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let budget = || {
        (1u32..4, 512u64..3000, 1u64..60_000).prop_map(|(cpus, memory_mib, disk_mib)| ResourceBudget {
            cpus,
            memory_mib,
            disk_mib,
        })
    };
    let launched = (any::<Index>(), any::<bool>()).prop_map(|(which, succeeds)| Step::Launched { which, succeeds });
    prop_oneof![
        6 => budget().prop_map(Step::Create),
        2 => any::<Index>().prop_map(Step::Cancel),
        5 => launched,
        3 => any::<Index>().prop_map(Step::Kill),
        2 => budget().prop_map(Step::Warm),
        1 => Just(Step::Claim),
        1 => Just(Step::Evict),
        2 => (1u64..3000).prop_map(|ms| Step::Pass(Duration::from_millis(ms))),
        1 => Just(Step::Restart),
    ]
}

type Restored = Result<SnapshotRestoreReport<String>, SnapshotRestoreError>;

/// A restore on its way.
struct Restoring {
    id: String,
    budget: ResourceBudget,
    task: JoinHandle<Restored>,
}

/// One server and all that it was asked.
struct World<'a> {
    bench: &'a Bench,
    gates: RestoreGates,
    pool: Arc<Pool>,
    stage: Arc<Stage>,
    restoring: Vec<Restoring>,
    live: Vec<(ResourceBudget, ActiveSessionReservation)>,
    asked: u32,
}

impl<'a> World<'a> {
    fn new(bench: &'a Bench) -> Self {
        let queue_length = NonZeroUsize::new(3).unwrap();
        let (admission, pool) = admission(&AdmissionConfig { queue_length, ..AdmissionConfig::default() });
        let gates = RestoreGates { admission, ..bench.gates.clone() };
        Self { bench, gates, pool, stage: Arc::default(), restoring: Vec::new(), live: Vec::new(), asked: 0 }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Create(budget) => self.create(budget),
            Step::Cancel(index) => {
                if let Some(restoring) = pick(&mut self.restoring, &index) {
                    restoring.task.abort();
                    // Cancelled, or just done: either way everything of it is dropped.
                    drop(restoring.task.await);
                }
            }
            Step::Launched { which, succeeds } => {
                let launching = pick(&mut *lock(&self.stage.0), &which);
                if let Some(launching) = launching {
                    launching.succeeds.send(succeeds).unwrap();
                }
            }
            Step::Kill(index) => drop(pick(&mut self.live, &index)),
            Step::Warm(budget) => lock(&self.pool.0).extend(self.gates.admission.ledger.reserve_warm(budget)),
            Step::Claim => {
                let claimed = lock(&self.pool.0).pop();
                self.live.extend(claimed.map(|warm| (warm.budget(), warm.promote())));
            }
            Step::Evict => drop(lock(&self.pool.0).pop()),
            Step::Pass(time) => tokio::time::advance(time).await,
            Step::Restart => self.restart().await,
        }
        self.settle().await;
        self.check();
    }

    fn create(&mut self, budget: ResourceBudget) {
        self.asked += 1;
        let mut request = self.bench.request();
        let id = format!("i{}", self.asked);
        (request.budget, request.identity.sandbox_id) = (budget, id.clone());
        let (gates, stage) = (self.gates.clone(), Arc::clone(&self.stage));
        let task = tokio::spawn(async move { restore(request, &gates, &*stage).await });
        self.restoring.push(Restoring { id, budget, task });
    }

    /// The server is killed: what it was doing ends, what runs goes on and is adopted by the next.
    async fn restart(&mut self) {
        for restoring in self.restoring.drain(..) {
            restoring.task.abort();
            drop(restoring.task.await);
        }
        lock(&self.pool.0).clear();
        let next = Self::new(self.bench);
        (self.gates, self.pool) = (next.gates, next.pool);
        for (budget, reservation) in &mut self.live {
            *reservation = self.gates.admission.ledger.adopt(*budget);
        }
    }

    fn is_launching(&self, id: &str) -> bool {
        lock(&self.stage.0).iter().any(|launching| launching.id == id)
    }

    /// Waits until every restore has ended, is being launched, or waits.
    async fn settle(&mut self) {
        loop {
            let mut moving = Vec::new();
            for restoring in std::mem::take(&mut self.restoring) {
                if restoring.task.is_finished() {
                    self.ended(restoring.budget, restoring.task.await.unwrap());
                } else {
                    moving.push(restoring);
                }
            }
            self.restoring = moving;
            let launching = lock(&self.stage.0).len();
            if launching + self.gates.admission.ledger.view().waiting == self.restoring.len() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    fn ended(&mut self, budget: ResourceBudget, restored: Restored) {
        match restored {
            Ok(report) => self.live.push((budget, report.reservation)),
            Err(SnapshotRestoreError::Launch(LaunchError::NotRecorded)) => {}
            Err(SnapshotRestoreError::Admission(
                AdmissionError::NeverFits(short)
                | AdmissionError::QueueFull { source: short, .. }
                | AdmissionError::Deadline { source: short, .. },
            )) => {
                let (CapacityError::Cpu { requested, available }
                | CapacityError::Memory { requested, available }
                | CapacityError::Disk { requested, available }) = short;
                assert!(requested > available, "{short}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    fn check(&self) {
        let ledger = &self.gates.admission.ledger;
        let launching = lock(&self.stage.0).iter().map(|launching| launching.budget).collect::<Vec<_>>();
        let active = sum(self.live.iter().map(|(budget, _)| *budget).chain(launching));
        let usage = ledger.usage();
        assert_eq!(usage.active, active, "what is held is what lives");
        // A session that is being evicted is still held, and no longer in the pool.
        let warm = sum(lock(&self.pool.0).iter().map(WarmSessionReservation::budget));
        assert!(usage.warm.sessions >= warm.sessions);
        let total = usage.total();
        assert!(room_for(ResourceBudget::default(), total), "no more is held than there is");
        let waiting = self.restoring.iter().find(|restoring| !self.is_launching(&restoring.id));
        if let Some(head) = waiting {
            assert!(!room_for(total, head.budget), "nobody waits at the head for what is free");
        }
    }

    /// Lets every launch succeed and every session end until nobody is left.
    async fn finish(mut self) {
        for _ in 0..1000 {
            self.settle().await;
            self.check();
            if self.restoring.is_empty() {
                break;
            }
            let launching = std::mem::take(&mut *lock(&self.stage.0));
            launching.into_iter().for_each(|launching| launching.succeeds.send(true).unwrap());
            self.live.clear();
            lock(&self.pool.0).clear();
            // For evictions that are under way.
            tokio::time::advance(ENDING).await;
        }
        assert!(self.restoring.is_empty(), "no waiter is lost");
        self.live.clear();
        lock(&self.pool.0).clear();
        tokio::time::advance(ENDING).await;
        assert_eq!(self.gates.admission.ledger.usage(), CapacityUsage::default());
    }
}

fn pick<T>(from: &mut Vec<T>, index: &Index) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(index.index(from.len())))
}

fn sum(budgets: impl Iterator<Item = ResourceBudget>) -> ClassUsage {
    budgets.fold(ClassUsage::default(), |mut sum, budget| {
        sum.sessions += 1;
        sum.held += budget;
        sum
    })
}

fn room_for(held: ResourceBudget, budget: ResourceBudget) -> bool {
    let mut total = held;
    total += budget;
    total.cpus <= HOST.cpus && total.memory_mib <= HOST.memory_mib && total.disk_mib <= HOST.disk_mib
}

proptest! {
    // Each case is a server's life with some tens of restores of a real artifact.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_interleaving_of_restores_leaks_capacity_or_loses_a_waiter(steps in proptest::collection::vec(any_step(), 1..60)) {
        let bench = bench();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(&bench);
            for step in steps {
                world.step(step).await;
            }
            world.finish().await;
        });
    }
}
