//! Any interleaving of what can happen to the book, against a plain model of it.

use proptest::{prelude::*, sample::Index};

use super::*;

const HOST: HostCapacity = HostCapacity { cpus: 4, memory_mib: 4096, disk_mib: 100 };

/// More wait than this and the next one is denied.
const QUEUE_LENGTH: usize = 4;

fn budget(cpus: u32, memory_mib: u64, disk_mib: u64) -> ResourceBudget {
    ResourceBudget { cpus, memory_mib, disk_mib }
}

fn cpus(cpus: u32) -> ResourceBudget {
    budget(cpus, 1, 1)
}

/// What happens. An index chooses among those that there are.
#[derive(Debug, Clone)]
enum Step {
    /// A create comes.
    Create(ResourceBudget),
    /// One that waits is cancelled, or its deadline passes.
    Leave(Index),
    /// An active session fails to launch, is killed or paused.
    End(Index),
    /// The pool wants another session.
    Warm(ResourceBudget),
    /// A warm session is claimed.
    Claim(Index),
    /// A warm session is evicted, or fails.
    Evict(Index),
    /// The server is killed and its successor, with another capacity, adopts the active sessions; the others end.
    Restart(HostCapacity),
}

fn any_budget() -> impl Strategy<Value = ResourceBudget> {
    (0u32..5, 0u64..5000, 0u64..120).prop_map(|(cpus, memory_mib, disk_mib)| budget(cpus, memory_mib, disk_mib))
}

fn any_host() -> impl Strategy<Value = HostCapacity> {
    (1u32..6, 1u64..6000, 1u64..150).prop_map(|(cpus, memory_mib, disk_mib)| HostCapacity { cpus, memory_mib, disk_mib })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_budget().prop_map(Step::Create),
        2 => any::<Index>().prop_map(Step::Leave),
        4 => any::<Index>().prop_map(Step::End),
        2 => any_budget().prop_map(Step::Warm),
        1 => any::<Index>().prop_map(Step::Claim),
        1 => any::<Index>().prop_map(Step::Evict),
        1 => any_host().prop_map(Step::Restart),
    ]
}

/// What must be true of a book, kept the plain way.
struct Model {
    book: Book<u64>,
    active: Vec<ResourceBudget>,
    warm: Vec<ResourceBudget>,
    /// Who waits, in the order in which they came, with the ticket that the book gave.
    waiting: Vec<(u64, Ticket, ResourceBudget)>,
    came: u64,
    /// How many asked this book.
    asked: usize,
    /// More is held than there is, because a successor has less to offer.
    lowered: bool,
}

fn pick<T>(from: &mut Vec<T>, index: &Index) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(index.index(from.len())))
}

fn sum(budgets: &[ResourceBudget]) -> ClassUsage {
    let mut sum = ClassUsage::default();
    budgets.iter().for_each(|budget| sum.take(*budget));
    sum
}

impl Model {
    fn new() -> Self {
        let book = Book::new(HOST, HOST.share(50));
        Self { book, active: Vec::new(), warm: Vec::new(), waiting: Vec::new(), came: 0, asked: 0, lowered: false }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Create(budget) => self.create(budget),
            Step::Leave(index) => {
                if let Some((_, ticket, _)) = pick(&mut self.waiting, &index) {
                    let grants = self.book.leave(ticket);
                    self.granted(grants);
                }
            }
            Step::End(index) => {
                if let Some(budget) = pick(&mut self.active, &index) {
                    let grants = self.book.give_back(Class::Active, budget);
                    self.granted(grants);
                }
            }
            Step::Warm(budget) => {
                if self.book.take_warm(budget).is_ok() {
                    assert!(self.waiting.is_empty(), "nothing is warmed while somebody waits");
                    self.warm.push(budget);
                }
            }
            Step::Claim(index) => {
                if let Some(budget) = pick(&mut self.warm, &index) {
                    self.book.promote(budget);
                    self.active.push(budget);
                }
            }
            Step::Evict(index) => {
                if let Some(budget) = pick(&mut self.warm, &index) {
                    let grants = self.book.give_back(Class::Warm, budget);
                    self.granted(grants);
                }
            }
            Step::Restart(host) => self.restart(host),
        }
    }

    fn create(&mut self, budget: ResourceBudget) {
        let (came, fits_alone) = (self.came, fits(&self.book.capacity, &ResourceBudget::default(), &budget));
        let fits_now = self.waiting.is_empty() && fits(&self.book.capacity, &self.book.usage.total(), &budget).is_ok();
        (self.came, self.asked) = (self.came + 1, self.asked + 1);
        match self.book.ask(budget, QUEUE_LENGTH, || came) {
            Decision::Granted => {
                assert!(fits_now, "only what fits is granted, and only when nobody waits");
                self.active.push(budget);
            }
            Decision::Waiting(ticket) => {
                assert!(!fits_now && fits_alone.is_ok() && self.waiting.len() < QUEUE_LENGTH);
                self.waiting.push((came, ticket, budget));
            }
            Decision::Denied(Denial::NeverFits(short)) => assert_eq!(fits_alone, Err(short)),
            Decision::Denied(Denial::QueueFull(_)) => assert!(!fits_now && self.waiting.len() == QUEUE_LENGTH),
        }
    }

    /// Grants go to the longest waiting, in their order.
    fn granted(&mut self, grants: Vec<Grant<u64>>) {
        for Grant { budget, waker } in grants {
            let (came, _, asked) = self.waiting.remove(0);
            assert_eq!((came, asked), (waker, budget), "first come, first served");
            self.active.push(budget);
        }
    }

    /// Whoever waits, or is warm, is gone with the server.
    fn restart(&mut self, host: HostCapacity) {
        self.book = Book::new(host, host.share(50));
        self.waiting.clear();
        self.asked = 0;
        self.warm.clear();
        for budget in &self.active {
            self.book.adopt(*budget);
        }
        self.lowered = true;
    }

    fn check(&mut self) {
        let usage = CapacityUsage { active: sum(&self.active), warm: sum(&self.warm) };
        assert_eq!(self.book.usage, usage, "what is held is the sum of the live reservations");
        let within = fits(&self.book.capacity, &ResourceBudget::default(), &usage.total()).is_ok();
        assert!(within || self.lowered, "no more is held than there is");
        // Once enough of what was adopted has ended, the limit holds again for good.
        self.lowered &= !within;
        assert!(fits(&self.book.warm_limit, &ResourceBudget::default(), &usage.warm.held).is_ok());
        assert_eq!(self.book.view().waiting, self.waiting.len(), "nobody who waits is lost");
        let RequestCounts { immediate, queued, timed_out, rejected, too_large } = self.book.requests;
        let decided = immediate + queued + timed_out + rejected + too_large;
        assert_eq!(usize::try_from(decided).unwrap() + self.waiting.len(), self.asked, "every request is counted once");
        if let Some((_, _, head)) = self.waiting.first() {
            assert!(fits(&self.book.capacity, &usage.total(), head).is_err(), "nobody waits at the head for what is free");
        }
        for (_, ticket, _) in &self.waiting {
            assert!(self.book.shortage(*ticket).is_some(), "whoever waits can be told for what");
        }
    }
}

