//! What is in the store that a cluster has beside its nodes' disks, and what may go from there.
//!
//! ```text
//!   who copies    names an artifact and its contents ─► looks for them, copies ─► says that it is whole
//!   who removes   names what is to go, unless a row has it ─► removes it ─► names the next
//! ```
//!
//! Both name things in one row's turn before they touch them. So what is found there by who copies is not removed a moment later: either it was named
//! before, and stays, or it is going, and who copies comes back later.

use std::time::Duration;

use firkin_runtime::{
    ids::ArtifactId,
    store::{
        StoreError,
        database::{DatabaseError, Mode, Statements, Value},
    },
};

use crate::{
    copies::{IS_STORED, texts},
    membership::Membership,
};

/// How long a node may take to copy one artifact, in PostgreSQL's words: then another may, and what it says comes too late.
const COPIED_WITHIN: &str = "1 hour";

/// How long a node may take to remove what nobody needs: then another may, and what was going is not taken to be going any more.
const CLEANED_WITHIN: &str = "1 hour";

/// The most artifacts that are read of what templates and snapshots are owed at once.
const MOST: usize = 1000;

/// What became of the wish to copy an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storing {
    /// It is this node's to copy, within an hour. What is there is to be believed, or to be copied anew over it.
    Begun {
        /// Whether what is there was found to be damaged.
        anew: bool,
    },
    /// It is there.
    Whole,
    /// Another node is at it.
    Others,
    /// Something of it is being removed just now.
    Going,
}

/// Whether a row needs an artifact that is there, by its alias `t`.
const IS_NEEDED: &str = "(EXISTS (SELECT FROM firkin.sandboxes s WHERE s.held_artifact = t.artifact)
    OR EXISTS (SELECT FROM firkin.versions v WHERE firkin.json_extract(v.body, '$.artifact') = t.artifact))";

/// Names as one text: ids and digests have no commas.
fn list(names: &[String]) -> Value {
    Value::Text(names.join(","))
}

fn artifact_of(artifact: &ArtifactId) -> Value {
    Value::Text(artifact.to_string())
}

/// What is going just now, as long as whoever removes it has the time for it.
fn going(tx: &dyn Statements) -> Result<Vec<String>, DatabaseError> {
    let read = "SELECT CASE WHEN until > clock_timestamp() THEN going ELSE '' END FROM firkin.store FOR UPDATE";
    let found = texts(tx.rows(read, &[])?).next().map_or(String::new(), |[going]| going);
    Ok(found.split(',').map(str::to_owned).collect())
}

impl Membership {
    /// Begins to copy an artifact with these contents (digests) to the store. From here on none of them goes.
    pub async fn begin_storing(&self, artifact: &ArtifactId, contents: Vec<String>) -> Result<Storing, StoreError> {
        let values = [artifact_of(artifact), self.me()];
        let named = [artifact_of(artifact), list(&contents)];
        let artifact = artifact.to_string();
        let begin = move |tx: &dyn Statements| {
            let going = going(tx)?;
            if going.contains(&artifact) || contents.iter().any(|digest| going.contains(digest)) {
                return Ok(Storing::Going);
            }
            let found: Option<[String; 2]> = texts(tx.rows(
                "SELECT CASE WHEN is_whole THEN 'whole' ELSE '' END, CASE WHEN is_doubtful THEN 'doubtful' ELSE '' END
                 FROM firkin.stored WHERE artifact = ?1",
                &values[..1],
            )?)
            .next();
            let is_whole = found.as_ref().is_some_and(|[whole, _]| !whole.is_empty());
            let anew = found.as_ref().is_some_and(|[_, doubtful]| !doubtful.is_empty());
            if is_whole && !anew {
                return Ok(Storing::Whole);
            }
            let begin = format!(
                "INSERT INTO firkin.stored (artifact, node) VALUES (?1, ?2) ON CONFLICT (artifact) DO UPDATE
                 SET node = ?2, begun = clock_timestamp(), unneeded_since = NULL
                 WHERE stored.node = ?2 OR stored.begun < clock_timestamp() - interval '{COPIED_WITHIN}'
                     OR (stored.is_whole AND stored.is_doubtful)"
            );
            if tx.execute(&begin, &values)? == 0 {
                return Ok(Storing::Others);
            }
            let name = "INSERT INTO firkin.stored_contents (digest, artifact)
                        SELECT d, ?1 FROM unnest(string_to_array(?2, ',')) AS d ON CONFLICT DO NOTHING";
            tx.execute(name, &named)?;
            Ok(Storing::Begun { anew })
        };
        self.told(Mode::Write, ("begin to copy to the store", begin)).await
    }

    /// Says that all of an artifact which this node has begun to copy is in the store. Whether that is on record now: not where it took too long.
    pub async fn stored(&self, artifact: &ArtifactId) -> Result<bool, StoreError> {
        let values = [artifact_of(artifact), self.me()];
        let whole = format!(
            "UPDATE firkin.stored SET is_whole = TRUE, is_doubtful = FALSE
             WHERE artifact = ?1 AND node = ?2 AND begun > clock_timestamp() - interval '{COPIED_WITHIN}'"
        );
        let operation = "record a copy in the store";
        self.told(Mode::Write, (operation, move |tx: &dyn Statements| Ok(tx.execute(&whole, &values)? > 0))).await
    }

