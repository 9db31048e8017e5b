//! Several nodes on one catalogue: what each of them has, how a sandbox comes from one to another, and who is refused.

use std::{sync::Arc, time::Duration};

use firkin_postgres::{
    Catalogue, ClaimError, ClusterRecord, Founder, Founding, LeaseTimes, Members, Membership, Node, NodeCatalogue, NodeId,
    NodeState, OpenError, init,
};
use firkin_runtime::{
    sandbox::SandboxId,
    store::{
        StoreError,
        catalog::{Catalog as _, Holder, Left, Opened},
        contract,
        database::{Database, DatabaseError, Mode, Statements, Value},
    },
};
use tokio::time::timeout;

use crate::{
    database::Cluster,
    proxy::{Cut, Proxy},
};

/// Longer than anything takes here, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// A node of a test, open.
pub(crate) struct Open {
    pub(crate) database: Arc<dyn Database>,
    pub(crate) membership: Arc<Membership>,
    term: i64,
}

pub(crate) fn node(id: &str) -> Node {
    let (name, address) = (format!("node-{id}"), format!("127.0.0.1:{}", id.len()));
    let id = format!("{id:x<20}").parse().unwrap();
    Node { id, name, address, secret_fingerprint: "known by".to_owned() }
}

fn holder(id: &str, left: Left) -> Holder {
    Holder { installation: format!("directory{id}"), left }
}

pub(crate) async fn join(url: &str, id: &str, left: Left) -> Result<Open, StoreError> {
    let catalogue = NodeCatalogue::of(url.parse().unwrap(), node(id));
    let Opened { database, term } = catalogue.open(holder(id, left)).await?;
    Ok(Open { database, membership: catalogue.membership().unwrap(), term })
}

pub(crate) async fn open(url: &str, id: &str) -> Open {
    join(url, id, Left::Never).await.unwrap()
}

/// Why a node was not opened.
fn refusal(refused: Result<Open, StoreError>) -> OpenError {
    let Err(StoreError::Catalog(error)) = refused else {
        panic!("it was opened, or failed otherwise: {:?}", refused.map(|o| o.term))
    };
    *error.downcast().unwrap()
}

fn founding(founder: Option<Founder>) -> Founding {
    Founding { secret_fingerprint: "known by".to_owned(), times: LeaseTimes::default(), founder }
}

async fn found(url: &str) -> ClusterRecord {
    init(&url.parse().unwrap(), &founding(None)).await.unwrap()
}

/// A cluster whose leases last longer than a test does on any host.
pub(crate) async fn found_for_long(url: &str) {
    let hour = Duration::from_secs(3600);
    let times = LeaseTimes { stop_after: hour, lasts: 2 * hour, ..LeaseTimes::default() };
    init(&url.parse().unwrap(), &Founding { times, ..founding(None) }).await.unwrap();
}

pub(crate) fn sandbox(id: &str) -> SandboxId {
    id.parse().unwrap()
}

/// An operation of one statement, and how many rows it changed.
async fn change(database: &Arc<dyn Database>, statement: &'static str, values: Vec<Value>) -> Result<usize, StoreError> {
    let (send, receive) = std::sync::mpsc::channel();
    let change = Box::new(move |tx: &dyn Statements| {
        let rows = tx.execute(statement, &values).map_err(|error: DatabaseError| error.of("change"))?;
        send.send(rows).unwrap();
        Ok(())
    });
    database.run(Mode::Write, change).await?;
    Ok(receive.recv().unwrap())
}

/// Records a paused sandbox in its first life.
pub(crate) async fn put(open: &Open, id: &str) -> Result<usize, StoreError> {
    put_as(open, id, true).await
}

async fn put_as(open: &Open, id: &str, is_paused: bool) -> Result<usize, StoreError> {
    let values = vec![Value::Text(id.to_owned()), Value::Text(contract::sandbox_body(id, 1, is_paused).unwrap())];
    change(&open.database, "INSERT INTO sandboxes (id, body) VALUES (?1, ?2)", values).await
}

