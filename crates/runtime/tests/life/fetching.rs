//! Artifacts that are on record here and lie on another host: they are brought where somebody needs them, or refused by name.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use firkin_runtime::{
    artifact::{AlreadyHere, Coming, Fetch, FetchError, IntegrityError, Offered},
    ids::ArtifactId,
    moving::{ImportAs, Leaving},
    owner::{OnExit, ResumeError},
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{CreateError, CreateSandbox, SandboxState},
};
use futures::{StreamExt as _, TryStreamExt as _, future::BoxFuture, stream};

use crate::bench::{Host, base};

const LIFE: Duration = Duration::from_secs(3600);

/// What becomes of what the neighbour sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Whole,
    /// One byte in the middle of it is another.
    Damaged,
    /// Its second half does not come.
    Cut,
    /// Nobody answers.
    Away,
}

/// Another host, which has what is missing here.
#[derive(Debug)]
struct Neighbour {
    server: Runtime,
    line: std::sync::Mutex<Line>,
    asked: AtomicUsize,
    /// Bytes.
    sent: Arc<AtomicUsize>,
    /// Contents that were not asked for.
    left_out: Arc<AtomicUsize>,
}

impl Neighbour {
    fn with(server: &Runtime) -> Arc<Self> {
        Arc::new(Self {
            server: server.clone(),
            line: std::sync::Mutex::new(Line::Whole),
            asked: AtomicUsize::new(0),
            sent: Arc::default(),
            left_out: Arc::default(),
        })
    }

    fn sends(&self, line: Line) {
        *self.line.lock().unwrap() = line;
    }
}

impl Fetch for Neighbour {
    fn fetch<'a>(&'a self, artifact: &'a ArtifactId, but: &'a [String]) -> BoxFuture<'a, Result<Offered, FetchError>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let line = *self.line.lock().unwrap();
            if line == Line::Away || !but.is_empty() {
                return Err(FetchError::Away {
                    place: "the only copy is on `there`, which does not answer".into(),
                    source: None,
                });
            }
            let export = self.server.export_artifact(artifact).await;
            let export =
                export.map_err(|error| FetchError::Away { place: "`there` has none".into(), source: Some(error.into()) })?;
            let header = export.header();
            let (sent, left_out) = (Arc::clone(&self.sent), Arc::clone(&self.left_out));
            let take = move |here: AlreadyHere| -> BoxFuture<'static, Result<Coming, FetchError>> {
                Box::pin(async move {
                    left_out.fetch_add(here.whole.len(), Ordering::SeqCst);
                    let begun = here.begun.into_iter().collect();
                    let export = export.without(&here.whole.into_iter().collect()).from(begun);
                    let archive = sent_by(line, export.stream().try_collect::<Vec<Bytes>>().await.unwrap().concat());
                    sent.fetch_add(archive.len(), Ordering::SeqCst);
                    let chunks: Vec<io::Result<Bytes>> =
                        archive.chunks(1000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
                    Ok(stream::iter(chunks).boxed())
                })
            };
            Ok(Offered { place: "there".to_owned(), header, take: Box::new(take) })
        })
    }

    fn failed<'a>(&'a self, _: &'a ArtifactId, place: &'a str, _: &'a FetchError) -> BoxFuture<'a, ()> {
        assert_eq!(place, "there");
        Box::pin(async {})
    }
}

fn sent_by(line: Line, mut archive: Vec<u8>) -> Vec<u8> {
    let middle = archive.len() / 2;
    match line {
        Line::Damaged => archive[middle] ^= 1,
        Line::Cut => archive.truncate(middle),
        Line::Whole | Line::Away => {}
    }
    archive
}

/// Takes all files of an artifact away, as if they had never come here.
fn lose(host: &Host, artifact: &ArtifactId) {
    let dir = host.state_dir().join("artifacts").join(artifact.as_str());
    let manifest: serde_json::Value = serde_json::from_slice(&fs_err::read(dir.join("manifest.json")).unwrap()).unwrap();
    for layer in manifest["disk"]["layers"].as_array().unwrap() {
        fs_err::remove_file(host.layer(&layer.as_str().unwrap().parse().unwrap())).unwrap();
    }
    if let Some(base) = manifest["memory"]["base"].as_str() {
        fs_err::remove_dir_all(dir.with_file_name(base)).unwrap();
    }
    fs_err::remove_dir_all(dir).unwrap();
    fs_err::remove_dir_all(host.state_dir().join("roots")).unwrap();
}

