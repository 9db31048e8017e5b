//! QMP: commands to a QEMU process and events from it, over its monitor socket.
//!
//! A [`Monitor`] has no task of its own. The machine that owns it reads the socket whenever it waits for something, and keeps
//! the few kinds of events that mean something to it. Every method is cancel-safe: bytes that were read stay in the buffer,
//! bytes that were not yet written go out first next time, and the answer to a cancelled command is recognised by its id and
//! dropped. The process on the other side runs untrusted guests, so what it sends is bounded and checked.
//!
//! Protocol: QEMU's interop/qmp-spec.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use bytes::{Buf, BytesMut};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
};

/// Longest message that is read. The longest that QEMU sends on our commands, a CPU model's expansion, has some 30 KiB.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Events that are kept for later. Only migrations and shutdowns are, and a machine has few of either.
const MAX_KEPT_EVENTS: usize = 64;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    #[error("the monitor's connection is closed")]
    Closed(#[source] io::Error),
    #[error("the monitor does not speak qmp: {0}")]
    Protocol(&'static str),
    #[error("{0}")]
    Refused(String),
}

/// The events that a machine cares about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The machine is about to exit, on its own wish (`guest`) or on that of whoever signalled the process.
    Shutdown { guest: bool, reason: String },
    /// A migration, in or out, came into this state.
    Migration { status: String },
}

