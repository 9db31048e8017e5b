//! A jail: what is made once for a program, and its processes.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
    process::{Child, Command},
};

use seccompiler::BpfProgram;

use crate::{
    Confinement, Network, Part, Program, Standing, child,
    filter::compile,
    part::Held,
    paths, program,
    root::{self, Root},
    spawn::start,
    survey,
};

/// The jail of one program, for any number of processes of it.
#[derive(Debug)]
pub struct Jail {
    parts: Vec<(Part, Standing)>,
    held: Held,
    root: Option<Root>,
    filter: BpfProgram,
}

impl Jail {
    /// A jail of all parts that this host gives. Takes as long as it takes to copy the program, and some milliseconds.
    pub fn new(program: &Program<'_>) -> Self {
        let root = program::files(program).and_then(|files| root::make(&files, program.devices));
        let filter = compile(program.calls);
        let (held, parts) = survey::tried(&root, &filter);
        Self { parts, held, root: root.ok().filter(|_| held.has(Part::Files)), filter: filter.unwrap_or_default() }
    }

    /// How each part stands.
    pub fn parts(&self) -> &[(Part, Standing)] {
        &self.parts
    }

    /// The parts that this host does not give, and why.
    pub fn lacking(&self) -> impl Iterator<Item = (Part, &str)> {
        self.parts.iter().filter_map(|(part, standing)| match standing {
            Standing::Held => None,
            Standing::Lacking(reason) => Some((*part, reason.as_str())),
        })
    }

    /// Starts `command`, whose program is to be named as in [`Program::path`]. Blocking. No failure leaves a process behind.
    ///
    /// The child is the first process of its pid namespace: it ends by SIGKILL from outside, by its own faults and by signals that
    /// it handles; others pass it by.
    pub fn spawn(&self, command: Command, confinement: Confinement) -> io::Result<Child> {
        let root = self.root.as_ref();
        let rules = root.filter(|_| self.held.has(Part::Paths)).map(|root| paths::rules(root.top.as_fd(), &confinement.handed));
        let plan = child::Plan {
            held: self.held,
            uid: confinement.uid,
            id_map: format!("{0} {0} 1\n", confinement.uid).into_bytes(),
            network: match &confinement.network {
                Network::Enter(namespace) => Some(namespace.as_raw_fd()),
                Network::Fresh => None,
            },
            groups: confinement.groups.iter().map(AsRawFd::as_raw_fd).collect(),
            root: root.map(|root| root.namespace.as_raw_fd()),
            rules: rules.transpose()?,
            limits: confinement.limits,
            huge_pages: confinement.huge_pages,
            handed: confinement.handed.iter().map(AsRawFd::as_raw_fd).collect(),
            then: child::Then::Run,
        };
        start(command, plan, self.held.has(Part::Calls).then_some(self.filter.as_slice()))
    }
}
