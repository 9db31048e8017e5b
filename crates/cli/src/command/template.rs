//! `firkin template ...`, through the server; builds also without one.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use firkin_runtime::{
    owner::OnExit,
    reference::{CODE_INTERPRETER, DEFAULT, TemplateName},
    standard::BuildTemplate,
    template::TemplateInfo,
};
use firkin_wire::{builds, rest};
use jiff::Timestamp;
use serde::Serialize;

mod refresh;

pub(crate) use refresh::refresh;

use super::{
    hosting::{self, Interrupts},
    quickstart::running_server,
    sandbox::{each, relative},
};
use crate::{
    api::Api,
    args::{BuildArgs, RemoveArgs},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    progress::Progress,
    serverfile,
    settings::Settings,
    standard::Standard,
};

/// How long a template's own ready command may take to succeed.
const READY_DEADLINE: Duration = Duration::from_secs(600);

/// Between two looks at a build of the server's.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// The log line of a build whose template was made already.
const UNCHANGED: &str = "CACHED [finalize]";

/// The report of a build.
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
    let (force, standard) = (args.force, Standard::of(&args.name, &args.without));
    let standard_of = BuildTemplate { engine: settings.asked_engine(), ..standard.template(None, settings.template_env()) };
    let request = request(args, standard_of)?;
    let built = match running_server(settings).await? {
        Some((api, _)) => {
            if settings.trust_host_certificates {
                output::note("the server builds it: whom its guests trust is the server's `--trust-host-certificates`");
            }
            match interrupts.unless(begin(&api, &standard, &request, force)).await? {
                None => None,
                Some(place) => {
                    let built = interrupts.unless(follow(&api, place, &request, &progress)).await?;
                    if built.is_none() {
                        output::note("the build goes on in the server");
                    }
                    built
                }
            }
        }
        None => here(settings, &standard, request, force, (&mut interrupts, &progress)).await?,
    };
    let Some(result) = built else { return Ok(ExitStatus::Interrupted) };
    output::result(settings.format, &result, || made(std::slice::from_ref(&result)))?;
    Ok(ExitStatus::Success)
}

fn made(builds: &[Built]) -> Table {
    let mut table = Table::new(&["template", "names", "result", ">cpus", ">memory"]);
    for built in builds {
        let outcome = if built.built { "built" } else { "unchanged" };
        table.row([
            built.template_id.clone(),
            built.names.join(" "),
            outcome.to_owned(),
            built.cpus.to_string(),
            format!("{} MiB", built.memory_mib),
        ]);
    }
    table
}

/// Has the server that runs build the template, which it goes on serving meanwhile.
async fn begin(api: &Api, standard: &Standard, request: &BuildTemplate, force: bool) -> anyhow::Result<builds::RequestedBuild> {
    let failed = || format!("cannot build template `{}`", request.name);
    let asked = builds::RequestBuild {
        name: Some(request.name.clone()),
        cpu_count: Some(request.cpus.into()),
        memory_mb: Some(request.memory_mib.into()),
        ..Default::default()
    };
    let place = api.request_build(&asked).await.with_context(failed)?;
    let build = builds::StartBuild {
        from_image: Some(standard.reference()),
        force: Some(force),
        start_cmd: request.start.clone(),
        ready_cmd: request.ready.clone(),
        nested_virtualization: Some(request.nested_virtualization),
        engine: request.engine.map(|engine| engine.word().to_owned()),
        ..Default::default()
    };
    api.start_build(&place, &build).await.with_context(failed)?;
    Ok(place)
}

