//! What runs sandboxes on this host: as was asked for, and as it was seen to work.
//!
//! ```text
//!   kvm, emulated ──► QEMU, with a guest that was seen to run        gvisor ──► runsc, with a sandbox that was cut and restored
//!   auto ──► kvm │ gvisor that has all that is needed, then emulated │ emulated
//! ```
//!
//! Where `auto` is gVisor, the emulator stays beside it: sandboxes and templates of before go on as what they are, and only what is new is
//! gVisor's.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use firkin_engine::{
    Acceleration, Engine, ImageForm,
    gvisor::probe as gvisor,
    qemu::probe::{ProbeError, ProbeRequest, Requested, probe},
};
use firkin_runtime::{config::GuestSystem, engines::Engines, images::ImageSource as _};
use fs_err as fs;

use crate::{
    args::EngineChoice,
    failure::{Advise as _, advised},
    host::{
        gvisor::{DEMANDED, NEEDED, lacking, out_of_question},
        jail,
    },
    images::Images,
    progress::Progress,
    settings::Settings,
};

/// How long gVisor may take to show that it works, at least: it takes a second on an idle host, and nothing is known that it would wait for without end.
const GVISOR_DEADLINE: Duration = Duration::from_secs(60);

/// The engines that the settings ask for.
pub(super) async fn choose(settings: &Settings, parts: (&GuestSystem, &Images), progress: &Progress) -> anyhow::Result<Engines> {
    let mut chosen: Vec<Arc<dyn Engine>> = Vec::new();
    for choice in &settings.engines {
        for engine in of_choice(settings, *choice, parts, progress).await? {
            // What was found by itself may also have been asked for.
            if !chosen.iter().any(|other| other.fingerprint().acceleration == engine.fingerprint().acceleration) {
                chosen.push(engine);
            }
        }
    }
    let mut chosen = chosen.into_iter();
    let first = chosen.next().context("no engine was asked for")?;
    Ok(Engines::new(first, chosen.collect()))
}

async fn of_choice(
    settings: &Settings,
    choice: EngineChoice,
    parts: (&GuestSystem, &Images),
    progress: &Progress,
) -> anyhow::Result<Vec<Arc<dyn Engine>>> {
    let requested = match choice {
        EngineChoice::Auto => return of_itself(settings, parts, progress).await,
        EngineChoice::Gvisor => return Ok(vec![with_gvisor(settings, parts, DEMANDED, progress).await?]),
        EngineChoice::Kvm => Requested::Kvm,
        EngineChoice::Emulated => Requested::Tcg,
    };
    let engine = with_qemu(settings, parts.0, requested, progress).await?;
    demand_boundary(settings, &*engine)?;
    Ok(vec![engine])
}

/// What `auto` comes to. What of gVisor is seen without a sandbox is looked at first: where it has not all that is needed, its root image
/// need not be made.
async fn of_itself(
    settings: &Settings,
    parts: (&GuestSystem, &Images),
    progress: &Progress,
) -> anyhow::Result<Vec<Arc<dyn Engine>>> {
    let qemu = with_qemu(settings, parts.0, Requested::Auto, progress).await?;
    if qemu.fingerprint().acceleration == Acceleration::Kvm {
        return Ok(vec![qemu]);
    }
    let step = progress.step("whether gVisor is taken");
    let tried = match tokio::task::spawn_blocking(out_of_question).await? {
        Some(why) => Err(why),
        None => with_gvisor(settings, parts, NEEDED, progress).await.map_err(|error| firkin_causes::chain(error.as_ref())),
    };
    match tried {
        Ok(gvisor) => {
            step.done("`auto` is gvisor, which has all that is needed; emulated for what there is of it");
            // Where other hosts come, nothing was emulated before, nor will be.
            Ok(if demand_boundary(settings, &*qemu).is_ok() { vec![gvisor, qemu] } else { vec![gvisor] })
        }
        Err(why) => {
            step.done(&format!("`auto` is emulated; gVisor is not taken: {why}"));
            demand_boundary(settings, &*qemu)?;
            Ok(vec![qemu])
        }
    }
}

