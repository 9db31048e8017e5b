//! What the model consists of: a database that does one statement at a time, nodes that hear from it late or never, and one moment after another.
//!
//! ```text
//!   server ── ask ──► (late, or lost) ──► database: one statement ──► (late, or lost) ──► server, unless it has ended meanwhile
//!     │                                                                                     │ starts, continues, ends machines
//!     └── deadline on a page ──► warden: stops the machines once it has passed ◄── machines ┘ outlive the server
//! ```
//!
//! Assumed, and nothing else: clocks run at rates within 1 %, a warden is scheduled within five seconds, and between a server's look at its lease
//! and the first instruction of a guest passes less than what is left of the 50 seconds from a warden's stop to the first claim. A host that ends takes
//! its machines with it.

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use crate::rules::{Ask, Database, Node, Row, Rules, Told};

pub(crate) const NODES: usize = 3;
pub(crate) const SANDBOXES: usize = 2;

/// Of a run, in milliseconds of nobody's clock.
pub(crate) const HORIZON: u64 = 900_000;

/// The longest that a message takes, each way.
const LATE: u64 = 10_000;

/// How long a server waits for an answer.
const PATIENCE: u64 = 15_000;

/// How long a warden may take to be scheduled.
const SCHEDULED: u64 = 5_000;

/// What goes wrong, from a moment on, for so long.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// What the node asks does not arrive.
    Deaf,
    /// What it is told does not arrive.
    Mute,
    /// Its server is killed. Its machines go on.
    Server,
    /// Its host is gone.
    Host,
    /// Its server does nothing: it is not scheduled.
    Stall,
}

/// What is random in a run.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) faults: Vec<(u64, usize, u64, Fault)>,
    /// How many thousandths the nodes' clocks run faster than the database's.
    pub(crate) rates: Vec<i64>,
    pub(crate) seed: u64,
}

/// What must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Violation {
    /// Two machines run one sandbox.
    Overlap { sandbox: usize, epochs: [u64; 2], at: u64 },
    /// A life was given to two, or one that is not above all before it.
    Epoch { sandbox: usize, given: u64, highest: u64 },
    /// A life begins with what was not the last that was durable.
    Stale { sandbox: usize, began_with: u64, durable: u64 },
}

/// How often what the model is about has happened.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) claims: u32,
    pub(crate) given_up: u32,
    pub(crate) stops: u32,
    pub(crate) continued: u32,
    pub(crate) fenced: u32,
    pub(crate) gaps: u32,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A node's request is there.
    Arrives(usize, u64),
    /// An answer is there.
    Answered(usize, u64),
    /// A server does not wait any longer for an answer.
    Late(usize, u64),
    Renew(usize, u64),
    Work(usize, u64),
    Join(usize, u64),
    /// A warden looks at the page.
    Look(usize),
    Fault(usize, usize),
    /// Its server is started again.
    Back(usize),
}

/// Small random numbers, the same for the same seed.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

pub(crate) struct World {
    rules: Rules,
    schedule: Schedule,
    pub(crate) chance: Chance,
    now: u64,
    order: u64,
    events: BinaryHeap<std::cmp::Reverse<(u64, u64, Event)>>,
    database: Database,
    nodes: Vec<Node>,
    asked: HashMap<u64, (usize, u64, Ask)>,
    answers: HashMap<u64, Told>,
    faults: BTreeMap<(usize, u8), u64>,
    /// Who has which life.
    given: HashMap<(usize, u64), (usize, u64)>,
    highest: [u64; SANDBOXES],
    durable: [u64; SANDBOXES],
    states: u64,
    pub(crate) seen: Seen,
}

impl World {
    pub(crate) fn new(schedule: Schedule, rules: Rules) -> Self {
        let rows = (0..SANDBOXES).map(Row::paused).collect();
        let mut world = Self {
            rules,
            chance: Chance(schedule.seed),
            now: 0,
            order: 0,
            events: BinaryHeap::new(),
            database: Database { nodes: vec![(0, 0); NODES], rows },
            nodes: (0..NODES).map(|_| Node::default()).collect(),
            asked: HashMap::new(),
            answers: HashMap::new(),
            faults: BTreeMap::new(),
            given: HashMap::new(),
            highest: [1; SANDBOXES],
            durable: [0; SANDBOXES],
            states: 0,
            seen: Seen::default(),
            schedule,
        };
        for at in 0..world.schedule.faults.len() {
            world.after(world.schedule.faults[at].0, Event::Fault(world.schedule.faults[at].1, at));
        }
        for node in 0..NODES {
            world.start(node);
        }
        world
    }

