//! Sandboxes that go to another host of their cluster, and come from one: there with all that they had, or what they were.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use firkin_engine::fake::{Fault, Point};
use firkin_runtime::{
    claims::{ClaimRefused, Claims},
    config::EncryptionConfig,
    ids::ArtifactId,
    owner::{Bound, Departing, MoveError},
    relocating::TakeOverError,
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{RuntimeSandbox, SandboxId, SandboxState},
    store::{StoreError, next_life},
};
use futures::future::BoxFuture;
use jiff::Timestamp;
use rusqlite::Connection;

use crate::bench::{Host, base};

const MINUTE: Duration = Duration::from_secs(60);

/// Longer than anything takes here, on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// The rows of a cluster: those of the host itself.
#[derive(Debug)]
struct Rows {
    path: PathBuf,
    /// Which life of which sandbox was given up last.
    given: Mutex<Option<(SandboxId, u64)>>,
    keeps: AtomicBool,
}

impl Rows {
    fn of(host: &mut Host) -> Arc<Self> {
        let path = host.state_dir().join("firkin.db");
        let rows = Arc::new(Self { path, given: Mutex::default(), keeps: AtomicBool::new(false) });
        host.claims = Some(rows.clone());
        rows
    }

    fn body(&self, id: &SandboxId) -> String {
        let rows = Connection::open(&self.path).unwrap();
        rows.query_row("SELECT body FROM sandboxes WHERE id = ?1", [id.as_str()], |row| row.get(0)).unwrap()
    }

    fn record(&self, id: &SandboxId) -> serde_json::Value {
        serde_json::from_str(&self.body(id)).unwrap()
    }

    fn epoch(&self, id: &SandboxId) -> u64 {
        self.record(id)["epoch"].as_u64().unwrap()
    }

    fn write(&self, id: &SandboxId, body: &str) {
        let rows = Connection::open(&self.path).unwrap();
        assert_eq!(rows.execute("UPDATE sandboxes SET body = ?2 WHERE id = ?1", [id.as_str(), body]).unwrap(), 1);
    }

    /// Another host takes what was given up.
    fn take(&self, id: &SandboxId) -> Option<String> {
        let given = self.given.lock().unwrap().take()?;
        let next = next_life(&self.body(id), 0).unwrap()?;
        (given == (id.clone(), next.epoch - 1)).then(|| {
            self.write(id, &next.body);
            next.body
        })
    }
}

impl Claims for Rows {
    fn give_up<'a>(&'a self, id: &'a SandboxId, epoch: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            if self.keeps.load(Ordering::SeqCst) {
                return Err(StoreError::Closed);
            }
            assert_eq!((self.epoch(id), self.record(id)["phase"]["phase"].as_str()), (epoch, Some("paused")));
            *self.given.lock().unwrap() = Some((id.clone(), epoch));
            Ok(())
        })
    }

    fn is_free<'a>(&'a self, id: &'a SandboxId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move { Ok(*self.given.lock().unwrap() == Some((id.clone(), self.epoch(id)))) })
    }

    fn claim<'a>(&'a self, id: &'a SandboxId, _: u64) -> BoxFuture<'a, Result<String, ClaimRefused>> {
        Box::pin(async move { self.take(id).ok_or_else(|| ClaimRefused::Held("it is another's".into())) })
    }

    fn is_held<'a>(&'a self, _: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async { Ok(false) })
    }

    fn copied<'a>(&'a self, _: &'a ArtifactId) -> BoxFuture<'a, Result<bool, StoreError>> {
        // Nobody asks this host to keep what is its own.
        Box::pin(async { Ok(false) })
    }
}

/// Whom a sandbox is offered to, and who says no.
fn nobody(
    server: &Runtime,
    offered: &Arc<Mutex<Vec<Departing>>>,
) -> impl FnOnce(Departing) -> BoxFuture<'static, Result<(), Box<dyn std::error::Error + Send + Sync>>> + Send + use<> {
    let (server, offered) = (server.clone(), Arc::clone(offered));
    move |departing| {
        Box::pin(async move {
            // Whoever looks meanwhile finds it, and that it stands still.
            assert_eq!(server.sandbox(&departing.id).unwrap().state, SandboxState::Paused);
            offered.lock().unwrap().push(departing);
            Err("the other host is full".into())
        })
    }
}