#[derive(Debug)]
pub(super) struct Monitor {
    stream: UnixStream,
    input: BytesMut,
    output: BytesMut,
    /// Bytes of `input` known to hold no line end.
    scanned: usize,
    last_id: u64,
    events: VecDeque<Event>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Monitor {
    /// Takes the greeting and leaves negotiation mode. Gives the version from the greeting too.
    pub(super) async fn open(stream: UnixStream) -> Result<(Self, Value), MonitorError> {
        let mut monitor =
            Self { stream, input: BytesMut::new(), output: BytesMut::new(), scanned: 0, last_id: 0, events: VecDeque::new() };
        let greeting = monitor.receive().await?.greeting.ok_or(MonitorError::Protocol("it did not greet"))?;
        monitor.execute("qmp_capabilities", json!({})).await?;
        Ok((monitor, greeting))
    }

    /// Runs one command and gives what it returned. Deadlines are the caller's.
    pub(super) async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, MonitorError> {
        let (id, request) = self.request(command, &arguments);
        self.output.extend_from_slice(&request);
        self.flush().await?;
        self.answer(id).await
    }

    /// The same for a command that takes a descriptor, which QEMU then has as its own.
    pub(super) async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value, MonitorError> {
        let (id, request) = self.request(command, &arguments);
        // The descriptor travels with the first byte of its own command.
        self.flush().await?;
        let (socket, handed) = (self.stream.as_fd().as_raw_fd(), [descriptor.as_raw_fd()]);
        let send = || {
            let message = [ControlMessage::ScmRights(&handed)];
            Ok(sendmsg::<()>(socket, &[IoSlice::new(&request)], &message, MsgFlags::MSG_NOSIGNAL, None)?)
        };
        let sent = self.stream.async_io(Interest::WRITABLE, send).await.map_err(MonitorError::Closed)?;
        self.output.extend_from_slice(&request[sent..]);
        self.flush().await?;
        self.answer(id).await
    }

    /// The next request, and its id.
    fn request(&mut self, command: &str, arguments: &Value) -> (u64, Vec<u8>) {
        self.last_id += 1;
        // QEMU reads a request byte by byte, at some microseconds each: nothing is said that need not be.
        let request = match arguments {
            Value::Object(fields) if fields.is_empty() => json!({"execute": command, "id": self.last_id}),
            _ => json!({"execute": command, "arguments": arguments, "id": self.last_id}),
        };
        (self.last_id, format!("{request}\n").into_bytes())
    }

    async fn flush(&mut self) -> Result<(), MonitorError> {
        while self.output.has_remaining() {
            self.stream.write_buf(&mut self.output).await.map_err(MonitorError::Closed)?;
        }
        Ok(())
    }

    async fn answer(&mut self, id: u64) -> Result<Value, MonitorError> {
        loop {
            let message = self.receive().await?;
            if message.id != Some(id) {
                continue;
            }
            return match (message.answer, message.error) {
                (Some(answer), None) => Ok(answer),
                (None, Some(refusal)) => Err(MonitorError::Refused(refusal.desc)),
                _ => Err(MonitorError::Protocol("an answer is neither a return nor an error")),
            };
        }
    }

    /// The next event, in order of arrival.
    pub(super) async fn event(&mut self) -> Result<Event, MonitorError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.receive().await?;
        }
    }

    /// Events that already arrived.
    pub(super) fn take_events(&mut self) -> VecDeque<Event> {
        std::mem::take(&mut self.events)
    }

    /// One message; an event is also noted.
    async fn receive(&mut self) -> Result<Message, MonitorError> {
        loop {
            if let Some(length) = self.input[self.scanned..].iter().position(|&byte| byte == b'\n') {
                let line = self.input.split_to(self.scanned + length + 1);
                self.scanned = 0;
                let message: Message =
                    serde_json::from_slice(&line).map_err(|_| MonitorError::Protocol("it sent a line that is no message"))?;
                self.note(&message);
                return Ok(message);
            }
            self.scanned = self.input.len();
            if self.scanned > MAX_MESSAGE_BYTES {
                return Err(MonitorError::Protocol("it sent a message that is too long"));
            }
            if self.stream.read_buf(&mut self.input).await.map_err(MonitorError::Closed)? == 0 {
                return Err(MonitorError::Closed(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn note(&mut self, message: &Message) {
        let text = |field: &str| message.data.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let event = match message.event.as_deref() {
            Some("SHUTDOWN") => {
                let guest = message.data.get("guest").and_then(Value::as_bool).unwrap_or(false);
                Event::Shutdown { guest, reason: text("reason") }
            }
            Some("MIGRATION") => Event::Migration { status: text("status") },
            _ => return,
        };
        if self.events.len() == MAX_KEPT_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    /// A monitor and the far end of its socket, after the handshake.
    async fn pair() -> (Monitor, BufReader<UnixStream>) {
        let (near, far) = UnixStream::pair().unwrap();
        let mut far = BufReader::new(far);
        let handshake = async {
            far.get_mut().write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
            request(&mut far).await;
            far.get_mut().write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
        };
        let (monitor, ()) = tokio::join!(Monitor::open(near), handshake);
        (monitor.unwrap().0, far)
    }

    async fn request(far: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        far.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[tokio::test]
    async fn events_between_answers_are_kept_in_order() {
        let (mut monitor, mut far) = pair().await;
        let serve = async {
            assert_eq!(request(&mut far).await, json!({"execute": "stop", "id": 2}), "and no empty arguments");
            let lines = concat!(
                "{\"event\": \"STOP\", \"timestamp\": {}}\n",
                "{\"event\": \"MIGRATION\", \"data\": {\"status\": \"setup\"}}\n",
                "{\"return\": {\"a\": 1}, \"id\": 2}\n",
                "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"guest-reset\"}}\n",
            );
            far.get_mut().write_all(lines.as_bytes()).await.unwrap();
        };
        let (answer, ()) = tokio::join!(monitor.execute("stop", json!({})), serve);
        assert_eq!(answer.unwrap(), json!({"a": 1}));
        assert_eq!(monitor.event().await.unwrap(), Event::Migration { status: "setup".into() });
        assert_eq!(monitor.event().await.unwrap(), Event::Shutdown { guest: true, reason: "guest-reset".into() });
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_a_cancelled_command_is_dropped() {
        let (mut monitor, mut far) = pair().await;
        let cancelled = tokio::time::timeout(Duration::from_millis(1), monitor.execute("first", json!({}))).await;
        assert!(cancelled.is_err());
        far.get_mut().write_all(b"{\"return\": \"first\", \"id\": 2}\n{\"return\": \"second\", \"id\": 3}\n").await.unwrap();
        assert_eq!(monitor.execute("second", json!({})).await.unwrap(), json!("second"));
    }

    #[tokio::test]
    async fn a_descriptor_travels_with_its_command() {
        use std::{
            io::{IoSliceMut, Read, Seek},
            os::fd::{FromRawFd as _, OwnedFd},
        };

        use nix::sys::socket::{ControlMessageOwned, recvmsg};

        let (mut monitor, far) = pair().await;
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"handed").unwrap();
        file.rewind().unwrap();
        let serve = async {
            let far = far.get_ref();
            let (mut bytes, mut space) = ([0; 256], nix::cmsg_space!(std::os::fd::RawFd));
            let receive = || {
                let mut buffers = [IoSliceMut::new(&mut bytes)];
                let got = recvmsg::<()>(far.as_fd().as_raw_fd(), &mut buffers, Some(&mut space), MsgFlags::empty())?;
                let ControlMessageOwned::ScmRights(handed) = got.cmsgs()?.next().unwrap() else { panic!("no descriptor") };
                Ok((handed[0], got.bytes))
            };
            let (handed, length) = far.async_io(Interest::READABLE, receive).await.unwrap();
            let request: Value = serde_json::from_slice(&bytes[..length]).unwrap();
            assert_eq!(request["execute"], "add-fd");
            far.writable().await.unwrap();
            far.try_write(b"{\"return\": {}, \"id\": 2}\n").unwrap();
            handed
        };
        let (answer, handed) = tokio::join!(monitor.execute_with("add-fd", json!({}), file.as_fd()), serve);
        answer.unwrap();
        let mut text = String::new();
        #[expect(unsafe_code, reason = "a descriptor that was received is a number until somebody owns it")]
        // SAFETY: the kernel made it for this process a moment ago, and nobody else knows of it.
        let handed = unsafe { OwnedFd::from_raw_fd(handed) };
        std::fs::File::from(handed).read_to_string(&mut text).unwrap();
        assert_eq!(text, "handed");
    }

    #[tokio::test]
    async fn refusals_and_hang_ups_are_told_apart() {
        let (mut monitor, mut far) = pair().await;
        far.get_mut().write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n").await.unwrap();
        assert!(matches!(monitor.execute("x", json!({})).await, Err(MonitorError::Refused(text)) if text == "no"));
        drop(far);
        assert!(matches!(monitor.execute("x", json!({})).await, Err(MonitorError::Closed(_))));
    }

    #[tokio::test]
    async fn what_is_not_qmp_is_refused() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"hello\n").await.unwrap();
        assert!(matches!(Monitor::open(near).await, Err(MonitorError::Protocol(_))));
    }
}
