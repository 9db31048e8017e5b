//! Ports of sandboxes through a node that does not have them: whole bodies, streams both ways, switches of protocols, and cuts.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest as _};

use crate::bench::{Bench, DEADLINE};

const MIB: usize = 1 << 20;

type Answered = Result<Response<BoxBody<Bytes, hyper::Error>>, hyper::Error>;

/// A guest's server in HTTP/1.1.
async fn guest<F>(answer: impl Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static) -> u16
where
    F: Future<Output = Answered> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .max_headers(4096)
                .max_buf_size(1 << 20)
                .serve_connection(TokioIo::new(stream), service_fn(answer.clone()));
            // A client that hangs up is no failure of this one.
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    port
}

fn whole(bytes: impl Into<Bytes>) -> Answered {
    Ok(Response::new(Full::new(bytes.into()).map_err(|never| match never {}).boxed()))
}

#[tokio::test]
async fn a_port_answers_through_any_node_as_it_does_at_home() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let port = guest(async |request: Request<Incoming>| {
        let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let mut answer = whole([head.as_bytes(), &vec![b'x'; MIB]].concat())?;
        answer.headers_mut().insert("x-firkin-misdirected", "b".parse().unwrap());
        answer.headers_mut().insert("x-firkin-visited", "1".parse().unwrap());
        answer.headers_mut().insert("x-own", "kept".parse().unwrap());
        Ok(answer)
    })
    .await;
    let id = a.create("").await;
    let asked = bench.map.asked();
    for round in 0..3 {
        let mut request = b.get_guest(&id, port, &format!("/p?q={round}"));
        request.headers_mut().insert("x-api-key", "the guest's own".parse().unwrap());
        request.headers_mut().insert("x-firkin-identity", "{}".parse().unwrap());
        let answer = b.answer(request).await.expect(200);
        let text = answer.body.as_str().unwrap();
        assert!(text.len() > MIB && text.ends_with("xxxx"), "{}", text.len());
        assert!(text.starts_with(&format!("GET /p?q={round} ")) && text.contains("the guest's own"), "{}", &text[..200]);
        assert!(!text.contains("x-firkin-"), "what nodes tell each other is not for guests: {}", &text[..900]);
        assert_eq!((answer.header("x-firkin-node"), answer.header("x-own")), ("a", "kept"));
        assert!(!answer.headers.contains_key("x-firkin-misdirected") && !answer.headers.contains_key("x-firkin-visited"));
    }
    assert_eq!(bench.map.asked(), asked + 1, "where it is was asked for once");
    // By host name, and what the home says of a port where nobody listens.
    let by_host = Request::builder().uri("/").header("host", format!("{port}-{id}.e2b.test")).body(Full::<Bytes>::default());
    b.answer(by_host.unwrap()).await.expect(200);
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = b.answer(b.get_guest(&id, held.local_addr().unwrap().port(), "/")).await.expect(502);
    assert_eq!(closed.text("/message"), "The sandbox is running but port is not open");
    bench.stop().await;
}

#[tokio::test]
async fn a_private_port_stays_private_through_another_node_from_the_moment_on() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let port = guest(async |_| whole("in")).await;
    let id = a.create(r#","network":{"allowPublicTraffic":false}"#).await;
    let refused = b.answer(b.get_guest(&id, port, "/")).await.expect(403);
    assert!(refused.text("/message").contains("e2b-traffic-access-token"));
    let token = b.call("POST", &format!("/v2/sandboxes/{id}/connect"), r#"{"timeout":60}"#).await.expect(200);
    let mut request = b.get_guest(&id, port, "/");
    request.headers_mut().insert("e2b-traffic-access-token", token.text("/trafficAccessToken").parse().unwrap());
    b.answer(request).await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn a_large_upload_waits_for_its_guest_and_arrives_whole() {
    const PIECE: usize = 64 << 10;
    const PIECES: usize = 64 * MIB / PIECE;
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let reads = Arc::new(Notify::new());
    let may_read = Arc::clone(&reads);
    let port = guest(move |request: Request<Incoming>| {
        let may_read = Arc::clone(&may_read);
        async move {
            may_read.notified().await;
            let (mut body, mut digest, mut bytes) = (request.into_body(), Sha256::new(), 0);
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    digest.update(&data);
                    bytes += data.len();
                }
            }
            whole(format!("{bytes} {:x}", digest.finalize()))
        }
    })
    .await;
    let id = a.create("").await;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let pieces = futures::stream::iter(0..PIECES).map(move |number| {
        counted.fetch_add(PIECE, Ordering::SeqCst);
        Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![u8::try_from(number % 251).unwrap(); PIECE])))
    });
    let upload = b.guest(&id, port, "/").method("POST").body(StreamBody::new(pieces)).unwrap();
    let mut asking = Box::pin(b.answer(upload));
    // It goes on for as long as somebody on the way takes something; nobody may take what nobody reads.
    let mut before = usize::MAX;
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(500));
    while before != sent.load(Ordering::SeqCst) || before == 0 {
        before = sent.load(Ordering::SeqCst);
        looks.reset();
        tokio::select! {
            _ = looks.tick() => {}
            answer = &mut asking => panic!("nobody has read it: {answer:?}"),
        }
    }
    assert!(before < 40 * MIB, "{before} bytes are on the way");
    reads.notify_one();
    let answer = timeout(DEADLINE, asking).await.unwrap().expect(200);
    let mut digest = Sha256::new();
    for number in 0..PIECES {
        digest.update(vec![u8::try_from(number % 251).unwrap(); PIECE]);
    }
    assert_eq!(answer.body, format!("{} {:x}", 64 * MIB, digest.finalize()));
    bench.stop().await;
}

