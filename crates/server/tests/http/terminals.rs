//! The terminal of a page, from both its ends: a page that speaks to the socket, and an envd that is asked for a shell.

use std::convert::Infallible;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, stream};
use http::{Request, Response};
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::{
    bench::{Bench, DEADLINE},
    ui::Browser,
};

/// `StartResponse { event: { start: { pid: 7 } } }`, as the first message of a stream.
const STARTED: &[u8] = &[0, 0, 0, 0, 6, 0x0a, 4, 0x0a, 2, 8, 7];

/// What envd was asked for: the method, and whether what it starts is to end with its stream.
type Asked = mpsc::UnboundedSender<(String, bool)>;

/// An envd whose shell takes nothing that is typed.
async fn stubborn(envd: TcpListener, asked: Asked) {
    loop {
        let (stream, _) = envd.accept().await.unwrap();
        let asked = asked.clone();
        let service = service_fn(move |request| answer(request, asked.clone()));
        // A server that hangs up is no failure of this one.
        tokio::spawn(async move {
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await)
        });
    }
}

async fn answer(request: Request<Incoming>, asked: Asked) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let is_tied = request.headers().contains_key("firkin-ends-with-stream");
    // A test that is over hears no more.
    drop(asked.send((method.clone(), is_tied)));
    let whole = request.into_body().collect().await;
    assert!(whole.is_ok());
    let (kind, body) = match method.as_str() {
        "Start" => {
            let first = stream::once(async { Ok(Frame::data(Bytes::from_static(STARTED))) });
            ("application/connect+proto", BoxBody::new(StreamBody::new(first.chain(stream::pending()))))
        }
        "SendInput" => return std::future::pending().await,
        _ => ("application/proto", BoxBody::new(StreamBody::new(stream::empty()))),
    };
    Ok(Response::builder().header("content-type", kind).body(body).unwrap())
}

#[tokio::test]
async fn a_page_that_is_gone_is_hung_up_on_at_once_though_its_shell_takes_nothing() {
    let mut bench = Bench::start().await;
    let (sender, mut asked) = mpsc::unbounded_channel();
    let envd = tokio::spawn(stubborn(bench.listen_as_envd(), sender));
    let id = bench.create("").await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let mut request = format!("ws://{}/ui/sandboxes/{id}/terminal/socket", bench.address).into_client_request().unwrap();
    request.headers_mut().insert("cookie", browser.cookie.parse().unwrap());
    request.headers_mut().insert("origin", format!("http://{}", bench.address).parse().unwrap());
    let stream = tokio::net::TcpStream::connect(bench.address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let hello = serde_json::json!({ "type": "hello", "token": browser.token, "cols": 80, "rows": 24 });
    socket.send(Message::text(hello.to_string())).await.unwrap();
    let mut next = async || timeout(DEADLINE, asked.recv()).await.expect("envd is asked in time").unwrap();
    assert_eq!(next().await, ("Start".to_owned(), true), "no shell is left, whatever becomes of the server");
    for _ in 0..20 {
        socket.send(Message::text(r#"{"type":"keys","text":"x"}"#)).await.unwrap();
    }
    assert_eq!(next().await.0, "SendInput");
    drop(socket);
    // Nothing else of what was typed is asked for, as it would be once the first is given up on.
    assert_eq!(next().await.0, "SendSignal");
    envd.abort();
    bench.stop().await;
}
