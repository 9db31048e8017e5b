//! Which faults come when: made of a seed alone.

use std::time::Duration;

use fastrand::Rng;

/// Servers. As many as a majority needs, although nothing here votes.
pub(crate) const NODES: usize = 3;

/// Who speaks with whom over the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Clients,
    Postgres,
    Node(usize),
}

/// Something that goes wrong, and is mended after a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; mended by another server on the same state directory.
    KillServer(usize),
    /// SIGSTOP; mended by SIGCONT.
    StopServer(usize),
    KillWarden(usize),
    StopWarden(usize),
    /// SIGKILL of all of its processes.
    KillPostgres,
    StopPostgres,
    /// Nothing of what one sends to the other arrives, and the sender is not told.
    Cut {
        from: Party,
        to: Party,
        both_ways: bool,
    },
    /// The disk of a state directory has no room.
    FillDisk(usize),
}

/// One fault, from when on and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) fault: Fault,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

impl Fault {
    /// Whether a node may be without a lease, or without anybody who renews it, for as long as this is so.
    fn endangers(self, node: usize) -> bool {
        match self {
            Self::KillServer(of) | Self::StopServer(of) => of == node,
            Self::KillPostgres | Self::StopPostgres => true,
            Self::Cut { from, to, .. } => {
                [from, to] == [Party::Node(node), Party::Postgres] || [from, to] == [Party::Postgres, Party::Node(node)]
            }
            Self::KillWarden(_) | Self::StopWarden(_) | Self::FillDisk(_) => false,
        }
    }

    /// How long two faults have to be apart, if they have to be: of which one undoes the other, or which nobody has promised to survive together.
    /// A warden that is away just when it is needed is what the kernel's watchdog is for.
    fn apart(self, other: Self) -> Option<Duration> {
        let subject = |fault: Self| match fault {
            Self::KillServer(node) | Self::StopServer(node) => (0, node),
            Self::KillWarden(node) | Self::StopWarden(node) => (1, node),
            Self::KillPostgres | Self::StopPostgres => (2, 0),
            Self::FillDisk(node) => (3, node),
            Self::Cut { from, to, .. } => {
                let number = |party| match party {
                    Party::Clients => 0,
                    Party::Postgres => 1,
                    Party::Node(node) => 2 + node,
                };
                (4 + number(from).min(number(to)), number(from).max(number(to)))
            }
        };
        let unguarded = |one: Self, other: Self| match one {
            Self::KillWarden(node) | Self::StopWarden(node) => other.endangers(node),
            _ => false,
        };
        if unguarded(self, other) || unguarded(other, self) {
            return Some(REGAIN);
        }
        (subject(self) == subject(other)).then_some(RECOVERY)
    }

    fn draw(rng: &mut Rng) -> Self {
        let node = rng.usize(..NODES);
        match rng.u32(..16) {
            0..=2 => Self::KillServer(node),
            3 | 4 => Self::StopServer(node),
            5 => Self::KillWarden(node),
            6 => Self::StopWarden(node),
            7 => Self::KillPostgres,
            8 => Self::StopPostgres,
            9 => Self::FillDisk(node),
            10..=12 => Self::cut(rng, Party::Node(node), Party::Postgres),
            13 => Self::cut(rng, Party::Node(node), Party::Clients),
            _ => Self::cut(rng, Party::Node(node), Party::Node((node + 1) % NODES)),
        }
    }

    fn cut(rng: &mut Rng, one: Party, other: Party) -> Self {
        let (from, to) = if rng.bool() { (one, other) } else { (other, one) };
        Self::Cut { from, to, both_ways: rng.bool() }
    }
}

/// How long a fault lasts, in milliseconds.
const LASTS_MS: std::ops::Range<u64> = 300..12_000;

/// How long a warden is away: nothing else may happen to its node for a while then.
const UNGUARDED_MS: std::ops::Range<u64> = 300..2500;

/// How long one lasts by which a node is lost to the others: longer than a lease and what is waited after it.
const LOSES_MS: std::ops::Range<u64> = 9000..16_000;

/// Between the beginnings of two.
const APART_MS: std::ops::Range<u64> = 200..4000;

/// How long two are apart of which one undoes the other.
const RECOVERY: Duration = Duration::from_secs(3);

/// How long a warden and what it is for are apart: a server that was cut off from the database finds that its connection is dead, or what it sent
/// comes through after twice as long as nothing did, and then it has its lease again.
const REGAIN: Duration = Duration::from_secs(15);

/// The faults of one schedule, in the order of their beginnings, all mended by its end.
pub(crate) fn draw(seed: u64, length: Duration) -> Vec<Event> {
    let mut rng = Rng::with_seed(seed);
    let mut events: Vec<Event> = Vec::new();
    let mut from = Duration::ZERO;
    loop {
        from += Duration::from_millis(rng.u64(APART_MS));
        let fault = Fault::draw(&mut rng);
        let lasts = match fault {
            Fault::KillWarden(_) | Fault::StopWarden(_) => UNGUARDED_MS,
            _ if (0..NODES).any(|node| fault.endangers(node)) && rng.bool() => LOSES_MS,
            _ => LASTS_MS,
        };
        let to = from + Duration::from_millis(rng.u64(lasts));
        if from > length {
            return events;
        }
        if to > length {
            continue;
        }
        let collides =
            |event: &Event| fault.apart(event.fault).is_some_and(|apart| from < event.to + apart && event.from < to + apart);
        if !events.iter().any(collides) {
            events.push(Event { fault, from, to });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_secs(60);

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(draw(7, LENGTH), draw(7, LENGTH));
        assert_ne!(draw(7, LENGTH), draw(8, LENGTH));
        let all: Vec<Event> = (0..200).flat_map(|seed| draw(seed, LENGTH)).collect();
        let count = |is: fn(&Fault) -> bool| all.iter().filter(|event| is(&event.fault)).count();
        for is in [
            (|fault| matches!(fault, Fault::KillServer(_))) as fn(&Fault) -> bool,
            |fault| matches!(fault, Fault::StopServer(_)),
            |fault| matches!(fault, Fault::KillWarden(_)),
            |fault| matches!(fault, Fault::StopWarden(_)),
            |fault| matches!(fault, Fault::KillPostgres),
            |fault| matches!(fault, Fault::StopPostgres),
            |fault| matches!(fault, Fault::FillDisk(_)),
            |fault| matches!(fault, Fault::Cut { both_ways: true, .. }),
            |fault| matches!(fault, Fault::Cut { both_ways: false, .. }),
        ] {
            assert!(count(is) > 20);
        }
        assert!(all.iter().all(|event| event.from < event.to && event.to <= LENGTH));
    }

    #[test]
    fn nobody_is_unguarded() {
        for seed in 0..200 {
            let events = draw(seed, LENGTH);
            for event in &events {
                let node = match event.fault {
                    Fault::KillWarden(node) | Fault::StopWarden(node) => node,
                    _ => continue,
                };
                let meanwhile = |other: &&Event| other.from < event.to && event.from < other.to;
                assert!(!events.iter().filter(meanwhile).any(|other| other.fault.endangers(node)), "{events:?}");
            }
        }
    }
}
