//! A relay before a server, which breaks off, answers itself or is not there, as a test says.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::AbortHandle,
};

/// What happens to connections.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    None,
    /// Each is cut after the client sent so much, so often.
    CutAfter {
        sent: u64,
        times: u32,
    },
    /// Each is cut after the client received so much.
    CutReceived {
        received: u64,
    },
    /// Each is closed at once.
    Refuse,
    /// Each request is answered so, whatever it is.
    Answer(&'static str, &'static str),
}

struct State {
    fault: Fault,
    cuts: u32,
    sent: u64,
}

pub(crate) struct Breaking {
    state: Arc<Mutex<State>>,
    port: u16,
    accepting: AbortHandle,
}

impl Drop for Breaking {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Breaking {
    pub(crate) async fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { fault: Fault::None, cuts: 0, sent: 0 }));
        let seen = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // It ends with either of its ends.
                drop(tokio::spawn(serve(client, port, Arc::clone(&seen))));
            }
        });
        Self { state, port: own, accepting: accepting.abort_handle() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// From now on, also for connections that are open. What was counted is forgotten.
    pub(crate) fn fault(&self, fault: Fault) {
        *self.state.lock().unwrap() = State { fault, cuts: 0, sent: 0 };
    }

    pub(crate) fn cuts(&self) -> u32 {
        self.state.lock().unwrap().cuts
    }

    pub(crate) fn sent(&self) -> u64 {
        self.state.lock().unwrap().sent
    }
}

async fn serve(mut client: TcpStream, port: u16, state: Arc<Mutex<State>>) {
    let fault = state.lock().unwrap().fault;
    match fault {
        Fault::Refuse => return,
        Fault::Answer(status, body) => return answer(&mut client, status, body).await,
        Fault::None | Fault::CutAfter { .. } | Fault::CutReceived { .. } => {}
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // Either of them that ends takes both connections with it.
    tokio::select! {
        () = pass(from_client, to_server, |passed, bytes| goes_on(&state, passed, bytes, true)) => {}
        () = pass(from_server, to_client, |passed, bytes| goes_on(&state, passed, bytes, false)) => {}
    }
}

/// Whether a connection that passed so much in this direction, and so much just now, goes on.
fn goes_on(state: &Mutex<State>, passed: u64, bytes: u64, sent: bool) -> bool {
    let mut state = state.lock().unwrap();
    if sent {
        state.sent += bytes;
    }
    let cut = match state.fault {
        Fault::None => false,
        Fault::CutAfter { sent: after, times } => sent && passed > after && state.cuts < times,
        Fault::CutReceived { received } => !sent && passed > received,
        Fault::Refuse | Fault::Answer(..) => true,
    };
    state.cuts += u32::from(cut);
    !cut
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, goes_on: impl Fn(u64, u64) -> bool) {
    let (mut buffer, mut passed) = (vec![0; 64 << 10], 0);
    while let Ok(bytes) = from.read(&mut buffer).await {
        passed += bytes as u64;
        if bytes == 0 || !goes_on(passed, bytes as u64) || to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
    }
}

/// Reads a request with its body, which is short here, and answers it.
async fn answer(client: &mut TcpStream, status: &str, body: &str) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let head = request.windows(4).position(|end| end == b"\r\n\r\n");
        if let Some(head) = head {
            let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if request.len() >= head + 4 + length.unwrap_or(0) {
                break;
            }
        }
        match client.read(&mut buffer).await {
            Ok(bytes) if bytes > 0 => request.extend_from_slice(&buffer[..bytes]),
            Ok(_) | Err(_) => return,
        }
    }
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    // Who is gone needs no answer.
    drop(client.write_all(answer.as_bytes()).await);
}
