//! Who is refused, and what is told of it.

use firkin_egress::{Decision, Refusal, Unnamed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::scene::{HELLO_B, PATIENCE, Scene, hello, ip, limits};

#[tokio::test]
async fn what_is_not_allowed_is_refused_in_the_clients_protocol_and_goes_nowhere() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let denied = &[21, 3, 3, 0, 2, 2, 49];
    assert_eq!(scene.answer("1.1.1.1:443", &hello("b.test")).await, denied);
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Name)));
    assert_eq!(scene.answer("1.1.1.1:443", &hello("1.1.1.1")).await, denied);
    let unnamed = |unnamed| (None, Some(ip("1.1.1.1")), Decision::Denied(Refusal::Unnamed(unnamed)));
    assert_eq!(scene.decision().await, unnamed(Unnamed::NoName));
    let answer = String::from_utf8(scene.answer("1.1.1.1:80", HELLO_B).await).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.ends_with("no rule allows this name\n"), "{answer}");
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Name)));
    let answer = scene.answer("1.1.1.1:80", b"GET / HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n").await;
    assert!(String::from_utf8(answer).unwrap().ends_with("the client named an address\n"));
    assert_eq!(scene.decision().await, unnamed(Unnamed::Literal));
    let answer = scene.answer("1.1.1.1:80", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    assert_eq!(answer[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "settings");
    assert_eq!(answer[12..26], [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13], "the end, in favour of HTTP/1.1");
    assert_eq!(scene.decision().await, unnamed(Unnamed::Http2));
    assert_eq!(scene.answer("1.1.1.1:22", b"SSH-2.0-x\r\n").await, b"");
    assert_eq!(scene.decision().await, unnamed(Unnamed::Unknown));
    assert_eq!(scene.dialed(), [] as [String; 0]);
    assert!(scene.world.asked.lock().unwrap().is_empty(), "no name was asked for either");
}

#[tokio::test]
async fn a_client_that_goes_on_sending_is_told_the_reason_all_the_same() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let mut client = scene.client("1.1.1.1:80", HELLO_B).await;
    timeout(PATIENCE, client.peek(&mut [0])).await.expect("it is refused").unwrap();
    for _ in 0..10 {
        client.write_all(&[b'x'; 1000]).await.unwrap();
    }
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer)).await.expect("it is closed").unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
}
