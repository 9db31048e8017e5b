//! One node of a cluster: how its server comes to have what is its own, in the next term, and what it opens then.
//!
//! ```text
//!   lock of the node's id ─► is it this cluster, this directory, as it was left? ─► term + 1, a lease, its rows re-labelled ─► opened
//! ```
//!
//! All of the second half is one transaction. Whoever wrote in an earlier term has ended before it, or finds that the term is over; of what a
//! node has, each row says its term, so that nothing of an earlier one is found, changed or removed by whoever is still in it.

use std::sync::{Arc, Mutex, PoisonError};

use firkin_runtime::store::{
    StoreError,
    catalog::{Catalog, Holder, Opened},
    database::{Database, DatabaseError},
};
use futures::future::BoxFuture;

use crate::{
    Postgres,
    address::Address,
    cluster::{self, ClusterRecord, PROTOCOL},
    connection::{Connection, WRITERS},
    hold::{self, Hold, lock_in_time},
    holding::{FORGOTTEN, Holding, NodeId},
    lease::{Lease, boottime},
    membership::{self, Membership},
    open_error::OpenError,
    schema,
};

/// How far the protocols of two nodes may be from each other: versions that follow each other serve together, so that nodes are replaced one by one.
const NEAR: i64 = 1;

/// A node, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What its state directory is known by.
    pub id: NodeId,
    /// For people.
    pub name: String,
    /// Where others reach it.
    pub address: String,
    /// What its cluster's secret is known by.
    pub secret_fingerprint: String,
}

/// What a node opens: the tables that all share, and in them its own sandboxes.
#[derive(Debug, Clone)]
pub struct NodeCatalogue {
    address: Address,
    node: Node,
    opened: Arc<Mutex<Option<Arc<Membership>>>>,
}

impl NodeCatalogue {
    /// That of a node, at an address.
    pub fn of(address: Address, node: Node) -> Self {
        Self { address, node, opened: Arc::default() }
    }

