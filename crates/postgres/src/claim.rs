//! How a sandbox comes from one node to another: its next life is claimed, before anything of it begins.
//!
//! A claim is one statement, and of many who try from one life, one does. It takes the home's row against renewals until it is kept: a home that
//! renews after all comes before it, and then there is nothing to be claimed, or after it, and is told that its lease had ended.

use std::time::Duration;

use firkin_runtime::{
    sandbox::SandboxId,
    store::{
        StoreError,
        database::{Statements, Value},
        next_life,
    },
};

use crate::holding::NodeId;

/// A sandbox whose next life is this node's, before anything of it has begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// The life.
    pub epoch: u64,
    /// What is on record of it now.
    pub body: String,
    /// Whose it was, and who has its files: this node itself, where that gave it up.
    pub from: String,
}

/// Why a sandbox was not claimed. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// It is not on record.
    #[error("cannot claim sandbox `{id}`: there is none of this name")]
    Gone {
        /// Which.
        id: SandboxId,
    },
    /// It is in another life by now.
    #[error("cannot claim sandbox `{id}`: it is in life {found}, and was in {known} when it was looked for")]
    Changed {
        /// Which.
        id: SandboxId,
        /// Its life.
        found: u64,
        /// The one that was read.
        known: u64,
    },
    /// Its node has it.
    #[error("cannot claim sandbox `{id}`: it is node `{node}`'s, which may be there")]
    Held {
        /// Which.
        id: SandboxId,
        /// Whose.
        node: String,
    },
    /// There is nothing that another node could begin with.
    #[error("cannot claim sandbox `{id}`: nothing holds it but its machine on node `{node}`")]
    NothingHeld {
        /// Which.
        id: SandboxId,
        /// Whose.
        node: String,
    },
    /// The catalogue says no, or is away.
    #[error("cannot claim a sandbox")]
    Store(#[from] StoreError),
}

/// What holds of a node `n` whose lease has been over for so long, by the time at which the transaction began, which is before it waited for anything.
pub(crate) fn over(grace: Duration) -> String {
    format!("n.lease_until + interval '{} milliseconds' < now()", grace.as_millis())
}

pub(crate) fn number(epoch: u64) -> Value {
    Value::Integer(i64::try_from(epoch).unwrap_or(i64::MAX))
}

/// What a claim knows.
pub(crate) struct Claim {
    pub(crate) id: SandboxId,
    pub(crate) epoch: u64,
    pub(crate) node: NodeId,
    pub(crate) term: i64,
    pub(crate) grace: Duration,
    /// The number that a life which begins now has at least.
    pub(crate) first_life: u64,
}

/// What is on record before it.
struct Found {
    body: String,
    node: String,
    epoch: u64,
}

impl Claim {
    /// What becomes of it. Only what the catalogue refuses is an error of the transaction.
    pub(crate) fn run(&self, tx: &dyn Statements) -> Result<Result<Claimed, ClaimError>, StoreError> {
        let id = || self.id.clone();
        let Some(Found { body, node, epoch }) = self.found(tx)? else { return Ok(Err(ClaimError::Gone { id: id() })) };
        if epoch != self.epoch {
            return Ok(Err(ClaimError::Changed { id: id(), found: epoch, known: self.epoch }));
        }
        let Some(next) = next_life(&body, self.first_life)? else { return Ok(Err(ClaimError::NothingHeld { id: id(), node })) };
        // What is written stands on what was read, so it has to be that still, and not only in the same life: its home may have paused it since.
        let claim = format!(
            "UPDATE firkin.sandboxes s SET node = ?3, term = ?4, body = ?5, given_up = NULL
             WHERE s.id = ?1 AND s.node = ?6 AND s.body = ?7 AND CAST(json_extract(s.body, '$.epoch') AS BIGINT) = ?2
             AND (s.given_up = ?2 OR EXISTS (SELECT FROM firkin.nodes n WHERE n.id = s.node AND {} FOR SHARE))",
            over(self.grace)
        );
        let values = [
            Value::Text(self.id.as_str().to_owned()),
            number(self.epoch),
            Value::Text(self.node.to_string()),
            Value::Integer(self.term),
            Value::Text(next.body.clone()),
            Value::Text(node.clone()),
            Value::Text(body),
        ];
        let rows = tx.execute(&claim, &values).map_err(|error| error.of("claim a sandbox"))?;
        if rows == 1 {
            Ok(Ok(Claimed { epoch: next.epoch, body: next.body, from: node }))
        } else {
            Ok(Err(ClaimError::Held { id: id(), node }))
        }
    }

    fn found(&self, tx: &dyn Statements) -> Result<Option<Found>, StoreError> {
        let asked = "SELECT body, node, CAST(json_extract(body, '$.epoch') AS BIGINT) FROM firkin.sandboxes WHERE id = ?1";
        let rows = tx.rows(asked, &[Value::Text(self.id.as_str().to_owned())]).map_err(|error| error.of("read a sandbox"))?;
        Ok(rows.first().and_then(|row| match row.as_slice() {
            [Value::Text(body), Value::Text(node), Value::Integer(epoch)] => {
                Some(Found { body: body.clone(), node: node.clone(), epoch: epoch.unsigned_abs() })
            }
            _ => None,
        }))
    }
}
