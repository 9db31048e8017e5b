//! Other resolvers, asked for allowed names.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use firkin_egress::Upstream;
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{RData, Record, RecordType, rdata::A},
};
use tokio::{net::UdpSocket, sync::watch, task::JoinSet};

use crate::scene::{answer, serve, way};

/// A server out there that knows `a.test`, through a name of its own, and remembers whom it was asked for.
async fn server() -> (SocketAddrV4, Arc<Mutex<Vec<String>>>, JoinSet<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = socket.local_addr().unwrap() else { unreachable!("it is of IPv4") };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let remembers = Arc::clone(&asked);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let message = Message::from_vec(&buffer[..length]).unwrap();
            let name = message.queries[0].name.clone();
            remembers.lock().unwrap().push(name.to_ascii().to_lowercase());
            let mut reply = Message::new(message.metadata.id, MessageType::Response, OpCode::Query);
            reply.add_queries(message.queries.clone());
            if name.to_ascii().eq_ignore_ascii_case("a.test.") {
                reply.add_answer(Record::from_rdata(name, 0, RData::A(A(Ipv4Addr::new(9, 8, 7, 6)))));
            } else {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            socket.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, asked, tasks)
}

#[tokio::test]
async fn other_resolvers_are_asked_for_the_name_alone_and_remembered() {
    let (address, asked, _tasks) = server().await;
    let upstream = Arc::new(Upstream::new(&[address]).unwrap());
    let ways = watch::Sender::new(way(&["a.test", "b"], &upstream));
    let served = serve(ways.subscribe()).await;
    let times = || asked.lock().unwrap().iter().filter(|name| *name == "a.test.").count();
    // Until all three fall into the second that an answer is remembered at least.
    loop {
        let (before, begun) = (times(), Instant::now());
        for _ in 0..3 {
            assert_eq!(answer(&served, "a.test.", RecordType::A).await, (ResponseCode::NoError, vec!["9.8.7.6".into()]));
        }
        if begun.elapsed() < Duration::from_secs(1) {
            assert!(times() <= before + 1, "an answer is remembered a second");
            break;
        }
    }
    assert!(times() > 0);
    assert_eq!(answer(&served, "b.", RecordType::A).await.0, ResponseCode::NXDomain);
    assert_eq!(answer(&served, "evil.test.", RecordType::A).await.0, ResponseCode::NXDomain);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|name| name == "a.test." || name == "b."), "{asked:?}");
}

#[tokio::test]
async fn without_servers_no_name_is_resolved() {
    let ways = watch::Sender::new(way(&["a.test"], &Arc::new(Upstream::new(&[]).unwrap())));
    let served = serve(ways.subscribe()).await;
    assert_eq!(answer(&served, "a.test.", RecordType::A).await.0, ResponseCode::ServFail);
}
