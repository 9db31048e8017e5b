//! The disk budget: what goes first, what never goes, and what is refused.

use std::time::{Duration, SystemTime};

use firkin_runtime::{disk::DiskPressure, owner::SnapshotError, runtime::Runtime, sandbox::SandboxState, store::BuildState};

use crate::{
    bench::{Host, base, names, until},
    building::{built, ended, own_image, plan, request, start},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

#[test]
fn what_can_be_made_again_goes_oldest_first() {
    let host = Host::new();
    host.serve(async |_| ());
    let uploads = host.state_dir().join("uploads");
    for (name, age) in [("a", 2), ("b", 3), ("c", 1)] {
        let path = uploads.join(name.repeat(64));
        fs_err::write(&path, vec![1; 64 << 20]).unwrap();
        fs_err::File::options().write(true).open(&path).unwrap().file().set_modified(SystemTime::now() - DAY * age).unwrap();
    }
    host.serve_within(Some(160), async |server| {
        until("the oldest is gone", || names(&uploads).len() == 2).await;
        assert_eq!(names(&uploads), ["a".repeat(64), "c".repeat(64)]);
        until("it is told what may go", || (128 << 20..160 << 20).contains(&disk_bytes(server, "reclaimable"))).await;
        assert!((128 << 20..160 << 20).contains(&disk_bytes(server, "held")));
        assert_eq!(disk_bytes(server, "budget"), 160 << 20);
    });
}

/// What the metrics tell of the disk, bytes; 0 before anybody has looked.
fn disk_bytes(server: &Runtime, state: &str) -> u64 {
    let text = server.render_metrics(false);
    let label = format!("state=\"{state}\"");
    let series = text.lines().find(|line| line.starts_with("firkin_disk_bytes{") && line.contains(&label));
    series.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn what_is_kept_for_builds_goes_as_far_as_it_must() {
    let host = Host::new();
    let (mut stay, newer) = host.serve(async |server| {
        let mut known = host.artifacts();
        let mut kept = Vec::new();
        for (name, memory_mib) in [("older", 1024), ("newer", 256)] {
            built(server, name, own_image(), memory_mib).await;
            server.delete_template(name).await.unwrap();
            let source = host.artifacts().into_iter().find(|id| !known.contains(id)).expect("the state of the source is kept");
            // Memory of these guests is all holes.
            fs_err::write(host.state_dir().join("artifacts").join(&source).join("weight"), vec![1; 2 << 20]).unwrap();
            known = host.artifacts();
            kept.push(source);
        }
        (known.into_iter().filter(|id| !kept.contains(id)).collect::<Vec<_>>(), kept.pop().unwrap())
    });
    stay.push(newer);
    stay.sort();
    host.serve_within(Some(3), async |server| {
        until("the older one went, and no more", || host.artifacts() == stay).await;
        until("it is told what may go still", || (2 << 20..3 << 20).contains(&disk_bytes(server, "reclaimable"))).await;
        built(server, "again", own_image(), 256).await;
        assert_eq!(host.artifacts(), stay, "the newer one was gone on from");
    });
}

#[test]
fn what_is_needed_stays_and_nothing_is_kept_besides() {
    let host = Host::new();
    let needed = host.serve(async |server| {
        let needed = host.artifacts();
        built(server, "one", own_image(), 1024).await;
        server.delete_template("one").await.unwrap();
        assert!(host.artifacts().len() > needed.len(), "the state of the source is kept for the next build");
        needed
    });
    host.serve_within(Some(0), async |server| {
        until("only what is needed is left", || host.artifacts() == needed).await;
        let sandbox = server.create(base()).await.unwrap();
        host.remember(&sandbox.id, "word");
        let refused = server.snapshot(&sandbox.id, None).await.unwrap_err();
        let SnapshotError::DiskPressure { source: DiskPressure::OverBudget { held_mib, budget_mib: 0, .. }, .. } = refused else {
            panic!("{refused:?}")
        };
        assert!(held_mib > 0);
        let place = request(server, "two", 1024).await;
        start(server, &place, plan(own_image(), &[])).await;
        let info = ended(server, &place).await;
        assert_eq!(info.state, BuildState::Error);
        assert!(info.reason.as_ref().unwrap().message.contains("the disk budget is 0 MiB"), "{info:?}");
        server.pause(&sandbox.id).await.unwrap();
        assert_eq!(server.sandbox(&sandbox.id).unwrap().state, SandboxState::Paused);
        let again = server.connect(&sandbox.id, Duration::from_secs(60)).await.unwrap();
        assert!(again.resumed);
    });
}
