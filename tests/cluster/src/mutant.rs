//! Nodes with something taken out by which two could not have one sandbox, so that it is seen that the checks see.
//!
//! The product has no switch for this. A mutant stands between it and what it asks: its transactions are done through [`Altered`], and its claims
//! through [`Judged`]. Where there is none, both pass everything on.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc::sync_channel},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use firkin_cluster::Peers;
use firkin_postgres::NodeCatalogue;
use firkin_runtime::{
    claims::{ClaimRefused, Claims},
    ids::ArtifactId,
    sandbox::SandboxId,
    store::{
        StoreError,
        catalog::{Catalog, Holder, Opened},
        database::{Database, DatabaseError, Mode, Parts, Statements, Value, Work},
        next_life,
    },
};
use futures::future::BoxFuture;
use serde_json::Value as Json;

/// How long one who has found that something can be claimed waits at most until the others have, too.
const MEETS: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// What is taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mutant {
    /// Nobody stops machines when the lease is over.
    NoWarden,
    /// The `WHERE` of a claim compares neither the epoch nor what else was read of the sandbox: whether its node is lost is asked of the node that was read.
    BlindClaims,
    /// A life is on record once its guest has begun: the statement that claims it before is not sent, and the one that says that it runs takes its place.
    LateRecords,
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoWarden => "no-warden",
            Self::BlindClaims => "blind-claims",
            Self::LateRecords => "late-records",
        })
    }
}

/// A node's catalogue.
#[derive(Debug)]
pub(crate) struct Mutated {
    inner: Arc<NodeCatalogue>,
    mutant: Option<Mutant>,
    /// Since it was opened.
    database: OnceLock<Arc<dyn Database>>,
}

impl Mutated {
    pub(crate) fn of(inner: Arc<NodeCatalogue>, mutant: Option<Mutant>) -> Self {
        Self { inner, mutant, database: OnceLock::new() }
    }
}

impl Catalog for Mutated {
    fn address(&self) -> String {
        self.inner.address()
    }

    fn open(&self, holder: Holder) -> BoxFuture<'_, Result<Opened, StoreError>> {
        Box::pin(async move {
            let Opened { database, term } = self.inner.open(holder).await?;
            // A node opens it once.
            drop(self.database.set(Arc::clone(&database)));
            let database = match self.mutant {
                Some(Mutant::LateRecords) => Arc::new(Altered { inner: database, unsent: Arc::default() }) as Arc<dyn Database>,
                Some(Mutant::NoWarden | Mutant::BlindClaims) | None => database,
            };
            Ok(Opened { database, term })
        })
    }

    fn look<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>> {
        self.inner.look(installation)
    }
}

/// Claims that were not sent, with the epoch that is on record.
type Unsent = Arc<Mutex<HashMap<String, i64>>>;

/// A database that is not told of a life before it runs.
#[derive(Debug)]
struct Altered {
    inner: Arc<dyn Database>,
    unsent: Unsent,
}

impl Database for Altered {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn run(&self, mode: Mode, work: Work) -> BoxFuture<'_, Result<(), StoreError>> {
        let unsent = Arc::clone(&self.unsent);
        self.inner.run(mode, Box::new(move |tx| work(&Late { tx, unsent })))
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn first_life(&self) -> u64 {
        self.inner.first_life()
    }

    fn parts(&self) -> Parts {
        self.inner.parts()
    }

    fn after_rows_with_numbers(&self) -> &'static [&'static str] {
        self.inner.after_rows_with_numbers()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}

/// A transaction of it.
struct Late<'a> {
    tx: &'a dyn Statements,
    unsent: Unsent,
}

