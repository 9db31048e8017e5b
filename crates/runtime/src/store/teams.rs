//! Teams, and the keys that open what they own. Of a key there is its digest and nothing that it could be made of.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, bodies,
    database::{Row, Tx, params, refused},
    from_json, one, to_json,
};
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
pub(super) fn put_first(c: Tx<'_>) -> Result<(), StoreError> {
    let first = TeamId::first();
    let name = first.to_string();
    let team = TeamRecord { id: first, name, created_at: Timestamp::now(), quota: TeamQuota::default() };
    put_team(c, &team)
}

fn put_team(c: Tx<'_>, team: &TeamRecord) -> Result<(), StoreError> {
    let body = to_json("teams", team)?;
    let put = "INSERT INTO teams (id, body) VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
    c.execute(put, params![team.id, body]).map_err(refused("put a team"))?;
    Ok(())
}

pub(super) fn put_key(c: Tx<'_>, digest: [u8; 32], key: &KeyRecord) -> Result<(), StoreError> {
    let body = to_json("api_keys", key)?;
    let put = "INSERT INTO api_keys (digest, id, team, body) VALUES (?1, ?2, ?3, ?4)";
    c.execute(put, params![digest, key.id, key.team, body]).map_err(refused("put a key"))?;
    Ok(())
}

impl Store {
    /// Makes the first team, if it is not there.
    pub(crate) async fn ensure_first_team(&self) -> Result<(), StoreError> {
        self.run(|tx| {
            let first = TeamId::first();
            let known: Option<TeamRecord> = one(tx, "teams", "SELECT body FROM teams WHERE id = ?1", first.as_str())?;
            if known.is_none() { put_first(tx) } else { Ok(()) }
        })
        .await
    }

