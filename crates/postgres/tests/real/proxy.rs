//! What stands between a server and its database and cuts the line: in the middle of a commit, or for good before any message.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// When it cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The database never hears of it.
    BeforeCommit,
    /// Nobody hears the database's answer.
    AfterCommit,
}

/// It passes on everything else.
pub(crate) struct Proxy {
    port: u16,
    cut: Arc<Mutex<Option<Cut>>>,
    accepting: JoinHandle<()>,
    end: watch::Receiver<bool>,
}

/// What all connections share.
#[derive(Clone)]
struct Line {
    cut: Arc<Mutex<Option<Cut>>>,
    /// Messages that are passed on before all ends.
    left: Arc<AtomicUsize>,
    end: watch::Sender<bool>,
}

impl Line {
    /// Whether the next message of a server is passed on.
    fn passes(&self) -> bool {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        self.end.send_if_modified(|ended| !left && !std::mem::replace(ended, true));
        left
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        Self::until(to, usize::MAX).await
    }

    /// One that ends every connection, and takes none any more, before the message of a server that comes after so many.
    pub(crate) async fn until(to: u16, messages: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, cut) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Option<Cut>>>::default());
        let (send, end) = watch::channel(false);
        let line = Line { cut: Arc::clone(&cut), left: Arc::new(AtomicUsize::new(messages)), end: send };
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *line.end.borrow() {
                    continue;
                }
                let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (line, mut ended) = (line.clone(), line.end.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        () = pass(near, far, line) => {}
                        _ = ended.wait_for(|ended| *ended) => {}
                    }
                });
            }
        });
        Self { port, cut, accepting, end }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Returns once it has ended all.
    pub(crate) async fn ended(&self) {
        self.end.clone().wait_for(|ended| *ended).await.unwrap();
    }

    pub(crate) fn has_ended(&self) -> bool {
        *self.end.borrow()
    }

    pub(crate) fn cut_at_next(&self, cut: Cut) {
        *self.cut.lock().unwrap() = Some(cut);
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, line: Line) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    let mut ends_with_answer = false;
    loop {
        tokio::select! {
            read = near.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if !line.passes() { return }
                if asked[..length].windows(7).any(|word| word == b"COMMIT\0") {
                    match line.cut.lock().unwrap().take() {
                        Some(Cut::BeforeCommit) => return,
                        Some(Cut::AfterCommit) => ends_with_answer = true,
                        None => {}
                    }
                }
                if far.write_all(&asked[..length]).await.is_err() { return }
            }
            read = far.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                if ends_with_answer { return }
                if near.write_all(&answered[..length]).await.is_err() { return }
            }
        }
    }
}
