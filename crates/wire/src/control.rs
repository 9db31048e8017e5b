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

use std::{collections::BTreeMap, ops::Range};

use serde::{Deserialize, Serialize};

use crate::nonce::{Nonce, Proof};

/// The generation that this crate speaks. Raise it when a message changes its meaning; adding optional fields does not.
/// In the second a guest that has been given a nonce does nothing for who does not prove to know it.
pub const GENERATION: u32 = 2;

/// The name of the virtio-serial port, `/dev/virtio-ports/<name>` in the guest.
pub const PORT_NAME: &str = "firkin.control";

/// On the kernel's command line: power off as soon as the kernel has proved that it runs. Engines ask for it, and do not know this crate.
pub const PROBE: &str = "firkin.probe=1";

/// The largest payload of one frame, in bytes. A hello or a resume is below 64 KiB even with every environment variable.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"FKN1";
const HEADER_BYTES: usize = 12;

/// A request of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the host, repeated in the response. Never reused within one epoch.
    pub id: u64,
    /// The call.
    pub call: Call,
    /// For which machine it is. Absent: for one that has no nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
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
    /// Which machine it is from now on, see [`crate::nonce`]. Absent: the one that it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Nonce>,
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
    /// All volumes that it has from now on; others are unmounted. Absent: leave as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<Vec<GuestVolume>>,
}

/// A directory that a guest shares with others, at a place of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestVolume {
    /// Which one. Of the host's making, and no name of a file.
    pub id: String,
    /// Where it is mounted. Made if it is not there.
    pub path: String,
    /// Whether nothing of it can be changed from here.
    #[serde(default)]
    pub read_only: bool,
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

/// A response of the guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The answer.
    pub answer: Answer,
    /// From which machine it comes. Absent: from one that has no nonce, or whose agent was frozen before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
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
        /// How many volumes it has. Absent: its agent knows of none, and has not mounted those that it was told of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        volumes: Option<usize>,
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

/// How many bytes a decoder hashes at most for each that it has received. An intact frame is hashed once, and once more for each torn
/// one whose head stands before it and claims its bytes; a stream has one of those where a restore cut it. Without a bound, a guest
/// that fills a frame with heads of frames has each of them hashed to the end: 43 GiB for one MiB.
const HASHED_PER_BYTE: u64 = 4;

/// Finds frames in a stream of bytes that may begin, or be cut, anywhere. Holds at most twice a frame and a read.
///
/// Its work grows with the stream's length alone, whatever is in it: whoever has taken a guest over writes what it likes.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the beginning of the buffer that are done with.
    done: usize,
    /// Bytes that have left the buffer.
    gone: u64,
    /// The end, in the stream, of the furthest frame that was looked at. What may be hashed is counted from here and not from what
    /// was received, so that the same stream gives the same messages however it is cut.
    reached: u64,
    hashed: u64,
    /// Bytes that were moved within the buffer.
    #[cfg(test)]
    moved: u64,
}

