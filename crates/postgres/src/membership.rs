//! What a node does as one of a cluster: it renews its lease, claims what is nobody's any more, and gives up what others may have.
//!
//! Whoever keeps it has a server that starts and continues nothing that others could have while [`Lease::holds`] is false.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use firkin_runtime::{
    sandbox::SandboxId,
    store::{
        StoreError,
        database::{Database as _, DatabaseError, Mode, Statements, Value},
    },
};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};
use tokio_postgres::{Row, types::Type};

use crate::{
    Postgres,
    address::Address,
    claim::{Claim, ClaimError, Claimed, number, over},
    cluster::ClusterRecord,
    holding::{FORGOTTEN, NodeId},
    lease::{Lease, Leases, boottime},
    members::{Line, Members},
};

/// Begins another era of the database where it is another one than it was: a standby that was promoted may lack what was kept.
pub(crate) const BEGIN_ERA: &str =
    "UPDATE firkin.cluster SET timeline = firkin.timeline(), era = era + 1, era_since = clock_timestamp()
    WHERE timeline <> firkin.timeline()";

/// And where a node misses what it had recorded, although the database is the one that it was, as after a backup of its files was put in its place. Done
/// once: the node says no more that nothing of its own is lost.
const BEGIN_ERA_OF_LOSS: &str = "UPDATE firkin.cluster SET era = era + 1, era_since = clock_timestamp()
    WHERE era = (SELECT era FROM firkin.nodes WHERE id = $1)";

/// The most that a node says of itself, bytes.
const MAX_INFO: usize = 64 << 10;

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
    /// It was told that what it had recorded is not there.
    has_lost: AtomicBool,
    /// Whether this node has the store that is beside the nodes' disks.
    has_store: AtomicBool,
}

impl Membership {
    pub(crate) fn new(
        address: Address,
        (node, term): (NodeId, i64),
        (cluster, lease): (ClusterRecord, Lease),
        database: Arc<Postgres>,
    ) -> Self {
        let members = Members::of(&address, cluster.clone());
        Self {
            node,
            term,
            cluster,
            leases: Mutex::new(Leases::of(lease)),
            line: Line::to(address),
            database,
            members,
            has_lost: AtomicBool::new(false),
            has_store: AtomicBool::new(false),
        }
    }

    /// This node's id.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The number of this server among those that the node has had.
    pub fn term(&self) -> i64 {
        self.term
    }

