//! Whether gVisor runs sandboxes on this host: what `firkin up --engine gvisor` needs.

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
        capability::{self, Capability},
        probe::{Found, ProbeRequest, probe},
    },
};
use firkin_image::command::{capture, command};
use fs_err as fs;

use super::finding::{Finding, Lack, which};

/// What sandboxes of gVisor cannot do without: it is what clients reach them by.
pub(crate) const DEMANDED: &[&str] = &[capability::NETWORK];
/// What gVisor must have for `auto` to take it: all that the tests of E2B's SDKs need, and what holds a sandbox to its memory. `sudo` is not
/// among it, nor is the setuid bit that it would need: the guest's agent stands in for it. Nor are a disk's size, which is bounded without, and
/// exact events, which the agent does without.
pub(crate) const NEEDED: &[&str] = &[
    capability::START,
    capability::PAUSE,
    capability::CUT,
    capability::RESTORE,
    capability::NETWORK,
    capability::OPEN_CONNECTIONS,
    capability::LIMITS,
];

const PROGRAM: &str = "runsc";
const MAKES_IMAGES: &str = "mkfs.erofs";
/// Where a build comes from that has more than Debian's. The lines name hosts, which are no business of this program.
const NEWER: &str = "docs/hosts-without-kvm.md has the lines that install a current one";
/// For a sandbox that is started, cut and restored: half a second on an idle host.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a small image may take to make.
const IMAGE_DEADLINE: Duration = Duration::from_secs(60);

/// How sandboxes of gVisor stand on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// One ran, with all that is needed for it to be taken unasked.
    Works,
    /// One ran, with all that clients need, and lacks what it would be taken unasked for.
    Lacks(String),
    /// Its programs are not installed.
    Absent,
    /// Only root can try it.
    Untried,
    /// It was tried, for nothing.
    Fails(String),
}

/// What of its programs is not installed.
fn missing() -> Vec<&'static str> {
    [PROGRAM, MAKES_IMAGES].into_iter().filter(|name| which(name).is_none()).collect()
}

/// Whether its programs are there, where sandboxes of it were asked for. Nothing is tried.
pub(super) fn programs() -> Finding {
    demanded(&missing(), which(PROGRAM))
}

fn demanded(missing: &[&str], program: Option<PathBuf>) -> Finding {
    match (missing, program) {
        ([], Some(program)) => Finding::ok(program.display().to_string()),
        (missing, _) => Finding::lacks(format!("no {}", missing.join(", ")), Lack::Gvisor),
    }
}

/// Tries it. What is found is never a fault of a host that has KVM; one that has not could have it by packages.
pub(super) async fn gvisor(kvm: bool) -> (Finding, Standing) {
    let missing = missing();
    let Some(program) = which(PROGRAM).filter(|_| missing.is_empty()) else {
        return (absent(&missing, kvm), Standing::Absent);
    };
    if !nix::unistd::geteuid().is_root() {
        return (Finding::ok(format!("`{}` was not tried: only root can", program.display())), Standing::Untried);
    }
    match tried(program).await {
        Ok(found) => (Finding::ok(told(&found.engine.fingerprint().version, &found.capabilities)), standing(&found.capabilities)),
        Err(error) => {
            let why = chain(error.as_ref());
            (Finding::ok(format!("it does not work here: {why}; {NEWER}")), Standing::Fails(why))
        }
    }
}

fn standing(capabilities: &[Capability]) -> Standing {
    match (lacking(capabilities, DEMANDED), lacking(capabilities, NEEDED)) {
        (Some(lack), _) => Standing::Fails(lack),
        (None, Some(lack)) => Standing::Lacks(lack),
        (None, None) => Standing::Works,
    }
}

