//! What an operator asks of a cluster's catalogue: how its database is, what is on record as whose, and what a template is made of. And the one
//! thing that is the whole cluster's: by what its secret is known.

use std::time::{Duration, Instant, SystemTime};

use firkin_runtime::store::{StoreError, database::DatabaseError};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    connection::{Connection, WRITERS, refusal},
    holding::NodeId,
    members::{Members, id, ids},
    schema,
    secrets::{self, Reseal},
};

/// How often the clocks are compared: of these, the shortest exchange says most.
const LOOKS: usize = 3;

/// A database, as it says itself, and as it is seen from here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Its version, in its words.
    pub version: String,
    /// From a question to its answer: the shortest of a few.
    pub round_trip: Duration,
    /// Whether what it was told to keep is on its disk when it says so.
    pub durable: bool,
    /// The standbys that a commit waits for, as the database is configured (`synchronous_standby_names`). Empty: none.
    pub waits_for: String,
    /// The standbys that follow it now, as far as this user may see them.
    pub followers: u64,
    /// The version of the tables.
    pub schema: i64,
    /// The one that this program has.
    pub schema_known: i64,
    /// The version of firkin that has made them.
    pub written_by: String,
    /// By how much this host's clock differs.
    pub clock: ClockOffset,
}

/// The clock of a host against that of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockOffset {
    /// By how many milliseconds this host's is ahead; below zero it is behind.
    pub ahead_ms: i64,
    /// How far that may be wrong, for an answer takes its time.
    pub within: Duration,
}

impl ClockOffset {
    /// The least that the clocks differ by.
    pub fn at_least(self) -> Duration {
        Duration::from_millis(self.ahead_ms.unsigned_abs()).saturating_sub(self.within)
    }

    /// From the time there, in milliseconds since 1970, and the time here before and after it was asked.
    fn of(there_ms: i64, (before, after): (SystemTime, SystemTime)) -> Self {
        let ms = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        };
        let (before, after) = (ms(before), ms(after));
        let halfway = before + (after - before) / 2;
        // One more: milliseconds were cut off.
        let within = Duration::from_millis((after - before).unsigned_abs() / 2 + 1);
        Self { ahead_ms: halfway - there_ms, within }
    }
}

/// How many sandboxes of a node are on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Whose they are.
    pub node: NodeId,
    /// Those that run.
    pub running: u64,
    /// Those that are paused.
    pub paused: u64,
}

/// A paused sandbox, and what it goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PausedSandbox {
    /// Its id.
    pub id: String,
    /// Its home, which has its files.
    pub node: NodeId,
    /// The artifact that holds it.
    pub artifact: String,
    /// The versions of templates and snapshots that are of the same artifact: whoever holds one has its files too.
    pub builds: Vec<String>,
    /// The other nodes that have said that they keep a copy of it.
    pub copies: Vec<NodeId>,
    /// Whether the store has one.
    pub stored: bool,
}

/// What is made of a template, as far as it decides where it can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buildable {
    /// The version that is meant.
    pub build: String,
    /// Memory of a sandbox of it, MiB.
    pub memory_mib: u64,
    /// What it has to be run by, by the word for which it is asked. Not on record of what earlier versions made.
    pub runs_on: Option<String>,
}

const SAID: &str = "SELECT current_setting('server_version'),
    current_setting('fsync') = 'on' AND current_setting('synchronous_commit') <> 'off',
    current_setting('synchronous_standby_names'), (SELECT count(*) FROM pg_stat_replication), schema, written_by FROM firkin.catalogue";

const TIME: &str = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)";

const COUNTS: &str = "SELECT node, count(*) FILTER (WHERE phase = 'running'), count(*) FILTER (WHERE phase = 'paused')
    FROM (SELECT node, firkin.json_extract(body, '$.phase.phase') AS phase FROM firkin.sandboxes) AS each GROUP BY node ORDER BY node";

