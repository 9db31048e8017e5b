//! A root image that the product packs for gVisor is one that gVisor starts, cuts and restores sandboxes in.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use firkin_engine::gvisor::{
    AGENT,
    probe::{ProbeError, ProbeRequest, probe},
};
use firkin_image::{CONTAINER_AGENT, Cache, ErofsError, RootImage, container_root};
use firkin_vm_tests::engine_gvisor::PROBE_DEADLINE;

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