/// What of `wanted` was looked for and is not there, with the reasons.
pub(crate) fn lacking(capabilities: &[Capability], wanted: &[&str]) -> Option<String> {
    let wanted = capabilities.iter().filter(|capability| wanted.contains(&capability.name));
    let lacks = wanted.filter_map(|capability| Some(format!("{} ({})", capability.name, capability.lacking.as_ref()?)));
    let lacks: Vec<String> = lacks.collect();
    (!lacks.is_empty()).then(|| format!("it lacks {}", lacks.join(", ")))
}

/// Why it is no use to try whether gVisor can be taken unasked, as far as that is seen without a sandbox. Blocks for the time of two short
/// commands.
pub(crate) fn out_of_question() -> Option<String> {
    let missing = missing();
    let Some(program) = which(PROGRAM).filter(|_| missing.is_empty()) else {
        return Some(format!("there is no {}", missing.join(" and no ")));
    };
    match capability::untried(&program) {
        Ok(told) => lacking(&told, NEEDED),
        Err(error) => Some(format!("`{}` cannot be asked: {}", program.display(), chain(&error))),
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
    let lacks = if lacks.is_empty() { String::new() } else { format!("; lacks {}; {NEWER}", lacks.join(", ")) };
    format!("runsc {version} has {}{lacks}", has.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::finding::Status;

    #[test]
    fn each_capability_is_named_as_found_or_lacking() {
        let capability = |name, lacking: Option<&str>| Capability { name, lacking: lacking.map(str::to_owned) };
        let (cut, lacking) = (capability("cut", None), capability("network", Some("none")));
        assert_eq!(told("1", std::slice::from_ref(&cut)), "runsc 1 has cut");
        assert_eq!(standing(std::slice::from_ref(&cut)), Standing::Works);
        let all = [cut, capability("pause", None), lacking.clone()];
        assert_eq!(told("1", &all), format!("runsc 1 has cut, pause; lacks network (none); {NEWER}"));
        assert_eq!(standing(&all), Standing::Fails("it lacks network (none)".to_owned()));
        let closed = capability(capability::OPEN_CONNECTIONS, Some("old"));
        assert_eq!(standing(&[all[0].clone(), closed.clone()]), Standing::Lacks("it lacks open connections (old)".to_owned()));
        assert_eq!(standing(&[lacking, closed]), Standing::Fails("it lacks network (none)".to_owned()), "the worse is told");
        let needless = [capability::SETUID, capability::EVENTS].map(|name| capability(name, Some("none")));
        assert_eq!(standing(&needless), Standing::Works);
    }

    #[test]
    fn a_host_without_kvm_can_have_it_and_one_with_kvm_need_not() {
        let needless = absent(&["runsc", "mkfs.erofs"], true);
        assert_eq!((needless.status, needless.remedy, needless.lack), (Status::Ok, None, None));
        let lacking = absent(&["runsc", "mkfs.erofs"], false);
        assert_eq!((lacking.status, lacking.lack), (Status::Warn, Some(Lack::Gvisor)));
        assert!(lacking.found.starts_with("there is no runsc and no mkfs.erofs"), "{}", lacking.found);
    }

    #[test]
    fn where_it_is_asked_for_a_host_without_it_is_not_ready() {
        let lacking = demanded(&["mkfs.erofs"], Some("/usr/bin/runsc".into()));
        assert_eq!((lacking.status, lacking.lack), (Status::Fail, Some(Lack::Gvisor)));
        assert_eq!(lacking.found, "no mkfs.erofs");
        assert_eq!(demanded(&[], Some("/usr/bin/runsc".into())).status, Status::Ok);
    }

    #[tokio::test]
    async fn what_is_not_needed_is_never_a_fault() {
        let (found, _) = gvisor(true).await;
        assert_eq!((found.status, found.remedy), (Status::Ok, None), "{}", found.found);
        let tried = which(PROGRAM).is_some() && which(MAKES_IMAGES).is_some() && nix::unistd::geteuid().is_root();
        assert!(!tried || found.found.contains("has start, pause, cut, restore"), "{}", found.found);
    }
}
