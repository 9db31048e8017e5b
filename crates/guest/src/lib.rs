//! The agent inside a sandbox: PID 1, the control channel, envd, the code interpreter.
//!
//! One static binary with some ways to run. As PID 1 it is the initramfs's `/init` and becomes the whole user space of the
//! guest. As `firkin-guest container` it is that in a container, whose kernel and file systems somebody else has set up. As
//! `firkin-guest envd` it serves only envd on an ordinary host, so that the contract can be tested without a machine. As
//! `firkin-guest changes`, in a container, it tells what that has changed of its root image. And as `sudo` it asks its own first process,
//! where the image's cannot work.

mod alone;
mod args;
mod changes;
mod control;
mod envd;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod init;
mod interpreter;
mod logging;
mod power;
mod readiness;
mod reaper;
mod spawner;
mod sudo;
mod told;
mod volumes;

use std::process::ExitCode;

/// Runs as what its process id and its command line say.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| sudo::is_meant(&program)) {
        return sudo::run(words);
    }
    let mut args = std::env::args().skip(1).peekable();
    // A container may run the stand-alone mode as its PID 1, so the words on the command line come first.
    let first = nix::unistd::getpid().as_raw() == 1;
    if first && args.peek().is_none_or(|word| word != args::ENVD && word != args::CONTAINER) {
        return init::run();
    }
    match args::parse(args) {
        Ok(args::Mode::Version) => logging::say(concat!("firkin-guest ", env!("CARGO_PKG_VERSION"))),
        Ok(args::Mode::Envd(options)) => alone::run(*options),
        Ok(args::Mode::Container) => init::run_in_container(),
        Ok(args::Mode::Changes) => changes::run(),
        Ok(args::Mode::IsRoot) => ExitCode::from(u8::from(!nix::unistd::geteuid().is_root())),
        Err(error) => {
            logging::complain(&format!("{error}\nusage: {}", args::USAGE));
            ExitCode::from(2)
        }
    }
}
