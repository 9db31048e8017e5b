//! `firkin webhook ...`: where events of sandboxes are sent.

use std::io::Read as _;

use anyhow::{Context as _, anyhow};
use fs_err as fs;
use http::Method;
use serde_json::{Value, json};

use crate::{
    api::{Api, escape},
    args::watching::{AddWebhookArgs, Lifecycle, WebhookCommand},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    serverfile,
    settings::Settings,
};

/// The longest secret that is read, bytes.
const MAX_SECRET_BYTES: u64 = 1024;

/// Runs a `firkin webhook` command.
pub(crate) async fn run(settings: &Settings, command: WebhookCommand) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    let path = |id: &str, rest: &str| format!("/events/webhooks/{}{rest}", escape(id));
    let switch =
        async |id: &str, enabled: bool| api.ask(Method::PATCH, &path(id, ""), Some(&json!({ "enabled": enabled }))).await;
    let answer = match command {
        WebhookCommand::Add(args) => add(&api, &args).await?,
        WebhookCommand::Ls => api.get("/events/webhooks").await.context("cannot list webhooks")?,
        WebhookCommand::Rm(args) => {
            api.ask(Method::DELETE, &path(&args.id, ""), None).await.with_context(|| format!("`{}` was not removed", args.id))?;
            return done(settings, &json!({"id": args.id, "result": "removed"}));
        }
        WebhookCommand::Enable(args) => switch(&args.id, true).await.with_context(|| format!("`{}` was not enabled", args.id))?,
        WebhookCommand::Disable(args) => {
            switch(&args.id, false).await.with_context(|| format!("`{}` was not disabled", args.id))?
        }
        WebhookCommand::Deliveries(args) => {
            let found = api.get(&path(&args.id, "/deliveries")).await.context("cannot list deliveries")?;
            output::result(settings.format, &found, || deliveries(&found))?;
            return Ok(ExitStatus::Success);
        }
        WebhookCommand::Retry(args) => {
            let answer = api.ask(Method::POST, &path(&args.id, "/deliveries/retry"), None).await.context("cannot send again")?;
            return done(settings, &json!({"id": args.id, "result": format!("{} sent again", answer["retried"])}));
        }
    };
    output::result(settings.format, &answer, || table(&answer))?;
    Ok(ExitStatus::Success)
}

fn done(settings: &Settings, outcome: &Value) -> anyhow::Result<ExitStatus> {
    output::result(settings.format, outcome, || {
        let mut table = Table::new(&["id", "result"]);
        table.row(["id", "result"].map(|name| outcome[name].as_str().unwrap_or_default().to_owned()));
        table
    })?;
    Ok(ExitStatus::Success)
}

async fn add(api: &Api, args: &AddWebhookArgs) -> anyhow::Result<Value> {
    let mut secret = String::new();
    if args.secret_file.as_os_str() == "-" {
        std::io::stdin().take(MAX_SECRET_BYTES + 2).read_to_string(&mut secret).context("cannot read the secret")?;
    } else {
        fs::File::open(&args.secret_file)?.take(MAX_SECRET_BYTES + 2).read_to_string(&mut secret)?;
    }
    let secret = secret.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(anyhow!("the secret is empty"))
            .hint("pipe it in (`openssl rand -hex 32 | firkin webhook add URL`), or name its file");
    }
    let events: Vec<_> = args.events.iter().copied().map(Lifecycle::name).collect();
    let body = json!({"name": args.name, "url": args.url, "events": events, "signatureSecret": secret});
    api.ask(Method::POST, "/events/webhooks", Some(&body)).await.context("cannot add a webhook")
}

/// One webhook, or a list of them.
fn table(webhooks: &Value) -> Table {
    let mut table = Table::new(&["id", "name", "enabled", "url", "events"]);
    let one = std::slice::from_ref(webhooks);
    for webhook in webhooks.as_array().map_or(one, Vec::as_slice) {
        let text = |name: &str| webhook[name].as_str().unwrap_or("-").to_owned();
        let enabled = if webhook["enabled"] == true { "yes" } else { "no" };
        let events = webhook["events"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let events: Vec<_> = events.map(|event| event.trim_start_matches("sandbox.lifecycle.")).collect();
        table.row([text("id"), text("name"), enabled.to_owned(), text("url"), events.join(" ")]);
    }
    table
}

fn deliveries(found: &Value) -> Table {
    let mut table = Table::new(&["at", "event", "state", ">attempts", "next", "why"]);
    for delivery in found.as_array().into_iter().flatten() {
        let text = |name: &str| delivery[name].as_str().unwrap_or("-").to_owned();
        let kind = text("type").trim_start_matches("sandbox.lifecycle.").to_owned();
        table.row([
            text("timestamp"),
            kind,
            text("state"),
            delivery["attempts"].to_string(),
            text("nextAttemptAt"),
            text("error"),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhooks_and_deliveries_are_rows() {
        let hook = json!({"id": "w", "name": "n", "enabled": true, "url": "https://a/", "events": ["sandbox.lifecycle.created"]});
        assert_eq!(table(&hook).render(), "ID  NAME  ENABLED  URL         EVENTS\nw   n     yes      https://a/  created\n");
        let found = json!([{
            "timestamp": "2026-01-01T00:00:00Z", "type": "sandbox.lifecycle.killed", "state": "dead", "attempts": 6,
            "nextAttemptAt": null, "error": "the receiver answered with status 503",
        }]);
        assert_eq!(
            deliveries(&found).render(),
            "AT                    EVENT   STATE  ATTEMPTS  NEXT  WHY\n\
             2026-01-01T00:00:00Z  killed  dead          6  -     the receiver answered with status 503\n"
        );
    }
}
