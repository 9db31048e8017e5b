//! What becomes of connections when the way out changes or ends.

use std::sync::Arc;

use firkin_egress::{Decision, Refusal, Way};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::scene::{ALL, HELLO_A, HELLO_B, PATIENCE, Scene, World, hello, ip, is_cut, limits, talk, way};

#[tokio::test]
async fn rules_that_change_cut_what_they_no_longer_allow_and_keep_the_rest() {
    let mut scene = Scene::set(&["a.test", "b.test"], limits()).await;
    let (mut one, mut at_a) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    let (mut other, mut at_b) = (scene.client("6.6.6.6:80", HELLO_B).await, Scene::arrives(&scene.b, HELLO_B).await);
    // Both were told of.
    scene.decision().await;
    scene.decision().await;
    scene.ways.send_replace(way(&scene.world, &["*.test", "5.5.5.5"], &[ALL]));
    talk(&mut one, &mut at_a).await;
    talk(&mut other, &mut at_b).await;
    scene.ways.send_replace(way(&scene.world, &["a.test"], &[ALL]));
    is_cut(&mut other).await;
    assert_eq!(timeout(PATIENCE, at_b.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    let refusal = Decision::Denied(Refusal::Rule(ALL.parse().unwrap()));
    assert_eq!(scene.decision().await, (Some("b.test".into()), Some(ip("2.2.2.2")), refusal));
    talk(&mut one, &mut at_a).await;
    assert_eq!(scene.answer("6.6.6.6:443", &hello("b.test")).await, [21, 3, 3, 0, 2, 2, 49], "a new one is refused");
}

#[tokio::test]
async fn a_name_that_is_allowed_later_does_not_keep_a_connection_to_another_address() {
    let scene = Scene::set(&[], limits()).await;
    scene.ways.send_replace(way(&scene.world, &[], &["bad.test"]));
    // Under open rules the client's address counts, and what it calls it does not.
    let (mut client, mut server) = (scene.client("2.2.2.2:80", HELLO_A).await, Scene::arrives(&scene.b, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.ways.send_replace(way(&scene.world, &["a.test"], &[ALL]));
    is_cut(&mut client).await;
}

#[tokio::test]
async fn connections_through_a_former_way_out_are_cut() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.decision().await;
    let mut other = Way::clone(&way(&scene.world, &["a.test"], &[ALL]));
    other.dialer = Arc::new(World::default());
    scene.ways.send_replace(Arc::new(other));
    is_cut(&mut client).await;
    assert_eq!(scene.decision().await, (Some("a.test".into()), Some(ip("1.1.1.1")), Decision::Denied(Refusal::Former)));
}

#[tokio::test]
async fn a_proxy_that_ends_leaves_no_connection() {
    let mut scene = Scene::set(&["a.test"], limits()).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    scene.tasks.shutdown().await;
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(timeout(PATIENCE, server.read(&mut [0])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(scene.proxy.connections(), 0);
    assert!(TcpStream::connect(scene.address).await.is_err(), "nobody listens: closed, not open");
}