proptest! {
    #[test]
    fn no_interleaving_breaks_the_book(steps in proptest::collection::vec(any_step(), 1..120)) {
        let mut model = Model::new();
        for step in steps {
            model.step(step);
            model.check();
        }
        // When every session ends, everybody who waits gets a turn.
        while let Some(budget) = model.active.pop() {
            let grants = model.book.give_back(Class::Active, budget);
            model.granted(grants);
            model.check();
        }
        while let Some(budget) = model.warm.pop() {
            let grants = model.book.give_back(Class::Warm, budget);
            model.granted(grants);
            model.check();
        }
        while let Some(budget) = model.active.pop() {
            let grants = model.book.give_back(Class::Active, budget);
            model.granted(grants);
            model.check();
        }
        prop_assert!(model.waiting.is_empty());
        prop_assert_eq!(model.book.usage, CapacityUsage::default());
    }
}

fn waiting(book: &mut Book<&'static str>, name: &'static str, budget: ResourceBudget) -> Ticket {
    match book.ask(budget, QUEUE_LENGTH, || name) {
        Decision::Waiting(ticket) => ticket,
        other => panic!("{name} must wait: {other:?}"),
    }
}

fn names(grants: Vec<Grant<&'static str>>) -> Vec<&'static str> {
    grants.into_iter().map(|grant| grant.waker).collect()
}

#[test]
fn a_small_request_does_not_pass_a_large_one() {
    let mut book = Book::new(HOST, HOST);
    book.take(cpus(2)).unwrap();
    waiting(&mut book, "large", cpus(4));
    let small = waiting(&mut book, "small", cpus(1));
    assert_eq!(book.shortage(small), Some(CapacityError::Cpu { requested: 1, available: 0 }));
    assert_eq!(book.take(cpus(1)), Err(CapacityError::Cpu { requested: 1, available: 0 }), "nor does one that cannot wait");
    let refused = book.take_warm(cpus(1));
    assert_eq!(refused, Err(WarmCapacityError::Host(CapacityError::Cpu { requested: 1, available: 0 })), "nor a warm session");
    // It asks for nothing of what the large one lacks.
    assert_eq!(book.take(cpus(0)), Err(CapacityError::Cpu { requested: 4, available: 2 }));
    assert_eq!(names(book.give_back(Class::Active, cpus(2))), ["large"]);
    assert_eq!(names(book.give_back(Class::Active, cpus(4))), ["small"]);
}

#[test]
fn a_head_that_leaves_lets_those_behind_it_in() {
    let mut book = Book::new(HOST, HOST);
    book.take(cpus(2)).unwrap();
    let large = waiting(&mut book, "large", cpus(4));
    for name in ["first", "second", "third"] {
        waiting(&mut book, name, cpus(1));
    }
    assert_eq!(names(book.leave(large)), ["first", "second"]);
    assert!(names(book.leave(large)).is_empty(), "leaving twice is leaving once");
}

#[test]
fn what_is_denied_is_told_what_it_lacks() {
    let mut book = Book::new(HOST, HOST);
    let denied = book.ask(budget(5, 1, 1), QUEUE_LENGTH, || "never");
    let never = CapacityError::Cpu { requested: 5, available: 4 };
    assert!(matches!(denied, Decision::Denied(Denial::NeverFits(short)) if short == never), "{denied:?}");
    book.take(cpus(3)).unwrap();
    for _ in 0..QUEUE_LENGTH {
        waiting(&mut book, "waits", cpus(2));
    }
    let denied = book.ask(cpus(2), QUEUE_LENGTH, || "late");
    let short = CapacityError::Cpu { requested: 2, available: 0 };
    assert!(matches!(denied, Decision::Denied(Denial::QueueFull(found)) if found == short), "{denied:?}");
}
