//! Which acceleration this host has, found out by running a guest with it.
//!
//! That `/dev/kvm` opens proves nothing: there are hosts where a virtual machine can be made and its guest then hangs or
//! aborts. So a kernel is booted with `firkin.probe=1`, on which the guest's init powers off at once, and only a clean power-off
//! within the deadline counts. Emulation depends on nothing but the binary and is believed once the binary answers. The
//! `verdict` says what of this is remembered.

mod seen;
mod trial;
mod verdict;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use firkin_causes::chain;
use firkin_jail::Jail;
use serde::{Deserialize, Serialize};

use self::{
    trial::{Guest, Setting, Trial},
    verdict::{Fallback, Key, Verdict},
};
use super::{QemuEngine, isolation};
use crate::{Acceleration, Compatibility, Processor, StartError, directory::blocking};

pub use self::verdict::last_fallback;

/// The binary that is looked for.
pub const PROGRAM: &str = "qemu-system-x86_64";
/// Debian's build of the same QEMU with one machine and no emulator. An idle machine of it has 3 MB less, and starts in two thirds
/// of the time.
const SMALL_PROGRAM: &str = "qemu-system-x86_64-microvm";

/// The user's choice.
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

/// One request to probe.
#[derive(Debug, Clone)]
pub struct ProbeRequest {
    /// The QEMU binary; `qemu-system-x86_64` from `PATH` when absent.
    pub program: Option<PathBuf>,
    /// Kernel to boot.
    pub kernel: PathBuf,
    /// Initial RAM file system whose init powers off on `firkin.probe=1`.
    pub initrd: PathBuf,
    /// The user's choice.
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
        /// The program.
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
        /// The acceleration.
        acceleration: Acceleration,
        /// Why.
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
    let programs = Programs::find(request.program.as_deref())?;
    let key = Key::of(request, &programs.all())?;
    let known = request.verdict_file.as_deref().and_then(|path| Verdict::recall(path, &key));
    if let Some(verdict) = known.as_ref().filter(|verdict| verdict.is_believed(request.deadline)) {
        return engine(verdict).await;
    }
    let (found, fallback) = match request.requested {
        Requested::Kvm => (try_kvm(request, &programs).await?, None),
        Requested::Tcg => (try_tcg(&programs).await?, None),
        Requested::Auto => match try_kvm(request, &programs).await {
            Ok(found) => (found, None),
            Err(error @ (ProbeError::Unusable { .. } | ProbeError::Start(_))) => {
                let reason = chain(&error);
                tracing::info!(reason, "guests are emulated");
                let known_failure = known.as_ref().and_then(|verdict| verdict.fallback.as_ref());
                let fallback = Fallback::of(reason, known_failure, request.deadline);
                let emulated = match known {
                    Some(verdict) => Found { program: verdict.program, compatibility: verdict.compatibility },
                    None => try_tcg(&programs).await?,
                };
                (emulated, Some(fallback))
            }
            Err(error) => return Err(error),
        },
    };
    let verdict = Verdict::new(key, found, fallback);
    if let Some(path) = &request.verdict_file
        && let Err(error) = verdict.remember(path)
    {
        tracing::warn!(%error, "the next start will probe again");
    }
    engine(&verdict).await
}

async fn engine(verdict: &Verdict) -> Result<QemuEngine, ProbeError> {
    let Verdict { program, compatibility, fallback, .. } = verdict.clone();
    let jail = jail(&program).await?;
    Ok(QemuEngine { program, compatibility, jail, fallback: fallback.map(|fallback| fallback.reason) })
}

async fn jail(program: &Path) -> io::Result<Arc<Jail>> {
    let program = program.to_path_buf();
    blocking(move || Ok(isolation::jail(&program))).await
}

/// A QEMU that works, and what is known of it.
#[derive(Debug)]
struct Found {
    program: PathBuf,
    compatibility: Compatibility,
}

/// The binaries of this host.
#[derive(Debug)]
struct Programs {
    full: PathBuf,
    /// One that has nothing but `microvm` and KVM, and costs each machine less memory and time. Only where no program was named.
    small: Option<PathBuf>,
}

