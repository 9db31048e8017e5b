//! Webhooks, and what is on its way to them: it outlives the server, so that what happened just before a restart arrives after it.
//!
//! A delivery that is due has a time; one that was given up has none, and is kept for a while for whoever wants to know, or to send it
//! again. Both are bounded for each webhook. The tables came after the schema and change nothing in it.

use std::collections::{BTreeSet, HashMap, hash_map::Entry};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Store, StoreError, bodies,
    database::{Row, Tx, params, refused},
    from_json, one, to_json,
};
use crate::ground::{
    ids::WebhookId,
    team::{Scope, TeamId},
};

/// Deliveries that wait for one webhook: some hours of a busy team, while its receiver is away.
pub(crate) const MAX_WAITING: i64 = 1000;

/// What those may take, bytes: a payload has a kilobyte mostly, and is in the one database that everything waits for.
pub(crate) const MAX_WAITING_BYTES: i64 = 4 << 20;

/// Deliveries that were given up and are kept, of one webhook.
pub(crate) const MAX_DEAD: i64 = 200;

/// Webhooks of one team.
pub(crate) const MAX_WEBHOOKS: usize = 16;

/// What can happen to a sandbox, in the contract's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LifecycleKind {
    /// It was created.
    #[serde(rename = "sandbox.lifecycle.created")]
    Created,
    /// It ended.
    #[serde(rename = "sandbox.lifecycle.killed")]
    Killed,
    /// Its deadline or network was changed.
    #[serde(rename = "sandbox.lifecycle.updated")]
    Updated,
    /// It was paused.
    #[serde(rename = "sandbox.lifecycle.paused")]
    Paused,
    /// It goes on.
    #[serde(rename = "sandbox.lifecycle.resumed")]
    Resumed,
    /// Its state was cut for a snapshot or forks.
    #[serde(rename = "sandbox.lifecycle.checkpointed")]
    Checkpointed,
}

/// Where events of a team's sandboxes are sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// Its id.
    pub id: WebhookId,
    /// Whose it is.
    pub owner: TeamId,
    /// For people.
    pub name: String,
    /// Where to.
    pub url: String,
    /// Which.
    pub events: BTreeSet<LifecycleKind>,
    /// Whether anything is sent.
    pub enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// By which its receiver knows us. It is told to nobody.
    pub(crate) secret: String,
}

/// Without its secret, which is in no log.
impl std::fmt::Debug for Webhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Webhook").field("id", &self.id).field("url", &self.url).finish_non_exhaustive()
    }
}

/// Changes of a webhook. Absent fields stay as they are.
#[derive(Clone, Default)]
pub(crate) struct WebhookChange {
    pub(crate) name: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) events: Option<BTreeSet<LifecycleKind>>,
    pub(crate) enabled: Option<bool>,
    pub(crate) secret: Option<String>,
}

/// Without its secret, which is in no log.
impl std::fmt::Debug for WebhookChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookChange").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// One event on its way to one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The event's id.
    pub event_id: String,
    /// What happened.
    pub kind: LifecycleKind,
    /// What is sent; empty where deliveries are listed.
    #[serde(default)]
    pub payload: String,
    /// When it happened.
    pub at: Timestamp,
    /// How often it was sent in vain.
    #[serde(default)]
    pub attempts: u32,
    /// Why the last attempt was in vain, or why it was given up.
    #[serde(default)]
    pub error: Option<String>,
}

/// A delivery as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownDelivery {
    /// The delivery.
    pub delivery: Delivery,
    /// When it is sent next; none: it was given up.
    pub due: Option<Timestamp>,
}

/// The next delivery of a webhook.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) number: i64,
    pub(crate) webhook: Webhook,
    pub(crate) delivery: Delivery,
    /// Milliseconds since 1970.
    pub(crate) due_ms: i64,
}