fn taken(_: Departing) -> BoxFuture<'static, Result<(), Box<dyn std::error::Error + Send + Sync>>> {
    Box::pin(async { Ok(()) })
}

async fn created(host: &Host, server: &Runtime, word: &str) -> RuntimeSandbox {
    let sandbox = server.create(base()).await.unwrap();
    host.remember(&sandbox.id, word);
    sandbox
}

#[tokio::test]
async fn a_sandbox_that_nobody_takes_is_what_it_was() {
    let mut host = Host::new();
    let rows = Rows::of(&mut host);
    host.serve_async(async |server| {
        let before = created(&host, server, "counted to 41").await;
        let (id, offered) = (&before.id, Arc::default());
        for gives in [true, false] {
            rows.keeps.store(!gives, Ordering::SeqCst);
            let refused = server.move_away(id, nobody(server, &offered)).await.unwrap_err();
            assert!(matches!(refused, MoveError::Refused { .. }), "{refused:?}");
            let now = server.sandbox(id).unwrap();
            assert_eq!((now.state, now.end_at), (SandboxState::Running, before.end_at));
            assert_eq!(now.envd_access_token, before.envd_access_token);
            assert_eq!(host.memory(id).word, "counted to 41");
        }
        let expected = Departing { id: id.clone(), until: Some(before.end_at) };
        assert_eq!(*offered.lock().unwrap(), [expected], "what could not be given up was offered to nobody");
        rows.keeps.store(false, Ordering::SeqCst);
        // One that is paused stays so.
        server.pause(id).await.unwrap();
        server.move_away(id, nobody(server, &offered)).await.unwrap_err();
        assert_eq!(offered.lock().unwrap().last().unwrap().until, None);
        assert_eq!(server.sandbox(id).unwrap().state, SandboxState::Paused);
        // Where it does not run again at home either, it is paused, and says both.
        server.resume(id, MINUTE).await.unwrap();
        host.engine.inject(Point::Restore, Fault::Refuse);
        let refused = server.move_away(id, nobody(server, &offered)).await.unwrap_err();
        assert!(matches!(&refused, MoveError::Paused { why, .. } if why.contains("full")), "{refused:?}");
        server.resume(id, MINUTE).await.unwrap();
        assert_eq!(host.memory(id).word, "counted to 41");
    })
    .await;
}

#[tokio::test]
async fn what_has_come_back_is_not_let_go_of() {
    let mut host = Host::new();
    let rows = Rows::of(&mut host);
    host.serve_async(async |server| {
        let before = created(&host, server, "counted to 41").await;
        let id = &before.id;
        let (letting_go, server_too, rows) = (Arc::new(Mutex::new(None)), server.clone(), Arc::clone(&rows));
        let asked = Arc::clone(&letting_go);
        let refused = server.move_away(id, move |Departing { id, .. }| {
            Box::pin(async move {
                // While another host has it, this one finds that it is lost; it is asked to end behind the move, which comes to nothing.
                let body = rows.body(&id);
                let database = Connection::open(&rows.path).unwrap();
                database.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()]).unwrap();
                let mut lets = Box::pin(async move { server_too.let_go_of_what_is_anothers().await });
                let waits = tokio::time::timeout(Duration::from_millis(500), &mut lets).await;
                assert!(waits.is_err(), "{waits:?}");
                *asked.lock().unwrap() = Some(lets);
                database.execute("INSERT INTO sandboxes (id, body) VALUES (?1, ?2)", [id.as_str(), &body]).unwrap();
                Err("the other host is full".into())
            })
        });
        let refused = refused.await.unwrap_err();
        assert!(matches!(refused, MoveError::Refused { .. }), "{refused:?}");
        let lets = letting_go.lock().unwrap().take().unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, lets).await.unwrap().unwrap(), 0);
        assert_eq!(server.sandbox(id).unwrap().state, SandboxState::Running);
        assert_eq!(host.memory(id).word, "counted to 41");
        // What is another host's still ends here.
        let elsewhere = Connection::open(host.state_dir().join("firkin.db")).unwrap();
        elsewhere.execute("DELETE FROM sandboxes WHERE id = ?1", [id.as_str()]).unwrap();
        assert_eq!(server.let_go_of_what_is_anothers().await.unwrap(), 1);
        assert!(!server.has(id) && host.engine.live() == 0);
    })
    .await;
}

