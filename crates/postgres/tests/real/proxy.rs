//! What stands between a server and its database and cuts the line in the middle of a commit.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
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
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, cut) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Option<Cut>>>::default());
        let asked = Arc::clone(&cut);
        let accepting = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                tokio::spawn(pass(near, far, Arc::clone(&asked)));
            }
        });
        Self { port, cut, accepting }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn cut_at_next(&self, cut: Cut) {
        *self.cut.lock().unwrap() = Some(cut);
    }
}

async fn pass(mut near: TcpStream, mut far: TcpStream, cut: Arc<Mutex<Option<Cut>>>) {
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    let mut ends_with_answer = false;
    loop {
        tokio::select! {
            read = near.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                if asked[..length].windows(7).any(|word| word == b"COMMIT\0") {
                    match cut.lock().unwrap().take() {
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