pub(super) fn create_tables(c: &rusqlite::Connection) -> Result<(), StoreError> {
    c.execute_batch(
        "CREATE TABLE IF NOT EXISTS webhooks (id TEXT PRIMARY KEY, enabled INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS deliveries (
             number INTEGER PRIMARY KEY AUTOINCREMENT,
             webhook TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
             due_ms INTEGER,
             body TEXT NOT NULL);
         CREATE INDEX IF NOT EXISTS deliveries_of_webhook ON deliveries (webhook, due_ms);",
    )
    .map_err(super::of_sqlite("create the tables of webhooks"))
}

fn put(tx: Tx<'_>, webhook: &Webhook) -> Result<(), StoreError> {
    let body = to_json("webhooks", webhook)?;
    // Not `OR REPLACE`, which would take its deliveries away.
    let put = "INSERT INTO webhooks (id, enabled, body) VALUES (?1, ?2, ?3)
               ON CONFLICT (id) DO UPDATE SET enabled = excluded.enabled, body = excluded.body";
    tx.execute(put, params![webhook.id, webhook.enabled, body]).map_err(refused("put a webhook"))?;
    Ok(())
}

fn all(tx: Tx<'_>) -> Result<Vec<Webhook>, StoreError> {
    bodies(tx, "webhooks", "SELECT body FROM webhooks ORDER BY id", params![])
}

fn find(tx: Tx<'_>, scope: &Scope, id: &WebhookId) -> Result<Option<Webhook>, StoreError> {
    let found: Option<Webhook> = one(tx, "webhooks", "SELECT body FROM webhooks WHERE id = ?1", id.as_str())?;
    Ok(found.filter(|webhook| scope.sees(&webhook.owner)))
}

/// Forgets the oldest of those that were given up, beyond what is kept.
fn trim(tx: Tx<'_>, webhook: &WebhookId) -> Result<(), StoreError> {
    let trim = "DELETE FROM deliveries WHERE webhook = ?1 AND due_ms IS NULL AND number NOT IN (
                    SELECT number FROM deliveries WHERE webhook = ?1 AND due_ms IS NULL ORDER BY number DESC LIMIT ?2)";
    tx.execute(trim, params![webhook, MAX_DEAD]).map_err(refused("forget deliveries"))?;
    Ok(())
}

/// What waits for one webhook.
struct Waiting {
    count: i64,
    bytes: i64,
}

impl Waiting {
    /// None where there is no such webhook.
    fn of(tx: Tx<'_>, webhook: &WebhookId) -> Result<Option<Self>, StoreError> {
        let query = "SELECT COUNT(d.number), COALESCE(SUM(OCTET_LENGTH(d.body)), 0) FROM webhooks w
                     LEFT JOIN deliveries d ON d.webhook = w.id AND d.due_ms IS NOT NULL WHERE w.id = ?1 GROUP BY w.id";
        tx.first(query, params![webhook], |row| Ok(Self { count: row.get(0)?, bytes: row.get(1)? }))
            .map_err(refused("count deliveries"))
    }
}

impl Store {
    /// Those of a scope, the oldest first.
    pub(crate) async fn webhooks(&self, scope: Scope) -> Result<Vec<Webhook>, StoreError> {
        let mut webhooks = self.read(all).await?;
        webhooks.retain(|webhook| scope.sees(&webhook.owner));
        webhooks.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(webhooks)
    }

    /// Records a new webhook, unless its team has as many as it may. Whether it did.
    pub(crate) async fn add_webhook(&self, webhook: Webhook) -> Result<bool, StoreError> {
        self.run(move |tx| {
            if all(tx)?.iter().filter(|other| other.owner == webhook.owner).count() >= MAX_WEBHOOKS {
                return Ok(false);
            }
            put(tx, &webhook).map(|()| true)
        })
        .await
    }

