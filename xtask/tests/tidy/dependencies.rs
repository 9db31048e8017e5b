//! Rules about who depends on whom, read from the manifests.

use std::collections::BTreeMap;

use fs_err as fs;

use crate::{assert_none, files, root};

/// The crates from the ground up. A crate depends only on crates of lower floors; the guest knows only the wire,
/// how files are removed and replaced, and how errors are told.
const FLOORS: [&[&str]; 9] = [
    &["firkin-causes", "firkin-files"],
    &[
        "firkin-wire",
        "firkin-agent",
        "firkin-mcp",
        "firkin-cgroup",
        "firkin-copies",
        "firkin-jail",
        "firkin-seal",
        "firkin-egress",
        "firkin-dashboard",
        "firkin-traces",
        "firkin-warden",
    ],
    &["firkin-engine", "firkin-image", "firkin-guest", "firkin-share"],
    &["firkin-network"],
    &["firkin-runtime"],
    &["firkin-server", "firkin-postgres"],
    &["firkin-cluster"],
    &["firkin"],
    &["firkin-cluster-tests", "firkin-vm-tests", "firkin-fuzz", "firkin-book", "xtask"],
];

/// Dependencies that the floors alone would let through.
const FORBIDDEN: [(&str, &str); 2] = [("firkin-engine", "firkin-wire"), ("firkin-server", "firkin-engine")];

fn floor(package: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&package))
}

/// A manifest's package name and the crates of ours that it is built with. What only its tests use, such as a fake, is no layer.
fn package_and_dependencies(manifest: &str) -> (String, Vec<String>) {
    let mut section = "";
    let (mut package, mut dependencies) = (String::new(), Vec::new());
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim().split('.').next().unwrap_or_default();
            if section == "package" && key == "name" {
                package = value.trim().trim_matches('"').to_owned();
            } else if section.ends_with("dependencies") && section != "dev-dependencies" && floor(key).is_some() {
                dependencies.push(key.to_owned());
            }
        }
    }
    (package, dependencies)
}

#[test]
fn dependencies_point_down() {
    let mut offences = Vec::new();
    for manifest in
        files("toml").into_iter().filter(|text| text.path.ends_with("Cargo.toml") && text.path.components().count() > 1)
    {
        let (package, dependencies) = package_and_dependencies(&manifest.text);
        let Some(own) = floor(&package) else {
            offences.push(format!("`{package}` has no floor yet: give it one in {}", file!()));
            continue;
        };
        for dependency in dependencies {
            let below = floor(&dependency).is_some_and(|other| other < own);
            if !below || FORBIDDEN.contains(&(package.as_str(), dependency.as_str())) {
                offences.push(format!("`{package}` depends on `{dependency}`"));
            }
        }
    }
    assert_none(
        "cli -> server -> runtime -> network -> engine, image, wire; guest -> wire, files; all -> causes, files; nothing points back",
        &offences,
    );
}

#[test]
fn manifests_are_read_right() {
    let manifest = "[package]\nname = \"firkin-server\"\n[dependencies]\naxum = \"1\"\nfirkin-runtime = { workspace = true }\n\
                    [dev-dependencies]\nfirkin-wire.workspace = true\n[lints]\nfirkin-image = 1\n";
    let expect = ("firkin-server".to_owned(), vec!["firkin-runtime".to_owned()]);
    assert_eq!(package_and_dependencies(manifest), expect);
}

#[test]
fn every_manifest_takes_the_shared_lints() {
    let manifests = files("toml").into_iter().filter(|text| text.path.ends_with("Cargo.toml"));
    let without = manifests.filter(|text| text.text.contains("[package]") && !text.text.contains("[lints]\nworkspace = true"));
    let without: Vec<String> = without.map(|text| text.path.display().to_string()).collect();
    assert_none("every package takes the workspace's lints", &without);
}

#[test]
fn crates_come_from_the_registry() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("the lock file is part of the project");
    let git: Vec<String> = lock.lines().filter(|line| line.starts_with("source = \"git+")).map(str::to_owned).collect();
    assert_none("no dependency comes from a git repository", &git);
}

#[test]
fn crates_have_one_version_or_a_reason() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("the file is part of the project");
    let (lock, deny) = (read("Cargo.lock"), read("deny.toml"));
    let mut versions: BTreeMap<&str, u32> = BTreeMap::new();
    for name in lock.lines().filter_map(|line| line.strip_prefix("name = ")) {
        *versions.entry(name).or_default() += 1;
    }
    let excused = |name: &str| deny.contains(&format!("crate = {name}, reason = "));
    let twice = versions.iter().filter(|(name, count)| **count > 1 && !excused(name));
    let mut offences: Vec<String> = twice.map(|(name, count)| format!("{name} has {count} versions")).collect();
    let needless = deny.lines().filter_map(|line| line.trim().strip_prefix("{ crate = ")?.split(',').next());
    offences.extend(
        needless.filter(|name| versions.get(name).is_none_or(|count| *count < 2)).map(|name| format!("{name} needs no excuse")),
    );
    assert_none("each crate has one version, or `skip` in deny.toml says why not", &offences);
}
