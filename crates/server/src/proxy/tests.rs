//! The proxy between real sockets: a guest is a local server, a client is hyper or plain bytes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use firkin_runtime::{
    runtime::{DialError, Dialled},
    sandbox::{NoSuchSandbox, SandboxId},
};
use futures::{SinkExt, StreamExt};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

use super::{pool::Dial, *};

const DEADLINE: Duration = Duration::from_secs(20);

/// One sandbox, `iabc`, whose ports are local ones.
#[derive(Debug, Default)]
struct Guests {
    ended: Mutex<CancellationToken>,
    gone: std::sync::atomic::AtomicBool,
    /// Whether they speak TLS.
    https: std::sync::atomic::AtomicBool,
    dials: AtomicUsize,
}

#[async_trait]
impl Dial for Guests {
    async fn dial(&self, id: &SandboxId, port: u16) -> Result<Dialled, DialError> {
        if id.as_str() != "iabc" || self.gone.load(Ordering::SeqCst) {
            return Err(NoSuchSandbox(id.clone()).into());
        }
        self.dials.fetch_add(1, Ordering::SeqCst);
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|source| DialError::PortClosed {
            id: id.clone(),
            port,
            source,
        })?;
        let ended = self.ended.lock().unwrap().clone();
        Ok(Dialled { stream, ended, leaving: CancellationToken::new(), generation: 1, https: self.https.load(Ordering::SeqCst) })
    }
}

/// A proxy on a local port, in front of `guests`.
async fn proxy() -> (SocketAddr, Arc<Guests>, Arc<ConnectionPool>) {
    let guests = Arc::new(Guests::default());
    let pool = ConnectionPool::new(Arc::clone(&guests) as Arc<dyn Dial>);
    let served = Arc::clone(&pool);
    let address = serve(move |request| {
        let pool = Arc::clone(&served);
        async move {
            use axum::response::IntoResponse;
            match crate::target::target(request.uri(), request.headers(), None) {
                Some(Ok((target, _))) => forward(&pool, target, request).await.unwrap_or_else(IntoResponse::into_response),
                Some(Err(reason)) => ProxyError::Target(reason).into_response(),
                None => panic!("these tests send data plane requests only"),
            }
        }
    })
    .await;
    (address, guests, pool)
}

/// An HTTP server on a local port. It lives as long as the test's runtime.
async fn serve<F, R>(handler: F) -> SocketAddr
where
    F: Fn(Request<Body>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let handler = handler.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = handler(request.map(Body::new));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let builder = auto::Builder::new(TokioExecutor::new());
                drop(builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await);
            });
        }
    });
    address
}

fn request(guest: SocketAddr, method: &str, path: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("Host", "localhost:3000")
        .header("E2b-Sandbox-Id", "iabc")
        .header("E2b-Sandbox-Port", guest.port().to_string())
        .body(body)
        .unwrap()
}

async fn send(proxy: SocketAddr, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(request).await;
    // The connection lives on with its response; dropping the sender only says that no second request follows.
    response
}

async fn text(body: Incoming) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Answers with what it was asked, one header a line, then the body.
async fn echo(request: Request<Body>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{} {} {:?}\n", parts.method, parts.uri, parts.version);
    let mut headers: Vec<_> =
        parts.headers.iter().map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap())).collect();
    headers.sort();
    text.extend(headers);
    text.push('\n');
    text.push_str(std::str::from_utf8(&body.collect().await.unwrap().to_bytes()).unwrap());
    Response::builder()
        .status(207)
        .header("x-guest", "yes")
        .header("connection", "x-secret")
        .header("x-secret", "1")
        .body(text.into())
        .unwrap()
}

#[tokio::test]
async fn a_request_reaches_the_guest_as_it_was_sent() {
    let (guest, (proxy, ..)) = (serve(echo).await, proxy().await);
    let mut request = request(guest, "PUT", "/a%2Fb?c=d%20e", Body::from("hello"));
    for (name, value) in [("connection", "keep-alive, x-hop"), ("x-hop", "1"), ("te", "gzip"), ("x-end", "2"), ("cookie", "k=v")]
    {
        request.headers_mut().insert(HeaderName::from_static(name), value.parse().unwrap());
    }
    let response = send(proxy, request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["x-guest"].to_str().unwrap()), (207, "yes"));
    assert!(!response.headers().contains_key("x-secret"), "what `connection` names stays on its connection");
    let port = guest.port();
    let expected = format!(
        "PUT /a%2Fb?c=d%20e HTTP/1.1\ncontent-length: 5\ncookie: k=v\ne2b-sandbox-id: iabc\ne2b-sandbox-port: {port}\n\
         host: localhost:3000\nx-end: 2\n\nhello"
    );
    assert_eq!(text(response.into_body()).await, expected);
}

