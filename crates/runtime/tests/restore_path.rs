//! The order of a restore: each step refuses before the next has any effect, and nothing that was reserved stays reserved.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use firkin_engine::{Acceleration, Fingerprint, Shape, qcow2::Qcow2};
use firkin_runtime::{
    admission::{Admission, AdmissionError},
    artifact::{
        Artifact, ArtifactKind, ArtifactStore, DiskMembers, FORMAT, GuestIdentity, IntegrityError, MemoryMember,
        SnapshotArtifactManifest,
    },
    capacity::{CapacityError, CapacityLedger, HostCapacity, ResourceBudget},
    config::AdmissionConfig,
    disk::{DiskPressure, DiskPressureGuard, DiskPressureProbe, DiskSpace},
    launch::{LaunchError, LaunchTimings, SnapshotRestoreRequest, SnapshotSessionLauncher},
    memory_pressure::HostMemory,
    restore::{RestoreGates, SnapshotRestoreError, restore},
    sandbox::InternetAccess,
};
use firkin_wire::control::Identity;
use fs_err as fs;

#[path = "restore_path/admission.rs"]
mod admission;

const BUDGET: ResourceBudget = ResourceBudget { cpus: 1, memory_mib: 512, disk_mib: 1024 };
const HOST: HostCapacity = HostCapacity { cpus: 2, memory_mib: 4096, disk_mib: 100_000 };
const GIB: u64 = 1 << 30;

#[derive(Debug, Default)]
struct Probe {
    free: AtomicU64,
    calls: AtomicU32,
}

impl DiskPressureProbe for Probe {
    fn probe(&self, _: &Path) -> io::Result<DiskSpace> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.free.load(Ordering::SeqCst) {
            u64::MAX => Err(io::ErrorKind::PermissionDenied.into()),
            free => Ok(DiskSpace { free, total: 1000 * GIB }),
        }
    }
}

/// Launches nothing, and counts how often it was asked.
#[derive(Debug, Default)]
struct Launcher {
    calls: AtomicU32,
    fail: bool,
    hang: bool,
}

#[async_trait]
impl SnapshotSessionLauncher for Launcher {
    type Session = String;

    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(String, LaunchTimings), LaunchError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.hang {
            std::future::pending::<()>().await;
        }
        if self.fail {
            return Err(LaunchError::NotRecorded);
        }
        Ok((request.identity.sandbox_id.clone(), LaunchTimings::default()))
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    probe: Arc<Probe>,
    gates: RestoreGates,
    artifact: Artifact,
}

fn fingerprint() -> Fingerprint {
    Fingerprint {
        engine: "fake".into(),
        version: "1".into(),
        machine: "m".into(),
        acceleration: Acceleration::None,
        cpu: "c".into(),
        devices: None,
        program: None,
        announces: false,
    }
}

fn publish(store: &ArtifactStore) -> Artifact {
    let draft = store.draft().unwrap();
    fs::write(draft.dir().join("state"), b"device state").unwrap();
    fs::write(draft.dir().join("memory"), vec![7; 8192]).unwrap();
    let layer = draft.dir().join("disk");
    fs::write(&layer, b"layer").unwrap();
    store.adopt_layer(&"l1".parse().unwrap(), &layer).unwrap();
    let manifest = SnapshotArtifactManifest {
        format: FORMAT,
        id: draft.id().clone(),
        kind: ArtifactKind::BaseTemplate,
        reason: None,
        logical_id: "base".into(),
        parent: None,
        created_at: jiff::Timestamp::now(),
        engine: fingerprint(),
        guest: GuestIdentity { kernel: "k".into(), agent: "a".into(), agent_generation: 1, nonce: None },
        shape: Shape { vcpus: 1, memory_mib: 512 },
        budget: BUDGET,
        epoch: 1,
        memory: MemoryMember::Full,
        disk: DiskMembers { rootfs: "r".into(), rootfs_path: "/r".into(), layers: vec!["l1".parse().unwrap()] },
    };
    store.publish(draft, manifest).unwrap()
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let probe = Arc::new(Probe::default());
    probe.free.store(100 * GIB, Ordering::SeqCst);
    let artifacts = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let artifact = publish(&artifacts);
    let gates = RestoreGates {
        engines: vec![fingerprint().into()],
        // Opened anew: nothing is remembered as proven.
        artifacts: ArtifactStore::open(dir.path(), &Qcow2).unwrap(),
        disk: DiskPressureGuard::new(dir.path().to_owned(), None, Arc::clone(&probe) as Arc<dyn DiskPressureProbe>),
        admission: Admission::new(
            CapacityLedger::new(HOST, HOST.share(50)),
            Arc::new(HostMemory::PLENTY),
            &AdmissionConfig::default(),
        ),
    };
    Bench { _dir: dir, probe, gates, artifact }
}

