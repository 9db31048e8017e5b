//! Secrets of a cluster's teams, and keys that its nodes have together: rows that somebody else has sealed, and that nothing here can open.
//!
//! Who writes them has the secret that the cluster is known by: a node that slept while it was changed adds nothing that others could not open.
//! Changing it and sealing all rows anew is one transaction (`operator.rs`).

use firkin_runtime::store::{
    StoreError,
    database::{DatabaseError, Mode, Statements, Value},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

use crate::{
    connection::{Connection, refusal},
    members::Members,
    membership::Membership,
};

/// What is in the clear of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretHead {
    /// What it is known by.
    pub id: String,
    /// Whose it is.
    pub team: String,
    /// Its name, one of its team's.
    pub name: String,
    /// Which of its values.
    pub version: i64,
    /// What is told of it.
    pub body: String,
}

/// A secret as it is on record.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretRow {
    /// What is in the clear.
    pub head: SecretHead,
    /// What is not.
    pub sealed: Vec<u8>,
}

impl std::fmt::Debug for SecretRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretRow").field("id", &self.head.id).field("version", &self.head.version).finish_non_exhaustive()
    }
}

/// A key of all nodes as it is on record.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKeyRow {
    /// What it is called.
    pub name: String,
    /// What opens for nodes alone.
    pub sealed: Vec<u8>,
}

impl std::fmt::Debug for SharedKeyRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedKeyRow").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Which secret is meant: by its id, or as the one of a team that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The id, if it is one.
    pub id: String,
    /// The name, if it is one.
    pub name: String,
    /// The team whose name it is.
    pub team: String,
    /// Whether an id counts of whichever team.
    pub anyones: bool,
}

/// What became of a secret that was to be kept. Unless it was, nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is, durably.
    Kept,
    /// There was one of this id.
    Before,
    /// Another one of its team has its name.
    NameTaken,
    /// Its team has as many as it may.
    TooMany,
}

const HEAD: &str = "id, team, name, version, body";

const COLUMNS: &str = "id, team, name, version, body, sealed";

/// How many are read at a time where all are: each may have a body of 100 KiB, and what is sealed.
const PAGE: i64 = 100;

fn texts<const N: usize>(texts: [&str; N]) -> [Value; N] {
    texts.map(|text| Value::Text(text.to_owned()))
}

impl SecretRow {
    fn values(&self) -> [Value; 6] {
        let SecretHead { id, team, name, version, body } = &self.head;
        let [id, team, name, body] = texts([id, team, name, body]);
        [id, team, name, Value::Integer(*version), body, Value::Bytes(self.sealed.clone())]
    }

    fn of(row: &[Value]) -> Result<Self, DatabaseError> {
        let text = |column: usize| match row.get(column) {
            Some(Value::Text(text)) => Ok(text.clone()),
            _ => Err(DatabaseError::Column { column }),
        };
        let Some(Value::Integer(version)) = row.get(3) else { return Err(DatabaseError::Column { column: 3 }) };
        let Some(Value::Bytes(sealed)) = row.get(5) else { return Err(DatabaseError::Column { column: 5 }) };
        let head = SecretHead { id: text(0)?, team: text(1)?, name: text(2)?, version: *version, body: text(4)? };
        Ok(Self { head, sealed: sealed.clone() })
    }

    fn read(row: &Row) -> Result<Self, DatabaseError> {
        Ok(Self { head: SecretHead::read(row)?, sealed: row.try_get(5).map_err(refusal)? })
    }
}

impl SecretHead {
    fn read(row: &Row) -> Result<Self, DatabaseError> {
        let text = |column: usize| row.try_get::<_, String>(column).map_err(refusal);
        let version = row.try_get(3).map_err(refusal)?;
        Ok(Self { id: text(0)?, team: text(1)?, name: text(2)?, version, body: text(4)? })
    }
}

impl Wanted {
    fn values(&self) -> [Value; 4] {
        let [id, name, team] = texts([&self.id, &self.name, &self.team]);
        [id, name, team, Value::Integer(self.anyones.into())]
    }
}