    /// Says that what came of an artifact from the store was not what it must be: who has it copies it anew.
    pub async fn doubt(&self, artifact: &ArtifactId) -> Result<bool, StoreError> {
        let values = [artifact_of(artifact)];
        let doubt = "UPDATE firkin.stored SET is_doubtful = TRUE WHERE artifact = ?1 AND is_whole";
        let operation = "doubt a copy in the store";
        self.told(Mode::Write, (operation, move |tx: &dyn Statements| Ok(tx.execute(doubt, &values)? > 0))).await
    }

    /// Whether anything is said to be in the store.
    pub async fn has_stored(&self) -> Result<bool, StoreError> {
        let any = "SELECT artifact FROM firkin.stored WHERE is_whole LIMIT 1";
        self.told(Mode::Read, ("look whether the store is used", move |tx: &dyn Statements| Ok(!tx.rows(any, &[])?.is_empty())))
            .await
    }

    /// What templates and snapshots are made of and the store has no copy of, as far as no other node is at it: up to a thousand.
    pub async fn unstored(&self) -> Result<Vec<ArtifactId>, StoreError> {
        let values = [self.me()];
        let unstored = format!(
            "SELECT DISTINCT firkin.json_extract(v.body, '$.artifact') AS artifact FROM firkin.versions v WHERE NOT EXISTS (
                 SELECT FROM firkin.stored t WHERE t.artifact = firkin.json_extract(v.body, '$.artifact') AND (({IS_STORED})
                     OR (NOT t.is_whole AND t.node <> ?1 AND t.begun > clock_timestamp() - interval '{COPIED_WITHIN}')))
             ORDER BY artifact LIMIT {MOST}"
        );
        let read = move |tx: &dyn Statements| tx.rows(&unstored, &values);
        let rows = self.told(Mode::Read, ("read what the store lacks", read)).await?;
        Ok(texts(rows).filter_map(|[id]: [String; 1]| id.parse().ok()).collect())
    }

    /// Has this node be the one that removes what nobody needs from the store, within an hour, unless another is or one has within `every`.
    pub async fn begin_cleaning(&self, every: Duration) -> Result<bool, StoreError> {
        let values = [self.me()];
        let begin = format!(
            "UPDATE firkin.store SET cleaner = ?1, until = clock_timestamp() + interval '{CLEANED_WITHIN}', going = ''
             WHERE until < clock_timestamp() AND cleaned < clock_timestamp() - interval '{} milliseconds'",
            every.as_millis()
        );
        let operation = "begin to clean the store";
        self.told(Mode::Write, (operation, move |tx: &dyn Statements| Ok(tx.execute(&begin, &values)? > 0))).await
    }

    /// Forgets what is in the store and has been needed by no row for as long as `keep`, and notes what is not needed from now on. How many it forgot.
    pub async fn forget_stored(&self, keep: Duration) -> Result<usize, StoreError> {
        let forget = move |tx: &dyn Statements| {
            let needed =
                format!("UPDATE firkin.stored t SET unneeded_since = NULL WHERE unneeded_since IS NOT NULL AND {IS_NEEDED}");
            tx.execute(&needed, &[])?;
            let unneeded = format!(
                "UPDATE firkin.stored t SET unneeded_since = clock_timestamp() WHERE unneeded_since IS NULL AND NOT {IS_NEEDED}"
            );
            tx.execute(&unneeded, &[])?;
            let old = format!(
                "DELETE FROM firkin.stored WHERE unneeded_since <= clock_timestamp() - interval '{} milliseconds'
                 AND (is_whole OR begun < clock_timestamp() - interval '{COPIED_WITHIN}')",
                keep.as_millis()
            );
            tx.execute(&old, &[])
        };
        self.told(Mode::Write, ("forget what the store need not have", forget)).await
    }

    /// Which of these artifacts and contents no row names. Nobody copies one of them until others are named here, or the cleaning is over. None where
    /// the time for it is.
    pub async fn let_go(&self, candidates: Vec<String>) -> Result<Option<Vec<String>>, StoreError> {
        let (me, candidates) = ([self.me()], [list(&candidates)]);
        let name = move |tx: &dyn Statements| {
            let mine = "SELECT cleaner FROM firkin.store WHERE cleaner = ?1 AND until > clock_timestamp() FOR UPDATE";
            if tx.rows(mine, &me)?.is_empty() {
                return Ok(None);
            }
            let unnamed = "SELECT d FROM unnest(string_to_array(?1, ',')) AS d
                           WHERE NOT EXISTS (SELECT FROM firkin.stored_contents c WHERE c.digest = d)
                               AND NOT EXISTS (SELECT FROM firkin.stored t WHERE t.artifact = d)";
            let going: Vec<String> = texts(tx.rows(unnamed, &candidates)?).map(|[name]: [String; 1]| name).collect();
            tx.execute("UPDATE firkin.store SET going = ?1", &[list(&going)])?;
            Ok(Some(going))
        };
        self.told(Mode::Write, ("let go of what is in the store", name)).await
    }

    /// The store was cleaned, or was not to its end.
    pub async fn end_cleaning(&self, is_clean: bool) -> Result<(), StoreError> {
        let values = [self.me(), Value::Integer(is_clean.into())];
        let end = "UPDATE firkin.store SET until = clock_timestamp(), going = '',
                   cleaned = CASE WHEN CAST(?2 AS BOOLEAN) THEN clock_timestamp() ELSE cleaned END WHERE cleaner = ?1";
        let operation = "end cleaning the store";
        self.told(Mode::Write, (operation, move |tx: &dyn Statements| tx.execute(end, &values).map(drop))).await
    }
}
