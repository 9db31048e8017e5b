//! A resolver on sockets, and behind it one that remembers what it was asked.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use firkin_egress::{Audit, Bounds, Direct, Found, HostName, Policy, Resolve, ResolveError, Resolver, Rules, Way, Ways};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::Notify,
    task::JoinSet,
    time::timeout,
};

pub(crate) const ALL: &str = "0.0.0.0/0";
/// Nothing here takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Knows some names, and remembers what it was asked.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) known: HashMap<&'static str, Vec<Ipv4Addr>>,
    pub(crate) asked: Mutex<Vec<String>>,
    /// Names that are answered only after a word.
    pub(crate) slow: Option<(&'static str, Notify)>,
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

pub(crate) fn book(known: &[(&'static str, &[&str])]) -> Book {
    let known = known.iter().map(|(name, addresses)| (*name, addresses.iter().map(|address| address.parse().unwrap()).collect()));
    Book { known: known.collect(), ..Book::default() }
}

pub(crate) fn way(allow: &[&str], resolver: &Arc<impl Resolve + 'static>) -> Arc<Way> {
    let closed = ["10.0.0.0/8", "127.0.0.0/8"].map(|net| net.parse().unwrap()).to_vec();
    let bounds = Bounds { own: Vec::new(), opened: Vec::new(), closed };
    let policy = Policy::new(Rules::parse(allow, &[ALL]).unwrap(), Arc::new(bounds));
    Arc::new(Way { policy, resolver: Arc::clone(resolver) as _, dialer: Arc::new(Direct), termination: None })
}

/// A resolver on sockets of its own, which ends with the test.
pub(crate) struct Served {
    pub(crate) resolver: Arc<Resolver>,
    pub(crate) audit: Audit,
    pub(crate) udp: SocketAddr,
    pub(crate) tcp: SocketAddr,
    _tasks: JoinSet<()>,
}

pub(crate) async fn serve(ways: Ways) -> Served {
    let audit = Audit::default();
    let resolver = Arc::new(Resolver::new(ways, audit.clone()));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (udp, tcp) = (socket.local_addr().unwrap(), listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    let (one, other) = (Arc::clone(&resolver), Arc::clone(&resolver));
    tasks.spawn(async move { one.serve_udp(socket).await });
    tasks.spawn(async move { other.serve_tcp(listener).await });
    Served { resolver, audit, udp, tcp, _tasks: tasks }
}

pub(crate) fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub(crate) async fn exchange(to: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(bytes).await.unwrap();
    let mut buffer = [0; 2048];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("there is an answer").unwrap();
    assert!(length <= 512, "every client takes so much: {length}");
    Message::from_vec(&buffer[..length]).unwrap()
}

pub(crate) async fn ask(served: &Served, name: &str, kind: RecordType) -> Message {
    let reply = exchange(served.udp, &question(name, kind).to_vec().unwrap()).await;
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (4711, MessageType::Response));
    assert_eq!(reply.queries, question(name, kind).queries);
    reply
}

pub(crate) fn addresses(reply: &Message) -> Vec<String> {
    reply.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Code, addresses.
pub(crate) async fn answer(served: &Served, name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
    let reply = ask(served, name, kind).await;
    (reply.metadata.response_code, addresses(&reply))
}
