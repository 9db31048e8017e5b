//! A primary that dies with commits that its standby lacks, and the standby in its place: the nodes notice, nobody begins a life that another may
//! have begun, and no number of one is given twice.

use std::time::Duration;

use firkin_causes::chain;
use firkin_postgres::ClaimError;
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
