//! One connection: its transactions, its statements, and which of its failures mean that the database is away.

use std::{
    collections::HashMap,
    error::Error,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firkin_runtime::store::database::{DatabaseError, Mode, Statements, Value};
use tokio::{runtime::Handle, time::timeout};
use tokio_postgres::{
    Client, Row, SimpleQueryMessage, Statement,
    error::SqlState,
    types::{FromSql, IsNull, ToSql, Type, private::BytesMut, to_sql_checked},
};

use crate::{address::Address, holding::Holding};

/// How long an answer may take: longer than the database lets itself take (`address.rs`), so that it says so itself if it can.
const ANSWER: Duration = Duration::from_secs(15);

/// Writers go one by one: those of all nodes, so that what an operation decides by what it has read is true when it is kept. Each holds this from
/// its beginning to its commit, so that together they write no more than one of them could: on two busy cores sixteen nodes at once, not
/// optimised and without `fsync`, kept some 450 writes a second of three exchanges each, and half a millisecond between host and database takes
/// that of a cluster to some 600. Reads, renewals and look-ups wait for nothing. The number has no meaning but to be ours.
pub(crate) const WRITERS: i64 = 0x0066_6972_6b69_6e01;

/// A connection. When it is dropped it is closed, and what was not kept is undone.
#[derive(Debug)]
pub(crate) struct Connection {
    client: Client,
    prepared: Mutex<HashMap<String, Statement>>,
    /// Something went wrong with it that may have left it in a transaction.
    broken: AtomicBool,
}

impl Connection {
    pub(crate) async fn to(address: &Address) -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (client, driven) = timeout(address.within, address.config.connect(address.tls.clone())).await??;
        // It ends with the client.
        tokio::spawn(async move {
            if let Err(error) = driven.await {
                tracing::debug!(error = firkin_causes::chain(&error), "a connection to the database ended");
            }
        });
        Ok(Self { client, prepared: Mutex::default(), broken: AtomicBool::new(false) })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Whether it can be used again.
    pub(crate) fn is_whole(&self) -> bool {
        !self.client.is_closed() && !self.broken.load(Ordering::Relaxed)
    }

    /// Whether it is known to be gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Begins a transaction, in one exchange. A writer is told the term of what it holds and the number of its last write, once every transaction that
    /// could change them is over.
    pub(crate) async fn begin(&self, mode: Mode, holding: &Holding) -> Result<Vec<SimpleQueryMessage>, DatabaseError> {
        let begin = match mode {
            Mode::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned(),
            Mode::Write => writer("", holding),
            Mode::Unsynced => writer("; SET LOCAL synchronous_commit = off", holding),
        };
        self.answered(self.client.simple_query(&begin)).await
    }

    /// Ends the transaction as the word says.
    pub(crate) async fn end(&self, word: &str) -> Result<(), DatabaseError> {
        let ended = self.answered(self.client.batch_execute(word)).await;
        if ended.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
        ended
    }

    pub(crate) async fn answered<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        let answer = timeout(ANSWER, asked).await;
        if answer.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
        answer.map_err(away)?.map_err(refusal)
    }

    pub(crate) fn statements<'a>(&'a self, handle: &'a Handle) -> Transaction<'a> {
        Transaction { connection: self, handle, has_changed: AtomicBool::new(false) }
    }

    async fn prepare(&self, statement: &str) -> Result<Statement, DatabaseError> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(statement).cloned();
        if let Some(known) = known {
            return Ok(known);
        }
        let prepared = self.answered(self.client.prepare(&statement.replace('?', "$"))).await?;
        // Their texts are written in the code: there is a bounded number of them.
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(statement.to_owned(), prepared.clone());
        Ok(prepared)
    }
}

fn writer(with: &str, holding: &Holding) -> String {
    let standing = holding.standing();
    format!("BEGIN ISOLATION LEVEL READ COMMITTED{with}; SELECT pg_advisory_xact_lock({WRITERS}); {standing}")
}

/// What is done in a transaction, on a thread that may wait.
pub(crate) struct Transaction<'a> {
    connection: &'a Connection,
    handle: &'a Handle,
    has_changed: AtomicBool,
}

