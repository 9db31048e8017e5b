//! A catalogue that several nodes have: how it becomes one, and by what a node knows that it is the right one.

use firkin_runtime::store::{
    catalog::{Holder, Left},
    database::DatabaseError,
};

use crate::{
    address::Address,
    connection::Connection,
    hold::{self, CLUSTER, is_made, lock_in_time, taken, whose},
    holding::{Holding, NodeId},
    lease::LeaseTimes,
    open_error::OpenError,
    schema::{self, MigrateError},
};

/// How nodes of this version speak with the catalogue and with each other.
pub(crate) const PROTOCOL: i64 = 1;

/// What a cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founding {
    /// What the cluster's secret is known by, and cannot be found from.
    pub secret_fingerprint: String,
    /// Its times.
    pub times: LeaseTimes,
    /// Whose the catalogue has been.
    pub founder: Option<Founder>,
}

/// A state directory that has had the catalogue alone, and becomes a node: what is on record is that node's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    /// Its node.
    pub node: NodeId,
    /// The directory, in the term in which it left the catalogue.
    pub holder: Holder,
}

/// A cluster, as its catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRecord {
    /// For people, and to tell one from another.
    pub id: String,
    /// What its secret is known by.
    pub secret_fingerprint: String,
    /// Its times.
    pub times: LeaseTimes,
}

/// Has the catalogue at `address` be a cluster's. Nobody has it meanwhile. What is on record there becomes the founder's, who has to be the
/// one whose it was: nobody else has its files. A catalogue that holds nothing needs no founder. Where it was done before, with the same secret,
/// nothing is.
pub async fn init(address: &Address, founding: &Founding) -> Result<ClusterRecord, OpenError> {
    let text = || address.to_string();
    let Some(times) = founding.times.columns() else { return Err(OpenError::Times { times: founding.times }) };
    let unreachable = |source| OpenError::Unreachable { address: text(), source };
    let refused = |error: DatabaseError| OpenError::Unreachable { address: text(), source: error.into() };
    let connection = Connection::to(address).await.map_err(unreachable)?;
    if is_made(&connection).await.map_err(refused)?
        && let Some(found) = demand_known(address, &connection).await?
    {
        return known(address, found, &founding.secret_fingerprint);
    }
    if !lock_in_time(&connection, &Holding::Whole).await.map_err(refused)? {
        return Err(taken(address, &connection).await);
    }
    if is_made(&connection).await.map_err(refused)? {
        demand_founder(address, founding, whose(&connection).await.map_err(refused)?)?;
    }
    schema::migrate(connection.client()).await.map_err(|source| OpenError::Tables { address: text(), source })?;
    if let Some(found) = record(&connection).await.map_err(refused)? {
        return known(address, found, &founding.secret_fingerprint);
    }
    let (theirs, term) = hold::standing(&connection).await.map_err(refused)?;
    demand_founder(address, founding, (theirs.clone(), term))?;
    let unsettled = |error: DatabaseError| OpenError::Unsettled { address: text(), source: error.into() };
    found(&connection, founding, times).await.map_err(unsettled)?;
    if let (Some(founder), Some(_)) = (&founding.founder, theirs) {
        settle(&connection, founder, term).await.map_err(unsettled)?;
    }
    connection.end("COMMIT").await.map_err(unsettled)?;
    let found = record(&connection).await.map_err(unsettled)?;
    found.map(|(record, _)| record).ok_or_else(|| OpenError::NoCluster { address: text() })
}

/// A cluster that is one already, if the secret is its own.
fn known(address: &Address, found: (ClusterRecord, i64), fingerprint: &str) -> Result<ClusterRecord, OpenError> {
    demand(address, Some(found), fingerprint)
}

/// Only whose catalogue it is founds a cluster on it.
fn demand_founder(address: &Address, founding: &Founding, found: (Option<String>, i64)) -> Result<(), OpenError> {
    match (&found.0, &founding.founder) {
        (Some(theirs), None) => Err(OpenError::Founded { address: address.to_string(), installation: theirs.clone() }),
        (Some(_), Some(founder)) => hold::fits(address, &founder.holder, found),
        (None, _) => Ok(()),
    }
}

