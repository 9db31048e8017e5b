//! The stand-alone mode: what a sandbox serves, on an ordinary host, so that the contract can be tested without a machine.
//!
//! What the control channel says in a sandbox is said by flags, and what a restore does is done by a signal.

use std::{net::SocketAddr, process::ExitCode};

use firkin_causes::chain;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    args::Options,
    envd::{self, EnvdState, ServeError, Settings, sandbox_env},
    interpreter, logging,
    reaper::Reaper,
};

/// Serves envd on an ordinary host until it is killed. Prints the address once it listens. SIGUSR1 stands for what a restore
/// does: another era begins, and a line says so.
pub(crate) fn run(options: Options) -> ExitCode {
    logging::start();
    let state = EnvdState::default();
    state.set(Settings {
        access_token: options.token,
        default_user: options.default_user,
        default_workdir: options.default_workdir,
        env: sandbox_env(&options.sandbox_id, &options.template_id, &options.env),
    });
    let run = || -> Result<(), ServeError> {
        let runtime = envd::runtime()?;
        let reaper = Reaper::of_process().map_err(ServeError::Runtime)?;
        let listener = envd::bind(options.listen)?;
        let address = listener.local_addr().map_err(ServeError::Runtime)?;
        let routes = {
            let _guard = runtime.enter();
            begin_eras(state.clone()).map_err(ServeError::Runtime)?;
            if let Some(setup) = options.interpreter {
                let listener = envd::bind(SocketAddr::new(address.ip(), 0))?;
                let also = listener.local_addr().map_err(ServeError::Runtime)?;
                interpreter::spawn(setup, listener, &state, reaper.clone()).map_err(ServeError::Runtime)?;
                logging::say(&format!("interpreter on {also}"));
            }
            envd::routes(&state, reaper)
        };
        logging::say(&format!("listening on {address}"));
        runtime.block_on(envd::serve(listener, routes, state.clone()))
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::complain(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Begins another era at each SIGUSR1. Needs a runtime.
fn begin_eras(state: EnvdState) -> std::io::Result<()> {
    let mut asked = signal(SignalKind::user_defined1())?;
    // Not joined: it lives as long as the process.
    tokio::spawn(async move {
        while asked.recv().await.is_some() {
            state.begin_era();
            logging::say("another era");
        }
    });
    Ok(())
}
