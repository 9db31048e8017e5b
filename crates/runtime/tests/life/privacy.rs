//! What is kept of users is nobody else's on the host: not another local user's, and not a machine's own.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use firkin_engine::fake::Keeping;
use firkin_runtime::{
    runtime::Runtime,
    sandbox::{CreateSandbox, SandboxId},
    store::BuildState,
};

use crate::{
    bench::{Host, base},
    building,
};

/// Everything below `dir`, itself included.
fn all(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut pending) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(path) = pending.pop() {
        if fs_err::symlink_metadata(&path).unwrap().is_dir() {
            pending.extend(fs_err::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push(path);
    }
    found
}

/// What of `paths` a user other than their owner can read, list or pass through, by the modes of each way from `top` to it.
fn open_to_others(top: &Path, paths: &[PathBuf]) -> Vec<PathBuf> {
    let mode = |path: &Path| fs_err::symlink_metadata(path).unwrap().permissions().mode();
    let passable =
        |path: &Path| path.ancestors().skip(1).take_while(|above| above.starts_with(top)).all(|dir| mode(dir) & 0o011 != 0);
    paths.iter().filter(|path| mode(path) & 0o077 != 0 && passable(path)).cloned().collect()
}

#[test]
fn a_key_that_the_operator_brings_is_valid_for_as_long_as_it_is_brought() {
    let host = Host::new();
    let (one, other) = (format!("e2b_{}", "5".repeat(40)), format!("e2b_{}", "6".repeat(40)));
    let issued = host.serve(async |server| {
        assert!(server.authenticate(&one).is_none());
        server.accept_api_key(&one).unwrap();
        assert!(server.authenticate(&one).is_some() && server.authenticate(&other).is_none());
        server.issue_api_key().await.unwrap()
    });
    host.serve(async |server| {
        server.accept_api_key(&other).unwrap();
        assert!(server.authenticate(&other).is_some() && server.authenticate(&one).is_none(), "it was replaced");
        assert!(server.authenticate(&issued).is_some(), "what the server has made is kept");
        let (short, long) = ("5".repeat(31), "5".repeat(129));
        for wrong in [
            "",
            "e2b_",
            "5",
            &"5".repeat(40),
            &format!("e2b_{short}"),
            &format!("e2b_{long}"),
            &format!("e2b_{}", "F".repeat(40)),
        ] {
            assert!(server.accept_api_key(wrong).is_err() && server.authenticate(wrong).is_none(), "{wrong}");
        }
    });
}

#[test]
fn nothing_in_the_state_directory_is_open_to_other_users() {
    let host = Host::new();
    // As an earlier version left it.
    fs_err::create_dir(host.state_dir()).unwrap();
    fs_err::set_permissions(host.state_dir(), std::fs::Permissions::from_mode(0o711)).unwrap();
    host.serve(async |server| {
        let secret = CreateSandbox { secure: true, ..base() };
        let (running, paused) = (server.create(secret.clone()).await.unwrap(), server.create(secret).await.unwrap());
        host.remember(&paused.id, "a secret");
        server.pause(&paused.id).await.unwrap();
        server.volumes().create("v").await.unwrap();

        let state = host.state_dir();
        let found = all(&state);
        let has = |part: &str| found.iter().any(|path| path.to_str().unwrap().contains(part));
        let memory = match crate::KEEPING {
            Keeping::Files => "/memory.diff",
            Keeping::InStateAndTrees | Keeping::AllInState => "/state",
        };
        for part in ["firkin.db", "firkin.db-wal", "/proofs", "/volumes/", "/uploads", "/quarantine", "/layers/", memory] {
            assert!(has(part), "the test has made no {part}");
        }
        assert!(has(&format!("/run/{}", running.id)));
        assert_eq!(open_to_others(&state, &found), Vec::<PathBuf>::new());

        // Each by itself too, whatever stands above it. Whole memory is opened anew by an engine, by its descriptor; what a volume
        // shows of itself are its users' permissions.
        for path in &found {
            let metadata = fs_err::symlink_metadata(path).unwrap();
            let excepted = path.ends_with("memory") || path.ends_with("content");
            assert!(excepted || metadata.mode() & 0o077 == 0, "{} is {:o}", path.display(), metadata.mode());
        }
    });
}

/// The same as a user of the host finds it: a process of `nobody`, and one with the number that a machine's could have.
#[test]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn another_user_finds_nothing_in_the_state_directory() {
    use std::process::{Command, Stdio};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: only root has machines run as other users");
        return;
    }
    let host = Host::new();
    fs_err::set_permissions(host.state_dir().parent().unwrap(), std::fs::Permissions::from_mode(0o755)).unwrap();
    host.serve(async |server| {
        let running = server.create(base()).await.unwrap();
        used(&host, server, &running.id).await;
        let reads = |uid: u32, path: &Path| {
            let mut read = Command::new("setpriv");
            read.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]).arg("find").arg(path);
            read.stdin(Stdio::null()).current_dir("/").output().expect("setpriv is a part of every Debian")
        };
        for uid in [65534, 1_879_109_639] {
            let beside = host.state_dir().parent().unwrap().join("kernel");
            assert!(reads(uid, &beside).status.success(), "the test itself looks as that user");
            for path in
                [host.state_dir(), host.state_dir().join("firkin.db"), host.state_dir().join("run").join(running.id.as_str())]
            {
                let found = reads(uid, &path);
                assert!(!found.status.success(), "{} as {uid}", path.display());
                let seen = String::from_utf8(found.stdout).unwrap();
                assert!(seen.lines().all(|line| Path::new(line) == host.state_dir()), "{seen}");
            }
            // Whoever knows each name finds nothing under it either.
            let inside = all(&host.state_dir()).into_iter().filter(|path| *path != host.state_dir()).collect::<Vec<_>>();
            assert!(inside.len() > 30, "{inside:?}");
            assert_eq!(found_by(uid, &inside), Vec::<String>::new());
            assert_eq!(
                found_by(uid, std::slice::from_ref(&beside)),
                [beside.display().to_string()],
                "the test itself finds as that user"
            );
        }
    });
}