const PAUSED: &str = "SELECT s.id, s.node, s.artifact, array_remove(array_agg(v.build_id), NULL),
        ARRAY(SELECT c.node FROM firkin.copies c WHERE c.artifact = s.artifact AND c.node <> s.node ORDER BY c.node),
        EXISTS (SELECT FROM firkin.stored t WHERE t.artifact = s.artifact AND t.is_whole AND NOT t.is_doubtful)
    FROM (SELECT id, node, firkin.json_extract(body, '$.phase.artifact') AS artifact FROM firkin.sandboxes
          WHERE firkin.json_extract(body, '$.phase.phase') = 'paused') AS s
    LEFT JOIN firkin.versions v ON firkin.json_extract(v.body, '$.artifact') = s.artifact
    GROUP BY s.id, s.node, s.artifact ORDER BY s.node, s.id";

/// By a name of the team, with its tag; by the id of the template, with a tag; by the id of a version. A name goes before an id, and where no tag is
/// said, the default before the newest.
const TEMPLATE: &str = "SELECT v.build_id, CAST(firkin.json_extract(v.body, '$.budget.memory_mib') AS BIGINT),
        firkin.json_extract(v.body, '$.runs_on')
    FROM firkin.versions v LEFT JOIN firkin.names n ON n.build_id = v.build_id
    WHERE (n.team = $1 AND n.name = $2 || ':' || coalesce($3, 'default')) OR v.build_id = $2
        OR (v.template_id = $2 AND ($3 IS NULL OR right(n.name, length($3) + 1) = ':' || $3))
    ORDER BY (n.team = $1 AND n.name = $2 || ':' || coalesce($3, 'default')) DESC NULLS LAST, (n.name LIKE '%:default') DESC NULLS LAST,
        firkin.json_extract(v.body, '$.updated_at') DESC
    LIMIT 1";

/// No node has a lease: whoever had one would go on with another secret than the next, and neither would let the other in.
const ROTATE: &str = "UPDATE firkin.cluster SET secret_fingerprint = $2 WHERE secret_fingerprint = $1
    AND NOT EXISTS (SELECT FROM firkin.nodes WHERE lease_until > clock_timestamp()) RETURNING 1";

impl Members {
    /// Has the cluster be known by another secret from now on, and all that is sealed under the one that it had be sealed anew: all of it, or nothing.
    /// What could not be opened stays as it was, and is named. None where the cluster is not known by the other one: while a node holds its lease, and
    /// where it has another secret than that by which it was entered.
    pub async fn rotate(&self, fingerprint: &str, reseals: &mut dyn Reseal) -> Result<Option<Vec<String>>, StoreError> {
        let operation = "change the secret of the cluster";
        let of = |error: DatabaseError| error.of(operation);
        let connection = Connection::to(self.address()).await.map_err(|error| of(DatabaseError::Away(error)))?;
        // Whoever is refused leaves its transaction with its connection, and nobody writes meanwhile.
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({WRITERS})");
        connection.answered(connection.client().batch_execute(&begin)).await.map_err(of)?;
        let known = &self.cluster().secret_fingerprint;
        let rotated = connection.answered(connection.client().query_opt(ROTATE, &[known, &fingerprint])).await.map_err(of)?;
        if rotated.is_none() {
            return Ok(None);
        }
        let closed = secrets::reseal(&connection, reseals).await.map_err(of)?;
        connection.end("COMMIT").await.map_err(|error| match error {
            DatabaseError::Away(source) => of(DatabaseError::Unknown(source)),
            other => of(other),
        })?;
        Ok(Some(closed))
    }

    /// How the database is.
    pub async fn health(&self) -> Result<Health, StoreError> {
        let said = |row: &Row| {
            let count: i64 = row.try_get(3).map_err(refusal)?;
            Ok(Health {
                version: row.try_get(0).map_err(refusal)?,
                round_trip: Duration::MAX,
                durable: row.try_get(1).map_err(refusal)?,
                waits_for: row.try_get(2).map_err(refusal)?,
                followers: count.unsigned_abs(),
                schema: row.try_get(4).map_err(refusal)?,
                schema_known: schema::known(),
                written_by: row.try_get(5).map_err(refusal)?,
                clock: ClockOffset { ahead_ms: 0, within: Duration::MAX },
            })
        };
        let operation = "ask how the database is";
        let mut rows = self.line.asked(operation, SAID, &[], said).await?;
        let mut health = rows.pop().ok_or_else(|| DatabaseError::Column { column: 0 }.of(operation))?;
        (health.clock, health.round_trip) = self.clock().await?;
        Ok(health)
    }

