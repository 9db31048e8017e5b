//! What a paused sandbox leaves on the disk is of no use without the key, and of full use with it.

use std::{
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use firkin_engine::Engine as _;
use firkin_runtime::{
    artifact::{
        ArtifactStore, EncryptionError, RotateError, UnsealError,
        archive::{PackError, UnpackError},
    },
    config::EncryptionConfig,
    encryption::{RotateStoppedError, rotate_key},
    moving::{ExportError, ImportAs, ImportError, Leaving},
    owner::{OnExit, ResumeError},
    restore::SnapshotRestoreError,
    runtime::Runtime,
    sandbox::{CreateSandbox, Memory, SandboxId, SandboxState},
    verify::verify,
};
use futures::{TryStreamExt as _, stream};

use crate::bench::{Host, base, until};

const LIFE: Duration = Duration::from_secs(3600);
/// In the memory of a guest, and on its disk.
const IN_MEMORY: &str = "a-word-that-only-the-memory-has";
const ON_DISK: &str = "a-line-that-only-the-disk-has";

/// The files below a part of the state directory.
fn files(host: &Host, part: &str) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![host.state_dir().join(part)]);
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs_err::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs_err::read_dir(&path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())));
        } else if metadata.is_file() {
            found.push(path);
        }
    }
    found
}

/// Those that have `word` in them, but for a template's memory, which is its own and large.
fn with_word(host: &Host, part: &str, word: &str) -> Vec<PathBuf> {
    // What is collected meanwhile has no words any more.
    let small = |path: &PathBuf| fs_err::metadata(path).is_ok_and(|found| found.len() < 64 << 20);
    let has =
        |path: &PathBuf| fs_err::read(path).is_ok_and(|read| read.windows(word.len()).any(|window| window == word.as_bytes()));
    files(host, part).into_iter().filter(small).filter(has).collect()
}

fn kept(host: &Host, word: &str) -> usize {
    ["artifacts", "layers"].iter().map(|part| with_word(host, part, word).len()).sum()
}

fn wrapped_keys(host: &Host) -> Vec<PathBuf> {
    let is_key = |path: &PathBuf| path.file_name().unwrap() == "key" || path.extension().is_some_and(|end| end == "key");
    ["artifacts", "layers"].iter().flat_map(|part| files(host, part)).filter(is_key).collect()
}

fn key_file(host: &Host) -> PathBuf {
    host.state_dir().join("encryption.key")
}

/// A sandbox that has said both words.
async fn sandbox(host: &Host, server: &Runtime) -> SandboxId {
    let id = server.create(base()).await.unwrap().id;
    host.remember(&id, IN_MEMORY);
    write_to_disk(host, &id);
    id
}

fn write_to_disk(host: &Host, id: &SandboxId) {
    let overlay = host.guest(id).written();
    fs_err::OpenOptions::new().append(true).open(overlay).unwrap().write_all(ON_DISK.as_bytes()).unwrap();
}

/// Whether the machine of a sandbox has the line on its disk, below what it writes.
fn is_below(host: &Host) -> bool {
    with_word(host, "run", ON_DISK).iter().any(|path| path.file_name().unwrap().to_string_lossy().starts_with("below-"))
}

async fn resumes(host: &Host, server: &Runtime, id: &SandboxId) {
    server.resume(id, LIFE).await.unwrap();
    assert_eq!(host.memory(id).word, IN_MEMORY);
    assert!(is_below(host), "its disk is what it was");
}

