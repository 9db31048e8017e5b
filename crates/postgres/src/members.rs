//! The nodes of a cluster, and where its sandboxes are, for whoever knows its secret: nothing here is one node's.

use std::{sync::Arc, time::Duration};

use firkin_runtime::{
    sandbox::SandboxId,
    store::{StoreError, database::DatabaseError},
    team::TeamId,
};
use tokio::sync::Mutex as AsyncMutex;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    address::Address,
    cluster::{self, ClusterRecord},
    connection::{Connection, refusal},
    holding::{DRAINING, FORGOTTEN, NodeId},
    open_error::OpenError,
};

/// What an operator has a node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// It takes what comes.
    Ready,
    /// It takes nothing new.
    Cordoned,
    /// It takes nothing new, and gives away what it has.
    Draining,
    /// An operator has said that it is off: it has nothing any more that others could have, until its server starts again.
    Forgotten,
}

impl NodeState {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Cordoned, Self::Draining, Self::Forgotten];

    /// In the words of the catalogue.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Cordoned => "cordoned",
            Self::Draining => DRAINING,
            Self::Forgotten => FORGOTTEN,
        }
    }

    fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.word() == word)
    }
}

/// That of a node whose lease is over.
pub const AWAY: &str = "away";

/// A node, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// What it is known by.
    pub id: NodeId,
    /// For people.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// The name of its host.
    pub host: String,
    /// The number of its server.
    pub term: i64,
    /// What an operator has it do.
    pub state: NodeState,
    /// Why.
    pub reason: String,
    /// How long it has been in that state.
    pub since: Duration,
    /// What is left of its lease, by the database's clock; nothing if it is over.
    pub lease_left: Duration,
    /// How long its lease has been over; nothing if it is not.
    pub lease_over: Duration,
    /// What it says of itself, a JSON object.
    pub info: String,
}

impl NodeRecord {
    /// Whether it is there, as far as the database knows.
    pub fn is_alive(&self) -> bool {
        !self.lease_left.is_zero()
    }

    /// What it is, in one word: what an operator has it do, or [`AWAY`] where its lease is over and nobody has said that it is off.
    pub fn word(&self) -> &'static str {
        if self.is_alive() || self.state == NodeState::Forgotten { self.state.word() } else { AWAY }
    }
}

/// Where a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whereabouts {
    /// Its node.
    pub node: NodeId,
    /// In which of that node's terms.
    pub term: i64,
    /// Its life.
    pub epoch: u64,
    /// `running` or `paused`.
    pub phase: String,
    /// Whose it is.
    pub team: TeamId,
    /// Whether its node lets others have it.
    pub is_given_up: bool,
}

/// A sandbox of any node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnySandbox {
    /// Whose it is.
    pub node: NodeId,
    /// What is on record of it, as the store writes it.
    pub body: String,
}

/// One connection, which is made when something is asked and again when it is gone. Questions follow each other on it without waiting.
#[derive(Debug)]
pub(crate) struct Line {
    address: Address,
    connection: AsyncMutex<Option<Arc<Connection>>>,
}

impl Line {
    pub(crate) fn to(address: Address) -> Self {
        Self { address, connection: AsyncMutex::default() }
    }

