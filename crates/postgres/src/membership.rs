//! What a node does as one of a cluster: it renews its lease, claims what is nobody's any more, and gives up what others may have.
//!
//! A claim is one statement, and of many who try from one life, one does. It takes the home's row against renewals until it is kept: a home that
//! renews after all comes before it, and then there is nothing to be claimed, or after it, and is told that its lease had ended.

use std::sync::{Arc, Mutex, PoisonError};

use firkin_runtime::{
    sandbox::SandboxId,
    store::{
        StoreError,
        database::{Database as _, DatabaseError, Mode, Statements, Value},
        next_life,
    },
};
use tokio_postgres::types::Type;

use crate::{
    Postgres,
    address::Address,
    cluster::ClusterRecord,
    holding::{FORGOTTEN, NodeId},
    lease::{Lease, Leases, boottime},
    members::{Line, Members},
};

/// The most that a node says of itself, bytes.
const MAX_INFO: usize = 64 << 10;

/// A sandbox whose next life is this node's, before anything of it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The life.
    pub epoch: u64,
    /// What is on record of it now.
    pub body: String,
    /// Whose it was, and who has its files: this node itself, where that gave it up.
    pub from: String,
}

/// Why a sandbox was not claimed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is not on record.
    #[error("cannot claim sandbox `{id}`: there is none of this name")]
    Gone {
        /// Which.
        id: SandboxId,
    },
    /// It is in another life by now.
    #[error("cannot claim sandbox `{id}`: it is in life {found}, and was in {known} when it was looked for")]
    Changed {
        /// Which.
        id: SandboxId,
        /// Its life.
        found: u64,
        /// The one that was read.
        known: u64,
    },
    /// Its node has it.
    #[error("cannot claim sandbox `{id}`: it is node `{node}`'s, which may be there")]
    Held {
        /// Which.
        id: SandboxId,
        /// Whose.
        node: String,
    },
    /// There is nothing that another node could begin with.
    #[error("cannot claim sandbox `{id}`: nothing holds it but its machine on node `{node}`")]
    NothingHeld {
        /// Which.
        id: SandboxId,
        /// Whose.
        node: String,
    },
    /// The catalogue says no, or is away.
    #[error("cannot claim a sandbox")]
    Store(#[from] StoreError),
}

/// A node's part in its cluster, in one term.
#[derive(Debug)]
pub struct Membership {
    node: NodeId,
    term: i64,
    cluster: ClusterRecord,
    leases: Mutex<Leases>,
    /// Renewals wait for nothing else.
    line: Line,
    database: Arc<Postgres>,
    members: Members,
}

impl Membership {
    pub(crate) fn new(
        address: Address,
        (node, term): (NodeId, i64),
        (cluster, lease): (ClusterRecord, Lease),
        database: Arc<Postgres>,
    ) -> Self {
        let members = Members::of(address.clone(), cluster.clone());
        Self { node, term, cluster, leases: Mutex::new(Leases::of(lease)), line: Line::to(address), database, members }
    }

    /// This node's id.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The number of this server among those that the node has had.
    pub fn term(&self) -> i64 {
        self.term
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    /// All of its nodes.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The lease as it was last given.
    pub fn lease(&self) -> Lease {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).last()
    }

