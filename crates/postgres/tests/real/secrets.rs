//! Secrets of a cluster: each node has the same ones, what nodes write at the same time comes one after the other, and all of them are sealed anew at once
//! or none is.

use firkin_postgres::{Inserted, Members, Reseal, SecretRow, SharedKeyRow, Wanted};
use firkin_runtime::store::StoreError;

use crate::{
    database::Cluster,
    nodes::{found_for_long, open},
};

/// Seals by reading backwards; what begins with `x` it cannot open.
pub(crate) struct Backwards;

fn backwards(sealed: &[u8]) -> Option<Vec<u8>> {
    (!sealed.starts_with(b"x")).then(|| sealed.iter().rev().copied().collect())
}

impl Reseal for Backwards {
    fn secret(&mut self, row: &SecretRow) -> Option<Vec<u8>> {
        backwards(&row.sealed)
    }

    fn key(&mut self, row: &SharedKeyRow) -> Option<Vec<u8>> {
        backwards(&row.sealed)
    }
}

fn row(id: &str, (team, name): (&str, &str), sealed: &str) -> SecretRow {
    let [id, team, name, body] = [id, team, name, "{}"].map(str::to_owned);
    SecretRow { id, team, name, version: 1, body, sealed: sealed.into() }
}

fn wanted(team: &str, reference: &str) -> Wanted {
    let [id, name, team] = [reference, reference, team].map(str::to_owned);
    Wanted { id, name, team, anyones: false }
}

/// What comes after a row.
fn next(before: &SecretRow) -> Option<SecretRow> {
    let version = before.version + 1;
    Some(SecretRow { version, sealed: version.to_string().into_bytes(), ..before.clone() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_has_the_same_secrets_and_writes_come_one_after_the_other() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("secrets");
    found_for_long(&url).await;
    let [a, b] = [open(&url, "a").await, open(&url, "b").await].map(|open| open.membership);
    let insert = async |id, of, most| a.insert_secret(row(id, of, "sealed"), most).await.unwrap();
    assert_eq!(insert("sec_1", ("red", "key"), 2).await, Inserted::Kept);
    assert_eq!(insert("sec_1", ("red", "other"), 2).await, Inserted::Before);
    assert_eq!(insert("sec_2", ("red", "key"), 2).await, Inserted::NameTaken);
    assert_eq!(insert("sec_3", ("blue", "key"), 2).await, Inserted::Kept);
    assert_eq!(insert("sec_4", ("red", "second"), 2).await, Inserted::Kept);
    assert_eq!(insert("sec_5", ("red", "third"), 2).await, Inserted::TooMany);

    let found = async |wanted: Wanted| b.members().secret(&wanted).await.unwrap().map(|row| row.id);
    for (team, reference, expected) in [
        ("red", "key", Some("sec_1")),
        ("blue", "key", Some("sec_3")),
        ("red", "sec_1", Some("sec_1")),
        ("blue", "sec_1", None),
        ("red", "none", None),
    ] {
        assert_eq!(found(wanted(team, reference)).await.as_deref(), expected, "{team} {reference}");
    }
    assert_eq!(found(Wanted { anyones: true, ..wanted("blue", "sec_1") }).await.as_deref(), Some("sec_1"));
    let listed = async |team| b.members().secrets(team).await.unwrap().into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!((listed(Some("red")).await, listed(None).await.len()), (vec!["sec_1".to_owned(), "sec_4".to_owned()], 3));

    // Two nodes at the same time: each stands on what the other left, so that none is lost.
    let changes = |on: &std::sync::Arc<firkin_postgres::Membership>| {
        let on = std::sync::Arc::clone(on);
        tokio::spawn(async move {
            for _ in 0..20 {
                assert!(on.change_secret(wanted("red", "key"), next).await.unwrap().is_some());
            }
        })
    };
    let (first, second) = (changes(&a), changes(&b));
    first.await.unwrap();
    second.await.unwrap();
    let now = b.members().secret(&wanted("red", "key")).await.unwrap().unwrap();
    assert_eq!((now.version, now.sealed.as_slice()), (41, &b"41"[..]));
    assert_eq!(a.change_secret(wanted("red", "none"), next).await.unwrap(), None);
    a.change_secret(wanted("red", "key"), |_| None).await.unwrap();
    assert_eq!(b.members().secret(&wanted("red", "key")).await.unwrap(), Some(now), "nothing was to be changed");

    assert!(!b.remove_secret(wanted("blue", "sec_1")).await.unwrap(), "it is another team's");
    assert!(b.remove_secret(wanted("red", "key")).await.unwrap());
    assert!(!a.remove_secret(wanted("red", "key")).await.unwrap());

    // Of a key of all there is one, whoever is first.
    let keep = async |sealed: &str| SharedKeyRow { name: "k".into(), sealed: sealed.into() };
    assert_eq!(a.members().shared_key("k").await.unwrap(), None);
    assert_eq!(a.keep_shared_key(keep("one").await).await.unwrap().sealed, b"one");
    assert_eq!(b.keep_shared_key(keep("two").await).await.unwrap().sealed, b"one");

    sealed_anew_is_all_or_nothing(&cluster, &url, &a).await;
    for membership in [a, b] {
        drop(membership);
    }
}

/// What there is then: `sec_3`, `sec_4` and a key.
async fn sealed_anew_is_all_or_nothing(cluster: &Cluster, url: &str, node: &firkin_postgres::Membership) {
    cluster.sql("secrets", "UPDATE firkin.secrets SET sealed = 'xyz' WHERE id = 'sec_4'").await;
    let members = Members::at(url.parse().unwrap(), "known by").await.unwrap();
    let sealed = async || {
        let rows = members.secrets(None).await.unwrap();
        rows.into_iter().map(|row| String::from_utf8(row.sealed).unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(members.rotate("known otherwise", &mut Backwards).await.unwrap(), None, "nodes hold their leases");
    assert_eq!(sealed().await, "sealed xyz");
    cluster.sql("secrets", "UPDATE firkin.nodes SET lease_until = clock_timestamp() - interval '1 s'").await;
    let closed = members.rotate("known otherwise", &mut Backwards).await.unwrap().unwrap();
    assert_eq!(closed, ["secret `second` of team `red`"], "what could not be opened is named");
    assert_eq!((sealed().await, members.shared_key("k").await.unwrap().unwrap().sealed), ("delaes xyz".into(), b"eno".to_vec()));
    // A node that slept meanwhile writes nothing that nobody else could open, also with a lease.
    cluster.sql("secrets", "UPDATE firkin.nodes SET lease_until = clock_timestamp() + interval '1 h'").await;
    let refused = node.insert_secret(row("sec_9", ("red", "late"), "late"), 9).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
    assert_eq!(sealed().await, "delaes xyz");
}
