//! Work inside other network namespaces, never on a thread that does anything else.
//!
//! `setns` and `unshare` change the calling *thread*. A thread of the async runtime that came back in the wrong namespace
//! would quietly open sockets in some guest's network, so two kinds of thread of our own do it instead: one that is made
//! for a single job and ends with it ([`on_own_thread`]), and one that only ever opens TCP sockets ([`SocketOpener`]), which
//! answers in some ten microseconds where a new thread takes five times that.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::sched::{CloneFlags, setns, unshare};
use tokio::{
    net::TcpSocket,
    sync::{mpsc, oneshot},
};

/// `lo` is the first interface of every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// The calling thread's network namespace.
pub(super) fn current() -> io::Result<OwnedFd> {
    Ok(fs_err::File::open("/proc/thread-self/ns/net")?.into_parts().0.into())
}

/// Moves the calling thread into `netns`.
pub(super) fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Moves the calling thread into a new, empty network namespace.
pub(super) fn enter_new() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// The thread that did a job is gone without an answer: it panicked, or could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the thread for the job did not answer")]
pub struct ThreadLost(#[source] pub(super) Option<io::Error>);

/// Runs `job` on a thread that ends with it, so it may change namespaces at will.
///
/// When the returned future is dropped, the job still runs to its end and its result is dropped there: what it made must be
/// guards.
pub(super) async fn on_own_thread<T, E>(job: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, E>
where
    T: Send + 'static,
    E: From<ThreadLost> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new()
        .name("firkin-netns".into())
        .spawn(move || {
            // An error means that nobody waits any more; the value is dropped here, which is what its guards are for.
            drop(answer.send(job()));
        })
        .map_err(|source| ThreadLost(Some(source)))?;
    answered.await.map_err(|_| ThreadLost(None))?
}

/// Runs an async `job` to its end on the calling thread, which is one of [`on_own_thread`]'s. Sockets that it opens belong to
/// the namespace that the thread is in at that moment.
pub(super) fn block_on<T>(job: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(job))
}

struct Opening {
    netns: Arc<OwnedFd>,
    answer: oneshot::Sender<io::Result<TcpSocket>>,
}

/// Requests that may wait for the opener thread. Each takes some ten microseconds; beyond this, callers wait to be let in.
const OPENER_QUEUE: usize = 64;

/// A thread that opens TCP sockets in given namespaces. It ends when the last clone is dropped.
#[derive(Clone)]
pub(super) struct SocketOpener(mpsc::Sender<Opening>);

impl fmt::Debug for SocketOpener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocketOpener")
    }
}

impl SocketOpener {
    /// Starts the thread; `home` is where it waits between jobs, so that it keeps no slot's namespace alive.
    pub(super) fn start(home: Arc<OwnedFd>) -> io::Result<Self> {
        let (requests, mut queue) = mpsc::channel::<Opening>(OPENER_QUEUE);
        std::thread::Builder::new().name("firkin-sockets".into()).spawn(move || {
            while let Some(Opening { netns, answer }) = queue.blocking_recv() {
                let socket = enter(netns.as_fd()).and_then(|()| TcpSocket::new_v4());
                drop(netns);
                if let Err(error) = enter(home.as_fd()) {
                    tracing::error!(%error, "cannot return to the host's network namespace; no further guest connections");
                    return;
                }
                // The caller may have given up; then the socket closes here.
                drop(answer.send(socket));
            }
        })?;
        Ok(Self(requests))
    }

    /// A TCP socket in `netns`, not yet connected.
    pub(super) async fn open(&self, netns: Arc<OwnedFd>) -> io::Result<TcpSocket> {
        let (answer, answered) = oneshot::channel();
        let lost = || io::Error::other(ThreadLost(None));
        self.0.send(Opening { netns, answer }).await.map_err(|_| lost())?;
        answered.await.map_err(|_| lost())?
    }
}
