//! Secrets of a cluster: each node has the same ones, what nodes write at the same time comes one after the other, and all of them are sealed anew at once
//! or none is.

use firkin_postgres::{Inserted, Members, Reseal, SecretHead, SecretRow, SharedKeyRow, Wanted};
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
    SecretRow { head: SecretHead { id, team, name, version: 1, body }, sealed: sealed.into() }
}

fn wanted(team: &str, reference: &str) -> Wanted {
    let [id, name, team] = [reference, reference, team].map(str::to_owned);
    Wanted { id, name, team, anyones: false }
}

/// What comes after a row.
fn next(before: &SecretRow) -> Option<SecretRow> {
    let version = before.head.version + 1;
    Some(SecretRow { head: SecretHead { version, ..before.head.clone() }, sealed: version.to_string().into_bytes() })
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

    let found = async |wanted: Wanted| b.members().secret(&wanted).await.unwrap().map(|row| row.head.id);
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
    let listed = async |team, after| {
        let found = b.members().secrets(team, after).await.unwrap();
        found.into_iter().map(|head| head.id).collect::<Vec<_>>().join(" ")
    };
    assert_eq!((listed(Some("red"), "").await, listed(None, "").await), ("sec_1 sec_4".into(), "sec_1 sec_3 sec_4".into()));
    assert_eq!((listed(Some("red"), "sec_1").await, listed(None, "sec_4").await), ("sec_4".into(), String::new()));

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
    assert_eq!((now.head.version, now.sealed.as_slice()), (41, &b"41"[..]));
    assert_eq!(a.change_secret(wanted("red", "none"), next).await.unwrap(), None);
    a.change_secret(wanted("red", "key"), |_| None).await.unwrap();
    assert_eq!(b.members().secret(&wanted("red", "key")).await.unwrap(), Some(now), "nothing was to be changed");

    assert!(!b.remove_secret(wanted("blue", "sec_1")).await.unwrap(), "it is another team's");
    assert!(b.remove_secret(wanted("red", "key")).await.unwrap());
    assert!(!a.remove_secret(wanted("red", "key")).await.unwrap());

    // Of a name of a team there is one, and of a key of all, whoever is first.
    let insert = |on: &std::sync::Arc<firkin_postgres::Membership>, id: &str| {
        let (on, row) = (std::sync::Arc::clone(on), row(id, ("both", "key"), "sealed"));
        async move { on.insert_secret(row, 2).await.unwrap() }
    };
    let both: [Inserted; 2] = tokio::join!(insert(&a, "sec_6"), insert(&b, "sec_7")).into();
    assert!(both.contains(&Inserted::Kept) && both.contains(&Inserted::NameTaken), "{both:?}");
    cluster.sql("secrets", "DELETE FROM firkin.secrets WHERE team = 'both'").await;
    let keep = |sealed: &str| SharedKeyRow { name: "k".into(), sealed: sealed.into() };
    assert_eq!(a.members().shared_key("k").await.unwrap(), None);
    let (one, two) = tokio::join!(a.keep_shared_key(keep("eno")), b.keep_shared_key(keep("eon")));
    let kept = one.unwrap().sealed;
    assert!(kept == two.unwrap().sealed && [&b"eno"[..], b"eon"].contains(&&kept[..]), "{kept:?}");
    assert_eq!(b.keep_shared_key(keep("later")).await.unwrap().sealed, kept);

    sealed_anew_is_all_or_nothing(&cluster, &url, &a).await;
    for membership in [a, b] {
        drop(membership);
    }
}

async fn key_of_all(cluster: &Cluster) -> String {
    cluster.answer_of("secrets", "SELECT convert_from(sealed, 'UTF8') FROM firkin.shared_keys").await.unwrap()
}

/// What there is then: `sec_3`, `sec_4` and a key.
async fn sealed_anew_is_all_or_nothing(cluster: &Cluster, url: &str, node: &firkin_postgres::Membership) {
    cluster.sql("secrets", "UPDATE firkin.secrets SET sealed = 'xyz' WHERE id = 'sec_4'").await;
    let kept = key_of_all(cluster).await;
    // More than are read at a time.
    let many = "INSERT INTO firkin.secrets (id, team, name, version, body, sealed)
        SELECT 'x' || n, 'many', n::text, 1, '{}', convert_to('before', 'UTF8') FROM generate_series(1, 250) n";
    cluster.sql("secrets", many).await;
    let members = Members::at(url.parse().unwrap(), "known by").await.unwrap();
    let sealed = async || {
        let all = "SELECT string_agg(convert_from(sealed, 'UTF8'), ' ' ORDER BY id) FROM firkin.secrets WHERE id NOT LIKE 'x%'";
        cluster.answer_of("secrets", all).await.unwrap()
    };
    assert_eq!(members.rotate("known otherwise", &mut Backwards).await.unwrap(), None, "nodes hold their leases");
    assert_eq!(sealed().await, "sealed xyz");
    cluster.sql("secrets", "UPDATE firkin.nodes SET lease_until = clock_timestamp() - interval '1 s'").await;
    let closed = members.rotate("known otherwise", &mut Backwards).await.unwrap().unwrap();
    assert_eq!(closed, ["secret `second` of team `red`"], "what could not be opened is named");
    let anew = kept.chars().rev().collect::<String>();
    assert_eq!((sealed().await, key_of_all(cluster).await), ("delaes xyz".into(), anew));
    let missed = "SELECT count(*)::text FROM firkin.secrets WHERE team = 'many' AND convert_from(sealed, 'UTF8') <> 'erofeb'";
    assert_eq!(cluster.answer_of("secrets", missed).await.as_deref(), Some("0"));
    // A node that slept meanwhile writes nothing that nobody else could open, also with a lease.
    cluster.sql("secrets", "UPDATE firkin.nodes SET lease_until = clock_timestamp() + interval '1 h'").await;
    let refused = node.insert_secret(row("sec_9", ("red", "late"), "late"), 9).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
    assert_eq!(sealed().await, "delaes xyz");
}
