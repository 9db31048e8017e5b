//! Who is let in, by both ends of real handshakes in memory.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use firkin_runtime::{nodes::NodeFigures, sandbox::SandboxId};
use firkin_server::nodes::Listed;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::{
    certificate::name_of,
    members::{Home, MembersAway},
    secret::ClusterSecret,
};

#[derive(Debug)]
struct List(Mutex<Vec<Member>>, AtomicUsize);

#[async_trait]
impl Members for List {
    fn nodes(&self) -> Arc<[Member]> {
        self.0.lock().unwrap().clone().into()
    }

    fn look_again(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }

    fn listed(&self) -> Listed {
        Listed::default()
    }

    fn holds_lease(&self) -> bool {
        true
    }

    fn figures(&self) -> NodeFigures {
        NodeFigures::default()
    }

    async fn whereabouts(&self, _: &SandboxId) -> Result<Option<Home>, MembersAway> {
        Ok(None)
    }

    async fn builder(&self, _: &str) -> Result<Option<NodeId>, MembersAway> {
        Ok(None)
    }
}

fn peer(name: &str, term: u64) -> Peer {
    Peer { node: name.repeat(20).parse().unwrap(), term }
}

/// Nodes `a` and `b` in their third terms, and `d`, which does not hold its lease.
fn members() -> Arc<List> {
    let member = |name: &str, alive| Member {
        id: name.repeat(20).parse().unwrap(),
        name: name.to_owned(),
        address: String::new(),
        term: 3,
        alive,
        cordoned: false,
        engines: Vec::new(),
        free_memory_mib: None,
        holds: None,
    };
    Arc::new(List(Mutex::new(vec![member("a", true), member("b", true), member("d", false)]), AtomicUsize::new(0)))
}

fn secret() -> ClusterSecret {
    let dir = tempfile::tempdir().unwrap();
    ClusterSecret::create(&dir.path().join("secret")).unwrap()
}

/// One end of a connection.
struct End {
    judge: Arc<Judge>,
    own: Arc<OwnCertificate>,
}

impl End {
    fn new(secret: &ClusterSecret, me: Peer, now: SystemTime) -> Self {
        let authority = Arc::new(Authority::new(secret).unwrap());
        let judge = Judge::new(&authority, members()).unwrap();
        // As of that time, and not renewed since.
        Self { judge, own: Arc::new(OwnCertificate::frozen(authority, me, now).unwrap()) }
    }
}

/// What both ends of a handshake think of it, the one that calls `wanted` first.
async fn meet(from: &End, to: &End, wanted: &Peer) -> (Result<(), Option<PeerRefused>>, Result<(), Option<PeerRefused>>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name_of(wanted)).unwrap();
    let connector = TlsConnector::from(Arc::new(client(&from.judge, &from.own).unwrap()));
    let acceptor = TlsAcceptor::from(Arc::new(server(&to.judge, &to.own).unwrap()));
    let asking = async {
        let mut stream = connector.connect(name, near).await.map_err(|error| PeerRefused::of(&error))?;
        let mut text = String::new();
        // Whether the other end let us in is heard with the first byte.
        stream.read_to_string(&mut text).await.map_err(|error| PeerRefused::of(&error))?;
        assert_eq!(text, "hi");
        Ok(())
    };
    let serving = async {
        let mut stream = acceptor.accept(far).await.map_err(|error| PeerRefused::of(&error))?;
        stream.write_all(b"hi").await.map_err(|_| None)?;
        stream.shutdown().await.map_err(|_| None)
    };
    tokio::join!(asking, serving)
}

#[tokio::test]
async fn nodes_of_one_secret_in_their_present_terms_meet() {
    let (secret, now) = (secret(), SystemTime::now());
    let (a, b) = (End::new(&secret, peer("a", 3), now), End::new(&secret, peer("b", 3), now));
    assert_eq!(meet(&a, &b, &peer("b", 3)).await, (Ok(()), Ok(())));
    assert_eq!(meet(&b, &a, &peer("a", 3)).await, (Ok(()), Ok(())));
}

#[tokio::test]
async fn whoever_is_none_of_them_is_refused_by_name_at_both_ends() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (one, other, now) = (secret(), secret(), SystemTime::now());
    let good = || End::new(&one, peer("a", 3), now);
    let node = |name: &str| peer(name, 0).node;
    let old = PeerRefused::OtherTerm { node: node("b"), shown: 2, present: 3 };
    let table = [
        (End::new(&other, peer("b", 3), now), PeerRefused::OtherSecret),
        (End::new(&one, peer("b", 3), now - 25 * HOUR), PeerRefused::Expired),
        (End::new(&one, peer("b", 3), now + 2 * HOUR), PeerRefused::NotYetValid),
        (End::new(&one, peer("b", 2), now), old),
        (End::new(&one, peer("b", 4), now), PeerRefused::OtherTerm { node: node("b"), shown: 4, present: 3 }),
        (End::new(&one, peer("c", 1), now), PeerRefused::Unknown(node("c"))),
        (End::new(&one, peer("d", 3), now), PeerRefused::NotAlive(node("d"))),
    ];
    for (bad, why) in table {
        // It calls, and is refused.
        let (_, served) = meet(&bad, &good(), &peer("a", 3)).await;
        assert!(bad_calls(&served, &why), "{served:?} {why:?}");
        // It is called by its own name, and is refused.
        let (asked, _) = meet(&good(), &bad, &bad_name(&why)).await;
        assert_eq!(asked, Err(Some(why)));
    }
    // Another node answers where one is called, and an earlier server of it.
    let b = End::new(&one, peer("b", 3), now);
    let (asked, _) = meet(&End::new(&one, peer("b", 3), now), &good(), &peer("b", 3)).await;
    assert_eq!(asked, Err(Some(PeerRefused::OtherNode { shown: node("a"), wanted: node("b") })));
    let (asked, _) = meet(&b, &End::new(&one, peer("a", 2), now), &peer("a", 3)).await;
    assert_eq!(asked, Err(Some(PeerRefused::OtherTerm { node: node("a"), shown: 2, present: 3 })));
}

/// Whether a call was refused for this. One who has another secret refuses first.
fn bad_calls(served: &Result<(), Option<PeerRefused>>, why: &PeerRefused) -> bool {
    match served {
        Err(None) => *why == PeerRefused::OtherSecret,
        Err(Some(refused)) => refused == why,
        Ok(()) => false,
    }
}

/// The name under which whoever is refused for this would be called.
fn bad_name(why: &PeerRefused) -> Peer {
    match why {
        PeerRefused::Unknown(node) => Peer { node: node.clone(), term: 1 },
        PeerRefused::NotAlive(node) => Peer { node: node.clone(), term: 3 },
        PeerRefused::OtherTerm { node, shown, .. } => Peer { node: node.clone(), term: *shown },
        _ => peer("b", 3),
    }
}

#[test]
fn who_is_not_known_yet_is_looked_for_again() {
    let members = members();
    let judge = Judge::new(&Authority::new(&secret()).unwrap(), Arc::clone(&members) as Arc<dyn Members>).unwrap();
    for (who, looks) in [(peer("a", 3), 0), (peer("a", 2), 0), (peer("d", 3), 0), (peer("a", 4), 1), (peer("c", 1), 2)] {
        let admitted = judge.admits(&who);
        assert_eq!((admitted.is_ok(), members.1.load(Ordering::SeqCst)), (who == peer("a", 3), looks), "{who:?}");
    }
}
