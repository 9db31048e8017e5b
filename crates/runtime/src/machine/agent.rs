//! The host's side of the control channel: one call at a time, each with a deadline.

use std::{io, time::Duration};

use firkin_engine::ControlStream;
use firkin_wire::{
    control::{Answer, Call, Decoder, Request, Response, encode},
    nonce::{Nonce, Side},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Why a call on the control channel failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// No answer in time.
    #[error("no answer to `{call}` within {deadline_ms} ms")]
    Deadline {
        /// The call.
        call: &'static str,
        /// The deadline.
        deadline_ms: u128,
    },
    /// The channel broke.
    #[error("the control channel broke during `{call}`")]
    Channel {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A request could not be framed.
    #[error("cannot frame `{call}`")]
    Encode {
        /// The call.
        call: &'static str,
        /// Why.
        #[source]
        source: firkin_wire::control::EncodeError,
    },
    /// The agent said no.
    #[error("the guest agent refused `{call}`: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its words.
        message: String,
    },
    /// Not the machine that was called has answered. What it says counts for nothing.
    #[error("another machine answered `{call}` on the control channel")]
    Stranger {
        /// The call.
        call: &'static str,
    },
    /// The agent answered something else than was asked.
    #[error("the guest agent gave the wrong kind of answer to `{call}`")]
    Unexpected {
        /// The call.
        call: &'static str,
    },
    /// The agent is from before there were volumes in sandboxes.
    #[error("the guest agent knows of no volumes: it is older than they are")]
    NoVolumes,
    /// The agent speaks a generation that this host does not.
    #[error("the guest agent speaks control generation {found}, this host speaks up to {known}")]
    Generation {
        /// The agent's.
        found: u32,
        /// Ours.
        known: u32,
    },
}

const READ_BYTES: usize = 16 << 10;

/// A connection to the agent of one machine.
#[derive(Debug)]
pub(crate) struct Agent {
    stream: Box<dyn ControlStream>,
    decoder: Decoder,
    next_id: u64,
    nonce: Option<Nonce>,
}

impl Agent {
    /// Speaks over `stream` with the machine that has this nonce; absent: with one that has none. Ids start at a random place, so that an answer to an earlier connection is never taken for ours.
    pub(crate) fn new(stream: Box<dyn ControlStream>, nonce: Option<Nonce>) -> Self {
        let next_id = u64::from(u32::from_be_bytes(crate::ground::random::bytes())) << 16;
        Self { stream, decoder: Decoder::default(), next_id, nonce }
    }

    /// The machine's nonce: the one that it was given last, once it has proven that it took it.
    pub(crate) fn nonce(&self) -> Option<&Nonce> {
        self.nonce.as_ref()
    }

    /// Asks and waits for the answer. After a failure the connection is not usable for another call.
    pub(crate) async fn call(&mut self, call: Call, deadline: Duration) -> Result<Answer, AgentError> {
        let name = name(&call);
        match tokio::time::timeout(deadline, self.exchange(call, name)).await {
            Ok(Ok(Answer::Failed { message })) => Err(AgentError::Refused { call: name, message }),
            Ok(answer) => answer,
            Err(_) => Err(AgentError::Deadline { call: name, deadline_ms: deadline.as_millis() }),
        }
    }

    async fn exchange(&mut self, call: Call, name: &'static str) -> Result<Answer, AgentError> {
        let channel = |source| AgentError::Channel { call: name, source };
        self.next_id += 1;
        let id = self.next_id;
        let given = match &call {
            Call::Resume(identity) => identity.nonce.clone(),
            Call::Hello | Call::Sync | Call::Shrink | Call::Stats | Call::PowerOff => None,
        };
        let proof = self.nonce.as_ref().map(|nonce| nonce.proof(Side::Host, id));
        let frame = encode(&Request { id, call, proof }).map_err(|source| AgentError::Encode { call: name, source })?;
        self.stream.write_all(&frame).await.map_err(channel)?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            while let Some(response) = self.decoder.next::<Response>() {
                if response.id == id {
                    let is_meant = self.recognises(&response, given);
                    return if is_meant { Ok(response.answer) } else { Err(AgentError::Stranger { call: name }) };
                }
            }
            match self.stream.read(&mut buffer).await.map_err(channel)? {
                0 => return Err(channel(io::ErrorKind::UnexpectedEof.into())),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    /// Whether the machine that was called has answered, perhaps by the nonce that this call has given it. One that has had none
    /// yet may be of an agent that knows of none: then it is the one whose socket this is, as before.
    fn recognises(&mut self, response: &Response, given: Option<Nonce>) -> bool {
        let Some(proof) = &response.proof else { return self.nonce.is_none() };
        let known = given.into_iter().chain(self.nonce.take());
        self.nonce = known.into_iter().find(|nonce| nonce.proof(Side::Guest, response.id) == *proof);
        self.nonce.is_some()
    }
}

fn name(call: &Call) -> &'static str {
    match call {
        Call::Hello => "hello",
        Call::Resume(_) => "resume",
        Call::Sync => "sync",
        Call::Shrink => "shrink",
        Call::Stats => "stats",
        Call::PowerOff => "power off",
    }
}

/// Host real time for [`firkin_wire::control::Identity::realtime_ns`].
pub(crate) fn realtime_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use firkin_wire::control;

    /// Neither crate may know the other.
    #[test]
    fn engines_and_guests_mean_the_same_by_their_names() {
        assert_eq!(firkin_engine::CONTROL_PORT, control::PORT_NAME);
        assert_eq!(firkin_engine::PROBE_CMDLINE, control::PROBE);
    }
}