    /// Changes a webhook, and gives it as it is then.
    pub(crate) async fn change_webhook(
        &self,
        scope: Scope,
        id: WebhookId,
        change: WebhookChange,
    ) -> Result<Option<Webhook>, StoreError> {
        self.run(move |tx| {
            let Some(was) = find(tx, &scope, &id)? else { return Ok(None) };
            let WebhookChange { name, url, events, enabled, secret } = change;
            let webhook = Webhook {
                name: name.unwrap_or(was.name),
                url: url.unwrap_or(was.url),
                events: events.unwrap_or(was.events),
                enabled: enabled.unwrap_or(was.enabled),
                secret: secret.unwrap_or(was.secret),
                ..was
            };
            put(tx, &webhook)?;
            Ok(Some(webhook))
        })
        .await
    }

    /// Forgets a webhook and all that is on its way to it. Whether it was there.
    pub(crate) async fn delete_webhook(&self, scope: Scope, id: WebhookId) -> Result<bool, StoreError> {
        self.run(move |tx| {
            if find(tx, &scope, &id)?.is_none() {
                return Ok(false);
            }
            tx.execute("DELETE FROM webhooks WHERE id = ?1", params![id]).map_err(refused("delete a webhook"))?;
            Ok(true)
        })
        .await
    }

