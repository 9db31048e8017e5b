//! Teams, and the keys that open what they own. Of a key there is its digest and nothing that it could be made of.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, bodies, from_json, one, sqlite, to_json};
use crate::{
    capacity::TeamQuota,
    ground::{
        ids::KeyId,
        team::{Scope, TeamId},
    },
};

pub(super) const TABLES: &str = "
    CREATE TABLE teams (id TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE api_keys (
        digest BLOB PRIMARY KEY, id TEXT NOT NULL UNIQUE, team TEXT NOT NULL REFERENCES teams (id), body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX api_keys_of_team ON api_keys (team);";

/// A team as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TeamRecord {
    pub(crate) id: TeamId,
    /// For people.
    pub(crate) name: String,
    pub(crate) created_at: Timestamp,
    #[serde(default)]
    pub(crate) quota: TeamQuota,
}

/// What a key lets its holder do, each more than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyScope {
    /// To look, but at nothing that opens a sandbox or a volume.
    Read,
    /// To use sandboxes, too, in every way.
    Sandboxes,
    /// Everything of its team.
    Full,
}

/// A key as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) id: KeyId,
    pub(crate) team: TeamId,
    /// For people.
    pub(crate) name: String,
    pub(crate) scope: KeyScope,
    /// Absent for those of servers that did not know.
    #[serde(default)]
    pub(crate) created_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) expires_at: Option<Timestamp>,
    #[serde(default)]
    pub(crate) revoked_at: Option<Timestamp>,
    /// To the minute.
    #[serde(default)]
    pub(crate) last_used_at: Option<Timestamp>,
}

/// Makes the first team.
pub(super) fn put_first(c: &Connection) -> Result<(), StoreError> {
    let first = TeamId::first();
    let name = first.to_string();
    let team = TeamRecord { id: first, name, created_at: Timestamp::now(), quota: TeamQuota::default() };
    put_team(c, &team)
}

fn put_team(c: &Connection, team: &TeamRecord) -> Result<(), StoreError> {
    let body = to_json("teams", team)?;
    let put = "INSERT INTO teams (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    c.execute(put, params![team.id, body]).map_err(sqlite("put a team"))?;
    Ok(())
}

pub(super) fn put_key(c: &Connection, digest: [u8; 32], key: &KeyRecord) -> Result<(), StoreError> {
    let body = to_json("api_keys", key)?;
    let put = "INSERT INTO api_keys (digest, id, team, body) VALUES (?1, ?2, ?3, ?4)";
    c.execute(put, params![digest, key.id, key.team, body]).map_err(sqlite("put a key"))?;
    Ok(())
}

impl Store {
    /// Adds a team, unless there is one of its id or there are as many as `most`.
    pub(crate) async fn add_team(&self, team: TeamRecord, most: u32) -> Result<Added, StoreError> {
        self.run(move |tx| {
            let count: u32 = tx.query_row("SELECT count(*) FROM teams", [], |row| row.get(0)).map_err(sqlite("count teams"))?;
            let known: Option<TeamRecord> = one(tx, "teams", "SELECT body FROM teams WHERE id = ?1", team.id.as_str())?;
            match known {
                Some(_) => Ok(Added::NotNew),
                None if count >= most => Ok(Added::TooMany),
                None => put_team(tx, &team).map(|()| Added::Yes),
            }
        })
        .await
    }

    /// Every team, by id.
    pub(crate) async fn teams(&self) -> Result<Vec<TeamRecord>, StoreError> {
        self.run(|tx| bodies(tx, "teams", "SELECT body FROM teams ORDER BY id", [])).await
    }

    /// Changes the quota of a team. Gives the team as it is then, if it is there.
    pub(crate) async fn set_team_quota(&self, id: TeamId, quota: TeamQuota) -> Result<Option<TeamRecord>, StoreError> {
        self.run(move |tx| {
            let found: Option<TeamRecord> = one(tx, "teams", "SELECT body FROM teams WHERE id = ?1", id.as_str())?;
            let Some(team) = found.map(|team| TeamRecord { quota, ..team }) else { return Ok(None) };
            put_team(tx, &team)?;
            Ok(Some(team))
        })
        .await
    }

    /// Adds a key of a team that is there, unless there are as many as `most`, those that are revoked among them.
    pub(crate) async fn add_key(&self, digest: [u8; 32], key: KeyRecord, most: u32) -> Result<Added, StoreError> {
        self.run(move |tx| {
            let team: Option<TeamRecord> = one(tx, "teams", "SELECT body FROM teams WHERE id = ?1", key.team.as_str())?;
            if team.is_none() {
                return Ok(Added::NoTeam);
            }
            let count: u32 = tx.query_row("SELECT count(*) FROM api_keys", [], |row| row.get(0)).map_err(sqlite("count keys"))?;
            if count >= most {
                return Ok(Added::TooMany);
            }
            put_key(tx, digest, &key)?;
            Ok(Added::Yes)
        })
        .await
    }

    /// Every key of a scope, with its digest, oldest first.
    pub(crate) async fn keys(&self, scope: Scope) -> Result<Vec<([u8; 32], KeyRecord)>, StoreError> {
        self.run(move |tx| {
            let mut statement = tx.prepare_cached("SELECT digest, body FROM api_keys").map_err(sqlite("read keys"))?;
            let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, String>(1)?));
            let mut keys = Vec::new();
            for row in statement.query_map([], columns).map_err(sqlite("read keys"))? {
                let (digest, body) = row.map_err(sqlite("read a key"))?;
                let key: KeyRecord = from_json("api_keys", &body)?;
                if scope.sees(&key.team) {
                    keys.push((digest, key));
                }
            }
            keys.sort_by(|(_, a), (_, b)| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
            Ok(keys)
        })
        .await
    }

    /// Changes a key, if it is there. Gives it as it is then.
    pub(crate) async fn change_key(
        &self,
        id: KeyId,
        change: impl FnOnce(&mut KeyRecord) + Send + 'static,
    ) -> Result<Option<KeyRecord>, StoreError> {
        self.run(move |tx| {
            let found = tx.query_row("SELECT body FROM api_keys WHERE id = ?1", params![id], |row| row.get::<_, String>(0));
            let Some(body) = found.optional().map_err(sqlite("read a key"))? else { return Ok(None) };
            let mut key: KeyRecord = from_json("api_keys", &body)?;
            change(&mut key);
            let body = to_json("api_keys", &key)?;
            tx.execute("UPDATE api_keys SET body = ?2 WHERE id = ?1", params![id, body]).map_err(sqlite("put a key"))?;
            Ok(Some(key))
        })
        .await
    }

    /// Notes when keys were last used. Nobody waits for that to be durable: a power failure may take it, and the disk is not synced.
    pub(crate) async fn note_uses(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError> {
        self.run_unsynced(move |tx| {
            let note = "UPDATE api_keys SET body = json_set(body, '$.last_used_at', ?2) WHERE id = ?1";
            for (id, at) in uses {
                tx.execute(note, params![id, at.to_string()]).map_err(sqlite("note the use of a key"))?;
            }
            Ok(())
        })
        .await
    }
}

/// Whether a team or a key was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Yes,
    NotNew,
    NoTeam,
    TooMany,
}
