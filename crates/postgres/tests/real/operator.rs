//! What an operator finds out of a cluster's catalogue: how the database is, what is whose, and what a template is made of.

use std::time::Duration;

use firkin_postgres::{Buildable, Members, OpenError};

use crate::{
    database::Cluster,
    nodes::{found_for_long, node, open, put},
    secrets::Backwards,
};

const TEMPLATES: &str = r#"
    INSERT INTO firkin.templates (id, team, name, body) VALUES
        ('t1', 'firkin', 'base', '{}'), ('t2', 'blue', 'base', '{}'), ('t3', 'firkin', NULL, '{}');
    INSERT INTO firkin.versions (build_id, template_id, body) VALUES
        ('old', 't1', '{"budget": {"memory_mib": 256}, "updated_at": "2026-01-01T00:00:00Z", "artifact": "a1"}'),
        ('now', 't1', '{"budget": {"memory_mib": 512}, "updated_at": "2026-01-02T00:00:00Z", "artifact": "a2", "runs_on": "kvm"}'),
        ('theirs', 't2', '{"budget": {"memory_mib": 128}, "updated_at": "2026-01-03T00:00:00Z", "artifact": "a3", "runs_on": "kvm"}'),
        ('shot', 't3', '{"budget": {"memory_mib": 64}, "updated_at": "2026-01-04T00:00:00Z", "artifact": "held", "runs_on": "gvisor"}');
    INSERT INTO firkin.names (team, name, build_id, assigned_at) VALUES
        ('firkin', 'base:default', 'now', ''), ('firkin', 'base:old', 'old', ''), ('blue', 'base:default', 'theirs', '')"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_how_a_cluster_is() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("told");
    found_for_long(&url).await;
    let (first, second) = (open(&url, "a").await, open(&url, "b").await);
    put(&first, "i1").await.unwrap();
    put(&first, "i2").await.unwrap();
    put(&second, "i3").await.unwrap();
    let members = Members::at(url.parse().unwrap(), "known by").await.unwrap();

    let health = members.health().await.unwrap();
    assert!(health.version.starts_with(|first: char| first.is_ascii_digit()), "{health:?}");
    assert!(!health.durable, "the tests' own writes nothing to the disk");
    assert_eq!((health.waits_for.as_str(), health.followers), ("", 0));
    assert_eq!((health.schema, health.written_by.as_str()), (health.schema_known, env!("CARGO_PKG_VERSION")));
    // It is this host's own.
    assert!(health.clock.at_least() < Duration::from_secs(1), "{health:?}");
    let cut_off = Duration::from_millis(2);
    assert!(health.clock.within <= health.round_trip + cut_off, "half of an exchange: {health:?}");

    let set = "UPDATE firkin.sandboxes SET body = jsonb_set(body::jsonb, '{phase}', '{\"phase\": \"running\"}')::text WHERE id = 'i2'; \
               UPDATE firkin.sandboxes SET body = jsonb_set(body::jsonb, '{phase,artifact}', '\"held\"')::text WHERE id = 'i3'";
    cluster.sql("told", set).await;
    cluster.sql("told", TEMPLATES).await;
    let counted: Vec<_> = members.counts().await.unwrap().into_iter().map(|one| (one.node, one.running, one.paused)).collect();
    assert_eq!(counted, [(node("a").id, 1, 1), (node("b").id, 0, 1)]);
    cluster.sql("told", "INSERT INTO firkin.copies SELECT 'held', id FROM firkin.nodes").await;
    let paused = members.paused().await.unwrap();
    assert_eq!(
        paused.iter().map(|one| one.copies.clone()).collect::<Vec<_>>(),
        [vec![], vec![node("a").id]],
        "its own is no copy"
    );
    let paused: Vec<_> = paused.iter().map(|one| (one.id.as_str(), one.node.clone(), one.builds.join(" "))).collect();
    assert_eq!(paused, [("i1", node("a").id, String::new()), ("i3", node("b").id, "shot".to_owned())]);

    let found = async |team: &str, template: &str| members.buildable(team, template).await.unwrap();
    let now = Buildable { build: "now".to_owned(), memory_mib: 512, runs_on: Some("kvm".to_owned()) };
    for template in ["base", "base:default", "t1", "t1:default", "now"] {
        assert_eq!(found("firkin", template).await, Some(now.clone()), "{template}");
    }
    let build = async |team: &str, template: &str| found(team, template).await.map(|found| found.build);
    for (team, template, expected) in [
        ("firkin", "base:old", Some("old")),
        ("firkin", "t1:old", Some("old")),
        ("blue", "base", Some("theirs")),
        ("blue", "base:old", None),
        ("firkin", "t3", Some("shot")),
        ("firkin", "base:none", None),
        ("firkin", "nothing", None),
    ] {
        assert_eq!(build(team, template).await.as_deref(), expected, "{team} {template}");
    }
    assert_eq!(found("firkin", "old").await.unwrap().runs_on, None, "what earlier versions built does not say");

    // The secret is changed while no node has a lease, and once.
    let rotate = async |to: &str| members.rotate(to, &mut Backwards).await.unwrap();
    assert_eq!(rotate("known otherwise").await, None);
    cluster.sql("told", "UPDATE firkin.nodes SET lease_until = clock_timestamp() - interval '1 s'").await;
    assert_eq!(rotate("known otherwise").await, Some(Vec::new()));
    assert_eq!(rotate("known otherwise still").await, None, "it was entered by the one before");
    assert!(matches!(Members::at(url.parse().unwrap(), "known by").await, Err(OpenError::WrongSecret { .. })));
    Members::at(url.parse().unwrap(), "known otherwise").await.unwrap();
    for open in [first, second] {
        open.database.close().await.unwrap();
    }
}
