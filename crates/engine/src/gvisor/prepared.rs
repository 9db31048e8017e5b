//! A sandbox that is up and empty: what a restore can have ready before anybody asks for it.
//!
//! Its process, its namespaces and its filter are there, and the checkpoint that it is to load was proven and lies in its directory.

use std::os::fd::OwnedFd;

use async_trait::async_trait;

use super::{
    command::{self, RunError, Streams},
    file_error,
    instance::{IMAGE_DIR, PID_FILE},
    machine::{GvisorMachine, Parts, State},
    network::View,
    sentry, start_error,
};
use crate::{Exit, Machine, Prepared, StartError, directory::blocking};

#[derive(Debug)]
pub(super) struct GvisorPrepared {
    parts: Parts,
    /// The namespace of the interface that it is to have.
    interface: OwnedFd,
    exit: Option<Exit>,
}

impl GvisorPrepared {
    pub(super) fn new(parts: Parts, interface: OwnedFd) -> Self {
        Self { parts, interface, exit: None }
    }

    async fn settle(&mut self, killed: bool) -> Exit {
        if let Some(exit) = &self.exit {
            return exit.clone();
        }
        self.parts.process.ended().await;
        let exit = self.parts.settle(killed).await;
        self.exit = Some(exit.clone());
        exit
    }
}

#[async_trait]
impl Prepared for GvisorPrepared {
    fn pid(&self) -> Option<u32> {
        (self.exit.is_none() && !self.parts.process.has_ended()).then(|| self.parts.process.pid())
    }

    async fn load(self: Box<Self>) -> Result<Box<dyn Machine>, StartError> {
        const PHASE: &str = "its wait for a snapshot";
        let Self { mut parts, interface, .. } = *self;
        let died = |parts: &Parts| StartError::Died { phase: PHASE, log: parts.process.log_tail() };
        if parts.process.has_ended() {
            return Err(died(&parts));
        }
        let (dir, image) = (parts.dir.clone(), parts.dir.join(IMAGE_DIR));
        let mut words = vec!["restore".into(), "--detach".into()];
        for (flag, path) in [("--bundle=", &parts.dir), ("--image-path=", &image), ("--pid-file=", &dir.join(PID_FILE))] {
            let mut word = std::ffi::OsString::from(flag);
            word.push(path);
            words.push(word);
        }
        let view = View::of_starter(parts.network, parts.process.pid(), interface);
        let call = parts.call(words, Streams::OfSandbox, view);
        let image = parts.dir.join(IMAGE_DIR);
        let sizes = fs_err::read_dir(&image).into_iter().flatten().flatten().filter_map(|entry| entry.metadata().ok());
        let bytes = sizes.map(|file| file.len()).sum();
        match command::run_within(command::deadline_for(bytes), call).await {
            Ok(()) => {}
            Err(RunError::Failed(_) | RunError::Spawn(_)) if parts.process.has_ended() => return Err(died(&parts)),
            Err(error) => return Err(start_error("to load its snapshot", error)),
        }
        // A sandbox runs when it is restored: nobody has told it anything yet.
        let paused = sentry::pause(&parts.root()).await;
        paused.map_err(|error| StartError::Refused { phase: "to stop it", reason: firkin_causes::chain(&error) })?;
        parts.record.whole = true;
        parts.record.write(&parts.dir).map_err(|source| file_error(&parts.dir, source))?;
        let freed = image.clone();
        blocking(move || fs_err::remove_dir_all(freed)).await.map_err(|source| file_error(&image, source))?;
        Ok(Box::new(GvisorMachine::new(parts, State::Paused)))
    }

    async fn wait(&mut self) -> Exit {
        self.settle(false).await
    }

    async fn kill(&mut self) -> Exit {
        let killed = !self.parts.process.has_ended();
        self.parts.process.kill();
        self.settle(killed).await
    }
}
