//! What goes wrong between nodes: a sandbox that has moved, a node or a catalogue that is away, a peer that is none.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Full, StreamBody};
use hyper::body::Frame;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::bench::Bench;

/// What a guest says of its life, which is nobody's to believe.
pub(crate) const SPOOFED: &str = "99";

/// A guest's server, which answers whatever comes.
pub(crate) async fn port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\nx-firkin-epoch: {SPOOFED}\r\ncontent-length: 2\r\n\r\nin");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_sandbox_that_has_moved_is_found_by_one_more_try_where_that_is_safe() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let port = port().await;
    let id = c.create("").await;
    // B has heard that it was on A.
    let stale = || {
        bench.map.home(&id, &a.id, 0);
    };
    stale();
    b.answer(b.get_guest(&id, port, "/")).await;
    bench.map.home(&id, &c.id, 1);
    let asked = bench.map.asked();
    let answer = b.answer(b.get_guest(&id, port, "/")).await.expect(200);
    assert_eq!(answer.header("x-firkin-node"), "c");
    assert_eq!(bench.map.asked(), asked + 2, "A asked, to name the owner, and so did B");
    b.answer(b.get_guest(&id, port, "/")).await.expect(200);
    assert_eq!(bench.map.asked(), asked + 2, "and now it is known");
    let mut metrics = b.request("GET", "/metrics", "");
    metrics.headers_mut().insert("x-admin-token", crate::bench::ADMIN.parse().unwrap());
    let metrics = b.answer(metrics).await.expect(200);
    let count = |outcome: &str| {
        let series = format!("outcome=\"{outcome}\"");
        let mut lines = metrics.body.as_str().unwrap().lines().filter(|line| line.starts_with("firkin_forwarded_total"));
        lines.find(|line| line.contains(&series)).map_or("0", |line| line.rsplit(' ').next().unwrap()).to_owned()
    };
    assert_eq!((count("misdirected").as_str(), count("answered").as_str()), ("1", "3"));
    bench.stop().await;
}

#[tokio::test]
async fn what_cannot_be_sent_again_is_refused_and_was_not_done() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let port = port().await;
    let id = c.create("").await;
    let forget = async || {
        bench.map.home(&id, &a.id, 0);
        b.answer(b.get_guest(&id, port, "/")).await;
        bench.map.home(&id, &c.id, 1);
    };
    // A short body is kept for that, whatever it asks for.
    forget().await;
    let command = b.guest(&id, port, "/").method("POST").body(Full::new(Bytes::from_static(b"ls"))).unwrap();
    b.answer(command).await.expect(200);
    let moved = b.call("POST", &format!("/sandboxes/{id}/timeout"), r#"{"timeout":1000}"#).await.expect(204);
    assert_eq!(moved.header("x-firkin-node"), "c");
    bench.stop().await;
}

#[tokio::test]
async fn a_stream_that_meets_a_move_is_told_to_come_again() {
    let bench = Bench::start(&["a", "b", "c"]).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let port = port().await;
    let id = c.create("").await;
    bench.map.home(&id, &a.id, 0);
    // Nobody has it there, by A's own record neither: then it is for A to say that there is none.
    b.answer(b.get_guest(&id, port, "/")).await.expect(502);
    bench.map.home(&id, &c.id, 1);
    let pieces = || futures::stream::iter([Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"piece")))]);
    let stream = || b.guest(&id, port, "/").method("POST").body(StreamBody::new(pieces())).unwrap();
    let refused = b.answer(stream()).await.expect(503);
    assert_eq!((refused.text("/error_code"), refused.header("retry-after")), ("sandbox_moved", "1"));
    b.answer(stream()).await.expect(200);
    bench.stop().await;
}