#[tokio::test]
async fn what_left_is_on_record_untouched_and_is_taken_with_its_files_or_not_at_all() {
    let mut host = Host::new();
    let rows = Rows::of(&mut host);
    host.serve_async(async |server| {
        let before = created(&host, server, "counted to 41").await;
        let id = &before.id;
        let departed = server.move_away(id, taken).await.unwrap();
        assert!(departed.ran && !server.has(id));
        let (left, epoch) = (rows.record(id), rows.epoch(id));
        assert_eq!(left["phase"]["phase"], "paused");
        // Who may not have it, or does not get its files, has claimed nothing.
        let given = rows.given.lock().unwrap().take();
        let refused = server.take_over(id, None).await.unwrap_err();
        assert!(matches!(refused, TakeOverError::Held { .. }), "{refused:?}");
        *rows.given.lock().unwrap() = given;
        let dir = host.state_dir().join("artifacts").join(left["phase"]["artifact"].as_str().unwrap());
        fs_err::rename(&dir, dir.with_extension("away")).unwrap();
        let refused = server.take_over(id, None).await.unwrap_err();
        let is_named = matches!(&refused, TakeOverError::Restore { source: SnapshotRestoreError::Integrity { .. }, .. });
        assert!(is_named && !server.has(id) && rows.epoch(id) == epoch, "{refused:?}");
        fs_err::rename(dir.with_extension("away"), &dir).unwrap();
        // Nor who could not give it its volumes.
        let mut bound = left.clone();
        bound["spec"]["volumes"] = serde_json::json!([{ "volume": "v", "name": "v", "path": "/mnt" }]);
        rows.write(id, &bound.to_string());
        let refused = server.take_over(id, None).await.unwrap_err();
        assert!(matches!(refused, TakeOverError::Bound(Bound::Volumes(_))), "{refused:?}");
        rows.write(id, &left.to_string());
        // It goes on as who it was, and until then.
        server.take_over(id, Some(before.end_at)).await.unwrap();
        let now = server.sandbox(id).unwrap();
        assert_eq!((now.state, now.end_at), (SandboxState::Running, before.end_at));
        assert_eq!(now.envd_access_token, before.envd_access_token);
        assert_eq!(host.memory(id).word, "counted to 41");
        assert!(rows.epoch(id) > epoch);
        server.take_over(id, None).await.unwrap();
        assert_eq!(server.sandbox(id).unwrap().state, SandboxState::Running, "it was here already");
        let refused = server.take_over(&SandboxId::generate(), None).await.unwrap_err();
        assert!(matches!(refused, TakeOverError::NotFound(_)), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn what_came_and_does_not_run_is_given_up_again_for_whoever_had_it() {
    let mut host = Host::new();
    let rows = Rows::of(&mut host);
    host.serve_async(async |server| {
        let before = created(&host, server, "counted to 41").await;
        let id = &before.id;
        server.move_away(id, taken).await.unwrap();
        host.engine.inject(Point::Restore, Fault::Refuse);
        let refused = server.take_over(id, Some(before.end_at)).await.unwrap_err();
        assert!(matches!(refused, TakeOverError::Resume { .. }), "{refused:?}");
        let home = rows.take(id);
        assert!(home.is_some(), "whoever had it can have it again by when it is told");
        let gone = async {
            while server.has(id) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        assert_eq!(rows.body(id), home.unwrap(), "nothing of what is another's was touched");
    })
    .await;
}

#[tokio::test]
async fn what_is_bound_to_its_host_goes_nowhere_and_goes_on() {
    let sealing = EncryptionConfig { seal: true, key_file: None };
    for (seals, shares) in [(true, true), (false, false)] {
        let mut host = Host::new();
        if shares {
            Rows::of(&mut host);
        }
        if seals {
            *host.encryption.lock().unwrap() = sealing.clone();
        }
        host.serve_async(async |server| {
            let sandbox = created(&host, server, "works").await;
            let refused = server.move_away(&sandbox.id, taken).await.unwrap_err();
            let MoveError::Bound(why) = refused else { panic!("{refused:?}") };
            let id = sandbox.id.clone();
            assert_eq!(why, if seals { Bound::Sealed(id) } else { Bound::Alone(id) });
            assert_eq!(server.sandbox(&sandbox.id).unwrap(), sandbox);
            assert!(sandbox.end_at > Timestamp::now());
        })
        .await;
    }
}
