//! A root image that the product packs for gVisor is one that gVisor starts, cuts and restores sandboxes in, and what these change of it
//! is in the next.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use firkin_engine::{
    Engine,
    contract::Harness,
    gvisor::{
        AGENT,
        probe::{ProbeError, ProbeRequest, probe},
    },
};
use firkin_image::{CONTAINER_AGENT, Cache, ErofsError, RootImage, ViewError, changed_root, container_root};
use firkin_vm_tests::engine_gvisor::{GvisorHarness, PROBE_DEADLINE};

#[test]
fn the_agent_is_where_the_engine_starts_it() {
    assert_eq!(CONTAINER_AGENT, AGENT);
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
async fn a_packed_image_is_a_root_of_sandboxes() {
    if !nix::unistd::getuid().is_root() || !Path::new("/dev/loop-control").exists() {
        return eprintln!("SKIP: root images for gVisor need root and loop devices");
    }
    let dir = tempfile::Builder::new().prefix("firkin-roots-").tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs_err::create_dir_all(tree.join("etc")).unwrap();
    let path = dir.path().join("rootfs.ext4");
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&path).arg("16M").env("PATH", "/usr/sbin:/sbin").stdin(Stdio::null());
    assert!(make.status().unwrap().success());

    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let machine = RootImage { path, digest: "of the tests".into(), virtual_bytes: 16 << 20 };
    let image = match container_root(&cache, &machine, firkin_agent::GUEST_AGENT, &|_| ()).await {
        Ok(made) => made.path,
        Err(error @ ErofsError::NoProgram) => return eprintln!("SKIP: {error}"),
        Err(error) => panic!("{error:?}"),
    };
    let request = ProbeRequest { program: None, pins: dir.path().join("engines"), image, deadline: PROBE_DEADLINE };
    match probe(&request).await {
        Ok(_) => (),
        Err(error @ ProbeError::Missing) => eprintln!("SKIP: {error} (package runsc of bookworm-backports)"),
        Err(error) => panic!("{error:?}"),
    }
}

/// What a shell says that runs these scripts, one after the other, in a new sandbox.
async fn said(harness: &GvisorHarness, scripts: &[&str]) -> Vec<String> {
    let spec = harness.boot_spec().await;
    let dir = spec.dir.clone();
    let mut machine = harness.engine.boot(spec).await.expect("a sandbox starts");
    harness.guest(machine.control().await.expect("it has a control channel"), &dir).ready().await;
    let said = scripts.iter().map(|script| harness.shell(&dir, script).expect("a shell says something")).collect();
    machine.kill().await;
    said
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
async fn what_a_sandbox_changed_is_in_the_image_of_the_next() {
    let Some(mut harness) = GvisorHarness::open().await else { return };
    let dir = tempfile::Builder::new().prefix("firkin-roots-").tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let layer = dir.path().join("layer.tar");
    // No changes: it has the list of its files now.
    fs_err::write(&layer, [0; 1024]).unwrap();
    let plain = RootImage { path: harness.image.clone(), digest: "of the tests".into(), virtual_bytes: 1 << 30 };
    let first = match changed_root(&cache, &plain, &layer, firkin_agent::GUEST_AGENT, &|_| ()).await {
        Ok(made) => made,
        Err(error @ ErofsError::View(ViewError::Image { .. } | ViewError::NoLoop)) => return eprintln!("SKIP: {error:?}"),
        Err(error) => panic!("{error:?}"),
    };
    harness.image = first.path.clone();
    let change = "echo kept >/root/file; rm /bin/rm; echo x >/tmp/not-kept; echo y >/run/not-kept";
    let told = format!("{CONTAINER_AGENT} changes");
    let [_, changes] = &said(&harness, &[change, &told]).await[..] else { panic!("two scripts") };
    assert!(changes.contains("root/file") && !changes.contains("not-kept") && !changes.contains("bin/sh"), "{changes:?}");
    let mounted = ["proc", "sys", "dev", "run"].map(|place| changes.contains(&format!("\0{place}\0")));
    assert_eq!(mounted, [false; 4], "what is mounted is no part of the image: {changes:?}");

    fs_err::write(&layer, changes).unwrap();
    let second = changed_root(&cache, &first, &layer, firkin_agent::GUEST_AGENT, &|_| ()).await.unwrap();
    harness.image = second.path.clone();
    let look = "read text </root/file; echo $text; test -e /bin/rm || echo gone; for found in /tmp/*; do echo $found; done";
    let [found, changes] = &said(&harness, &[look, &told]).await[..] else { panic!("two scripts") };
    assert_eq!(found, "kept\ngone\n/tmp/*\n");
    assert!(!changes.contains("root/file"), "it is a part of the image: {changes:?}");
}