#[test]
fn a_paused_sandbox_cannot_be_read_on_the_disk_and_comes_back() {
    let host = Host::new();
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (0, 0));
        assert_eq!(wrapped_keys(&host).len(), 2, "its memory's and its layer's");
        resumes(&host, server, &id).await;
        let below = host.below(&host.guest(&id).root_disk()).unwrap();
        assert!(!below.exists() && below.with_extension("sealed").exists(), "what it lies over is kept sealed alone");
        // Its second state stands on the first.
        server.pause(&id).await.unwrap();
        id
    });
    assert_eq!(fs_err::metadata(key_file(&host)).unwrap().permissions().mode() & 0o777, 0o400);
    assert_eq!(with_word(&host, "", IN_MEMORY).len() + with_word(&host, "", ON_DISK).len(), 0, "nothing is left of what ran");
    host.serve(async |server| {
        resumes(&host, server, &id).await;
        server.kill(&id).await.unwrap();
    });

    // The same without encryption: the words would be found.
    host.encryption.lock().unwrap().seal = false;
    host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (1, 1));
    });
}

#[test]
fn snapshots_forks_and_rollbacks_are_sealed_and_start() {
    let host = Host::new();
    host.serve(async |server| {
        let id = sandbox(&host, server).await;
        let running = server.snapshot(&id, None).await.unwrap().snapshot_id;
        let children = server.fork(&id, 2, LIFE).await.unwrap();
        for child in children {
            assert_eq!(host.memory(&child.unwrap().id).word, IN_MEMORY);
        }
        server.pause(&id).await.unwrap();
        let of_paused = server.fork(&id, 1, LIFE).await.unwrap().remove(0).unwrap().id;
        assert_eq!(host.memory(&of_paused).word, IN_MEMORY);
        let template = running.clone();
        let created = server.create(CreateSandbox { template, ..base() }).await.unwrap().id;
        assert_eq!(host.memory(&created).word, IN_MEMORY);
        resumes(&host, server, &id).await;
        host.remember(&id, "later");
        server.rollback(&id, &running).await.unwrap();
        assert_eq!(host.memory(&id).word, IN_MEMORY);
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (0, 0));
    });
    let intact = tokio::runtime::Runtime::new().unwrap().block_on(verify(&host.state_dir(), host.engine.disks(), None)).unwrap();
    assert!(intact.is_intact(), "what is sealed is proven without a key: {intact:?}");
}

#[test]
fn what_was_plain_or_sealed_before_resumes_after_a_change_of_mind() {
    let host = Host::new();
    let seal = |seal| host.encryption.lock().unwrap().seal = seal;
    let pause = || {
        host.serve(async |server| {
            let id = sandbox(&host, server).await;
            server.pause(&id).await.unwrap();
            id
        })
    };
    seal(false);
    let plain = pause();
    seal(true);
    let sealed = pause();
    for now in [true, false] {
        seal(now);
        host.serve(async |server| {
            for id in [&plain, &sealed] {
                server.resume(id, LIFE).await.unwrap();
                assert_eq!(host.memory(id).word, IN_MEMORY);
                server.pause(id).await.unwrap();
            }
        });
    }
}

#[test]
fn without_its_key_a_sandbox_stays_paused_and_loses_nothing() {
    let host = Host::new();
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        id
    });
    let aside = host.state_dir().join("aside");
    fs_err::rename(key_file(&host), &aside).unwrap();
    let refused = async |server: &Runtime| {
        let error = server.resume(&id, LIFE).await.unwrap_err();
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Paused);
        assert_eq!(host.engine.live(), 0);
        match error {
            ResumeError::Restore { source: SnapshotRestoreError::Sealed { source, .. }, .. } => source,
            other => panic!("{other:?}"),
        }
    };
    host.encryption.lock().unwrap().seal = false;
    host.serve(async |server| {
        let error = refused(server).await;
        assert!(matches!(error, UnsealError::NoKeys { .. }) && error.to_string().contains("--encryption-key-file"), "{error}");
    });
    // A new key in the place of the lost one would open nothing, and be taken for the right one.
    let anew = EncryptionConfig { seal: true, key_file: None };
    let opened = ArtifactStore::open_encrypted(&host.state_dir(), host.engine.disks(), &anew);
    assert!(matches!(opened, Err(EncryptionError::Lost { .. })), "{opened:?}");
    // Another key.
    let other = host.state_dir().join("other");
    fs_err::write(&other, format!("{}\n", "5a".repeat(32))).unwrap();
    fs_err::set_permissions(&other, std::fs::Permissions::from_mode(0o400)).unwrap();
    host.encryption.lock().unwrap().key_file = Some(other);
    host.serve(async |server| {
        let error = refused(server).await;
        assert!(matches!(error, UnsealError::Unwrap { .. }), "{error}");
    });
    // Found again, wherever it is now.
    *host.encryption.lock().unwrap() = EncryptionConfig { seal: true, key_file: Some(aside) };
    host.serve(async |server| resumes(&host, server, &id).await);
}

