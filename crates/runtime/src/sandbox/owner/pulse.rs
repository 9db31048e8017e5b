//! Whether a running machine still lives: its guest is asked now and then, and its engine when the guest is silent.
//!
//! A silent guest is not ended for that: it may be emulated, overloaded, stopped by its own kernel's crash dump, and it is its
//! user's. It is told in the log, once, and once more when it answers again. But where the engine's process does not answer
//! either, there is nothing left to pause or to save, and it only holds what others could use: then the machine ends.
//!
//! An answer costs the guest's agent some ten microseconds and its host one wake-up, every half a minute: with 100 idle
//! sandboxes that is three wake-ups a second.

use std::time::Duration;

use firkin_causes::chain;
use firkin_engine::{Exit, MachineError};
use tokio::time::{Instant, sleep_until, timeout};

use super::Running;
use crate::store::spec::SandboxId;

/// Between two questions to a guest.
const INTERVAL: Duration = Duration::from_secs(30);

/// For one answer. A guest on a host with ten times the work it can do took seconds; nothing that works takes this long.
const GUEST_DEADLINE: Duration = Duration::from_secs(20);

/// Answers in a row that a guest must owe before it counts as silent: three minutes and more.
const GUEST_MISSES: u32 = 6;

/// For the engine's answer. It has a thread of its own for it, which waits for no guest.
const ENGINE_DEADLINE: Duration = Duration::from_secs(20);

/// Answers in a row that an engine must owe, each asked for after another that its guest owed.
const ENGINE_MISSES: u32 = 3;

/// How a machine was found last.
#[derive(Debug)]
pub(super) struct Pulse {
    next: Instant,
    guest_owes: u32,
    engine_owes: u32,
}

/// Why a machine is not to be waited for any longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// It ended.
    Exited(Exit),
    /// Neither its guest nor its engine answers.
    Silent,
}

impl Pulse {
    /// Of a machine that was heard just now.
    pub(super) fn new() -> Self {
        // Machines that were taken over at the same time are not asked at the same time.
        let spread = INTERVAL * u32::from(crate::ground::random::bytes::<1>()[0]) / 256;
        Self { next: Instant::now() + INTERVAL + spread, guest_owes: 0, engine_owes: 0 }
    }

    fn guest_answered(&mut self, id: &SandboxId) {
        if self.guest_owes >= GUEST_MISSES {
            tracing::info!(sandbox = %id, "a guest answers again");
        }
        (self.guest_owes, self.engine_owes) = (0, 0);
    }
}

/// Ends when the machine does, or when nothing of it answers. Cancel-safe: a question under way is then not counted. A guest that was
/// told to stand still is not asked.
pub(super) async fn watch(running: &mut Running, id: &SandboxId) -> End {
    let Running { session, pulse, still, .. } = running;
    loop {
        tokio::select! {
            exit = session.machine.wait() => return End::Exited(exit),
            () = sleep_until(pulse.next), if still.is_none() => {}
        }
        pulse.next = Instant::now() + INTERVAL;
        if session.is_held() {
            // It is stopped, and goes on when the lease is regained.
            continue;
        }
        if matches!(timeout(GUEST_DEADLINE, session.hello(GUEST_DEADLINE)).await, Ok(Ok(()))) {
            pulse.guest_answered(id);
            continue;
        }
        pulse.guest_owes += 1;
        if pulse.guest_owes < GUEST_MISSES {
            continue;
        }
        if pulse.guest_owes == GUEST_MISSES {
            tracing::warn!(sandbox = %id, silent_s = (INTERVAL * GUEST_MISSES).as_secs(), "a guest does not answer");
        }
        match timeout(ENGINE_DEADLINE, session.machine.answer()).await {
            Ok(Ok(())) => pulse.engine_owes = 0,
            Ok(Err(MachineError::Gone(exit))) => return End::Exited(exit),
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %id, error = chain(&error), "a machine's engine does not answer");
                pulse.engine_owes += 1;
            }
            Err(_) => {
                tracing::warn!(sandbox = %id, "a machine's engine does not answer");
                pulse.engine_owes += 1;
            }
        }
        if pulse.engine_owes == ENGINE_MISSES {
            return End::Silent;
        }
    }
}
