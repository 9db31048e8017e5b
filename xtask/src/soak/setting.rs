//! On what a soak ran: without that its figures mean nothing.

use std::path::Path;

use anyhow::{Context as _, ensure};
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;

use super::client::text;
use crate::workspace::Workspace;

/// On what it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Setting {
    pub(super) firkin: String,
    pub(super) acceleration: String,
    pub(super) cpu: String,
    pub(super) cpus: usize,
    pub(super) kernel: String,
    /// Users at the same time.
    pub(super) lanes: u64,
}

/// Asks the program, its server and the host.
pub(super) fn read(workspace: &Workspace, state_dir: &Path, lanes: u64) -> anyhow::Result<Setting> {
    let output = workspace.firkin().arg("--version").output().context("cannot run `firkin --version`")?;
    ensure!(output.status.success(), "`firkin --version` failed: {}", output.status);
    let version = String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("firkin ").to_owned();
    let server: Value =
        serde_json::from_slice(&fs::read(state_dir.join("server.json"))?).context("cannot understand `server.json`")?;
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Setting {
        firkin: version,
        acceleration: text(&server, "/acceleration")?,
        cpu: model.map_or("unknown", |(_, model)| model).to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        lanes,
    })
}
