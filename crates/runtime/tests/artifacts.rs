//! What artifacts are on disk: whole or absent, proven once, quarantined when damaged, and readable by every later version.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use firkin_engine::{
    Acceleration, Fingerprint, Shape,
    memory::diff::{Content, Diff},
    qcow2::{self, Qcow2},
};
use firkin_runtime::{
    artifact::{
        Artifact, ArtifactKind, ArtifactStore, DiskMembers, FORMAT, GuestIdentity, IntegrityError, MemoryMember, PublishError,
        Readings, SnapshotArtifactManifest, archive::ArchiveKind,
    },
    capacity::ResourceBudget,
    ids::{ArtifactId, LayerId},
};
use fs_err as fs;

fn manifest(id: &ArtifactId, memory: MemoryMember, layers: &[&str]) -> SnapshotArtifactManifest {
    SnapshotArtifactManifest {
        format: FORMAT,
        id: id.clone(),
        kind: if memory == MemoryMember::Full { ArtifactKind::BaseTemplate } else { ArtifactKind::Pause },
        reason: None,
        logical_id: "base".into(),
        parent: None,
        created_at: jiff::Timestamp::now(),
        engine: Fingerprint {
            engine: "fake".into(),
            version: "1".into(),
            machine: "m".into(),
            acceleration: Acceleration::None,
            cpu: "c".into(),
            devices: None,
            program: None,
            announces: false,
        },
        guest: GuestIdentity { kernel: "k".into(), agent: "a".into(), agent_generation: 1, nonce: None },
        shape: Shape { vcpus: 1, memory_mib: 1 },
        budget: ResourceBudget { cpus: 1, memory_mib: 1, disk_mib: 1 },
        epoch: 1,
        memory,
        disk: DiskMembers {
            rootfs: "r".into(),
            rootfs_path: "/r".into(),
            layers: layers.iter().map(|&id| id.parse().unwrap()).collect(),
        },
    }
}

/// A template with layer `layer`.
fn template(store: &ArtifactStore, layer: &str) -> Artifact {
    let draft = store.draft().unwrap();
    fs::write(draft.dir().join("state"), format!("device state {layer}")).unwrap();
    fs::write(draft.dir().join("memory"), vec![7; 8192]).unwrap();
    let disk = draft.dir().join("disk");
    fs::write(&disk, format!("layer {layer}")).unwrap();
    store.adopt_layer(&layer.parse().unwrap(), &disk).unwrap();
    let manifest = manifest(draft.id(), MemoryMember::Full, &[layer]);
    store.publish(draft, manifest).unwrap()
}

/// A pause of a sandbox of `base`.
fn pause(store: &ArtifactStore, base: &Artifact) -> Result<Artifact, PublishError> {
    let mut draft = store.draft().unwrap();
    store.stage(&mut draft, 4096);
    fs::write(draft.cut_dir().join("state"), b"device state").unwrap();
    fs::write(draft.cut_dir().join("memory.diff"), b"diff").unwrap();
    let memory = MemoryMember::Diff { base: base.manifest.id.clone() };
    let layers: Vec<&str> = base.manifest.disk.layers.iter().map(LayerId::as_str).collect();
    let manifest = manifest(draft.id(), memory, &layers);
    store.publish(draft, manifest)
}

/// Rewrites a sealed member, as a failing disk or a mistaken administrator would.
fn damage(path: &Path, content: &[u8]) {
    let permissions = fs::metadata(path).unwrap().permissions();
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, permissions).unwrap();
}

#[test]
fn a_restart_reads_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let base = template(&store, "l1");
    let child = pause(&store, &base).unwrap();
    drop(store);
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    for artifact in [&base, &child] {
        store.verify(&store.load(&artifact.manifest.id).unwrap()).unwrap();
    }
    assert_eq!(store.bytes_read(), 0);
}

