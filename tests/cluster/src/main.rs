//! `firkin-cluster`: servers that are hosts of their own, what goes wrong between them, and what has to hold all the same.
//!
//! ```text
//!   run ── household: a directory, and namespaces of processes, mounts and networks, in which all the rest lives and with which it ends
//!    └─ inside: one schedule of faults after the other (`schedule.rs`)
//!        ├─ PostgreSQL                      a network namespace each, on one bridge
//!        │   └─ history of all that was written of sandboxes (`history.rs`)
//!        ├─ node 1..3: nodes of one cluster on that, each a server on the fake engine with a peer port and a disk of its own
//!        │   ├─ voices: the process of each machine, which tells the sink that it runs, as whom, and what it remembers
//!        │   └─ warden
//!        ├─ clients, whose log says what they were answered
//!        └─ the sink, whose log says what ran when; a checker holds each against the others (`checker.rs`)
//! ```
//!
//! `load.rs` is of its own: what five nodes do under load, and how long that takes.
//! One more schedule loses a node, always in the same way (`loss.rs`). That and others are run with mutants, too, which have to be caught (`mutant.rs`).
//!
//! `cargo xtask cluster` runs it. A schedule is made of its seed alone, so that one that has failed is run again by that.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Parser, Subcommand};

mod checker;
mod client;
mod disk;
mod envd;
mod faults;
mod guest;
mod history;
mod household;
mod joining;
mod load;
mod loss;
mod mutant;
mod node;
mod postgres;
mod record;
mod run;
mod schedule;
mod server;
mod sink;
mod voice;
mod world;

/// Servers in namespaces, and faults.
#[derive(Debug, Parser)]
#[command(name = "firkin-cluster", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Runs schedules of faults, and fails for whatever did not hold
    Run(run::Plan),
    /// The same, once the namespaces are there
    #[command(hide = true)]
    Init {
        dir: PathBuf,
        #[command(flatten)]
        plan: run::Plan,
    },
    /// The same, below a process that buries the dead
    #[command(hide = true)]
    Inside {
        dir: PathBuf,
        #[command(flatten)]
        plan: run::Plan,
    },
    /// A server
    #[command(hide = true)]
    Node(node::Node),
    /// What a machine is to the world outside
    #[command(hide = true)]
    Voice(voice::Voice),
    /// The process that stops machines
    #[command(hide = true)]
    Warden {
        #[arg(long)]
        page: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().role {
        Role::Run(plan) => household::keep(&plan),
        Role::Init { dir, plan } => household::init(&dir, &plan),
        Role::Inside { dir, plan } => run::run(&dir, &plan),
        Role::Node(node) => node::serve(node),
        Role::Voice(voice) => voice.speak(),
        Role::Warden { page } => {
            node::log();
            firkin_warden::run(&page).map(drop).context("the warden")
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads what is said may be gone.
            tell_error(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever runs this.
#[expect(clippy::print_stdout, reason = "a program of the tests tells how far it is")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

#[expect(clippy::print_stderr, reason = "the last word of a program that has failed")]
fn tell_error(line: &str) {
    eprintln!("{line}");
}
