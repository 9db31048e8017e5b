//! The ledger and its guards: the [`Book`] behind a lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::{
    CapacityError, CapacityUsage, CapacityView, HostCapacity, ResourceBudget, SessionShare, WarmCapacityError,
    book::{Book, Class, Decision, Denial, Grant, Ticket},
};

/// The host's capacity and what is held of it, by active and by warm sessions. Clones share one ledger.
#[derive(Debug, Clone)]
pub struct CapacityLedger {
    shared: Arc<Shared>,
    /// Memory that each session takes beside its guest's, MiB.
    own_memory_mib: u64,
}

#[derive(Debug)]
struct Shared {
    book: Mutex<Book<oneshot::Sender<ActiveSessionReservation>>>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book<oneshot::Sender<ActiveSessionReservation>>> {
        // The book asserts before it changes anything, so the value that a panic leaves behind is a whole one.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(self: &Arc<Self>, class: Class, budget: ResourceBudget) -> HeldBudget {
        HeldBudget { shared: Arc::clone(self), class, budget }
    }

    /// Hands over what was granted. Not under the lock: whoever has just stopped waiting does not take it, and it comes back.
    fn hand_over(self: &Arc<Self>, grants: Vec<Grant<oneshot::Sender<ActiveSessionReservation>>>) {
        for Grant { budget, waker } in grants {
            let reservation = ActiveSessionReservation { held: self.held(Class::Active, budget), team: None };
            drop(waker.send(reservation));
        }
    }
}

/// The budget of one guard. Given back on drop.
#[derive(Debug)]
struct HeldBudget {
    shared: Arc<Shared>,
    class: Class,
    budget: ResourceBudget,
}

impl Drop for HeldBudget {
    fn drop(&mut self) {
        let grants = self.shared.book().give_back(self.class, self.budget);
        self.shared.hand_over(grants);
    }
}

/// Capacity held by one live session. Given back on drop, exactly once.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the capacity back"]
pub struct ActiveSessionReservation {
    held: HeldBudget,
    /// Whose it is. Absent for what is built.
    #[expect(dead_code, reason = "held, not read")]
    team: Option<SessionShare>,
}

impl ActiveSessionReservation {
    /// The same, of a team that gives it back with it.
    pub(crate) fn of_team(self, share: SessionShare) -> Self {
        Self { team: Some(share), ..self }
    }

    /// What is held.
    pub fn budget(&self) -> ResourceBudget {
        self.held.budget
    }
}

/// Capacity held by one warm session. Given back on drop, exactly once.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the capacity back"]
pub struct WarmSessionReservation {
    held: HeldBudget,
}

impl WarmSessionReservation {
    /// What is held.
    pub fn budget(&self) -> ResourceBudget {
        self.held.budget
    }

    /// The same capacity, held by a session that somebody uses from now on. It is held at every moment in between, and so
    /// this cannot fail.
    pub fn promote(self) -> ActiveSessionReservation {
        let mut held = self.held;
        held.shared.book().promote(held.budget);
        held.class = Class::Active;
        ActiveSessionReservation { held, team: None }
    }
}

/// The outcome of a request for an active session's capacity.
#[derive(Debug)]
pub(crate) enum Asked {
    Granted(ActiveSessionReservation),
    Waiting(Waiter),
    Denied(Denial),
}

/// A place in the queue. Dropped, it is given up, and the next one moves up; capacity that was granted in that very moment is
/// not lost.
#[derive(Debug)]
pub(crate) struct Waiter {
    shared: Arc<Shared>,
    ticket: Ticket,
    granted: oneshot::Receiver<ActiveSessionReservation>,
}

impl Waiter {
    /// Ends when it is this request's turn and its budget is free. Cancel-safe.
    pub(crate) async fn granted(&mut self) -> ActiveSessionReservation {
        (&mut self.granted).await.expect("a place in the queue ends by a grant or by its waiter's own drop")
    }

    /// Stops waiting. What was granted just before is taken; otherwise, what was lacking.
    pub(crate) async fn give_up(mut self) -> Result<ActiveSessionReservation, CapacityError> {
        let short = self.shared.book().shortage(self.ticket);
        match short {
            Some(short) => Err(short),
            // Granted, and on its way from under the lock to here.
            None => Ok(self.granted().await),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let grants = self.shared.book().leave(self.ticket);
        self.shared.hand_over(grants);
    }
}

impl CapacityLedger {
    /// An empty ledger. Warm sessions may hold at most `warm_limit` of `capacity` together (see [`HostCapacity::share`]).
    pub fn new(capacity: HostCapacity, warm_limit: HostCapacity) -> Self {
        Self { shared: Arc::new(Shared { book: Mutex::new(Book::new(capacity, warm_limit)) }), own_memory_mib: 0 }
    }

