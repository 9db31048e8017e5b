//! The fake's prepared engine: a machine whose guest does not exist before its state is loaded.

use std::sync::atomic::Ordering;

use async_trait::async_trait;

use super::{Failed, INJECTED, Phase, Point, machine::FakeMachine};
use crate::{Exit, Machine, Prepared, StartError};

const PHASE: &str = "loading its device state";

#[derive(Debug)]
pub(super) struct FakePrepared {
    machine: FakeMachine,
}

impl FakePrepared {
    pub(super) fn new(machine: FakeMachine) -> Self {
        Self { machine }
    }
}

#[async_trait]
impl Prepared for FakePrepared {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn load(self: Box<Self>) -> Result<Box<dyn Machine>, StartError> {
        let Self { machine } = *self;
        let died = || StartError::Died { phase: PHASE, log: INJECTED.into() };
        match machine.host.suffer(Point::Load).await {
            None => {}
            Some(Failed::Refused) => return Err(StartError::Refused { phase: PHASE, reason: INJECTED.into() }),
            Some(Failed::Crashed) => return Err(died()),
        }
        let loaded = machine.core.phase.send_if_modified(|phase| {
            let waits = *phase == Phase::Prepared;
            if waits {
                *phase = Phase::Paused;
            }
            waits
        });
        if !loaded {
            return Err(died());
        }
        machine.core.keep();
        machine.host.restores.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(machine))
    }

    async fn wait(&mut self) -> Exit {
        self.machine.wait().await
    }

    async fn kill(&mut self) -> Exit {
        self.machine.kill().await
    }
}
