//! The steps that are one call of cargo or of our own binary.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context as _;

use crate::{advisories, run::Step};

/// The package of tests that run virtual machines.
const VM_TESTS: &str = "firkin-vm-tests";

/// Engines that run machines, and the doctor's check of the first, as the product calls them.
const KVM: &str = "kvm";
const EMULATED: &str = "emulated";

/// What tests leave free on the disk, MiB: enough that nobody runs into its end. They hold on a disk that is fuller than a host should be.
const DISK_FLOOR_MIB: &str = "1024";

/// Where the project and its binaries are.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    /// The root of the repository.
    pub(crate) root: PathBuf,
    /// The directory that cargo puts binaries of the dev profile into; this program runs from there.
    pub(crate) binaries: PathBuf,
    /// The cache directory of the product, where it is not the host's.
    product_cache: Option<PathBuf>,
    /// What its sandboxes run on, where that is not its own choice.
    engine: Option<&'static str>,
}

impl Workspace {
    /// Finds the workspace from where this program was built and from where it runs.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package is inside the workspace")?.to_owned();
        let program = std::env::current_exe().context("cannot find this program's own path")?;
        let binaries = program.parent().context("a program is in a directory")?.to_owned();
        Ok(Self { root, binaries, product_cache: None, engine: None })
    }

    /// A directory for what this program keeps between runs.
    pub(crate) fn cache(&self) -> PathBuf {
        self.binaries.join("xtask-cache")
    }

    /// The `firkin` command line that was built.
    pub(crate) fn firkin(&self) -> Command {
        let mut command = Command::new(self.binaries.join("firkin"));
        command.current_dir(&self.root);
        if let Some(cache) = &self.product_cache {
            command.env("FIRKIN_CACHE_DIR", cache);
        }
        command.envs(self.variables());
        command
    }

    /// Builds the `firkin` that users have, and gives where it is.
    pub(crate) fn release_build(&self, step: &mut Step) -> anyhow::Result<PathBuf> {
        step.run(&mut self.cargo(&["build", "--release", "--package", "firkin"]))?;
        Ok(self.binaries.with_file_name("release").join("firkin"))
    }

    /// What tells the product, and those who start it, of its engine and of the room that it leaves on the disk.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.engine.map(|engine| ("FIRKIN_ENGINE", engine)).into_iter().chain([("FIRKIN_DISK_FLOOR", DISK_FLOOR_MIB)])
    }

    /// Which engine runs machines on this host: `kvm` where the product's own trial shows that it works.
    pub(crate) fn engine_of_machines(&self) -> anyhow::Result<&'static str> {
        let output =
            self.firkin().args(["doctor", "--json", "--engine", EMULATED]).output().context("cannot run `firkin doctor`")?;
        let checks: Vec<serde_json::Value> =
            serde_json::from_slice(&output.stdout).context("cannot read what the doctor found")?;
        let kvm = checks.iter().find(|check| check["name"] == KVM).context("the doctor says nothing of KVM")?;
        Ok(if kvm["status"] == "ok" { KVM } else { EMULATED })
    }

    /// The same workspace, whose product has a cache directory of its own.
    pub(crate) fn with_product_cache(&self, cache: &Path) -> Self {
        Self { product_cache: Some(cache.to_owned()), ..self.clone() }
    }

    /// The same workspace, whose product runs sandboxes on this engine.
    pub(crate) fn with_engine(&self, engine: &'static str) -> Self {
        Self { engine: Some(engine), ..self.clone() }
    }

    /// Whether the emulator was chosen.
    pub(crate) fn is_emulated(&self) -> bool {
        self.engine == Some(EMULATED)
    }

    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// Whether an optional part of the tool chain is there.
    fn has(&self, component: &str) -> bool {
        let asked = self.cargo(&[component, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        asked.is_ok_and(|status| status.success())
    }

    pub(crate) fn formatting(&self, step: &mut Step) -> anyhow::Result<()> {
        if !self.has("fmt") {
            step.skip("rustfmt is not installed");
            return Ok(());
        }
        step.run(&mut self.cargo(&["fmt", "--all", "--check"]))
    }

    pub(crate) fn lints(&self, step: &mut Step) -> anyhow::Result<()> {
        if !self.has("clippy") {
            step.skip("clippy is not installed");
            return Ok(());
        }
        step.run(&mut self.cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
    }

    /// Versions, licences and sources of all crates. One version of each is held by a rule of `xtask/tests` too.
    pub(crate) fn dependencies(&self, step: &mut Step) -> anyhow::Result<()> {
        if !self.has("deny") {
            step.skip("cargo-deny is not installed (`cargo install --locked cargo-deny`): licences and sources were not checked");
            return Ok(());
        }
        step.run(&mut self.cargo(&["deny", "check", "bans", "licenses", "sources"]))
    }

    /// What is known against them.
    pub(crate) fn advisories(&self, step: &mut Step) -> anyhow::Result<()> {
        advisories::check(step, &self.root, |arguments| self.cargo(arguments))
    }

    pub(crate) fn build(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.cargo(&["build", "--package", "firkin"]))
    }

    /// The product, and the programs that its tests with machines run.
    pub(crate) fn build_all(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.cargo(&["build", "--workspace"]))
    }

    /// What the product needs of the host, set up by the product itself.
    pub(crate) fn host_set_up(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(self.firkin().args(["doctor", "--fix", "--yes"]))
    }

    pub(crate) fn tidiness(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.cargo(&["test", "--quiet", "--package", "xtask"]))
    }

    pub(crate) fn unit_tests(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.cargo(&["test", "--workspace", "--exclude", VM_TESTS]))
    }

    pub(crate) fn vm_tests(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(&mut self.cargo(&["test", "--package", VM_TESTS]))
    }

    pub(crate) fn documentation(&self, step: &mut Step) -> anyhow::Result<()> {
        step.run(self.cargo(&["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-D warnings"))
    }
}
