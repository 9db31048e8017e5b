//! The seam between what is decided and the database that remembers it. Operations say their statements once, in what SQLite and PostgreSQL
//! both understand; a database runs one operation as one transaction, at one moment, and knows nothing of sandboxes.
//!
//! Operations are therefore the same whichever database there is: whoever comes second finds what the first left, and what differs is below
//! here, in a few hundred lines, which the contract (`store/contract.rs`) holds to one behaviour.
//!
//! Statements have parameters `?1` to `?9`, texts compare byte by byte, `json_extract(body, '$.key')` reads a field of a record.

use std::fmt::Debug;

use futures::future::BoxFuture;

use super::StoreError;

/// What stands in a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing.
    Null,
    /// A number; truth is 1.
    Integer(i64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

/// Why a statement was not run, or a transaction came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database says no.
    #[error("the database says no")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It is not there. Nothing was done.
    #[error("the database is away")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It went away while it was told to keep what had been done, and has not said since whether it did.
    #[error("the database went away, and has not said whether it kept what was written")]
    Unknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Another server has this catalogue now.
    #[error("the catalogue is another server's now")]
    Fenced,
    /// A column holds something else than it should.
    #[error("column {column} holds something else than it should")]
    Column {
        /// From 0.
        column: usize,
    },
}

impl DatabaseError {
    /// In an operation that is called so.
    pub fn of(self, operation: &'static str) -> StoreError {
        match self {
            Self::Away(source) => StoreError::Away { operation, source },
            Self::Unknown(source) => StoreError::Unknown { operation, source },
            Self::Fenced => StoreError::Fenced { what: "the catalogue".to_owned() },
            Self::Refused(source) => StoreError::Refused { operation, source },
            Self::Column { .. } => StoreError::Refused { operation, source: Box::new(self) },
        }
    }
}

pub(super) fn refused(operation: &'static str) -> impl FnOnce(DatabaseError) -> StoreError {
    move |error| error.of(operation)
}

/// What is done in one transaction.
pub trait Statements {
    /// Runs a statement that changes rows, and says how many.
    fn execute(&self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError>;

    /// Runs a statement that reads rows.
    fn rows(&self, statement: &str, values: &[Value]) -> Result<Vec<Vec<Value>>, DatabaseError>;
}

/// What an operation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It changes what is on record, and is durable when it is done.
    Write,
    /// It changes what nobody waits for: a power failure may take it.
    Unsynced,
    /// It reads, all of it at one moment.
    Read,
}

/// An operation. What it gives, it gives to whoever made it. Its transaction is kept if it says so, and else undone.
pub type Work = Box<dyn FnOnce(&dyn Statements) -> Result<(), StoreError> + Send>;

/// A database: where [`Work`] is done.
pub trait Database: Debug + Send + Sync {
    /// What it is called in metrics and answers.
    fn name(&self) -> &'static str;

    /// Does one operation: all of it, at one moment, or nothing when it fails.
    fn run(&self, mode: Mode, work: Work) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Whether servers of other hosts can have it after this one: lives are claimed there before they begin.
    fn is_shared(&self) -> bool {
        false
    }

    /// The number that a life which begins now has at least: one that went back behind what it had kept may have forgotten some, and none is given
    /// twice.
    fn first_life(&self) -> u64 {
        0
    }

    /// What of its tables is whose.
    fn parts(&self) -> Parts {
        Parts::WHOLE
    }

    /// What reads it up to date after rows came with numbers of their own, where it does not count on from the highest by itself.
    fn after_rows_with_numbers(&self) -> &'static [&'static str] {
        &[]
    }

    /// Ends it after all that was asked before. What is asked later is refused.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Under which names operations find what several servers have in one catalogue at the same time. `sandboxes` and `build_layers` are what is