    /// Goes through a run until something is what must never be.
    pub(crate) fn run(mut self) -> Result<Seen, Violation> {
        while let Some(std::cmp::Reverse((at, _, event))) = self.events.pop() {
            if at > HORIZON {
                break;
            }
            self.now = at;
            self.happen(event)?;
        }
        Ok(self.seen)
    }

    fn after(&mut self, wait: u64, event: Event) {
        self.order += 1;
        self.events.push(std::cmp::Reverse((self.now + wait, self.order, event)));
    }

    /// The time that a node's clock shows.
    fn clock(&self, node: usize) -> u64 {
        self.now * (1000_u64.saturating_add_signed(self.schedule.rates[node])) / 1000
    }

    /// How long it is until a node's clock shows this.
    fn until(&self, node: usize, clock: u64) -> u64 {
        (clock * 1000).div_ceil(1000_u64.saturating_add_signed(self.schedule.rates[node])).saturating_sub(self.now)
    }

    fn has(&self, node: usize, fault: Fault) -> bool {
        self.faults.get(&(node, fault as u8)).is_some_and(|until| *until > self.now)
    }

    fn start(&mut self, node: usize) {
        let server = &mut self.nodes[node];
        (server.life, server.is_up, server.term) = (server.life + 1, true, 0);
        server.waits_for.clear();
        let life = server.life;
        self.after(1, Event::Join(node, life));
        self.after(1, Event::Renew(node, life));
        self.after(1, Event::Work(node, life));
    }

