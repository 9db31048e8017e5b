//! The fake machine: the seam's states over a [`Core`], and control connections that only a running machine serves.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf},
    sync::watch,
    task::AbortHandle,
};

use super::{Connection, Core, Failed, Guest, Host, INJECTED, Keeping, Origin, Phase, Point, body::Body, crashed, files, lock};
use crate::{ControlStream, Exit, HostUse, Machine, MachineError, MemoryForm, SnapshotParts, parts};

/// Bytes that a control connection buffers, like a socket does.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct FakeMachine {
    pub(super) core: Arc<Core>,
    pub(super) host: Arc<Host>,
    /// The agent of the last connection and its two pumps.
    connection: Vec<AbortHandle>,
    released: bool,
}

impl FakeMachine {
    pub(super) fn new(core: Arc<Core>, host: Arc<Host>) -> Self {
        Self { core, host, connection: Vec::new(), released: false }
    }

    fn phase(&self) -> Phase {
        self.core.phase.borrow().clone()
    }

    fn demand_paused(&self, call: &'static str) -> Result<(), MachineError> {
        match self.phase() {
            Phase::Paused => Ok(()),
            Phase::Prepared => Err(MachineError::WrongState { call, state: "prepared" }),
            Phase::Running => Err(MachineError::WrongState { call, state: "running" }),
            Phase::Sealed => Err(MachineError::WrongState { call, state: "sealed" }),
            Phase::Gone(exit) => Err(MachineError::Gone(exit)),
        }
    }

    async fn suffer(&self, point: Point, phase: &'static str) -> Result<(), MachineError> {
        match self.host.suffer(point).await {
            None => Ok(()),
            Some(Failed::Refused) => Err(MachineError::Refused { phase, reason: INJECTED.into() }),
            Some(Failed::Crashed) => {
                self.core.end(crashed());
                Err(MachineError::Gone(crashed()))
            }
        }
    }

    async fn switch(&mut self, to: Phase, call: &'static str, point: Point) -> Result<(), MachineError> {
        match self.phase() {
            Phase::Gone(exit) => return Err(MachineError::Gone(exit)),
            Phase::Prepared => return Err(MachineError::WrongState { call, state: "prepared" }),
            Phase::Sealed => return Err(MachineError::WrongState { call, state: "sealed" }),
            from if from == to => return Ok(()),
            Phase::Running | Phase::Paused => {}
        }
        self.suffer(point, call).await?;
        // It may have crashed during a delay.
        self.core.phase.send_if_modified(|phase| {
            let alive = !matches!(phase, Phase::Gone(_));
            if alive {
                *phase = to;
            }
            alive
        });
        self.core.keep();
        match self.phase() {
            Phase::Gone(exit) => Err(MachineError::Gone(exit)),
            Phase::Prepared | Phase::Running | Phase::Paused | Phase::Sealed => Ok(()),
        }
    }

