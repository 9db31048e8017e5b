//! `cargo xtask sbom`: the software that the product is made of and runs on, as CycloneDX 1.5 in JSON.
//!
//! Of every crate that is locked, with the digest of its archive, and with licence and use where it is built on this platform: what other
//! platforms alone need is not fetched for a list. And of the Debian packages that the product has its host install. The form is written down here, the few fields of it that are needed: the tool that writes it for
//! cargo wants to be installed, and lists neither the guest's programs beside the host's nor packages of Debian. The same commit on
//! the same host gives the same file, so it bears neither a time nor a serial number.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use clap::Args;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::{
    run::{Step, say},
    workspace::Workspace,
};

/// The packages that make up the product: what runs on the host, and what is put into guests.
const PRODUCT: [&str; 3] = ["firkin", "firkin-guest", "firkin-mcp"];

/// Debian packages that `firkin doctor --fix` installs where they are missing (`crates/cli/src/host`).
pub(crate) const HOST_PACKAGES: [&str; 9] =
    ["apt", "e2fsprogs", "erofs-utils", "kmod", "libnss-myhostname", "mmdebstrap", "mount", "qemu-system-x86", "runsc"];

/// Where the list goes.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// File to write [default: target/firkin.cdx.json]
    #[arg(long, value_name = "PATH")]
    output: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bom {
    bom_format: String,
    spec_version: String,
    version: u32,
    metadata: BomMetadata,
    components: Vec<Component>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize, Deserialize)]
struct BomMetadata {
    component: Component,
}

#[derive(Debug, Serialize, Deserialize)]
struct Component {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    purl: String,
    /// `required` where the product has it, `excluded` where only its tests and tools do, or another platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    hashes: Vec<Hash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<License>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Hash {
    alg: String,
    content: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct License {
    expression: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    reference: String,
    depends_on: Vec<String>,
}

/// What is used of `cargo metadata`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<NodeDependency>,
}

#[derive(Debug, Deserialize)]
struct NodeDependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Debug, Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// Writes the list, and says where.
pub(crate) fn write(workspace: &Workspace, list: &List, step: &mut Step) -> anyhow::Result<()> {
    let platform = platform();
    let metadata = workspace.cargo(&["metadata", "--format-version", "1", "--locked", "--filter-platform", &platform]);
    let bom = made(metadata, &fs::read_to_string(workspace.root.join("Cargo.lock"))?)?;
    let path = list.output.clone().unwrap_or_else(|| workspace.root.join("target/firkin.cdx.json"));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&path, serde_json::to_string_pretty(&bom)? + "\n")?;
    say(&format!("{} components in {}", bom.components.len(), path.display()));
    step.passed(1);
    Ok(())
}

/// The platform that is built on, and for.
fn platform() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