/// Refuses the emulator where others come in.
fn demand_boundary(settings: &Settings, engine: &dyn Engine) -> anyhow::Result<()> {
    if settings.is_for_real_machines() && engine.fingerprint().acceleration == Acceleration::Tcg {
        return Err(anyhow::anyhow!("cannot serve other hosts with emulated machines: the emulator is no security boundary"))
            .hint("serve on the loopback, use a host with KVM, or say `--allow-emulation` if all who come may be trusted");
    }
    Ok(())
}

/// QEMU, with the acceleration that a guest was seen to run with.
async fn with_qemu(
    settings: &Settings,
    guest: &GuestSystem,
    requested: Requested,
    progress: &Progress,
) -> anyhow::Result<Arc<dyn Engine>> {
    let step = progress.step("trying the acceleration");
    let boot = guest.boot.kernel().context("the guest system has nothing to boot")?;
    let request = ProbeRequest {
        program: None,
        kernel: boot.kernel.path.clone(),
        initrd: boot.initrd.path.clone(),
        requested,
        deadline: settings.kvm_deadline,
        verdict_file: Some(settings.acceleration_file()),
    };
    let engine = probe(&request).await.map_err(|error| {
        let hint = match &error {
            ProbeError::Missing { .. } | ProbeError::TooOld { .. } => Some("`firkin doctor --fix` installs it"),
            ProbeError::Unusable { .. } => {
                Some("`--engine gvisor` needs no KVM, and `--engine emulated` works everywhere, with a slow CPU")
            }
            ProbeError::Start(_) | ProbeError::Io(_) => None,
        };
        advised(error, hint.map(str::to_owned), None)
    })?;
    step.done(&match engine.fallback() {
        Some(reason) => {
            let reason = reason.lines().next().unwrap_or_default();
            format!("acceleration {}; kvm does not work here: {reason}", engine.fingerprint().acceleration)
        }
        None => format!("acceleration {}", engine.fingerprint().acceleration),
    });
    let step = progress.step("the machines' jail");
    step.done(&jail::accepted(&engine.safeguards(), settings.jail)?);
    Ok(Arc::new(engine))
}

/// gVisor with all of `wanted`, and a sandbox of the host's own root image that was started, cut and restored. Its binary is kept in the state directory.
async fn with_gvisor(
    settings: &Settings,
    (guest, images): (&GuestSystem, &Images),
    wanted: &[&str],
    progress: &Progress,
) -> anyhow::Result<Arc<dyn Engine>> {
    let step = progress.step("guest root file system for gVisor");
    let root = images.in_form(guest.root(), ImageForm::ErofsWithAgent, &|line| step.at(line)).await;
    let root = root.hint("`firkin doctor --fix` installs what makes it")?;
    step.done("guest root file system for gVisor");
    let step = progress.step("trying gVisor");
    let pins = settings.state_dir.join("engines");
    fs::create_dir_all(&pins)?;
    let deadline = settings.kvm_deadline.max(GVISOR_DEADLINE);
    let request = gvisor::ProbeRequest { program: None, pins, image: root.path, deadline };
    let found = gvisor::probe(&request).await.map_err(|error| {
        let hint = match &error {
            gvisor::ProbeError::Missing => "`firkin doctor --fix` installs it",
            _ => "`--engine emulated` works everywhere, with a slow CPU",
        };
        advised(error, Some(hint.to_owned()), None)
    })?;
    if let Some(lack) = lacking(&found.capabilities, wanted) {
        return Err(anyhow::anyhow!("gVisor cannot run sandboxes here: {lack}"))
            .hint("`--engine emulated` works everywhere, with a slow CPU");
    }
    let lacks: Vec<String> =
        found.capabilities.iter().filter_map(|one| Some(format!("{} ({})", one.name, one.lacking.as_ref()?))).collect();
    let lacks = if lacks.is_empty() { String::new() } else { format!("; lacks {}", lacks.join(", ")) };
    step.done(&format!("acceleration {}{lacks}", found.engine.fingerprint().acceleration));
    Ok(Arc::new(found.engine))
}
