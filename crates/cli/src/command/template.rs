//! `firkin template ...`: lists and removes through the server, builds without one.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use firkin_image::{HeavyPart, RootSpec};
use firkin_runtime::{
    desktop::DESKTOP,
    owner::OnExit,
    reference::{CODE_INTERPRETER, MCP_GATEWAY},
    template::{BuildTemplate, TemplateInfo},
};
use firkin_wire::rest;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    hosting::{self, Interrupts},
    sandbox::{each, relative},
};
use crate::{
    api::Api,
    args::{BuildArgs, Part, RemoveArgs},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    progress::Progress,
    serverfile,
    settings::Settings,
};

/// How long a template's own ready command may take to succeed.
const READY_DEADLINE: Duration = Duration::from_secs(600);

/// What a build made.
#[derive(Debug, Serialize)]
struct Built {
    template_id: String,
    build_id: String,
    names: Vec<String>,
    cpus: u32,
    memory_mib: u64,
    built: bool,
}

/// `firkin template build`
pub(crate) async fn build(settings: &Settings, args: BuildArgs) -> anyhow::Result<ExitStatus> {
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::on_stderr(settings.live_progress);
    // A root image of languages takes minutes: not to be told after them that nothing can be built.
    hosting::demand_unused(settings)?;
    let force = args.force;
    let spec = match args.name.as_str() {
        CODE_INTERPRETER => Some(RootSpec::code_interpreter(&parts(&args.without))),
        DESKTOP => Some(RootSpec::desktop()),
        _ => None,
    };
    let root = match spec {
        Some(spec) => match interrupts.unless(hosting::root_of(settings, &args.name, &spec, &progress)).await? {
            Some(root) => Some(root),
            None => return Ok(ExitStatus::Interrupted),
        },
        None => None,
    };
    let standard = match (args.name.as_str(), root) {
        (CODE_INTERPRETER, Some(root)) => BuildTemplate::code_interpreter(root),
        (DESKTOP, Some(root)) => BuildTemplate::desktop(root),
        (MCP_GATEWAY, _) => BuildTemplate::mcp_gateway(crate::host::mcp_gateway()),
        _ => BuildTemplate::base(),
    };
    let standard = BuildTemplate { env: settings.template_env(), ..standard };
    let request = request(args, standard)?;
    let Some(runtime) = interrupts.unless(hosting::open_runtime(settings, &progress)).await? else {
        return Ok(ExitStatus::Interrupted);
    };
    let work = async {
        if force {
            hosting::build(&runtime, request, &progress).await.map(|template| (template, true))
        } else {
            hosting::ensure(&runtime, request, &progress).await
        }
    };
    let built = interrupts.unless(work).await;
    // What was paused stays paused; nothing else can be here.
    runtime.shutdown(OnExit::Pause).await;
    let Some((template, built)) = built? else { return Ok(ExitStatus::Interrupted) };
    let result = shown(template, built);
    output::result(settings.format, &result, || {
        let mut table = Table::new(&["template", "names", "result", ">cpus", ">memory"]);
        let outcome = if result.built { "built" } else { "unchanged" };
        table.row([
            result.template_id.clone(),
            result.names.join(" "),
            outcome.to_owned(),
            result.cpus.to_string(),
            format!("{} MiB", result.memory_mib),
        ]);
        table
    })?;
    Ok(ExitStatus::Success)
}

/// Those that were not left out.
fn parts(without: &[Part]) -> Vec<HeavyPart> {
    let left_out = |part: HeavyPart| match part {
        HeavyPart::R => without.contains(&Part::R),
        HeavyPart::Java => without.contains(&Part::Java),
        HeavyPart::Science => without.contains(&Part::Science),
    };
    HeavyPart::ALL.into_iter().filter(|part| !left_out(*part)).collect()
}

