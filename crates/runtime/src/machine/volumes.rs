//! Volumes of a machine: a connection for each, over which its guest asks and is answered.
//!
//! The host connects, as to every port of a guest, so that a guest begins nothing. A connection that ends is made anew for as long as the
//! machine lives: when its guest was cut, and after another server has taken it over.

use std::{io, sync::Arc, time::Duration};

use firkin_causes::chain;
use firkin_share::{Access, Gate, Held, LinkError, Share, Turn, serve};
use firkin_wire::{
    fuse::{Hello, PORT, PROOF_ID},
    nonce::{Nonce, Side},
};
use futures::future::BoxFuture;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use crate::machine::network::Connector;

/// After a connection that ended at once, before the next. A guest's programs wait meanwhile.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// And at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A flush of a large file to a slow disk takes longer; what was under way then is asked again, as after any other end.
const HOLD_DEADLINE: Duration = Duration::from_secs(2);

/// A server that leaves holds up nobody but the next.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);

/// A connection that lasted so long was one.
const LASTED: Duration = Duration::from_secs(1);

/// A volume for a machine.
pub(crate) struct Served {
    /// Where its guest has it.
    pub(crate) path: String,
    pub(crate) access: Access,
    /// Comes once it is open, which its guest waits for and nobody else.
    pub(crate) share: BoxFuture<'static, Arc<Share>>,
}

/// Answers a machine's guest. Dropped, it does not any more.
#[derive(Debug)]
pub(crate) struct VolumeLinks {
    #[expect(dead_code, reason = "held: the tasks end with it")]
    tasks: JoinSet<()>,
    gates: Vec<Gate>,
    // Below the tasks: what waits for its turn when they end never has it.
    held: Option<Vec<Held>>,
}

/// Why a guest is not answered.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("cannot connect to the guest of a volume")]
    Connect(#[source] io::Error),
    #[error("cannot say hello to the guest of a volume")]
    Hello(#[source] io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl VolumeLinks {
    /// Answers the guest behind `connector`, of the machine with this nonce, for each of `volumes`.
    pub(crate) fn open(volumes: Vec<Served>, connector: &Connector, nonce: Option<&Nonce>) -> Self {
        let (mut tasks, mut gates) = (JoinSet::new(), Vec::new());
        for volume in volumes {
            let proof = nonce.map(|nonce| nonce.proof(Side::Host, PROOF_ID));
            let hello = Hello { path: volume.path.clone(), proof };
            let gate = Gate::default();
            gates.push(gate.clone());
            tasks.spawn(keep_connected(volume, (hello, gate), connector.clone()));
        }
        Self { tasks, gates, held: None }
    }

    /// Waits until the guest has been answered for all that was begun, and has taken that, and begins nothing more:
    /// for a cut, whose copies would else ask for it again. It is waited for no longer than a cut may be held up.
    pub(crate) async fn hold(&mut self) {
        self.hold_for(HOLD_DEADLINE, true).await;
    }

    /// The same before another server answers, of a guest that runs (`hears`) or stands still.
    pub(crate) async fn leave(&mut self, hears: bool) {
        self.hold_for(LEAVE_DEADLINE, hears).await;
    }

    async fn hold_for(&mut self, deadline: Duration, hears: bool) {
        if self.held.is_none() {
            let held = futures::future::join_all(self.gates.iter().map(|gate| gate.hold(hears)));
            self.held = tokio::time::timeout(deadline, held).await.ok();
            if self.held.is_none() {
                tracing::warn!("a guest did not take its volumes' answers in time; what was under way it asks again");
            }
        }
    }

    /// The guest runs on.
    pub(crate) fn release(&mut self) {
        self.held = None;
    }
}

async fn keep_connected(volume: Served, (hello, gate): (Hello, Gate), connector: Connector) {
    let (share, access) = (volume.share.await, volume.access);
    let mut pause = FIRST_PAUSE;
    loop {
        let turn = gate.turn().await;
        let begun = tokio::time::Instant::now();
        match answer((&share, access), (&hello, &turn), &connector).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(path = volume.path, error = chain(&error), "a guest has no connection to its volume"),
        }
        if turn.has_ended() {
            // The guest runs on as soon as there is another.
            continue;
        }
        drop(turn);
        pause = if begun.elapsed() >= LASTED { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        tokio::time::sleep(pause).await;
    }
}

/// One connection, from its beginning to its end.
async fn answer(
    (share, access): (&Arc<Share>, Access),
    (hello, turn): (&Hello, &Turn),
    connector: &Connector,
) -> Result<(), ServeError> {
    let stream = tokio::select! {
        connected = connect(hello, connector) => connected?,
        () = turn.ended() => return Ok(()),
    };
    Ok(serve(Arc::clone(share), access, turn, stream).await?)
}

async fn connect(hello: &Hello, connector: &Connector) -> Result<TcpStream, ServeError> {
    let mut stream = connector.connect(PORT).await.map_err(ServeError::Connect)?;
    let mut line = serde_json::to_vec(hello).map_err(|error| ServeError::Hello(error.into()))?;
    line.push(b'\n');
    let said = async {
        stream.set_nodelay(true)?;
        stream.write_all(&line).await
    };
    said.await.map_err(ServeError::Hello)?;
    Ok(stream)
}
