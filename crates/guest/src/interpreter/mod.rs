//! The code interpreter: what `run_code` of E2B's code interpreter SDK talks to, on port 49999.
//!
//! ```text
//!   POST /execute ─► context ─► kernel: a process group that reads cells and writes events, one JSON object a line
//!                                 ├─ firkin_python.py   IPython's shell
//!                                 ├─ firkin_bash.py     drives one interactive bash
//!                                 ├─ firkin_node.py     drives cells.js: JavaScript, and TypeScript without its types
//!                                 └─ firkin_framed.py   drives cells.R, or Cells.java with the JDK's own shell
//! ```
//!
//! All are forked from one process, `zygote.py`, that has loaded what they need: a new context takes no longer than a fork.
//!
//! There is no Jupyter between: its messages would be translated twice to end as the same lines, and its server is one more
//! thing to start, restore and keep alive. What a notebook shows comes from IPython either way. Kernels run as root in
//! `/home/user`, as the contract has it. The interpreter is served where IPython is installed; Python's default kernel is
//! started and has run some cells before `/health` says so, so that a template's snapshot holds it warm.

mod contexts;
mod event;
mod execution;
mod group;
mod http;
mod kernel;
mod language;
mod zygote;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use firkin_causes::chain;
use fs_err as fs;

use crate::{
    envd::{self, EnvdState},
    reaper::Reaper,
};

/// Debian's place of IPython.
const IPYTHON: &str = "/usr/lib/python3/dist-packages/IPython";

/// Working directory of contexts that name none.
const WORKDIR: &str = "/home/user";

/// The kernels' programs.
const PROGRAMS: &[(&str, &str)] = &[
    ("firkin_channel.py", include_str!("kernels/firkin_channel.py")),
    ("firkin_charts.py", include_str!("kernels/firkin_charts.py")),
    ("firkin_fonts.py", include_str!("kernels/firkin_fonts.py")),
    ("firkin_python.py", include_str!("kernels/firkin_python.py")),
    ("firkin_random.py", include_str!("kernels/firkin_random.py")),
    ("firkin_values.py", include_str!("kernels/firkin_values.py")),
    ("firkin_bash.py", include_str!("kernels/firkin_bash.py")),
    ("firkin_node.py", include_str!("kernels/firkin_node.py")),
    ("firkin_framed.py", include_str!("kernels/firkin_framed.py")),
    ("keep.py", include_str!("kernels/keep.py")),
    ("zygote.py", include_str!("kernels/zygote.py")),
    ("cells.js", include_str!("kernels/cells.js")),
    ("imports.js", include_str!("kernels/imports.js")),
    ("renew.js", include_str!("kernels/renew.js")),
    ("cells.R", include_str!("kernels/cells.R")),
    ("Cells.java", include_str!("kernels/Cells.java")),
];

/// How kernels are started.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Where their programs are.
    pub(crate) programs: PathBuf,
    /// Who runs them.
    pub(crate) user: String,
    /// Where contexts work that name no directory.
    pub(crate) workdir: String,
}

impl Setup {
    /// In a sandbox whose root file system is made for it; none elsewhere.
    pub(crate) fn of_sandbox() -> Option<Self> {
        let setup =
            || Self { programs: PathBuf::from(firkin_wire::KERNELS_DIR), user: "root".to_owned(), workdir: WORKDIR.to_owned() };
        std::path::Path::new(IPYTHON).is_dir().then(setup)
    }

    /// Puts the programs where kernels are started from.
    fn install(&self) -> io::Result<()> {
        fs::create_dir_all(&self.programs)?;
        PROGRAMS.iter().try_for_each(|(name, text)| fs::write(self.programs.join(name), text))
    }
}

/// Where it listens in a sandbox.
pub(crate) fn address() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], firkin_wire::INTERPRETER_PORT))
}

/// Serves it from now on and starts the default Python kernel. Needs a runtime.
pub(crate) fn spawn(setup: Setup, listener: TcpListener, state: &EnvdState, reaper: Reaper) -> io::Result<()> {
    setup.install()?;
    let routes = http::routes(contexts::Contexts::new(setup, state.clone(), reaper));
    let state = state.clone();
    // Not joined: it lives as long as the process.
    tokio::spawn(async move {
        if let Err(error) = envd::accept(listener, routes, state).await {
            tracing::error!(error = chain(&error), "the code interpreter is no longer served");
        }
    });
    Ok(())
}