/// Tells what the server says of the build until it ends.
async fn follow(api: &Api, place: builds::RequestedBuild, request: &BuildTemplate, progress: &Progress) -> anyhow::Result<Built> {
    let failed = || format!("cannot build template `{}`", request.name);
    let step = progress.step(&format!("template {}, by the server at {}", request.name, api.target().api_url));
    let (mut seen, mut unchanged) = (0, false);
    loop {
        let status = api.build_status(&place, seen).await.with_context(failed)?;
        seen += status.log_entries.len();
        for entry in &status.log_entries {
            step.at(&entry.message);
            unchanged |= entry.message.starts_with(UNCHANGED);
        }
        match (status.status, status.reason) {
            (rest::BuildStatus::Ready, _) => break,
            (rest::BuildStatus::Error, reason) => return Err(broken(reason)).with_context(failed),
            (rest::BuildStatus::Waiting | rest::BuildStatus::Building, _) => {}
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    step.done(&format!("template {}{}", request.name, if unchanged { "" } else { " built" }));
    Ok(Built {
        template_id: place.template_id,
        build_id: place.build_id,
        names: place.aliases,
        cpus: request.cpus,
        memory_mib: request.memory_mib.into(),
        built: !unchanged,
    })
}

/// Why a build of the server's failed, with the last that it said.
fn broken(reason: Option<builds::BuildReason>) -> anyhow::Error {
    let Some(builds::BuildReason { message, log_entries, .. }) = reason else { return anyhow!("the server does not say why") };
    let said: Vec<&str> =
        log_entries.iter().map(|entry| entry.message.as_str()).filter(|said| !said.contains(&message)).collect();
    if said.is_empty() { anyhow!(message) } else { anyhow!("{message}; the build said last:\n{}", said.join("\n")) }
}

/// Builds the template without a server. `None` if interrupted.
async fn here(
    settings: &Settings,
    standard: &Standard,
    request: BuildTemplate,
    force: bool,
    (interrupts, progress): (&mut Interrupts, &Progress),
) -> anyhow::Result<Option<Built>> {
    // A root image of languages takes minutes: not to be told after them that nothing can be built.
    hosting::demand_unused(settings)?;
    let root = match standard.root() {
        None => None,
        Some(spec) => match interrupts.unless(hosting::root_of(settings, &request.name, &spec, progress)).await? {
            Some(root) => Some(root),
            None => return Ok(None),
        },
    };
    let request = BuildTemplate { root, ..request };
    let Some(runtime) = interrupts.unless(hosting::open_runtime(settings, progress)).await? else { return Ok(None) };
    let work = async {
        if force {
            hosting::build(&runtime, request, progress).await.map(|template| (template, true))
        } else {
            hosting::ensure(&runtime, request, progress).await
        }
    };
    let built = interrupts.unless(work).await;
    // What was paused stays paused; nothing else can be here.
    runtime.shutdown(OnExit::Pause).await;
    Ok(built?.map(|(template, built)| shown(template, built)))
}

/// The request to the runtime. Every server makes sure of its base template, so that one is always the same.
fn request(args: BuildArgs, standard: BuildTemplate) -> anyhow::Result<BuildTemplate> {
    if !args.without.is_empty() && args.name != CODE_INTERPRETER {
        return Err(anyhow!("template `{}` has no parts to leave out", args.name)).hint("only `code-interpreter-v1` has");
    }
    args.name.parse::<TemplateName>()?;
    let base = BuildTemplate { env: standard.env.clone(), engine: standard.engine, ..BuildTemplate::base() };
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
    let tagged = |tag: &String| if tag == DEFAULT { name.clone() } else { format!("{name}:{tag}") };
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
    use crate::args::{Cli, Command, TemplateCommand};

    fn requested(line: &str) -> anyhow::Result<BuildTemplate> {
        requested_of(line, BuildTemplate::base())
    }

    fn requested_of(line: &str, standard: BuildTemplate) -> anyhow::Result<BuildTemplate> {
        request(parsed(line), standard)
    }

    fn parsed(line: &str) -> BuildArgs {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Template(TemplateCommand::Build(args)) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_base_template_cannot_be_another() {
        assert_eq!(requested("firkin template build").unwrap(), BuildTemplate::base());
        assert!(requested("firkin template build base --memory 1024").is_err());
        // What the server would take for another name than it looks like.
        for name in ["Base", "firkin/base", "base:v1", "Desktop", ""] {
            let args = BuildArgs { name: name.into(), ..parsed("firkin template build") };
            let error = request(args, BuildTemplate::base()).unwrap_err();
            assert!(error.to_string().contains("is not a name for a template"), "{name}: {error}");
        }
        let own = requested("firkin template build big --memory 1024 --ready-cmd true").unwrap();
        assert_eq!((own.name.as_str(), own.memory_mib, own.ready.as_deref()), ("big", 1024, Some("true")));
    }

    #[test]
    fn the_code_interpreter_has_its_own_root_image_and_size() {
        let standard = BuildTemplate::code_interpreter();
        let asked = requested_of("firkin template build code-interpreter-v1", standard.clone()).unwrap();
        assert_eq!(asked, standard);
        let larger = requested_of("firkin template build code-interpreter-v1 --memory 4096", standard.clone()).unwrap();
        assert_eq!((larger.cpus, larger.memory_mib, larger.ready), (standard.cpus, 4096, standard.ready));
    }

    #[test]
    fn a_desktop_starts_itself_unless_another_command_is_to() {
        let standard = BuildTemplate::desktop();
        assert_eq!(requested_of("firkin template build desktop", standard.clone()).unwrap(), standard);
        let other = requested_of("firkin template build desktop --start-cmd x", standard.clone()).unwrap();
        assert_eq!((other.start.as_deref(), other.ready), (Some("x"), standard.ready));
    }

    #[test]
    fn parts_are_left_out_of_the_code_interpreter_only() {
        assert!(requested("firkin template build --without r,java,science").is_err());
        let standard = BuildTemplate::code_interpreter();
        assert!(requested_of("firkin template build code-interpreter-v1 --without r,java,science", standard).is_ok());
    }
}