#[tokio::test]
async fn a_node_that_is_away_is_named_and_a_catalogue_that_is_away_stops_only_what_is_not_known() {
    let mut bench = Bench::start(&["a", "b"]).await;
    let (id, unknown) = (bench.nodes[0].create("").await, bench.nodes[0].create("").await);
    let port = port().await;
    {
        let b = &bench.nodes[1];
        b.answer(b.get_guest(&id, port, "/")).await.expect(200);
        bench.map.set_away(true);
        b.answer(b.get_guest(&id, port, "/")).await.expect(200);
        b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
        let own = b.create("").await;
        b.call("GET", &format!("/sandboxes/{own}"), "").await.expect(200);
        for answer in
            [b.call("GET", &format!("/sandboxes/{unknown}"), "").await, b.answer(b.get_guest(&unknown, port, "/")).await]
        {
            let away = answer.expect(503);
            assert_eq!((away.text("/error_code"), away.header("retry-after")), ("catalog_unavailable", "5"));
        }
        bench.map.set_away(false);
        bench.map.change("a", |a| a.alive = false);
        let away = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(503);
        assert_eq!((away.text("/error_code"), away.header("retry-after")), ("node_away", "5"));
        assert!(away.text("/message").contains("node `a`"), "{away:?}");
        bench.map.change("a", |a| a.alive = true);
    }
    bench.nodes.remove(0).stop().await;
    let b = &bench.nodes[0];
    let away = b.answer(b.get_guest(&id, port, "/")).await.expect(503);
    assert_eq!(away.text("/error_code"), "node_away");
    bench.stop().await;
}

#[tokio::test]
async fn a_peer_of_a_former_term_or_another_secret_is_let_in_nowhere() {
    let mut bench = Bench::start(&["a", "b"]).await;
    let other = bench.other_secret();
    bench.add("c", other).await;
    let [a, b, c] = &bench.nodes[..] else { unreachable!() };
    let id = a.create("").await;
    b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(200);
    let refused = c.call("GET", &format!("/sandboxes/{id}"), "").await.expect(503);
    assert!(refused.text("/message").contains("another cluster's secret"), "{refused:?}");
    let list = a.call("GET", "/v2/sandboxes", "").await.expect(200);
    assert_eq!(list.header("x-firkin-missing-nodes"), "c");
    // B's server is an earlier one by now, and has a connection that it was let in by.
    bench.map.change("b", |b| b.term = 2);
    let refused = b.call("GET", &format!("/sandboxes/{id}"), "").await.expect(503);
    assert_eq!(refused.text("/error_code"), "node_away", "{refused:?}");
    assert!(refused.text("/message").contains("does not take this node for one"), "{refused:?}");
    // Nobody takes it for B, either.
    let own = b.create("").await;
    let refused = a.call("GET", &format!("/sandboxes/{own}"), "").await.expect(503);
    assert!(refused.text("/message").contains("in its term 1, and the present one is 2"), "{refused:?}");
    bench.stop().await;
}

#[tokio::test]
async fn what_is_not_let_in_has_done_nothing_and_may_be_asked_again() {
    let bench = Bench::start(&["a", "b"]).await;
    let [a, b] = &bench.nodes[..] else { unreachable!() };
    let id = a.create("").await;
    // A has not heard of B's next server yet, which is there.
    bench.map.change("b", |b| b.term = 2);
    let refused = b.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(503);
    assert_eq!((refused.text("/error_code"), refused.header("should-retry")), ("node_away", "true"), "{refused:?}");
    bench.map.change("b", |b| b.term = 1);
    b.call("DELETE", &format!("/sandboxes/{id}"), "").await.expect(204);
    bench.stop().await;
}

#[tokio::test]
async fn the_peer_port_speaks_to_peers_only() {
    let bench = Bench::start(&["a"]).await;
    let a = &bench.nodes[0];
    for hello in [&b"GET / HTTP/1.1\r\nhost: a\r\nx-firkin-identity: {\"admin\":true}\r\n\r\n"[..], &[0; 64]] {
        let mut stream = TcpStream::connect(a.peers).await.unwrap();
        stream.write_all(hello).await.unwrap();
        let mut got = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut got)).await.expect("it hangs up");
        assert!(end.is_err() || !String::from_utf8_lossy(&got).contains("HTTP"), "{}", String::from_utf8_lossy(&got));
    }
    bench.stop().await;
}
