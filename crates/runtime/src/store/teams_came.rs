//! From the second version of the schema, in which everything was everybody's, to the third, in which it is a team's. All that there is
//! becomes the first team's, its keys too. It is one transaction: a server that is killed in it begins again.
//!
//! Records say whose they are in their body, and those that say nothing are the first team's; so only what is unique in a team from now
//! on, and not in the whole database, is made anew.

use jiff::Timestamp;
use rusqlite::Transaction;

use super::{KeyRecord, KeyScope, SCHEMA, StoreError, database::Tx, of_sqlite, teams};
use crate::ground::{
    ids::KeyId,
    team::{FIRST, TeamId},
};

/// The name of a key from before keys had names.
const NAME: &str = "first";

pub(super) fn from_2(tx: &Transaction<'_>) -> Result<(), StoreError> {
    tx.execute_batch(&format!(
        "CREATE TABLE new_templates (
             id TEXT PRIMARY KEY, team TEXT NOT NULL, name TEXT, body TEXT NOT NULL, UNIQUE (team, name)
         ) WITHOUT ROWID;
         INSERT INTO new_templates (id, team, name, body) SELECT id, '{FIRST}', name, body FROM templates;
         DROP TABLE templates;
         ALTER TABLE new_templates RENAME TO templates;
         CREATE TABLE new_names (
             team TEXT NOT NULL, name TEXT NOT NULL, build_id TEXT NOT NULL REFERENCES versions (build_id),
             assigned_at TEXT NOT NULL, PRIMARY KEY (team, name)
         ) WITHOUT ROWID;
         INSERT INTO new_names (team, name, build_id, assigned_at) SELECT '{FIRST}', name, build_id, assigned_at FROM names;
         DROP TABLE names;
         ALTER TABLE new_names RENAME TO names;
         CREATE INDEX names_of_version ON names (build_id);"
    ))
    .map_err(of_sqlite("give templates to a team"))?;
    with_keys(tx)
}

/// The last part, from either version: keys become a team's.
pub(super) fn with_keys(tx: &Transaction<'_>) -> Result<(), StoreError> {
    let digests: Vec<[u8; 32]> = {
        let mut statement = tx.prepare("SELECT digest FROM api_keys").map_err(of_sqlite("read keys"))?;
        let rows = statement.query_map([], |row| row.get(0)).map_err(of_sqlite("read keys"))?;
        rows.collect::<Result<_, _>>().map_err(of_sqlite("read keys"))?
    };
    tx.execute_batch("DROP TABLE api_keys").map_err(of_sqlite("drop the old keys"))?;
    tx.execute_batch(teams::TABLES).map_err(of_sqlite("create the tables of teams"))?;
    teams::put_first(Tx::of(&**tx))?;
    for digest in digests {
        let key = KeyRecord {
            id: KeyId::generate(),
            team: TeamId::first(),
            name: NAME.to_owned(),
            scope: KeyScope::Full,
            created_at: None::<Timestamp>,
            expires_at: None,
            revoked_at: None,
            last_used_at: None,
        };
        teams::put_key(Tx::of(&**tx), digest, &key)?;
    }
    // The transaction has not been held to them.
    let mut statement = tx.prepare("PRAGMA foreign_key_check").map_err(of_sqlite("check what refers to what"))?;
    if statement.exists([]).map_err(of_sqlite("check what refers to what"))? {
        return Err(StoreError::Migration);
    }
    drop(statement);
    tx.execute_batch(&format!("PRAGMA user_version = {SCHEMA}")).map_err(of_sqlite("write the version"))
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::{
        ground::{reference::Sought, team::Scope},
        store::{Store, templates::Lookup},
    };

    /// A database as a server of the second version left it, with a snapshot and an id of earlier besides.
    const SECOND_VERSION: &str = include_str!("golden/schema-2.sql");

    #[tokio::test]
    async fn what_there_was_before_teams_is_the_first_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.db");
        Connection::open(&path).unwrap().execute_batch(SECOND_VERSION).unwrap();
        for _ in 0..2 {
            // The second time there is nothing to do.
            let store = Store::open(&path).await.unwrap();
            let (first, other) = (Scope::Team(TeamId::first()), Scope::Team("b".parse().unwrap()));
            let found = async |scope: &Scope, reference: &str| {
                let sought: Sought = reference.parse().unwrap();
                store.template(scope.clone(), sought).await.unwrap() != Lookup::Absent
            };
            for reference in
                ["base", "firkin/base:default", "2iymozzr3wgmo2oh4nfw", "onceuponatime", "mine:v1", "snapsnapsnapsnapsnap"]
            {
                assert!(found(&first, reference).await && !found(&other, reference).await, "{reference}");
            }
            let [sandbox] = &store.sandboxes(first.clone()).await.unwrap()[..] else { panic!("one sandbox") };
            assert!(sandbox.owner.is_first());
            let of = async |scope: &Scope| {
                let (builds, templates) =
                    (store.builds(scope.clone()).await.unwrap(), store.templates(scope.clone()).await.unwrap());
                (builds.len(), templates.len(), store.sandboxes(scope.clone()).await.unwrap().len())
            };
            assert_eq!((of(&first).await, of(&other).await), ((1, 2, 1), (0, 0, 0)));
            assert_eq!(store.teams().await.unwrap().len(), 1);
            let [(digest, key)] = &store.keys(Scope::Host).await.unwrap()[..] else { panic!("one key") };
            assert_eq!((digest, key.scope, key.created_at, key.revoked_at), (&[0xab; 32], KeyScope::Full, None, None));
            assert!(key.team.is_first());
            store.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_database_whose_rows_refer_to_nothing_stays_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("firkin.db");
        let c = Connection::open(&path).unwrap();
        c.execute_batch(SECOND_VERSION).unwrap();
        c.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM templates WHERE name = 'base'").unwrap();
        drop(c);
        assert!(matches!(Store::open(&path).await, Err(StoreError::Migration)));
        let c = Connection::open(&path).unwrap();
        let (version, keys): (i64, i64) = c
            .query_row("SELECT (SELECT user_version FROM pragma_user_version), count(*) FROM api_keys", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!((version, keys), (2, 1));
    }
}
