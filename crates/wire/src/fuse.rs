//! Volumes in a guest: FUSE's messages (`linux/fuse.h`) between its kernel and the host, as far as who carries them has to know them.
//!
//! A guest's agent mounts a volume and hands on what its kernel asks. The host, which opens the connection, answers. Messages say
//! their length first, so a stream of them needs no frames around it. What is asked and not yet answered is kept by the agent, and asked
//! anew on the next connection: whoever answers may go away, be killed, and come back, and so may the guest.
//!
//! ```text
//!   program ── kernel ── /dev/fuse ── agent, port 49982 ◄── connection, begun by a Hello ── host, the volume's directory
//! ```

use serde::{Deserialize, Serialize};

use crate::nonce::Proof;

/// Where the agent of a guest with volumes waits for the host, which is the only one that it takes there.
pub const PORT: u16 = 49_982;

/// The `id` of the proof in a [`Hello`]: no request on the control channel has it, those begin at random and count up.
pub const PROOF_ID: u64 = u64::MAX;

/// The longest hello.
pub const MAX_HELLO_BYTES: usize = 1024;

/// What the host says first on a connection: one line of JSON. Not HTTP, so that nobody who gets the host to ask something of a guest's
/// port by HTTP is taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of which mount it has the volume: the path in [`crate::control::GuestVolume`].
    pub path: String,
    /// Of the machine that it means, for [`PROOF_ID`]. Absent: it has no nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// The largest write, and so the largest read, of one message.
pub const MAX_IO_BYTES: u32 = 256 << 10;

/// The largest message: a write with its two heads, rounded up to a page. The kernel refuses to be read with less room.
pub const MAX_MESSAGE_BYTES: usize = MAX_IO_BYTES as usize + 4096;

/// The head of every request.
pub const REQUEST_HEAD_BYTES: usize = 40;

/// The head of every reply.
pub const REPLY_HEAD_BYTES: usize = 16;

/// The length that a message says it has, of its first four bytes; `None` for one that no message has.
pub fn length(first: [u8; 4], least: usize) -> Option<usize> {
    let length = usize::try_from(u32::from_le_bytes(first)).ok()?;
    (least..=MAX_MESSAGE_BYTES).contains(&length).then_some(length)
}

/// The `unique` of a request or a reply, which both have in their second eight bytes.
pub fn unique(message: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(message.get(8..16)?.try_into().ok()?))
}

/// The number of what a request asks for.
pub fn opcode(message: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(message.get(4..8)?.try_into().ok()?))
}

/// `FUSE_INTERRUPT`: who waits for the request with the number that follows the head has been sent a signal.
pub const INTERRUPT: u32 = 36;

/// The request that an interrupt is about.
pub fn interrupted(message: &[u8]) -> Option<u64> {
    let is_one = opcode(message) == Some(INTERRUPT);
    let of = message.get(REQUEST_HEAD_BYTES..REQUEST_HEAD_BYTES + 8)?;
    Some(u64::from_le_bytes(of.try_into().ok()?)).filter(|_| is_one)
}

/// Whether the kernel waits for a reply to this request.
pub fn is_answered(message: &[u8]) -> bool {
    !matches!(opcode(message), Some(INTERRUPT | 2 | 42))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_one_of_a_message() {
        let least = REQUEST_HEAD_BYTES;
        for (bytes, length_) in
            [(40, Some(40)), (39, None), (MAX_MESSAGE_BYTES, Some(MAX_MESSAGE_BYTES)), (MAX_MESSAGE_BYTES + 1, None)]
        {
            assert_eq!(length(u32::try_from(bytes).unwrap().to_le_bytes(), least), length_);
        }
    }

    #[test]
    fn an_interrupt_names_what_it_interrupts() {
        let mut message = vec![0; 48];
        message[40] = 7;
        assert_eq!(interrupted(&message), None);
        message[4] = 36;
        assert_eq!((interrupted(&message), is_answered(&message)), (Some(7), false));
        assert_eq!(interrupted(&message[..47]), None);
    }
}