#[test]
fn a_sealed_file_that_was_changed_is_refused_before_anything_runs() {
    let host = Host::new();
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        id
    });
    for (path, before) in sealed_bytes(&host) {
        let mut damaged = before.clone();
        *damaged.last_mut().unwrap() ^= 1;
        put(&path, &damaged);
        host.serve(async |server| {
            let refused = server.resume(&id, LIFE).await.unwrap_err();
            assert!(
                matches!(&refused, ResumeError::Restore { source: SnapshotRestoreError::Integrity { .. }, .. }),
                "{}: {refused:?}",
                path.display()
            );
            assert_eq!((host.engine.live(), server.sandbox(&id).unwrap().state), (0, SandboxState::Paused));
        });
        put(&path, &before);
        let tokio = tokio::runtime::Runtime::new().unwrap();
        assert!(tokio.block_on(verify(&host.state_dir(), host.engine.disks(), None)).unwrap().is_intact());
    }
    host.serve(async |server| resumes(&host, server, &id).await);
}

fn put(path: &Path, content: &[u8]) {
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    fs_err::write(path, content).unwrap();
}

#[test]
fn what_is_deleted_takes_its_keys_with_it() {
    let host = Host::new();
    host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        // An open file is what is left of a block.
        let keys: Vec<_> = wrapped_keys(&host).iter().map(|path| fs_err::File::open(path).unwrap()).collect();
        assert_eq!(keys.len(), 2);
        server.kill(&id).await.unwrap();
        until("the collection of its keys", || wrapped_keys(&host).is_empty()).await;
        for mut key in keys {
            let mut left = Vec::new();
            std::io::Read::read_to_end(&mut key, &mut left).unwrap();
            assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0), "it was overwritten");
        }
    });
}

#[test]
fn a_rotated_key_opens_everything_and_the_former_one_is_gone() {
    let host = Host::new();
    let ids = host.serve(async |server| {
        let mut ids = Vec::new();
        for _ in 0..3 {
            let id = sandbox(&host, server).await;
            server.pause(&id).await.unwrap();
            ids.push(id);
        }
        let (before, former) = (sealed_bytes(&host), fs_err::read(key_file(&host)).unwrap());
        let rotation = server.rotate_key().await.unwrap();
        assert_eq!((rotation.rewrapped, rotation.unreadable.len()), (6, 0));
        let now = fs_err::read(key_file(&host)).unwrap();
        assert!(now.len() == former.len() && now != former, "one key, and another one");
        assert_eq!(sealed_bytes(&host), before, "nothing but keys was written");
        resumes(&host, server, &ids[0]).await;
        server.pause(&ids[0]).await.unwrap();
        ids
    });
    // The same where no server runs.
    let rotate = async || rotate_key(&host.state_dir(), host.engine.disks(), None).await;
    assert!(tokio::runtime::Runtime::new().unwrap().block_on(rotate()).unwrap().rewrapped >= 6);
    host.serve(async |server| {
        for id in &ids {
            resumes(&host, server, id).await;
        }
        assert!(matches!(rotate().await, Err(RotateStoppedError::Open(_))), "a server is at work");
    });
}

/// Names and content of all that is sealed.
fn sealed_bytes(host: &Host) -> Vec<(PathBuf, Vec<u8>)> {
    let is_sealed = |path: &PathBuf| path.extension().is_some_and(|end| end == "sealed");
    let mut found: Vec<_> = ["artifacts", "layers"].iter().flat_map(|part| files(host, part)).filter(is_sealed).collect();
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs_err::read(path).unwrap())).collect()
}