    /// What an operation asks, each row as it is read.
    pub(crate) async fn asked<T>(
        &self,
        operation: &'static str,
        statement: &str,
        values: &[(&(dyn ToSql + Sync), Type)],
        read: impl Fn(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, StoreError> {
        let rows = self.ask(statement, values).await.map_err(|error| error.of(operation))?;
        rows.iter().map(|row| read(row).map_err(|error| error.of(operation))).collect()
    }

    /// A connection, and whether it was there before.
    async fn connected(&self) -> Result<(Arc<Connection>, bool), DatabaseError> {
        let mut known = self.connection.lock().await;
        if let Some(connection) = known.as_ref().filter(|connection| connection.is_whole()) {
            return Ok((Arc::clone(connection), true));
        }
        let made = Arc::new(Connection::to(&self.address).await.map_err(DatabaseError::Away)?);
        *known = Some(Arc::clone(&made));
        Ok((made, false))
    }

    /// Asks in one exchange: what may be asked twice, for a connection that was cut while nobody used it is noticed by asking.
    pub(crate) async fn ask(&self, statement: &str, values: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>, DatabaseError> {
        loop {
            let (connection, was_there) = self.connected().await?;
            match connection.answered(connection.client().query_typed(statement, values)).await {
                Err(DatabaseError::Away(_)) if was_there && connection.is_closed() => {}
                answer => return answer,
            }
        }
    }
}

/// All of a cluster.
#[derive(Debug)]
pub struct Members {
    cluster: ClusterRecord,
    pub(crate) line: Line,
    /// For what is long: nobody who looks one sandbox up waits behind it.
    pub(crate) lists: Line,
    /// For secrets, which requests of guests ask for: nobody who looks a sandbox up waits behind those either.
    pub(crate) secrets: Line,
}

const NODES: &str = "SELECT id, name, address, host, term, state, reason, info,
    CAST(extract(epoch FROM clock_timestamp() - since) * 1000 AS BIGINT),
    CAST(extract(epoch FROM lease_until - clock_timestamp()) * 1000 AS BIGINT) FROM firkin.nodes ORDER BY id";

const WHEREABOUTS: &str = "SELECT node, term, CAST(firkin.json_extract(body, '$.epoch') AS BIGINT),
    firkin.json_extract(body, '$.phase.phase'), firkin.json_extract(body, '$.owner'), given_up FROM firkin.sandboxes WHERE id = $1";

const BUILDER: &str = "SELECT node FROM firkin.builds WHERE firkin.json_extract(body, '$.template_id') = $1
    ORDER BY firkin.json_extract(body, '$.created_at') DESC LIMIT 1";

const OF_TEAM: &str = "SELECT node, body FROM firkin.sandboxes
    WHERE $1 IS NULL OR coalesce(firkin.json_extract(body, '$.owner'), $2) = $1 ORDER BY id";

impl Members {
    pub(crate) fn of(address: &Address, cluster: ClusterRecord) -> Self {
        let [line, lists, secrets] = [(); 3].map(|()| Line::to(address.clone()));
        Self { cluster, line, lists, secrets }
    }

    /// The cluster at an address, for whoever knows its secret: an operator, or a host that is no node.
    pub async fn at(address: Address, secret_fingerprint: &str) -> Result<Self, OpenError> {
        let unreachable = |source| OpenError::Unreachable { address: address.to_string(), source };
        let connection = Connection::to(&address).await.map_err(unreachable)?;
        let cluster = cluster::enter(&address, &connection, secret_fingerprint).await?;
        Ok(Self::of(&address, cluster))
    }

    /// The cluster.
    pub fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    pub(crate) fn address(&self) -> &Address {
        &self.line.address
    }

    /// Every node that has ever been one, by id.
    pub async fn nodes(&self) -> Result<Vec<NodeRecord>, StoreError> {
        self.line.asked("read the nodes", NODES, &[], node).await
    }

    /// Where a sandbox is; none where there is none of this name.
    pub async fn whereabouts(&self, id: &SandboxId) -> Result<Option<Whereabouts>, StoreError> {
        let found = self.line.asked("find a sandbox", WHEREABOUTS, &[(&id.as_str(), Type::TEXT)], whereabouts).await?;
        Ok(found.into_iter().next())
    }

    /// Whose the newest build of a template is; none where there is none.
    pub async fn builder(&self, template: &str) -> Result<Option<NodeId>, StoreError> {
        let node = |row: &Row| row.try_get::<_, String>(0).map_err(refusal);
        let found = self.line.asked("find a build", BUILDER, &[(&template, Type::TEXT)], node).await?;
        // Before the cluster was one, its builds were nobody's by name.
        Ok(found.first().and_then(|node| node.parse().ok()))
    }

    /// What is on record of the sandboxes of a team, or of all, on every node, by id.
    pub async fn sandboxes_of_all(&self, team: Option<&TeamId>) -> Result<Vec<AnySandbox>, StoreError> {
        let (team, first) = (team.map(TeamId::as_str), TeamId::first());
        let values: [(&(dyn ToSql + Sync), Type); 2] = [(&team, Type::TEXT), (&first.as_str(), Type::TEXT)];
        let any = |row: &Row| Ok(AnySandbox { node: id(row, 0)?, body: row.try_get(1).map_err(refusal)? });
        self.lists.asked("read the sandboxes of all nodes", OF_TEAM, &values, any).await
    }

    /// Has a node be in another state, for a reason. Whether there is such a node. One that was forgotten stays so until its server starts again.
    pub async fn set_state(&self, node: &NodeId, state: NodeState, reason: &str) -> Result<bool, StoreError> {
        if state == NodeState::Forgotten {
            return self.forget(node, reason).await;
        }
        let set = format!(
            "UPDATE firkin.nodes SET state = $2, reason = $3, since = now() WHERE id = $1 AND state <> '{FORGOTTEN}' RETURNING 1"
        );
        let values: [(&(dyn ToSql + Sync), Type); 3] =
            [(&node.as_str(), Type::TEXT), (&state.word(), Type::TEXT), (&reason, Type::TEXT)];
        let rows = self.line.asked("change a node", &set, &values, |_| Ok(())).await?;
        Ok(!rows.is_empty())
    }

    /// An operator says that a node is off: its lease counts as over, and what it had can be claimed at once. Where that is not so, two machines
    /// may run one sandbox. The server of that node, should there be one, records nothing more. Whether there is such a node.
    pub async fn forget(&self, node: &NodeId, reason: &str) -> Result<bool, StoreError> {
        let forget = format!(
            "WITH forgotten AS (
                 UPDATE firkin.nodes SET state = '{FORGOTTEN}', reason = $2, since = now(), lease_until = 'epoch' WHERE id = $1 RETURNING id),
             gone AS (DELETE FROM firkin.copies c USING forgotten f WHERE c.node = f.id)
             SELECT 1 FROM forgotten"
        );
        let values: [(&(dyn ToSql + Sync), Type); 2] = [(&node.as_str(), Type::TEXT), (&reason, Type::TEXT)];
        let rows = self.line.asked("forget a node", &forget, &values, |_| Ok(())).await?;
        Ok(!rows.is_empty())
    }
}

pub(crate) fn id(row: &Row, column: usize) -> Result<NodeId, DatabaseError> {
    let text: String = row.try_get(column).map_err(refusal)?;
    text.parse().map_err(|_| DatabaseError::Column { column })
}

pub(crate) fn ids(row: &Row, column: usize) -> Result<Vec<NodeId>, DatabaseError> {
    let texts: Vec<String> = row.try_get(column).map_err(refusal)?;
    texts.iter().map(|text| text.parse().map_err(|_| DatabaseError::Column { column })).collect()
}

fn node(row: &Row) -> Result<NodeRecord, DatabaseError> {
    let text = |column: usize| row.try_get::<_, String>(column).map_err(refusal);
    let ms = |column: usize| row.try_get::<_, i64>(column).map_err(refusal);
    let past = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or_default());
    let left = ms(9)?;
    Ok(NodeRecord {
        id: id(row, 0)?,
        name: text(1)?,
        address: text(2)?,
        host: text(3)?,
        term: ms(4)?,
        state: NodeState::of(&text(5)?).ok_or(DatabaseError::Column { column: 5 })?,
        reason: text(6)?,
        info: text(7)?,
        since: past(ms(8)?),
        lease_left: past(left),
        lease_over: past(left.saturating_neg()),
    })
}

fn whereabouts(row: &Row) -> Result<Whereabouts, DatabaseError> {
    let epoch: i64 = row.try_get(2).map_err(refusal)?;
    let team: Option<String> = row.try_get(4).map_err(refusal)?;
    let given_up: Option<i64> = row.try_get(5).map_err(refusal)?;
    let phase: String = row.try_get(3).map_err(refusal)?;
    Ok(Whereabouts {
        node: id(row, 0)?,
        term: row.try_get(1).map_err(refusal)?,
        epoch: u64::try_from(epoch).map_err(|_| DatabaseError::Column { column: 2 })?,
        is_given_up: phase == "paused" && given_up == Some(epoch),
        phase,
        team: team.map_or_else(|| Ok(TeamId::first()), |team| team.parse().map_err(|_| DatabaseError::Column { column: 4 }))?,
    })
}
