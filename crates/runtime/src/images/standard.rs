//! Templates that every host can make of root images of its own: what they are made of, and what is done in them before the snapshot.

use std::{collections::BTreeMap, time::Duration};

use firkin_engine::{Acceleration, Processor};
use firkin_wire::{INTERPRETER_PORT, KERNELS_DIR};
use serde::Serialize;

use crate::{
    ground::reference::{BASE, CODE_INTERPRETER, MCP_GATEWAY},
    images::root_image::RootImage,
    machine::guest_file::GuestFile,
};

/// One of the host's own templates, and how to build it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildTemplate {
    /// Name, e.g. `base`. An existing template of that name is replaced for new sandboxes.
    pub name: String,
    /// Virtual CPUs of its sandboxes.
    pub cpus: u32,
    /// Memory of its sandboxes in MiB.
    pub memory_mib: u32,
    /// Whether its guests may run guests: they are shown the host's virtualisation.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub nested_virtualization: bool,
    /// What its sandboxes run on; none: the first of the host's engines.
    #[serde(skip)]
    pub engine: Option<Acceleration>,
    /// Root image to build on; none: the one of the host's guest system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<RootImage>,
    /// Files put there before the commands are run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<GuestFile>,
    /// Environment of its sandboxes' commands.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Commands run as root, in order, before the snapshot.
    pub setup: Vec<String>,
    /// Command left running in the snapshot, as the default user.
    pub start: Option<String>,
    /// Command that exits 0 when the template is ready, as the default user.
    pub ready: Option<String>,
    /// How long to wait for that.
    pub ready_deadline: Duration,
}

impl BuildTemplate {
    /// What its guests see of the processor.
    pub(crate) fn processor(&self) -> Processor {
        if self.nested_virtualization { Processor::Nested } else { Processor::Plain }
    }

    /// The template that every server has. Its ready command runs what most first commands need, so that those pages are
    /// in the snapshot's memory.
    pub fn base() -> Self {
        Self {
            name: BASE.to_owned(),
            cpus: 1,
            memory_mib: 512,
            nested_virtualization: false,
            engine: None,
            root: None,
            files: Vec::new(),
            env: BTreeMap::new(),
            setup: Vec::new(),
            start: None,
            ready: Some("python3 -c 'import json, sys' && true | cat && echo ready".to_owned()),
            ready_deadline: Duration::from_secs(120),
        }
    }

    /// The template of E2B's code interpreter SDK, with its processors and memory. Its root image must have IPython, so that its guest
    /// serves the interpreter, which is healthy once Python's kernel is warm: then it is warm in the snapshot.
    pub fn code_interpreter() -> Self {
        let base = Self::base();
        // Healthy says that Python's kernel is warm; the rest is for warm sessions, whose emulator has forgotten what it translated.
        let url = format!("http://127.0.0.1:{INTERPRETER_PORT}");
        let warm = format!("curl -sf {url}/health && curl -sfX POST {url}/warm-up");
        let keep = format!("python3 -B {KERNELS_DIR}/keep.py");
        Self {
            name: CODE_INTERPRETER.to_owned(),
            cpus: 2,
            memory_mib: 2048,
            setup: vec![keep],
            ready: base.ready.as_ref().map(|ready| format!("{ready} && {warm}")),
            ready_deadline: Duration::from_secs(600),
            ..base
        }
    }

    /// The template of sandboxes with MCP servers: `base` with the gateway, which the SDK starts, and memory for servers.
    pub fn mcp_gateway(program: &'static [u8]) -> Self {
        let gateway = GuestFile { path: "/usr/local/bin/mcp-gateway".to_owned(), mode: 0o755, content: program };
        Self { name: MCP_GATEWAY.to_owned(), memory_mib: 1024, files: vec![gateway], ..Self::base() }
    }
}
