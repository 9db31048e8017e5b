//! Where this process's control groups are, by resource, read from the kernel's own tables.
//!
//! A host has version 1, where each resource may have a tree of its own, version 2, which has one tree, or both: then a resource
//! belongs to version 1 as soon as a tree of that has it. See cgroups(7), and Documentation/admin-guide/cgroup-v2.rst.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{Lack, Resource};

/// Which interface files a tree has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A tree of groups, with the resources that it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) version: Version,
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// The group that this process is in.
    pub(crate) own: PathBuf,
    pub(crate) resources: Vec<Resource>,
}

/// The trees that hold something for this process, and what no tree holds.
pub(crate) fn of_this_process() -> (Vec<Tree>, Vec<Lack>) {
    let read = |path| fs_err::read_to_string(path).unwrap_or_default();
    trees(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
}

/// The tree that holds `resource`, with the group of the process `pid`, or of this one: `self`.
pub(crate) fn group_of(pid: &str, resource: Resource) -> Option<Tree> {
    let mountinfo = fs_err::read_to_string("/proc/self/mountinfo").ok()?;
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let cgroup = fs_err::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    find(resource, &mounts, &cgroup).ok()
}

/// The trees that hold something, and what no tree holds.
///
/// `mountinfo` and `cgroup` are the files of these names in `/proc/self`.
pub(crate) fn trees(mountinfo: &str, cgroup: &str) -> (Vec<Tree>, Vec<Lack>) {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let (mut trees, mut lacks) = (BTreeMap::<PathBuf, Tree>::new(), Vec::new());
    for resource in Resource::ALL {
        match find(resource, &mounts, cgroup) {
            Ok(found) => trees.entry(found.own.clone()).or_insert(found).resources.push(resource),
            Err(lack) => lacks.push(lack),
        }
    }
    (trees.into_values().collect(), lacks)
}

fn find(resource: Resource, mounts: &[Mount], cgroup: &str) -> Result<Tree, Lack> {
    let absent = || Lack::Absent { resource };
    let legacy = mounts.iter().find(|mount| mount.version == Version::V1 && mount.has(resource.v1()));
    let unified = || mounts.iter().find(|mount| mount.version == Version::V2 && controls(&mount.point, resource));
    let mount = legacy.or_else(unified).ok_or_else(absent)?;
    let path = cgroup.lines().find_map(|line| group(line, mount.version, resource)).ok_or_else(absent)?;
    // What is mounted may be a part of the tree, and the group outside of it.
    let outside = || Lack::Outside { resource, group: path.to_owned(), mount: mount.point.clone() };
    let within = Path::new(path).strip_prefix(&mount.root).map_err(|_| outside())?;
    if within.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(outside());
    }
    let own = if within.as_os_str().is_empty() { mount.point.clone() } else { mount.point.join(within) };
    Ok(Tree { version: mount.version, mount: mount.point.clone(), own, resources: Vec::new() })
}

/// The group in a line `ID:CONTROLLERS:PATH`, if it is of the tree of `resource`.
fn group(line: &str, version: Version, resource: Resource) -> Option<&str> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let fits = match version {
        Version::V1 => controllers.split(',').any(|name| name == resource.v1()),
        Version::V2 => controllers.is_empty(),
    };
    fits.then_some(path)
}

/// Whether the tree of version 2 at `mount` holds `resource`.
fn controls(mount: &Path, resource: Resource) -> bool {
    let controllers = fs_err::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_ascii_whitespace().any(|name| name == resource.v2())
}

/// A mounted tree.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// What of the tree is mounted.
    root: PathBuf,
    point: PathBuf,
    options: String,
}

impl Mount {
    /// A line of mountinfo, as in proc(5).
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = after.nth(1)?.to_owned();
        let mut before = before.split(' ').skip(3);
        let (root, point) = (unescaped(before.next()?), unescaped(before.next()?));
        Some(Self { version, root: root.into(), point: point.into(), options })
    }

    fn has(&self, controller: &str) -> bool {
        self.options.split(',').any(|option| option == controller)
    }
}

/// Blanks, line feeds and backslashes stand in mountinfo as three octal digits.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;
