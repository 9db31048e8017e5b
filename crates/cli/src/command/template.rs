//! `firkin template ...`

use anyhow::Context as _;
use firkin_wire::rest;
use jiff::Timestamp;

use super::sandbox::{each, relative};
use crate::{
    api::Api,
    args::RemoveArgs,
    failure::ExitStatus,
    output::{self, Table},
    serverfile,
    settings::Settings,
};

/// `firkin template ls`
pub(crate) async fn list(settings: &Settings) -> anyhow::Result<ExitStatus> {
    let templates = Api::new(serverfile::find(settings)?).templates().await.context("cannot list templates")?;
    output::result(settings.format, &templates, || listing(&templates, Timestamp::now()))?;
    Ok(ExitStatus::Success)
}

fn listing(templates: &[rest::Template], now: Timestamp) -> Table {
    let mut table = Table::new(&["template", "names", "status", "updated", ">cpus", ">memory", ">disk", ">created"]);
    for template in templates {
        let status = match template.build_status {
            rest::BuildStatus::Waiting => "waiting",
            rest::BuildStatus::Building => "building",
            rest::BuildStatus::Ready => "ready",
            rest::BuildStatus::Error => "error",
        };
        table.row([
            template.template_id.clone(),
            template.names.join(" "),
            status.to_owned(),
            relative(template.updated_at, now),
            template.cpu_count.to_string(),
            format!("{} MiB", template.memory_mb),
            format!("{} MiB", template.disk_size_mb),
            template.spawn_count.to_string(),
        ]);
    }
    table
}

/// `firkin template rm`
pub(crate) async fn remove(settings: &Settings, args: RemoveArgs) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    let remove = async |name: &str| api.remove_template(name).await.map(|()| "removed");
    each(settings, &args.names, "removed", remove).await
}