impl Decoder {
    /// Takes bytes as they were read.
    pub fn push(&mut self, bytes: &[u8]) {
        // Only once as much is done with as is left: then what is moved was paid for.
        if self.done >= self.buffer.len() - self.done {
            self.buffer.drain(..self.done);
            self.gone += self.done as u64;
            self.done = 0;
            #[cfg(test)]
            {
                self.moved += self.buffer.len() as u64;
            }
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, or `None` until more bytes arrive. What is not a valid frame of a `T` is skipped.
    #[expect(clippy::should_implement_trait, reason = "the caller names the type of each message, which an iterator cannot")]
    pub fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Option<T> {
        loop {
            self.skip_to_magic();
            let rest = &self.buffer[self.done..];
            let length = u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?) as usize;
            let checksum = u32::from_be_bytes(rest.get(8..HEADER_BYTES)?.try_into().ok()?);
            if length > MAX_PAYLOAD_BYTES {
                self.done += 1;
                continue;
            }
            let frame_bytes = HEADER_BYTES + length;
            if rest.len() < frame_bytes {
                return None;
            }
            let payload = self.done + HEADER_BYTES..self.done + frame_bytes;
            if !self.may_hash(payload.clone()) || crc32fast::hash(&self.buffer[payload.clone()]) != checksum {
                self.done += 1;
                continue;
            }
            let message = serde_json::from_slice(&self.buffer[payload]).ok();
            self.done += frame_bytes;
            if message.is_some() {
                return message;
            }
        }
    }

    /// Whether these bytes of the buffer may be hashed; if so, they count as hashed.
    fn may_hash(&mut self, payload: Range<usize>) -> bool {
        self.reached = self.reached.max(self.gone + payload.end as u64);
        let hashed = self.hashed + payload.len() as u64;
        let may = hashed <= self.reached * HASHED_PER_BYTE;
        if may {
            self.hashed = hashed;
        }
        may
    }

    /// Drops what precedes the first magic, keeping a tail that may be the beginning of one.
    fn skip_to_magic(&mut self) {
        let rest = &self.buffer[self.done..];
        let start = rest.windows(MAGIC.len()).position(|window| window == MAGIC);
        self.done += start.unwrap_or_else(|| {
            let tail = (1..MAGIC.len()).rev().find(|&n| rest.ends_with(&MAGIC[..n])).unwrap_or(0);
            rest.len() - tail
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(id: u64) -> Request {
        Request { id, call: Call::Hello, proof: None }
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

    /// The head of a frame of so many bytes that is none.
    fn false_head(length: usize) -> Vec<u8> {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
        head.extend_from_slice(&[0; 4]);
        head
    }

    /// What a decoder finds in a stream that comes in pieces of this size, having done no more work than its length allows.
    fn found_with_little_work(stream: &[u8], piece_bytes: usize) -> Vec<u64> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            decoder.push(piece);
            while let Some(Request { id, .. }) = decoder.next() {
                found.push(id);
            }
        }
        let length = stream.len() as u64;
        assert!(decoder.hashed <= length * HASHED_PER_BYTE, "{} bytes were hashed of {length}", decoder.hashed);
        assert!(decoder.moved <= length, "{} bytes were moved of {length}", decoder.moved);
        found
    }

    #[test]
    fn heads_upon_heads_cost_no_more_than_other_bytes() {
        const LENGTH: usize = 128 << 10;
        // Every head claims all that follows it: each is whole, at once, when the last byte has come.
        let flood = |bytes: usize| -> Vec<u8> {
            (0..bytes / HEADER_BYTES).rev().flat_map(|left| false_head(left * HEADER_BYTES)).collect()
        };
        // Every head claims equally much: from the first that is whole, another one is with every twelve bytes.
        let rolling = false_head(LENGTH).repeat(2 * LENGTH / HEADER_BYTES);
        let magics = MAGIC.repeat(LENGTH / MAGIC.len());
        for hostile in [flood(LENGTH), rolling, magics] {
            for piece_bytes in [HEADER_BYTES, 16 << 10, hostile.len()] {
                found_with_little_work(&hostile, piece_bytes);
            }
        }
        // What comes after it is found.
        let mut stream = flood(LENGTH);
        stream.extend((1..4).flat_map(|id| encode(&request(id)).unwrap()));
        assert_eq!(found_with_little_work(&stream, 4096), [1, 2, 3]);
    }

    #[test]
    fn a_long_torn_frame_hides_none_of_those_that_it_claims() {
        let mut stream = false_head(100 << 10);
        stream.extend(false_head(50 << 10));
        let mut ids = 0;
        while stream.len() < 150 << 10 {
            stream.extend(encode(&request(ids)).unwrap());
            ids += 1;
        }
        assert_eq!(found_with_little_work(&stream, 16 << 10), (0..ids).collect::<Vec<_>>());
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
