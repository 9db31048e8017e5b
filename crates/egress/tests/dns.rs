//! The resolver, asked over sockets; another one stands behind it and remembers what it was asked.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use firkin_egress::{
    AttemptKind, Audit, Bounds, Decision, Direct, Found, Grant, HostName, Policy, Refusal, Resolve, ResolveError, Resolver,
    Rules, Told, Upstream, Way, Ways,
};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};

const ALL: &str = "0.0.0.0/0";
/// Nothing here takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Knows some names, and remembers what it was asked.
#[derive(Debug, Default)]
struct Book {
    known: HashMap<&'static str, Vec<Ipv4Addr>>,
    asked: Mutex<Vec<String>>,
    /// Names that are answered only after a word.
    slow: Option<(&'static str, Notify)>,
}

#[async_trait]
impl Resolve for Book {
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError> {
        self.asked.lock().unwrap().push(name.to_string());
        if let Some((slow, word)) = &self.slow
            && *slow == name.as_str()
        {
            word.notified().await;
        }
        let addresses = self.known.get(name.as_str()).cloned().ok_or(ResolveError::NoName)?;
        Ok(Found { addresses, lifetime: Duration::from_secs(7) })
    }
}

fn book(known: &[(&'static str, &[&str])]) -> Book {
    let known = known.iter().map(|(name, addresses)| (*name, addresses.iter().map(|address| address.parse().unwrap()).collect()));
    Book { known: known.collect(), ..Book::default() }
}

fn way(allow: &[&str], resolver: &Arc<impl Resolve + 'static>) -> Arc<Way> {
    let closed = ["10.0.0.0/8", "127.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let bounds = Bounds { own: Vec::new(), opened: Vec::new(), closed };
    let policy = Policy::new(Rules::parse(allow, &[ALL]).unwrap(), Arc::new(bounds));
    Arc::new(Way { policy, resolver: Arc::clone(resolver) as _, dialer: Arc::new(Direct) })
}

/// A resolver on sockets of its own, which ends with the test.
struct Served {
    resolver: Arc<Resolver>,
    audit: Audit,
    udp: SocketAddr,
    tcp: SocketAddr,
    _tasks: JoinSet<()>,
}

async fn serve(ways: Ways) -> Served {
    let audit = Audit::default();
    let resolver = Arc::new(Resolver::new(ways, audit.clone()));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    let (one, other) = (Arc::clone(&resolver), Arc::clone(&resolver));
    tasks.spawn(async move { one.serve_udp(socket).await.unwrap() });
    tasks.spawn(async move { other.serve_tcp(listener).await });
    Served { resolver, audit, udp, tcp, _tasks: tasks }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn exchange(to: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = [0; 2048];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("there is an answer").unwrap();
    assert!(length <= 512, "every client takes so much: {length}");
    Message::from_vec(&buffer[..length]).unwrap()
}

async fn ask(served: &Served, name: &str, kind: RecordType) -> Message {
    let reply = exchange(served.udp, &question(name, kind).to_vec().unwrap()).await;
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (4711, MessageType::Response));
    assert_eq!(reply.queries, question(name, kind).queries);
    reply
}

fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Code, addresses.
async fn answer(served: &Served, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = ask(served, name, kind).await;
    (reply.metadata.response_code, addresses(&reply))
}

#[tokio::test]
async fn an_allowed_name_is_answered_with_its_addresses() {
    let book = Arc::new(book(&[("example.com", &["1.2.3.4", "1.2.3.5"]), ("a.example.org", &["4.3.2.1"])]));
    let ways = watch::Sender::new(way(&["example.com", "*.example.org"], &book));
    let served = serve(ways.subscribe()).await;
    let reply = ask(&served, "eXample.COM.", RecordType::A).await;
    assert_eq!(
        (reply.metadata.response_code, addresses(&reply)),
        (ResponseCode::NoError, vec!["1.2.3.4".into(), "1.2.3.5".into()])
    );
    assert_eq!(reply.answers[0].ttl, 7);
    assert!(reply.metadata.recursion_available && reply.metadata.recursion_desired);
    assert_eq!(answer(&served, "a.example.org.", RecordType::A).await.1, ["4.3.2.1"]);
    assert_eq!(*book.asked.lock().unwrap(), ["example.com", "a.example.org"], "in its normal form, not in the client's");
}

#[tokio::test]
async fn nothing_of_a_name_that_is_not_allowed_is_sent_on() {
    let book = Arc::new(book(&[("secret.evil.test", &["6.6.6.6"]), ("example.com", &["1.2.3.4"])]));
    let ways = watch::Sender::new(way(&["example.com"], &book));
    let served = serve(ways.subscribe()).await;
    let mut told = served.audit.read();
    let kinds =
        [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::ANY, RecordType::HTTPS, RecordType::PTR, RecordType::NULL];
    for name in ["secret.evil.test.", "a.example.com.", "example.com.evil.test.", "4.3.2.1.in-addr.arpa.", "."] {
        for kind in kinds {
            assert_eq!(answer(&served, name, kind).await, (ResponseCode::NXDomain, vec![]), "{name} {kind}");
            let Some(Told::Attempt(attempt)) = told.already() else { panic!("it is told: {name} {kind}") };
            assert_eq!((attempt.kind, &attempt.decision), (AttemptKind::Question, &Decision::Denied(Refusal::Name)));
        }
    }
    // Labels of bytes that no name of a host has, and one with a dot in it.
    for byte in [0, 0xff, b'.', b'\\', b' '] {
        let mut bytes = question("aXexample.com.", RecordType::A).to_vec().unwrap();
        let at = bytes.iter().position(|byte| *byte == b'X').unwrap();
        bytes[at] = byte;
        assert_eq!(exchange(served.udp, &bytes).await.metadata.response_code, ResponseCode::NXDomain, "{byte}");
    }
    // Of an allowed name, what may carry something else.
    for kind in [RecordType::TXT, RecordType::ANY, RecordType::NULL, RecordType::AXFR] {
        assert_eq!(answer(&served, "example.com.", kind).await, (ResponseCode::Refused, vec![]), "{kind}");
    }
    for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
        assert_eq!(answer(&served, "example.com.", kind).await, (ResponseCode::NoError, vec![]), "{kind}");
    }
    assert!(book.asked.lock().unwrap().is_empty(), "nobody was asked");
}

#[tokio::test]
async fn who_is_denied_and_takes_extended_errors_is_told_why() {
    let ways = watch::Sender::new(way(&["example.com"], &Arc::new(book(&[]))));
    let served = serve(ways.subscribe()).await;
    let mut message = question("evil.test.", RecordType::A);
    message.set_edns(Edns::new());
    let reply = exchange(served.udp, &message.to_vec().unwrap()).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let options = reply.edns.unwrap();
    let why = options.option(15.into()).map(|option| Vec::<u8>::try_from(option).unwrap());
    assert_eq!(why.as_deref(), Some(&[0, 15][..]), "blocked");
    assert!(ask(&served, "evil.test.", RecordType::A).await.edns.is_none(), "who does not take them gets none");
}

#[tokio::test]
async fn an_allowed_name_does_not_lead_to_what_is_ours() {
    let known: &[(&'static str, &[&str])] =
        &[("both.test", &["127.0.0.1", "1.2.3.4", "10.0.0.1"]), ("ours.test", &["127.0.0.1", "10.1.2.3"]), ("none.test", &[])];
    let ways = watch::Sender::new(way(&["*.test"], &Arc::new(book(known))));
    let served = serve(ways.subscribe()).await;
    let mut told = served.audit.read();
    assert_eq!(answer(&served, "both.test.", RecordType::A).await, (ResponseCode::NoError, vec!["1.2.3.4".into()]));
    assert_eq!(answer(&served, "ours.test.", RecordType::A).await, (ResponseCode::NXDomain, vec![]));
    assert_eq!(answer(&served, "none.test.", RecordType::A).await, (ResponseCode::NoError, vec![]));
    assert_eq!(answer(&served, "gone.test.", RecordType::A).await, (ResponseCode::NXDomain, vec![]));
    let mut decisions = Vec::new();
    while let Some(Told::Attempt(attempt)) = told.already() {
        decisions.push((attempt.name.as_ref().unwrap().to_string(), attempt.decision.clone()));
    }
    let allowed = || Decision::Allowed(Grant::Rule("*.test".parse().unwrap()));
    let expected = [
        ("both.test", allowed()),
        ("ours.test", Decision::Denied(Refusal::Bounds("127.0.0.0/8".parse().unwrap()))),
        ("none.test", allowed()),
        ("gone.test", allowed()),
    ];
    assert_eq!(decisions, expected.map(|(name, decision)| (name.to_owned(), decision)));
    assert_eq!(served.resolver.answers().addresses(), [Ipv4Addr::new(1, 2, 3, 4)]);
}

#[tokio::test]
async fn rules_that_change_count_at_once_and_forget_what_was_given_out() {
    let mut slow = book(&[("slow.test", &["1.1.1.1"]), ("quick.test", &["2.2.2.2"])]);
    slow.slow = Some(("slow.test", Notify::new()));
    let book = Arc::new(slow);
    let ways = watch::Sender::new(way(&["*.test"], &book));
    let served = serve(ways.subscribe()).await;
    let answers = served.resolver.answers();
    let mut changes = answers.changes();
    assert_eq!(answer(&served, "quick.test.", RecordType::A).await.1, ["2.2.2.2"]);
    timeout(PATIENCE, changes.changed()).await.expect("an address is told").unwrap();
    assert_eq!(answers.addresses(), [Ipv4Addr::new(2, 2, 2, 2)]);
    let change = async {
        let asked = || book.asked.lock().unwrap().len() == 2;
        while !asked() {
            tokio::task::yield_now().await;
        }
        ways.send_replace(way(&["quick.test"], &book));
        assert_eq!(answers.addresses(), [] as [Ipv4Addr; 0]);
        book.slow.as_ref().unwrap().1.notify_one();
    };
    let (reply, ()) = tokio::join!(answer(&served, "slow.test.", RecordType::A), change);
    assert_eq!(reply, (ResponseCode::NXDomain, vec![]), "the answer came after the change");
    assert_eq!(answers.addresses(), [] as [Ipv4Addr; 0]);
    assert_eq!(answer(&served, "quick.test.", RecordType::A).await.1, ["2.2.2.2"]);
}

#[tokio::test]
async fn more_addresses_than_every_client_takes_are_left_out() {
    let many: Vec<String> = (0..100).map(|last| format!("1.2.3.{last}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let long = [&"a".repeat(63), &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].map(String::as_str).join(".");
    let long: &'static str = Box::leak(long.into_boxed_str());
    let ways = watch::Sender::new(way(&["*"], &Arc::new(book(&[(long, &many)]))));
    let served = serve(ways.subscribe()).await;
    let mut message = question(&format!("{long}."), RecordType::A);
    message.set_edns(Edns::new());
    let reply = exchange(served.udp, &message.to_vec().unwrap()).await;
    assert_eq!(reply.answers.len(), 12);
}

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
    for _ in 0..3 {
        assert_eq!(answer(&served, "a.test.", RecordType::A).await, (ResponseCode::NoError, vec!["9.8.7.6".into()]));
    }
    assert_eq!(answer(&served, "b.", RecordType::A).await.0, ResponseCode::NXDomain);
    assert_eq!(answer(&served, "evil.test.", RecordType::A).await.0, ResponseCode::NXDomain);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|name| name == "a.test." || name == "b."), "{asked:?}");
    assert_eq!(asked.iter().filter(|name| *name == "a.test.").count(), 1, "an answer is remembered a second");
}

#[tokio::test]
async fn without_servers_no_name_is_resolved() {
    let ways = watch::Sender::new(way(&["a.test"], &Arc::new(Upstream::new(&[]).unwrap())));
    let served = serve(ways.subscribe()).await;
    assert_eq!(answer(&served, "a.test.", RecordType::A).await.0, ResponseCode::ServFail);
}
