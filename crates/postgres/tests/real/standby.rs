//! A primary that dies with commits that its standby lacks, and the standby in its place: the nodes notice, nobody begins a life that another may
//! have begun, and no number of one is given twice; also where it was promoted long after.

use std::time::Duration;

use firkin_causes::chain;
use firkin_postgres::{ClaimError, NodeState};
use firkin_runtime::store::{StoreError, catalog::Left};
use tokio::time::timeout;

use crate::{
    database::Cluster,
    nodes::{found_for_long, join, open, put, sandbox, update},
};

/// Longer than anything takes here, on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lives of the era after the first begin here.
const SECOND_ERA: u64 = 1 << 20;

/// Why a sandbox is not to be had before the nodes have looked.
fn refusal(refused: Result<u64, ClaimError>) -> String {
    match refused {
        Err(ClaimError::Store(error @ StoreError::Away { .. })) => chain(&error),
        other => panic!("it is not refused as by a catalogue that is away: {other:?}"),
    }
}

/// A standby that has what its primary has now, and gets no more.
async fn standby_as_of_now(primary: &Cluster) -> Cluster {
    let mut standby = primary.standby();
    let there = primary.answer("SELECT pg_current_wal_lsn()::text").await.unwrap();
    let is_there = format!("SELECT (pg_last_wal_replay_lsn() >= '{there}'::pg_lsn)::text");
    let catches_up = async {
        while standby.answer(&is_there).await.as_deref() != Some("true") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, catches_up).await.expect("the standby catches up");
    standby.kill();
    standby
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lacks_commits_is_noticed_and_no_life_is_given_twice() {
    let Some(mut primary) = Cluster::start() else { return };
    let url = primary.database("stood_by");
    found_for_long(&url).await;
    let (home, taker, other) = (open(&url, "a").await, open(&url, "b").await, open(&url, "c").await);
    for id in ["i1", "i2"] {
        put(&home, id).await.unwrap();
        home.membership.give_up(&sandbox(id), 1).await.unwrap();
    }
    let mut standby = standby_as_of_now(&primary).await;
    // This is on record, and nobody but the primary knows of it.
    assert_eq!(taker.membership.claim(&sandbox("i1"), 1).await.unwrap().epoch, 2);
    primary.kill();
    standby.promote_at(primary.port());

    let claim = async |id: &str| other.membership.claim(&sandbox(id), 1).await.map(|claimed| claimed.epoch);
    for id in ["i1", "i2"] {
        let why = refusal(claim(id).await);
        assert!(why.contains("a standby of it was promoted") && why.contains("bring the former database back"), "{why}");
    }
    // Whoever has lost nothing says so with its next renewals; the one that has does not, and is named.
    for node in [&home, &other, &taker] {
        for _ in 0..2 {
            node.membership.renew(None).await.unwrap();
        }
    }
    let why = refusal(claim("i1").await);
    assert!(why.contains("not heard of yet: `node-b`."), "{why}");
    // Nor does the node that the record names begin what runs elsewhere: its server may have found it there as it started.
    let own = update(&home, "i1", (1, 2)).await;
    assert!(matches!(own, Err(StoreError::Away { .. })), "{own:?}");
    // What begins no life is recorded all the while, but by who has lost something.
    put(&other, "i3").await.unwrap();
    let lost = put(&taker, "i4").await;
    assert!(matches!(lost, Err(StoreError::Fenced { .. })), "{lost:?}");

    // Its server is started again, and has what is on record. Then all goes on, with numbers that nobody has had.
    timeout(PATIENCE, taker.database.close()).await.unwrap().unwrap();
    let again = join(&url, "b", Left::In(1)).await.unwrap();
    assert_eq!(claim("i1").await.unwrap(), SECOND_ERA, "2 was given before");
    assert_eq!(again.membership.claim(&sandbox("i2"), 1).await.unwrap().epoch, SECOND_ERA);
    for open in [home, again, other] {
        timeout(PATIENCE, open.database.close()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_lease_was_long_over_in_a_standby_is_waited_for_but_not_for_ever() {
    let Some(mut primary) = Cluster::start() else { return };
    let url = primary.database("stood_by");
    found_for_long(&url).await;
    let (away, off, other) = (open(&url, "a").await, open(&url, "b").await, open(&url, "c").await);
    put(&away, "i1").await.unwrap();
    put(&off, "i2").await.unwrap();
    let mut standby = standby_as_of_now(&primary).await;
    // Somebody was told of this life, and its machine runs.
    update(&away, "i1", (1, 2)).await.unwrap();
    primary.kill();
    standby.promote_at(primary.port());
    // It took hours until somebody promoted it, and nobody could renew a lease meanwhile. One node comes back before the others.
    standby.sql("stood_by", "UPDATE firkin.nodes SET lease_until = now() - interval '5 hours'").await;
    for _ in 0..2 {
        other.membership.renew(None).await.unwrap();
    }
    let claim = async |id: &str| other.membership.claim(&sandbox(id), 1).await.map(|claimed| claimed.epoch);
    let why = refusal(claim("i1").await);
    assert!(why.contains("not heard of yet: `node-a`, `node-b`."), "{why}");
    // What an operator says is off runs nothing.
    other.membership.members().set_state(off.membership.node(), NodeState::Forgotten, "").await.unwrap();
    let why = refusal(claim("i2").await);
    assert!(why.contains("not heard of yet: `node-a`."), "{why}");
    // The lease that the node has by the former database may have been given until just before, so it is over this long after that.
    let passes = async |time: &str| {
        standby.sql("stood_by", &format!("UPDATE firkin.cluster SET era_since = era_since - interval '{time}'")).await;
    };
    passes("1 hour").await;
    let why = refusal(claim("i2").await);
    assert!(why.contains("not heard of yet: `node-a`."), "{why}");
    passes("1 hour 30 seconds").await;
    assert_eq!(claim("i1").await.unwrap(), SECOND_ERA);
    assert_eq!(claim("i2").await.unwrap(), SECOND_ERA);
    for open in [away, off, other] {
        timeout(PATIENCE, open.database.close()).await.unwrap().unwrap();
    }
}
