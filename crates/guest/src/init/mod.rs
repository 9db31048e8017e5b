//! PID 1: from an empty initramfs to a machine that answers its host.
//!
//! ```text
//!   mount proc, sys, dev ─► load modules ─► firkin.probe=1? ─► power off (the probe succeeded)
//!                                        └► wait for /dev/vda ─► mount it ─► switch root ─► mount the rest ─► lo up ─► serve
//! ```
//!
//! A step that fails ends the machine with a reset, which the host tells from a clean power-off. In a container only the last step is
//! this program's: the rest is there before it.

mod modules;
mod mounts;
mod nodes;
mod tasks;
mod text;

use std::{convert::Infallible, io, net::SocketAddr, process::ExitCode};

use firkin_causes::chain;
use firkin_wire::control::PROBE;
use nix::sys::resource::{Resource, setrlimit};

use self::{modules::ModuleError, mounts::MountError};
use crate::{
    control::{self, ControlError, NetworkError, Surroundings},
    envd::{self, EnvdState, ServeError},
    interpreter, logging, power,
    reaper::Reaper,
    sudo,
};

/// Why the machine does not come up.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cannot mount the file systems")]
    Mount(#[from] MountError),
    #[error("cannot load the kernel modules")]
    Modules(#[from] ModuleError),
    #[error("cannot bring the network up")]
    Network(#[from] NetworkError),
    #[error("cannot start the reaper")]
    Reaper(#[source] io::Error),
    #[error("cannot serve envd")]
    Serve(#[from] ServeError),
    #[error("cannot serve the control channel")]
    Control(#[from] ControlError),
}

/// Runs the machine. Returns only when that failed and the machine could not even be reset.
pub(crate) fn run() -> ExitCode {
    ended(boot())
}

/// Runs the container whose first process this is. Returns only when that failed.
pub(crate) fn run_in_container() -> ExitCode {
    ended(boot_container())
}

fn ended(booted: Result<Infallible, BootError>) -> ExitCode {
    let error = match booted {
        Ok(never) => match never {},
        Err(error) => error,
    };
    logging::complain(&format!("firkin-guest: {}", chain(&error)));
    power::reset();
    ExitCode::FAILURE
}

fn boot() -> Result<Infallible, BootError> {
    mounts::early()?;
    logging::start();
    modules::load()?;
    let cmdline = fs_err::read_to_string("/proc/cmdline").unwrap_or_default();
    if cmdline.split_whitespace().any(|word| word == PROBE) {
        power::off();
    }
    mounts::switch_root()?;
    mounts::late()?;
    nodes::make();
    mounts::open_to_everyone();
    raise_limits();
    raise_inotify();
    control::loopback_up()?;
    serve(Surroundings::Machine)
}

/// Kernel, file systems and loopback are there; the rest of what PID 1 owes to its processes is the same.
fn boot_container() -> Result<Infallible, BootError> {
    logging::start();
    raise_limits();
    // So that a console has a word on it before anything goes wrong.
    logging::complain(concat!("firkin-guest ", env!("CARGO_PKG_VERSION"), " is the first process of a container"));
    if let Err(error) = tasks::bound() {
        tracing::warn!(%error, "cannot bound the number of processes");
    }
    if let Err(error) = text::make_writable() {
        tracing::warn!(%error, "the runtime may end this process for an instruction on two pages");
    }
    serve(Surroundings::Container)
}

/// A sandbox without it is still a sandbox.
fn stand_in_for_sudo(state: &EnvdState, reaper: &Reaper) {
    // Where the image's own works, nobody is asked but that.
    let stand_in = || if sudo::take_place(reaper)? { sudo::start(state.clone(), reaper.clone()) } else { Ok(()) };
    if let Err(error) = stand_in() {
        tracing::error!(%error, "cannot stand in for sudo");
    }
}

fn serve(surroundings: Surroundings) -> Result<Infallible, BootError> {
    let state = EnvdState::default();
    let reaper = Reaper::of_process().map_err(BootError::Reaper)?;
    if surroundings == Surroundings::Container {
        stand_in_for_sudo(&state, &reaper);
    }
    let runtime = envd::runtime()?;
    let listener = envd::bind(SocketAddr::from(([0, 0, 0, 0], firkin_wire::ENVD_PORT)))?;
    control::start(state.clone(), reaper.clone(), surroundings)?;
    let routes = {
        let _guard = runtime.enter();
        interpret(&state, &reaper);
        envd::routes(&state, reaper)
    };
    runtime.block_on(envd::serve(listener, routes, state))?;
    unreachable!("envd serves for ever")
}

/// Serves the code interpreter where the root file system is made for it. A sandbox without one is still a sandbox.
fn interpret(state: &EnvdState, reaper: &Reaper) {
    let Some(setup) = interpreter::Setup::of_sandbox() else { return };
    let listener = match envd::bind(interpreter::address()) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(error = chain(&error), "cannot serve the code interpreter"),
    };
    if let Err(error) = interpreter::spawn(setup, listener, state, reaper.clone()) {
        tracing::error!(%error, "cannot set up the code interpreter");
    }
}

/// The kernel gives PID 1 1024 files. Commands inherit the limit, and servers among them want more.
fn raise_limits() {
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, 65_536, 1_048_576) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// The kernel allows a user 128 watchers; each one of envd's clients, and many a build tool, takes one.
fn raise_inotify() {
    if let Err(error) = fs_err::write("/proc/sys/fs/inotify/max_user_instances", "8192") {
        tracing::warn!(%error, "cannot raise the limit of inotify instances");
    }
}
