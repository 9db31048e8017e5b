//! Parts of one's own in the seams of the restore path: a launcher, a disk probe, and warm sessions that give way.
//!
//! The path itself stays as it is: the artifact is proven intact, the disk is probed, capacity is held, and only then is the
//! launcher called; whatever it does, capacity comes back once the session is gone.
//!
//! ```text
//! cargo run -p firkin-runtime --example own_parts
//! ```

#![expect(clippy::print_stdout, reason = "a program to run by hand")]

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use async_trait::async_trait;
use firkin_engine::{Engine, qcow2::Qcow2};
use firkin_runtime::{
    admission::{Admission, AdmissionError},
    artifact::{Artifact, ArtifactStore},
    capacity::{CapacityLedger, HostCapacity, WarmEviction, WarmSessionReservation},
    config::{AdmissionConfig, RuntimeConfig},
    disk::{DiskPressureGuard, DiskPressureProbe, DiskSpace},
    launch::{LaunchError, LaunchTimings, SnapshotRestoreRequest, SnapshotSessionLauncher},
    memory_pressure::HostMemory,
    owner::OnExit,
    restore::{RestoreGates, SnapshotRestoreError, restore},
    runtime::Runtime,
    sandbox::InternetAccess,
    standard::BuildTemplate,
};
use firkin_wire::control::Identity;

mod stand_in;

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Launches no machine: a session is a directory with the snapshot's device state in it.
#[derive(Debug)]
struct Directories {
    root: PathBuf,
}

/// A session. It goes with its directory.
#[derive(Debug)]
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs_err::remove_dir_all(&self.0) {
            println!("cannot end a session: {error}");
        }
    }
}

#[async_trait]
impl SnapshotSessionLauncher for Directories {
    type Session = Directory;

    async fn launch(&self, request: &SnapshotRestoreRequest) -> Result<(Directory, LaunchTimings), LaunchError> {
        let begun = Instant::now();
        let path = self.root.join(&request.identity.sandbox_id);
        let stage = |source| LaunchError::Stage { path: path.clone(), source };
        fs_err::create_dir(&path).map_err(stage)?;
        // A guard from here on: a failure below, or a caller that drops this future, leaves nothing.
        let session = Directory(path.clone());
        fs_err::tokio::copy(&request.artifact.state, path.join("state")).await.map_err(stage)?;
        Ok((session, LaunchTimings { staging: begun.elapsed(), ..LaunchTimings::default() }))
    }
}

/// Not the space of the file system but a quota: what the files below a directory may take.
#[derive(Debug)]
struct Quota {
    bytes: u64,
}

impl DiskPressureProbe for Quota {
    fn probe(&self, path: &Path) -> io::Result<DiskSpace> {
        Ok(DiskSpace { free: self.bytes.saturating_sub(size(path)?), total: self.bytes })
    }
}

fn size(path: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs_err::read_dir(path)? {
        let entry = entry?;
        let found = entry.metadata()?;
        sum += if found.is_dir() { size(&entry.path())? } else { found.len() };
    }
    Ok(sum)
}

/// Warm sessions that are nothing but the capacity they hold.
#[derive(Debug, Default)]
struct Warm(Mutex<Vec<WarmSessionReservation>>);

