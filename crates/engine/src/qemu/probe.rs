//! Which acceleration this host has, found out by running a guest with it.
//!
//! That `/dev/kvm` opens proves nothing: there are hosts where a virtual machine can be made and its guest then hangs or
//! aborts. So a kernel is booted with `firkin.probe=1`, on which the guest's init powers off at once, and only a clean power-off
//! within the deadline counts. Emulation depends on nothing but the binary and is believed once the binary answers. The
//! [`verdict`] says what of this is remembered.

mod trial;
mod verdict;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::{
    trial::{Guest, Trial},
    verdict::{Fallback, Key, Verdict},
};
use super::QemuEngine;
use crate::{Acceleration, Fingerprint, StartError};

pub use self::verdict::last_fallback;

/// The binary that is looked for.
const PROGRAM: &str = "qemu-system-x86_64";

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Requested {
    /// KVM when it works, else emulation, saying why.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Emulation, even where KVM works.
    Tcg,
}

/// What to probe.
#[derive(Debug, Clone)]
pub struct ProbeRequest {
    /// The QEMU binary; `qemu-system-x86_64` from `PATH` when absent.
    pub program: Option<PathBuf>,
    /// Kernel to boot. Readable by everybody.
    pub kernel: PathBuf,
    /// Initial RAM file system whose init powers off on `firkin.probe=1`. Readable by everybody.
    pub initrd: PathBuf,
    /// What the user asked for.
    pub requested: Requested,
    /// How long a guest may take from power-on to power-off.
    pub deadline: Duration,
    /// Where the verdict is remembered.
    pub verdict_file: Option<PathBuf>,
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No QEMU.
    #[error("cannot find `{program}`: install QEMU 8.2 or newer")]
    Missing {
        /// What was looked for.
        program: String,
    },
    /// QEMU lacks what the engine needs.
    #[error("cannot use QEMU {version}: 8.2 or newer is needed")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// A guest does not run the way that was asked for.
    #[error("cannot run guests with {acceleration}: {reason}")]
    Unusable {
        /// Which way.
        acceleration: Acceleration,
        /// What happened instead.
        reason: String,
    },
    /// QEMU did not start.
    #[error("cannot start QEMU")]
    Start(#[from] StartError),
    /// A file of the probe could not be used.
    #[error("cannot probe QEMU")]
    Io(#[from] io::Error),
}

/// Finds out how guests run on this host. Takes seconds the first time and nothing after that, unless KVM failed for
/// the first time.
pub async fn probe(request: &ProbeRequest) -> Result<QemuEngine, ProbeError> {
    let program = find_program(request.program.as_deref())?;
    let key = Key::of(request, std::slice::from_ref(&program))?;
    let known = request.verdict_file.as_deref().and_then(|path| Verdict::recall(path, &key));
    if let Some(verdict) = known.as_ref().filter(|verdict| verdict.is_believed(request.deadline)) {
        return Ok(engine(verdict));
    }
    let (fingerprint, fallback) = match request.requested {
        Requested::Kvm => (try_kvm(request, &program).await?, None),
        Requested::Tcg => (try_tcg(&program).await?, None),
        Requested::Auto => match try_kvm(request, &program).await {
            Ok(fingerprint) => (fingerprint, None),
            Err(error @ (ProbeError::Unusable { .. } | ProbeError::Start(_))) => {
                let reason = chain(&error);
                tracing::info!(reason, "guests are emulated");
                let known_failure = known.as_ref().and_then(|verdict| verdict.fallback.as_ref());
                let fallback = Fallback::of(reason, known_failure, request.deadline);
                let emulated = match known {
                    Some(verdict) => verdict.fingerprint,
                    None => try_tcg(&program).await?,
                };
                (emulated, Some(fallback))
            }
            Err(error) => return Err(error),
        },
    };
    let verdict = Verdict::new(key, program, fingerprint, fallback);
    if let Some(path) = &request.verdict_file
        && let Err(error) = verdict.remember(path)
    {
        tracing::warn!(%error, "the next start will probe again");
    }
    Ok(engine(&verdict))
}

fn engine(verdict: &Verdict) -> QemuEngine {
    let Verdict { program, fingerprint, fallback, .. } = verdict.clone();
    QemuEngine { program, fingerprint, fallback: fallback.map(|fallback| fallback.reason) }
}

/// Runs the smallest guest there is with KVM. Needs nothing of the product, remembers nothing, and proves less than [`probe`].
pub async fn try_smallest_guest(program: Option<&Path>, deadline: Duration) -> Result<(), ProbeError> {
    smallest_guest(&find_program(program)?, Acceleration::Kvm, deadline).await
}

async fn smallest_guest(program: &Path, acceleration: Acceleration, deadline: Duration) -> Result<(), ProbeError> {
    let mut trial = Trial::start(program, acceleration, Guest::Smallest).await?;
    let spoke = trial.word(acceleration, deadline).await;
    trial.end().await;
    spoke
}

fn find_program(given: Option<&Path>) -> Result<PathBuf, ProbeError> {
    let missing = |program: &Path| ProbeError::Missing { program: program.display().to_string() };
    match given {
        Some(path) => fs_err::canonicalize(path).map_err(|_| missing(path)),
        None => std::env::var_os("PATH")
            .into_iter()
            .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
            .find_map(|dir| fs_err::canonicalize(dir.join(PROGRAM)).ok())
            .ok_or_else(|| missing(Path::new(PROGRAM))),
    }
}

async fn try_kvm(request: &ProbeRequest, program: &Path) -> Result<Fingerprint, ProbeError> {
    let mut trial = Trial::start(program, Acceleration::Kvm, Guest::Linux(request)).await?;
    // The guest runs already and may end while QEMU is asked, which is why its end is looked for in any case.
    let fingerprint = trial.fingerprint(Acceleration::Kvm).await;
    let powered_off = trial.power_off(Acceleration::Kvm, request.deadline).await;
    trial.end().await;
    powered_off.and(fingerprint)
}

async fn try_tcg(program: &Path) -> Result<Fingerprint, ProbeError> {
    let mut trial = Trial::start(program, Acceleration::Tcg, Guest::None).await?;
    let fingerprint = trial.fingerprint(Acceleration::Tcg).await;
    trial.end().await;
    fingerprint
}

/// An error and its causes on one line, for a person who asks why the machine is emulated.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[tokio::test]
    async fn the_smallest_guest_says_its_word() {
        if !nix::unistd::geteuid().is_root() || find_program(None).is_err() {
            eprintln!("SKIP: machines need root and QEMU");
            return;
        }
        smallest_guest(&find_program(None).unwrap(), Acceleration::Tcg, Duration::from_secs(60)).await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_binary_is_told_as_such() {
        let request = ProbeRequest {
            program: Some("/nonexistent/qemu".into()),
            kernel: "/nonexistent".into(),
            initrd: "/nonexistent".into(),
            requested: Requested::Auto,
            deadline: Duration::from_secs(1),
            verdict_file: None,
        };
        assert!(matches!(probe(&request).await, Err(ProbeError::Missing { .. })));
    }
}
