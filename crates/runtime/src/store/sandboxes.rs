//! Sandboxes on record. Whoever changes one says which life of it he knows: what another has changed since is left as it is.
//!
//! The number of that life, its epoch, rises with every restore. On one host nobody else writes, and the guard holds at no cost: it is
//! part of the statement that writes.
//!
//! Where a database went away before it said what it had kept, the sandbox is on record in the life from before or in the one that was
//! written, and both are its own. Whoever knows either may change it from then on, until a change is known to be kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

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
const GUARDED: &str = "id = ?1 AND CAST(json_extract(body, '$.epoch') AS BIGINT) BETWEEN ?2 AND ?3";

/// Sandboxes of which it is not known whether what was written last was kept, with the lowest and the highest life that they may be in.
pub(super) type InDoubt = Arc<Mutex<HashMap<SandboxId, (u64, u64)>>>;

impl SandboxRecord {
    /// For whoever has this record.
    pub(crate) fn guard(&self) -> Guard {
        Guard { epoch: self.epoch }
    }
}

fn column(epoch: u64) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX)
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
        let (low, high) = self.lives(&record.id, guard);
        let (id, epoch) = (record.id.clone(), record.epoch);
        let done = self.run(move |tx| {
            let body = to_json("sandboxes", &record)?;
            let update = format!("UPDATE sandboxes SET body = ?4 WHERE {GUARDED}");
            let values = params![record.id.as_str(), column(low), column(high), body];
            let rows = tx.execute(&update, values).map_err(refused("put a sandbox"))?;
            if rows == 1 { Ok(()) } else { Err(fenced(&record.id)) }
        });
        let done = done.await;
        match &done {
            Ok(()) => drop(self.in_doubt().remove(&id)),
            Err(StoreError::Unknown { .. }) => drop(self.in_doubt().insert(id, (low.min(epoch), high.max(epoch)))),
            Err(_) => {}
        }
        done
    }

    /// Whether it is not known what is on record of it.
    pub(crate) fn is_in_doubt(&self, id: &SandboxId) -> bool {
        self.in_doubt().contains_key(id)
    }

    /// Every sandbox of which that is not known.
    pub(crate) fn all_in_doubt(&self) -> Vec<SandboxId> {
        self.in_doubt().keys().cloned().collect()
    }

    fn in_doubt(&self) -> MutexGuard<'_, HashMap<SandboxId, (u64, u64)>> {
        // Each holder makes one change, so a poisoned map is a whole one.
        self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest and the highest life that a sandbox may be on record in for whoever knows that of `guard`.
    fn lives(&self, id: &SandboxId, guard: Guard) -> (u64, u64) {
        let (low, high) = self.in_doubt().get(id).copied().unwrap_or((guard.epoch, guard.epoch));
        if (low..=high).contains(&guard.epoch) { (low, high) } else { (guard.epoch, guard.epoch) }
    }

    /// Forgets a sandbox, unless it is on record in another life. One that is not on record is forgotten.
    pub(crate) async fn remove_sandbox(&self, id: SandboxId, guard: Guard) -> Result<(), StoreError> {
        let (low, high) = self.lives(&id, guard);
        let removed = id.clone();
        let done = self.run(move |tx| {
            let remove = format!("DELETE FROM sandboxes WHERE {GUARDED}");
            let values = params![id.as_str(), column(low), column(high)];
            let rows = tx.execute(&remove, values).map_err(refused("delete a sandbox"))?;
            if rows == 0 && is_known(tx, &id)? { Err(fenced(&id)) } else { Ok(()) }
        });
        let done = done.await;
        if done.is_ok() {
            self.in_doubt().remove(&removed);
        }
        done
    }

    /// Those of all servers that have this catalogue.
    pub(crate) async fn everyones_sandboxes(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        let all = format!("SELECT body FROM {} ORDER BY id", self.parts().all_sandboxes);
        self.read(move |tx| bodies(tx, "sandboxes", &all, params![])).await
    }

    /// One of all servers that have this catalogue.
    pub(crate) async fn anyones_sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        let one = format!("SELECT body FROM {} WHERE id = ?1", self.parts().all_sandboxes);
        let mut found = self.read(move |tx| bodies(tx, "sandboxes", &one, params![id.as_str()])).await?;
        Ok(found.pop())
    }

    /// Whether one is on record as this server's.
    pub(crate) async fn is_own(&self, id: SandboxId) -> Result<bool, StoreError> {
        self.read(move |tx| is_known(tx, &id)).await
    }

    /// Whether one is on record, and another server's.
    pub(crate) async fn is_anothers(&self, id: SandboxId) -> Result<bool, StoreError> {
        let all = format!("SELECT 1 FROM {} WHERE id = ?1", self.parts().all_sandboxes);
        self.read(move |tx| {
            let found = tx.first(&all, params![id.as_str()], |_| Ok(())).map_err(refused("read a sandbox"))?;
            Ok(found.is_some() && !is_known(tx, &id)?)
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