fn made(mut metadata: Command, lock: &str) -> anyhow::Result<Bom> {
    let output = metadata.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot run `cargo metadata`")?;
    if !output.status.success() {
        bail!("`cargo metadata` failed: {}", output.status);
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cannot understand what `cargo metadata` says")?;
    let product = reached(&metadata);
    let here: BTreeMap<(&str, &str), &Package> =
        metadata.packages.iter().map(|package| ((package.name.as_str(), package.version.as_str()), package)).collect();
    let references: BTreeMap<&str, String> =
        metadata.packages.iter().map(|package| (package.id.as_str(), purl(&package.name, &package.version))).collect();
    let known = |crate_: &Locked| here.get(&(crate_.name.as_str(), crate_.version.as_str())).copied();
    let mut components: Vec<Component> = locked(lock).iter().map(|crate_| component(crate_, known(crate_), &product)).collect();
    components.extend(HOST_PACKAGES.iter().map(|name| host_package(name)));
    components.sort_by(|one, other| one.reference.cmp(&other.reference));
    let position = components.iter().position(|component| component.name == PRODUCT[0]).context("the product is a package")?;
    let component = components.remove(position);
    let mut dependencies: Vec<Dependency> = metadata.resolve.nodes.iter().map(|node| dependency(node, &references)).collect();
    dependencies.sort_by(|one, other| one.reference.cmp(&other.reference));
    Ok(Bom {
        bom_format: "CycloneDX".to_owned(),
        spec_version: "1.5".to_owned(),
        version: 1,
        metadata: BomMetadata { component: Component { kind: "application".to_owned(), ..component } },
        components,
        dependencies,
    })
}

/// A crate, with what is known of it where it is built here.
fn component(crate_: &Locked, here: Option<&Package>, product: &BTreeSet<&str>) -> Component {
    let purl = purl(&crate_.name, &crate_.version);
    // Before there were expressions, a slash stood for a choice.
    let license = here.and_then(|package| package.license.as_ref());
    let license = license.map(|license| License { expression: license.replace('/', " OR ") });
    let required = here.is_some_and(|package| product.contains(package.id.as_str()));
    let hash = crate_.checksum.as_ref().map(|content| Hash { alg: "SHA-256".to_owned(), content: content.clone() });
    Component {
        kind: "library".to_owned(),
        reference: purl.clone(),
        name: crate_.name.clone(),
        version: Some(crate_.version.clone()),
        purl,
        scope: Some(if required { "required" } else { "excluded" }.to_owned()),
        hashes: hash.into_iter().collect(),
        licenses: license.into_iter().collect(),
    }
}

fn dependency(node: &Node, references: &BTreeMap<&str, String>) -> Dependency {
    let reference = |id: &str| references.get(id).cloned().unwrap_or_default();
    let depends_on: BTreeSet<String> = node.deps.iter().map(|dependency| reference(&dependency.pkg)).collect();
    Dependency { reference: reference(&node.id), depends_on: depends_on.into_iter().collect() }
}

/// Ids of what the product is built of: not what only tests need.
fn reached(metadata: &Metadata) -> BTreeSet<&str> {
    let nodes: BTreeMap<&str, &Node> = metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let own = |package: &&Package| package.source.is_none() && PRODUCT.contains(&package.name.as_str());
    let mut pending: Vec<&str> = metadata.packages.iter().filter(own).map(|package| package.id.as_str()).collect();
    let mut found = BTreeSet::new();
    while let Some(id) = pending.pop() {
        if found.insert(id) {
            let needed = nodes.get(id).into_iter().flat_map(|node| &node.deps);
            let kept = needed.filter(|needed| needed.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev")));
            pending.extend(kept.map(|needed| needed.pkg.as_str()));
        }
    }
    found
}

/// A package of Debian, in the version that this host has, if it has one.
fn host_package(name: &str) -> Component {
    let mut ask = Command::new("dpkg-query");
    ask.args(["--show", "--showformat=${Version}", name]).stdin(Stdio::null()).stderr(Stdio::null());
    let version = ask.output().ok().filter(|output| output.status.success());
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).filter(|version| !version.is_empty());
    let at = version.as_ref().map(|version| format!("@{}", escaped(version))).unwrap_or_default();
    let purl = format!("pkg:deb/debian/{name}{at}");
    Component {
        kind: "application".to_owned(),
        reference: purl.clone(),
        name: name.to_owned(),
        version,
        purl,
        scope: Some("required".to_owned()),
        hashes: Vec::new(),
        licenses: Vec::new(),
    }
}

/// The name of a crate among all packages of all kinds.
fn purl(name: &str, version: &str) -> String {
    format!("pkg:cargo/{name}@{}", escaped(version))
}

/// A version as a part of a URL.
fn escaped(version: &str) -> String {
    version.replace('%', "%25").replace(':', "%3A").replace('+', "%2B")
}

/// A crate as it is locked. Our own have no archive.
#[derive(Debug)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// Reads `Cargo.lock`.
fn locked(lock: &str) -> Vec<Locked> {
    let value = |block: &str, field: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(" = "));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    let read = |block: &str| {
        let (name, version) = (value(block, "name")?, value(block, "version")?);
        Some(Locked { name, version, checksum: value(block, "checksum") })
    };
    lock.split("[[package]]").skip(1).filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn every_locked_dependency_is_in_the_list() {
        let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
        let mut metadata = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        metadata
            .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform()])
            .current_dir(root());
        let text = serde_json::to_string(&made(metadata, &lock).unwrap()).unwrap();
        let bom: Bom = serde_json::from_str(&text).unwrap();
        assert_eq!((bom.bom_format.as_str(), bom.spec_version.as_str()), ("CycloneDX", "1.5"));
        assert_eq!(bom.metadata.component.name, "firkin");

        let of = |name: &str, version: &str| {
            let version = Some(version.to_owned());
            let mut found = bom.components.iter().chain([&bom.metadata.component]);
            found.find(|component| component.name == name && component.version == version)
        };
        let locked = locked(&lock);
        assert_eq!(locked.len(), lock.matches("\nversion = \"").count());
        for Locked { name, version, checksum } in &locked {
            let component = of(name, version).unwrap_or_else(|| panic!("{name} {version} is missing"));
            assert_eq!(component.hashes.iter().map(|hash| &hash.content).collect::<Vec<_>>(), Vec::from_iter(checksum));
            assert!(checksum.is_some() || name.starts_with("firkin") || name == "xtask", "{name} has a digest");
            assert!(component.purl.starts_with(&format!("pkg:cargo/{name}@")), "{}", component.purl);
            assert!(component.scope.as_deref() != Some("required") || component.licenses.len() == 1, "{name} has a licence");
        }
        assert_eq!(lock.matches("[[package]]").count(), bom.components.len() + 1 - HOST_PACKAGES.len());
        let scope = |name: &str| bom.components.iter().find(|component| component.name == name).unwrap().scope.as_deref();
        assert_eq!(
            (scope("tokio"), scope("firkin-guest"), scope("proptest")),
            (Some("required"), Some("required"), Some("excluded"))
        );
        let known: BTreeSet<&str> =
            bom.components.iter().chain([&bom.metadata.component]).map(|component| component.reference.as_str()).collect();
        assert_eq!(known.len(), bom.components.len() + 1, "each has a name of its own");
        for dependency in &bom.dependencies {
            assert!(known.contains(dependency.reference.as_str()));
            assert!(dependency.depends_on.iter().all(|reference| known.contains(reference.as_str())), "{dependency:?}");
        }
    }

    #[test]
    fn the_list_has_the_packages_that_set_up_installs() {
        let checks = fs::read_to_string(root().join("crates/cli/src/host/checks.rs")).unwrap();
        let setup = fs::read_to_string(root().join("crates/cli/src/host/setup.rs")).unwrap();
        let product = |text: &str| text.split("#[cfg(test)]").next().unwrap().to_owned();
        let (checks, setup) = (product(&checks), product(&setup));
        // A row of the programs that are looked for: name, programs, package, reason.
        let rows = checks.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split_once("]")?.1.split('"').nth(1));
        let single = checks.split("Lack::Package(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let named = |name: &str| setup.split(&format!("const {name}: &str = \"")).nth(1).and_then(|rest| rest.split('"').next());
        let newer = ["QEMU", "GVISOR", "MAKES_IMAGES"].into_iter().filter_map(named);
        let installed: BTreeSet<&str> = rows.chain(single).chain(newer).collect();
        assert_eq!(installed, BTreeSet::from(HOST_PACKAGES));
    }
}