/// An id goes before a name.
fn found(tx: &dyn Statements, wanted: &Wanted) -> Result<Option<SecretRow>, DatabaseError> {
    let find = format!(
        "SELECT {COLUMNS} FROM firkin.secrets WHERE (id = ?1 AND (CAST(?4 AS BOOLEAN) OR team = ?3)) OR (team = ?3 AND name = ?2)
         ORDER BY id = ?1 DESC LIMIT 1"
    );
    tx.rows(&find, &wanted.values())?.first().map(|row| SecretRow::of(row)).transpose()
}

impl Membership {
    /// Runs what writes secrets, unless the cluster is known by another secret than this node has.
    async fn writing<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&dyn Statements) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let known = texts([&self.cluster().secret_fingerprint]);
        let write = move |tx: &dyn Statements| {
            if tx.rows("SELECT 1 FROM firkin.cluster WHERE secret_fingerprint = ?1", &known)?.is_empty() {
                return Err(DatabaseError::Refused(AnotherSecret.into()));
            }
            work(tx)
        };
        self.told(Mode::Write, (operation, write)).await
    }

    /// Keeps a new secret, where its team has fewer than `most`. Durable when this returns.
    pub async fn insert_secret(&self, row: SecretRow, most: usize) -> Result<Inserted, StoreError> {
        let insert = move |tx: &dyn Statements| {
            let values = row.values();
            let is_there = |rows: Vec<Vec<Value>>| !rows.is_empty();
            if is_there(tx.rows("SELECT 1 FROM firkin.secrets WHERE id = ?1", &values[..1])?) {
                return Ok(Inserted::Before);
            }
            if is_there(tx.rows("SELECT 1 FROM firkin.secrets WHERE team = ?1 AND name = ?2", &values[1..3])?) {
                return Ok(Inserted::NameTaken);
            }
            let counted = tx.rows("SELECT count(*) FROM firkin.secrets WHERE team = ?1", &values[1..2])?;
            let Some([Value::Integer(count)]) = counted.first().map(Vec::as_slice) else {
                return Err(DatabaseError::Column { column: 0 });
            };
            if usize::try_from(*count).is_ok_and(|count| count >= most) {
                return Ok(Inserted::TooMany);
            }
            tx.execute(&format!("INSERT INTO firkin.secrets ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"), &values)?;
            Ok(Inserted::Kept)
        };
        self.writing("keep a secret", insert).await
    }

    /// Has a secret be what `change` makes of it, which is under the same id; nothing of it is changed where that is nothing. What it was; none where
    /// there is none. Of several at the same time, each finds what the one before left. Durable when this returns.
    pub async fn change_secret(
        &self,
        wanted: Wanted,
        change: impl FnOnce(&SecretRow) -> Option<SecretRow> + Send + 'static,
    ) -> Result<Option<SecretRow>, StoreError> {
        let renew = move |tx: &dyn Statements| {
            let Some(before) = found(tx, &wanted)? else { return Ok(None) };
            if let Some(after) = change(&before) {
                let set = "UPDATE firkin.secrets SET team = ?2, name = ?3, version = ?4, body = ?5, sealed = ?6 WHERE id = ?1";
                tx.execute(set, &after.values())?;
            }
            Ok(Some(before))
        };
        self.writing("change a secret", renew).await
    }

    /// Forgets a secret. Whether there was one. Durable when this returns.
    pub async fn remove_secret(&self, wanted: Wanted) -> Result<bool, StoreError> {
        let remove = move |tx: &dyn Statements| {
            let Some(found) = found(tx, &wanted)? else { return Ok(false) };
            tx.execute("DELETE FROM firkin.secrets WHERE id = ?1", &texts([&found.head.id]))?;
            Ok(true)
        };
        self.writing("forget a secret", remove).await
    }

    /// Has this be the key of its name, unless there is one. The one that there is. Durable when this returns.
    pub async fn keep_shared_key(&self, row: SharedKeyRow) -> Result<SharedKeyRow, StoreError> {
        let keep = move |tx: &dyn Statements| {
            let [name] = texts([&row.name]);
            let values = [name, Value::Bytes(row.sealed)];
            tx.execute("INSERT INTO firkin.shared_keys (name, sealed) VALUES (?1, ?2) ON CONFLICT DO NOTHING", &values)?;
            let found = tx.rows("SELECT sealed FROM firkin.shared_keys WHERE name = ?1", &values[..1])?;
            match found.into_iter().flatten().next() {
                Some(Value::Bytes(sealed)) => Ok(SharedKeyRow { name: row.name, sealed }),
                _ => Err(DatabaseError::Column { column: 0 }),
            }
        };
        self.writing("keep a key of all nodes", keep).await
    }
}