#[test]
fn a_damaged_artifact_is_quarantined_by_name_and_its_siblings_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let (sick, sound) = (template(&store, "l1"), template(&store, "l2"));
    let state = fs::read(&sick.state).unwrap();
    damage(&sick.state, &state.to_ascii_uppercase());
    assert!(matches!(store.verify(&sick), Err(IntegrityError::Digest { .. })));
    assert!(matches!(store.verify(&sick), Err(IntegrityError::Quarantined { .. })), "it is not tried again");
    store.verify(&sound).unwrap();

    // The mark outlives the server, and names what was found.
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let marks = store.quarantined();
    assert_eq!(marks.iter().map(|mark| &mark.artifact).collect::<Vec<_>>(), [&sick.manifest.id]);
    assert!(marks[0].reason.contains("`state`"), "{marks:?}");
    assert!(!store.is_usable(&sick.manifest.id) && store.is_usable(&sound.manifest.id));

    // Repaired, it comes out by an examination.
    damage(&sick.state, &state);
    assert_eq!(store.examine(&sick.manifest.id, &mut Readings::default()).problems, Vec::<String>::new());
    assert_eq!(store.quarantined(), []);
    store.verify(&sick).unwrap();
}

#[test]
fn an_examination_believes_no_memory_and_finds_every_kind_of_damage() {
    type Harm = fn(&Artifact);
    let harms: [(&str, Harm); 6] = [
        ("flipped", |a| damage(&a.memory, &[8; 8192])),
        ("truncated", |a| damage(a.memory_diff.as_ref().unwrap(), b"d")),
        ("missing", |a| fs::remove_file(&a.state).unwrap()),
        ("layer", |a| damage(&a.layers[0], b"LAYER l1")),
        ("manifest", |a| damage(&a.state.with_file_name("manifest.json"), b"{\"format\": 1")),
        ("integrity", |a| fs::remove_file(a.state.with_file_name("integrity.json")).unwrap()),
    ];
    for (name, harm) in harms {
        let dir = tempfile::tempdir().unwrap();
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let base = template(&store, "l1");
        let (child, other) = (pause(&store, &base).unwrap(), template(&store, "l2"));
        let mut readings = Readings::default();
        assert!(store.examine(&child.manifest.id, &mut readings).problems.is_empty());
        harm(&child);
        let mut readings = Readings::default();
        let found = store.examine(&child.manifest.id, &mut readings);
        assert_eq!(found.problems.len(), 1, "{name}: {found:?}");
        assert_eq!(store.quarantined().len(), 1, "{name}");
        assert!(store.examine(&other.manifest.id, &mut readings).problems.is_empty(), "{name}");
        let base_is_hit = matches!(name, "flipped" | "layer");
        assert_eq!(store.examine(&base.manifest.id, &mut readings).problems.is_empty(), !base_is_hit, "{name}");
    }
}

#[test]
fn a_base_that_was_damaged_does_not_become_what_is_expected() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let base = template(&store, "l1");
    damage(&base.memory, &[8; 8192]);
    let refused = pause(&store, &base);
    assert!(matches!(refused, Err(PublishError::Base { source: IntegrityError::Digest { .. }, .. })), "{refused:?}");
    assert_eq!(store.ids().unwrap(), [base.manifest.id]);
}

#[test]
fn an_artifact_that_is_collected_takes_its_mark_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let sick = template(&store, "l1");
    damage(&sick.state, b"x");
    assert!(store.verify(&sick).is_err());
    let seen = store.candidates().unwrap();
    store.collect(&seen, &[], &[]).unwrap();
    assert_eq!((store.quarantined().len(), fs::read_dir(dir.path().join("quarantine")).unwrap().count()), (0, 0));
}

/// A full disk of this thread alone: a small tmpfs in a mount namespace of its own.
#[test]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn a_disk_that_fills_up_during_publication_leaves_nothing_half() {
    use nix::{
        mount::{MsFlags, mount},
        sched::{CloneFlags, unshare},
    };
    let dir = tempfile::tempdir().unwrap();
    let none = None::<&str>;
    let private = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("full"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=256k")));
    if let Err(error) = private {
        eprintln!("SKIP: a small file system needs root: {error}");
        return;
    }
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let base = template(&store, "l1");
    let mut draft = store.draft().unwrap();
    store.stage(&mut draft, 1 << 20);
    fs::write(draft.cut_dir().join("state"), b"device state").unwrap();
    fs::write(draft.cut_dir().join("memory.diff"), vec![1; 1 << 20]).unwrap();
    let manifest = manifest(draft.id(), MemoryMember::Diff { base: base.manifest.id.clone() }, &["l1"]);
    let full = store.publish(draft, manifest);
    assert!(
        matches!(&full, Err(PublishError::File { source, .. }) if source.kind() == std::io::ErrorKind::StorageFull),
        "{full:?}"
    );
    assert_eq!(fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 1, "the base alone");
    pause(&store, &base).unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, target) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            fs::copy(&entry, &target).unwrap();
        }
    }
}

