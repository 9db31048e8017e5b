//! Files that are dropped onto a page: of any size, and with little kept of what stands between them.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use crate::{
    bench::{Answer, Bench, DEADLINE},
    ui::Browser,
};

/// An envd that stores what it is given, but for what is called `full`.
async fn storing(envd: TcpListener, stored: mpsc::UnboundedSender<(String, usize)>) {
    loop {
        let (stream, _) = envd.accept().await.unwrap();
        let stored = stored.clone();
        let service = service_fn(move |request| store(request, stored.clone()));
        // A server that hangs up is no failure of this one.
        tokio::spawn(async move {
            drop(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await)
        });
    }
}

async fn store(
    request: Request<Incoming>,
    stored: mpsc::UnboundedSender<(String, usize)>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().query().unwrap_or_default().to_owned();
    let bytes = request.into_body().collect().await.map(|whole| whole.to_bytes().len());
    let refused = path.contains("full");
    if let (Ok(bytes), false) = (bytes, refused) {
        // A test that is over hears no more.
        drop(stored.send((path, bytes)));
    }
    let (status, body) = if refused { (507, r#"{"message":"not enough disk space"}"#) } else { (200, "[]") };
    Ok(Response::builder().status(status).body(Full::from(body)).unwrap())
}

const BOUNDARY: &str = "--edge\r\nContent-Disposition: form-data; ";

fn head(browser: &Browser<'_>) -> String {
    format!("{BOUNDARY}name=\"token\"\r\n\r\n{}\r\n{BOUNDARY}name=\"path\"\r\n\r\n/home/user\r\n", browser.token)
}

async fn send<B>(bench: &Bench, browser: &Browser<'_>, id: &str, body: B) -> Answer
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let request = Request::builder()
        .method("POST")
        .uri(format!("/ui/sandboxes/{id}/files/upload"))
        .header("host", bench.address.to_string())
        .header("origin", format!("http://{}", bench.address))
        .header("cookie", &browser.cookie)
        .header("content-type", "multipart/form-data; boundary=edge");
    bench.answer(request.body(body).unwrap()).await
}

#[tokio::test]
async fn files_of_any_size_go_through_and_those_before_a_refused_one_are_told() {
    let mut bench = Bench::start().await;
    let (sender, mut stored) = mpsc::unbounded_channel();
    let envd = tokio::spawn(storing(bench.listen_as_envd(), sender));
    let id = bench.create("").await;
    let browser = Browser::enter(&bench, &bench.key).await;
    let file =
        |name: &str, bytes: usize| format!("{BOUNDARY}name=\"file\"; filename=\"{name}\"\r\n\r\n{}\r\n", "x".repeat(bytes));
    let form = format!("{}{}{}--edge--\r\n", head(&browser), file("large", 8 << 20), file("small", 10));
    send(&bench, &browser, &id, Full::<Bytes>::from(form)).await.expect(303);
    for (name, bytes) in [("large", 8 << 20), ("small", 10)] {
        let (path, came) = timeout(DEADLINE, stored.recv()).await.unwrap().unwrap();
        assert!(path.contains(name) && came == bytes, "{path}: {came}");
    }
    let form = format!("{}{}{}--edge--\r\n", head(&browser), file("one", 5), file("full", 5));
    let refused = send(&bench, &browser, &id, Full::<Bytes>::from(form)).await.expect(400);
    assert!(refused.body.as_str().unwrap().contains("not enough disk space"), "{refused:?}");
    let page = browser.get("/ui/sandboxes").await.expect(200);
    let page = page.body.as_str().unwrap();
    assert!(page.contains("/home/user/one is stored."), "{page}");
    envd.abort();
    bench.stop().await;
}

#[tokio::test]
async fn a_part_that_does_not_begin_is_given_up_on() {
    let mut bench = Bench::start().await;
    let (sender, _stored) = mpsc::unbounded_channel();
    let envd = tokio::spawn(storing(bench.listen_as_envd(), sender));
    let id = bench.create("").await;
    let browser = Browser::enter(&bench, &bench.key).await;
    // A head without an end, as fast as it is taken.
    let begin = format!("{}{BOUNDARY}name=\"file\"; filename=\"", head(&browser));
    let endless = futures::stream::unfold(Some(begin), |begin| async {
        let piece = begin.unwrap_or_else(|| "x".repeat(64 << 10));
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(piece))), None))
    });
    let answer = timeout(DEADLINE, send(&bench, &browser, &id, StreamBody::new(endless))).await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    // And one that is not said to its end.
    let begin = format!("{}{BOUNDARY}name=\"file\"", head(&browser));
    let silent = futures::StreamExt::chain(
        futures::stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from(begin))) }),
        futures::stream::pending(),
    );
    let answer = timeout(DEADLINE, send(&bench, &browser, &id, StreamBody::new(silent))).await.unwrap();
    assert_eq!(answer.status, 408, "{answer:?}");
    envd.abort();
    bench.stop().await;
}