#[tokio::test]
async fn names_of_headers_reach_the_guest_in_title_case() {
    // As E2B's proxy sends them: programs that read a request by themselves look for `Host:`.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.unwrap();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {read}\r\n\r\n");
        stream.write_all(&[answer.as_bytes(), &head[..read]].concat()).await.unwrap();
    });
    let (proxy, ..) = proxy().await;
    let head = text(send(proxy, request(guest, "GET", "/x", Body::empty())).await.unwrap().into_body()).await;
    assert!(head.contains("\r\nHost: localhost:3000\r\n") && head.contains("\r\nE2b-Sandbox-Id: iabc\r\n"), "{head}");
}

#[tokio::test]
async fn a_port_that_speaks_tls_is_spoken_to_in_it() {
    let (guests, proxy) = {
        let (proxy, guests, _) = proxy().await;
        (guests, proxy)
    };
    guests.https.store(true, Ordering::SeqCst);
    // Its certificate is nobody's, and for another name.
    let made = rcgen::generate_simple_self_signed(["elsewhere.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /x HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await.unwrap();
        }
    });
    let response = send(proxy, request(guest, "GET", "/x", Body::empty())).await.unwrap();
    assert_eq!(text(response.into_body()).await, "secret");

    // One that does not is told apart from one that is not there.
    let plain = serve(echo).await;
    let response = send(proxy, request(plain, "GET", "/x", Body::empty())).await.unwrap();
    assert_eq!(response.status(), 502);
    assert!(text(response.into_body()).await.contains("does not speak TLS"));
}

#[tokio::test]
async fn a_host_name_routes_and_reaches_the_guest() {
    let (guest, (proxy, ..)) = (serve(echo).await, proxy().await);
    let host = format!("{}-iabc.e2b.test:3000", guest.port());
    let request = Request::builder().uri("/x").header("Host", &host).body(Body::empty()).unwrap();
    let text = text(send(proxy, request).await.unwrap().into_body()).await;
    assert_eq!(text, format!("GET /x HTTP/1.1\nhost: {host}\n\n"));
}

#[tokio::test]
async fn http2_without_tls_is_understood() {
    let (guest, (proxy, ..)) = (serve(echo).await, proxy().await);
    let stream = TcpStream::connect(proxy).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .method("POST")
        .uri(format!("http://{}-iabc.e2b.test/x", guest.port()))
        .body(Body::from("two"))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let text = text(response.into_body()).await;
    assert!(text.starts_with("POST /x HTTP/1.1\n") && text.contains("-iabc.e2b.test\n") && text.ends_with("two"), "{text}");
}