/// Why a node writes no secret.
#[derive(Debug, thiserror::Error)]
#[error("the cluster has another secret by now than this node: give it a copy of that, and start it again")]
struct AnotherSecret;

impl Members {
    /// A secret, in one exchange. None where there is none.
    pub async fn secret(&self, wanted: &Wanted) -> Result<Option<SecretRow>, StoreError> {
        let find = format!(
            "SELECT {COLUMNS} FROM firkin.secrets WHERE (id = $1 AND ($4 OR team = $3)) OR (team = $3 AND name = $2)
             ORDER BY id = $1 DESC LIMIT 1"
        );
        let Wanted { id, name, team, anyones } = wanted;
        let values: [(&(dyn ToSql + Sync), Type); 4] =
            [(id, Type::TEXT), (name, Type::TEXT), (team, Type::TEXT), (anyones, Type::BOOL)];
        Ok(self.secrets.asked("read a secret", &find, &values, SecretRow::read).await?.into_iter().next())
    }

    /// What is in the clear of the secrets of a team, or of all, by id: some that come after one id, and none only where none does.
    pub async fn secrets(&self, team: Option<&str>, after: &str) -> Result<Vec<SecretHead>, StoreError> {
        let list =
            format!("SELECT {HEAD} FROM firkin.secrets WHERE ($1 IS NULL OR team = $1) AND id > $2 ORDER BY id LIMIT {PAGE}");
        self.lists.asked("read the secrets", &list, &[(&team, Type::TEXT), (&after, Type::TEXT)], SecretHead::read).await
    }

    /// A key of all nodes. None where there is none of this name.
    pub async fn shared_key(&self, name: &str) -> Result<Option<SharedKeyRow>, StoreError> {
        let find = "SELECT sealed FROM firkin.shared_keys WHERE name = $1";
        let read = |row: &Row| Ok(SharedKeyRow { name: name.to_owned(), sealed: row.try_get(0).map_err(refusal)? });
        Ok(self.secrets.asked("read a key of all nodes", find, &[(&name, Type::TEXT)], read).await?.into_iter().next())
    }
}

/// What seals rows anew: by what they were, their next seal, or none where they could not be opened.
pub trait Reseal {
    /// The next seal of a secret.
    fn secret(&mut self, row: &SecretRow) -> Option<Vec<u8>>;

    /// The next seal of a key.
    fn key(&mut self, row: &SharedKeyRow) -> Option<Vec<u8>>;
}

/// Seals all rows anew, in the transaction of a connection. Those that could not be opened stay as they are: what they are called.
pub(crate) async fn reseal(connection: &Connection, reseal: &mut dyn Reseal) -> Result<Vec<String>, DatabaseError> {
    let client = connection.client();
    let mut closed = Vec::new();
    let list = format!("SELECT {COLUMNS} FROM firkin.secrets WHERE id > $1 ORDER BY id LIMIT {PAGE} FOR UPDATE");
    let mut after = String::new();
    loop {
        let page = connection.answered(client.query(&list, &[&after])).await?;
        let Some(last) = page.last() else { break };
        after = last.try_get(0).map_err(refusal)?;
        for row in page {
            let row = SecretRow::read(&row)?;
            match reseal.secret(&row) {
                Some(sealed) => {
                    let set = "UPDATE firkin.secrets SET sealed = $2 WHERE id = $1";
                    connection.answered(client.execute(set, &[&row.head.id, &sealed])).await?;
                }
                None => closed.push(format!("secret `{}` of team `{}`", row.head.name, row.head.team)),
            }
        }
    }
    let list = "SELECT name, sealed FROM firkin.shared_keys ORDER BY name FOR UPDATE";
    for row in connection.answered(client.query(list, &[])).await? {
        let row = SharedKeyRow { name: row.try_get(0).map_err(refusal)?, sealed: row.try_get(1).map_err(refusal)? };
        match reseal.key(&row) {
            Some(sealed) => {
                let set = "UPDATE firkin.shared_keys SET sealed = $2 WHERE name = $1";
                connection.answered(client.execute(set, &[&row.name, &sealed])).await?;
            }
            None => closed.push(format!("key `{}`", row.name)),
        }
    }
    Ok(closed)
}
