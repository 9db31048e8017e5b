//! Second copies of what paused sandboxes are held by: which artifact is whole on which node beside the sandbox's own.
//!
//! What is owed is read off the rows of the sandboxes and never remembered, so that no crash loses it. A row here says no more than that a node has
//! the artifact on its disk: what a sandbox begins with is read off its own row, so that no copy of an earlier pause is ever started from.

use std::sync::mpsc::sync_channel;

use firkin_runtime::{
    ids::ArtifactId,
    sandbox::SandboxId,
    store::{
        StoreError,
        database::{Database as _, DatabaseError, Mode, Statements, Value},
    },
};

use crate::{
    holding::{DRAINING, FORGOTTEN, NodeId},
    membership::Membership,
};

/// The most that is read of what is owed at once.
const MOST: usize = 10_000;

/// How long a copy counts whose node is away, in PostgreSQL's words: a host that was started anew is back by then.
const COUNTS_FOR: &str = "15 minutes";

/// Whether the store has a copy, by the alias `t` of its row.
pub(crate) const IS_STORED: &str = "t.is_whole AND NOT t.is_doubtful";

/// A paused sandbox of which there is no copy elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owed {
    /// Which.
    pub sandbox: SandboxId,
    /// What holds it.
    pub artifact: ArtifactId,
}

type Rows = Vec<Vec<Value>>;

/// Texts of rows that have nothing else in them.
pub(crate) fn texts<const N: usize>(rows: Rows) -> impl Iterator<Item = [String; N]> {
    rows.into_iter().filter_map(|row| {
        let texts = row.into_iter().map(|value| if let Value::Text(text) = value { Some(text) } else { None });
        texts.collect::<Option<Vec<_>>>()?.try_into().ok()
    })
}

impl Membership {
    pub(crate) fn me(&self) -> Value {
        Value::Text(self.node().to_string())
    }

