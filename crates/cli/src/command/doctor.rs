//! `firkin doctor`, and the same look at the host before a server starts on it.

use anyhow::{Context as _, anyhow};
use fs_err as fs;

use super::{catalog, cluster_checks};
use crate::{
    args::{DoctorArgs, node::ClusterAccessArgs},
    failure::{Advise as _, ExitStatus},
    host::{self, Action, Check, Places, Status},
    output::{self, Table},
    progress::Progress,
    settings::Settings,
};

/// `firkin doctor`
pub(crate) async fn run(settings: &Settings, args: &DoctorArgs) -> anyhow::Result<ExitStatus> {
    let mut checks = look_at_all(settings, args).await;
    if args.fix {
        let actions = host::plan(&checks).await.context("cannot plan the set-up of this host")?;
        if !actions.is_empty() {
            set_up(settings, &actions, &Progress::on_stderr(settings.live_progress)).await?;
            checks = look_at_all(settings, args).await;
        }
    }
    output::result(settings.format, &checks, || table(&checks))?;
    if checks.iter().all(|check| check.status != Status::Fail) {
        return Ok(ExitStatus::Success);
    }
    if checks.iter().any(|check| check.lack.is_some()) && !args.fix {
        output::note("hint: `firkin doctor --fix` installs what is missing");
    }
    Ok(ExitStatus::HostNotReady)
}

/// Makes sure that sandboxes can start on this host; what packages bring is installed after consent.
/// Gives what was found then.
pub(crate) async fn ensure_ready(settings: &Settings, progress: &Progress) -> anyhow::Result<Vec<Check>> {
    let step = progress.step("checking this host");
    let checks = look(settings).await;
    step.done("this host was checked");
    let actions = host::plan(&checks).await.context("cannot plan the set-up of this host")?;
    let checks = if actions.is_empty() {
        checks
    } else {
        set_up(settings, &actions, progress).await?;
        look(settings).await
    };
    let failed = failures(&checks);
    if failed.is_empty() {
        return Ok(checks);
    }
    Err(anyhow!("this host is not ready: {failed}")).hint("`firkin doctor` shows every check").status(ExitStatus::HostNotReady)
}

async fn look_at_all(settings: &Settings, args: &DoctorArgs) -> Vec<Check> {
    let mut checks = look(settings).await;
    let upkeep = host::upkeep(&places(settings), &checks).await;
    checks.extend(upkeep);
    if let Some(catalog) = &settings.catalog {
        checks.push(catalog::check(catalog).await);
    }
    if args.cluster.is_some() {
        checks.extend(cluster_checks::look(&cluster(args)).await);
    }
    checks
}

fn cluster(args: &DoctorArgs) -> ClusterAccessArgs {
    ClusterAccessArgs {
        cluster: args.cluster.clone(),
        cluster_secret_file: args.cluster_secret_file.clone(),
        catalog_password_file: args.catalog.catalog_password_file.clone(),
        catalog_authority: args.catalog.catalog_authority.clone(),
    }
}

async fn look(settings: &Settings) -> Vec<Check> {
    host::check(&places(settings)).await
}

fn places(settings: &Settings) -> Places {
    Places {
        state_dir: settings.state_dir.clone(),
        cache_dir: settings.cache_dir.clone(),
        acceleration_file: settings.acceleration_file(),
        kvm_deadline: settings.kvm_deadline,
        engines: settings.engines.clone(),
        own_kernel: settings.guest_kernel.is_some(),
    }
}

/// Says what will be changed, asks, and does it.
async fn set_up(settings: &Settings, actions: &[Action], progress: &Progress) -> anyhow::Result<()> {
    let sentences: Vec<String> = actions.iter().map(|action| format!("\n  - {action}")).collect();
    output::note(&format!("to run sandboxes, this host needs these changes:{}", sentences.concat()));
    if !output::agreed(settings.consent, "make these changes?").status(ExitStatus::HostNotReady)? {
        return Err(anyhow!("nothing was changed")).status(ExitStatus::HostNotReady);
    }
    let logs = settings.cache_dir.join("logs");
    fs::create_dir_all(&logs)?;
    let step = progress.step("setting this host up");
    let log = logs.join("host-set-up.log");
    host::apply(actions, &log, &|event| step.at(&event.detail))
        .await
        .with_context(|| format!("cannot set this host up; `{}` has the details", log.display()))
        .status(ExitStatus::HostNotReady)?;
    step.done("this host is set up");
    Ok(())
}

fn failures(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.status == Status::Fail);
    let sentences = failed.map(|check| match &check.remedy {
        Some(remedy) => format!("{}: {} ({remedy})", check.name, check.found),
        None => format!("{}: {}", check.name, check.found),
    });
    sentences.collect::<Vec<_>>().join("; ")
}

fn table(checks: &[Check]) -> Table {
    let mut table = Table::new(&["check", "status", "found", "what to do"]);
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warning",
            Status::Fail => "FAILED",
        };
        table.row([check.name.to_owned(), status.to_owned(), check.found.clone(), check.remedy.clone().unwrap_or_default()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_told_with_its_remedy() {
        let check = |name, status, found: &str, remedy: Option<&str>| Check {
            name,
            status,
            found: found.to_owned(),
            why: "",
            remedy: remedy.map(str::to_owned),
            lack: None,
        };
        let checks = [
            check("root", Status::Fail, "uid 1000", Some("run it with sudo")),
            check("kvm", Status::Warn, "absent", Some("emulation is slow")),
            check("memory", Status::Ok, "24 GiB", None),
        ];
        assert_eq!(failures(&checks), "root: uid 1000 (run it with sudo)");
        assert_eq!(
            table(&checks).render(),
            "CHECK   STATUS   FOUND     WHAT TO DO\n\
             root    FAILED   uid 1000  run it with sudo\n\
             kvm     warning  absent    emulation is slow\n\
             memory  ok       24 GiB\n"
        );
    }
}
