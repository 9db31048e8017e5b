//! What is in the store on record: what is named stays, what is going is not taken to be there, and one node at a time removes.

use std::time::Duration;

use firkin_postgres::Storing;
use firkin_runtime::ids::ArtifactId;

use crate::{
    database::Cluster,
    nodes::{found_for_long, open, put},
};

const BEGUN: Storing = Storing::Begun { anew: false };

fn artifact(id: &str) -> ArtifactId {
    format!("artifactof{id}").parse().unwrap()
}

fn named(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_the_store_is_no_copy_that_is_owed_until_it_is_doubted() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("stored");
    found_for_long(&url).await;
    let [a, b] = [open(&url, "a").await, open(&url, "b").await];
    put(&a, "i1").await.unwrap();
    let owed = async || a.membership.owed(None).await.unwrap().len();
    let begin = async |id: &str| a.membership.begin_storing(&artifact(id), named(&["x", "y"])).await.unwrap();
    assert_eq!((begin("i1").await, begin("i1").await), (BEGUN, BEGUN), "who was interrupted begins again");
    let other = b.membership.begin_storing(&artifact("i1"), named(&["x"])).await.unwrap();
    assert_eq!(other, Storing::Others);
    assert!(!b.membership.stored(&artifact("i1")).await.unwrap(), "it is another's to say");
    assert!(a.membership.stored(&artifact("i1")).await.unwrap());
    assert_eq!((begin("i1").await, owed().await), (Storing::Whole, 1), "whoever has no store counts nothing that is there");
    a.membership.use_store();
    assert_eq!(owed().await, 0);
    assert!(b.membership.members().paused().await.unwrap()[0].stored);
    assert!(b.membership.doubt(&artifact("i1")).await.unwrap() && !b.membership.doubt(&artifact("i2")).await.unwrap());
    assert_eq!((owed().await, begin("i1").await), (1, Storing::Begun { anew: true }));
    assert!(a.membership.stored(&artifact("i1")).await.unwrap());
    assert_eq!(owed().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_that_a_row_names_and_what_goes_is_not_taken_to_be_there() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("going");
    found_for_long(&url).await;
    let [a, b] = [open(&url, "a").await, open(&url, "b").await];
    put(&a, "i1").await.unwrap();
    for (id, contents) in [("i1", ["x", "y"]), ("gone", ["y", "z"])] {
        assert_eq!(a.membership.begin_storing(&artifact(id), named(&contents)).await.unwrap(), BEGUN);
        assert!(a.membership.stored(&artifact(id)).await.unwrap());
    }
    let all = || named(&["x", "y", "z", "artifactofi1", "artifactofgone"]);
    assert!(a.membership.begin_cleaning(Duration::ZERO).await.unwrap());
    assert!(!b.membership.begin_cleaning(Duration::ZERO).await.unwrap(), "one at a time");
    assert_eq!(b.membership.let_go(all()).await.unwrap(), None);
    assert_eq!(a.membership.forget_stored(Duration::from_secs(3600)).await.unwrap(), 0, "it is kept for a while");
    assert_eq!(a.membership.let_go(all()).await.unwrap(), Some(Vec::new()));
    assert_eq!(a.membership.forget_stored(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(a.membership.let_go(all()).await.unwrap(), Some(named(&["z", "artifactofgone"])));
    let begin = async |contents: &[&str]| b.membership.begin_storing(&artifact("new"), named(contents)).await.unwrap();
    assert_eq!((begin(&["z"]).await, begin(&["x", "w"]).await), (Storing::Going, BEGUN));
    assert_eq!(a.membership.let_go(named(&["w", "v"])).await.unwrap(), Some(named(&["v"])), "what is being copied stays");
    a.membership.end_cleaning(true).await.unwrap();
    assert_eq!(begin(&["z"]).await, BEGUN);
    assert!(!b.membership.begin_cleaning(Duration::from_secs(3600)).await.unwrap(), "it was done within the hour");
    assert_eq!(a.membership.let_go(all()).await.unwrap(), None, "its turn is over");
    assert!(b.membership.begin_cleaning(Duration::ZERO).await.unwrap());
}