    /// Counts so much memory more for each session: what its engine's process takes beside its guest.
    #[must_use]
    pub fn with_own_memory(self, own_memory_mib: u64) -> Self {
        Self { own_memory_mib, ..self }
    }

    /// All that a session with this budget takes of the host.
    fn whole(&self, budget: ResourceBudget) -> ResourceBudget {
        ResourceBudget { memory_mib: budget.memory_mib + self.own_memory_mib, ..budget }
    }

    /// Everything about it at one instant.
    pub fn view(&self) -> CapacityView {
        self.shared.book().view()
    }

    /// Use now, by class.
    pub fn usage(&self) -> CapacityUsage {
        self.view().usage
    }

    /// Use now, of both classes together.
    pub fn used(&self) -> ResourceBudget {
        self.usage().total()
    }

    /// Whether `budget` could be held on an idle host. What could never fit is refused at once, not queued.
    pub fn could_ever_fit(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        self.shared.book().could_ever_fit(&self.whole(*budget))
    }

    /// Whether an active session with `budget` would be let in at once, or what it would wait for. Holds nothing: the next may take it.
    pub fn has_room(&self, budget: &ResourceBudget) -> Result<(), CapacityError> {
        self.shared.book().has_room(&self.whole(*budget))
    }

    /// Takes all of `budget` for an active session, or nothing. Does not wait, and does not pass those who do:
    /// [`Admission`](crate::capacity::admission::Admission) is the way in for whoever may wait.
    pub fn reserve(&self, budget: ResourceBudget) -> Result<ActiveSessionReservation, CapacityError> {
        let budget = self.whole(budget);
        self.shared.book().take(budget)?;
        Ok(ActiveSessionReservation { held: self.shared.held(Class::Active, budget), team: None })
    }

    /// Takes all of `budget` for an active session, or a place among at most `queue_length` that wait for theirs.
    pub(crate) fn ask(&self, budget: ResourceBudget, queue_length: usize) -> Asked {
        let budget = self.whole(budget);
        let mut granted = None;
        let decision = self.shared.book().ask(budget, queue_length, || {
            let (sender, receiver) = oneshot::channel();
            granted = Some(receiver);
            sender
        });
        match (decision, granted) {
            (Decision::Waiting(ticket), Some(granted)) => {
                Asked::Waiting(Waiter { shared: Arc::clone(&self.shared), ticket, granted })
            }
            (Decision::Waiting(_), None) => unreachable!("whoever waits left a waker"),
            (Decision::Granted, _) => {
                Asked::Granted(ActiveSessionReservation { held: self.shared.held(Class::Active, budget), team: None })
            }
            (Decision::Denied(denial), _) => Asked::Denied(denial),
        }
    }

    /// Takes all of `budget` for a warm session, or nothing. Do so before anything of it is launched. Refused while active work
    /// waits: it comes first.
    pub fn reserve_warm(&self, budget: ResourceBudget) -> Result<WarmSessionReservation, WarmCapacityError> {
        let budget = self.whole(budget);
        self.shared.book().take_warm(budget)?;
        Ok(WarmSessionReservation { held: self.shared.held(Class::Warm, budget) })
    }