impl Bench {
    fn request(&self) -> SnapshotRestoreRequest {
        SnapshotRestoreRequest {
            artifact: self.gates.artifacts.load(&self.artifact.manifest.id).unwrap(),
            budget: BUDGET,
            identity: Identity {
                epoch: 2,
                sandbox_id: "i1".into(),
                template_id: "t".into(),
                entropy: String::new(),
                realtime_ns: 0,
                machine_id: None,
                nonce: None,
                network: None,
                env: BTreeMap::new(),
                access_token: None,
                default_user: None,
                default_workdir: None,
                volumes: None,
            },
            internet: InternetAccess::Denied,
            can_be_claimed: false,
        }
    }

    /// Restores and expects a refusal before the disk probe, the ledger and the launcher.
    async fn refused_untouched(&self) -> SnapshotRestoreError {
        let launcher = Launcher::default();
        let error = restore(self.request(), &self.gates, &launcher).await.map(|report| report.session).unwrap_err();
        assert_eq!(self.probe.calls.load(Ordering::SeqCst), 0, "the disk must not be probed: {error}");
        assert_eq!(launcher.calls.load(Ordering::SeqCst), 0, "nothing may be launched: {error}");
        self.nothing_held();
        error
    }

    fn nothing_held(&self) {
        assert_eq!(self.gates.admission.ledger.used(), ResourceBudget { cpus: 0, memory_mib: 0, disk_mib: 0 });
    }
}

/// Rewrites a member in place, which as root is possible although it is read-only.
fn damage(path: &Path, content: &[u8]) {
    fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, content).unwrap();
}

#[tokio::test]
async fn an_intact_artifact_is_launched_and_holds_its_budget_until_the_report_goes() {
    let bench = bench();
    let report = restore(bench.request(), &bench.gates, &Launcher::default()).await.unwrap();
    assert_eq!(report.session, "i1");
    assert_eq!(bench.gates.admission.ledger.used(), BUDGET);
    drop(report);
    bench.nothing_held();
}

#[tokio::test]
async fn a_damaged_member_of_any_kind_is_refused_before_anything_happens() {
    for member in ["state", "memory", "layer"] {
        let bench = bench();
        let path = match member {
            "state" => bench.artifact.state.clone(),
            "memory" => bench.artifact.memory.clone(),
            _ => bench.artifact.layers[0].clone(),
        };
        let mut content = fs::read(&path).unwrap();
        content[0] ^= 1;
        damage(&path, &content);
        let error = bench.refused_untouched().await;
        assert!(
            matches!(&error, SnapshotRestoreError::Integrity { source: IntegrityError::Digest { .. }, .. }),
            "{member}: {error:?}"
        );
    }
}

#[tokio::test]
async fn damage_after_a_first_successful_restore_is_noticed_too() {
    let bench = bench();
    drop(restore(bench.request(), &bench.gates, &Launcher::default()).await.unwrap());
    bench.probe.calls.store(0, Ordering::SeqCst);
    damage(&bench.artifact.state, b"DEVICE STATE");
    let error = bench.refused_untouched().await;
    assert!(matches!(error, SnapshotRestoreError::Integrity { source: IntegrityError::Digest { .. }, .. }), "{error:?}");
}

#[tokio::test]
async fn a_truncated_or_missing_member_is_refused_by_size_without_being_read() {
    let bench = bench();
    damage(&bench.artifact.memory, b"short");
    let error = bench.refused_untouched().await;
    assert!(
        matches!(error, SnapshotRestoreError::Integrity { source: IntegrityError::Size { expected: 8192, found: 5, .. }, .. }),
        "{error:?}"
    );
    let bench = self::bench();
    fs::remove_file(&bench.artifact.memory).unwrap();
    let error = bench.refused_untouched().await;
    assert!(matches!(error, SnapshotRestoreError::Integrity { source: IntegrityError::Unreadable { .. }, .. }), "{error:?}");
}

#[tokio::test]
async fn an_artifact_of_another_host_is_refused_with_both_values() {
    let mut bench = bench();
    bench.gates.engines[0].plain.cpu = "another".into();
    bench.gates.engines[0].nested_cpu = "another".into();
    let error = bench.refused_untouched().await;
    assert!(
        matches!(&error, SnapshotRestoreError::Incompatible { what: "CPU", made_with, here, .. } if made_with == "c" && here == "another")
    );
}

#[tokio::test]
async fn a_newer_sidecar_format_is_refused_by_its_number() {
    let bench = bench();
    let path = bench.artifact.state.with_file_name("manifest.json");
    let text = fs::read_to_string(&path).unwrap().replacen("\"format\": 1", "\"format\": 3", 1);
    fs::write(&path, text).unwrap();
    let error = bench.gates.artifacts.load(&bench.artifact.manifest.id).unwrap_err();
    assert!(matches!(error, IntegrityError::Format { found: 3, known: 2, .. }), "{error:?}");
}