/// What is asked of the runtime. Every server makes sure of its base template, so that one is always the same.
fn request(args: BuildArgs, standard: BuildTemplate) -> anyhow::Result<BuildTemplate> {
    if !args.without.is_empty() && args.name != CODE_INTERPRETER {
        return Err(anyhow!("template `{}` has no parts to leave out", args.name)).hint("only `code-interpreter-v1` has");
    }
    let base = BuildTemplate { env: standard.env.clone(), ..BuildTemplate::base() };
    let request = BuildTemplate {
        ready_deadline: if args.ready_cmd.is_some() { READY_DEADLINE } else { standard.ready_deadline },
        ready: args.ready_cmd.or_else(|| standard.ready.clone()),
        cpus: args.cpus.unwrap_or(standard.cpus),
        memory_mib: args.memory.unwrap_or(standard.memory_mib),
        nested_virtualization: args.nested_virtualization,
        start: args.start_cmd.or_else(|| standard.start.clone()),
        name: args.name,
        ..standard
    };
    if request.name == base.name && request != base {
        return Err(anyhow!("template `{}` is built by every server as it is", base.name)).hint("give yours a name of its own");
    }
    Ok(request)
}

fn shown(template: TemplateInfo, built: bool) -> Built {
    Built {
        template_id: template.id,
        build_id: template.build_id,
        names: template.aliases,
        cpus: template.budget.cpus,
        memory_mib: template.budget.memory_mib,
        built,
    }
}

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
            named(template).join(" "),
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

/// Each name that a sandbox can be created from.
fn named(template: &rest::Template) -> Vec<String> {
    let Some(name) = template.aliases.first() else { return Vec::new() };
    let tagged = |tag: &String| if tag == "default" { name.clone() } else { format!("{name}:{tag}") };
    // Of one that has never been built nothing can be created, but it is called something.
    if template.tags.is_empty() { vec![name.clone()] } else { template.tags.iter().map(tagged).collect() }
}

/// `firkin template rm`
pub(crate) async fn remove(settings: &Settings, args: RemoveArgs) -> anyhow::Result<ExitStatus> {
    let api = Api::new(serverfile::find(settings)?);
    let remove = async |name: &str| api.remove_template(name).await.map(|()| "removed");
    each(settings, &args.names, "removed", remove).await
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use firkin_runtime::images::RootDisk;

    use crate::args::{Cli, Command, TemplateCommand};

    fn requested(line: &str) -> anyhow::Result<BuildTemplate> {
        requested_of(line, BuildTemplate::base())
    }

    fn requested_of(line: &str, standard: BuildTemplate) -> anyhow::Result<BuildTemplate> {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Template(TemplateCommand::Build(args)) => request(args, standard),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_base_template_cannot_be_another() {
        assert_eq!(requested("firkin template build").unwrap(), BuildTemplate::base());
        assert!(requested("firkin template build base --memory 1024").is_err());
        let own = requested("firkin template build big --memory 1024 --ready-cmd true").unwrap();
        assert_eq!((own.name.as_str(), own.memory_mib, own.ready.as_deref()), ("big", 1024, Some("true")));
    }

    #[test]
    fn the_code_interpreter_has_its_own_root_image_and_size() {
        let root = RootDisk { path: "/r".into(), digest: "d".into(), bytes: 1 << 30 };
        let standard = BuildTemplate::code_interpreter(root);
        let asked = requested_of("firkin template build code-interpreter-v1", standard.clone()).unwrap();
        assert_eq!(asked, standard);
        let larger = requested_of("firkin template build code-interpreter-v1 --memory 4096", standard.clone()).unwrap();
        assert_eq!((larger.cpus, larger.memory_mib, larger.ready), (standard.cpus, 4096, standard.ready));
    }

    #[test]
    fn a_desktop_starts_itself_unless_another_command_is_to() {
        let root = RootDisk { path: "/r".into(), digest: "d".into(), bytes: 1 << 30 };
        let standard = BuildTemplate::desktop(root);
        assert_eq!(requested_of("firkin template build desktop", standard.clone()).unwrap(), standard);
        let other = requested_of("firkin template build desktop --start-cmd x", standard.clone()).unwrap();
        assert_eq!((other.start.as_deref(), other.ready), (Some("x"), standard.ready));
    }

    #[test]
    fn parts_are_left_out_of_the_code_interpreter_only() {
        assert_eq!(parts(&[]), HeavyPart::ALL);
        assert_eq!(parts(&[Part::Java]), [HeavyPart::R, HeavyPart::Science]);
        assert!(requested("firkin template build --without r,java,science").is_err());
        let root = RootDisk { path: "/r".into(), digest: "d".into(), bytes: 1 << 30 };
        let standard = BuildTemplate::code_interpreter(root);
        assert!(requested_of("firkin template build code-interpreter-v1 --without r,java,science", standard).is_ok());
    }
}
