//! `firkin sandbox watch`: what changes in a directory of a sandbox, a line each.

use anyhow::Context as _;
use serde_json::json;

use crate::{
    api::Api,
    args::watching::WatchArgs,
    envd::{Access, Files},
    failure::ExitStatus,
    interrupts::Interrupts,
    output,
    settings::{Format, Settings},
};

/// Runs the command.
pub(super) async fn run(api: &Api, settings: &Settings, args: &WatchArgs) -> anyhow::Result<ExitStatus> {
    let sandbox = api.sandbox(&args.id).await?;
    let access = Access { sandbox_id: &args.id, token: sandbox.envd_access_token.as_deref(), user: Some(&args.user) };
    let files = Files::new(api.target(), &access)?;
    let mut changes = files.watch(&args.path, args.recursive).await.with_context(|| format!("cannot watch `{}`", args.path))?;
    let mut interrupts = Interrupts::default();
    loop {
        let change = tokio::select! {
            change = changes.next() => change?,
            interrupted = interrupts.next() => return interrupted.map(|()| ExitStatus::Interrupted),
        };
        let Some((kind, name)) = change else { return Ok(ExitStatus::Success) };
        match settings.format {
            Format::Json => output::text(&format!("{}\n", json!({"event": kind, "name": name})))?,
            Format::Table => {
                let name: String = name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                output::text(&format!("{kind:<6}  {name}\n"))?;
            }
        }
    }
}
