//! All that is on record as lines of text: how a catalogue is moved into another database, and how it is backed up.
//!
//! ```text
//!   {"format": 1, "schema": 3, "rows": {"teams": 1, ...}}     what follows, and how much of it
//!   ["teams", "firkin", "{...}"]                              a row: its table, and its columns in their order
//!   {"end": 17, "digest": "..."}                              how many rows there were, and BLAKE3 of all bytes before
//! ```
//!
//! It is read at one moment and written at one moment: a copy is whole, or there is none. Values are what both databases hold: texts,
//! numbers, bytes in base64.

use std::io::{self, BufRead, Read as _, Write};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tokio::sync::oneshot;

use super::{
    SCHEMA, StoreError,
    database::{Database, Mode, Statements, Value, Work},
};

/// The form of the lines.
const FORMAT: u32 = 1;

/// The longest line that is read: a record is far smaller.
const MAX_LINE: u64 = 16 << 20;

/// Every table with its columns, those that others refer to first.
const TABLES: [Table; 12] = [
    Table { name: "teams", columns: &["id", "body"] },
    Table { name: "api_keys", columns: &["digest", "id", "team", "body"] },
    Table { name: "sandboxes", columns: &["id", "body"] },
    Table { name: "templates", columns: &["id", "team", "name", "body"] },
    Table { name: "versions", columns: &["build_id", "template_id", "body"] },
    Table { name: "names", columns: &["team", "name", "build_id", "assigned_at"] },
    Table { name: "former_ids", columns: &["id", "template_id", "name"] },
    Table { name: "builds", columns: &["id", "body"] },
    Table { name: "build_logs", columns: &["id", "body"] },
    Table { name: "build_layers", columns: &["key", "body"] },
    Table { name: "webhooks", columns: &["id", "enabled", "body"] },
    Table { name: "deliveries", columns: &["number", "webhook", "due_ms", "body"] },
];

#[derive(Debug)]
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
}

/// Why a copy was not made, or not taken.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A database does not do it.
    #[error("cannot copy what is on record")]
    Store(#[from] StoreError),
    /// The lines cannot be read or written.
    #[error("cannot read or write the copy")]
    File(#[from] io::Error),
    /// They are no copy, or a damaged one.
    #[error("this is no whole copy of a catalogue: {0}")]
    Damaged(String),
    /// They are of another version.
    #[error("the copy is of {what} {found}, this version reads {known}")]
    Version {
        /// Of what.
        what: &'static str,
        /// Found.
        found: i64,
        /// Known.
        known: i64,
    },
    /// There is something where the copy was to be.
    #[error("the catalogue that was to take the copy has {rows} rows in `{table}` already")]
    NotEmpty {
        /// Where.
        table: &'static str,
        /// How many.
        rows: i64,
    },
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    format: u32,
    schema: i64,
    /// Who made it.
    firkin: String,
    /// When, by the clock of who made it.
    at: jiff::Timestamp,
}

/// The last line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    rows: u64,
    digest: String,
}

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// When it was made.
    pub at: jiff::Timestamp,
    /// Rows by table.
    pub rows: Vec<(String, u64)>,
}

impl Copied {
    /// How many rows there are in a table.
    pub fn of(&self, table: &str) -> u64 {
        self.rows.iter().find(|(name, _)| name == table).map_or(0, |(_, rows)| *rows)
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    table: &'static str,
    values: Vec<Value>,
}

/// What a catalogue held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rows {
    at: jiff::Timestamp,
    rows: Vec<Row>,
}

impl Rows {
    pub(crate) fn copied(&self) -> Copied {
        let count = |table: &Table| {
            let rows = self.rows.iter().filter(|row| row.table == table.name).count();
            (table.name.to_owned(), u64::try_from(rows).unwrap_or(u64::MAX))
        };
        Copied { at: self.at, rows: TABLES.iter().map(count).collect() }
    }

    /// Reads all of a database, at one moment.
    pub(crate) async fn of(database: &dyn Database) -> Result<Self, StoreError> {
        let rows = asked(database, Mode::Read, |tx| {
            let mut rows = Vec::new();
            for table in &TABLES {
                let read = format!("SELECT {} FROM {} ORDER BY 1, 2", table.columns.join(", "), table.name);
                let found = tx.rows(&read, &[]).map_err(|error| error.of("read a table"))?;
                rows.extend(found.into_iter().map(|values| Row { table: table.name, values }));
            }
            Ok(rows)
        });
        Ok(Self { at: jiff::Timestamp::now(), rows: rows.await? })
    }

    /// Has a database hold these and nothing else. It is emptied first if `replace`, and otherwise has to be empty but for the first team.
    pub(crate) async fn put(self, database: &dyn Database, replace: bool) -> Result<Copied, CopyError> {
        let copied = self.copied();
        let numbered = database.after_rows_with_numbers();
        // What others have in it is not taken from them.
        let replace = replace && !database.parts().has_others;
        let put = asked(database, Mode::Write, move |tx| {
            if let Some(found) = if replace { None } else { occupied(tx)? } {
                return Ok(Err(found));
            }
            empty(tx)?;
            for Row { table, values } in &self.rows {
                let Some(table) = TABLES.iter().find(|known| known.name == *table) else { continue };
                let marks: Vec<String> = (1..=table.columns.len()).map(|at| format!("?{at}")).collect();
                let insert = format!("INSERT INTO {} ({}) VALUES ({})", table.name, table.columns.join(", "), marks.join(", "));
                tx.execute(&insert, values).map_err(|error| error.of("put a row"))?;
            }
            for statement in numbered {
                tx.rows(statement, &[]).map_err(|error| error.of("count rows up"))?;
            }
            Ok(Ok(()))
        });
        put.await?.map(|()| copied).map_err(|(table, rows)| CopyError::NotEmpty { table, rows })
    }

