//! The control channel's guest side: one thread, one request at a time.
//!
//! It runs outside the async runtime, because its calls block (a trim takes seconds) and because nothing that user code does to
//! envd may delay a resume.

mod closing;
mod disk;
mod entropy;
mod files;
mod hooks;
mod network;
mod port;
mod priority;
mod resume;

use std::{io, thread};

use firkin_causes::chain;
use firkin_wire::{
    control::{Answer, Call, Decoder, EncodeError, GENERATION, Request, Response, encode},
    nonce::Bond,
};

pub(crate) use self::network::{NetworkError, loopback_up};
use self::port::Port;
use crate::{
    envd::{EnvdState, Meter},
    power,
    reaper::Reaper,
};

/// Why the channel cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// No such device.
    #[error("cannot find the virtio-serial port `{name}`")]
    NoPort {
        /// The port's name.
        name: &'static str,
    },
    /// The device does not open.
    #[error("cannot open the control port")]
    Open(#[source] io::Error),
    /// The files that say who the machine is cannot be bound.
    #[error("cannot bind the machine's files")]
    Files(#[source] io::Error),
    /// The random generator's device does not open.
    #[error("cannot open the random generator")]
    Generator(#[source] io::Error),
    /// The network's changes cannot be heard of.
    #[error("cannot watch the network")]
    Watch(#[source] NetworkError),
    /// The thread does not start.
    #[error("cannot start the control thread")]
    Thread(#[source] io::Error),
    /// The device fails.
    #[error("cannot read the control port")]
    Read(#[source] io::Error),
    /// An answer that does not fit a frame.
    #[error("cannot frame an answer")]
    Encode(#[source] EncodeError),
}

/// Whose kernel this is, and so what of it is this agent's to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surroundings {
    /// A machine of its own: the random generator, the clock and the table of neighbours came with the snapshot.
    Machine,
    /// A container: random bytes and the clock are the host's, which never slept, and the way to the gateway is the host's affair.
    Container,
}

/// Opens the port and serves it from a thread of its own.
pub(crate) fn start(state: EnvdState, reaper: Reaper, surroundings: Surroundings) -> Result<(), ControlError> {
    let files = files::Files::bind().map_err(ControlError::Files)?;
    let (port, kernel) = match surroundings {
        Surroundings::Machine => {
            let generator = entropy::Generator::open().map_err(ControlError::Generator)?;
            let watch = network::Watch::begin().map_err(ControlError::Watch)?;
            (Port::open()?, Some(resume::Kernel { generator, watch }))
        }
        Surroundings::Container => (Port::of_standard_streams()?, None),
    };
    let current = resume::Current::new(files, kernel, reaper);
    let agent = Agent { state, meter: Meter::default(), current, bond: Bond::default() };
    let run = move || {
        if let Err(error) = priority::before_others() {
            // Then it takes its turn.
            tracing::warn!(%error, "the control thread is as important as any other");
        }
        if let Err(error) = agent.serve(port) {
            // Without the channel nobody can renew this machine's identity: it must not go on.
            tracing::error!(error = chain(&error), "the control channel is lost");
            power::off();
        }
    };
    thread::Builder::new().name("control".to_owned()).spawn(run).map_err(ControlError::Thread)?;
    Ok(())
}

struct Agent {
    state: EnvdState,
    /// Its own: processor use is told since the last question, and envd's clients ask too.
    meter: Meter,
    current: resume::Current,
    bond: Bond,
}

impl Agent {
    fn serve(mut self, mut port: Port) -> Result<(), ControlError> {
        let mut decoder = Decoder::default();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = port.read(&mut buffer).map_err(ControlError::Read)?;
            decoder.push(&buffer[..count]);
            while let Some(request) = decoder.next::<Request>() {
                let last = matches!(request.call, Call::PowerOff) && self.bond.admits(request.id, request.proof.as_ref());
                let response = self.respond(request);
                let frame = encode(&response).map_err(ControlError::Encode)?;
                if let Err(error) = port.write(&frame) {
                    // The host went away before it had its answer; it asks again when it is back.
                    tracing::warn!(%error, "cannot answer the host");
                }
                if last {
                    power::off();
                }
            }
        }
    }

    /// Answers, or says who it is to a host that means another machine.
    fn respond(&mut self, request: Request) -> Response {
        let id = request.id;
        let answer = if self.bond.admits(id, request.proof.as_ref()) {
            self.answer(request.call)
        } else {
            tracing::warn!("a call for another machine has come to this one");
            Answer::Failed { message: "this is another machine than the one that was called".to_owned() }
        };
        Response { id, answer, proof: self.bond.proof(id) }
    }

    fn answer(&mut self, call: Call) -> Answer {
        let done = |result: io::Result<()>| match result {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed { message: chain(&error) },
        };
        match call {
            Call::Hello => Answer::Hello {
                generation: GENERATION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                epoch: self.current.epoch(),
                envd_ready: self.state.is_serving(),
            },
            Call::Resume(identity) => match self.current.resume(&identity, &self.state) {
                Ok(resume::Resumed { clock_behind_ns, volumes }) => {
                    self.bond.take(identity.nonce.as_ref());
                    self.current.set_bond(&self.bond);
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns, volumes }
                }
                Err(error) => Answer::Failed { message: chain(&error) },
            },
            Call::Sync => {
                nix::unistd::sync();
                if self.current.is_in_container() {
                    closing::wait();
                }
                Answer::Done
            }
            Call::Shrink => {
                self.current.mend_network();
                done(priority::as_others(disk::shrink).inspect(|()| hooks::look()))
            }
            Call::Stats => match self.meter.read() {
                Ok(stats) => Answer::Stats(stats),
                Err(error) => Answer::Failed { message: chain(&error) },
            },
            Call::PowerOff => {
                nix::unistd::sync();
                Answer::Done
            }
        }
    }
}
