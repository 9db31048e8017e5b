//! What a network takes up at most.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_egress::{Audit, Decision, Limits, Proxy, Refusal, Unnamed};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use crate::scene::{HELLO_A, Scene, hello, ip, is_cut, limits, talk};

#[tokio::test]
async fn slow_clients_and_idle_connections_end() {
    let short = Duration::from_millis(200);
    let mut scene = Scene::set(&["a.test"], Limits { greeting: short, ..limits() }).await;
    for says in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: a.test\r\n", &hello("a.test")[..100]] {
        scene.answer("6.6.6.6:80", says).await;
        let refusal = Decision::Denied(Refusal::Unnamed(Unnamed::TooLate));
        assert_eq!(scene.decision().await, (None, Some(ip("6.6.6.6")), refusal));
    }
    // Long enough to talk in between.
    let scene = Scene::set(&["a.test"], Limits { idle: Duration::from_secs(5), ..limits() }).await;
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
    is_cut(&mut client).await;
}

#[tokio::test]
async fn connections_at_a_time_are_bounded_and_the_next_waits() {
    let scene = Scene::set(&["a.test"], Limits { connections: 2, ..limits() }).await;
    let (mut one, mut first) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    let (_slow, mut third) = (scene.client("6.6.6.6:80", b"GET").await, scene.client("6.6.6.6:80", HELLO_A).await);
    talk(&mut one, &mut first).await;
    // Nothing comes of it as long as there is no room.
    assert!(timeout(Duration::from_millis(100), scene.a.accept()).await.is_err());
    assert_eq!(scene.proxy.connections(), 2);
    drop((one, first));
    let mut server = Scene::arrives(&scene.a, HELLO_A).await;
    talk(&mut third, &mut server).await;
}

#[tokio::test]
async fn networks_that_share_places_have_no_more_together() {
    let one = Scene::set(&["a.test"], limits()).await;
    let places = Arc::new(Semaphore::new(1));
    let sharing = |scene: &Scene| {
        let proxy = Proxy::new(scene.ways.subscribe(), Audit::default(), limits()).among(Arc::clone(&places));
        (Arc::new(proxy), scene.meant.clone())
    };
    let mut tasks = JoinSet::new();
    let mut doors = Vec::new();
    for (proxy, meant) in [sharing(&one), sharing(&one)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        doors.push(listener.local_addr().unwrap());
        tasks.spawn(async move { proxy.serve(listener, meant).await });
    }
    let come = async |door: usize| {
        let mut client = TcpStream::connect(doors[door]).await.unwrap();
        client.write_all(HELLO_A).await.unwrap();
        client
    };
    let first = come(0).await;
    let served = Scene::arrives(&one.a, HELLO_A).await;
    let _second = come(1).await;
    // Nothing says that somebody waits; what is free says that nobody else was taken.
    assert_eq!(places.available_permits(), 0);
    assert!(timeout(Duration::from_millis(200), one.a.accept()).await.is_err(), "there was no place for it");
    drop((first, served));
    Scene::arrives(&one.a, HELLO_A).await;
}

#[tokio::test]
async fn clients_that_were_not_led_here_hold_up_nobody() {
    let scene = Scene::set(&["a.test"], limits()).await;
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(scene.answer("0.0.0.0:0", b"").await, b"");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let (mut client, mut server) = (scene.client("6.6.6.6:80", HELLO_A).await, Scene::arrives(&scene.a, HELLO_A).await);
    talk(&mut client, &mut server).await;
}