    /// What is on record of this node was looked at after this lease was given: machines of what is another's by now were ended, and the
    /// others may go on.
    pub fn looked(&self, after: &Lease) {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner).looked(after);
    }

    /// Renews the lease, and says what others see of the node: a JSON object of at most 64 KiB, or what they saw before. Once this fails as
    /// fenced, the node is another server's, or an operator has said that it is off; in any other way, the lease that there was goes on.
    pub async fn renew(&self, info: Option<&str>) -> Result<Lease, StoreError> {
        let info = info.filter(|info| info.len() <= MAX_INFO);
        let mut given = None;
        // In this order: a lease that goes on is renewed only while nobody can have taken anything.
        for (had_ended, only_if) in [(false, "AND lease_until > clock_timestamp()"), (true, "")] {
            let sent = boottime();
            let lasts = self.cluster.times.lasts.as_millis();
            let renew = format!(
                "UPDATE firkin.nodes SET lease_until = clock_timestamp() + interval '{lasts} milliseconds', info = coalesce($3, info)
                 WHERE id = $1 AND term = $2 AND state <> '{FORGOTTEN}' {only_if} RETURNING 1"
            );
            let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
                [(&self.node.as_str(), Type::TEXT), (&self.term, Type::INT8), (&info, Type::TEXT)];
            let rows = self.line.ask(&renew, &values).await.map_err(|error| error.of("renew the lease of a node"))?;
            if !rows.is_empty() {
                given = Some((Lease::given(sent, &self.cluster.times), had_ended));
                break;
            }
        }
        let Some((lease, had_ended)) = given else { return Err(StoreError::Fenced { what: format!("node `{}`", self.node) }) };
        Ok(self.leases.lock().unwrap_or_else(PoisonError::into_inner).renewed(lease, had_ended))
    }

    /// Takes a sandbox for its next life, from the one that was read, if it is paused and was given up in that life, or if its node's lease has
    /// been over for longer than the cluster's grace. It is this node's from then on, and durably so when this returns.
    pub async fn claim(&self, id: &SandboxId, epoch: u64) -> Result<Claimed, ClaimError> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let claim = Claim {
            id: id.clone(),
            epoch,
            node: self.node.clone(),
            term: self.term,
            grace_ms: self.cluster.times.grace.as_millis(),
        };
        let work = Box::new(move |tx: &dyn Statements| {
            let done = claim.run(tx)?;
            // Nobody waits for it if this fails.
            drop(send.send(done));
            Ok(())
        });
        self.database.run(Mode::Write, work).await?;
        receive.recv().map_err(|_| StoreError::Closed)?
    }

    /// Lets others claim a paused sandbox of this node, for as long as it is in this life.
    pub async fn give_up(&self, id: &SandboxId, epoch: u64) -> Result<(), StoreError> {
        let text = id.as_str().to_owned();
        let values = [Value::Text(text), number(epoch), Value::Text(self.node.to_string()), Value::Integer(self.term)];
        let what = format!("sandbox `{id}`");
        let work = Box::new(move |tx: &dyn Statements| {
            let give_up = "UPDATE firkin.sandboxes SET given_up = ?2 WHERE id = ?1 AND node = ?3 AND term = ?4
                           AND CAST(json_extract(body, '$.epoch') AS BIGINT) = ?2
                           AND json_extract(body, '$.phase.phase') = 'paused'";
            let rows = tx.execute(give_up, &values).map_err(|error: DatabaseError| error.of("give up a sandbox"))?;
            if rows == 1 { Ok(()) } else { Err(StoreError::Fenced { what }) }
        });
        self.database.run(Mode::Write, work).await
    }
}

fn number(epoch: u64) -> Value {
    Value::Integer(i64::try_from(epoch).unwrap_or(i64::MAX))
}

/// What a claim knows.
struct Claim {
    id: SandboxId,
    epoch: u64,
    node: NodeId,
    term: i64,
    grace_ms: u128,
}

/// What is on record before it.
struct Found {
    body: String,
    node: String,
    epoch: u64,
}

impl Claim {
    /// What becomes of it. Only what the catalogue refuses is an error of the transaction.
    fn run(&self, tx: &dyn Statements) -> Result<Result<Claimed, ClaimError>, StoreError> {
        let id = || self.id.clone();
        let Some(Found { body, node, epoch }) = self.found(tx)? else { return Ok(Err(ClaimError::Gone { id: id() })) };
        if epoch != self.epoch {
            return Ok(Err(ClaimError::Changed { id: id(), found: epoch, known: self.epoch }));
        }
        let Some(next) = next_life(&body)? else { return Ok(Err(ClaimError::NothingHeld { id: id(), node })) };
        // By the time at which this transaction began, which is before it waited for anything. What is written stands on what was read, so it
        // has to be that still, and not only in the same life: its home may have paused it since.
        let claim = format!(
            "UPDATE firkin.sandboxes s SET node = ?3, term = ?4, body = ?5, given_up = NULL
             WHERE s.id = ?1 AND s.node = ?6 AND s.body = ?7 AND CAST(json_extract(s.body, '$.epoch') AS BIGINT) = ?2 AND (s.given_up = ?2 OR EXISTS (
                 SELECT FROM firkin.nodes n WHERE n.id = s.node
                 AND n.lease_until + interval '{} milliseconds' < now() FOR SHARE))",
            self.grace_ms
        );
        let values = [
            Value::Text(self.id.as_str().to_owned()),
            number(self.epoch),
            Value::Text(self.node.to_string()),
            Value::Integer(self.term),
            Value::Text(next.body.clone()),
            Value::Text(node.clone()),
            Value::Text(body),
        ];
        let rows = tx.execute(&claim, &values).map_err(|error| error.of("claim a sandbox"))?;
        if rows == 1 {
            Ok(Ok(Claimed { epoch: next.epoch, body: next.body, from: node }))
        } else {
            Ok(Err(ClaimError::Held { id: id(), node }))
        }
    }

    fn found(&self, tx: &dyn Statements) -> Result<Option<Found>, StoreError> {
        let asked = "SELECT body, node, CAST(json_extract(body, '$.epoch') AS BIGINT) FROM firkin.sandboxes WHERE id = ?1";
        let rows = tx.rows(asked, &[Value::Text(self.id.as_str().to_owned())]).map_err(|error| error.of("read a sandbox"))?;
        Ok(rows.first().and_then(|row| match row.as_slice() {
            [Value::Text(body), Value::Text(node), Value::Integer(epoch)] => {
                Some(Found { body: body.clone(), node: node.clone(), epoch: epoch.unsigned_abs() })
            }
            _ => None,
        }))
    }
}