/// Records what a sandbox is in another life, as the store does.
pub(crate) async fn update(open: &Open, id: &str, (from, to): (u64, u64)) -> Result<usize, StoreError> {
    let body = contract::sandbox_body(id, to, true).unwrap();
    let values = vec![Value::Text(id.to_owned()), Value::Integer(from.try_into().unwrap()), Value::Text(body)];
    let update = "UPDATE sandboxes SET body = ?3 WHERE id = ?1 AND CAST(json_extract(body, '$.epoch') AS BIGINT) = ?2";
    change(&open.database, update, values).await
}

async fn ids(open: &Open) -> Vec<String> {
    let (send, receive) = std::sync::mpsc::channel();
    let read = Box::new(move |tx: &dyn Statements| {
        let rows = tx.rows("SELECT id FROM sandboxes ORDER BY id", &[]).map_err(|error| error.of("read"))?;
        send.send(rows).unwrap();
        Ok(())
    });
    open.database.run(Mode::Read, read).await.unwrap();
    let text = |value: Value| if let Value::Text(text) = value { text } else { panic!("{value:?}") };
    receive.recv().unwrap().concat().into_iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_have_what_is_their_own_and_take_what_is_nobodys() {
    let Some(cluster) = Cluster::start() else { return };
    a_catalogue_becomes_a_clusters_with_all_that_is_in_it(&cluster).await;
    a_node_keeps_the_contract_beside_another(&cluster.database("beside"), &cluster).await;
    who_is_not_who_it_says_is_refused(&cluster.database("refused"), &cluster).await;
    an_earlier_term_changes_nothing(&cluster.database("stale"), &cluster).await;
    a_node_killed_at_any_step_of_joining_joins_again(&cluster.database("steps"), &cluster).await;
    what_is_nobodys_is_claimed_and_nothing_else(&cluster.database("claims"), &cluster).await;
    a_renewal_and_a_claim_come_one_after_the_other(&cluster.database("crossed"), &cluster).await;
    what_is_given_up_is_anybodys_in_that_life(&cluster.database("given")).await;
    a_node_that_is_forgotten_has_nothing_until_it_comes_back(&cluster.database("forgotten")).await;
    a_node_whose_catalogue_goes_back_writes_no_more(&cluster.database("gone_back"), &cluster).await;
    a_claim_whose_commit_is_cut_is_asked_about(&cluster.database("cut"), &cluster).await;
    what_a_lost_node_was_to_tell_is_told_by_another(&cluster.database("told"), &cluster).await;
    all_see_who_there_is(&cluster.database("seen"), &cluster).await;
    a_lease_is_kept_until_its_node_is_forgotten(&cluster.database("kept")).await;
}

async fn a_catalogue_becomes_a_clusters_with_all_that_is_in_it(cluster: &Cluster) {
    let url = cluster.database("founded");
    let address = || url.parse().unwrap();
    let none = refusal(join(&url, "a", Left::Never).await);
    assert!(matches!(none, OpenError::NoCluster { .. }), "{none:?}");
    // One server has it, with a sandbox, and a delivery that nobody has sent yet.
    let alone = Catalogue::at(address());
    let Opened { database, term } = alone.open(holder("a", Left::Never)).await.unwrap();
    let values = vec![Value::Text("i1".to_owned()), Value::Text(contract::sandbox_body("i1", 1, true).unwrap())];
    change(&database, "INSERT INTO sandboxes (id, body) VALUES (?1, ?2)", values).await.unwrap();
    let founder = |id: &str| Some(Founder::left(node(id).id, &format!("directory{id}"), term));
    let used = init(&address(), &founding(founder("a"))).await;
    assert!(matches!(used, Err(OpenError::Taken { .. })), "{used:?}");
    database.close().await.unwrap();

    let nobodys = init(&address(), &founding(None)).await;
    assert!(matches!(&nobodys, Err(OpenError::Founded { installation, .. }) if installation == "directorya"), "{nobodys:?}");
    let anothers = init(&address(), &founding(founder("b"))).await;
    assert!(matches!(anothers, Err(OpenError::Foreign { .. })), "{anothers:?}");
    let times = LeaseTimes { stop_after: Duration::from_secs(121), ..LeaseTimes::default() };
    let unsound = init(&address(), &Founding { times, ..founding(founder("a")) }).await;
    assert!(matches!(unsound, Err(OpenError::Times { .. })), "{unsound:?}");
    let record = init(&address(), &founding(founder("a"))).await.unwrap();
    assert_eq!(init(&address(), &founding(None)).await.unwrap(), record, "once");
    let other = Founding { secret_fingerprint: "another".to_owned(), ..founding(None) };
    let other = init(&address(), &other).await;
    assert!(matches!(&other, Err(OpenError::WrongSecret { cluster, .. }) if *cluster == record.id), "{other:?}");

    // From then on it is no server's alone, not even for a look.
    let refused = alone.open(holder("a", Left::In(term))).await.map(|opened| opened.term);
    assert!(format!("{refused:?}").contains("IsCluster"), "{refused:?}");
    let refused = alone.look("directorya").await;
    assert!(format!("{refused:?}").contains("IsCluster"), "{refused:?}");
    let first = join(&url, "a", Left::In(term)).await.unwrap();
    assert_eq!((ids(&first).await, first.term), (vec!["i1".to_owned()], term + 1));
    let second = open(&url, "b").await;
    assert_eq!(ids(&second).await, Vec::<String>::new());
    let refused = alone.open(holder("a", Left::In(term))).await.map(|opened| opened.term);
    assert!(format!("{refused:?}").contains("IsCluster"), "while nodes have it: {refused:?}");
    for open in [first, second] {
        open.database.close().await.unwrap();
    }
}

async fn a_node_keeps_the_contract_beside_another(url: &str, cluster: &Cluster) {
    found_for_long(url).await;
    let (first, second) = (open(url, "a").await, open(url, "b").await);
    put(&second, "iother").await.unwrap();
    contract::check(first.database.clone()).await.unwrap();
    assert_eq!((ids(&first).await.len(), ids(&second).await), (0, vec!["iother".to_owned()]));
    assert_eq!(change(&second.database, "DELETE FROM sandboxes", Vec::new()).await.unwrap(), 1);
    contract::check_beside(first.database.clone(), second.database.clone()).await.unwrap();
    // What is to be the node's own cannot be made another's, whatever a statement says.
    let given = change(&first.database, "INSERT INTO sandboxes (id, body, node) VALUES ('i9', '{}', 'other')", Vec::new()).await;
    assert!(matches!(given, Err(StoreError::Refused { .. })), "{given:?}");
    // Who looks sees what the node sees, and takes it from nobody.
    let looks = NodeCatalogue::of(url.parse().unwrap(), node("b"));
    let look = looks.look("directoryb").await.unwrap();
    let written = change(&look, "DELETE FROM sandboxes", Vec::new()).await;
    assert!(matches!(written, Err(StoreError::Fenced { .. })), "{written:?}");
    put(&second, "iagain").await.unwrap();
    // A database that was gone is found again, and so is who has what.
    cluster
        .sql(
            "beside",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'beside' AND pid <> pg_backend_pid()",
        )
        .await;
    let found_again = async {
        while let Err(error) = put(&second, "ilast").await {
            assert!(matches!(error, StoreError::Away { .. }), "{error:?}");
        }
    };
    timeout(PATIENCE, found_again).await.unwrap();
    assert_eq!(ids(&second).await, ["iagain", "ilast"]);
    for open in [first, second] {
        open.database.close().await.unwrap();
    }
}

async fn who_is_not_who_it_says_is_refused(url: &str, cluster: &Cluster) {
    found(url).await;
    let first = open(url, "a").await;
    let twice = refusal(join(url, "a", Left::In(1)).await);
    assert!(matches!(twice, OpenError::NodeTaken { .. }), "{twice:?}");
    first.database.close().await.unwrap();
    let other = Node { secret_fingerprint: "guessed".to_owned(), ..node("b") };
    let guessed = NodeCatalogue::of(url.parse().unwrap(), other).open(holder("b", Left::Never)).await.map(|opened| opened.term);
    assert!(format!("{guessed:?}").contains("WrongSecret"), "{guessed:?}");
    assert!(matches!(Members::at(url.parse().unwrap(), "guessed").await, Err(OpenError::WrongSecret { .. })));
    // Another directory with the same id, and a copy of the same.
    let catalogue = NodeCatalogue::of(url.parse().unwrap(), node("a"));
    let foreign = catalogue.open(holder("elsewhere", Left::Never)).await.map(|opened| opened.term);
    assert!(format!("{foreign:?}").contains("Foreign"), "{foreign:?}");
    let copy = join(url, "a", Left::In(1)).await.unwrap();
    copy.database.close().await.unwrap();
    let original = refusal(join(url, "a", Left::In(1)).await);
    assert!(matches!(original, OpenError::WentOn { found: 2, known: 1, .. }), "{original:?}");
    let old = refusal(join(url, "a", Left::In(5)).await);
    assert!(matches!(old, OpenError::WentBack { found: 2, known: 5, .. }), "{old:?}");
    let never_here = refusal(join(url, "c", Left::In(5)).await);
    assert!(matches!(never_here, OpenError::WentBack { found: 0, known: 5, .. }), "{never_here:?}");
    // The lease of the other node goes on: versions that follow each other serve together, and no others.
    for (protocol, is_near) in [(3, false), (-1, false), (2, true), (0, true)] {
        cluster.sql("refused", &format!("UPDATE firkin.nodes SET protocol = {protocol} WHERE name = 'node-a'")).await;
        match join(url, "d", Left::Never).await {
            Ok(near) if is_near => near.database.close().await.unwrap(),
            far => {
                let far = refusal(far);
                assert!(
                    !is_near
                        && matches!(&far, OpenError::TooFar { node, theirs, ours: 1, .. } if node == "node-a" && *theirs == protocol),
                    "{far:?}"
                );
            }
        }
    }
    cluster.sql("refused", "UPDATE firkin.cluster SET protocol = 99").await;
    let spoken = refusal(join(url, "a", Left::In(2)).await);
    assert!(matches!(spoken, OpenError::Protocol { found: 99, .. }), "{spoken:?}");
    cluster.sql("refused", "UPDATE firkin.catalogue SET schema = 99, written_by = '9.9.9'").await;
    let newer = refusal(join(url, "a", Left::In(2)).await);
    assert!(matches!(newer, OpenError::Tables { .. }), "{newer:?}");
}

/// A server that is taken for dead and is not: its node's next one is there.
async fn an_earlier_term_changes_nothing(url: &str, cluster: &Cluster) {
    found(url).await;
    let stale = open(url, "a").await;
    put(&stale, "i1").await.unwrap();
    // It is the session with the lock that is lost, and it is taken again as soon as that is noticed.
    let next = loop {
        cluster
            .sql(
                "stale",
                "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                 WHERE d.datname = 'stale' AND l.locktype = 'advisory'",
            )
            .await;
        match join(url, "a", Left::After(stale.term)).await {
            Ok(next) => break next,
            refused => assert!(matches!(refusal(refused), OpenError::NodeTaken { .. })),
        }
    };
    assert_eq!((ids(&next).await, next.term), (vec!["i1".to_owned()], 2));
    for done in [put(&stale, "i2").await, update(&stale, "i1", (1, 2)).await] {
        assert!(matches!(done, Err(StoreError::Fenced { .. })), "{done:?}");
    }
    assert!(matches!(stale.membership.renew(None).await, Err(StoreError::Fenced { .. })));
    let claimed = stale.membership.claim(&sandbox("i1"), 1).await;
    assert!(matches!(claimed, Err(ClaimError::Store(StoreError::Fenced { .. }))), "{claimed:?}");
    let given = stale.membership.give_up(&sandbox("i1"), 1).await;
    assert!(matches!(given, Err(StoreError::Fenced { .. })), "{given:?}");
    assert_eq!(ids(&stale).await, Vec::<String>::new(), "nothing is its own any more");
    assert_eq!(update(&next, "i1", (1, 2)).await.unwrap(), 1);
    next.database.close().await.unwrap();
    timeout(PATIENCE, stale.database.close()).await.unwrap().unwrap();
}

/// It is killed before each of its messages, and its directory knows no more than that it was about to.
async fn a_node_killed_at_any_step_of_joining_joins_again(url: &str, cluster: &Cluster) {
    found_for_long(url).await;
    let first = open(url, "a").await;
    put(&first, "i1").await.unwrap();
    first.database.close().await.unwrap();
    let mut term = first.term;
    for step in 0.. {
        let proxy = Proxy::until(cluster.port(), step).await;
        let through = url.replace(&cluster.port().to_string(), &proxy.port().to_string());
        let joined = tokio::select! {
            joined = join(&through, "a", Left::In(term)) => joined.ok(),
            () = proxy.ended() => None,
        };
        let is_whole = joined.is_some() && !proxy.has_ended();
        drop((joined, proxy));
        let next = join(url, "a", Left::After(term)).await.unwrap();
        assert!(next.term > term, "a term is given once");
        assert_eq!(ids(&next).await, ["i1"], "and what is the node's is so in that");
        term = next.term;
        next.database.close().await.unwrap();
        if is_whole {
            return;
        }
        assert!(step < 100, "it comes to no end");
    }
}

/// Has the lease of a node end so long ago.
async fn end_lease(cluster: &Cluster, database: &str, id: &str, seconds: u32) {
    let id = node(id).id;
    let end = format!("UPDATE firkin.nodes SET lease_until = clock_timestamp() - interval '{seconds} s' WHERE id = '{id}'");
    cluster.sql(database, &end).await;
}

async fn what_is_nobodys_is_claimed_and_nothing_else(url: &str, cluster: &Cluster) {
    found(url).await;
    let (home, other) = (open(url, "a").await, open(url, "b").await);
    for id in ["i1", "i2"] {
        put(&home, id).await.unwrap();
    }
    put_as(&home, "iruns", false).await.unwrap();
    let claim = async |id: &str, epoch| other.membership.claim(&sandbox(id), epoch).await;
    let held = claim("i1", 1).await;
    assert!(matches!(held, Err(ClaimError::Held { .. })), "{held:?}");
    end_lease(cluster, "claims", "a", 1).await;
    let held = claim("i1", 1).await;
    assert!(matches!(held, Err(ClaimError::Held { .. })), "within the grace: {held:?}");
    // Whose lease is over writes nothing meanwhile, and nothing is lost by that.
    let late = update(&home, "i1", (1, 2)).await;
    assert!(matches!(late, Err(StoreError::Away { .. })), "{late:?}");
    end_lease(cluster, "claims", "a", 31).await;
    let changed = claim("i1", 2).await;
    assert!(matches!(changed, Err(ClaimError::Changed { found: 1, known: 2, .. })), "{changed:?}");
    let runs = claim("iruns", 1).await;
    assert!(matches!(runs, Err(ClaimError::NothingHeld { .. })), "{runs:?}");
    assert!(matches!(claim("inone", 1).await, Err(ClaimError::Gone { .. })));
    // Who has no lease claims nothing.
    end_lease(cluster, "claims", "b", 1).await;
    let lapsed = claim("i1", 1).await;
    assert!(matches!(lapsed, Err(ClaimError::Store(StoreError::Away { .. }))), "{lapsed:?}");
    assert!(other.membership.renew(None).await.unwrap().had_ended);
    let claimed = claim("i1", 1).await.unwrap();
    assert_eq!((claimed.epoch, claimed.from.as_str()), (2, node("a").id.as_str()));
    // It is held by what held it, in the life that this was cut in.
    assert!(claimed.body.contains("\"epoch\":2") && claimed.body.contains("\"artifactofi1\",\"epoch\":1"), "{}", claimed.body);
    assert_eq!((ids(&other).await, ids(&home).await.len()), (vec!["i1".to_owned()], 2));
    // Its home comes back, is told so, and keeps what nobody took.
    let lease = home.membership.renew(None).await.unwrap();
    assert!(lease.had_ended && !lease.holds() && lease.left() <= LeaseTimes::default().stop_after);
    assert!(home.membership.renew(None).await.unwrap().had_ended, "it has not looked yet");
    home.membership.looked(&lease);
    assert!(home.membership.lease().holds() && home.membership.renew(None).await.unwrap().holds());
    assert_eq!(update(&home, "i1", (1, 2)).await.unwrap(), 0);
    assert_eq!(update(&home, "i2", (1, 2)).await.unwrap(), 1);
    let back = home.membership.claim(&sandbox("i1"), 2).await;
    assert!(matches!(back, Err(ClaimError::Held { .. })), "{back:?}");
    for open in [home, other] {
        open.database.close().await.unwrap();
    }
}

async fn a_renewal_and_a_claim_come_one_after_the_other(url: &str, cluster: &Cluster) {
    found(url).await;
    let (home, other) = (open(url, "a").await, open(url, "b").await);
    put(&home, "i1").await.unwrap();
    let connect = async || {
        let (client, driven) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
        (client, tokio::spawn(driven))
    };
    // The home has renewed, and the database has not kept it yet: who claims waits, and finds that there is nothing to claim.
    end_lease(cluster, "crossed", "a", 31).await;
    let (renews, driven) = connect().await;
    let id = node("a").id;
    let renewal = format!("BEGIN; UPDATE firkin.nodes SET lease_until = clock_timestamp() + interval '2 min' WHERE id = '{id}'");
    renews.batch_execute(&renewal).await.unwrap();
    let i1 = sandbox("i1");
    let mut claiming = Box::pin(other.membership.claim(&i1, 1));
    assert!(timeout(Duration::from_millis(500), &mut claiming).await.is_err(), "a renewal is under way");
    renews.batch_execute("COMMIT").await.unwrap();
    let held = claiming.await;
    assert!(matches!(held, Err(ClaimError::Held { .. })), "{held:?}");
    // Somebody claims, and the database has not kept it yet: who renews waits, and is told that its lease had ended.
    end_lease(cluster, "crossed", "a", 31).await;
    renews.batch_execute(&format!("BEGIN; SELECT FROM firkin.nodes WHERE id = '{id}' FOR SHARE")).await.unwrap();
    let mut renewing = Box::pin(home.membership.renew(None));
    assert!(timeout(Duration::from_millis(500), &mut renewing).await.is_err(), "a claim is under way");
    renews.batch_execute("COMMIT").await.unwrap();
    assert!(renewing.await.unwrap().had_ended);
    drop(renews);
    driven.await.unwrap().unwrap();
    for open in [home, other] {
        open.database.close().await.unwrap();
    }
}

async fn what_is_given_up_is_anybodys_in_that_life(url: &str) {
    found(url).await;
    let (home, other) = (open(url, "a").await, open(url, "b").await);
    for id in ["i1", "i2"] {
        put(&home, id).await.unwrap();
    }
    put_as(&home, "iruns", false).await.unwrap();
    let wrong = [home.membership.give_up(&sandbox("i1"), 2).await, home.membership.give_up(&sandbox("iruns"), 1).await];
    let theirs = other.membership.give_up(&sandbox("i1"), 1).await;
    for refused in wrong.into_iter().chain([theirs]) {
        assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    }
    for id in ["i1", "i2"] {
        home.membership.give_up(&sandbox(id), 1).await.unwrap();
    }
    assert!(other.membership.members().whereabouts(&sandbox("i1")).await.unwrap().unwrap().is_given_up);
    // Its home goes on with one of them, and with that it is its own again.
    assert_eq!(update(&home, "i1", (1, 2)).await.unwrap(), 1);
    assert!(!other.membership.members().whereabouts(&sandbox("i1")).await.unwrap().unwrap().is_given_up);
    for epoch in [1, 2] {
        let kept = other.membership.claim(&sandbox("i1"), epoch).await;
        assert!(matches!(kept, Err(ClaimError::Changed { .. } | ClaimError::Held { .. })), "{kept:?}");
    }
    assert_eq!(other.membership.claim(&sandbox("i2"), 1).await.unwrap().epoch, 2);
    let again = home.membership.claim(&sandbox("i2"), 2).await;
    assert!(matches!(again, Err(ClaimError::Held { .. })), "{again:?}");
    for open in [home, other] {
        open.database.close().await.unwrap();
    }
}

async fn a_node_that_is_forgotten_has_nothing_until_it_comes_back(url: &str) {
    found(url).await;
    let (home, other) = (open(url, "a").await, open(url, "b").await);
    for id in ["i1", "i2"] {
        put(&home, id).await.unwrap();
    }
    let members = Members::at(url.parse().unwrap(), "known by").await.unwrap();
    let nobody: NodeId = "nobodynobodynobodyxx".parse().unwrap();
    assert!(!members.forget(&nobody, "it is off").await.unwrap());
    assert!(members.forget(home.membership.node(), "it is off").await.unwrap());
    assert_eq!(other.membership.claim(&sandbox("i1"), 1).await.unwrap().epoch, 2);
    let refused = put(&home, "i3").await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert!(matches!(home.membership.renew(None).await, Err(StoreError::Fenced { .. })));
    assert!(
        !members.set_state(home.membership.node(), NodeState::Ready, "").await.unwrap(),
        "only its server says that it is there"
    );
    timeout(PATIENCE, home.database.close()).await.unwrap().unwrap();
    let back = join(url, "a", Left::In(home.term)).await.unwrap();
    assert_eq!(ids(&back).await, vec!["i2".to_owned()]);
    put(&back, "i3").await.unwrap();
    for open in [back, other] {
        open.database.close().await.unwrap();
    }
}

async fn a_node_whose_catalogue_goes_back_writes_no_more(url: &str, cluster: &Cluster) {
    found(url).await;
    let (first, other) = (open(url, "a").await, open(url, "b").await);
    for id in ["i1", "i2"] {
        put(&first, id).await.unwrap();
    }
    let id = node("a").id;
    let back = format!(
        "UPDATE firkin.nodes SET last_write = last_write - 1 WHERE id = '{id}'; DELETE FROM firkin.sandboxes WHERE id = 'i2'"
    );
    cluster.sql("gone_back", &back).await;
    let fenced = put(&first, "i3").await;
    assert!(matches!(fenced, Err(StoreError::Fenced { .. })), "{fenced:?}");
    // Whose writes are all there goes on.
    put(&other, "i4").await.unwrap();
    for open in [first, other] {
        open.database.close().await.unwrap();
    }
}

async fn a_claim_whose_commit_is_cut_is_asked_about(url: &str, cluster: &Cluster) {
    found(url).await;
    let proxy = Proxy::start(cluster.port()).await;
    let home = open(url, "a").await;
    let other = open(&url.replace(&cluster.port().to_string(), &proxy.port().to_string()), "b").await;
    put(&home, "i1").await.unwrap();
    home.membership.give_up(&sandbox("i1"), 1).await.unwrap();
    proxy.cut_at_next(Cut::BeforeCommit);
    let lost = other.membership.claim(&sandbox("i1"), 1).await;
    assert!(matches!(lost, Err(ClaimError::Store(StoreError::Away { .. }))), "{lost:?}");
    assert_eq!((ids(&home).await.len(), ids(&other).await.len()), (1, 0));
    proxy.cut_at_next(Cut::AfterCommit);
    assert_eq!(other.membership.claim(&sandbox("i1"), 1).await.unwrap().epoch, 2);
    assert_eq!((ids(&home).await.len(), ids(&other).await.len()), (0, 1));
    for open in [home, other] {
        open.database.close().await.unwrap();
    }
}

async fn all_see_who_there_is(url: &str, cluster: &Cluster) {
    let record = found(url).await;
    let (first, second) = (open(url, "a").await, open(url, "b").await);
    put(&first, "i1").await.unwrap();
    put(&second, "i2").await.unwrap();
    first.membership.renew(Some("{\"free_mib\": 512}")).await.unwrap();
    end_lease(cluster, "seen", "b", 10).await;
    let members = Members::at(url.parse().unwrap(), "known by").await.unwrap();
    assert_eq!(members.cluster(), &record);
    assert!(members.set_state(second.membership.node(), NodeState::Draining, "a new disk").await.unwrap());
    let nodes = members.nodes().await.unwrap();
    let seen: Vec<_> = nodes.iter().map(|node| (node.name.as_str(), node.state, node.reason.as_str(), node.is_alive())).collect();
    assert_eq!(seen, [("node-a", NodeState::Ready, "", true), ("node-b", NodeState::Draining, "a new disk", false)]);
    assert_eq!((nodes[0].info.as_str(), nodes[0].term, nodes[0].lease_over), ("{\"free_mib\": 512}", 1, Duration::ZERO));
    assert!(nodes[0].lease_left <= LeaseTimes::default().lasts && nodes[1].lease_over >= Duration::from_secs(10));
    let there = members.whereabouts(&sandbox("i2")).await.unwrap().unwrap();
    assert_eq!((&there.node, there.term, there.epoch, there.phase.as_str()), (second.membership.node(), 1, 1, "paused"));
    assert!(there.team.is_first() && !there.is_given_up);
    assert_eq!(members.whereabouts(&sandbox("i3")).await.unwrap(), None);
    let of = async |team: Option<&str>| {
        let team = team.map(|team| team.parse().unwrap());
        let all = members.sandboxes_of_all(team.as_ref()).await.unwrap();
        all.into_iter().map(|any| any.node).collect::<Vec<_>>()
    };
    let both = vec![first.membership.node().clone(), second.membership.node().clone()];
    assert_eq!((of(None).await, of(Some("firkin")).await, of(Some("blue")).await), (both.clone(), both, Vec::new()));
    for open in [first, second] {
        open.database.close().await.unwrap();
    }
}

async fn a_lease_is_kept_until_its_node_is_forgotten(url: &str) {
    let [renew_every, stop_after, lasts] = [20, 60_000, 120_000].map(Duration::from_millis);
    let times = LeaseTimes { renew_every, stop_after, lasts, ..LeaseTimes::default() };
    init(&url.parse().unwrap(), &Founding { times, ..founding(None) }).await.unwrap();
    let node = open(url, "a").await;
    assert_eq!(node.membership.cluster().times, times);
    let (told, mut leases) = tokio::sync::watch::channel(node.membership.lease());
    let membership = Arc::clone(&node.membership);
    let keeping = tokio::spawn(async move { membership.keep(|| "{\"is\": 1}".to_owned(), &told).await });
    let first = *leases.borrow();
    for _ in 0..3 {
        timeout(PATIENCE, leases.changed()).await.unwrap().unwrap();
    }
    assert!(leases.borrow().stop_at > first.stop_at && leases.borrow().holds());
    let members = node.membership.members();
    assert_eq!(members.nodes().await.unwrap()[0].info, "{\"is\": 1}");
    assert!(members.forget(node.membership.node(), "it is off").await.unwrap());
    let over = timeout(PATIENCE, keeping).await.unwrap().unwrap();
    assert!(matches!(over, StoreError::Fenced { .. }), "{over:?}");
    node.database.close().await.unwrap();
}

async fn what_a_lost_node_was_to_tell_is_told_by_another(url: &str, cluster: &Cluster) {
    found(url).await;
    let (home, other) = (open(url, "a").await, open(url, "b").await);
    let hook = "INSERT INTO webhooks (id, enabled, body) VALUES ('w1', 1, '{}')";
    change(&home.database, hook, Vec::new()).await.unwrap();
    let told = "INSERT INTO deliveries (webhook, due_ms, body) VALUES ('w1', 1, '{}'), ('w1', 2, '{}')";
    change(&home.database, told, Vec::new()).await.unwrap();
    // Touches them without changing them: as many as are its own.
    let own = async |open: &Open| change(&open.database, "UPDATE own_deliveries SET body = body", Vec::new()).await.unwrap();
    let take = async || other.membership.take_deliveries(home.membership.node()).await.unwrap();
    assert_eq!((take().await, own(&home).await, own(&other).await), (0, 2, 0));
    end_lease(cluster, "told", "a", 31).await;
    assert_eq!((take().await, take().await, own(&other).await), (2, 0, 2));
    home.membership.renew(None).await.unwrap();
    assert_eq!(own(&home).await, 0);
    for open in [home, other] {
        open.database.close().await.unwrap();
    }
}
