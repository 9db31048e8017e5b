//! Guests without machines, so that the examples run anywhere: an agent for the fake engine, and an envd on the host's loopback.
//!
//! Such a guest has one file. `append TEXT` writes to it and `show` prints it; both live in the guest's memory, which the fake
//! engine carries through snapshots as a real one does.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use buffa::Message as _;
use bytes::Bytes;
use firkin_engine::{
    BootFile, BootFiles,
    fake::{Connection, FakeEngine, Guest},
};
use firkin_runtime::{config::GuestSystem, network::NetworkChoice};
use firkin_wire::{
    ENVD_PORT,
    control::{self, Answer, Call, Decoder, GENERATION, encode},
    envd::process::{
        __buffa::oneof::{process_event::Event, process_event::data_event::Output},
        ProcessEvent, StartRequest, StartResponse,
        process_event::{DataEvent, EndEvent},
    },
    headers::ACCESS_TOKEN,
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Guests by the token that their envd demands. Templates have none.
type Guests = Arc<Mutex<HashMap<Option<String>, Guest>>>;

fn lock(guests: &Guests) -> MutexGuard<'_, HashMap<Option<String>, Guest>> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An engine of such guests, and the network that leads to them. Served until the runtime of Tokio ends.
pub(crate) async fn guests() -> io::Result<(FakeEngine, NetworkChoice)> {
    let guests = Guests::default();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let ports = BTreeMap::from([(ENVD_PORT, listener.local_addr()?.port())]);
    let envd = Arc::clone(&guests);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&envd)));
        }
    });
    let engine = FakeEngine::with_agent(move |connection| agent(connection, Arc::clone(&guests)));
    Ok((engine, NetworkChoice::LoopbackPorts(ports)))
}

/// Files that stand for a kernel, an initial RAM file system and a root image.
pub(crate) fn guest_system(dir: &Path) -> io::Result<GuestSystem> {
    let file = |name: &str| -> io::Result<PathBuf> {
        let path = dir.join(name);
        fs_err::write(&path, name)?;
        Ok(path)
    };
    Ok(GuestSystem {
        boot: BootFiles::new(
            BootFile { path: file("kernel")?, digest: "kernel".into() },
            BootFile { path: file("initrd")?, digest: "initrd".into() },
        ),
        rootfs: file("rootfs")?,
        rootfs_digest: "rootfs".into(),
        rootfs_bytes: 1 << 30,
    })
}

/// Answers on the control channel: it takes every identity, and is always ready.
async fn agent(connection: Connection, guests: Guests) {
    let Connection { mut stream, guest } = connection;
    let (mut decoder, mut buffer) = (Decoder::default(), vec![0; 64 << 10]);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        decoder.push(&buffer[..read]);
        while let Some(control::Request { id, call, .. }) = decoder.next() {
            let answer = match call {
                Call::Hello => Answer::Hello { generation: GENERATION, version: "stand-in".into(), epoch: 0, envd_ready: true },
                Call::Resume(identity) => {
                    lock(&guests).insert(identity.access_token, guest.clone());
                    Answer::Resumed { epoch: identity.epoch, clock_behind_ns: 0, volumes: None }
                }
                Call::Sync | Call::Shrink => Answer::Done,
                Call::Stats | Call::PowerOff => Answer::Failed { message: "a stand-in cannot do that".into() },
            };
            let Ok(frame) = encode(&control::Response { id, answer, proof: None }) else { return };
            if stream.write_all(&frame).await.is_err() {
                return;
            }
        }
    }
}

async fn serve(stream: TcpStream, guests: Guests) {
    let service = service_fn(move |request| start(request, Arc::clone(&guests)));
    // A client that hangs up early is no concern of the guest's.
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
}

/// `process.Process/Start` of envd: a Connect stream of what the command wrote and how it ended.
async fn start(request: Request<Incoming>, guests: Guests) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = request.headers().get(ACCESS_TOKEN).and_then(|token| token.to_str().ok()).map(str::to_owned);
    let guest = lock(&guests).get(&token).cloned();
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    // A Connect envelope is a byte of flags and four of length.
    let script = StartRequest::decode_from_slice(body.get(5..).unwrap_or_default())
        .ok()
        .and_then(|request| request.process.into_option()?.args.pop())
        .unwrap_or_default();
    let (exit_code, output) = guest.map_or((127, "no such guest\n".to_owned()), |guest| run(&guest, &script));
    let data = DataEvent { output: Some(Output::Stdout(output.into_bytes())), ..Default::default() };
    let end = EndEvent { exit_code, exited: true, ..Default::default() };
    let mut stream = Vec::new();
    for event in [Event::from(data), Event::from(end)] {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        envelope(&mut stream, 0, &StartResponse { event: event.into(), ..Default::default() }.encode_to_vec());
    }
    envelope(&mut stream, 2, b"{}");
    let mut response = Response::new(Full::from(stream));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/connect+proto"));
    Ok(response)
}

fn envelope(stream: &mut Vec<u8>, flags: u8, message: &[u8]) {
    stream.push(flags);
    stream.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    stream.extend(message);
}

/// The whole of the guest's shell.
fn run(guest: &Guest, script: &str) -> (i32, String) {
    let mut file = String::from_utf8_lossy(&guest.memory()).into_owned();
    match script.split_once(' ').unwrap_or((script, "")) {
        ("append", text) => {
            file += text;
            file += "\n";
            guest.remember(file);
            (0, String::new())
        }
        ("show", _) => (0, file),
        (other, _) => (127, format!("{other}: command not found\n")),
    }
}
