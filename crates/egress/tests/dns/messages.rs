//! What comes over the sockets: nonsense, streams, and too much.

use std::{sync::Arc, time::Duration};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{Notify, watch},
    time::timeout,
};

use crate::scene::{PATIENCE, addresses, answer, book, exchange, question, serve, way};

#[tokio::test]
async fn what_is_no_question_is_answered_as_that_or_not_at_all() {
    let ways = watch::Sender::new(way(&["*"], &Arc::new(book(&[("a.test", &["1.1.1.1"])]))));
    let served = serve(ways.subscribe()).await;
    let good = question("a.test.", RecordType::A).to_vec().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let code = async |bytes: &[u8]| exchange(served.udp, bytes).await.metadata.response_code;
    assert_eq!(code(&with(2, 0x28)).await, ResponseCode::NotImp, "an update");
    assert_eq!(code(&with(5, 2)).await, ResponseCode::FormErr, "two questions, of which one is missing");
    assert_eq!(code(&with(5, 0)).await, ResponseCode::FormErr, "no question");
    assert_eq!(code(&with(12, 0xc0)).await, ResponseCode::FormErr, "a name that points to itself");
    assert_eq!(code(&good[..good.len() - 1]).await, ResponseCode::FormErr, "cut off");
    assert_eq!(code(&with(good.len() - 1, 3)).await, ResponseCode::Refused, "CHAOS");
    // An answer is not answered, or two resolvers would answer each other for ever; nor is a piece of a header.
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(served.udp).await.unwrap();
    for noise in [&with(2, 0x81)[..], &good[..11], &[]] {
        socket.send(noise).await.unwrap();
    }
    socket.send(&good).await.unwrap();
    let mut buffer = [0; 512];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(
        addresses(&Message::from_vec(&buffer[..length]).unwrap()),
        ["1.1.1.1"],
        "the first answer is that of the question"
    );
}

#[tokio::test]
async fn tcp_answers_one_question_after_the_other() {
    let ways = watch::Sender::new(way(&["a.test"], &Arc::new(book(&[("a.test", &["1.1.1.1"])]))));
    let served = serve(ways.subscribe()).await;
    let mut client = TcpStream::connect(served.tcp).await.unwrap();
    for (name, expected) in
        [("a.test.", ResponseCode::NoError), ("b.test.", ResponseCode::NXDomain), ("a.test.", ResponseCode::NoError)]
    {
        let bytes = question(name, RecordType::A).to_vec().unwrap();
        client.write_all(&[&u16::try_from(bytes.len()).unwrap().to_be_bytes(), &bytes[..]].concat()).await.unwrap();
        let mut reply = vec![0; usize::from(client.read_u16().await.unwrap())];
        client.read_exact(&mut reply).await.unwrap();
        assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, expected, "{name}");
    }
    // A length that no question has.
    client.write_all(&[0xff, 0xff, 0]).await.unwrap();
    assert_eq!(timeout(PATIENCE, client.read(&mut [0])).await.unwrap().unwrap_or(0), 0, "it is closed");
}

#[tokio::test]
async fn questions_at_a_time_are_bounded_and_the_rest_go_on_later() {
    let mut slow = book(&[("slow.test", &["1.1.1.1"]), ("quick.test", &["2.2.2.2"])]);
    slow.slow = Some(("slow.test", Notify::new()));
    let book = Arc::new(slow);
    let ways = watch::Sender::new(way(&["*.test"], &book));
    let served = serve(ways.subscribe()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(served.udp).await.unwrap();
    let bytes = question("slow.test.", RecordType::A).to_vec().unwrap();
    for _ in 0..100 {
        socket.send(&bytes).await.unwrap();
    }
    let mut other = TcpStream::connect(served.tcp).await.unwrap();
    let quick = question("quick.test.", RecordType::A).to_vec().unwrap();
    other.write_all(&[&u16::try_from(quick.len()).unwrap().to_be_bytes(), &quick[..]].concat()).await.unwrap();
    other.read_u16().await.unwrap();
    let asked = || book.asked.lock().unwrap().iter().filter(|name| *name == "slow.test").count();
    timeout(PATIENCE, async {
        while asked() < 64 {
            tokio::task::yield_now().await
        }
    })
    .await
    .unwrap();
    // Whoever asks again is answered when there is room.
    let answered = async {
        loop {
            book.slow.as_ref().unwrap().1.notify_waiters();
            let again = timeout(Duration::from_millis(50), answer(&served, "quick.test.", RecordType::A)).await;
            if let Ok(reply) = again {
                return reply;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, answered).await.unwrap().1, ["2.2.2.2"]);
    assert_eq!(asked(), 64, "no more than that were under way");
}