    pub(crate) fn database(&self) -> &Postgres {
        &self.database
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    /// All of its nodes.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// This node has the store that is beside the nodes' disks: from now on what is there is a copy.
    pub fn use_store(&self) {
        self.has_store.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_store(&self) -> bool {
        self.has_store.load(Ordering::Relaxed)
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
        // What is kept from now on is there, too, if this is.
        let kept = self.database.kept();
        // In this order: a lease that goes on is renewed only while nobody can have taken anything.
        for (had_ended, only_if) in [(false, "AND lease_until > clock_timestamp()"), (true, "")] {
            let sent = boottime();
            let lasts = self.cluster.times.lasts.as_millis();
            let renew = format!(
                "UPDATE firkin.nodes n SET lease_until = clock_timestamp() + interval '{lasts} milliseconds', info = coalesce($3, info),
                     era = CASE WHEN last_write >= $4 THEN c.era ELSE n.era END
                 FROM firkin.cluster c WHERE n.id = $1 AND term = $2 AND state <> '{FORGOTTEN}' {only_if}
                 RETURNING last_write, c.era, c.timeline <> firkin.timeline()"
            );
            let values: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] =
                [(&self.node.as_str(), Type::TEXT), (&self.term, Type::INT8), (&info, Type::TEXT), (&kept, Type::INT8)];
            let rows = self.line.ask(&renew, &values).await.map_err(|error| error.of("renew the lease of a node"))?;
            if let Some(row) = rows.first() {
                self.look_back(row, kept).await.map_err(|error| error.of("see whether the catalogue went back"))?;
                given = Some((Lease::given(sent, &self.cluster.times), had_ended));
                break;
            }
        }
        let Some((lease, had_ended)) = given else { return Err(StoreError::Fenced { what: format!("node `{}`", self.node) }) };
        Ok(self.leases.lock().unwrap_or_else(PoisonError::into_inner).renewed(lease, had_ended))
    }

    /// Whether the database is the one that it was, and has what this node had recorded; what begins with another one is begun.
    async fn look_back(&self, row: &Row, kept: i64) -> Result<(), DatabaseError> {
        let of = |error: tokio_postgres::Error| DatabaseError::Refused(error.into());
        let (last_write, era, is_another): (i64, i64, bool) =
            (row.try_get(0).map_err(of)?, row.try_get(1).map_err(of)?, row.try_get(2).map_err(of)?);
        self.database.begin_era(era);
        if is_another {
            tracing::warn!(node = %self.node, "a standby of the catalogue was promoted, or a backup restored: no sandbox begins another life before each node has found that nothing is lost");
            self.line.ask(BEGIN_ERA, &[]).await?;
        }
        if last_write < kept {
            if !self.has_lost.swap(true, Ordering::Relaxed) {
                tracing::error!(
                    node = %self.node, last_write, kept,
                    "the catalogue went back behind what this node had recorded, and no sandbox begins another life on any: bring the former database back, or stop this server with `--on-exit leave` and start it again"
                );
            }
            self.line.ask(BEGIN_ERA_OF_LOSS, &[(&self.node.as_str(), Type::TEXT)]).await?;
        }
        Ok(())
    }

    /// Renews the lease in its turn, for as long as the node has one, and tells each that it gets. Ends once the node is another server's, or an
    /// operator has said that it is off, with the error that says so: nothing that others could have may run here any more.
    pub async fn keep(&self, info: impl Fn() -> String, told: &watch::Sender<Lease>) -> StoreError {
        let mut turns = interval(self.cluster.times.renew_every);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            match self.renew(Some(&info())).await {
                Ok(lease) => drop(told.send_replace(lease)),
                Err(error @ StoreError::Fenced { .. }) => return error,
                Err(error) => {
                    let (left, error) = (self.lease().left(), firkin_causes::chain(&error));
                    tracing::warn!(node = %self.node, left_ms = left.as_millis(), error, "the lease of this node is not renewed");
                }
            }
        }
    }

    /// Takes a sandbox for its next life, from the one that was read, if it is paused and was given up in that life, or if its node's lease has
    /// been over for longer than the cluster's grace. It is this node's from then on, and durably so when this returns.
    pub async fn claim(&self, id: &SandboxId, epoch: u64) -> Result<Claimed, ClaimError> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let grace = self.cluster.times.grace;
        let first_life = self.database.first_life();
        let claim = Claim { id: id.clone(), epoch, node: self.node.clone(), term: self.term, grace, first_life };
        let work = Box::new(move |tx: &dyn Statements| {
            let done = claim.run(tx)?;
            // Nobody waits for it if this fails.
            drop(send.send(done));
            Ok(())
        });
        self.database.run(Mode::Write, work).await?;
        receive.recv().map_err(|_| StoreError::Closed)?
    }

    /// Has this node send what another was to send to webhooks and has not, if that one's lease has been over for longer than the cluster's grace.
    /// How much that is. What was under way there may arrive twice.
    pub async fn take_deliveries(&self, from: &NodeId) -> Result<usize, StoreError> {
        let (send, receive) = std::sync::mpsc::sync_channel(1);
        let take = format!(
            "UPDATE firkin.deliveries SET node = ?1 WHERE node = ?2 AND EXISTS (
                 SELECT FROM firkin.nodes n WHERE n.id = ?2 AND {} FOR SHARE)",
            over(self.cluster.times.grace)
        );
        let values = [Value::Text(self.node.to_string()), Value::Text(from.to_string())];
        let work = Box::new(move |tx: &dyn Statements| {
            let rows = tx.execute(&take, &values).map_err(|error: DatabaseError| error.of("take deliveries"))?;
            // Nobody waits for it if this fails.
            send.send(rows).ok();
            Ok(())
        });
        self.database.run(Mode::Write, work).await?;
        receive.recv().map_err(|_| StoreError::Closed)
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
