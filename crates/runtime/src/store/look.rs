//! A look at the database of another server, which may run and may be of another version: nothing is written, made or brought up to date.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{SCHEMA, SandboxRecord, StoreError, from_json, of_sqlite};

/// How long a server that writes just then is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its schema.
    pub(crate) schema: i64,
    /// The newest schema of this version, which reads those before it too.
    pub(crate) known: i64,
    /// How many sandboxes are on record.
    pub(crate) sandboxes: usize,
    /// Those whose records this version cannot read, with the reason. Records of earlier schemas are not looked at: they are rewritten first.
    pub(crate) unreadable: Vec<(String, String)>,
}

fn open(path: &Path) -> Result<(Connection, i64), StoreError> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(of_sqlite("open"))?;
    connection.busy_timeout(PATIENCE).map_err(of_sqlite("configure"))?;
    let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(of_sqlite("read the version"))?;
    Ok((connection, schema))
}

/// A connection that only reads, to a database that is up to date.
pub(super) fn current(path: &Path) -> Result<Connection, StoreError> {
    let (connection, found) = open(path)?;
    if found == SCHEMA { Ok(connection) } else { Err(StoreError::Schema { found, known: SCHEMA }) }
}

/// Looks at the database at `path`.
pub(crate) fn look(path: &Path) -> Result<Seen, StoreError> {
    let (connection, schema) = open(path)?;
    let mut seen = Seen { schema, known: SCHEMA, sandboxes: 0, unreadable: Vec::new() };
    if !(1..=SCHEMA).contains(&schema) {
        return Ok(seen);
    }
    let mut statement = connection.prepare("SELECT id, body FROM sandboxes").map_err(of_sqlite("read sandboxes"))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(of_sqlite("read sandboxes"))?;
    for row in rows {
        let (id, body): (String, String) = row.map_err(of_sqlite("read sandboxes"))?;
        seen.sandboxes += 1;
        if schema == SCHEMA
            && let Err(error) = from_json::<SandboxRecord>("sandboxes", &body)
        {
            seen.unreadable.push((id, firkin_causes::chain(&error)));
        }
    }
    Ok(seen)
}