    /// Writes them as lines.
    pub(crate) fn write(&self, to: &mut dyn Write) -> io::Result<()> {
        let mut digest = blake3::Hasher::new();
        let mut line = |mut text: String| {
            text.push('\n');
            digest.update(text.as_bytes());
            to.write_all(text.as_bytes())
        };
        let head = Head { format: FORMAT, schema: SCHEMA, firkin: env!("CARGO_PKG_VERSION").to_owned(), at: self.at };
        line(serde_json::to_string(&head)?)?;
        for Row { table, values } in &self.rows {
            let mut columns = vec![Json::from(*table)];
            columns.extend(values.iter().map(to_json));
            line(serde_json::to_string(&columns)?)?;
        }
        let rows = u64::try_from(self.rows.len()).unwrap_or(u64::MAX);
        let end = End { rows, digest: digest.finalize().to_hex().to_string() };
        writeln!(to, "{}", serde_json::to_string(&end)?)
    }

    /// Reads lines that [`Rows::write`] wrote: all of them, or none.
    pub(crate) fn read(from: &mut dyn BufRead) -> Result<Self, CopyError> {
        let mut digest = blake3::Hasher::new();
        let damaged = |what: &str| CopyError::Damaged(what.to_owned());
        let first = line(from)?.ok_or_else(|| damaged("it is empty"))?;
        let head: Head = serde_json::from_str(&first).map_err(|_| damaged("its first line is none of ours"))?;
        let version = |what, found: i64, known: i64| {
            if found == known { Ok(()) } else { Err(CopyError::Version { what, found, known }) }
        };
        version("format", head.format.into(), FORMAT.into())?;
        version("schema", head.schema, SCHEMA)?;
        digest.update(first.as_bytes());
        let mut rows = Vec::new();
        loop {
            let text = line(from)?.ok_or_else(|| damaged("its end is missing"))?;
            if text.starts_with('{') {
                let end: End = serde_json::from_str(&text).map_err(|_| damaged("its last line is none of ours"))?;
                let whole = end.rows == u64::try_from(rows.len()).unwrap_or(u64::MAX)
                    && end.digest == digest.finalize().to_hex().to_string();
                let over = line(from)?.is_none();
                return if whole && over { Ok(Self { at: head.at, rows }) } else { Err(damaged("it is not what was written")) };
            }
            digest.update(text.as_bytes());
            rows.push(row(&text).ok_or_else(|| CopyError::Damaged(format!("row {} is none of ours", rows.len() + 1)))?);
        }
    }
}

/// A line with its end, or nothing at the end.
fn line(from: &mut dyn BufRead) -> Result<Option<String>, CopyError> {
    let mut text = String::new();
    let read = from.take(MAX_LINE).read_line(&mut text);
    match read {
        Ok(0) => Ok(None),
        Ok(_) if text.ends_with('\n') => Ok(Some(text)),
        Ok(_) => Err(CopyError::Damaged("a line has no end, or is longer than any of ours".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(CopyError::Damaged("it is no text".to_owned())),
        Err(error) => Err(error.into()),
    }
}

fn row(text: &str) -> Option<Row> {
    let columns: Vec<Json> = serde_json::from_str(text).ok()?;
    let (table, values) = columns.split_first()?;
    let table = TABLES.iter().find(|known| Some(known.name) == table.as_str())?;
    let values: Vec<Value> = values.iter().map(from_json).collect::<Option<_>>()?;
    (values.len() == table.columns.len()).then_some(Row { table: table.name, values })
}

fn to_json(value: &Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Integer(number) => Json::from(*number),
        Value::Text(text) => Json::from(text.as_str()),
        Value::Bytes(bytes) => serde_json::json!({ "base64": BASE64.encode(bytes) }),
    }
}

fn from_json(value: &Json) -> Option<Value> {
    match value {
        Json::Null => Some(Value::Null),
        Json::Number(number) => number.as_i64().map(Value::Integer),
        Json::String(text) => Some(Value::Text(text.clone())),
        Json::Object(object) => BASE64.decode(object.get("base64")?.as_str()?).ok().map(Value::Bytes),
        Json::Bool(_) | Json::Array(_) => None,
    }
}

/// The first table that has more in it than the first team.
fn occupied(tx: &dyn Statements) -> Result<Option<(&'static str, i64)>, StoreError> {
    for table in &TABLES {
        let rows = tx.rows(&format!("SELECT count(*) FROM {}", table.name), &[]).map_err(|error| error.of("count rows"))?;
        let Some(Value::Integer(rows)) = rows.into_iter().next().and_then(|row| row.into_iter().next()) else { continue };
        if rows > i64::from(table.name == "teams") {
            return Ok(Some((table.name, rows)));
        }
    }
    Ok(None)
}

fn empty(tx: &dyn Statements) -> Result<(), StoreError> {
    for table in TABLES.iter().rev() {
        tx.execute(&format!("DELETE FROM {}", table.name), &[]).map_err(|error| error.of("empty a table"))?;
    }
    Ok(())
}

/// What an operation gives.
async fn asked<T: Send + 'static>(
    database: &dyn Database,
    mode: Mode,
    work: impl FnOnce(&dyn Statements) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (reply, result) = oneshot::channel();
    let work: Work = Box::new(move |tx| {
        drop(reply.send(work(tx)?));
        Ok(())
    });
    database.run(mode, work).await?;
    result.await.map_err(|_| StoreError::Closed)
}