#[async_trait]
impl WarmEviction for Warm {
    async fn evict_one(&self) -> bool {
        let session = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        // The reservation goes last: nobody gets the capacity of something that still runs.
        session.is_some()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (engine, artifact, artifacts) = template(dir.path()).await?;
    let sessions = dir.path().join("sessions");
    fs_err::create_dir(&sessions)?;

    // Room for two sessions of this template, one of which may be warm.
    let budget = artifact.manifest.budget;
    let room = HostCapacity { cpus: 2 * budget.cpus, memory_mib: 2 * budget.memory_mib, disk_mib: 2 * budget.disk_mib };
    let warm = Arc::new(Warm::default());
    let ledger = CapacityLedger::new(room, room.share(50));
    let admission = Admission::new(ledger.clone(), Arc::new(HostMemory::PLENTY), &AdmissionConfig::default());
    let gates = RestoreGates {
        engines: vec![engine.compatibility().clone()],
        artifacts,
        disk: DiskPressureGuard::new(sessions.clone(), Some(1), Arc::new(Quota { bytes: 8 << 20 })),
        admission: Admission { warm: Arc::clone(&warm) as Arc<dyn WarmEviction>, ..admission },
    };
    let launcher = Directories { root: sessions.clone() };

    let first = restore(request(&artifact, "first"), &gates, &launcher).await?;
    println!("{} is there after {:?}; held: {:?}", first.session.0.display(), first.launch.staging, ledger.usage().active);

    // The other half of the host is warm. A create takes it.
    warm.0.lock().unwrap_or_else(PoisonError::into_inner).push(ledger.reserve_warm(budget)?);
    let second = restore(request(&artifact, "second"), &gates, &launcher).await?;
    expect(ledger.usage().warm.sessions == 0, "the warm session gave way")?;

    // A third waits until one of them ends.
    let end_second = async {
        while ledger.view().waiting == 0 {
            tokio::task::yield_now().await;
        }
        drop(second);
    };
    let (third, ()) = tokio::join!(restore(request(&artifact, "third"), &gates, &launcher), end_second);
    let third = third?;
    println!("{} waited {:?} for room", third.session.0.display(), third.admission);

    // What could never fit does not wait.
    let mut huge = request(&artifact, "huge");
    huge.budget.cpus *= 3;
    match restore(huge, &gates, &launcher).await {
        Err(SnapshotRestoreError::Admission(AdmissionError::NeverFits(short))) => println!("refused: {short}"),
        other => return Err(format!("it cannot fit: {other:?}").into()),
    }

    // The quota is the floor's business, before capacity is touched.
    fs_err::write(sessions.join("ballast"), vec![0; 8 << 20])?;
    match restore(request(&artifact, "fourth"), &gates, &launcher).await {
        Err(SnapshotRestoreError::DiskPressure(pressure)) => println!("refused: {pressure}"),
        other => return Err(format!("the quota is used up: {other:?}").into()),
    }
    drop((first, third));
    expect(ledger.usage() == Default::default(), "capacity has come back")?;
    expect(fs_err::read_dir(&sessions)?.count() == 1, "and no session is left but the ballast")
}

/// A template to restore, built by the runtime, and the store that it is in.
async fn template(dir: &Path) -> Result<(Arc<dyn Engine>, Artifact, ArtifactStore)> {
    let (engine, network) = stand_in::guests().await?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let state_dir = dir.join("state");
    let capacity = HostCapacity { cpus: 1, memory_mib: 1 << 10, disk_mib: 1 << 20 };
    let defaults = RuntimeConfig::new(state_dir.clone(), capacity, network, stand_in::guest_system(dir)?);
    let config = RuntimeConfig { disk_floor_mib: Some(0), memory_probe: Arc::new(HostMemory::PLENTY), ..defaults };
    let runtime = Runtime::open(config, Arc::clone(&engine)).await?;
    let build = BuildTemplate { ready: None, ..BuildTemplate::base() };
    let built = Box::pin(runtime.build_template(build, &|_| ())).await;
    runtime.shutdown(OnExit::Kill).await;
    built?;
    let artifacts = ArtifactStore::open(&state_dir, &Qcow2)?;
    let id = artifacts.ids()?.pop().ok_or("the template has an artifact")?;
    let artifact = artifacts.load(&id)?;
    Ok((engine, artifact, artifacts))
}

fn request(artifact: &Artifact, name: &str) -> SnapshotRestoreRequest {
    SnapshotRestoreRequest {
        artifact: artifact.clone(),
        budget: artifact.manifest.budget,
        identity: Identity {
            epoch: artifact.manifest.epoch + 1,
            sandbox_id: name.to_owned(),
            template_id: artifact.manifest.logical_id.clone(),
            // A launcher of machines puts fresh randomness and the time here.
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

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(what.into()) }
}

#[test]
fn parts_of_ones_own_fit_the_seams() {
    main().expect("the example runs");
}