/// Has everything there be that a server keeps: of a pause, a fork, a snapshot, a volume, a secret, an upload and a build.
async fn used(host: &Host, server: &Runtime, running: &SandboxId) {
    let paused = server.create(CreateSandbox { secure: true, ..base() }).await.unwrap();
    server.pause(&paused.id).await.unwrap();
    server.snapshot(running, Some("mine".into())).await.unwrap();
    server.fork(running, 1, Duration::from_secs(600)).await.unwrap();
    server.volumes().create("v").await.unwrap();
    server.secrets().create("s", "a value".into(), BTreeMap::new()).await.unwrap();
    let mut upload = server.receive_files(&"0".repeat(64)).unwrap();
    upload.write(b"a file of a build").await.unwrap();
    upload.finish().await.unwrap();
    let place = building::request(server, "built", 512).await;
    building::start(server, &place, building::plan(building::own_image(), &[])).await;
    assert_eq!(building::ended(server, &place).await.state, BuildState::Ready);
    let found = all(&host.state_dir());
    for part in ["firkin.db", "/artifacts/", "/layers/", "/volumes/", "/uploads/", "/secrets", "/run/"] {
        assert!(found.iter().any(|path| path.to_str().unwrap().contains(part)), "the test has made no {part}");
    }
}

/// Which of `paths` a process of this user finds anything under.
fn found_by(uid: u32, paths: &[PathBuf]) -> Vec<String> {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };
    let mut look = Command::new("setpriv");
    look.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--", "sh", "-c"]);
    look.arg(r#"while IFS= read -r path; do if [ -e "$path" ] || [ -L "$path" ]; then echo "$path"; fi; done"#);
    let mut child = look.stdin(Stdio::piped()).stdout(Stdio::piped()).current_dir("/").spawn().expect("a part of every Debian");
    let list: String = paths.iter().map(|path| format!("{}\n", path.display())).collect();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
