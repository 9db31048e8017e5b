//! The host's end of the control channel: a virtio-serial device, or the pipes that a container has for standard streams.
//!
//! The device is read without spinning while no host is connected. Such a port is never "not ready": with no host on the other side it reports a hang-up and reads as empty for as long as that
//! lasts, so level-triggered waiting would spin. The driver wakes its waiters when bytes come and when a host connects, and
//! edge-triggered epoll turns exactly these wake-ups into events.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use firkin_wire::control::PORT_NAME;
use fs_err::os::unix::fs::OpenOptionsExt;
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

use super::ControlError;

/// How long one answer may wait for the host to take it. The host asks again after a reconnect, so a lost answer is cheap,
/// and a blocked thread would not hear it.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// How often a blocked write looks again; waking dirties pages, so not often.
const WRITE_PAUSE_MS: u16 = 50;

/// The open port.
#[derive(Debug)]
pub(super) struct Port {
    input: File,
    output: File,
    ready: Ready,
}

/// How one waits for it.
#[derive(Debug)]
enum Ready {
    /// For the events of a virtio-serial port.
    Port(Epoll),
    /// For a level, which pipes have.
    Pipes,
}

impl Port {
    /// Finds and opens the port of our name.
    pub(super) fn open() -> Result<Self, ControlError> {
        let path = find().ok_or(ControlError::NoPort { name: PORT_NAME })?;
        let open = || -> io::Result<Self> {
            let file = fs_err::OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags((OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits())
                .open(path)?
                .into_file();
            let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            ready.add(&file, EpollEvent::new(interest, 0))?;
            Ok(Self { output: file.try_clone()?, input: file, ready: Ready::Port(ready) })
        };
        open().map_err(ControlError::Open)
    }

    /// Takes standard input and standard output, two pipes that the host keeps open, and leaves nothing to read and to write in
    /// their place for whoever this process starts.
    pub(super) fn of_standard_streams() -> Result<Self, ControlError> {
        let take = || -> io::Result<Self> {
            let null = fs_err::OpenOptions::new().read(true).write(true).open("/dev/null")?;
            let input = pipe(rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?)?;
            let output = pipe(rustix::io::fcntl_dupfd_cloexec(io::stdout(), 3)?)?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            Ok(Self { input, output, ready: Ready::Pipes })
        };
        take().map_err(ControlError::Open)
    }

    /// Waits for bytes, however long that takes. Never returns 0.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                // Pipes are held open by those who started this process. Nobody is left.
                Ok(0) if matches!(self.ready, Ready::Pipes) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => return other,
            }
            self.wait(&self.input, PollFlags::POLLIN, None)?;
        }
    }

    /// Writes all of `frame`, or fails after [`WRITE_LIMIT`].
    pub(super) fn write(&mut self, mut frame: &[u8]) -> io::Result<()> {
        let deadline = Instant::now() + WRITE_LIMIT;
        while !frame.is_empty() {
            match self.output.write(frame) {
                Ok(count) => frame = &frame[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.wait(&self.output, PollFlags::POLLOUT, Some(WRITE_PAUSE_MS))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait(&self, end: &File, level: PollFlags, timeout_ms: Option<u16>) -> io::Result<()> {
        let waited = match &self.ready {
            Ready::Port(events) => {
                let timeout = timeout_ms.map_or(EpollTimeout::NONE, EpollTimeout::from);
                events.wait(&mut [EpollEvent::empty()], timeout)
            }
            Ready::Pipes => {
                let timeout = timeout_ms.map_or(PollTimeout::NONE, PollTimeout::from);
                poll(&mut [PollFd::new(end.as_fd(), level)], timeout)
                    .and_then(|found| usize::try_from(found).map_err(|_| Errno::EINVAL))
            }
        };
        match waited {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// One end of a pipe, which never holds its reader or writer up.
fn pipe(fd: OwnedFd) -> io::Result<File> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(fd.into())
}

/// The device node of our port: by the link that udev makes, else by the names that the kernel shows.
fn find() -> Option<PathBuf> {
    let link = PathBuf::from("/dev/virtio-ports").join(PORT_NAME);
    if link.exists() {
        return Some(link);
    }
    for entry in fs_err::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs_err::read_to_string(entry.path().join("name")).unwrap_or_default();
        let node = PathBuf::from("/dev").join(entry.file_name());
        if name.trim_end() == PORT_NAME && fs_err::metadata(&node).is_ok_and(|found| found.file_type().is_char_device()) {
            return Some(node);
        }
    }
    None
}
