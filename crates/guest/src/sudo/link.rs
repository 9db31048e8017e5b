//! What client and agent say to each other: frames of JSON with their length before them, and beside the first byte descriptors, and who
//! sends it.
//!
//! Both are one program, so nothing here has versions. Who sends is attached to what he sends, and the kernel proves it then: what
//! `SO_PEERCRED` tells is in gVisor of whoever asks, and so always root.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, UCred,
        recvmsg, sendmsg,
    },
    process::{getgid, getpid, getuid},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where the agent is asked.
pub(super) const SOCKET: &str = "/run/firkin/sudo";
/// Arguments and environment of one command are 2 MiB at most on Linux, and a byte is up to four characters here.
const MAX_FRAME_BYTES: u32 = 16 << 20;
/// Three streams, or one end of a terminal.
const MAX_DESCRIPTORS: usize = 3;
/// Room for what comes beside a frame.
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1));

/// What programs are told in: whatever is no NUL.
pub(super) type Text = Vec<u8>;

/// What to run, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// A program and its arguments. None: a shell.
    pub(super) words: Vec<Text>,
    /// What stays of the caller's environment, `NAME=value`.
    pub(super) kept: Vec<Text>,
    /// What the command line sets, likewise.
    pub(super) set: Vec<Text>,
    /// Whether all of the environment was to stay.
    pub(super) preserves: bool,
    /// Whether `HOME` is the new user's even so.
    pub(super) sets_home: bool,
    /// The caller's directory, or the one that was asked for.
    pub(super) cwd: Text,
    /// A name, or `#` and a number. None: root.
    pub(super) user: Option<String>,
    /// Likewise. None: the user's.
    pub(super) group: Option<String>,
    /// Whether a shell runs the command.
    pub(super) shell: Shell,
    /// Which of the streams are terminals.
    pub(super) terminals: [bool; 3],
    /// Columns and rows of the terminal.
    pub(super) size: (u16, u16),
}

/// Whether a shell runs a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Shell {
    #[default]
    None,
    /// The user's, or that of the caller's `SHELL`.
    Plain,
    /// The user's, as after a login.
    Login,
}

/// What the agent answers: one of these when it has tried, and how the command ended after it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// It runs. The other end of its terminal comes with this, if it has one.
    Started,
    /// It does not, for this reason.
    Refused(String),
    /// It called `exit` with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A signal that the client was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passed(pub(super) i32);

/// What comes beside frames.
#[derive(Debug, Default)]
pub(super) struct Beside {
    pub(super) descriptors: Vec<OwnedFd>,
    /// Only where the socket asks for it.
    pub(super) sender: Option<UCred>,
}

/// Sends a frame, and what goes with it.
pub(super) fn send(mut link: &UnixStream, message: &impl Serialize, beside: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).ok().filter(|length| *length <= MAX_FRAME_BYTES);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "arguments and environment are too long"))?;
    let frame = [&length.to_le_bytes()[..], &text].concat();
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let own = UCred { pid: getpid(), uid: getuid(), gid: getgid() };
    let fits = control.push(SendAncillaryMessage::ScmCredentials(own));
    if !fits || (!beside.is_empty() && !control.push(SendAncillaryMessage::ScmRights(beside))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "there are too many descriptors"));
    }
    let sent = sendmsg(link, &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)?;
    link.write_all(&frame[sent..])
}

/// Receives a frame, and what comes with it. None: there is none, and nobody to send one.
pub(super) fn receive<T: DeserializeOwned>(link: &UnixStream, beside: &mut Beside) -> io::Result<Option<T>> {
    begun(link, beside)?.map(|begun| rest(link, begun)).transpose()
}

/// A frame whose length has come, and all that comes beside it. The rest of it may be long.
#[derive(Debug)]
pub(super) struct Begun(u32);

/// Receives the beginning of a frame: who sends it is known then, and nothing of what it says.
pub(super) fn begun(mut link: &UnixStream, beside: &mut Beside) -> io::Result<Option<Begun>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(link, &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(descriptors) => beside.descriptors.extend(descriptors),
            RecvAncillaryMessage::ScmCredentials(sender) => beside.sender = Some(sender),
            _ => {}
        }
    }
    if got == 0 {
        return Ok(None);
    }
    link.read_exact(&mut length[got..])?;
    let length = u32::from_le_bytes(length);
    if length > MAX_FRAME_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
    }
    Ok(Some(Begun(length)))
}

/// Receives what is left of it.
pub(super) fn rest<T: DeserializeOwned>(link: &UnixStream, Begun(length): Begun) -> io::Result<T> {
    let mut text = Vec::new();
    link.take(u64::from(length)).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_frame_arrives_whole_and_with_its_descriptors() {
        let (one, other) = UnixStream::pair().unwrap();
        let request = Request { words: vec![b"cat".to_vec(), vec![0xff, b'\n']], size: (80, 24), ..Request::default() };
        let file = fs_err::File::open("/dev/null").unwrap();
        rustix::net::sockopt::set_socket_passcred(&other, true).unwrap();
        send(&one, &request, &[file.as_fd(), file.as_fd(), file.as_fd()]).unwrap();
        send(&one, &Passed(2), &[]).unwrap();
        drop(one);
        let mut beside = Beside::default();
        assert_eq!(receive::<Request>(&other, &mut beside).unwrap(), Some(request));
        assert_eq!((beside.descriptors.len(), beside.sender.map(|sender| sender.uid)), (3, Some(getuid())));
        assert_eq!(receive::<Passed>(&other, &mut beside).unwrap(), Some(Passed(2)));
        assert_eq!(receive::<Passed>(&other, &mut beside).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [&[0xff, 0xff, 0xff, 0xff][..], &[2, 0, 0, 0, b'x', b'y'], &[9, 0, 0, 0, b'{'], &[1, 0]] {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            assert!(receive::<Request>(&other, &mut Beside::default()).is_err(), "{bytes:?}");
        }
    }
}