/// Written once by the first version with this format, and never again.
#[test]
fn format_1_is_read_as_it_was_written() {
    let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1"));
    let dir = tempfile::tempdir().unwrap();
    copy(&golden, dir.path());
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    for id in ["goldenbase", "goldenpause"] {
        let artifact = store.load(&id.parse().unwrap()).unwrap();
        store.verify(&artifact).unwrap();
        let text = fs::read_to_string(golden.join("artifacts").join(id).join("manifest.json")).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&artifact.manifest).unwrap(), written, "a field is missing or has another form");
    }
    let pause = store.load(&"goldenpause".parse().unwrap()).unwrap();
    assert_eq!(pause.manifest.memory, MemoryMember::Diff { base: "goldenbase".parse().unwrap() });
    assert_eq!(pause.manifest.parent, Some("goldenbase".parse().unwrap()));
    let diff = Diff::open(pause.memory_diff.as_ref().unwrap(), 1 << 20).unwrap();
    let runs: Vec<_> = diff.runs().iter().map(|run| (run.range(), run.content)).collect();
    assert_eq!(runs, [(1..3, Content::Data), (5..6, Content::Zero)]);
    let mut page = [0; 4096];
    diff.read_data(1, &mut page).unwrap();
    assert_eq!(page, [3; 4096]);
    let layer = qcow2::inspect(&pause.layers[1]).unwrap();
    assert_eq!(layer.backing.unwrap().path, Path::new("/golden/layers/goldenlayer1.qcow2"));
}

/// The golden artifacts of format 1, as an archive of the first format of those.
const GOLDEN_ARCHIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/archive-1.firkin");

/// Written once by the first version with this format, and never again.
#[test]
fn an_archive_of_format_1_is_read_as_it_was_written() {
    if std::env::var_os("FIRKIN_WRITE_GOLDEN").is_some() && !Path::new(GOLDEN_ARCHIVE).exists() {
        let dir = tempfile::tempdir().unwrap();
        copy(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1")), dir.path());
        let image = dir.path().join("rootfs.ext4");
        fs::write(&image, b"a golden root image").unwrap();
        for id in ["goldenbase", "goldenpause"] {
            let path = dir.path().join("artifacts").join(id).join("manifest.json");
            let text = fs::read_to_string(&path).unwrap().replace("/golden/rootfs.ext4", image.to_str().unwrap());
            fs::write(&path, text).unwrap();
        }
        let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
        let record = serde_json::json!({"id": "igoldensandbox"});
        let packing = store.packing(&"goldenpause".parse().unwrap(), ArchiveKind::Sandbox, record).unwrap();
        packing.write(fs::File::create(GOLDEN_ARCHIVE).unwrap()).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let incoming = store.receive(fs::File::open(GOLDEN_ARCHIVE).unwrap()).unwrap();
    let header = incoming.header();
    assert_eq!((header.format, header.kind, &header.record["id"]), (1, ArchiveKind::Sandbox, &"igoldensandbox".into()));
    let artifact = store.unpack(incoming).unwrap().artifact;
    store.verify(&artifact).unwrap();
    let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1/artifacts"));
    for id in ["goldenbase", "goldenpause"] {
        let written: SnapshotArtifactManifest =
            serde_json::from_slice(&fs::read(golden.join(id).join("manifest.json")).unwrap()).unwrap();
        let mut found = store.load(&id.parse().unwrap()).unwrap().manifest;
        assert_eq!(fs::read(&found.disk.rootfs_path).unwrap(), b"a golden root image");
        found.disk.rootfs_path.clone_from(&written.disk.rootfs_path);
        assert_eq!(found, written);
    }
    assert_eq!(fs::read(&artifact.memory).unwrap(), fs::read(golden.join("goldenbase/memory")).unwrap());
    assert_eq!(qcow2::inspect(&artifact.layers[1]).unwrap().backing.unwrap().path, artifact.layers[0]);
}
