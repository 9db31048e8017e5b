//! Many nodes that want the same sandboxes all the time: each life is one's.
//!
//! What happened is written down twice: by who claimed, and by the database itself at every change of a row, in its order.

use std::{collections::HashMap, sync::Arc};

use firkin_postgres::ClaimError;
use futures::future::join_all;
use tokio::sync::Mutex;

use crate::{
    database::Cluster,
    nodes::{Open, found_for_long, open, put, sandbox},
};

const CLAIMERS: usize = 16;
const SANDBOXES: usize = 8;

/// Claims that succeed: some seconds of them.
const CLAIMS: usize = 1600;

/// The database's own list.
const HISTORY: &str = "
    CREATE TABLE history (at BIGINT GENERATED ALWAYS AS IDENTITY, id TEXT, epoch BIGINT, node TEXT, term BIGINT);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO history (id, epoch, node, term)
            VALUES (NEW.id, CAST(firkin.json_extract(NEW.body, '$.epoch') AS BIGINT), NEW.node, NEW.term);
        RETURN NULL;
    END $$;
    CREATE TRIGGER noted AFTER INSERT OR UPDATE ON firkin.sandboxes FOR EACH ROW EXECUTE FUNCTION note();";

/// A life, and whose it is.
type Life = (String, u64, String, i64);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_life_of_a_sandbox_is_one_nodes_however_many_claim_it() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database("race");
    found_for_long(&url).await;
    cluster.sql("race", HISTORY).await;
    let nodes: Vec<Open> = join_all((0..CLAIMERS).map(|at| open_as(&url, at))).await;
    let nodes: Vec<Arc<Open>> = nodes.into_iter().map(Arc::new).collect();
    for at in 0..SANDBOXES {
        let home = &nodes[at % CLAIMERS];
        put(home, &format!("i{at}")).await.unwrap();
        home.membership.give_up(&sandbox(&format!("i{at}")), 1).await.unwrap();
    }
    let claimed = Arc::new(Mutex::new(Vec::<Life>::new()));
    let racing = nodes.iter().enumerate().map(|(at, node)| tokio::spawn(race(at, Arc::clone(node), Arc::clone(&claimed))));
    for raced in join_all(racing).await {
        raced.unwrap();
    }
    let claimed = Arc::try_unwrap(claimed).unwrap().into_inner();
    is_one_history(&claimed, &history(&url).await);
    for node in nodes {
        node.database.close().await.unwrap();
    }
}

async fn open_as(url: &str, at: usize) -> Open {
    open(url, &format!("n{at}n")).await
}

/// Goes from sandbox to sandbox, claims what is given up, and gives it up again.
async fn race(at: usize, node: Arc<Open>, claimed: Arc<Mutex<Vec<Life>>>) {
    for round in at.. {
        if claimed.lock().await.len() >= CLAIMS {
            return;
        }
        let id = sandbox(&format!("i{}", round % SANDBOXES));
        let there = node.membership.members().whereabouts(&id).await.unwrap().unwrap();
        match node.membership.claim(&id, there.epoch).await {
            Ok(life) => {
                assert_eq!(life.epoch, there.epoch + 1);
                let whose = (node.membership.node().to_string(), node.membership.term());
                claimed.lock().await.push((id.to_string(), life.epoch, whose.0, whose.1));
                node.membership.give_up(&id, life.epoch).await.unwrap();
            }
            Err(ClaimError::Held { .. } | ClaimError::Changed { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Every row that was written, in its order.
async fn history(url: &str) -> Vec<Life> {
    let (client, driven) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    let driven = tokio::spawn(driven);
    let rows = client.query("SELECT id, epoch, node, term FROM history ORDER BY at", &[]).await.unwrap();
    drop(client);
    driven.await.unwrap().unwrap();
    rows.iter().map(|row| (row.get(0), u64::try_from(row.get::<_, i64>(1)).unwrap(), row.get(2), row.get(3))).collect()
}

fn is_one_history(claimed: &[Life], history: &[Life]) {
    let mut last: HashMap<&str, (u64, (&str, i64))> = HashMap::new();
    for (id, epoch, node, term) in history {
        let whose = (node.as_str(), *term);
        match last.get(id.as_str()) {
            None => assert_eq!(*epoch, 1),
            Some((before, owner)) if epoch == before => assert_eq!(*owner, whose, "life {epoch} of {id} is two nodes'"),
            Some((before, _)) => assert_eq!(*epoch, before + 1, "{id}"),
        }
        last.insert(id, (*epoch, whose));
    }
    assert!(claimed.len() >= CLAIMS);
    let mut lives: Vec<_> = claimed.iter().collect();
    lives.sort();
    lives.dedup_by_key(|life| (&life.0, life.1));
    assert_eq!(lives.len(), claimed.len(), "each life was given once");
    let told: Vec<_> = claimed.iter().filter(|life| !history.contains(life)).collect();
    assert!(told.is_empty(), "who was told that it had a life has it: {told:?}");
    let total: u64 = last.values().map(|(epoch, _)| epoch - 1).sum();
    assert_eq!(total, claimed.len() as u64, "and nobody has one without being told");
    let winners: std::collections::HashSet<_> = claimed.iter().map(|life| &life.2).collect();
    assert!(winners.len() > 1, "they did race");
}