#[test]
fn a_rotation_that_was_killed_is_finished_by_the_next_start() {
    let host = Host::new();
    let (ids, former, wrapped) = host.serve(async |server| {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let id = sandbox(&host, server).await;
            server.pause(&id).await.unwrap();
            ids.push(id);
        }
        let wrapped: Vec<_> = wrapped_keys(&host).into_iter().map(|path| (path.clone(), fs_err::read(path).unwrap())).collect();
        (ids, fs_err::read_to_string(key_file(&host)).unwrap(), wrapped)
    });
    tokio::runtime::Runtime::new().unwrap().block_on(rotate_key(&host.state_dir(), host.engine.disks(), None)).unwrap();
    // As it was in the middle: both keys are in the file, and some data keys are still under the former.
    let both = fs_err::read_to_string(key_file(&host)).unwrap() + &former;
    put(&key_file(&host), both.as_bytes());
    for (path, content) in wrapped.iter().step_by(2) {
        fs_err::write(path, content).unwrap();
    }
    host.serve(async |server| {
        for id in &ids {
            resumes(&host, server, id).await;
        }
    });
    let now = fs_err::read_to_string(key_file(&host)).unwrap();
    assert!(now.lines().count() == 1 && both.starts_with(&now), "the former key is gone");
}

#[test]
fn an_operator_rotates_by_a_line_in_his_file() {
    let host = Host::new();
    let given = host.state_dir().with_file_name("given.key");
    let keys = |lines: &[&str]| {
        if given.exists() {
            fs_err::remove_file(&given).unwrap();
        }
        fs_err::write(&given, lines.iter().map(|line| format!("{}\n", line.repeat(32))).collect::<String>()).unwrap();
        fs_err::set_permissions(&given, std::fs::Permissions::from_mode(0o400)).unwrap();
    };
    keys(&["11"]);
    host.encryption.lock().unwrap().key_file = Some(given.clone());
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        keys(&["22", "11"]);
        assert_eq!(server.rotate_key().await.unwrap().rewrapped, 2);
        id
    });
    assert!(!key_file(&host).exists(), "the server makes no key of its own");
    // The next one by a start.
    keys(&["33", "22"]);
    host.serve(async |_| {});
    keys(&["33"]);
    host.serve(async |server| resumes(&host, server, &id).await);
}

#[test]
fn an_operator_who_exchanged_his_key_before_a_rotation_has_lost_nothing() {
    let host = Host::new();
    let given = host.state_dir().with_file_name("given.key");
    let key = |line: &str| {
        if given.exists() {
            fs_err::remove_file(&given).unwrap();
        }
        fs_err::write(&given, line.repeat(32)).unwrap();
        fs_err::set_permissions(&given, std::fs::Permissions::from_mode(0o400)).unwrap();
    };
    key("11");
    host.encryption.lock().unwrap().key_file = Some(given.clone());
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        key("22");
        let rotation = server.rotate_key().await.unwrap();
        assert_eq!((rotation.rewrapped, rotation.unreadable), (2, vec![]));
        id
    });
    host.serve(async |server| resumes(&host, server, &id).await);
}

#[test]
fn what_cannot_be_read_for_a_moment_keeps_the_former_key() {
    let host = Host::new();
    let id = host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause(&id).await.unwrap();
        let key = wrapped_keys(&host).remove(0);
        let aside = key.with_extension("aside");
        fs_err::rename(&key, &aside).unwrap();
        fs_err::create_dir(&key).unwrap();
        let refused = server.rotate_key().await.unwrap_err();
        assert!(matches!(refused, RotateError::Rewrap(_)), "{refused:?}");
        fs_err::remove_dir(&key).unwrap();
        fs_err::rename(&aside, &key).unwrap();
        server.rotate_key().await.unwrap();
        id
    });
    host.serve(async |server| resumes(&host, server, &id).await);
}

