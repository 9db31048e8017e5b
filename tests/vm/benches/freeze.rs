//! How long a guest stands still while its state is cut, against the simplest thing that QEMU offers for the same:
//! `cargo bench -p firkin-vm-tests --bench freeze`, on a machine that does nothing else.
#![expect(clippy::unwrap_used, reason = "a measurement that cannot be taken ends by panicking")]

use std::{
    io::{BufRead, BufReader, IoSlice, Write},
    os::unix::{
        fs::{FileExt, MetadataExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use firkin_engine::{
    DiskFormat as _, Engine, MemoryForm, SnapshotMemory,
    contract::{Harness, Snapshot},
    parts,
    qcow2::Qcow2,
};
use firkin_vm_tests::engine_qemu::QemuHarness;
use nix::{
    sys::uio::{RemoteIoVec, process_vm_writev},
    unistd::Pid,
};
use serde_json::{Value, json};

/// What the guest has written since it was restored.
const DIRTY_BYTES: usize = 20 << 20;
/// It is written in pieces of this size.
const STRETCH_BYTES: usize = 2 << 20;
/// Cuts that are measured; the median counts.
const CUTS: usize = 5;

#[tokio::main]
#[expect(clippy::print_stderr, reason = "a measurement is shown")]
async fn main() {
    let Some(harness) = QemuHarness::open().await else { return };
    let template = template(&harness).await;
    let spec = harness.restore_spec(&template).await;
    let (dir, mut disk) = (spec.dir.clone(), spec.disk.overlay.clone());
    let mut machine = harness.engine.restore(spec).await.unwrap();
    machine.resume().await.unwrap();
    harness.guest(machine.control().await.unwrap(), &dir).ready().await;

    let mut freezes = Vec::new();
    for n in 0..CUTS {
        let SnapshotMemory::Full(memory) = &template.memory else { panic!("a template has a whole memory") };
        dirty(machine.pid().unwrap(), memory);
        let room = tempfile::tempdir_in("/dev/shm").unwrap();
        let next = next_overlay(&dir, &disk, n).await;
        let begun = Instant::now();
        let expected = machine.prepare_cut(&next).await.unwrap();
        machine.make_room(room.path(), expected).await.unwrap();
        let prepared = begun.elapsed();
        let begun = Instant::now();
        machine.pause().await.unwrap();
        let paused = begun.elapsed();
        let cut = machine.cut(room.path(), &next).await.unwrap();
        let written = begun.elapsed();
        machine.resume().await.unwrap();
        freezes.push(begun.elapsed());
        let begun = Instant::now();
        cut.captured.unwrap().pack(&room.path().join(parts::MEMORY_DIFF)).unwrap();
        let packed = begun.elapsed();
        let MemoryForm::Diff { bytes } = cut.memory else { panic!("a clone gives a diff") };
        assert!(bytes >= DIRTY_BYTES as u64 && bytes <= expected + (8 << 20), "{bytes} of {expected} expected");
        eprintln!(
            "freeze {:?} of {} MiB: stopped at {paused:?}, state {:?}, memory {:?}, written and switched at {written:?}; \
             prepared in {prepared:?}, packed in {packed:?}",
            freezes[n],
            bytes >> 20,
            cut.state_time,
            cut.memory_time
        );
        disk = next;
    }
    freezes.sort();
    let freeze = freezes[CUTS / 2];

    machine.release();
    let migration = migrate(&dir);
    let mut machine = harness.engine.adopt(&dir).await.unwrap();
    machine.kill().await;
    eprintln!("freeze {freeze:?}, full migration to a file {migration:?}: {:.4}", freeze.as_secs_f64() / migration.as_secs_f64());
}

async fn template(harness: &QemuHarness) -> Snapshot {
    let spec = harness.boot_spec().await;
    let (dir, memory, disk) = (spec.dir.clone(), spec.memory_file.clone(), spec.disk.overlay.clone());
    let mut machine = harness.engine.boot(spec).await.unwrap();
    harness.guest(machine.control().await.unwrap(), &dir).ready().await;
    machine.pause().await.unwrap();
    let out = harness.snapshot_dir().await;
    machine.snapshot(&out).await.unwrap();
    machine.kill().await;
    Snapshot { memory: SnapshotMemory::Full(memory), state: out.join(parts::STATE), disk }
}

async fn next_overlay(dir: &Path, disk: &Path, n: usize) -> PathBuf {
    let path = dir.join(format!("next-{n}.qcow2"));
    Qcow2.create_next(disk, disk, &path).unwrap();
    path
}

/// Writes to guest memory as its programs would: into large stretches of it that the template has never used. Single zero
/// pages may be the kernel's own.
fn dirty(pid: u32, memory: &Path) {
    let file = fs_err::File::open(memory).unwrap().into_parts().0;
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = fs_err::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let (mut left, mut stretch) = (DIRTY_BYTES, vec![0; STRETCH_BYTES]);
    for fields in maps.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>()) {
        if fields.get(4) != Some(&inode.as_str()) {
            continue;
        }
        let (start, end) = fields[0].split_once('-').unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        let (start, end, offset) = (hex(start), hex(end), hex(fields[2]));
        for address in (start..end).step_by(STRETCH_BYTES).take_while(|at| at + STRETCH_BYTES <= end) {
            if left == 0 {
                return;
            }
            file.read_exact_at(&mut stretch, u64::try_from(offset + (address - start)).unwrap()).unwrap();
            if stretch.iter().all(|&byte| byte == 0) {
                let fill: Vec<u8> = (0..STRETCH_BYTES).map(|at| filler((address >> 12) + at * 31 + at / 4096)).collect();
                let remote = [RemoteIoVec { base: address, len: STRETCH_BYTES }];
                assert_eq!(
                    process_vm_writev(Pid::from_raw(pid.try_into().unwrap()), &[IoSlice::new(&fill)], &remote),
                    Ok(STRETCH_BYTES)
                );
                left -= STRETCH_BYTES;
            }
        }
    }
    panic!("the guest has not enough unused memory");
}

/// Never zero.
fn filler(seed: usize) -> u8 {
    u8::try_from(seed % 255 + 1).unwrap()
}

/// QEMU's plain migration of a stopped machine to a file, from the stop to its end.
fn migrate(dir: &Path) -> Duration {
    let mut stream = UnixStream::connect(dir.join("qmp.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map(|line| -> Value { serde_json::from_str(&line.expect("QEMU goes on talking")).expect("QEMU talks JSON") });
    let mut run = |command: Value, ended: &dyn Fn(&Value) -> bool| {
        writeln!(stream, "{command}").unwrap();
        for answer in lines.by_ref() {
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if ended(&answer) {
                return;
            }
        }
    };
    let answered = |answer: &Value| answer.get("return").is_some();
    run(json!({"execute": "qmp_capabilities"}), &answered);
    let capabilities = json!([
        {"capability": "events", "state": true},
        {"capability": "x-ignore-shared", "state": false},
    ]);
    run(json!({"execute": "migrate-set-capabilities", "arguments": {"capabilities": capabilities}}), &answered);
    let begun = Instant::now();
    run(json!({"execute": "stop"}), &answered);
    run(json!({"execute": "migrate", "arguments": {"uri": "file:full.out"}}), &|answer| answer["data"]["status"] == "completed");
    begun.elapsed()
}