impl Programs {
    fn find(given: Option<&Path>) -> Result<Self, ProbeError> {
        let missing = |program: &Path| ProbeError::Missing { program: program.display().to_string() };
        match given {
            Some(path) => Ok(Self { full: fs_err::canonicalize(path).map_err(|_| missing(path))?, small: None }),
            None => Ok(Self { full: which(PROGRAM).ok_or_else(|| missing(Path::new(PROGRAM)))?, small: which(SMALL_PROGRAM) }),
        }
    }

    fn all(&self) -> Vec<PathBuf> {
        std::iter::once(&self.full).chain(&self.small).cloned().collect()
    }
}

fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find_map(|dir| fs_err::canonicalize(dir.join(program)).ok())
}

/// Runs the smallest guest there is with KVM. Needs nothing of the product, remembers nothing, and proves less than [`probe`].
pub async fn try_smallest_guest(program: Option<&Path>, deadline: Duration) -> Result<(), ProbeError> {
    smallest_guest(&Programs::find(program)?.full, Acceleration::Kvm, deadline).await
}

async fn smallest_guest(program: &Path, acceleration: Acceleration, deadline: Duration) -> Result<(), ProbeError> {
    let setting = Setting { program, jail: &jail(program).await?, acceleration, processor: Processor::Plain };
    let mut trial = Trial::start(setting, Guest::Smallest).await?;
    let spoke = trial.word(acceleration, deadline).await;
    trial.end().await;
    spoke
}

/// With the small binary where it does the work, else with the full one.
async fn try_kvm(request: &ProbeRequest, programs: &Programs) -> Result<Found, ProbeError> {
    if let Some(small) = &programs.small {
        let begun = Instant::now();
        match try_kvm_with(request, small).await {
            Ok(found) => return Ok(found),
            // What hung will hang again, for as long.
            Err(error) if begun.elapsed() >= request.deadline => return Err(error),
            Err(error) => tracing::info!(reason = chain(&error), program = %small.display(), "trying the full QEMU"),
        }
    }
    try_kvm_with(request, &programs.full).await
}

async fn try_kvm_with(request: &ProbeRequest, program: &Path) -> Result<Found, ProbeError> {
    let jail = jail(program).await?;
    let setting = Setting { program, jail: &jail, acceleration: Acceleration::Kvm, processor: Processor::Plain };
    let mut trial = Trial::start(setting, Guest::Linux(request)).await?;
    let powered_off = trial.power_off(Acceleration::Kvm, request.deadline).await;
    trial.end().await;
    powered_off?;
    let compatibility = describe(setting).await?;
    Ok(Found { program: program.to_path_buf(), compatibility })
}

async fn try_tcg(programs: &Programs) -> Result<Found, ProbeError> {
    let jail = jail(&programs.full).await?;
    let setting = Setting { program: &programs.full, jail: &jail, acceleration: Acceleration::Tcg, processor: Processor::Plain };
    Ok(Found { program: programs.full.clone(), compatibility: describe(setting).await? })
}

async fn describe(setting: Setting<'_>) -> Result<Compatibility, ProbeError> {
    let mut trial = Trial::start(setting, Guest::None).await?;
    let described = trial.describe(setting).await;
    trial.end().await;
    described
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[tokio::test]
    async fn the_smallest_guest_says_its_word() {
        if !nix::unistd::geteuid().is_root() || Programs::find(None).is_err() {
            eprintln!("SKIP: machines need root and QEMU");
            return;
        }
        let program = Programs::find(None).unwrap().full;
        smallest_guest(&program, Acceleration::Tcg, Duration::from_secs(60)).await.unwrap();
    }

    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    #[tokio::test]
    async fn a_qemu_tells_what_its_guests_see() {
        if !nix::unistd::geteuid().is_root() || Programs::find(None).is_err() {
            eprintln!("SKIP: machines need root and QEMU");
            return;
        }
        let found = try_tcg(&Programs::find(None).unwrap()).await.unwrap().compatibility;
        assert!(found.plain.devices.is_some(), "{found:?}");
        assert_ne!(found.plain.cpu, found.nested_cpu, "an emulated processor has virtualisation to show");
        assert_eq!(found.earlier_cpus.len(), 1, "the full binary has all names: {found:?}");
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