    /// Adds a team, unless there is one of its id or there are as many as `most`.
    pub(crate) async fn add_team(&self, team: TeamRecord, most: u32) -> Result<Added, StoreError> {
        self.run(move |tx| {
            let count: u32 = tx
                .first("SELECT count(*) FROM teams", params![], |row| row.get(0))
                .map_err(refused("count teams"))?
                .unwrap_or_default();
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
        self.read(|tx| bodies(tx, "teams", "SELECT body FROM teams ORDER BY id", params![])).await
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

    /// Adds a key of a team that is there, unless as many as may be are good. Those that have long been dead are removed, and told of.
    pub(crate) async fn add_key(
        &self,
        digest: [u8; 32],
        key: KeyRecord,
        most: KeyBounds,
    ) -> Result<(Added, Vec<KeyId>), StoreError> {
        self.run(move |tx| {
            let team: Option<TeamRecord> = one(tx, "teams", "SELECT body FROM teams WHERE id = ?1", key.team.as_str())?;
            if team.is_none() {
                return Ok((Added::NoTeam, Vec::new()));
            }
            let (gone, good) = remove_dead(tx, key.created_at.unwrap_or_else(Timestamp::now), most)?;
            if good >= most.good as usize {
                return Ok((Added::TooMany, gone));
            }
            put_key(tx, digest, &key)?;
            Ok((Added::Yes, gone))
        })
        .await
    }

    /// Every key of a scope, with its digest, oldest first.
    pub(crate) async fn keys(&self, scope: Scope) -> Result<Vec<([u8; 32], KeyRecord)>, StoreError> {
        self.read(move |tx| {
            let columns = |row: &Row| Ok((row.get(0)?, row.get::<String>(1)?));
            let mut keys = Vec::new();
            for (digest, body) in
                tx.query("SELECT digest, body FROM api_keys", params![], columns).map_err(refused("read keys"))?
            {
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
        self.run(move |tx| change_key(tx, &id, change)).await
    }

    /// Notes when keys were last used. Nobody waits for that to be durable: a power failure may take it, and the disk is not synced.
    pub(crate) async fn note_uses(&self, uses: Vec<(KeyId, Timestamp)>) -> Result<(), StoreError> {
        self.run_unsynced(move |tx| {
            uses.into_iter().try_for_each(|(id, at)| change_key(tx, &id, |key| key.last_used_at = Some(at)).map(drop))
        })
        .await
    }
}

fn change_key(tx: Tx<'_>, id: &KeyId, change: impl FnOnce(&mut KeyRecord)) -> Result<Option<KeyRecord>, StoreError> {
    let found: Option<KeyRecord> = one(tx, "api_keys", "SELECT body FROM api_keys WHERE id = ?1", id.as_str())?;
    let Some(mut key) = found else { return Ok(None) };
    change(&mut key);
    let body = to_json("api_keys", &key)?;
    tx.execute("UPDATE api_keys SET body = ?2 WHERE id = ?1", params![*id, body]).map_err(refused("put a key"))?;
    Ok(Some(key))
}

/// How many keys may be on record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyBounds {
    /// Of those that open something.
    pub(crate) good: u32,
    /// Of those that do not any more.
    pub(crate) dead: u32,
    /// Those that have not since before this are removed.
    pub(crate) dead_since: Timestamp,
}

impl KeyRecord {
    /// Since when it opens nothing, if it does not now.
    fn dead_since(&self, now: Timestamp) -> Option<Timestamp> {
        let expired = self.expires_at.filter(|at| *at <= now);
        self.revoked_at.into_iter().chain(expired).min()
    }
}

/// Removes keys that have been dead for too long, or of too many the first that were. Gives them, and how many are good.
fn remove_dead(c: Tx<'_>, now: Timestamp, most: KeyBounds) -> Result<(Vec<KeyId>, usize), StoreError> {
    let keys: Vec<KeyRecord> = bodies(c, "api_keys", "SELECT body FROM api_keys", params![])?;
    let total = keys.len();
    let mut dead: Vec<_> = keys.into_iter().filter_map(|key| Some((key.dead_since(now)?, key.id))).collect();
    let good = total - dead.len();
    dead.sort_unstable_by_key(|dead| std::cmp::Reverse(dead.0));
    let recent = dead.iter().take(most.dead as usize).take_while(|(since, _)| *since > most.dead_since).count();
    let gone: Vec<_> = dead.split_off(recent).into_iter().map(|(_, id)| id).collect();
    for id in &gone {
        c.execute("DELETE FROM api_keys WHERE id = ?1", params![id]).map_err(refused("remove a key"))?;
    }
    Ok((gone, good))
}

/// Whether a team or a key was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Yes,
    NotNew,
    NoTeam,
    TooMany,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key(name: &str, now: i64, expires: Option<i64>) -> KeyRecord {
        KeyRecord {
            id: KeyId::generate(),
            team: TeamId::first(),
            name: name.to_owned(),
            scope: KeyScope::Full,
            created_at: Some(at(now)),
            expires_at: expires.map(at),
            revoked_at: None,
            last_used_at: None,
        }
    }

    #[tokio::test]
    async fn keys_that_open_nothing_any_more_do_not_count_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("firkin.db")).await.unwrap();
        let digest = |name: &str| *blake3::hash(name.as_bytes()).as_bytes();
        let add = async |name: &str, now: i64, expires: Option<i64>| {
            let most = KeyBounds { good: 3, dead: 2, dead_since: at(now - 100) };
            store.add_key(digest(name), key(name, now, expires), most).await.unwrap()
        };
        let names = async || {
            let keys = store.keys(Scope::Host).await.unwrap();
            keys.into_iter().map(|(_, key)| key.name).collect::<Vec<_>>()
        };
        for name in ["1", "2", "3"] {
            assert_eq!(add(name, 1000, Some(1010)).await, (Added::Yes, Vec::new()));
        }
        assert_eq!(add("4", 1001, None).await.0, Added::TooMany);
        assert_eq!(names().await.len(), 3);
        // Two that are dead are shown, and one that was is not: its place is free either way.
        let (added, gone) = add("4", 1050, None).await;
        assert_eq!((added, gone.len(), names().await.len()), (Added::Yes, 1, 3));
        let four = store.keys(Scope::Host).await.unwrap().into_iter().find(|(_, key)| key.name == "4").unwrap().1;
        store.change_key(four.id, |key| key.revoked_at = Some(at(1060))).await.unwrap();
        // Long after, none of those that expired.
        assert_eq!(add("5", 1120, None).await.0, Added::Yes);
        assert_eq!(names().await, ["4", "5"]);
    }
}
