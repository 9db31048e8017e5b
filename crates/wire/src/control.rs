//! The control channel: what the host says to the guest agent over virtio-serial, and what it answers.
//!
//! Nothing on the guest's network reaches this channel. It is strictly request and response, one request in flight, always
//! begun by the host. A snapshot holds yesterday's agent frozen in memory, so the protocol carries a generation number and
//! the host keeps speaking every generation that was ever released.
//!
//! One frame on the wire:
//!
//! ```text
//!   0        4        8        12
//!   | FKN1   | length | crc32  | payload: JSON, `length` bytes ...
//! ```
//!
//! Integers are big-endian; the checksum covers the payload. A restore may leave the rest of an old frame in the device, so a
//! [`Decoder`] that does not find a valid frame slides on to the next magic instead of failing, and a host drops responses
//! whose id it is not waiting for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The generation that this crate speaks. Raise it when a message changes its meaning; adding optional fields does not.
pub const GENERATION: u32 = 1;

/// The name of the virtio-serial port, `/dev/virtio-ports/<name>` in the guest.
pub const PORT_NAME: &str = "firkin.control";

/// The largest payload of one frame, in bytes. A hello or a resume is below 64 KiB even with every environment variable.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"FKN1";
const HEADER_BYTES: usize = 12;

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the response. Never reused within one epoch.
    pub id: u64,
    /// What to do.
    pub call: Call,
}

/// One thing that the host can ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Call {
    /// Who are you? The readiness probe of a boot and of a restore. Answered with [`Answer::Hello`].
    Hello,
    /// Become this sandbox: reseed, set the clock, take the name, the network, the tokens. Answered with
    /// [`Answer::Resumed`] once all of it is in force; only then may user code run.
    Resume(Box<Identity>),
    /// Write dirty pages to the disk, so that a snapshot's clones do not each write them again. Answered with [`Answer::Done`].
    Sync,
    /// Before a template snapshot: sync, trim free disk blocks, drop the page cache. Answered with [`Answer::Done`].
    Shrink,
    /// Current resource use. Answered with [`Answer::Stats`].
    Stats,
    /// Sync, unmount and power off. The answer ([`Answer::Done`]) comes before the machine stops.
    PowerOff,
}

/// Who a restored guest becomes. Everything that two clones of one snapshot must not share is here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Counts the restores of one sandbox; an agent refuses an epoch that is lower than one it has seen.
    pub epoch: u64,
    /// Sandbox id, also the host name.
    pub sandbox_id: String,
    /// Template id, for `E2B_TEMPLATE_ID`.
    pub template_id: String,
    /// 32 bytes from the host's generator, base64; credited to the kernel's pool, which is then reseeded.
    pub entropy: String,
    /// Host real time, nanoseconds since the Unix epoch.
    pub realtime_ns: u64,
    /// New machine id, 32 lower-case hex digits. Absent: keep (a resume of the same sandbox).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// Network settings to apply. Absent: leave as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<GuestNetwork>,
    /// Environment variables given to every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Token that envd demands in `X-Access-Token`. Absent: envd is open (a template build).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<String>,
    /// User of commands that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of commands that name none; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
}

/// The guest's one network interface, the same in every clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestNetwork {
    /// IPv4 address of the guest.
    pub address: std::net::Ipv4Addr,
    /// Prefix length of the guest's subnet.
    pub prefix: u8,
    /// The host's side of the link.
    pub gateway: std::net::Ipv4Addr,
    /// MAC of the gateway, entered as a permanent neighbour so that no ARP precedes the first packet.
    pub gateway_mac: String,
    /// Resolvers for `/etc/resolv.conf`. Empty: leave the file alone.
    #[serde(default)]
    pub dns: Vec<std::net::IpAddr>,
}

/// What the guest answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Call::Hello`].
    Hello {
        /// The agent's control generation.
        generation: u32,
        /// The agent's build version.
        version: String,
        /// The highest epoch that this guest has been given; 0 before the first resume.
        epoch: u64,
        /// Whether envd accepts connections.
        envd_ready: bool,
    },
    /// To [`Call::Resume`].
    Resumed {
        /// The epoch now in force.
        epoch: u64,
        /// How far the guest's clock was behind the host's before it was set, in nanoseconds.
        clock_behind_ns: i64,
    },
    /// To [`Call::Stats`].
    Stats(Stats),
    /// The call was carried out.
    Done,
    /// The call was not carried out.
    Failed {
        /// For a log: lower case, says what could not be done and why.
        message: String,
    },
}

