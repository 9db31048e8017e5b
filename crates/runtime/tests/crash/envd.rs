//! An envd for the guests of a host under test: it takes every file, and every command ends well and has said the same.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, time::Duration};

use buffa::Message as _;
use bytes::Bytes;
use firkin_runtime::network::NetworkChoice;
use firkin_wire::{
    ENVD_PORT,
    envd::process::{
        __buffa::oneof::{process_event::Event, process_event::data_event::Output},
        ProcessEvent, StartRequest, StartResponse,
        process_event::{DataEvent, EndEvent},
    },
};
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// A command that takes so long that a build keeps what came of it. Only in a runtime of one thread, whose clock can be moved.
pub(crate) const LONG: &str = "long";

/// How long that is.
const LONG_TIME: Duration = Duration::from_secs(10);

/// What every command says: to a build that asks where to copy something, the owner and that it is a directory.
const SAID: &[u8] = b"1000 1000 yes";

/// The network that leads to it. Served until the runtime of Tokio ends.
pub(crate) async fn serve() -> NetworkChoice {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let ports = BTreeMap::from([(ENVD_PORT, listener.local_addr().unwrap().port())]);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            // A client that hangs up early is no concern of the guest's.
            tokio::spawn(async { connection.await.ok() });
        }
    });
    NetworkChoice::LoopbackPorts(ports)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_file = request.uri().path() == "/files";
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if is_file {
        return Ok(Response::new(Full::default()));
    }
    // A Connect envelope is a byte of flags and four of length.
    let request = StartRequest::decode_from_slice(body.get(5..).unwrap_or_default()).unwrap_or_default();
    if request.process.args.last().is_some_and(|script| script == LONG) {
        tokio::time::pause();
        tokio::time::advance(LONG_TIME).await;
        tokio::time::resume();
    }
    let data = DataEvent { output: Some(Output::Stdout(SAID.to_vec())), ..Default::default() };
    let end = EndEvent { exit_code: 0, exited: true, ..Default::default() };
    let mut stream = Vec::new();
    for event in [Event::from(data), Event::from(end)] {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        envelope(&mut stream, 0, &StartResponse { event: event.into(), ..Default::default() }.encode_to_vec());
    }
    envelope(&mut stream, 2, b"{}");
    let mut response = Response::new(Full::from(stream));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/connect+proto"));
    Ok(response)
}

fn envelope(stream: &mut Vec<u8>, flags: u8, message: &[u8]) {
    stream.push(flags);
    stream.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    stream.extend(message);
}