    fn ask(&mut self, node: usize, ask: Ask) {
        self.order += 1;
        let request = self.order;
        let sent = self.clock(node);
        self.nodes[node].waits_for.insert(request, (ask.clone(), sent));
        self.asked.insert(request, (node, self.nodes[node].life, ask));
        let late = self.chance.below(LATE / 20) + if self.chance.below(20) == 0 { self.chance.below(LATE) } else { 0 };
        self.after(late, Event::Arrives(node, request));
        self.after(PATIENCE, Event::Late(node, request));
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Fault(node, at) => self.fault(node, at),
            Event::Back(node) => {
                if !self.nodes[node].is_up && !self.has(node, Fault::Server) && !self.has(node, Fault::Host) {
                    self.start(node);
                }
            }
            Event::Look(node) => self.warden(node),
            Event::Arrives(node, request) => {
                if let Some((_, life, ask)) = self.asked.remove(&request)
                    && !self.has(node, Fault::Deaf)
                    && !self.has(node, Fault::Host)
                {
                    let told = self.statement(node, &ask)?;
                    self.answers.insert(request, told);
                    let late = self.chance.below(LATE / 20);
                    debug_assert!(life <= self.nodes[node].life);
                    self.after(late, Event::Answered(node, request));
                }
            }
            Event::Answered(node, request) => {
                let stalled = self.faults.get(&(node, Fault::Stall as u8)).copied().unwrap_or_default();
                if stalled > self.now {
                    self.after(stalled - self.now, Event::Answered(node, request));
                } else if let Some(told) = self.answers.remove(&request)
                    && !self.has(node, Fault::Mute)
                    && let Some((ask, sent)) = self.nodes[node].waits_for.remove(&request)
                {
                    self.hear(node, (ask, sent), told)?;
                }
            }
            Event::Late(node, request) => {
                if let Some((ask, _)) = self.nodes[node].waits_for.remove(&request) {
                    self.lost(node, ask);
                }
            }
            Event::Join(node, life) => {
                let server = &self.nodes[node];
                if server.is_up && server.life == life && server.term == 0 {
                    self.ask(node, Ask::Join);
                    self.after(PATIENCE + 2_000, Event::Join(node, life));
                }
            }
            Event::Renew(node, life) => {
                if self.nodes[node].is_up && self.nodes[node].life == life {
                    let term = self.nodes[node].term;
                    if term > 0 && !self.has(node, Fault::Stall) {
                        self.ask(node, Ask::Renew { term });
                    }
                    self.after(self.rules.times.renew_every, Event::Renew(node, life));
                }
            }
            Event::Work(node, life) => {
                if self.nodes[node].is_up && self.nodes[node].life == life {
                    if self.nodes[node].term > 0 && !self.has(node, Fault::Stall) {
                        self.work(node)?;
                    }
                    let wait = 1_000 + self.chance.below(8_000);
                    self.after(wait, Event::Work(node, life));
                }
            }
        }
        Ok(())
    }

    fn fault(&mut self, node: usize, at: usize) {
        let (_, _, lasts, fault) = self.schedule.faults[at];
        self.faults.insert((node, fault as u8), self.now + lasts);
        let machines = &mut self.nodes[node];
        match fault {
            Fault::Server => machines.is_up = false,
            Fault::Host => {
                machines.is_up = false;
                machines.machines.clear();
            }
            Fault::Deaf | Fault::Mute | Fault::Stall => return,
        }
        self.nodes[node].waits_for.clear();
        self.after(lasts, Event::Back(node));
    }

    /// A warden stops what runs, once the page says so.
    fn warden(&mut self, node: usize) {
        if self.rules.has_warden && self.clock(node) >= self.nodes[node].stop_at {
            for machine in self.nodes[node].machines.values_mut().filter(|machine| !machine.is_stopped) {
                machine.is_stopped = true;
                self.seen.stops += 1;
            }
        }
    }

    /// One statement, by the database's clock, which is the one that others are measured by.
    fn statement(&mut self, node: usize, ask: &Ask) -> Result<Told, Violation> {
        let told = self.database.answer((node, self.now), ask, &self.rules);
        match (ask, &told) {
            (Ask::Claim { sandbox, .. } | Ask::Resume { sandbox, .. }, Told::Life { epoch, .. }) => {
                let term = self.database.nodes[node].0;
                let highest = self.highest[*sandbox];
                if self.given.insert((*sandbox, *epoch), (node, term)).is_some() || *epoch <= highest {
                    return Err(Violation::Epoch { sandbox: *sandbox, given: *epoch, highest });
                }
                self.highest[*sandbox] = *epoch;
                self.seen.claims += u32::from(matches!(ask, Ask::Claim { .. }));
            }
            (Ask::Pause { sandbox, state, .. }, Told::Done) => self.durable[*sandbox] = *state,
            (Ask::GiveUp { .. }, Told::Done) => self.seen.given_up += 1,
            (_, Told::No) => self.seen.fenced += 1,
            _ => {}
        }
        Ok(told)
    }

    /// What a server does of itself, now and then.
    fn work(&mut self, node: usize) -> Result<(), Violation> {
        let sandbox = usize::try_from(self.chance.below(SANDBOXES as u64)).unwrap();
        let Node { term, ref mut machines, ref busy, .. } = self.nodes[node];
        if busy.contains(&sandbox) {
            return Ok(());
        }
        if let Some(machine) = machines.get_mut(&sandbox) {
            if self.chance.below(3) == 0 && !machine.is_stopped {
                self.states += 1;
                (machine.is_stopped, machine.pausing) = (true, Some(self.states));
                let pause = Ask::Pause { sandbox, epoch: machine.epoch, term, state: self.states };
                self.nodes[node].busy.insert(sandbox);
                self.ask(node, pause);
            }
        } else {
            self.nodes[node].busy.insert(sandbox);
            self.ask(node, Ask::Find { sandbox });
        }
        Ok(())
    }

    /// An answer that has not come. What it was is not known.
    fn lost(&mut self, node: usize, ask: Ask) {
        match ask {
            // The guest stands still until it is known what became of it.
            Ask::Pause { .. } => self.ask(node, ask),
            Ask::Rows { gap, .. } => {
                let term = self.nodes[node].term;
                self.ask(node, Ask::Rows { gap, term });
            }
            _ => drop(ask.sandbox().map(|sandbox| self.nodes[node].busy.remove(&sandbox))),
        }
    }

    fn hear(&mut self, node: usize, (ask, sent): (Ask, u64), told: Told) -> Result<(), Violation> {
        match (ask, told) {
            (Ask::Join, Told::Rows { rows, term }) => {
                let server = &mut self.nodes[node];
                (server.term, server.gap, server.looked) = (term, 0, 0);
                server.busy.clear();
                self.lease(node, sent);
                // What is not on record as running ends with the server that had it.
                self.nodes[node].machines.retain(|sandbox, machine| {
                    machine.pausing = None;
                    rows.iter().any(|row| row.sandbox == *sandbox && row.epoch == machine.epoch && row.is_running)
                });
                self.go_on(node)?;
            }
            (Ask::Renew { .. }, Told::Lease { had_ended }) => {
                let came_late = self.clock(node) >= self.nodes[node].stop_at;
                self.lease(node, sent);
                let server = &mut self.nodes[node];
                if had_ended || (came_late && !self.rules.forgets_gaps) {
                    server.gap += 1;
                    self.seen.gaps += 1;
                    let (gap, term) = (server.gap, server.term);
                    self.ask(node, Ask::Rows { gap, term });
                } else {
                    self.go_on(node)?;
                }
            }
            (Ask::Rows { gap, .. }, Told::Rows { rows, .. }) => {
                let server = &mut self.nodes[node];
                server
                    .machines
                    .retain(|sandbox, machine| rows.iter().any(|row| row.sandbox == *sandbox && row.epoch == machine.epoch));
                server.looked = server.looked.max(gap);
                self.go_on(node)?;
            }
            (Ask::Find { sandbox }, Told::Found { row, is_claimable }) => self.consider(node, sandbox, (row, is_claimable))?,
            (Ask::Claim { sandbox, .. } | Ask::Resume { sandbox, .. }, told) => {
                self.nodes[node].busy.remove(&sandbox);
                match told {
                    Told::Life { epoch, state } if !self.rules.records_after => self.begin(node, sandbox, (epoch, state))?,
                    Told::Life { .. } => {}
                    _ if self.rules.records_after => drop(self.nodes[node].machines.remove(&sandbox)),
                    _ => {}
                }
            }
            (ask @ Ask::Pause { .. }, Told::Away) => self.ask(node, ask),
            (Ask::Pause { sandbox, .. }, _) => {
                // It is durable, or it is another's.
                self.nodes[node].machines.remove(&sandbox);
                self.nodes[node].busy.remove(&sandbox);
            }
            (ask, _) => drop(ask.sandbox().map(|sandbox| self.nodes[node].busy.remove(&sandbox))),
        }
        Ok(())
    }

    /// What a server does about a sandbox that it has found and does not run.
    fn consider(&mut self, node: usize, sandbox: usize, (row, is_claimable): (Row, bool)) -> Result<(), Violation> {
        let term = self.nodes[node].term;
        let (epoch, state) = (row.epoch, row.held);
        let ask = if row.node == node && row.term == term {
            if self.chance.below(2) == 0 || row.is_running {
                Ask::Resume { sandbox, epoch, state, term }
            } else {
                Ask::GiveUp { sandbox, epoch, term }
            }
        } else if is_claimable {
            Ask::Claim { sandbox, epoch, state, term }
        } else {
            self.nodes[node].busy.remove(&sandbox);
            return Ok(());
        };
        if self.rules.records_after && !matches!(ask, Ask::GiveUp { .. }) {
            self.begin(node, sandbox, (epoch + 1, state))?;
        }
        self.ask(node, ask);
        Ok(())
    }

    /// A renewal that was asked for then, by the node's clock.
    fn lease(&mut self, node: usize, sent: u64) {
        let stop_at = sent + self.rules.times.stop_after;
        if stop_at > self.nodes[node].stop_at {
            self.nodes[node].stop_at = stop_at;
            let scheduled = self.chance.below(SCHEDULED);
            self.after(self.until(node, stop_at) + scheduled, Event::Look(node));
        }
    }

    fn holds(&self, node: usize) -> bool {
        self.clock(node) < self.nodes[node].stop_at
    }

    /// Machines that were stopped go on, if what is on record was looked at since the last gap.
    fn go_on(&mut self, node: usize) -> Result<(), Violation> {
        let server = &self.nodes[node];
        if !self.holds(node) || (server.looked < server.gap && !self.rules.forgets_gaps) {
            return Ok(());
        }
        let stopped = server.machines.iter().filter(|(_, machine)| machine.is_stopped && machine.pausing.is_none());
        for sandbox in stopped.map(|(sandbox, _)| *sandbox).collect::<Vec<_>>() {
            self.nodes[node].machines.get_mut(&sandbox).unwrap().is_stopped = false;
            self.seen.continued += 1;
            self.alone(node, sandbox)?;
        }
        Ok(())
    }

    /// A guest begins.
    fn begin(&mut self, node: usize, sandbox: usize, (epoch, state): (u64, u64)) -> Result<(), Violation> {
        let server = &self.nodes[node];
        if !self.holds(node) || server.looked < server.gap {
            return Ok(());
        }
        if state != self.durable[sandbox] {
            return Err(Violation::Stale { sandbox, began_with: state, durable: self.durable[sandbox] });
        }
        self.nodes[node].machines.insert(sandbox, crate::rules::Machine { epoch, is_stopped: false, pausing: None });
        self.alone(node, sandbox)?;
        let term = self.nodes[node].term;
        self.ask(node, Ask::Run { sandbox, epoch, term });
        Ok(())
    }

    fn alone(&self, node: usize, sandbox: usize) -> Result<(), Violation> {
        let own = self.nodes[node].machines[&sandbox].epoch;
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
        let running = others.filter_map(|(_, other)| other.machines.get(&sandbox)).find(|machine| !machine.is_stopped);
        running.map_or(Ok(()), |other| Err(Violation::Overlap { sandbox, epochs: [own, other.epoch], at: self.now }))
    }
}