/// A host whose catalogue has what `there` has exported, without any file of it.
async fn bereft(there: &Runtime, what: Leaving, name: Option<&str>) -> (Host, Arc<Neighbour>) {
    let mut here = Host::new();
    let archive: Vec<Bytes> = there.export(what).await.unwrap().stream().try_collect().await.unwrap();
    let server = here.server().await;
    let archive = stream::iter(archive.into_iter().map(Ok));
    let came = server.import(archive, ImportAs { kind: None, name: name.map(str::to_owned) }).await.unwrap();
    server.shutdown(OnExit::Pause).await;
    drop(server);
    lose(&here, &came.artifact);
    let neighbour = Neighbour::with(there);
    here.fetch = Some(neighbour.clone());
    (here, neighbour)
}

fn of_moved() -> CreateSandbox {
    CreateSandbox { template: "moved".into(), ..base() }
}

#[tokio::test]
async fn a_template_that_is_on_another_host_is_brought_once() {
    let away = Host::new().with_image(1);
    let there = away.server().await;
    let (here, neighbour) = bereft(&there, Leaving::Template("base".into()), Some("moved")).await;
    let server = here.server().await;
    // Of many who want it at once, one has it brought.
    let created = futures::future::join_all((0..4).map(|_| server.create(of_moved()))).await;
    let ids: Vec<_> = created.into_iter().map(|created| created.unwrap().id).collect();
    assert_eq!(neighbour.asked.load(Ordering::SeqCst), 1);
    for id in &ids {
        here.remember(id, "works");
        server.kill(id).await.unwrap();
    }
    neighbour.sends(Line::Away);
    server.create(of_moved()).await.unwrap();
    server.shutdown(OnExit::Kill).await;
    there.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn a_paused_sandbox_whose_files_are_elsewhere_goes_on_or_is_refused_by_name() {
    let away = Host::new().with_image(1);
    let there = away.server().await;
    let id = there.create(base()).await.unwrap().id;
    away.remember(&id, "counted to 41");
    there.pause(&id).await.unwrap();
    let (here, neighbour) = bereft(&there, Leaving::Sandbox(id.clone()), None).await;
    let server = here.server().await;
    // What nobody needs may be on its way out meanwhile, under another name.
    let known = here.artifacts();
    for line in [Line::Away, Line::Damaged, Line::Cut] {
        neighbour.sends(line);
        let refused = server.resume(&id, LIFE).await.unwrap_err();
        let ResumeError::Restore {
            source: SnapshotRestoreError::Integrity { source: IntegrityError::Elsewhere(why), .. }, ..
        } = refused
        else {
            panic!("{refused:?}")
        };
        assert_eq!(matches!(*why, FetchError::Away { .. }), line == Line::Away, "{why:?}");
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
        let seen = here.artifacts();
        assert!(seen.iter().all(|name| known.contains(name)), "nothing of it is seen: {seen:?}, and there were {known:?}");
        assert_eq!(here.engine.live(), 0);
    }
    neighbour.sends(Line::Whole);
    server.resume(&id, LIFE).await.unwrap();
    assert_eq!(here.memory(&id).word, "counted to 41");
    server.shutdown(OnExit::Kill).await;
    there.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_is_here_is_not_sent_again() {
    let away = Host::new().with_image(1);
    let there = away.server().await;
    let id = there.create(base()).await.unwrap().id;
    there.pause(&id).await.unwrap();
    let (here, neighbour) = bereft(&there, Leaving::Template("base".into()), Some("moved")).await;
    let server = here.server().await;
    let whole: Vec<Bytes> = there.export(Leaving::Sandbox(id.clone())).await.unwrap().stream().try_collect().await.unwrap();
    server.create(of_moved()).await.unwrap();
    assert_eq!(neighbour.left_out.load(Ordering::SeqCst), 0);
    let bytes: usize = whole.iter().map(Bytes::len).sum();
    let artifact = server.import(stream::iter(whole.into_iter().map(Ok)), ImportAs::default()).await.unwrap().artifact;
    let dir = here.state_dir().join("artifacts").join(artifact.as_str());
    fs_err::remove_dir_all(dir).unwrap();
    let before = neighbour.sent.load(Ordering::SeqCst);
    server.resume(&id, LIFE).await.unwrap();
    // The root image, the layers, and the memory that it stands on; its own members alone came.
    assert!(neighbour.left_out.load(Ordering::SeqCst) >= 3);
    let sent = neighbour.sent.load(Ordering::SeqCst) - before;
    assert!(2 * sent < bytes, "{sent} of {bytes}");
    server.shutdown(OnExit::Kill).await;
    there.shutdown(OnExit::Kill).await;
}

#[tokio::test]
async fn what_is_found_damaged_is_replaced_by_a_whole_one_where_somebody_has_it() {
    let away = Host::new().with_image(1);
    let there = away.server().await;
    let id = there.create(base()).await.unwrap().id;
    away.remember(&id, "counted to 41");
    there.pause(&id).await.unwrap();
    let (here, neighbour) = bereft(&there, Leaving::Sandbox(id.clone()), None).await;
    let server = here.server().await;
    server.resume(&id, LIFE).await.unwrap();
    here.remember(&id, "counted to 42");
    server.pause(&id).await.unwrap();
    let asked = neighbour.asked.load(Ordering::SeqCst);
    // Its last pause is on this host alone: a damaged one is refused as what it is.
    let held = server.export(Leaving::Sandbox(id.clone())).await.unwrap();
    let header: serde_json::Value = serde_json::from_slice(&held.header()).unwrap();
    drop(held);
    let artifact = header["artifacts"].as_array().unwrap().last().unwrap()["manifest"]["id"].as_str().unwrap().to_owned();
    let state = here.state_dir().join("artifacts").join(&artifact).join("state");
    let whole = fs_err::read(&state).unwrap();
    fs_err::write(&state, b"worn").unwrap();
    let refused = server.resume(&id, LIFE).await.unwrap_err();
    let ResumeError::Restore { source: SnapshotRestoreError::Integrity { source, .. }, .. } = &refused else {
        panic!("{refused:?}")
    };
    assert!(matches!(source, IntegrityError::Quarantined { .. }), "{refused:?}");
    assert!(neighbour.asked.load(Ordering::SeqCst) > asked, "others were asked");
    assert_eq!(server.outlook().quarantine.len(), 1);
    fs_err::write(&state, whole).unwrap();
    server.kill(&id).await.unwrap();

    // A template that others have comes anew.
    let (here, neighbour) = bereft(&there, Leaving::Template("base".into()), Some("moved")).await;
    let server_of_template = here.server().await;
    server_of_template.create(of_moved()).await.unwrap();
    let template = server_of_template.export(Leaving::Template("moved".into())).await.unwrap();
    let header: serde_json::Value = serde_json::from_slice(&template.header()).unwrap();
    drop(template);
    let artifact = header["artifacts"][0]["manifest"]["id"].as_str().unwrap().to_owned();
    fs_err::write(here.state_dir().join("artifacts").join(&artifact).join("state"), b"worn").unwrap();
    let sent = neighbour.sent.load(Ordering::SeqCst);
    server_of_template.create(of_moved()).await.unwrap();
    assert!(neighbour.sent.load(Ordering::SeqCst) > sent);
    assert!(server_of_template.outlook().quarantine.is_empty());
    for server in [server, server_of_template, there] {
        server.shutdown(OnExit::Kill).await;
    }
}

#[tokio::test]
async fn what_nobody_has_is_no_damage() {
    let away = Host::new().with_image(1);
    let there = away.server().await;
    let (here, neighbour) = bereft(&there, Leaving::Template("base".into()), Some("moved")).await;
    neighbour.sends(Line::Away);
    let server = here.server().await;
    let refused = server.create(of_moved()).await.unwrap_err();
    let away = |error: &CreateError| match error {
        CreateError::Restore {
            source: SnapshotRestoreError::Integrity { source: IntegrityError::Elsewhere(why), .. }, ..
        } => why.to_string().contains("the only copy is on `there`"),
        _ => false,
    };
    assert!(away(&refused), "{refused:?}");
    assert!(server.outlook().quarantine.is_empty(), "it is whole where it is");
    server.shutdown(OnExit::Kill).await;
    there.shutdown(OnExit::Kill).await;
}
