//! An envd for the guests of a node: every command of a template build ends well, and `/stream` goes on for ever.

use std::{collections::BTreeMap, convert::Infallible, net::Ipv4Addr, time::Duration};

use anyhow::Context as _;
use buffa::Message as _;
use bytes::Bytes;
use firkin_runtime::network::NetworkChoice;
use firkin_wire::{
    ENVD_PORT,
    envd::process::{
        __buffa::oneof::{process_event::Event, process_event::data_event::Output},
        ProcessEvent, StartResponse,
        process_event::{DataEvent, EndEvent},
    },
};
use futures::StreamExt as _;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// What streams for as long as somebody listens.
pub(crate) const STREAM: &str = "/stream";

/// Between two parts of it.
const EVERY: Duration = Duration::from_millis(100);

/// What every command says: to a build that asks where to copy something, the owner and that it is a directory.
const SAID: &[u8] = b"1000 1000 yes";

/// The network that leads to it. Served until the process ends.
pub(crate) async fn serve() -> anyhow::Result<NetworkChoice> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("envd cannot listen")?;
    let ports = BTreeMap::from([(ENVD_PORT, listener.local_addr()?.port())]);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer));
            // A client that hangs up early is no concern of the guest's.
            tokio::spawn(async { connection.await.ok() });
        }
    });
    Ok(NetworkChoice::LoopbackPorts(ports))
}

async fn answer(request: Request<Incoming>) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Infallible> {
    let path = request.uri().path().to_owned();
    if path == STREAM {
        let turns = futures::stream::unfold((), |()| async {
            tokio::time::sleep(EVERY).await;
            Some((Ok(Frame::data(Bytes::from_static(b"."))), ()))
        });
        return Ok(Response::new(StreamBody::new(turns.boxed()).boxed_unsync()));
    }
    drop(request.into_body().collect().await);
    if path == "/files" {
        return Ok(Response::new(Full::default().boxed_unsync()));
    }
    let data = DataEvent { output: Some(Output::Stdout(SAID.to_vec())), ..Default::default() };
    let end = EndEvent { exit_code: 0, exited: true, ..Default::default() };
    let mut stream = Vec::new();
    for event in [Event::from(data), Event::from(end)] {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        envelope(&mut stream, 0, &StartResponse { event: event.into(), ..Default::default() }.encode_to_vec());
    }
    envelope(&mut stream, 2, b"{}");
    let mut response = Response::new(Full::from(stream).boxed_unsync());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/connect+proto"));
    Ok(response)
}

/// A Connect envelope is a byte of flags and four of length.
fn envelope(stream: &mut Vec<u8>, flags: u8, message: &[u8]) {
    stream.push(flags);
    stream.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    stream.extend(message);
}