#[tokio::test]
async fn a_full_disk_and_a_failing_probe_refuse_before_capacity_is_taken() {
    let bench = bench();
    let launcher = Launcher::default();
    bench.probe.free.store(GIB, Ordering::SeqCst);
    let error = restore(bench.request(), &bench.gates, &launcher).await.map(|r| r.session).unwrap_err();
    assert!(matches!(error, SnapshotRestoreError::DiskPressure(DiskPressure::BelowFloor { .. })), "{error:?}");
    bench.probe.free.store(u64::MAX, Ordering::SeqCst);
    let error = restore(bench.request(), &bench.gates, &launcher).await.map(|r| r.session).unwrap_err();
    assert!(matches!(error, SnapshotRestoreError::DiskPressure(DiskPressure::ProbeFailed { .. })), "{error:?}");
    assert_eq!(launcher.calls.load(Ordering::SeqCst), 0);
    bench.nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_full_host_names_the_first_resource_and_launches_nothing() {
    let bench = bench();
    let launcher = Launcher::default();
    let first = restore(bench.request(), &bench.gates, &launcher).await.unwrap();
    let second = restore(bench.request(), &bench.gates, &launcher).await.unwrap();
    let error = restore(bench.request(), &bench.gates, &launcher).await.map(|r| r.session).unwrap_err();
    let short = CapacityError::Cpu { requested: 1, available: 0 };
    assert!(
        matches!(error, SnapshotRestoreError::Admission(AdmissionError::Deadline { source, .. }) if source == short),
        "{error:?}"
    );
    assert_eq!(launcher.calls.load(Ordering::SeqCst), 2);
    drop((first, second));
    bench.nothing_held();
}

#[tokio::test]
async fn a_failed_launch_gives_back_what_was_reserved() {
    let bench = bench();
    let launcher = Launcher { fail: true, ..Launcher::default() };
    let error = restore(bench.request(), &bench.gates, &launcher).await.map(|r| r.session).unwrap_err();
    assert!(matches!(error, SnapshotRestoreError::Launch(_)), "{error:?}");
    bench.nothing_held();
}

#[tokio::test]
async fn a_cancelled_launch_gives_back_what_was_reserved() {
    let bench = bench();
    let launcher = Launcher { hang: true, ..Launcher::default() };
    let mut restoring = Box::pin(restore(bench.request(), &bench.gates, &launcher));
    while launcher.calls.load(Ordering::SeqCst) == 0 {
        tokio::select! {
            _ = &mut restoring => panic!("a launch that hangs does not end"),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(bench.gates.admission.ledger.used(), BUDGET);
    drop(restoring);
    bench.nothing_held();
}

#[test]
fn collection_keeps_what_is_needed_pinned_or_new_and_removes_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let base = publish(&store);
    let draft = store.draft().unwrap();
    fs::write(draft.dir().join("state"), b"s").unwrap();
    fs::write(draft.dir().join("memory.diff"), b"d").unwrap();
    let mut manifest = base.manifest.clone();
    manifest.id = draft.id().clone();
    manifest.memory = MemoryMember::Diff { base: base.manifest.id.clone() };
    let child = store.publish(draft, manifest).unwrap();

    // The child keeps the base whose memory it needs, and its layer.
    let seen = store.candidates().unwrap();
    assert!(store.collect(&seen, std::slice::from_ref(&child.manifest.id), &[]).unwrap().is_empty());
    store.verify(&child).unwrap();

    // A pin taken after the candidates were listed still protects.
    let seen = store.candidates().unwrap();
    drop(store.pin(child.manifest.id.clone()));
    assert!(store.collect(&seen, &[], &[]).unwrap().is_empty());

    // Published after the listing: not a candidate.
    let seen = store.candidates().unwrap();
    let draft = store.draft().unwrap();
    fs::write(draft.dir().join("state"), b"s").unwrap();
    fs::write(draft.dir().join("memory.diff"), b"d").unwrap();
    let mut manifest = child.manifest.clone();
    manifest.id = draft.id().clone();
    let late = store.publish(draft, manifest).unwrap();
    assert_eq!(store.collect(&seen, &[], &[]).unwrap(), std::slice::from_ref(&child.manifest.id));
    store.verify(&late).unwrap();

    // Nobody needs anything.
    let seen = store.candidates().unwrap();
    assert_eq!(store.collect(&seen, &[], &[]).unwrap().len(), 2);
    assert_eq!(fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn a_draft_that_is_dropped_or_left_by_a_crash_disappears() {
    let dir = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    let draft = store.draft().unwrap();
    fs::write(draft.dir().join("state"), b"s").unwrap();
    drop(draft);
    assert_eq!(fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
    std::mem::forget(store.draft().unwrap());
    let store = ArtifactStore::open(dir.path(), &Qcow2).unwrap();
    assert!(store.ids().unwrap().is_empty());
    assert_eq!(fs::read_dir(dir.path().join("artifacts")).unwrap().count(), 0);
}