    /// Runs an operation, and gives what it gives.
    pub(crate) async fn told<T: Send + 'static>(
        &self,
        mode: Mode,
        (operation, work): (&'static str, impl FnOnce(&dyn Statements) -> Result<T, DatabaseError> + Send + 'static),
    ) -> Result<T, StoreError> {
        let (send, receive) = sync_channel(1);
        let work = Box::new(move |tx: &dyn Statements| {
            let done = work(tx).map_err(|error| error.of(operation))?;
            // Nobody waits for it if this fails.
            drop(send.send(done));
            Ok(())
        });
        self.database().run(mode, work).await?;
        receive.recv().map_err(|_| StoreError::Closed)
    }

    /// Says that an artifact is whole on this node's disk, for as long as a paused sandbox is held by it. Whether any is: where none is, nothing is
    /// said. Durable when this returns.
    pub async fn copied(&self, artifact: &ArtifactId) -> Result<bool, StoreError> {
        let values = [Value::Text(artifact.to_string()), self.me()];
        let record = move |tx: &dyn Statements| {
            let held = "SELECT 1 FROM firkin.sandboxes WHERE held_artifact = ?1 LIMIT 1";
            if tx.rows(held, &values[..1])?.is_empty() {
                return Ok(false);
            }
            tx.execute("INSERT INTO firkin.copies (artifact, node) VALUES (?1, ?2) ON CONFLICT DO NOTHING", &values)?;
            Ok(true)
        };
        self.told(Mode::Write, ("record a copy", record)).await
    }

    /// Whether a paused sandbox of any node is held by an artifact.
    pub async fn is_held(&self, artifact: &ArtifactId) -> Result<bool, StoreError> {
        let values = [Value::Text(artifact.to_string())];
        let held = "SELECT 1 FROM firkin.sandboxes WHERE held_artifact = ?1 LIMIT 1";
        self.told(
            Mode::Read,
            ("look whether a copy is needed", move |tx: &dyn Statements| Ok(!tx.rows(held, &values)?.is_empty())),
        )
        .await
    }

    /// The nodes that have what a paused sandbox is held by, as far as is on record: its own, and those with copies.
    pub async fn holders(&self, artifact: &ArtifactId) -> Result<Vec<NodeId>, StoreError> {
        let values = [Value::Text(artifact.to_string())];
        let holders =
            "SELECT node FROM firkin.sandboxes WHERE held_artifact = ?1 UNION SELECT node FROM firkin.copies WHERE artifact = ?1";
        let rows =
            self.told(Mode::Read, ("look who has an artifact", move |tx: &dyn Statements| tx.rows(holders, &values))).await?;
        Ok(texts(rows).filter_map(|[id]: [String; 1]| id.parse().ok()).collect())
    }

    /// What this node has said that it has.
    pub async fn copies(&self) -> Result<Vec<ArtifactId>, StoreError> {
        let values = [self.me()];
        let read =
            move |tx: &dyn Statements| tx.rows("SELECT artifact FROM firkin.copies WHERE node = ?1 ORDER BY artifact", &values);
        let rows = self.told(Mode::Read, ("read the copies of a node", read)).await?;
        Ok(texts(rows).filter_map(|[id]: [String; 1]| id.parse().ok()).collect())
    }

    /// Paused sandboxes of this node that would be gone with its disk, by id: up to ten thousand; or one of them, if it is one. A copy counts on a node
    /// that is not away for long, and that is not to be emptied; and in the store, if this node has that.
    pub async fn owed(&self, only: Option<&SandboxId>) -> Result<Vec<Owed>, StoreError> {
        let in_store = match self.has_store() {
            true => {
                format!("AND NOT EXISTS (SELECT FROM firkin.stored t WHERE t.artifact = s.held_artifact AND {IS_STORED})")
            }
            false => String::new(),
        };
        let owed = format!(
            "SELECT s.id, s.held_artifact FROM firkin.sandboxes s
             WHERE s.node = ?1 AND s.term = ?2 AND s.held_artifact IS NOT NULL AND NOT EXISTS (
                 SELECT FROM firkin.copies c JOIN firkin.nodes n ON n.id = c.node
                 WHERE c.artifact = s.held_artifact AND c.node <> ?1 AND n.state NOT IN ('{FORGOTTEN}', '{DRAINING}')
                     AND n.lease_until > clock_timestamp() - interval '{COUNTS_FOR}')
             {in_store} {} ORDER BY s.id LIMIT {MOST}",
            if only.is_some() { "AND s.id = ?3" } else { "" }
        );
        let mut values = vec![self.me(), Value::Integer(self.term())];
        values.extend(only.map(|id| Value::Text(id.as_str().to_owned())));
        let rows =
            self.told(Mode::Read, ("read which copies are owed", move |tx: &dyn Statements| tx.rows(&owed, &values))).await?;
        let one = |[id, artifact]: [String; 2]| Some(Owed { sandbox: id.parse().ok()?, artifact: artifact.parse().ok()? });
        Ok(texts(rows).filter_map(one).collect())
    }

    /// Takes back what was said of artifacts that are not on this node's disk any more.
    pub async fn lost_copies(&self, lost: Vec<ArtifactId>) -> Result<(), StoreError> {
        let me = self.me();
        let remove = move |tx: &dyn Statements| {
            for artifact in lost {
                let values = [Value::Text(artifact.to_string()), me.clone()];
                tx.execute("DELETE FROM firkin.copies WHERE artifact = ?1 AND node = ?2", &values)?;
            }
            Ok(())
        };
        self.told(Mode::Write, ("take copies back", remove)).await
    }

    /// Lets go of this node's copies that no sandbox is held by any more: it was resumed, or is gone. How many these are.
    pub async fn let_go_of_copies(&self) -> Result<usize, StoreError> {
        let let_go = "DELETE FROM firkin.copies c WHERE c.node = ?1
                      AND NOT EXISTS (SELECT FROM firkin.sandboxes s WHERE s.held_artifact = c.artifact)";
        let values = [self.me()];
        let operation = "let go of copies";
        self.told(Mode::Write, (operation, move |tx: &dyn Statements| tx.execute(let_go, &values))).await
    }
}
