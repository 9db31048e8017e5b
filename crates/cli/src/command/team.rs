//! `firkin team ...`: the teams of this host, through its server.

use anyhow::Context as _;
use http::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, escape},
    args::teams::{QuotaArgs, TeamCommand},
    failure::{ExitStatus, advised},
    output::{self, Table},
    serverfile,
    settings::Settings,
};

/// Who administers this host: its server, and the token that it left in its state directory.
pub(super) struct Admin {
    api: Api,
    token: String,
}

impl Admin {
    pub(super) fn find(settings: &Settings) -> anyhow::Result<Self> {
        let path = settings.admin_token_file();
        let token = serverfile::read_api_key(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let token = token.ok_or_else(|| {
            let error = anyhow::anyhow!("cannot administer a server: there is no `{}`", path.display());
            advised(error, Some("`--state-dir` names the directory of a server, which leaves it there".to_owned()), None)
        })?;
        Ok(Self { api: Api::new(serverfile::find(settings)?), token })
    }

    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.api.admin(&self.token, method, path, body).await
    }
}

/// Runs a `firkin team` command.
pub(crate) async fn run(settings: &Settings, command: TeamCommand) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    let teams = match command {
        TeamCommand::Add(args) => {
            let body = json!({"teamID": args.id, "name": args.name, "quota": quota(args.quota)});
            let made = admin.ask(Method::POST, "/teams", Some(&body)).await.context("cannot make a team")?;
            output::note(&format!("hint: `firkin key add {}` makes a key of it", args.id));
            made
        }
        TeamCommand::Ls => admin.ask(Method::GET, "/teams", None).await.context("cannot list teams")?,
        TeamCommand::Quota(args) => {
            let path = format!("/teams/{}/quota", escape(&args.id));
            admin.ask(Method::PUT, &path, Some(&quota(args.quota))).await.context("cannot change what the team may have")?
        }
    };
    output::result(settings.format, &teams, || table(&teams))?;
    Ok(ExitStatus::Success)
}

/// What is asked for, without what is not.
fn quota(args: QuotaArgs) -> Value {
    let QuotaArgs { running, paused, cpus, memory_mib, disk_mib, snapshots, volumes, creates_per_minute } = args;
    let mut quota = json!({
        "running": running, "paused": paused, "cpus": cpus, "memory_mib": memory_mib, "disk_mib": disk_mib,
        "snapshots": snapshots, "volumes": volumes, "creates_per_minute": creates_per_minute,
    });
    if let Some(fields) = quota.as_object_mut() {
        fields.retain(|_, most| !most.is_null());
    }
    quota
}

/// One team, or a list of them.
fn table(teams: &Value) -> Table {
    let mut table = Table::new(&["team", "name", "since", "at most"]);
    let one = std::slice::from_ref(teams);
    for team in teams.as_array().map_or(one, Vec::as_slice) {
        let text = |name: &str| team[name].as_str().unwrap_or("-").to_owned();
        let most = team["quota"].as_object().into_iter().flatten().map(|(name, most)| format!("{most} {name}"));
        let most: Vec<String> = most.collect();
        let most = if most.is_empty() { "-".to_owned() } else { most.join(", ") };
        table.row([text("teamID"), text("name"), text("createdAt"), most]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn teams_are_shown_with_what_they_may_have() {
        let none = QuotaArgs {
            running: None,
            paused: None,
            cpus: None,
            memory_mib: None,
            disk_mib: None,
            snapshots: None,
            volumes: None,
            creates_per_minute: None,
        };
        assert_eq!(quota(none), json!({}));
        let some = quota(QuotaArgs { running: Some(4), memory_mib: Some(0), ..none });
        assert_eq!(some, json!({"running": 4, "memory_mib": 0}));
        let teams = json!([
            {"teamID": "b", "name": "B & Co", "createdAt": "2026-01-01T00:00:00Z", "quota": some},
            {"teamID": "firkin", "name": "firkin", "createdAt": "2026-01-01T00:00:00Z", "quota": {}},
        ]);
        let expected = [
            "TEAM    NAME    SINCE                 AT MOST",
            "b       B & Co  2026-01-01T00:00:00Z  0 memory_mib, 4 running",
            "firkin  firkin  2026-01-01T00:00:00Z  -",
        ];
        assert_eq!(table(&teams).render().lines().collect::<Vec<_>>(), expected);
    }
}
