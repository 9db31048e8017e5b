//! Whether gVisor would run sandboxes on this host. Nothing needs it yet: `firkin up` does not offer it.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use firkin_causes::chain;
use firkin_engine::{
    Engine as _,
    gvisor::{
        AGENT,
        probe::{Capability, Found, ProbeRequest, probe},
    },
};
use firkin_image::command::{capture, command};
use fs_err as fs;

use super::finding::{Finding, Lack, which};

const PROGRAM: &str = "runsc";
const MAKES_IMAGES: &str = "mkfs.erofs";
/// For a sandbox that is started, cut and restored: half a second on an idle host.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a small image may take to make.
const IMAGE_DEADLINE: Duration = Duration::from_secs(10);

/// Tries it. What is found is never a fault of a host that has KVM; one that has not could have it by packages.
pub(super) async fn gvisor(kvm: bool) -> Finding {
    let program = which(PROGRAM);
    let missing: Vec<&str> = [(PROGRAM, program.is_none()), (MAKES_IMAGES, which(MAKES_IMAGES).is_none())]
        .into_iter()
        .filter_map(|(name, missing)| missing.then_some(name))
        .collect();
    let Some(program) = program.filter(|_| missing.is_empty()) else {
        return absent(&missing, kvm);
    };
    if !nix::unistd::geteuid().is_root() {
        return Finding::ok(format!("`{}` was not tried: only root can", program.display()));
    }
    match tried(program).await {
        Ok(found) => Finding::ok(told(&found.engine.fingerprint().version, &found.capabilities)),
        Err(error) => Finding::ok(format!("it does not work here: {}", chain(error.as_ref()))),
    }
}

/// The finding where these programs are not there.
fn absent(missing: &[&str], kvm: bool) -> Finding {
    let missing = missing.join(" and no ");
    if kvm {
        return Finding::ok(format!("there is no {missing}, and no need: this host has KVM"));
    }
    let found = format!("there is no {missing}: without KVM and without gVisor, sandboxes are emulated");
    Finding {
        lack: Some(Lack::Gvisor),
        ..Finding::warn(found, "`firkin doctor --fix` installs gVisor and what makes its root images")
    }
}

async fn tried(program: PathBuf) -> anyhow::Result<Found> {
    let dir = tempfile::Builder::new().prefix("firkin-doctor-").tempdir()?;
    let image = image(dir.path()).await?;
    let request = ProbeRequest { program: Some(program), pins: dir.path().join("engines"), image, deadline: DEADLINE };
    Ok(probe(&request).await?)
}

/// A root image with nothing in it but the agent.
async fn image(dir: &Path) -> anyhow::Result<PathBuf> {
    let (tree, image) = (dir.join("tree"), dir.join("root.erofs"));
    let agent = tree.join(AGENT.trim_start_matches('/'));
    for name in ["etc", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::create_dir_all(agent.parent().context("the agent is in a directory")?)?;
    fs::write(&agent, super::agent())?;
    fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755))?;
    let mut made = command(MAKES_IMAGES);
    made.args(["-E", "noinline_data"]).arg(&image).arg(&tree);
    capture(made, IMAGE_DEADLINE).await?;
    ensure!(image.is_file(), "no image was made");
    Ok(image)
}

fn told(version: &str, capabilities: &[Capability]) -> String {
    let (has, lacks): (Vec<_>, Vec<_>) = capabilities.iter().partition(|capability| capability.lacking.is_none());
    let has: Vec<&str> = has.iter().map(|capability| capability.name).collect();
    let lacks =
        lacks.iter().map(|capability| format!("{} ({})", capability.name, capability.lacking.as_deref().unwrap_or_default()));
    let lacks: Vec<String> = lacks.collect();
    format!("runsc {version}, not offered by `firkin up` yet; has {}; lacks {}", has.join(", "), lacks.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::finding::Status;

    #[test]
    fn each_capability_is_named_as_found_or_lacking() {
        let capability = |name, lacking: Option<&str>| Capability { name, lacking: lacking.map(str::to_owned) };
        assert_eq!(
            told("1", &[capability("cut", None), capability("pause", None), capability("network", Some("none yet"))]),
            "runsc 1, not offered by `firkin up` yet; has cut, pause; lacks network (none yet)"
        );
    }

    #[test]
    fn a_host_without_kvm_can_have_it_and_one_with_kvm_need_not() {
        let needless = absent(&["runsc", "mkfs.erofs"], true);
        assert_eq!((needless.status, needless.remedy, needless.lack), (Status::Ok, None, None));
        let lacking = absent(&["runsc", "mkfs.erofs"], false);
        assert_eq!((lacking.status, lacking.lack), (Status::Warn, Some(Lack::Gvisor)));
        assert!(lacking.found.starts_with("there is no runsc and no mkfs.erofs"), "{}", lacking.found);
    }

    #[tokio::test]
    async fn what_is_not_needed_is_never_a_fault() {
        let found = gvisor(true).await;
        assert_eq!((found.status, found.remedy), (Status::Ok, None), "{}", found.found);
        let tried = which(PROGRAM).is_some() && which(MAKES_IMAGES).is_some() && nix::unistd::geteuid().is_root();
        assert!(!tried || found.found.contains("has start, pause, cut, restore"), "{}", found.found);
    }
}
