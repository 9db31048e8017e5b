//! `firkin log-level`: what the server logs, changed while it runs.

use anyhow::Context as _;
use http::Method;
use serde_json::json;

use super::team::Admin;
use crate::{
    args::watching::LogLevelArgs,
    failure::ExitStatus,
    output::{self, Table},
    settings::Settings,
};

/// Runs the command.
pub(crate) async fn run(settings: &Settings, args: &LogLevelArgs) -> anyhow::Result<ExitStatus> {
    let admin = Admin::find(settings)?;
    let answer = match &args.filter {
        None => admin.ask(Method::GET, "/log-level", None).await.context("cannot tell what is logged")?,
        Some(filter) => {
            let body = json!({ "filter": filter });
            admin.ask(Method::PUT, "/log-level", Some(&body)).await.context("cannot change what is logged")?
        }
    };
    output::result(settings.format, &answer, || {
        let mut table = Table::new(&["filter"]);
        table.row([answer["filter"].as_str().unwrap_or_default().to_owned()]);
        table
    })?;
    Ok(ExitStatus::Success)
}
