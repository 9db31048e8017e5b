//! The tables, and how they came to be what they are: steps that are only ever added to. All that is to be done is done in one transaction.
//!
//! They are those of SQLite, in a schema of their own; texts compare byte by byte, and a few functions are called as SQLite's are.

use tokio_postgres::Client;

use crate::connection::WRITERS;

/// The steps. The number of those that were done is the version of the schema.
const STEPS: [&str; 2] = [include_str!("schema-1.sql"), include_str!("schema-2.sql")];

/// What holds of the catalogue itself. It is the same in all versions.
const CATALOGUE: &str = r#"
    CREATE SCHEMA IF NOT EXISTS firkin;
    CREATE TABLE IF NOT EXISTS firkin.catalogue (
        one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (one),
        schema BIGINT NOT NULL,
        written_by TEXT NOT NULL,
        installation TEXT,
        host TEXT,
        since TIMESTAMPTZ,
        term BIGINT NOT NULL,
        last_write BIGINT NOT NULL);
    INSERT INTO firkin.catalogue (schema, written_by, term, last_write) VALUES (0, '', 0, 0) ON CONFLICT DO NOTHING;
"#;

/// Why tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A newer version made them.
    #[error("they have version {found} and were written by firkin {written_by}; this version reads up to {known}")]
    Newer {
        /// Found.
        found: i64,
        /// Known.
        known: i64,
        /// Who wrote them.
        written_by: String,
    },
    /// An earlier version made them, and nobody has brought them up to date.
    #[error("they have version {found}; this version has {known}, and brings them up to date when a server starts")]
    Older {
        /// Found.
        found: i64,
        /// Known.
        known: i64,
    },
    /// The database says no.
    #[error("the database refuses a step")]
    Refused(#[from] tokio_postgres::Error),
}

/// Brings the tables up to date. Whoever calls holds the server's lock, so nobody else does; of nodes, which share that, one after the other.
/// Steps only add to what earlier versions use: nodes of two versions run at the same time.
pub(crate) async fn migrate(client: &Client) -> Result<(), MigrateError> {
    client.batch_execute(&format!("BEGIN; SELECT pg_advisory_xact_lock({WRITERS}); {CATALOGUE}")).await?;
    let done = steps(client).await;
    client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    done
}

/// Fails unless the tables are of this version.
pub(crate) async fn demand_current(client: &Client) -> Result<(), MigrateError> {
    let (found, known) = versions(client, "").await?;
    if found < known { Err(MigrateError::Older { found, known }) } else { Ok(()) }
}

/// The version that this program makes.
pub(crate) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// What there is and what is known, unless there is more.
async fn versions(client: &Client, lock: &str) -> Result<(i64, i64), MigrateError> {
    let row = client.query_one(&format!("SELECT schema, written_by FROM firkin.catalogue {lock}"), &[]).await?;
    let (found, written_by): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
    let known = known();
    if found > known { Err(MigrateError::Newer { found, known, written_by }) } else { Ok((found, known)) }
}

async fn steps(client: &Client) -> Result<(), MigrateError> {
    let (found, known) = versions(client, "FOR UPDATE").await?;
    if found == known {
        return Ok(());
    }
    for step in STEPS.iter().skip(usize::try_from(found).unwrap_or_default()) {
        client.batch_execute(step).await?;
    }
    let note = "UPDATE firkin.catalogue SET schema = $1, written_by = $2";
    client.execute(note, &[&known, &env!("CARGO_PKG_VERSION")]).await?;
    Ok(())
}