    fn disconnect(&mut self) {
        for task in self.connection.drain(..) {
            task.abort();
        }
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.disconnect();
        if !self.released {
            self.core.end(Exit::Killed);
        }
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn pid(&self) -> Option<u32> {
        None
    }

    async fn processes(&self) -> io::Result<Vec<u32>> {
        Ok(lock(&self.core.body).and_then(Body::pid).into_iter().collect())
    }

    async fn resume(&mut self) -> Result<(), MachineError> {
        self.switch(Phase::Running, "resume", Point::Resume).await
    }

    async fn pause(&mut self) -> Result<(), MachineError> {
        self.switch(Phase::Paused, "pause", Point::Pause).await
    }

    async fn prepare_cut(&mut self, overlay: &Path) -> Result<u64, MachineError> {
        const PHASE: &str = "to open its next root disk";
        match self.phase() {
            Phase::Gone(exit) => return Err(MachineError::Gone(exit)),
            Phase::Prepared => return Err(MachineError::WrongState { call: "prepare a cut of", state: "prepared" }),
            Phase::Sealed => return Err(MachineError::WrongState { call: "prepare a cut of", state: "sealed" }),
            Phase::Running | Phase::Paused => {}
        }
        self.suffer(Point::PrepareCut, PHASE).await?;
        fs_err::metadata(overlay).map_err(|error| MachineError::Refused { phase: PHASE, reason: error.to_string() })?;
        Ok(match &self.core.origin {
            Origin::Booted { .. } => 0,
            Origin::Restored { .. } => lock(&self.core.memory).len() as u64,
        })
    }

    /// What it remembers stands for that.
    async fn root_changes(&mut self, into: &Path) -> Result<(), MachineError> {
        if self.host.keeping != Keeping::AllInState {
            return Err(MachineError::Refused { phase: "to tell what it has changed", reason: "its disk holds that".to_owned() });
        }
        let changed = lock(&self.core.memory).clone();
        fs_err::write(into, changed).map_err(|source| MachineError::File { path: into.to_path_buf(), source })
    }

    async fn make_room(&mut self, _dir: &Path, _bytes: u64) -> Result<(), MachineError> {
        match self.phase() {
            Phase::Gone(exit) => Err(MachineError::Gone(exit)),
            // The memory is a few bytes: there is nothing to gain.
            Phase::Prepared | Phase::Running | Phase::Paused | Phase::Sealed => Ok(()),
        }
    }

    async fn snapshot(&mut self, dir: &Path) -> Result<SnapshotParts, MachineError> {
        self.demand_paused("snapshot")?;
        self.suffer(Point::Snapshot, "to save its state").await?;
        let started = Instant::now();
        let memory = lock(&self.core.memory).clone();
        let write = || match &self.core.origin {
            _ if self.host.keeping != Keeping::Files => {
                files::write_state_with_memory(&dir.join(parts::STATE), &memory)?;
                Ok(MemoryForm::InState)
            }
            Origin::Booted { memory_file } => {
                files::write_state(&dir.join(parts::STATE), true)?;
                files::write_memory(memory_file, &memory)?;
                Ok(MemoryForm::Full)
            }
            Origin::Restored { memory_bytes } => {
                files::write_state(&dir.join(parts::STATE), false)?;
                files::write_diff(&dir.join(parts::MEMORY_DIFF), &memory, *memory_bytes)?;
                Ok(MemoryForm::Diff { bytes: memory.len() as u64 })
            }
        };
        let form = write().map_err(|source: io::Error| MachineError::File { path: dir.to_path_buf(), source })?;
        if form == MemoryForm::Full {
            self.core.phase.send_replace(Phase::Sealed);
            self.core.keep();
        }
        Ok(SnapshotParts { memory: form, captured: None, state_time: started.elapsed(), memory_time: started.elapsed() })
    }

    fn root_disk(&self) -> PathBuf {
        lock(&self.core.root_disk).clone()
    }

    async fn switch_disk(&mut self, overlay: &Path) -> Result<(), MachineError> {
        self.demand_paused("switch the disk of")?;
        self.suffer(Point::SwitchDisk, "to switch its root disk").await?;
        fs_err::metadata(overlay)
            .map_err(|error| MachineError::Refused { phase: "to switch its root disk", reason: error.to_string() })?;
        *lock(&self.core.root_disk) = overlay.to_path_buf();
        self.core.keep();
        Ok(())
    }

    /// The disk first: a cut that fails then is one whose disk was switched.
    async fn cut(&mut self, dir: &Path, overlay: &Path) -> Result<SnapshotParts, MachineError> {
        self.switch_disk(overlay).await?;
        self.snapshot(dir).await
    }

    async fn control(&mut self) -> Result<Box<dyn ControlStream>, MachineError> {
        if let Phase::Gone(exit) = self.phase() {
            return Err(MachineError::Gone(exit));
        }
        self.suffer(Point::Control, "a control connection").await?;
        self.disconnect();
        let (ours, far) = tokio::io::duplex(PIPE_BYTES);
        let (near, theirs) = tokio::io::duplex(PIPE_BYTES);
        let core = self.host.answering(&self.core);
        let phase = || core.phase.subscribe();
        let agent = (self.host.agent)(Connection { stream: theirs, guest: Guest { core: Arc::clone(&core) } });
        let (far_read, far_write) = tokio::io::split(far);
        let (near_read, near_write) = tokio::io::split(near);
        self.connection = vec![
            tokio::spawn(pump(far_read, near_write, phase())).abort_handle(),
            tokio::spawn(pump(near_read, far_write, phase())).abort_handle(),
            tokio::spawn(agent).abort_handle(),
        ];
        Ok(Box::new(ours))
    }

    async fn console_tail(&mut self) -> Result<String, MachineError> {
        match self.phase() {
            Phase::Gone(exit) => Err(MachineError::Gone(exit)),
            Phase::Prepared | Phase::Running | Phase::Paused | Phase::Sealed => Ok(String::from("a fake guest has no console\n")),
        }
    }

    async fn host_use(&self) -> Result<HostUse, MachineError> {
        match self.phase() {
            Phase::Gone(exit) => Err(MachineError::Gone(exit)),
            Phase::Prepared | Phase::Running | Phase::Paused | Phase::Sealed => {
                Ok(HostUse { pss_bytes: 32 << 20, guest_pss_bytes: 4 << 20, cpu_ms: 1 })
            }
        }
    }

    async fn answer(&mut self) -> Result<(), MachineError> {
        if let Phase::Gone(exit) = self.phase() {
            return Err(MachineError::Gone(exit));
        }
        self.suffer(Point::Answer, "to give a sign of life").await
    }

    async fn wait(&mut self) -> Exit {
        let mut phase = self.core.phase.subscribe();
        let gone = phase.wait_for(|phase| matches!(phase, Phase::Gone(_))).await.map(|phase| phase.clone());
        match gone {
            Ok(Phase::Gone(exit)) => exit,
            // The sender is in the core, which we hold.
            Ok(Phase::Prepared | Phase::Running | Phase::Paused | Phase::Sealed) | Err(_) => {
                unreachable!("only an end is waited for")
            }
        }
    }

    async fn kill(&mut self) -> Exit {
        self.core.end(Exit::Killed);
        self.disconnect();
        self.wait().await
    }

    fn release(mut self: Box<Self>) {
        self.released = true;
    }
}

/// Carries bytes in one direction while the machine runs, and ends with the machine.
async fn pump(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, mut phase: watch::Receiver<Phase>) {
    let mut gone = phase.clone();
    let carry = async {
        let mut buffer = BytesMut::with_capacity(4096);
        loop {
            let read = from.read_buf(&mut buffer).await?;
            // What was read stays in the buffer until the machine runs.
            if phase.wait_for(|phase| *phase == Phase::Running).await.is_err() {
                return Ok(());
            }
            if read == 0 {
                return to.shutdown().await;
            }
            to.write_all_buf(&mut buffer).await?;
        }
    };
    let carried: io::Result<()> = tokio::select! {
        carried = carry => carried,
        _ = gone.wait_for(|phase| matches!(phase, Phase::Gone(_))) => Ok(()),
    };
    if let Err(error) = carried {
        tracing::debug!(%error, "a fake control connection ended");
    }
}
