//! The one place that waits for children.
//!
//! PID 1 inherits every orphan of the guest and must reap it, but must not take the exit status of a command that envd
//! started. So no one else calls `wait`: commands are started through [`Reaper::spawn`], which enters the child in a table
//! before the reaper can see it end, and the reaper hands each status to its owner or drops it when there is none.

use std::{
    collections::BTreeMap,
    io,
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::unistd::Pid;
use rustix::{
    io::Errno,
    process::{WaitId, WaitIdOptions, WaitOptions, wait, waitid},
};
use tokio::sync::oneshot;

use crate::spawner::{Order, Spawner};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It called `exit` with this code.
    Code(i32),
    /// This signal ended it. A number: real-time signals have no name.
    Signal(i32),
}

/// A child and the promise of its exit.
#[derive(Debug)]
pub(crate) struct Started {
    /// The child; nobody else may wait for it.
    pub(crate) pid: Pid,
    /// Resolves when the child has been reaped.
    pub(crate) exit: oneshot::Receiver<Exit>,
}

/// Hands exit statuses to whom they belong.
#[derive(Debug, Clone)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
    spawner: Spawner,
}

#[derive(Debug, Default)]
struct Shared {
    owners: Mutex<BTreeMap<i32, oneshot::Sender<Exit>>>,
    /// Signalled when a child exists again, so that a reaper without children sleeps.
    spawned: Condvar,
}

impl Shared {
    fn owners(&self) -> MutexGuard<'_, BTreeMap<i32, oneshot::Sender<Exit>>> {
        // The table is consistent between statements, so a panic elsewhere does not spoil it.
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reaper {
    /// The reaper of this process: its thread, and the one that starts children, are started by whoever asks first. There is no
    /// second one, which would take the children of the first and drop what became of them.
    pub(crate) fn of_process() -> io::Result<Self> {
        static ONLY: Mutex<Option<Reaper>> = Mutex::new(None);
        let mut only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reaper) = &*only {
            return Ok(reaper.clone());
        }
        let reaper = Self::start()?;
        *only = Some(reaper.clone());
        Ok(reaper)
    }

    fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let inside = Arc::clone(&shared);
        thread::Builder::new().name("reaper".to_owned()).spawn(move || reap(&inside))?;
        Ok(Self { shared, spawner: Spawner::start()? })
    }

    /// Starts a command. Blocks for the time of a fork and an exec: call it where blocking is allowed.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Started> {
        self.spawn_by(|| {
            let child = command.spawn()?;
            Ok(Pid::from_raw(i32::try_from(child.id()).expect("Linux process ids are below 2^22")))
        })
    }

    /// Starts a command without a copy of this process, in a session of its own. Blocks for the time of an exec.
    pub(crate) fn spawn_order(&self, order: Order) -> io::Result<Started> {
        self.spawn_by(|| self.spawner.spawn(order))
    }

    /// Starts a child by any means. One that cannot be started must be gone when `spawn` returns.
    fn spawn_by(&self, spawn: impl FnOnce() -> io::Result<Pid>) -> io::Result<Started> {
        let (sender, exit) = oneshot::channel();
        // Held across the fork, so that the reaper cannot collect the child before its owner is known, and so that whoever
        // starts it collects a child whose exec failed.
        let mut owners = self.shared.owners();
        let pid = spawn()?;
        owners.insert(pid.as_raw(), sender);
        drop(owners);
        self.shared.spawned.notify_one();
        Ok(Started { pid, exit })
    }
}

fn reap(shared: &Shared) {
    let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        // Only looks: which child it was matters once the table is locked.
        match waitid(WaitId::All, look) {
            Ok(_) => collect(&mut shared.owners()),
            Err(Errno::CHILD) => {
                let owners = shared.owners();
                if matches!(waitid(WaitId::All, look | WaitIdOptions::NOHANG), Err(Errno::CHILD)) {
                    // No child and, with the table locked, none in the making.
                    drop(shared.spawned.wait(owners));
                }
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "cannot wait for children");
                return;
            }
        }
    }
}

fn collect(owners: &mut BTreeMap<i32, oneshot::Sender<Exit>>) {
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => continue,
        };
        if let Some(owner) = owners.remove(&pid.as_raw_nonzero().get()) {
            // The owner may have stopped caring.
            owner.send(exit).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_owner_gets_its_own_status() {
        let reaper = Reaper::of_process().unwrap();
        let mut waits = Vec::new();
        for code in 0..20 {
            let started = reaper.spawn(Command::new("/bin/sh").args(["-c", &format!("exit {code}")])).unwrap();
            waits.push((code, started.exit));
        }
        for (code, exit) in waits {
            assert_eq!(exit.await.unwrap(), Exit::Code(code));
        }
        let killed = reaper.spawn(Command::new("/bin/sh").args(["-c", "kill -9 $$"])).unwrap();
        assert_eq!(killed.exit.await.unwrap(), Exit::Signal(9));
        assert!(reaper.spawn(&mut Command::new("/does/not/exist")).is_err());
    }
}