/// Resource use of one guest. Shares its field names with envd's `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Unix seconds.
    pub ts: i64,
    /// Number of CPUs.
    pub cpu_count: u32,
    /// Use of all CPUs since the last call, 0 to 100.
    pub cpu_used_pct: f32,
    /// Bytes of memory.
    pub mem_total: u64,
    /// Bytes of memory in use, page cache excluded.
    pub mem_used: u64,
    /// Bytes of page cache.
    pub mem_cache: u64,
    /// Bytes used on the root file system.
    pub disk_used: u64,
    /// Size of the root file system in bytes.
    pub disk_total: u64,
}

/// Why a message cannot be framed.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The message is larger than a frame may be.
    #[error("cannot frame a control message of {bytes} bytes, the limit is {MAX_PAYLOAD_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The message does not serialise.
    #[error("cannot serialise a control message")]
    Serialise(#[source] serde_json::Error),
}

/// One message as a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, EncodeError> {
    let payload = serde_json::to_vec(message).map_err(EncodeError::Serialise)?;
    let length = u32::try_from(payload.len())
        .ok()
        .filter(|_| payload.len() <= MAX_PAYLOAD_BYTES)
        .ok_or(EncodeError::TooLarge { bytes: payload.len() })?;
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&crc32fast::hash(&payload).to_be_bytes());
    frame.extend_from_slice(&payload);
    Ok(frame)
}

/// Finds frames in a stream of bytes that may begin, or be cut, anywhere. Holds at most one frame and one read.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive. What is not a valid frame of a `T` is skipped.
    #[expect(clippy::should_implement_trait, reason = "the caller names the type of each message, which an iterator cannot")]
    pub fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Option<T> {
        loop {
            self.skip_to_magic();
            let length = u32::from_be_bytes(self.buffer.get(4..8)?.try_into().ok()?) as usize;
            let checksum = u32::from_be_bytes(self.buffer.get(8..HEADER_BYTES)?.try_into().ok()?);
            if length > MAX_PAYLOAD_BYTES {
                self.buffer.drain(..1);
                continue;
            }
            let payload = self.buffer.get(HEADER_BYTES..HEADER_BYTES + length)?;
            if crc32fast::hash(payload) != checksum {
                self.buffer.drain(..1);
                continue;
            }
            let message = serde_json::from_slice(payload).ok();
            self.buffer.drain(..HEADER_BYTES + length);
            if message.is_some() {
                return message;
            }
        }
    }

    /// Drops what precedes the first magic, keeping a tail that may be the beginning of one.
    fn skip_to_magic(&mut self) {
        let start = self.buffer.windows(MAGIC.len()).position(|window| window == MAGIC);
        let drop = start.unwrap_or_else(|| {
            let tail = (1..MAGIC.len()).rev().find(|&n| self.buffer.ends_with(&MAGIC[..n])).unwrap_or(0);
            self.buffer.len() - tail
        });
        self.buffer.drain(..drop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(id: u64) -> Request {
        Request { id, call: Call::Hello }
    }

    #[test]
    fn a_frame_comes_back_whole() {
        let mut decoder = Decoder::default();
        decoder.push(&encode(&request(7)).unwrap());
        assert_eq!(decoder.next::<Request>(), Some(request(7)));
        assert_eq!(decoder.next::<Request>(), None);
    }

    #[test]
    fn a_torn_frame_before_a_whole_one_is_skipped() {
        let torn = encode(&request(1)).unwrap();
        let mut decoder = Decoder::default();
        // The head of an old frame whose length reaches into the new one: the checksum unmasks it.
        decoder.push(&torn[..20]);
        decoder.push(&encode(&request(2)).unwrap());
        decoder.push(&encode(&request(3)).unwrap());
        assert_eq!(decoder.next::<Request>(), Some(request(2)));
        assert_eq!(decoder.next::<Request>(), Some(request(3)));
    }

    #[test]
    fn an_oversized_message_is_refused_on_both_sides() {
        let huge = "x".repeat(MAX_PAYLOAD_BYTES);
        assert!(matches!(encode(&huge), Err(EncodeError::TooLarge { .. })));
        let mut frame = MAGIC.to_vec();
        frame.extend_from_slice(&u32::MAX.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        let mut decoder = Decoder::default();
        decoder.push(&frame);
        decoder.push(&encode(&request(4)).unwrap());
        assert_eq!(decoder.next::<Request>(), Some(request(4)));
    }

    proptest! {
        #[test]
        fn any_chunking_and_any_noise_gives_the_same_messages(
            noise in proptest::collection::vec(any::<u8>(), 0..64),
            cut in 1usize..40,
        ) {
            prop_assume!(!noise.windows(4).any(|w| w == MAGIC));
            let mut bytes = noise;
            for id in 0..3 {
                bytes.extend(encode(&request(id)).unwrap());
            }
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for chunk in bytes.chunks(cut) {
                decoder.push(chunk);
                while let Some(message) = decoder.next::<Request>() {
                    seen.push(message);
                }
            }
            prop_assert_eq!(seen, (0..3).map(request).collect::<Vec<_>>());
        }
    }
}