    /// Counts a session that outlived an earlier server. It runs and uses what it uses, whatever this server's limits say:
    /// refusing it would mean to kill it. So this never fails, and may count more than the host offers when the limits were
    /// lowered; nothing new is let in until enough has ended.
    pub fn adopt(&self, budget: ResourceBudget) -> ActiveSessionReservation {
        let budget = self.whole(budget);
        self.shared.book().adopt(budget);
        ActiveSessionReservation { held: self.shared.held(Class::Active, budget), team: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{ClassUsage, fits},
        *,
    };

    const HOST: HostCapacity = HostCapacity { cpus: 4, memory_mib: 4096, disk_mib: 100 };

    fn ledger() -> CapacityLedger {
        CapacityLedger::new(HOST, HOST.share(50))
    }

    fn budget(cpus: u32, memory_mib: u64, disk_mib: u64) -> ResourceBudget {
        ResourceBudget { cpus, memory_mib, disk_mib }
    }

    #[test]
    fn an_engines_own_memory_counts_for_each_session_of_any_kind() {
        let ledger = ledger().with_own_memory(24);
        let held = (
            ledger.adopt(budget(1, 1000, 1)),
            ledger.reserve(budget(1, 1000, 1)).unwrap(),
            ledger.reserve_warm(budget(1, 1000, 1)).unwrap().promote(),
        );
        assert_eq!((ledger.used().memory_mib, held.1.budget().memory_mib), (3 * 1024, 1024));
        let short = CapacityError::Memory { requested: 1025, available: 1024 };
        assert_eq!(ledger.reserve(budget(1, 1001, 1)).unwrap_err(), short);
        assert!(matches!(ledger.ask(budget(1, 1001, 1), 0), Asked::Denied(Denial::QueueFull(found)) if found == short));
        assert!(ledger.could_ever_fit(&budget(1, 4072, 1)).is_ok() && ledger.could_ever_fit(&budget(1, 4073, 1)).is_err());
        drop(held);
        assert_eq!(ledger.used(), ResourceBudget::default());
    }

    #[test]
    fn the_first_resource_that_does_not_fit_is_named_with_both_numbers() {
        let ledger = ledger();
        let held = ledger.reserve(budget(3, 1024, 10)).unwrap();
        let table = [
            (budget(2, 9999, 999), CapacityError::Cpu { requested: 2, available: 1 }),
            (budget(1, 9999, 999), CapacityError::Memory { requested: 9999, available: 3072 }),
            (budget(1, 3072, 999), CapacityError::Disk { requested: 999, available: 90 }),
        ];
        for (request, expected) in table {
            assert_eq!(ledger.reserve(request).unwrap_err(), expected);
        }
        assert_eq!(ledger.used(), budget(3, 1024, 10), "a refusal takes nothing");
        drop(held);
        assert_eq!(ledger.used(), budget(0, 0, 0));
    }

    #[test]
    fn warm_sessions_hold_their_share_at_most_and_leave_it_when_they_are_claimed() {
        let ledger = ledger();
        let first = ledger.reserve_warm(budget(2, 512, 10)).unwrap();
        let refused = ledger.reserve_warm(budget(1, 512, 10)).unwrap_err();
        assert_eq!(refused, WarmCapacityError::Share(CapacityError::Cpu { requested: 1, available: 0 }));
        let claimed = first.promote();
        let usage = ledger.usage();
        assert_eq!((usage.active.sessions, usage.active.held, usage.warm), (1, claimed.budget(), ClassUsage::default()));
        let second = ledger.reserve_warm(budget(1, 512, 10)).unwrap();
        let active = ledger.reserve(budget(1, 512, 10)).unwrap();
        let refused = ledger.reserve_warm(budget(1, 512, 10)).unwrap_err();
        assert_eq!(refused, WarmCapacityError::Host(CapacityError::Cpu { requested: 1, available: 0 }));
        drop((claimed, second, active));
        assert_eq!(ledger.usage(), CapacityUsage::default());
    }

    #[test]
    fn what_outlived_a_server_is_counted_even_beyond_lowered_limits() {
        let ledger = ledger();
        let adopted = ledger.adopt(budget(6, 512, 10));
        let refused = ledger.reserve(budget(1, 1, 1)).unwrap_err();
        assert_eq!(refused, CapacityError::Cpu { requested: 1, available: 0 });
        drop(adopted);
        drop(ledger.reserve(budget(4, 1, 1)).unwrap());
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Reserve(ResourceBudget),
        ReserveWarm(ResourceBudget),
        Promote,
        End,
        EndWarm,
    }

    fn step() -> impl Strategy<Value = Step> {
        let any_budget = (0u32..3, 0u64..2048, 0u64..60).prop_map(|(cpus, memory, disk)| budget(cpus, memory, disk));
        prop_oneof![
            3 => any_budget.clone().prop_map(Step::Reserve),
            3 => any_budget.prop_map(Step::ReserveWarm),
            1 => Just(Step::Promote),
            2 => Just(Step::End),
            2 => Just(Step::EndWarm),
        ]
    }

    fn sum<'a>(budgets: impl Iterator<Item = &'a ResourceBudget>) -> ClassUsage {
        let mut sum = ClassUsage::default();
        budgets.for_each(|budget| sum.take(*budget));
        sum
    }

    proptest! {
        #[test]
        fn used_is_the_sum_of_live_reservations_and_never_exceeds_capacity(
            steps in proptest::collection::vec(step(), 1..60)
        ) {
            let ledger = ledger();
            let (mut active, mut warm) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Reserve(budget) => active.extend(ledger.reserve(budget)),
                    Step::ReserveWarm(budget) => warm.extend(ledger.reserve_warm(budget)),
                    Step::Promote => active.extend(warm.pop().map(WarmSessionReservation::promote)),
                    Step::End => drop(active.pop()),
                    Step::EndWarm => drop(warm.pop()),
                }
                let expected = CapacityUsage {
                    active: sum(active.iter().map(|held| &held.held.budget)),
                    warm: sum(warm.iter().map(|held| &held.held.budget)),
                };
                prop_assert_eq!(ledger.usage(), expected);
                prop_assert!(fits(&HOST, &ResourceBudget::default(), &expected.total()).is_ok());
                prop_assert!(fits(&HOST.share(50), &ResourceBudget::default(), &expected.warm.held).is_ok());
            }
        }
    }
}