impl Late<'_> {
    fn unsent(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Statements for Late<'_> {
    fn execute(&self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError> {
        let is_guarded = statement.starts_with("UPDATE sandboxes SET body") || statement.starts_with("DELETE FROM sandboxes");
        let [Value::Text(id), Value::Integer(low), Value::Integer(high), rest @ ..] = values else {
            return self.tx.execute(statement, values);
        };
        if !is_guarded {
            return self.tx.execute(statement, values);
        }
        if let [Value::Text(body)] = rest
            && let Ok(body) = serde_json::from_str::<Json>(body)
            && body["phase"]["phase"] == "paused"
            && body["epoch"].as_i64().is_some_and(|epoch| epoch > *high)
        {
            self.unsent().entry(id.clone()).or_insert(*low);
            return Ok(1);
        }
        let known = self.unsent().get(id).copied();
        let low = known.map_or(*low, |known| known.min(*low));
        let guard = [Value::Text(id.clone()), Value::Integer(low), Value::Integer(*high)];
        let rows = self.tx.execute(statement, &[&guard, rest].concat())?;
        self.unsent().remove(id);
        Ok(rows)
    }

    fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<Vec<Value>>, DatabaseError> {
        self.tx.rows(statement, values)
    }
}

/// How a node claims.
#[derive(Debug)]
pub(crate) struct Judged {
    peers: Arc<Peers>,
    catalogue: Arc<Mutated>,
    /// While this is there, nothing is claimed after it was found that it can be, which the other file tells.
    slow: PathBuf,
    looked: PathBuf,
    /// What was read of sandboxes that are about to be claimed blindly.
    read: Mutex<Vec<Read>>,
}

impl Judged {
    pub(crate) fn of(peers: Arc<Peers>, catalogue: Arc<Mutated>, (slow, looked): (PathBuf, PathBuf)) -> Self {
        Self { peers, catalogue, slow, looked, read: Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Read>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was read counts, whatever has become of it since.
    async fn claim_blindly(&self, read: Read) -> Result<String, ClaimRefused> {
        let database = self.catalogue.database.get().ok_or(StoreError::Closed)?;
        let membership = self.catalogue.inner.membership().ok_or(StoreError::Closed)?;
        let Some(next) = next_life(&read.body, 0)? else { return Err(ClaimRefused::Held("it runs".into())) };
        let (send, receive) = sync_channel(1);
        let values = [
            Value::Text(read.id),
            Value::Text(membership.node().to_string()),
            Value::Integer(membership.term()),
            Value::Text(next.body.clone()),
            Value::Text(read.node),
        ];
        let work: Work = Box::new(move |tx| {
            let claim = "UPDATE firkin.sandboxes SET node = ?2, term = ?3, body = ?4, given_up = NULL WHERE id = ?1 AND (
                given_up IS NOT NULL OR EXISTS (SELECT FROM firkin.nodes n WHERE n.id = ?5 AND n.lease_until < clock_timestamp()))";
            let rows = tx.execute(claim, &values).map_err(|error| error.of("claim a sandbox blindly"))?;
            // Nobody waits for it if this fails.
            send.send(rows).ok();
            Ok(())
        });
        database.run(Mode::Write, work).await?;
        match receive.recv() {
            Ok(1) => Ok(next.body),
            _ => Err(ClaimRefused::Held("it is another's".into())),
        }
    }

    /// What is on record of a sandbox.
    async fn read(&self, id: &SandboxId) -> Result<Option<Read>, StoreError> {
        let database = self.catalogue.database.get().ok_or(StoreError::Closed)?;
        let (send, receive) = sync_channel(1);
        let id = id.as_str().to_owned();
        let work: Work = Box::new(move |tx| {
            let asked = "SELECT node, body FROM firkin.sandboxes WHERE id = ?1";
            let rows = tx.rows(asked, &[Value::Text(id.clone())]).map_err(|error| error.of("read a sandbox"))?;
            let row = rows.into_iter().next();
            let read = row.and_then(|row| match <[Value; 2]>::try_from(row) {
                Ok([Value::Text(node), Value::Text(body)]) => Some(Read { id, node, body }),
                _ => None,
            });
            drop(send.send(read));
            Ok(())
        });
        database.run(Mode::Read, work).await?;
        receive.recv().map_err(|_| StoreError::Closed)
    }
}

/// What was on record when somebody looked whether it can be claimed.
#[derive(Debug)]
struct Read {
    id: String,
    node: String,
    body: String,
}

impl Claims for Judged {
    fn give_up<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        self.peers.give_up(id, epoch)
    }

    fn is_free<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let is_free = self.peers.is_free(id).await?;
            if is_free && self.catalogue.mutant == Some(Mutant::BlindClaims) {
                let read = self.read(id).await?;
                let mut known = self.known();
                known.retain(|known| known.id != id.as_str());
                known.extend(read);
            }
            if is_free && self.slow.exists() {
                if let Err(error) = fs_err::write(&self.looked, "") {
                    tracing::error!(%error, "nobody is told that it can be claimed");
                }
                let waiting = Instant::now();
                while self.slow.exists() && waiting.elapsed() < MEETS {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Ok(is_free)
        })
    }

    fn is_held<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.peers.is_held(artifact)
    }

    fn copied<'a>(&'a self, artifact: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        self.peers.copied(artifact)
    }

    fn claim<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<String, ClaimRefused>> {
        let read = {
            let mut known = self.known();
            known.iter().position(|read| read.id == id.as_str()).map(|at| known.swap_remove(at))
        };
        match read {
            Some(read) => Box::pin(self.claim_blindly(read)),
            None => self.peers.claim(id, epoch),
        }
    }
}
