//! Where connections lead.

use firkin_egress::{Decision, Refusal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::scene::{ALL, HELLO_A, PATIENCE, REBOUND, Scene, by, hello, ip, is_cut, limits, read, talk};

#[tokio::test]
async fn a_name_that_does_not_fit_the_address_leads_to_the_host_of_the_name() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    for (meant, says) in [("6.6.6.6:443", hello("a.test")), ("127.0.0.1:443", hello("A.test")), ("2.2.2.2:443", HELLO_A.to_vec())]
    {
        let mut client = scene.client(meant, &says).await;
        let mut server = Scene::arrives(&scene.a, &says).await;
        talk(&mut client, &mut server).await;
        assert_eq!(scene.decision().await, (Some("a.test".into()), Some(ip("1.1.1.1")), by("a.test")));
    }
    assert_eq!(scene.dialed(), ["1.1.1.1:443"; 3], "never to where the client meant");
}

#[tokio::test]
async fn an_allowed_name_does_not_lead_to_what_is_ours() {
    let mut scene = Scene::set(&["*.test", ALL], limits()).await;
    assert_eq!(scene.answer("10.0.0.1:443", &hello("ours.test")).await, [21, 3, 3, 0, 2, 2, 49]);
    let refusal = Decision::Denied(Refusal::Bounds("127.0.0.0/8".parse().unwrap()));
    assert_eq!(scene.decision().await, (Some("ours.test".into()), None, refusal));
    // Nor does any address, whatever allows it.
    let answer = String::from_utf8(scene.answer("10.0.0.1:80", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await).unwrap();
    assert!(answer.ends_with("in `10.0.0.0/8`, which no rule opens\n"), "{answer}");
    assert_eq!(scene.dialed(), [] as [String; 0]);
    let hello = hello("half-ours.test");
    let _client = scene.client("10.0.0.1:443", &hello).await;
    Scene::arrives(&scene.a, &hello).await;
    assert_eq!(scene.dialed(), ["1.1.1.1:443"]);
}

/// Who owns a name may have it lead elsewhere between a look and a connection: so there is one look, and it is connected to what was seen.
#[tokio::test]
async fn a_name_that_is_rebound_does_not_lead_to_what_is_ours() {
    let scene = Scene::set(&["*.test"], limits()).await;
    let hello = hello(REBOUND);
    let _client = scene.client("6.6.6.6:443", &hello).await;
    Scene::arrives(&scene.a, &hello).await;
    for meant in ["1.1.1.1:443", "127.0.0.1:443"] {
        assert_eq!(scene.answer(meant, &hello).await, [21, 3, 3, 0, 2, 2, 49]);
    }
    assert_eq!(scene.dialed(), ["1.1.1.1:443"]);
    assert_eq!(*scene.world.asked.lock().unwrap(), [REBOUND; 3], "one question for each connection");
}

#[tokio::test]
async fn the_next_address_is_tried_and_not_for_ever() {
    let mut scene = Scene::set(&["*.test"], limits()).await;
    let hello_half = hello("half-dead.test");
    let _client = scene.client("6.6.6.6:443", &hello_half).await;
    Scene::arrives(&scene.a, &hello_half).await;
    assert_eq!(scene.dialed(), ["9.9.9.9:443", "1.1.1.1:443"]);
    for tried in ["9.9.9.9", "1.1.1.1"] {
        assert_eq!(scene.decision().await, (Some("half-dead.test".into()), Some(ip(tried)), by("*.test")));
    }
    assert_eq!(scene.answer("6.6.6.6:443", &hello("dead.test")).await, [21, 3, 3, 0, 2, 2, 80]);
    let answer = scene.answer("6.6.6.6:80", b"GET / HTTP/1.1\r\nHost: dead.test\r\n\r\n").await;
    assert!(answer.starts_with(b"HTTP/1.1 502 "));
    assert_eq!(scene.dialed().len(), 2 + 3 + 3);
}

#[tokio::test]
async fn an_allowed_address_is_reached_before_anything_is_said() {
    let mut scene = Scene::set(&["a.test", "2.2.2.0/24"], limits()).await;
    let mut client = scene.client("2.2.2.2:22", b"").await;
    let mut server = Scene::arrives(&scene.b, b"").await;
    server.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    assert_eq!(read(&mut client, 16).await, b"SSH-2.0-server\r\n");
    talk(&mut client, &mut server).await;
    assert_eq!(scene.decision().await, (None, Some(ip("2.2.2.2")), by("2.2.2.0/24")));
}

#[tokio::test]
async fn either_side_may_close_its_half_first() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    client.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap(), 0);
    server.write_all(b"late").await.unwrap();
    assert_eq!(read(&mut client, 4).await, b"late");
    drop(server);
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0, "an end, not a cut");

    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    server.shutdown().await.unwrap();
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap(), 0);
    client.write_all(b"late").await.unwrap();
    assert_eq!(read(&mut server, 4).await, b"late");
}

#[tokio::test]
async fn a_server_that_fails_does_not_look_as_if_it_had_finished() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    server.set_zero_linger().unwrap();
    drop(server);
    is_cut(&mut client).await;
}
