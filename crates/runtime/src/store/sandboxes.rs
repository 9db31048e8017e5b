//! Sandboxes on record. Whoever changes one says which life of it he knows: what another has changed since is left as it is.
//!
//! The number of that life, its epoch, rises with every restore. On one host nobody else writes, and the guard holds at no cost: it is
//! part of the statement that writes.

use super::{
    SandboxRecord, Store, StoreError, bodies,
    database::{Tx, params, refused},
    spec::SandboxId,
    to_json,
};
use crate::ground::team::Scope;

/// The life of a sandbox that whoever writes has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) epoch: u64,
}

/// What a guard asks of a row. A record without the number is none of ours.
const GUARDED: &str = "id = ?1 AND CAST(json_extract(body, '$.epoch') AS BIGINT) = ?2";

impl SandboxRecord {
    /// For whoever has this record.
    pub(crate) fn guard(&self) -> Guard {
        Guard { epoch: self.epoch }
    }
}

impl Guard {
    fn column(self) -> i64 {
        i64::try_from(self.epoch).unwrap_or(i64::MAX)
    }
}

fn fenced(id: &SandboxId) -> StoreError {
    StoreError::Fenced { what: format!("sandbox `{id}`") }
}

fn is_known(tx: Tx<'_>, id: &SandboxId) -> Result<bool, StoreError> {
    let found = tx.first("SELECT 1 FROM sandboxes WHERE id = ?1", params![id.as_str()], |_| Ok(()));
    Ok(found.map_err(refused("read a sandbox"))?.is_some())
}

impl Store {
    /// Records a new sandbox. Durable when this returns. One of its id stays as it is.
    pub(crate) async fn insert_sandbox(&self, record: SandboxRecord) -> Result<(), StoreError> {
        self.run(move |tx| {
            let body = to_json("sandboxes", &record)?;
            let insert = "INSERT INTO sandboxes (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING";
            let rows = tx.execute(insert, params![record.id.as_str(), body]).map_err(refused("put a sandbox"))?;
            if rows == 1 { Ok(()) } else { Err(fenced(&record.id)) }
        })
        .await
    }

    /// Records a sandbox as it is now, if it is on record in the life that `guard` says. Durable when this returns. With a higher number in
    /// `record` this claims the next life: of many who try from one, one does.
    pub(crate) async fn update_sandbox(&self, record: SandboxRecord, guard: Guard) -> Result<(), StoreError> {
        self.run(move |tx| {
            let body = to_json("sandboxes", &record)?;
            let update = format!("UPDATE sandboxes SET body = ?3 WHERE {GUARDED}");
            let values = params![record.id.as_str(), guard.column(), body];
            let rows = tx.execute(&update, values).map_err(refused("put a sandbox"))?;
            if rows == 1 { Ok(()) } else { Err(fenced(&record.id)) }
        })
        .await
    }

    /// Forgets a sandbox, unless it is on record in another life. One that is not on record is forgotten.
    pub(crate) async fn remove_sandbox(&self, id: SandboxId, guard: Guard) -> Result<(), StoreError> {
        self.run(move |tx| {
            let remove = format!("DELETE FROM sandboxes WHERE {GUARDED}");
            let rows = tx.execute(&remove, params![id.as_str(), guard.column()]).map_err(refused("delete a sandbox"))?;
            if rows == 0 && is_known(tx, &id)? { Err(fenced(&id)) } else { Ok(()) }
        })
        .await
    }

    /// Those of a scope.
    pub(crate) async fn sandboxes(&self, scope: Scope) -> Result<Vec<SandboxRecord>, StoreError> {
        let mut sandboxes: Vec<SandboxRecord> =
            self.read(|tx| bodies(tx, "sandboxes", "SELECT body FROM sandboxes ORDER BY id", params![])).await?;
        sandboxes.retain(|sandbox| scope.sees(&sandbox.owner));
        Ok(sandboxes)
    }
}
