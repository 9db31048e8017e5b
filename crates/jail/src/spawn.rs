//! The birth of a process in a jail: the fork, and what is tried before anything depends on it.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    process::{Child, Command},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use seccompiler::sock_filter;

use crate::{Limits, Part, child, part::Held, paths, root::Root};

/// Whom the trial of a part is: a user with no rights.
const TRIAL_UID: u32 = 65_534;

/// A process that puts parts on and ends.
pub(crate) struct Trial<'a> {
    pub(crate) held: Held,
    pub(crate) root: Option<&'a Root>,
    pub(crate) filter: &'a [sock_filter],
}

impl Trial<'_> {
    pub(crate) fn run(self) -> io::Result<()> {
        let Self { held, root, filter } = self;
        let rules = root.filter(|_| held.has(Part::Paths)).map(|root| paths::rules(root.top.as_fd(), &[])).transpose()?;
        let plan = child::Plan {
            held,
            uid: TRIAL_UID,
            id_map: format!("{TRIAL_UID} {TRIAL_UID} 1\n").into_bytes(),
            network: None,
            groups: Vec::new(),
            root: root.filter(|_| held.has(Part::Files)).map(|root| root.namespace.as_raw_fd()),
            rules,
            limits: Limits { file_bytes: 0, descriptors: 64, threads: 1 },
            huge_pages: true,
            handed: Vec::new(),
            then: child::Then::End,
        };
        // Nothing is run: the child ends before it would.
        let mut command = Command::new("/");
        command.current_dir("/");
        let status = start(command, plan, held.has(Part::Calls).then_some(filter))?.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("the trial ended with {status}"))) }
    }
}

#[expect(unsafe_code, reason = "code between fork and exec is unsafe by its nature")]
pub(crate) fn start(mut command: Command, plan: child::Plan, filter: Option<&[sock_filter]>) -> io::Result<Child> {
    let new_pids = plan.held.has(Part::Processes);
    let filter = filter.map(<[sock_filter]>::to_vec);
    // SAFETY: the closure runs in the forked child, where only async-signal-safe calls are allowed: `child::enter` makes raw
    // system calls and allocates nothing. What it borrows was allocated before the fork.
    unsafe { command.pre_exec(move || child::enter(&plan, filter.as_deref())) };
    if !new_pids {
        return command.spawn();
    }
    // The next child of this thread, and every later one of this thread only, is born into the new namespace.
    thread::scope(|scope| {
        let born = thread::Builder::new().name("firkin-birth".into()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWPID)?;
            command.spawn()
        })?;
        born.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