#[tokio::test]
async fn absent_sandboxes_closed_ports_and_host_only_routes_are_told_apart() {
    let (proxy, ..) = proxy().await;
    // Bound and not listened on: it stays nobody's.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = held.local_addr().unwrap();
    let port = closed.port();
    let absent = r#"{"code":502,"message":"The sandbox was not found","sandboxId":"igone"}"#.to_owned();
    let not_open =
        format!(r#"{{"code":502,"message":"The sandbox is running but port is not open","port":{port},"sandboxId":"iabc"}}"#);
    let hidden = r#"{"code":404,"message":"no route `/%69nit/`"}"#.to_owned();
    let malformed = r#"{"code":400,"message":"header `e2b-sandbox-port` is not a port: `x`"}"#.to_owned();
    let table = [
        ("igone", "80".to_owned(), "/health", 502, absent),
        ("iabc", port.to_string(), "/", 502, not_open),
        ("iabc", "49983".to_owned(), "/%69nit/", 404, hidden),
        ("iabc", "x".to_owned(), "/", 400, malformed),
    ];
    for (id, port, path, status, body) in table {
        let request =
            Request::builder().uri(path).header("Host", "x").header("e2b-sandbox-id", id).header("e2b-sandbox-port", port);
        let response = send(proxy, request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{body}");
        assert_eq!(text(response.into_body()).await, body);
    }
}

#[tokio::test]
async fn host_only_routes_are_found_however_they_are_written() {
    for (path, hidden) in [
        ("/init", true),
        ("//init/", true),
        ("/./init", true),
        ("/%69nit", true),
        ("/INIT", true),
        ("/fsfreeze", true),
        ("/files", false),
        ("/init/x", false),
        ("/", false),
    ] {
        assert_eq!(host_only(path), hidden, "{path}");
    }
}

#[tokio::test]
async fn connections_are_used_again_until_the_sandbox_ends() {
    let (guest, (proxy, guests, _pool)) = (serve(echo).await, proxy().await);
    for _ in 0..5 {
        let response = send(proxy, request(guest, "POST", "/", Body::from("x"))).await.unwrap();
        text(response.into_body()).await;
    }
    let before = guests.dials.load(Ordering::SeqCst);
    assert!(before < 5, "{before} connections for 5 requests in a row");
    let old = std::mem::take(&mut *guests.ended.lock().unwrap());
    old.cancel();
    let response = send(proxy, request(guest, "POST", "/", Body::from("x"))).await.unwrap();
    text(response.into_body()).await;
    assert_eq!(guests.dials.load(Ordering::SeqCst), before + 1, "the next life of the sandbox gets its own connection");
}

#[tokio::test]
async fn a_dead_idle_connection_is_not_the_clients_problem() {
    // A guest that closes each connection after one answer without announcing it.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            assert!(stream.read(&mut head).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    });
    let (proxy, ..) = proxy().await;
    for _ in 0..20 {
        let response = send(proxy, request(guest, "GET", "/", Body::empty())).await.unwrap();
        assert_eq!((response.status().as_u16(), text(response.into_body()).await), (200, "ok".to_owned()));
    }
}

#[tokio::test]
async fn a_connection_is_used_no_more_after_a_refusal_that_left_the_body_unread() {
    // A guest that refuses by the head and goes away once it sees the next request: late, so the proxy cannot have noticed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                assert!(stream.read(&mut request).await.unwrap() > 0);
                stream.write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                while stream.read(&mut request).await.is_ok_and(|read| !request[..read].starts_with(b"POST")) {}
            });
        }
    });
    let (proxy, guests, _pool) = proxy().await;
    for turn in 1..=5 {
        let response = send(proxy, request(guest, "POST", "/", Body::from("{}"))).await.unwrap();
        assert_eq!((response.status().as_u16(), text(response.into_body()).await), (401, "no".to_owned()));
        assert_eq!(guests.dials.load(Ordering::SeqCst), turn);
    }
}

#[tokio::test]
async fn a_port_that_speaks_no_http_is_neither_closed_nor_absent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
        }
    });
    let (proxy, ..) = proxy().await;
    let response = send(proxy, request(guest, "GET", "/", Body::empty())).await.unwrap();
    assert_eq!(response.status().as_u16(), 502);
    let text = text(response.into_body()).await;
    assert!(text.contains("did not answer with HTTP") && !text.contains("not found") && !text.contains("not open"), "{text}");
}

/// A body fed by hand.
fn fed() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let frames = received(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    (sender, Body::new(StreamBody::new(frames)))
}

fn received(receiver: mpsc::Receiver<Bytes>) -> impl futures::Stream<Item = Bytes> + Send + 'static {
    futures::stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}