/// this server's alone; of the other tables everybody sees everything, and acts by itself on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Whether other servers use the catalogue at the same time: then nobody empties it.
    pub has_others: bool,
    /// The sandboxes of all servers, to be read.
    pub all_sandboxes: &'static str,
    /// What holds the paused ones of all servers, to be read: a statement with one column.
    pub all_held: &'static str,
    /// The builds that this server ends.
    pub own_builds: &'static str,
    /// The deliveries that this server sends.
    pub own_deliveries: &'static str,
    /// What a state of a build is known by.
    pub state_key: &'static str,
}

impl Parts {
    /// That of a catalogue which one server has: all is its own.
    pub const WHOLE: Self = Self {
        has_others: false,
        all_sandboxes: "sandboxes",
        all_held: "SELECT json_extract(body, '$.phase.artifact') FROM sandboxes WHERE json_extract(body, '$.phase.phase') = 'paused'",
        own_builds: "builds",
        own_deliveries: "deliveries",
        state_key: "key",
    };
}

/// A row.
#[derive(Debug)]
pub(super) struct Row(Vec<Value>);

impl Row {
    pub(super) fn get<T: FromValue>(&self, column: usize) -> Result<T, DatabaseError> {
        self.0.get(column).and_then(T::from_value).ok_or(DatabaseError::Column { column })
    }
}

/// A transaction, as operations use it.
#[derive(Clone, Copy)]
pub(super) struct Tx<'a>(&'a dyn Statements);

impl<'a> Tx<'a> {
    pub(super) fn of(statements: &'a dyn Statements) -> Self {
        Self(statements)
    }

    pub(super) fn execute(self, statement: &str, values: &[Value]) -> Result<usize, DatabaseError> {
        self.0.execute(statement, values)
    }

    pub(super) fn query<T>(
        self,
        statement: &str,
        values: &[Value],
        read: impl FnMut(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Vec<T>, DatabaseError> {
        let rows: Vec<Row> = self.0.rows(statement, values)?.into_iter().map(Row).collect();
        rows.iter().map(read).collect()
    }

    /// The first row, if there is any.
    pub(super) fn first<T>(
        self,
        statement: &str,
        values: &[Value],
        read: impl FnOnce(&Row) -> Result<T, DatabaseError>,
    ) -> Result<Option<T>, DatabaseError> {
        self.0.rows(statement, values)?.into_iter().next().map(|row| read(&Row(row))).transpose()
    }
}

/// Values for a statement's parameters.
macro_rules! params {
    ($($value:expr),* $(,)?) => { &[$($crate::store::database::ToValue::to_value(&$value)),*] };
}
pub(super) use params;

/// What can stand in a column.
pub(super) trait ToValue {
    fn to_value(&self) -> Value;
}

/// What can be read out of one.
pub(super) trait FromValue: Sized {
    fn from_value(value: &Value) -> Option<Self>;
}

impl<T: ToValue + ?Sized> ToValue for &T {
    fn to_value(&self) -> Value {
        (**self).to_value()
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, ToValue::to_value)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Option<Self> {
        if *value == Value::Null { Some(None) } else { T::from_value(value).map(Some) }
    }
}

impl ToValue for str {
    fn to_value(&self) -> Value {
        Value::Text(self.to_owned())
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(text) = value { Some(text.clone()) } else { None }
    }
}

impl ToValue for i64 {
    fn to_value(&self) -> Value {
        Value::Integer(*self)
    }
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Integer(number) = value { Some(*number) } else { None }
    }
}

impl FromValue for u32 {
    fn from_value(value: &Value) -> Option<Self> {
        i64::from_value(value).and_then(|number| number.try_into().ok())
    }
}

impl ToValue for bool {
    fn to_value(&self) -> Value {
        Value::Integer(i64::from(*self))
    }
}

impl ToValue for [u8; 32] {
    fn to_value(&self) -> Value {
        Value::Bytes(self.to_vec())
    }
}

impl FromValue for [u8; 32] {
    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bytes(bytes) = value { bytes.as_slice().try_into().ok() } else { None }
    }
}