#[tokio::test]
async fn streams_go_both_ways_at_once() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    // As a shell does: what is typed comes back before anything else is typed.
    let port = guest(async |request: Request<Incoming>| Ok(Response::new(request.into_body().boxed()))).await;
    let id = a.create("").await;
    let (keys, typed) = mpsc::channel::<Bytes>(1);
    let body = futures::stream::unfold(typed, async |mut typed| {
        typed.recv().await.map(|key| (Ok::<_, std::io::Error>(Frame::data(key)), typed))
    });
    let request = b.guest(&id, port, "/").method("POST").body(StreamBody::new(Box::pin(body))).unwrap();
    keys.send(Bytes::from_static(b"l")).await.unwrap();
    let mut response = b.send(request).await;
    for key in ["l", "s", "\n"] {
        if key != "l" {
            keys.send(key.into()).await.unwrap();
        }
        let frame = timeout(DEADLINE, response.frame()).await.expect("it comes back at once").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), key);
    }
    drop(keys);
    assert!(timeout(DEADLINE, response.frame()).await.expect("it ends").is_none(), "and ends in order");
    bench.stop().await;
}

#[tokio::test]
async fn a_websocket_goes_through_another_node() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.unwrap();
            }
        }
    });
    let id = a.create("").await;
    let mut request = format!("ws://{}/shell", b.address).into_client_request().unwrap();
    request.headers_mut().insert("e2b-sandbox-id", id.parse().unwrap());
    request.headers_mut().insert("e2b-sandbox-port", port.into());
    let stream = TcpStream::connect(b.address).await.unwrap();
    let (mut socket, head) = timeout(DEADLINE, tokio_tungstenite::client_async(request, stream)).await.unwrap().unwrap();
    assert_eq!(head.headers()["x-firkin-node"], "a");
    for message in [Message::text("ls"), Message::binary(vec![7; MIB])] {
        socket.send(message.clone()).await.unwrap();
        let back = timeout(DEADLINE, socket.next()).await.expect("an echo in time").unwrap().unwrap();
        assert!(back == message);
    }
    socket.close(None).await.unwrap();
    timeout(DEADLINE, echo).await.expect("its guest hears of it").unwrap();
    bench.stop().await;
}

/// A guest's server that answers with a head and a first piece, then keeps the stream open.
async fn streaming_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                if stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n";
                    stream.write_all(answer).await.unwrap();
                }
                // Held open until the other side closes.
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    port
}

#[tokio::test]
async fn a_cut_at_home_is_a_cut_for_the_client_of_another_node() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let port = streaming_port().await;
    for agent in ["curl/8.5.0", "e2b-python-sdk/2.20.0"] {
        let id = a.create("").await;
        let mut stream = TcpStream::connect(b.address).await.unwrap();
        let head = format!(
            "GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: {agent}\r\ne2b-sandbox-id: {id}\r\ne2b-sandbox-port: {port}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        while !got.ends_with(b"first\r\n") {
            let read = timeout(DEADLINE, stream.read_buf(&mut got)).await.expect("the first piece").unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&got));
        }
        a.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
        let end = timeout(DEADLINE, stream.read_to_end(&mut got)).await.expect("the stream is cut");
        if agent.starts_with("curl") {
            assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        } else {
            // Those that know no reset get an early end, and no last chunk.
            end.unwrap();
            assert!(got.ends_with(b"first\r\n"), "{}", String::from_utf8_lossy(&got));
        }
    }
    bench.stop().await;
}

#[tokio::test]
async fn a_client_of_http_2_reaches_any_sandbox_too() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let port = guest(async |request: Request<Incoming>| {
        let host = request.headers()["host"].to_str().unwrap().to_owned();
        let body = request.into_body().collect().await?.to_bytes();
        whole([host.as_bytes(), b" ", &body].concat())
    })
    .await;
    let id = a.create("").await;
    let stream = TcpStream::connect(b.address).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let authority = format!("{port}-{id}.e2b.test");
    for body in ["", "ls"] {
        let request = Request::post(format!("http://{authority}/p")).body(Full::new(Bytes::from(body))).unwrap();
        let response = timeout(DEADLINE, sender.send_request(request)).await.expect("an answer in time").unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["x-firkin-node"]), (200, &"a".parse().unwrap()));
        let body = format!("{authority} {body}");
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
    }
    let detail = Request::get(format!("http://{}/sandboxes/{id}", b.address)).header("x-api-key", &b.key);
    let response = timeout(DEADLINE, sender.send_request(detail.body(Full::default()).unwrap())).await.unwrap().unwrap();
    assert_eq!(response.status().as_u16(), 200);
    bench.stop().await;
}

#[tokio::test]
async fn as_long_a_head_goes_through_another_node_as_goes_through_one() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    // With those that a request has of itself, as many as may be; and so many of an answer.
    let most = firkin_wire::head::MAX_HEADERS - 3;
    let port = guest(move |request: Request<Incoming>| async move {
        let mut answer = whole(request.headers().len().to_string())?;
        for number in 0..most {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            answer.headers_mut().insert(name, "v".parse().unwrap());
        }
        Ok(answer)
    })
    .await;
    let id = a.create("").await;
    for node in [a, b] {
        let mut request = node.get_guest(&id, port, "/");
        for number in 0..most {
            let name: http::HeaderName = format!("x-{number}").parse().unwrap();
            request.headers_mut().insert(name, "v".parse().unwrap());
        }
        let answer = node.answer_of_many(request).await.expect(200);
        assert!(answer.body.as_u64().is_some_and(|seen| seen >= most as u64), "{:?}", answer.body);
        assert!(answer.headers.len() >= most, "{}", answer.headers.len());
    }
    bench.stop().await;
}