    /// Puts events on their way. Where too many wait, an event is given up at once, and shown as such.
    pub(crate) async fn enqueue(&self, deliveries: Vec<(WebhookId, Delivery)>) -> Result<(), StoreError> {
        self.run(move |tx| {
            let mut known: HashMap<WebhookId, Option<Waiting>> = HashMap::new();
            for (webhook, mut delivery) in deliveries {
                let waiting = match known.entry(webhook.clone()) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => entry.insert(Waiting::of(tx, &webhook)?),
                };
                // None: it was deleted meanwhile.
                let Some(Waiting { count, bytes }) = waiting else { continue };
                let full = *count >= MAX_WAITING || *bytes >= MAX_WAITING_BYTES;
                let due = (!full).then(|| delivery.at.as_millisecond());
                if full {
                    delivery.error = Some(format!("{count} deliveries waited already, with {bytes} bytes"));
                }
                let body = to_json("deliveries", &delivery)?;
                tx.execute("INSERT INTO deliveries (webhook, due_ms, body) VALUES (?1, ?2, ?3)", params![webhook, due, body])
                    .map_err(refused("put a delivery"))?;
                if full {
                    trim(tx, &webhook)?;
                } else {
                    (*count, *bytes) = (*count + 1, bytes.saturating_add_unsigned(body.len() as u64));
                }
            }
            Ok(())
        })
        .await
    }

    /// Of each webhook that is enabled the delivery of this server that is due first, whether or not it is by now.
    pub(crate) async fn heads(&self) -> Result<Vec<Head>, StoreError> {
        let heads = format!(
            "SELECT d.number, d.due_ms, d.body, w.body FROM webhooks w JOIN deliveries d ON d.number = (
                 SELECT number FROM {} WHERE webhook = w.id AND due_ms IS NOT NULL ORDER BY due_ms, number LIMIT 1)
             WHERE w.enabled = 1 ORDER BY w.id",
            self.parts().own_deliveries
        );
        self.read(move |tx| {
            let columns = |row: &Row| Ok((row.get(0)?, row.get(1)?, row.get::<String>(2)?, row.get::<String>(3)?));
            let rows = tx.query(&heads, params![], columns).map_err(refused("read deliveries"))?;
            let head = |(number, due_ms, delivery, webhook): (i64, i64, String, String)| {
                let (delivery, webhook) = (from_json("deliveries", &delivery)?, from_json("webhooks", &webhook)?);
                Ok(Head { number, webhook, delivery, due_ms })
            };
            rows.into_iter().map(head).collect()
        })
        .await
    }

    /// A delivery has arrived.
    pub(crate) async fn delivered(&self, number: i64) -> Result<(), StoreError> {
        self.run(move |tx| {
            tx.execute("DELETE FROM deliveries WHERE number = ?1", params![number]).map_err(refused("delete a delivery"))?;
            Ok(())
        })
        .await
    }

    /// A delivery has not arrived: it is sent again then, or given up.
    pub(crate) async fn not_delivered(
        &self,
        number: i64,
        webhook: WebhookId,
        delivery: Delivery,
        again: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        self.run(move |tx| {
            let body = to_json("deliveries", &delivery)?;
            let due = again.map(Timestamp::as_millisecond);
            tx.execute("UPDATE deliveries SET due_ms = ?2, body = ?3 WHERE number = ?1", params![number, due, body])
                .map_err(refused("put a delivery off"))?;
            if due.is_none() { trim(tx, &webhook) } else { Ok(()) }
        })
        .await
    }

    /// What is on its way to a webhook and what was given up, the newest first. Absent where the webhook is.
    pub(crate) async fn deliveries(&self, scope: Scope, id: WebhookId) -> Result<Option<Vec<ShownDelivery>>, StoreError> {
        self.read(move |tx| {
            if find(tx, &scope, &id)?.is_none() {
                return Ok(None);
            }
            // Nobody is shown the payload, which is most of it.
            let query = "SELECT due_ms, json_remove(body, '$.payload') FROM deliveries WHERE webhook = ?1 ORDER BY number DESC";
            let columns = |row: &Row| Ok((row.get(0)?, row.get::<String>(1)?));
            let rows = tx.query(query, params![id], columns).map_err(refused("read deliveries"))?;
            let shown = |(due, body): (Option<i64>, String)| {
                let due = due.and_then(|ms| Timestamp::from_millisecond(ms).ok());
                Ok(ShownDelivery { delivery: from_json("deliveries", &body)?, due })
            };
            rows.into_iter().map(shown).collect::<Result<_, StoreError>>().map(Some)
        })
        .await
    }

    /// Sends again what was given up, from the first attempt on. How much that is; absent where the webhook is.
    pub(crate) async fn revive(&self, scope: Scope, id: WebhookId, now: Timestamp) -> Result<Option<usize>, StoreError> {
        self.run(move |tx| {
            if find(tx, &scope, &id)?.is_none() {
                return Ok(None);
            }
            // At most as many as are kept.
            let dead = "SELECT number, body FROM deliveries WHERE webhook = ?1 AND due_ms IS NULL ORDER BY number";
            let columns = |row: &Row| Ok((row.get(0)?, row.get::<String>(1)?));
            let dead: Vec<(i64, String)> = tx.query(dead, params![id], columns).map_err(refused("read deliveries"))?;
            for (number, body) in &dead {
                let first = Delivery { attempts: 0, ..from_json("deliveries", body)? };
                let revive = "UPDATE deliveries SET due_ms = ?2, body = ?3 WHERE number = ?1";
                let values = params![*number, now.as_millisecond(), to_json("deliveries", &first)?];
                tx.execute(revive, values).map_err(refused("revive deliveries"))?;
            }
            Ok(Some(dead.len()))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Webhook {
        pub(crate) fn of_test(id: &str, owner: &str) -> Self {
            Self {
                id: id.parse().unwrap(),
                owner: owner.parse().unwrap(),
                name: "n".into(),
                url: "https://a.example/".into(),
                events: [LifecycleKind::Created].into(),
                enabled: true,
                created_at: Timestamp::UNIX_EPOCH,
                secret: "hush".into(),
            }
        }
    }

    fn webhook(id: &str, owner: &str) -> Webhook {
        Webhook::of_test(id, owner)
    }

    fn delivery(second: i64) -> Delivery {
        let (event_id, payload) = (format!("e{second}"), "{}".to_owned());
        let at = Timestamp::from_second(second).unwrap();
        Delivery { event_id, kind: LifecycleKind::Created, payload, at, attempts: 0, error: None }
    }

    #[tokio::test]
    async fn what_waits_outlives_the_store_and_is_sent_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path).await.unwrap();
        let (a, b) = (webhook("a", "firkin"), webhook("b", "blue"));
        assert!(store.add_webhook(a.clone()).await.unwrap() && store.add_webhook(b.clone()).await.unwrap());
        let to = |webhook: &Webhook, second| (webhook.id.clone(), delivery(second));
        let gone = ("gone".parse().unwrap(), delivery(0));
        store.enqueue(vec![to(&a, 2), to(&a, 1), to(&b, 3), gone]).await.unwrap();
        store.close().await.unwrap();

        let store = Store::open(&path).await.unwrap();
        let heads = store.heads().await.unwrap();
        let shown: Vec<_> = heads.iter().map(|head| (head.webhook.id.as_str(), head.delivery.event_id.as_str())).collect();
        assert_eq!(shown, [("a", "e1"), ("b", "e3")]);
        store.delivered(heads[0].number).await.unwrap();
        let off = WebhookChange { enabled: Some(false), ..WebhookChange::default() };
        store.change_webhook(Scope::Team(b.owner.clone()), b.id.clone(), off).await.unwrap().unwrap();
        let heads = store.heads().await.unwrap();
        assert_eq!((heads.len(), heads[0].delivery.event_id.as_str()), (1, "e2"));
        // What another team has is not there.
        let first = Scope::Team(TeamId::first());
        assert!(store.deliveries(first.clone(), b.id.clone()).await.unwrap().is_none());
        assert!(!store.delete_webhook(first.clone(), b.id.clone()).await.unwrap());
        assert!(store.delete_webhook(first, a.id.clone()).await.unwrap());
        assert!(store.heads().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_given_up_is_kept_bounded_and_sent_again_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let a = webhook("a", "firkin");
        store.add_webhook(a.clone()).await.unwrap();
        let most = MAX_WAITING + MAX_DEAD + 5;
        store.enqueue((0..most).map(|second| (a.id.clone(), delivery(second))).collect()).await.unwrap();
        let all = || store.deliveries(Scope::Host, a.id.clone());
        let dead = |shown: &[ShownDelivery]| shown.iter().filter(|shown| shown.due.is_none()).count();
        let shown = all().await.unwrap().unwrap();
        assert_eq!((shown.len(), dead(&shown)), (usize::try_from(MAX_WAITING + MAX_DEAD).unwrap(), 200));
        assert!(shown[0].delivery.error.as_ref().unwrap().contains("waited already"));
        let Head { number, webhook, delivery, .. } = store.heads().await.unwrap().remove(0);
        let tried = Delivery { attempts: 6, error: Some("no".into()), ..delivery };
        store.not_delivered(number, webhook.id, tried, None).await.unwrap();
        assert_eq!(dead(&all().await.unwrap().unwrap()), 200);
        assert_eq!(store.revive(Scope::Host, a.id.clone(), Timestamp::now()).await.unwrap(), Some(200));
        let shown = all().await.unwrap().unwrap();
        assert!(dead(&shown) == 0 && shown.iter().all(|shown| shown.delivery.attempts == 0));
        assert!(shown.iter().all(|shown| shown.delivery.payload.is_empty()), "it is not read for a list");
        for n in 1..MAX_WEBHOOKS {
            assert!(store.add_webhook(self::webhook(&format!("w{n}"), "firkin")).await.unwrap());
        }
        assert!(!store.add_webhook(self::webhook("more", "firkin")).await.unwrap());
    }

    #[tokio::test]
    async fn what_waits_is_bounded_in_bytes_too_and_no_secret_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let a = webhook("a", "firkin");
        store.add_webhook(a.clone()).await.unwrap();
        let large = |second| Delivery { payload: "x".repeat(1 << 20), ..delivery(second) };
        store.enqueue((0..8).map(|second| (a.id.clone(), large(second))).collect()).await.unwrap();
        let shown = store.deliveries(Scope::Host, a.id.clone()).await.unwrap().unwrap();
        assert_eq!(shown.iter().filter(|shown| shown.due.is_some()).count(), 4);
        let change = WebhookChange { secret: Some("hush".into()), ..WebhookChange::default() };
        assert!(![format!("{change:?}"), format!("{a:?}")].concat().contains("hush"));
    }
}
