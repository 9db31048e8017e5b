//! Copies off the host: what is durable is copied, a host that is wiped comes back with it, and the rest is named.

use std::{
    path::{Path, PathBuf},
    task::Poll,
    time::{Duration, SystemTime},
};

use firkin_copies::{Access, Copies, Destination, Limits};
use firkin_engine::qcow2::Qcow2;
use firkin_runtime::{
    artifact::ArtifactStore,
    config::CopyConfig,
    owner::OnExit,
    restore_from::{RestoreError, RestoreReport, restore_from},
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId, SandboxState},
    state_dir::OpenError,
    verify::verify,
};
use fs_err as fs;

use crate::bench::{Host, base, names, until};

/// Longer than any of these tests.
const LIFE: Duration = Duration::from_secs(3600);

/// A directory that stands for another host's.
struct There(tempfile::TempDir);

impl There {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn copies(&self) -> Copies {
        let destination = Destination::Directory(self.path("there"));
        Copies::open(&destination, &Access::default(), &Limits::default()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Servers of `host` copy here from now on.
    fn take(&self, host: &Host) {
        *host.copies.lock().unwrap() = Some(CopyConfig::new(self.copies()));
    }

    fn artifacts(&self) -> Vec<String> {
        let all = names(&self.path("there/artifacts"));
        all.into_iter().filter(|id| self.path("there/artifacts").join(id).join("manifest.json").exists()).collect()
    }

    fn blobs(&self) -> Vec<String> {
        names(&self.path("there/blobs"))
    }

    async fn restore(&self, state_dir: &Path) -> Result<RestoreReport, RestoreError> {
        Box::pin(restore_from(&self.copies(), state_dir, &Qcow2, &|_| {})).await
    }
}

/// Takes the host's disk away, but for the key that its owner keeps elsewhere.
fn wipe(host: &Host) -> Option<Vec<u8>> {
    let key = fs::read(host.state_dir().join("encryption.key")).ok();
    fs::remove_dir_all(host.state_dir()).unwrap();
    if let Some(key) = &key {
        fs::create_dir(host.state_dir()).unwrap();
        put_key(host, key);
    }
    key
}

fn put_key(host: &Host, key: &[u8]) {
    let path = host.state_dir().join("encryption.key");
    fs::write(&path, key).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}

fn artifact_of(host: &Host, id: &SandboxId) -> String {
    let database = rusqlite::Connection::open(host.state_dir().join("firkin.db")).unwrap();
    let query = "SELECT json_extract(body, '$.phase.artifact') FROM sandboxes WHERE id = ?1";
    database.query_row(query, [id.as_str()], |row| row.get(0)).unwrap()
}

async fn sandbox(server: &Runtime, host: &Host, word: &str) -> SandboxId {
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, word);
    id
}

fn lost(report: &RestoreReport) -> Vec<(&str, &str)> {
    report.lost.iter().map(|lost| (lost.kind, lost.name.as_str())).collect()
}

#[tokio::test]
async fn a_wiped_host_comes_back_with_all_that_was_durable_and_copied_and_the_rest_is_named() {
    let (host, there) = (Host::new(), There::new());
    there.take(&host);
    let server = host.server().await;
    let paused = sandbox(&server, &host, "paused").await;
    let twice = sandbox(&server, &host, "once").await;
    let running = sandbox(&server, &host, "running").await;
    let damaged = sandbox(&server, &host, "damaged").await;
    for id in [&paused, &twice, &damaged] {
        server.pause(id).await.unwrap();
    }
    let snapshot = server.snapshot(&paused, Some("kept:v1".into())).await.unwrap();
    server.copied().await;
    assert_eq!(server.copies().unwrap().owed, 0);
    server.resume(&twice, LIFE).await.unwrap();
    host.remember(&twice, "twice");
    server.copied().await;
    let gone = artifact_of(&host, &damaged);
    server.shutdown(OnExit::Kill).await;
    drop(server);
    // A crash instead of that end: records as they were copied last.
    wipe(&host);
    fs::remove_dir_all(there.path("there/artifacts").join(&gone)).unwrap();

    let report = there.restore(&host.state_dir()).await.unwrap();
    let mut expected = vec![("sandbox", running.as_str()), ("sandbox", damaged.as_str())];
    expected.sort_unstable();
    assert_eq!(lost(&report), expected, "{report:?}");
    assert!(report.lost.iter().any(|lost| lost.why == "it was not copied"), "{report:?}");
    assert!(report.lost.iter().any(|lost| lost.why.starts_with("it was running")), "{report:?}");
    let mut back: Vec<(&SandboxId, bool)> = report.sandboxes.iter().map(|back| (&back.id, back.went_back)).collect();
    back.sort_unstable();
    let mut expected = vec![(&paused, false), (&twice, true)];
    expected.sort_unstable();
    assert_eq!(back, expected);
    assert!(report.bytes > 0 && report.artifacts >= 3);
    assert_eq!(report.keys, Vec::<String>::new(), "there were none, or they were put back");

    // Nothing leads to where it was.
    let roots = ArtifactStore::root_images(&host.state_dir()).unwrap();
    assert!(roots.iter().all(|root| root.starts_with(host.state_dir().join("roots")) && root.exists()), "{roots:?}");
    assert!(!names(&host.state_dir()).iter().any(|name| name.starts_with("restoring")));

    let server = host.server().await;
    assert!(server.sandbox(&running).is_err() && server.sandbox(&damaged).is_err());
    for (id, word) in [(&paused, "paused"), (&twice, "once")] {
        assert_eq!(server.sandbox(id).unwrap().state, SandboxState::Paused);
        server.resume(id, LIFE).await.unwrap();
        assert_eq!(host.memory(id).word, word);
        server.pause(id).await.unwrap();
    }
    let child = server.create(CreateSandbox { template: snapshot.snapshot_id.clone(), ..base() }).await.unwrap();
    assert_eq!(host.memory(&child.id).word, "paused");
    // It goes on copying to where it came from.
    server.copied().await;
    assert_eq!(server.copies().unwrap().failing, None);
    assert!(there.artifacts().contains(&artifact_of(&host, &paused)));
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_is_owed_outlives_the_server_and_a_store_that_is_away() {
    let (host, there) = (Host::new(), There::new());
    let server = host.server().await;
    assert!(server.copies().is_none() && !server.render_metrics(false).contains("firkin_copies"));
    server.copied().await;
    let id = sandbox(&server, &host, "kept").await;
    server.pause(&id).await.unwrap();
    server.shutdown(OnExit::Kill).await;
    drop(server);
    assert!(!names(&host.state_dir()).iter().any(|name| name.starts_with("cop")), "who does not copy writes nothing for it");

    there.take(&host);
    let blobs = there.path("there/blobs");
    fs::remove_dir(&blobs).unwrap();
    fs::write(&blobs, "in the way").unwrap();
    let server = host.server().await;
    until("a failure", || server.copies().is_some_and(|state| state.failing.is_some() && state.owed > 0)).await;
    let text = server.render_metrics(false);
    for series in ["firkin_copies_owed{", "firkin_copies_owed_bytes{", "firkin_copies_failures_total{"] {
        assert!(text.contains(series), "{series} {text}");
    }
    assert_eq!(there.artifacts(), Vec::<String>::new());
    server.shutdown(OnExit::Kill).await;
    drop(server);

    fs::remove_file(&blobs).unwrap();
    there.take(&host);
    let server = host.server().await;
    server.copied().await;
    let state = server.copies().unwrap();
    assert_eq!((state.owed, state.failing, state.catalogue.is_some()), (0, None, true));
    assert!(there.artifacts().contains(&artifact_of(&host, &id)));
    let text = server.render_metrics(false);
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!((value("firkin_copies_owed"), value("firkin_copies_owed_bytes")), (0.0, 0.0));
    assert!(value("firkin_copies_last_success_seconds") > 1.0 && value("firkin_copies_catalogue_seconds") > 1.0);

    // The same once more changes nothing there.
    let (backups, blobs) = (names(&there.path("there/catalogue")), there.blobs());
    server.copied().await;
    assert_eq!((names(&there.path("there/catalogue")), there.blobs()), (backups, blobs));
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_was_broken_off_goes_on_and_nothing_is_mixed() {
    let (host, there) = (Host::new(), There::new());
    there.take(&host);
    let server = host.server().await;
    let id = sandbox(&server, &host, "kept").await;
    server.pause(&id).await.unwrap();
    server.copied().await;
    assert!(matches!(there.restore(&host.state_dir()).await, Err(RestoreError::NotEmpty { .. })), "it is in use");
    server.shutdown(OnExit::Kill).await;
    drop(server);
    assert!(matches!(there.restore(&host.state_dir()).await, Err(RestoreError::NotEmpty { .. })));
    wipe(&host);

    let nothing = There::new();
    let nowhere = tempfile::tempdir().unwrap();
    assert!(matches!(nothing.restore(nowhere.path()).await, Err(RestoreError::NoCatalogue)));

    // Something of this host is in the way of the root image.
    let database = restored_database(&there);
    let root = blob_of_root(&there);
    let in_the_way = host.state_dir().join("restoring").join(format!("{root}.part"));
    fs::create_dir_all(&in_the_way).unwrap();
    fs::write(host.state_dir().join("restoring.json"), database).unwrap();
    let broken = there.restore(&host.state_dir()).await;
    assert!(matches!(broken, Err(RestoreError::Copies(_))), "{broken:?}");
    assert!(!host.state_dir().join("firkin.db").exists());
    // No server begins on half of it, and removes what it does not know.
    let refused = host.refused().await;
    assert!(matches!(refused, OpenError::Restoring { .. }), "{refused:?}");
    // And nobody makes an empty catalogue there, with which one would.
    let refused = verify(&host.state_dir(), &Qcow2, None).await;
    assert!(matches!(refused, Err(OpenError::Restoring { .. })), "{refused:?}");
    assert!(!host.state_dir().join("firkin.db").exists());
    fs::remove_dir(&in_the_way).unwrap();
    let report = there.restore(&host.state_dir()).await.unwrap();
    assert_eq!(report.sandboxes.len(), 1);
    assert!(matches!(there.restore(&host.state_dir()).await, Err(RestoreError::NotEmpty { .. })), "once is enough");
    let server = host.server().await;
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(host.memory(&id).word, "kept");
    server.shutdown(OnExit::Kill).await;
}

/// Polls a future so often, and gives it up then as whoever is killed does.
async fn polled<T>(times: usize, work: impl Future<Output = T>) -> Option<T> {
    let (mut work, mut left) = (Box::pin(work), times);
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        work.as_mut().poll(context).map(Some)
    })
    .await
}

#[test]
fn a_restore_that_is_given_up_again_and_again_comes_to_its_end() {
    let (host, there) = (Host::new(), There::new());
    there.take(&host);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (id, expected) = runtime().block_on(async {
        let server = host.server().await;
        let id = sandbox(&server, &host, "kept").await;
        server.pause(&id).await.unwrap();
        server.copied().await;
        server.shutdown(OnExit::Kill).await;
        (id, host.artifacts())
    });
    wipe(&host);
    let (mut times, mut report) = (0, None);
    while report.is_none() {
        times += 1;
        // With its runtime ends what it had given to other threads: two at once are kept apart by the lock and not by this.
        report = runtime().block_on(polled(times, there.restore(&host.state_dir())));
        assert!(
            report.is_some() || !host.state_dir().join("firkin.db").exists() || host.state_dir().join("restoring.json").exists()
        );
    }
    let report = report.unwrap().unwrap();
    assert!(times > 10, "it was given up {times} times");
    assert_eq!((lost(&report), report.sandboxes.len(), host.artifacts()), (Vec::new(), 1, expected));
    let left = || names(&host.state_dir()).into_iter().filter(|name| name.starts_with("restoring")).collect::<Vec<_>>();
    assert_eq!(left(), Vec::<String>::new());
    // One that was killed after it had all, and before it had tidied up.
    fs::create_dir(host.state_dir().join("restoring")).unwrap();
    fs::write(host.state_dir().join("restoring.json"), "{}").unwrap();
    host.serve(async |server| {
        assert_eq!(left(), Vec::<String>::new());
        server.resume(&id, LIFE).await.unwrap();
        assert_eq!(host.memory(&id).word, "kept");
    });
}

/// What says that the newest backup is being restored.
fn restored_database(there: &There) -> String {
    let newest = names(&there.path("there/catalogue")).pop().unwrap();
    format!(r#"{{"format": 1, "catalogue": "{}"}}"#, newest.trim_end_matches(".json"))
}

fn files_of(there: &There, artifact: &str) -> serde_json::Value {
    let files = fs::read_to_string(there.path("there/artifacts").join(artifact).join("files.json")).unwrap();
    serde_json::from_str(&files).unwrap()
}

fn blob_of_root(there: &There) -> String {
    files_of(there, &there.artifacts()[0])["root"]["blake3"].as_str().unwrap().to_owned()
}

/// The blob of an artifact's own memory.
fn blob_of_memory(there: &There, artifact: &str) -> String {
    let files = files_of(there, artifact);
    let own = ["memory.diff", "memory"].into_iter().find_map(|member| files["members"].get(member)).unwrap();
    own["blake3"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn damaged_copies_are_named_and_harm_nothing_else() {
    let (host, there) = (Host::new(), There::new());
    there.take(&host);
    let server = host.server().await;
    let (sick, sound) = (sandbox(&server, &host, "sick").await, sandbox(&server, &host, "sound").await);
    for id in [&sick, &sound] {
        server.pause(id).await.unwrap();
    }
    server.copied().await;
    let artifact = artifact_of(&host, &sick);
    server.shutdown(OnExit::Kill).await;
    drop(server);
    let key = wipe(&host);
    fs::write(there.path("there/blobs").join(blob_of_memory(&there, &artifact)), "not what it was").unwrap();

    fs::remove_file(host.state_dir().join("encryption.key")).ok();
    let report = there.restore(&host.state_dir()).await.unwrap();
    let keys: &[&str] = if crate::SEALS { &["encryption.key"] } else { &[] };
    assert_eq!(report.keys, keys, "what is not there is named");
    assert_eq!(lost(&report), [("sandbox", sick.as_str())]);
    assert!(report.lost[0].why.contains("is damaged"), "{report:?}");
    if let Some(key) = key {
        put_key(&host, &key);
    }
    let server = host.server().await;
    server.resume(&sound, LIFE).await.unwrap();
    assert_eq!(host.memory(&sound).word, "sound");
    server.shutdown(OnExit::Kill).await;
}

/// Has every blob be as old as those are that a collector may take.
fn age(there: &There) {
    for blob in there.blobs() {
        let file = fs::OpenOptions::new().write(true).open(there.path("there/blobs").join(blob)).unwrap();
        file.file().set_modified(SystemTime::now() - Duration::from_secs(2 * 3600)).unwrap();
    }
}

#[tokio::test]
async fn a_copy_goes_after_its_time_and_none_that_a_record_names() {
    let (host, there) = (Host::new(), There::new());
    let config = CopyConfig { keep: LIFE, clean_every: Duration::ZERO, ..CopyConfig::new(there.copies()) };
    *host.copies.lock().unwrap() = Some(config.clone());
    let server = host.server().await;
    let (gone, kept) = (sandbox(&server, &host, "gone").await, sandbox(&server, &host, "kept").await);
    for id in [&gone, &kept] {
        server.pause(id).await.unwrap();
    }
    server.copied().await;
    let [going, staying] = [&gone, &kept].map(|id| artifact_of(&host, id));
    server.kill(&gone).await.unwrap();
    server.copied().await;
    age(&there);
    server.copied().await;
    assert!(there.artifacts().contains(&going), "for a while it could be had back");
    server.shutdown(OnExit::Kill).await;
    drop(server);

    *host.copies.lock().unwrap() = Some(CopyConfig { keep: Duration::ZERO, ..config });
    let memory = blob_of_memory(&there, &going);
    assert!(there.blobs().contains(&memory));
    let server = host.server().await;
    server.copied().await;
    age(&there);
    server.copied().await;
    let left = there.artifacts();
    assert!(!left.contains(&going) && left.contains(&staying), "{left:?}");
    assert!(!there.blobs().contains(&memory), "its blobs went with it");
    server.shutdown(OnExit::Kill).await;
    drop(server);
    wipe(&host);
    let report = there.restore(&host.state_dir()).await.unwrap();
    assert_eq!((lost(&report), report.sandboxes.len()), (Vec::new(), 1), "nothing of what stayed is missing");
}

#[tokio::test]
async fn copies_of_another_state_directory_are_left_alone() {
    let (host, other, there) = (Host::new(), Host::new(), There::new());
    there.take(&host);
    host.serve_async(async |server| server.copied().await).await;
    let before = (there.artifacts(), names(&there.path("there/catalogue")));
    there.take(&other);
    let server = other.server().await;
    until("a refusal", || server.copies().is_some_and(|state| state.failing == Some("foreign"))).await;
    assert_eq!((there.artifacts(), names(&there.path("there/catalogue"))), before);
    server.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_root_image_that_came_with_copies_goes_with_what_stands_on_it() {
    let (host, there) = (Host::new(), There::new());
    there.take(&host);
    let server = host.server().await;
    let id = sandbox(&server, &host, "kept").await;
    server.pause(&id).await.unwrap();
    server.copied().await;
    server.shutdown(OnExit::Kill).await;
    drop(server);
    wipe(&host);
    // By a way that is not its own.
    let way = there.path("way");
    fs::create_dir_all(host.state_dir()).unwrap();
    std::os::unix::fs::symlink(host.state_dir(), &way).unwrap();
    there.restore(&way).await.unwrap();
    let roots = host.state_dir().join("roots");
    assert_eq!(names(&roots), [blob_of_root(&there)]);

    let server = host.server().await;
    server.resume(&id, LIFE).await.unwrap();
    let snapshot = server.snapshot(&id, None).await.unwrap();
    server.kill(&id).await.unwrap();
    until("a collection", || host.artifacts().len() == 2).await;
    assert_eq!(names(&roots).len(), 1, "a template and a snapshot stand on it");
    for reference in [snapshot.snapshot_id.as_str(), "base"] {
        server.delete_template(reference).await.unwrap();
    }
    until("the end of the image", || names(&roots).is_empty()).await;
    server.shutdown(OnExit::Kill).await;
}