#[test]
fn there_is_no_key_to_rotate_where_nothing_is_encrypted() {
    let host = Host::new();
    host.encryption.lock().unwrap().seal = false;
    host.serve(async |server| assert!(matches!(server.rotate_key().await, Err(RotateError::NoKey))));
    assert!(!key_file(&host).exists());
}

#[test]
fn a_sandbox_that_is_left_running_is_sealed_by_the_next_server() {
    let host = Host::new();
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let id = tokio.block_on(async {
        let server = host.server().await;
        let id = sandbox(&host, &server).await;
        server.pause(&id).await.unwrap();
        resumes(&host, &server, &id).await;
        server.shutdown(OnExit::Leave).await;
        id
    });
    host.serve(async |server| {
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        server.pause(&id).await.unwrap();
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (0, 0));
        resumes(&host, server, &id).await;
    });
}

#[test]
fn a_sandbox_whose_server_is_killed_goes_on_from_what_was_sealed() {
    let host = Host::new();
    let id = host.crash_after(async |server| {
        let id = sandbox(&host, &server).await;
        // Cut while it runs: its disk has a layer that is sealed, and that its machine has open.
        server.snapshot(&id, None).await.unwrap();
        id
    });
    host.serve(async |server| {
        assert_eq!(server.sandbox(&id).unwrap().state, SandboxState::Running);
        server.pause(&id).await.unwrap();
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (0, 0));
        resumes(&host, server, &id).await;
    });
}

#[test]
fn a_sandbox_without_memory_boots_from_a_sealed_disk_and_its_memory_is_sealed_then() {
    let host = Host::new();
    host.serve(async |server| {
        let id = sandbox(&host, server).await;
        server.pause_with(&id, Memory::Dropped).await.unwrap();
        assert_eq!(kept(&host, ON_DISK), 0);
        server.resume(&id, LIFE).await.unwrap();
        assert!(is_below(&host));
        host.remember(&id, IN_MEMORY);
        let whole = |path: &PathBuf| path.file_name().unwrap() == "memory.sealed";
        assert!(files(&host, "artifacts").iter().any(whole), "what was booted is a memory of its own");
        server.pause(&id).await.unwrap();
        assert_eq!((kept(&host, IN_MEMORY), kept(&host, ON_DISK)), (0, 0));
        resumes(&host, server, &id).await;
    });
}

#[test]
fn what_is_encrypted_does_not_leave_and_what_is_not_does_not_come() {
    let (sealed, plain) = (Host::new(), Host::new());
    plain.encryption.lock().unwrap().seal = false;
    let export = async |server: &Runtime, what| {
        let chunks: Vec<bytes::Bytes> = server.export(what).await?.stream().try_collect().await.unwrap();
        Ok::<_, ExportError>(bytes::Bytes::from(chunks.concat()))
    };
    let archive = plain.serve(async |server| {
        let id = sandbox(&plain, server).await;
        server.pause(&id).await.unwrap();
        export(server, Leaving::Sandbox(id)).await.unwrap()
    });
    sealed.serve(async |server| {
        let id = sandbox(&sealed, server).await;
        server.pause(&id).await.unwrap();
        let refused = export(server, Leaving::Sandbox(id)).await.unwrap_err();
        assert!(matches!(refused, ExportError::Pack { source: PackError::Sealed { .. }, .. }), "{refused:?}");
        let refused = server.import(stream::iter([Ok(archive)]), ImportAs::default()).await.unwrap_err();
        assert!(matches!(refused, ImportError::Unpack(UnpackError::Encrypts)), "{refused:?}");
        assert_eq!(kept(&sealed, IN_MEMORY), 0, "nothing of it was written");
        // Templates are plain on every host.
        let template = export(server, Leaving::Template("base".to_owned())).await.unwrap();
        let named = ImportAs { name: Some("other".to_owned()), ..ImportAs::default() };
        server.import(stream::iter([Ok(template)]), named).await.unwrap();
        server.create(CreateSandbox { template: "other".to_owned(), ..base() }).await.unwrap();
    });
}