    /// This host's clock against the database's, and how long a question and its answer take.
    pub async fn clock(&self) -> Result<(ClockOffset, Duration), StoreError> {
        let mut best: Option<(ClockOffset, Duration)> = None;
        for _ in 0..LOOKS {
            let (begun, before) = (Instant::now(), SystemTime::now());
            let there = self.line.asked("ask the time", TIME, &[], |row| row.try_get::<_, i64>(0).map_err(refusal)).await?;
            let (took, after) = (begun.elapsed(), SystemTime::now());
            let offset = ClockOffset::of(there.first().copied().unwrap_or_default(), (before, after));
            if best.is_none_or(|(_, shortest)| took < shortest) {
                best = Some((offset, took));
            }
        }
        best.ok_or(StoreError::Closed)
    }

    /// How many sandboxes are on record as each node's.
    pub async fn counts(&self) -> Result<Vec<Counted>, StoreError> {
        let number = |row: &Row, column| row.try_get::<_, i64>(column).map(i64::unsigned_abs).map_err(refusal);
        self.lists
            .asked("count the sandboxes of all nodes", COUNTS, &[], |row| {
                Ok(Counted { node: id(row, 0)?, running: number(row, 1)?, paused: number(row, 2)? })
            })
            .await
    }

    /// The paused sandboxes of all nodes, by node.
    pub async fn paused(&self) -> Result<Vec<PausedSandbox>, StoreError> {
        self.lists
            .asked("read the paused sandboxes of all nodes", PAUSED, &[], |row| {
                Ok(PausedSandbox {
                    id: row.try_get(0).map_err(refusal)?,
                    node: id(row, 1)?,
                    artifact: row.try_get(2).map_err(refusal)?,
                    builds: row.try_get(3).map_err(refusal)?,
                    copies: ids(row, 4)?,
                    stored: row.try_get(5).map_err(refusal)?,
                })
            })
            .await
    }

    /// What a template is made of: one of a team by its name and tag, or any by its id or that of a version. None where there is none.
    pub async fn buildable(&self, team: &str, template: &str) -> Result<Option<Buildable>, StoreError> {
        let (name, tag) = template.split_once(':').map_or((template, None), |(name, tag)| (name, Some(tag)));
        let values: [(&(dyn ToSql + Sync), Type); 3] = [(&team, Type::TEXT), (&name, Type::TEXT), (&tag, Type::TEXT)];
        let found = self.line.asked("find a template", TEMPLATE, &values, |row| {
            let memory: i64 = row.try_get(1).map_err(refusal)?;
            Ok(Buildable {
                build: row.try_get(0).map_err(refusal)?,
                memory_mib: memory.unsigned_abs(),
                runs_on: row.try_get(2).map_err(refusal)?,
            })
        });
        Ok(found.await?.into_iter().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_by_what_an_exchange_can_tell_and_no_less() {
        let at = |ms: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
        let even = ClockOffset::of(1_000, (at(900), at(1_100)));
        assert_eq!((even.ahead_ms, even.within, even.at_least()), (0, Duration::from_millis(101), Duration::ZERO));
        let ahead = ClockOffset::of(1_000, (at(6_000), at(6_010)));
        assert_eq!((ahead.ahead_ms, ahead.at_least()), (5_005, Duration::from_millis(4_999)));
        let behind = ClockOffset::of(9_000, (at(1_000), at(1_000)));
        assert_eq!((behind.ahead_ms, behind.at_least()), (-8_000, Duration::from_millis(7_999)));
        // A clock that was set back meanwhile tells nothing for sure.
        assert_eq!(ClockOffset::of(5_000, (at(9_000), at(1_000))).at_least(), Duration::ZERO);
    }
}
