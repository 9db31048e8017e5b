//! `firkin sandbox port-forward` against a scripted server: no connection outlives the program in the sandbox.
#![expect(clippy::unwrap_used, reason = "a helper that cannot help ends the test")]

use std::{
    convert::Infallible,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

const SANDBOX: &str = r#"{"templateID":"t","sandboxID":"i1","clientID":"c","startedAt":"2026-01-01T00:00:00Z",
    "endAt":"2026-01-01T00:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"state":"running","envdVersion":"0.6.13",
    "envdAccessToken":"secret","domain":null}"#;

/// `StartResponse { event: { start: { pid: 7 } } }` and `{ event: { data: { stdout: "x" } } }`, as the first messages of a stream.
const STARTED: &[u8] = &[0, 0, 0, 0, 6, 0x0a, 4, 0x0a, 2, 8, 7, 0, 0, 0, 0, 7, 0x0a, 5, 0x12, 3, 0x0a, 1, b'x'];

/// Any wait of this test.
const DEADLINE: Duration = Duration::from_secs(60);

/// The last part of a request's path, and whether what it starts is to end with its stream.
type Asked = (String, bool);

async fn serve(listener: TcpListener, asked: mpsc::UnboundedSender<Asked>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let asked = asked.clone();
        let service = service_fn(move |request| answer(request, asked.clone()));
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that hangs up is no failure of the server.
            drop(server.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    asked: mpsc::UnboundedSender<Asked>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let is_tied = request.headers().contains_key("firkin-ends-with-stream");
    asked.send((method.clone(), is_tied)).unwrap();
    let (kind, body) = match method.as_str() {
        "i1" => ("application/json", BoxBody::new(Full::from(SANDBOX))),
        "Start" => {
            let first = stream::once(async { Ok(Frame::data(Bytes::from_static(STARTED))) });
            ("application/connect+proto", BoxBody::new(StreamBody::new(first.chain(stream::pending()))))
        }
        _ => ("application/proto", BoxBody::new(Full::default())),
    };
    drop(request.into_body().collect().await);
    Ok(Response::builder().header("content-type", kind).body(body).unwrap())
}

fn forward(state_dir: &std::path::Path) -> (Child, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_firkin"))
        .args(["--json", "sandbox", "port-forward", "i1", "0:80"])
        .env("FIRKIN_STATE_DIR", state_dir)
        .env_remove("E2B_API_KEY")
        .env_remove("E2B_API_URL")
        .env_remove("E2B_SANDBOX_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let told: serde_json::Value = serde_json::from_str(&line).unwrap();
    (child, told["address"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_carries_a_connection_ends_when_the_command_is_told_to() {
    use nix::sys::signal::Signal::{SIGINT, SIGTERM};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut asked) = mpsc::unbounded_channel();
    let server = tokio::spawn(serve(listener, sender));
    let state_dir = tempfile::tempdir().unwrap();
    fs_err::write(state_dir.path().join("server.json"), format!(r#"{{"url":"http://{address}","pid":1}}"#)).unwrap();
    fs_err::write(state_dir.path().join("api-key"), "e2b_0123\n").unwrap();
    let mut next = async || timeout(DEADLINE, asked.recv()).await.expect("the server is asked in time").unwrap();
    for signal in [SIGINT, SIGTERM] {
        let (mut child, here) = forward(state_dir.path());
        assert_eq!(next().await.0, "i1");
        let mut connection = TcpStream::connect(here).await.unwrap();
        assert_eq!(next().await, ("Start".to_owned(), true), "killed by the sandbox where nobody can ask it to end");
        let mut said = [0];
        timeout(DEADLINE, connection.read_exact(&mut said)).await.unwrap().unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        assert_eq!(next().await.0, "SendSignal");
        let ended = tokio::task::spawn_blocking(move || child.wait());
        assert!(timeout(DEADLINE, ended).await.unwrap().unwrap().unwrap().success());
        drop(connection);
    }
    server.abort();
}