async fn found(connection: &Connection, founding: &Founding, times: [i64; 4]) -> Result<(), DatabaseError> {
    let [lasts, renew, stop, grace] = times;
    let insert = "INSERT INTO firkin.cluster (id, secret_fingerprint, protocol, lease_ms, renew_ms, stop_ms, grace_ms)
                  VALUES (substr(md5(gen_random_uuid()::text), 1, 12), $1, $2, $3, $4, $5, $6) RETURNING id";
    // In a later term: a server that had it alone and was taken for dead changes nothing more.
    let name = "UPDATE firkin.catalogue SET installation = $1, host = NULL, since = now(), term = term + 1";
    let done = async {
        let client = connection.client();
        let fingerprint = &founding.secret_fingerprint;
        let row = client.query_one(insert, &[fingerprint, &PROTOCOL, &lasts, &renew, &stop, &grace]).await?;
        let id: String = row.try_get(0)?;
        client.execute(name, &[&format!("{CLUSTER}{id}")]).await.map(drop)
    };
    connection.answered(done).await
}

/// Has what is on record be the founder's, in the term in which it left the catalogue. It takes the next when it comes.
async fn settle(connection: &Connection, founder: &Founder, term: i64) -> Result<(), DatabaseError> {
    let (id, installation) = (founder.node.as_str(), &founder.holder.installation);
    let node = "INSERT INTO firkin.nodes (id, name, address, installation, host, term, last_write, lease_until, state)
                VALUES ($1, $1, '', $2, '', $3, 0, now(), 'ready')";
    let done = async {
        let client = connection.client();
        client.execute(node, &[&id, installation, &term]).await?;
        client.execute("UPDATE firkin.sandboxes SET node = $1, term = $2", &[&id, &term]).await?;
        for table in ["builds", "deliveries", "build_layers"] {
            client.execute(&format!("UPDATE firkin.{table} SET node = $1"), &[&id]).await?;
        }
        Ok(())
    };
    connection.answered(done).await
}

/// The cluster whose the catalogue is, with the protocol of its nodes.
async fn record(connection: &Connection) -> Result<Option<(ClusterRecord, i64)>, DatabaseError> {
    let asked = "SELECT id, secret_fingerprint, protocol, lease_ms, renew_ms, stop_ms, grace_ms FROM firkin.cluster";
    let read = async {
        let Some(row) = connection.client().query_opt(asked, &[]).await? else { return Ok(None) };
        let record =
            ClusterRecord { id: row.try_get(0)?, secret_fingerprint: row.try_get(1)?, times: LeaseTimes::read(&row, 3)? };
        Ok(Some((record, row.try_get(2)?)))
    };
    connection.answered(read).await
}

/// The cluster of a catalogue that has tables, which are of no later version. None where it is no cluster's.
pub(crate) async fn demand_known(address: &Address, connection: &Connection) -> Result<Option<(ClusterRecord, i64)>, OpenError> {
    let refused = |error: DatabaseError| OpenError::Unreachable { address: address.to_string(), source: error.into() };
    match schema::demand_current(connection.client()).await {
        // It had no clusters.
        Err(MigrateError::Older { found: 0 | 1, .. }) => return Ok(None),
        Ok(()) | Err(MigrateError::Older { .. }) => {}
        Err(source) => return Err(OpenError::Tables { address: address.to_string(), source }),
    }
    record(connection).await.map_err(refused)
}

/// The cluster whose secret is known.
pub(crate) fn demand(
    address: &Address,
    found: Option<(ClusterRecord, i64)>,
    fingerprint: &str,
) -> Result<ClusterRecord, OpenError> {
    let text = || address.to_string();
    let Some((record, protocol)) = found else { return Err(OpenError::NoCluster { address: text() }) };
    if record.secret_fingerprint != fingerprint {
        return Err(OpenError::WrongSecret { address: text(), cluster: record.id });
    }
    if protocol != PROTOCOL {
        return Err(OpenError::Protocol { address: text(), found: protocol, known: PROTOCOL });
    }
    Ok(record)
}

/// The cluster at an address, for whoever knows its secret.
pub(crate) async fn enter(address: &Address, connection: &Connection, fingerprint: &str) -> Result<ClusterRecord, OpenError> {
    let refused = |error: DatabaseError| OpenError::Unreachable { address: address.to_string(), source: error.into() };
    if !is_made(connection).await.map_err(refused)? {
        return Err(OpenError::NoCluster { address: address.to_string() });
    }
    let found = demand_known(address, connection).await?;
    demand(address, found, fingerprint)
}

impl Founder {
    /// A directory that had the catalogue alone, last in this term.
    pub fn left(node: NodeId, installation: &str, term: i64) -> Self {
        Self { node, holder: Holder { installation: installation.to_owned(), left: Left::In(term) } }
    }
}