    /// The node's part in its cluster, since it was last opened.
    pub fn membership(&self) -> Option<Arc<Membership>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn join(&self, holder: &Holder) -> Result<Opened, OpenError> {
        let address = &self.address;
        let text = || address.to_string();
        let unreachable = |source| OpenError::Unreachable { address: text(), source };
        let refused = |error: DatabaseError| OpenError::Unreachable { address: text(), source: error.into() };
        let connection = Connection::to(address).await.map_err(unreachable)?;
        // What is another cluster's is not waited for, nor brought up to date.
        cluster::enter(address, &connection, &self.node.secret_fingerprint).await?;
        let holding = Holding::Node(self.node.id.clone());
        if !lock_in_time(&connection, &holding).await.map_err(refused)? {
            return Err(self.taken(&connection).await);
        }
        schema::migrate(connection.client()).await.map_err(|source| OpenError::Tables { address: text(), source })?;
        begin(&connection).await.map_err(refused)?;
        // Again: nobody has the cluster be of another secret from here on. Who is refused leaves its transaction with its connection.
        let cluster = cluster::enter(address, &connection, &self.node.secret_fingerprint).await?;
        let found = self.found(&connection).await.map_err(refused)?;
        self.fits(holder, found)?;
        self.demand_near(&connection).await?;
        let unsettled = |error: DatabaseError| OpenError::Unsettled { address: text(), source: error.into() };
        let sent = boottime();
        let (term, era) = self.claim(&connection, (holder, &cluster)).await.map_err(unsettled)?;
        let hold = Hold::of(address, connection, holding.clone(), term);
        let scoped = address.clone().of_node(&self.node.id, term);
        let database = Arc::new(Postgres::of(scoped, holding, (term, Some(hold))));
        database.begin_era(era);
        let lease = Lease::given(sent, &cluster.times);
        let membership = Membership::new(address.clone(), (self.node.id.clone(), term), (cluster, lease), database.clone());
        *self.opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(membership));
        Ok(Opened { term, database })
    }

    /// A node that was never here is in no term; it is as a directory that has never had its catalogue.
    fn fits(&self, holder: &Holder, found: Option<(String, i64)>) -> Result<(), OpenError> {
        let (theirs, term) = found.unwrap_or_else(|| (holder.installation.clone(), 0));
        hold::fits(&self.address, holder, (Some(theirs), term))
    }

    /// Refuses to join nodes that speak otherwise with each other than this one could.
    async fn demand_near(&self, connection: &Connection) -> Result<(), OpenError> {
        let asked = format!(
            "SELECT name, protocol FROM firkin.nodes
             WHERE id <> $1 AND state <> '{FORGOTTEN}' AND lease_until > clock_timestamp() AND abs(protocol - {PROTOCOL}) > {NEAR}
             ORDER BY name LIMIT 1"
        );
        let read = async {
            let row = connection.client().query_opt(&asked, &[&self.node.id.as_str()]).await?;
            row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
        };
        let found: Result<Option<(String, i64)>, DatabaseError> = connection.answered(read).await;
        match found {
            Ok(None) => Ok(()),
            Ok(Some((node, theirs))) => {
                Err(OpenError::TooFar { address: self.address.to_string(), node, theirs, ours: PROTOCOL })
            }
            Err(error) => Err(OpenError::Unreachable { address: self.address.to_string(), source: error.into() }),
        }
    }

    async fn found(&self, connection: &Connection) -> Result<Option<(String, i64)>, DatabaseError> {
        let asked = "SELECT installation, term FROM firkin.nodes WHERE id = $1 FOR UPDATE";
        let read = async {
            let row = connection.client().query_opt(asked, &[&self.node.id.as_str()]).await?;
            row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
        };
        connection.answered(read).await
    }

    /// Takes what is the node's, in a new term, which it gives with the era of the database. A state that an operator gave it stays, unless that was that it is off.
    async fn claim(
        &self,
        connection: &Connection,
        (holder, cluster): (&Holder, &ClusterRecord),
    ) -> Result<(i64, i64), DatabaseError> {
        let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let lasts = cluster.times.lasts.as_millis();
        let claim = format!(
            "INSERT INTO firkin.nodes AS n (id, name, address, installation, host, term, last_write, lease_until, state, protocol, era)
             SELECT $1, $2, $3, $4, $5, 1, 0, clock_timestamp() + interval '{lasts} milliseconds', 'ready', {PROTOCOL}, era FROM firkin.cluster
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, address = excluded.address, installation = excluded.installation,
                 host = excluded.host, protocol = excluded.protocol, era = excluded.era, term = n.term + 1, last_write = 0, lease_until = excluded.lease_until, info = '{{}}',
                 since = CASE WHEN n.state = '{FORGOTTEN}' THEN now() ELSE n.since END,
                 reason = CASE WHEN n.state = '{FORGOTTEN}' THEN '' ELSE n.reason END,
                 state = CASE WHEN n.state = '{FORGOTTEN}' THEN 'ready' ELSE n.state END
             RETURNING term, era"
        );
        let Node { id, name, address, .. } = &self.node;
        let claimed = async {
            let client = connection.client();
            client.batch_execute(membership::BEGIN_ERA).await?;
            let row = client.query_one(&claim, &[&id.as_str(), name, address, &holder.installation, &host.trim()]).await?;
            let (term, era): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            client.execute("UPDATE firkin.sandboxes SET term = $2 WHERE node = $1", &[&id.as_str(), &term]).await?;
            Ok((term, era))
        };
        let claimed = connection.answered(claimed).await?;
        connection.end("COMMIT").await?;
        Ok(claimed)
    }

    async fn taken(&self, connection: &Connection) -> OpenError {
        let (address, node) = (self.address.to_string(), self.node.id.to_string());
        let asked = "SELECT host FROM firkin.nodes WHERE id = $1";
        let read = async { connection.client().query_opt(asked, &[&node]).await };
        let host = match connection.answered(read).await {
            Ok(row) => row.and_then(|row| row.try_get(0).ok()),
            Err(_) => None,
        };
        OpenError::NodeTaken { address, node, host: host.unwrap_or_else(|| "unknown".to_owned()) }
    }

    async fn look_at(&self, installation: &str) -> Result<Arc<dyn Database>, OpenError> {
        let text = || self.address.to_string();
        let refused = |error: DatabaseError| OpenError::Unreachable { address: text(), source: error.into() };
        let unreachable = |source| OpenError::Unreachable { address: text(), source };
        let connection = Connection::to(&self.address).await.map_err(unreachable)?;
        cluster::enter(&self.address, &connection, &self.node.secret_fingerprint).await?;
        schema::demand_current(connection.client()).await.map_err(|source| OpenError::Tables { address: text(), source })?;
        begin(&connection).await.map_err(refused)?;
        let found = self.found(&connection).await.map_err(refused)?;
        let Some((theirs, term)) = found else { return Err(OpenError::Empty { address: text() }) };
        if theirs != installation {
            return Err(OpenError::Foreign { address: text(), theirs, ours: installation.to_owned() });
        }
        let scoped = self.address.clone().of_node(&self.node.id, term);
        let holding = Holding::Node(self.node.id.clone());
        Ok(Arc::new(Postgres::of(scoped, holding, (crate::NO_TERM, None))))
    }
}

/// From here on nobody writes until the transaction ends.
async fn begin(connection: &Connection) -> Result<(), DatabaseError> {
    let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({WRITERS})");
    connection.answered(connection.client().batch_execute(&begin)).await
}

impl Catalog for NodeCatalogue {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn open(&self, holder: Holder) -> BoxFuture<'_, Result<Opened, StoreError>> {
        Box::pin(async move { self.join(&holder).await.map_err(crate::not_opened) })
    }

    fn look<'a>(&'a self, installation: &'a str) -> BoxFuture<'a, Result<Arc<dyn Database>, StoreError>> {
        Box::pin(async move { self.look_at(installation).await.map_err(|error| StoreError::Catalog(error.into())) })
    }
}
