//! Builds the guest agent and the guest's MCP gateway with a cargo of its own.
//!
//! The agent is static (there is no C library in an initramfs), small, and made for the guest whatever the host's profile is,
//! so it cannot be an ordinary dependency. It gets a target directory of its own, below that of the outer cargo: that one is
//! locked while this runs. `FIRKIN_GUEST` names a finished agent to embed instead; the gateway
//! is then the file `mcp-gateway` beside it.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const PROFILE: &str = "guest";

/// What the outer cargo says about its own build, which is not true of the inner one.
const OUTER: &[&str] = &[
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_BUILD_BUILD_DIR",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "CLIPPY_ARGS",
];

fn main() {
    println!("cargo::rerun-if-env-changed=FIRKIN_GUEST");
    // A binary that this script built is not named as an input of it: it is newer than the script's start, so that the next
    // cargo would build it again. What it is built from is named instead, and the compiler tracks the embedded file itself.
    let binary = match std::env::var_os("FIRKIN_GUEST") {
        Some(path) => finished(Path::new(&path)),
        None => build(),
    };
    let gateway = binary.with_file_name("mcp-gateway");
    println!("cargo::rustc-env=FIRKIN_GUEST_BINARY={}", binary.display());
    println!("cargo::rustc-env=FIRKIN_MCP_GATEWAY_BINARY={}", gateway.display());
}

fn finished(path: &Path) -> PathBuf {
    println!("cargo::rerun-if-changed={}", path.display());
    std::fs::canonicalize(path).unwrap_or_else(|error| fail(&format!("cannot embed FIRKIN_GUEST=`{}`: {error}", path.display())))
}

fn build() -> PathBuf {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = here.ancestors().nth(2).expect("this crate is two directories below the workspace").to_path_buf();
    for input in ["crates/guest", "crates/mcp", "crates/wire", "crates/files", "crates/causes", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let target_dir = outer_target_dir().join("guest");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args([
        "build",
        "--quiet",
        "--package",
        "firkin-guest",
        "--package",
        "firkin-mcp",
        "--profile",
        PROFILE,
        "--target",
        TARGET,
    ]);
    cargo.arg("--target-dir").arg(&target_dir).current_dir(&workspace);
    for name in OUTER {
        cargo.env_remove(name);
    }
    // The job server's variables stay: both cargos together use the machine's cores once.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = cargo.output().unwrap_or_else(|error| fail(&format!("cannot start cargo for the guest's programs: {error}")));
    if !output.status.success() {
        fail(&format!("cannot build the guest's programs:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    target_dir.join(TARGET).join(PROFILE).join("firkin-guest")
}

/// The target directory that cargo uses for this build: the nearest directory above ours that cargo has tagged.
fn outer_target_dir() -> PathBuf {
    let out = PathBuf::from(variable("OUT_DIR"));
    let tagged = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    tagged.unwrap_or_else(|| fail("cannot find cargo's target directory above OUT_DIR")).to_path_buf()
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| fail(&format!("cannot run outside cargo: {name} is not set")))
}

#[expect(clippy::exit, reason = "this is how a build script fails with a sentence")]
fn fail(message: &str) -> ! {
    for line in message.lines() {
        println!("cargo::error={line}");
    }
    exit(1);
}
