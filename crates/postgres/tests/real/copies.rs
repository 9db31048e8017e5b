//! Second copies on record: what is owed follows from the rows of sandboxes alone, and a row that nobody needs goes.

use firkin_postgres::NodeState;
use firkin_runtime::{ids::ArtifactId, store::StoreError};

use crate::{
    database::Cluster,
    nodes::{Open, found_for_long, open, put, sandbox},
};

fn artifact(id: &str) -> ArtifactId {
    format!("artifactof{id}").parse().unwrap()
}

async fn owed(open: &Open) -> Vec<String> {
    let owed = open.membership.owed(None).await.unwrap();
    owed.into_iter().map(|owed| format!("{} {}", owed.sandbox, owed.artifact)).collect()
}

async fn copied(open: &Open, id: &str) -> bool {
    open.membership.copied(&artifact(id)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_owed_until_another_node_has_it_and_kept_while_a_sandbox_is_held_by_it() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("copies");
    found_for_long(&url).await;
    let [a, b, c] = [open(&url, "a").await, open(&url, "b").await, open(&url, "c").await];
    for id in ["i1", "i2"] {
        put(&a, id).await.unwrap();
    }
    put(&b, "ib").await.unwrap();
    assert_eq!(owed(&a).await, ["i1 artifactofi1", "i2 artifactofi2"], "each node owes for its own");
    // Its own word for it is no second copy, and twice is once.
    assert!(copied(&a, "i1").await && copied(&b, "i1").await && copied(&b, "i1").await);
    assert_eq!(owed(&a).await, ["i2 artifactofi2"]);
    assert!(!copied(&b, "inobody").await, "nobody is held by it");
    assert_eq!(b.membership.copies().await.unwrap(), [artifact("i1")]);

    let one = async |id: &str| a.membership.owed(Some(&sandbox(id))).await.unwrap().len();
    assert_eq!((one("i1").await, one("i2").await, one("ib").await), (0, 1, 0));

    // An operator says that the node with the copy is off: it is owed again, until a third has it.
    a.membership.members().set_state(b.membership.node(), NodeState::Forgotten, "").await.unwrap();
    assert_eq!(owed(&a).await, ["i1 artifactofi1", "i2 artifactofi2"]);
    let refused = b.membership.copied(&artifact("i2")).await;
    assert!(matches!(refused, Err(StoreError::Fenced { .. })), "{refused:?}");
    assert!(copied(&c, "i1").await);
    assert_eq!(owed(&a).await, ["i2 artifactofi2"]);

    // Paused anew it is held by another artifact, which nobody has; what was copied is let go of, by each its own.
    assert_eq!(c.membership.let_go_of_copies().await.unwrap(), 0);
    let anew = "UPDATE firkin.sandboxes SET body = replace(body, 'artifactofi1', 'artifactofnew') WHERE id = 'i1'";
    cluster.sql("copies", anew).await;
    assert_eq!(owed(&a).await, ["i1 artifactofnew", "i2 artifactofi2"]);
    assert!(!copied(&c, "i1").await, "it comes too late");
    assert_eq!(c.membership.let_go_of_copies().await.unwrap(), 1);
    assert_eq!((a.membership.copies().await.unwrap().len(), c.membership.copies().await.unwrap().len()), (1, 0));

    // Of a node that is gone, whoever claims the sandbox owes the next copy.
    assert!(copied(&c, "new").await);
    a.membership.members().set_state(a.membership.node(), NodeState::Forgotten, "").await.unwrap();
    c.membership.claim(&sandbox("i1"), 1).await.unwrap();
    assert_eq!(owed(&c).await, ["i1 artifactofnew"]);
    assert_eq!(owed(&a).await, ["i2 artifactofi2"], "what was not claimed is as it was");

    // A disk that lost it.
    c.membership.lost_copies(vec![artifact("new"), artifact("other")]).await.unwrap();
    assert_eq!(c.membership.copies().await.unwrap(), []);
    for open in [a, b, c] {
        open.database.close().await.unwrap();
    }
}