#[tokio::test]
async fn each_piece_passes_before_the_next_is_sent() {
    let guest = serve(async |request: Request<Body>| Response::new(request.into_body())).await;
    let (proxy, ..) = proxy().await;
    let (sender, body) = fed();
    let mut answer = send(proxy, request(guest, "POST", "/", body)).await.unwrap().into_body();
    for n in 0..10 {
        let piece = Bytes::from(format!("piece {n}"));
        sender.send(piece.clone()).await.unwrap();
        let frame = tokio::time::timeout(DEADLINE, answer.frame()).await.expect("nothing waits for more").unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(sender);
    assert!(answer.frame().await.is_none(), "the end passes too");
}

#[tokio::test]
async fn an_ended_sandbox_cuts_its_streams_and_answers_not_found() {
    let (guest_sender, body) = fed();
    let body = Arc::new(Mutex::new(Some(body)));
    let guest = serve(move |_| {
        let body = body.lock().unwrap().take();
        // The second request never gets an answer.
        async move {
            match body {
                Some(body) => Response::new(body),
                None => std::future::pending().await,
            }
        }
    })
    .await;
    let (proxy, guests, _pool) = proxy().await;
    let mut stream = send(proxy, request(guest, "GET", "/", Body::empty())).await.unwrap().into_body();
    guest_sender.send(Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(stream.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    let waiting = tokio::spawn(send(proxy, request(guest, "GET", "/", Body::empty())));
    while guests.dials.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    guests.gone.store(true, Ordering::SeqCst);
    guests.ended.lock().unwrap().cancel();
    let cut = tokio::time::timeout(DEADLINE, stream.frame()).await.expect("the stream is cut");
    assert!(cut.expect("it does not end as if it were complete").is_err());
    let answer = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(answer.status().as_u16(), 502);
    assert!(text(answer.into_body()).await.contains("The sandbox was not found"));
    let after = send(proxy, request(guest, "GET", "/health", Body::empty())).await.unwrap();
    assert!(text(after.into_body()).await.contains("The sandbox was not found"));
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_guest() {
    let (dropped, mut noticed) = mpsc::channel::<()>(1);
    let guest = serve(move |_| {
        let dropped = dropped.clone();
        async move {
            let pending = futures::stream::unfold(dropped, async |dropped| {
                std::future::pending::<()>().await;
                Some((Ok::<_, Infallible>(Frame::data(Bytes::new())), dropped))
            });
            Response::new(Body::new(StreamBody::new(pending)))
        }
    })
    .await;
    let (proxy, ..) = proxy().await;
    let response = send(proxy, request(guest, "GET", "/", Body::empty())).await.unwrap();
    drop(response);
    // The handler's own sender lives on, so a message is no sign; the stream's clone is dropped with its connection.
    let closed = tokio::time::timeout(DEADLINE, async {
        while noticed.sender_strong_count() > 1 {
            tokio::task::yield_now().await;
        }
    });
    closed.await.expect("the guest's connection is closed");
    noticed.close();
}

#[tokio::test]
async fn websockets_pass_both_ways_and_are_cut_with_the_sandbox() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guest = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() && socket.send(message).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let (proxy, guests, _pool) = proxy().await;
    let stream = TcpStream::connect(proxy).await.unwrap();
    let url = format!("ws://{}-iabc.e2b.test/socket", guest.port());
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    for n in 0..100 {
        let message = tokio_tungstenite::tungstenite::Message::text(format!("message {n}"));
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    guests.ended.lock().unwrap().cancel();
    let end = tokio::time::timeout(DEADLINE, socket.next()).await.expect("the socket is cut");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

const PIECE: usize = 64 << 10;
const PIECES: usize = 1024;

/// 64 MiB, counting how much was asked for.
fn big(counter: Arc<AtomicUsize>) -> Body {
    let piece = Bytes::from(vec![7; PIECE]);
    let frames = futures::stream::iter(0..PIECES).map(move |_| {
        counter.fetch_add(PIECE, Ordering::SeqCst);
        Ok::<_, Infallible>(Frame::data(piece.clone()))
    });
    Body::new(StreamBody::new(frames))
}

/// What sockets and hyper may buffer between two ends that do not read: well below the 64 MiB of a body.
const MOST_BUFFERED: usize = 32 << 20;

/// Waits until `counter` has not moved between two looks, and gives its value. That nothing moves can only be seen over time.
async fn settled(counter: &AtomicUsize) -> usize {
    let mut last = counter.load(Ordering::SeqCst);
    let mut looks = tokio::time::interval(Duration::from_millis(300));
    loop {
        looks.tick().await;
        let now = counter.load(Ordering::SeqCst);
        if now == last && now > 0 {
            return now;
        }
        last = now;
    }
}

#[tokio::test]
async fn a_download_waits_for_its_reader() {
    let produced = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&produced);
    let guest = serve(move |_| std::future::ready(Response::new(big(Arc::clone(&counter))))).await;
    let (proxy, ..) = proxy().await;
    let mut body = send(proxy, request(guest, "GET", "/", Body::empty())).await.unwrap().into_body();
    let ahead = tokio::time::timeout(DEADLINE, settled(&produced)).await.expect("the guest is held back");
    assert!(ahead < MOST_BUFFERED, "{ahead} bytes ahead of a reader that reads nothing");
    let mut read = 0;
    while let Some(frame) = body.frame().await {
        read += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(read, PIECE * PIECES);
}

#[tokio::test]
async fn an_upload_waits_for_its_reader() {
    let (go, wait) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::clone(&go);
    let guest = serve(move |request: Request<Body>| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            let mut body = request.into_body();
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                read += frame.unwrap().into_data().unwrap().len();
            }
            Response::new(read.to_string().into())
        }
    })
    .await;
    let (proxy, ..) = proxy().await;
    let answer = tokio::spawn(send(proxy, request(guest, "POST", "/", big(Arc::clone(&wait)))));
    let ahead = tokio::time::timeout(DEADLINE, settled(&wait)).await.expect("the client is held back");
    assert!(ahead < MOST_BUFFERED, "{ahead} bytes ahead of a reader that reads nothing");
    go.notify_one();
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(text(answer.into_body()).await, (PIECE * PIECES).to_string());
}