impl Transaction<'_> {
    /// Whether there is anything to be kept.
    pub(crate) fn has_changed(&self) -> bool {
        self.has_changed.load(Ordering::Relaxed)
    }
}

fn as_sql(values: &[Value]) -> Vec<Column<'_>> {
    values.iter().map(Column).collect()
}

impl Statements for Transaction<'_> {
    fn execute(&self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError> {
        let columns = as_sql(values);
        let columns: Vec<_> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        self.handle.block_on(async {
            let statement = self.connection.prepare(statement).await?;
            let rows = self.connection.answered(self.connection.client.execute(&statement, &columns)).await?;
            self.has_changed.fetch_or(rows > 0, Ordering::Relaxed);
            usize::try_from(rows).map_err(|error| DatabaseError::Refused(error.into()))
        })
    }

    fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<Vec<Value>>, DatabaseError> {
        let columns = as_sql(values);
        let columns: Vec<_> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
        self.handle.block_on(async {
            let statement = self.connection.prepare(statement).await?;
            let rows = self.connection.answered(self.connection.client.query(&statement, &columns)).await?;
            rows.iter().map(read).collect()
        })
    }
}

fn read(row: &Row) -> Result<Vec<Value>, DatabaseError> {
    let column = |at| row.try_get::<_, Option<Read>>(at).map(|value| value.map_or(Value::Null, |read| read.0)).map_err(refusal);
    (0..row.len()).map(column).collect()
}

/// A parameter, written as what the statement wants there.
#[derive(Debug)]
struct Column<'a>(&'a Value);

impl ToSql for Column<'_> {
    fn to_sql(&self, kind: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self.0 {
            Value::Null => Ok(IsNull::Yes),
            Value::Text(text) => text.to_sql(kind, out),
            Value::Bytes(bytes) => bytes.to_sql(kind, out),
            Value::Integer(number) if *kind == Type::BOOL => (*number != 0).to_sql(kind, out),
            Value::Integer(number) if *kind == Type::INT4 => i32::try_from(*number)?.to_sql(kind, out),
            Value::Integer(number) => number.to_sql(kind, out),
        }
    }

    fn accepts(kind: &Type) -> bool {
        [Type::TEXT, Type::VARCHAR, Type::BYTEA, Type::INT8, Type::INT4, Type::BOOL].contains(kind)
    }

    to_sql_checked!();
}

/// What was read from a column.
struct Read(Value);

impl<'a> FromSql<'a> for Read {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(match *kind {
            Type::INT8 => Value::Integer(i64::from_sql(kind, raw)?),
            Type::INT4 => Value::Integer(i32::from_sql(kind, raw)?.into()),
            Type::BOOL => Value::Integer(bool::from_sql(kind, raw)?.into()),
            Type::BYTEA => Value::Bytes(raw.to_owned()),
            _ => Value::Text(String::from_sql(kind, raw)?),
        }))
    }

    fn accepts(kind: &Type) -> bool {
        [Type::TEXT, Type::VARCHAR, Type::BYTEA, Type::INT8, Type::INT4, Type::BOOL].contains(kind)
    }
}

pub(crate) fn away(error: impl Error + Send + Sync + 'static) -> DatabaseError {
    DatabaseError::Away(Box::new(error))
}

/// Without an answer of the database, or with one that it cannot serve now, it is away; anything else it refuses.
pub(crate) fn refusal(error: tokio_postgres::Error) -> DatabaseError {
    let passing = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::QUERY_CANCELED,
        SqlState::LOCK_NOT_AVAILABLE,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    match error.as_db_error() {
        Some(said) if !passing.contains(said.code()) && !said.code().code().starts_with("08") => {
            DatabaseError::Refused(Box::new(error))
        }
        _ => DatabaseError::Away(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_takes_a_connection_and_says_nothing_is_not_waited_for() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let address: Address = format!("postgres://me@127.0.0.1:{port}/x?connect_timeout=1").parse().unwrap();
        let late = timeout(Duration::from_secs(60), Connection::to(&address)).await.expect("it ends by itself");
        assert!(late.is_err_and(|error| error.is::<tokio::time::error::Elapsed>()));
    }
}
