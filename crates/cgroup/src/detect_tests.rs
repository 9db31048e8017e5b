//! Detection on made-up hosts: one of each kind, and those that give nothing.

use super::*;

fn host(unified_controllers: &str) -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    fs_err::create_dir(host.path().join("unified")).unwrap();
    fs_err::write(host.path().join("unified/cgroup.controllers"), unified_controllers).unwrap();
    host
}

/// The own group of a tree, and what is in it.
type Found = (PathBuf, Version, Vec<Resource>);

fn found(mountinfo: &[String], cgroup: &[&str]) -> (Vec<Found>, Vec<Lack>) {
    let (trees, lacks) = trees(&mountinfo.join("\n"), &cgroup.join("\n"));
    (trees.into_iter().map(|tree| (tree.own, tree.version, tree.resources)).collect(), lacks)
}

fn unified(host: &tempfile::TempDir) -> String {
    format!("30 23 0:26 / {}/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate", host.path().display())
}

#[test]
fn a_host_of_version_2_has_one_tree() {
    let host = host("cpuset cpu io memory pids\n");
    let (trees, lacks) = found(&[unified(&host)], &["0::/system.slice/firkin.service"]);
    let own = host.path().join("unified/system.slice/firkin.service");
    assert_eq!((trees, lacks), (vec![(own, Version::V2, Resource::ALL.to_vec())], Vec::new()));
}

#[test]
fn a_host_of_version_1_has_a_tree_for_each_set_of_controllers() {
    let mountinfo = [
        "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct".to_owned(),
        "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory".to_owned(),
        "39 31 0:36 / /cg/pids rw - cgroup cgroup rw,pids".to_owned(),
    ];
    let (trees, lacks) = found(&mountinfo, &["4:memory:/a", "8:pids:/", "2:cpu,cpuacct:/b/c"]);
    let expected = [("/cg/cpu/b/c", Resource::Cpu), ("/cg/memory/a", Resource::Memory), ("/cg/pids", Resource::Pids)];
    assert_eq!(trees, expected.map(|(own, resource)| (own.into(), Version::V1, vec![resource])));
    assert_eq!(lacks, [Lack::Absent { resource: Resource::Io }]);
}

#[test]
fn on_a_hybrid_host_each_resource_is_where_its_controller_is() {
    let host = host("io pids\n");
    let legacy = "35 31 0:32 / /cg/memory rw - cgroup cgroup rw,memory".to_owned();
    let (trees, lacks) = found(&[unified(&host), legacy], &["4:memory:/m", "1:name=systemd:/x", "0::/u"]);
    let expected = [
        (PathBuf::from("/cg/memory/m"), Version::V1, vec![Resource::Memory]),
        (host.path().join("unified/u"), Version::V2, vec![Resource::Pids, Resource::Io]),
    ];
    let mut sorted = trees;
    sorted.sort_by_key(|tree| tree.1);
    assert_eq!(
        (sorted.as_slice(), lacks.as_slice()),
        (expected.as_slice(), [Lack::Absent { resource: Resource::Cpu }].as_slice())
    );
}

#[test]
fn a_container_sees_the_part_that_is_mounted() {
    let mount = |root: &str| format!("35 31 0:32 {root} /cg/me\\040mory rw - cgroup cgroup rw,memory");
    let (trees, _) = found(&[mount("/docker/1")], &["4:memory:/docker/1/x"]);
    assert_eq!(trees, [(PathBuf::from("/cg/me mory/x"), Version::V1, vec![Resource::Memory])]);
    for group in ["4:memory:/docker/2", "4:memory:/docker/1/../2"] {
        let (trees, lacks) = found(&[mount("/docker/1")], &[group]);
        assert!(trees.is_empty());
        assert!(matches!(lacks[0], Lack::Outside { resource: Resource::Memory, .. }), "{lacks:?}");
    }
}

#[test]
fn a_host_without_any_lacks_all() {
    let (trees, lacks) = found(&["23 1 0:21 / / rw - ext4 /dev/vda rw".to_owned()], &[]);
    assert_eq!((trees.len(), lacks.len()), (0, Resource::ALL.len()));
}
