//! Which engine runs sandboxes on this host: what was asked for, what `auto` comes to, and why.

use super::{
    finding::{Check, Finding, Status},
    gvisor::Standing,
};
use crate::args::EngineChoice;

/// Told of the engines that were asked for, by what was found about KVM and gVisor.
pub(super) fn told(asked: &[EngineChoice], kvm: &Check, gvisor: &Standing) -> Finding {
    let each: Vec<Finding> = asked.iter().map(|engine| one(*engine, kvm, gvisor)).collect();
    let status = each.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    let found: Vec<String> = each.iter().map(|finding| finding.found.clone()).collect();
    let remedies: Vec<String> = each.into_iter().filter_map(|finding| finding.remedy).collect();
    let remedy = (!remedies.is_empty()).then(|| remedies.join("; "));
    Finding { status, found: found.join("; "), remedy, lack: None }
}

fn one(asked: EngineChoice, kvm: &Check, gvisor: &Standing) -> Finding {
    match (asked, kvm.status, gvisor) {
        (EngineChoice::Auto, Status::Ok, _) => Finding::ok(format!("`auto` is kvm: {}", kvm.found)),
        (EngineChoice::Auto, _, Standing::Works) => Finding::ok(format!(
            "`auto` is gvisor, which has all that is needed, and emulated for what there is of it: {}",
            kvm.found
        )),
        (EngineChoice::Auto, _, Standing::Lacks(_)) => {
            let why = format!("`auto` is emulated, which is slow: {}; {}", kvm.found, without(gvisor));
            let remedy = "docs/hosts-without-kvm.md has the lines that install a current runsc; `--engine gvisor` takes this one";
            Finding::warn(why, remedy)
        }
        (EngineChoice::Auto, _, Standing::Absent | Standing::Untried | Standing::Fails(_)) => {
            let why = format!("`auto` is emulated, which is slow: {}; {}", kvm.found, without(gvisor));
            Finding::warn(why, "docs/hosts-without-kvm.md tells of other ways")
        }
        (EngineChoice::Kvm, Status::Ok, _) => Finding::ok("`kvm` works"),
        (EngineChoice::Kvm, ..) => Finding::fail(format!("`kvm` does not: {}", kvm.found), "choose `gvisor` or `emulated`"),
        (EngineChoice::Gvisor, _, Standing::Works) => Finding::ok("`gvisor` works"),
        (EngineChoice::Gvisor, _, Standing::Lacks(_)) => Finding::ok(format!("`gvisor`: {}", without(gvisor))),
        (EngineChoice::Gvisor, _, Standing::Untried) => Finding::warn("`gvisor` was not tried", "run it as root"),
        (EngineChoice::Gvisor, _, Standing::Absent) => {
            Finding::fail(format!("`gvisor` does not: {}", without(gvisor)), "`firkin doctor --fix` installs it")
        }
        (EngineChoice::Gvisor, _, Standing::Fails(_)) => {
            let remedy = "docs/hosts-without-kvm.md has the lines that install a newer runsc; `emulated` works everywhere";
            Finding::fail(format!("`gvisor` does not: {}", without(gvisor)), remedy)
        }
        (EngineChoice::Emulated, ..) => Finding::ok("`emulated` works everywhere, with a slow CPU"),
    }
}

/// Why sandboxes of gVisor are out of the question.
fn without(gvisor: &Standing) -> String {
    match gvisor {
        Standing::Works => "gVisor works".to_owned(),
        Standing::Lacks(what) => format!("gVisor works, and {what}"),
        Standing::Absent => "there is no gVisor".to_owned(),
        Standing::Untried => "gVisor was not tried".to_owned(),
        Standing::Fails(why) => format!("gVisor does not work: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(status: Status, found: &str) -> Check {
        Check { name: "kvm", status, found: found.to_owned(), why: "", remedy: None, lack: None }
    }

    fn judged(asked: &[EngineChoice], kvm: &Check, gvisor: &Standing) -> (Status, String) {
        let finding = told(asked, kvm, gvisor);
        assert_eq!(finding.remedy.is_some(), finding.status != Status::Ok, "{}", finding.found);
        (finding.status, finding.found)
    }

    #[test]
    fn auto_is_told_with_its_reason() {
        use EngineChoice::Auto;
        let (has, none) = (kvm(Status::Ok, "a guest ran with KVM"), kvm(Status::Warn, "no /dev/kvm"));
        assert_eq!(judged(&[Auto], &has, &Standing::Absent), (Status::Ok, "`auto` is kvm: a guest ran with KVM".to_owned()));
        let (status, found) = judged(&[Auto], &none, &Standing::Fails("no network".to_owned()));
        assert_eq!(
            (status, found.as_str()),
            (Status::Warn, "`auto` is emulated, which is slow: no /dev/kvm; gVisor does not work: no network")
        );
        let (status, found) = judged(&[Auto], &none, &Standing::Works);
        assert!(status == Status::Ok && found.starts_with("`auto` is gvisor,"), "{found}");
        let slow = told(&[Auto], &none, &Standing::Lacks("it lacks x".to_owned()));
        assert_eq!(slow.found, "`auto` is emulated, which is slow: no /dev/kvm; gVisor works, and it lacks x");
        assert!(slow.remedy.unwrap().contains("`--engine gvisor`"));
    }

    #[test]
    fn an_engine_that_was_asked_for_and_does_not_work_is_a_fault() {
        use EngineChoice::{Emulated, Gvisor, Kvm};
        let none = kvm(Status::Warn, "no /dev/kvm");
        assert_eq!(judged(&[Kvm], &none, &Standing::Works), (Status::Fail, "`kvm` does not: no /dev/kvm".to_owned()));
        let several = [Gvisor, Emulated];
        assert_eq!(
            judged(&several, &none, &Standing::Works),
            (Status::Ok, "`gvisor` works; `emulated` works everywhere, with a slow CPU".to_owned())
        );
        assert_eq!(judged(&several, &none, &Standing::Absent).0, Status::Fail);
        assert_eq!(judged(&several, &none, &Standing::Fails("x".to_owned())).0, Status::Fail);
    }
}
