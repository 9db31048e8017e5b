//! `firkin template refresh`: guest kernel and root images of what the mirror has now, and the host's own templates on them.
//!
//! Security updates of a guest's packages come to a host in no other way: what is in the cache is used for as long as it is there.
//! What exists stands on the old files until a build of the new ones is on record, and sandboxes for as long as they live, so
//! nothing of the old is removed here.

use std::time::SystemTime;

use firkin_image::{Additions, Cache, host_certificates, kept_kernels, kept_rootfs};
use firkin_runtime::{
    owner::OnExit,
    reference::{BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY},
    runtime::Runtime,
    standard::BuildTemplate,
};

use super::{
    Built, begin, follow,
    hosting::{self, Interrupts},
    made, running_server, shown,
};
use crate::{
    api::Api,
    args::RefreshArgs,
    failure::ExitStatus,
    output,
    progress::Progress,
    settings::Settings,
    standard::{Part, Standard},
};

/// The templates that stand on packages of the host's mirror.
const OWN: [&str; 4] = [BASE, CODE_INTERPRETER, DESKTOP, MCP_GATEWAY];

/// A template that is there, and the size of its sandboxes.
struct Kept {
    standard: Standard,
    cpus: u32,
    memory_mib: u32,
}

impl Kept {
    /// What is asked of a server for it, or made here.
    fn request(&self, settings: &Settings) -> BuildTemplate {
        let template = self.standard.template(None, settings.template_env());
        BuildTemplate { cpus: self.cpus, memory_mib: self.memory_mib, ..template }
    }
}

/// `firkin template refresh`
pub(crate) async fn refresh(settings: &Settings, args: RefreshArgs) -> anyhow::Result<ExitStatus> {
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::on_stderr(settings.live_progress);
    let wanted: Vec<Standard> = wanted(settings, &args);
    let built = match running_server(settings).await? {
        Some((api, _)) => interrupts.unless(by_server(settings, &api, wanted, &progress)).await?,
        None => here(settings, wanted, &mut interrupts, &progress).await?,
    };
    let Some(built) = built else { return Ok(ExitStatus::Interrupted) };
    output::result(settings.format, &built, || made(&built))?;
    Ok(ExitStatus::Success)
}

/// The templates that were named, or all of the host's own.
fn wanted(settings: &Settings, args: &RefreshArgs) -> Vec<Standard> {
    let named = |name: &&str| args.names.is_empty() || args.names.iter().any(|given| given == name);
    let without = |name: &str| match &args.without {
        Some(parts) if name == CODE_INTERPRETER => parts.clone(),
        None if name == CODE_INTERPRETER => left_out(settings),
        Some(_) | None => Vec::new(),
    };
    OWN.into_iter().filter(named).map(|name| Standard::of(name, &without(name)).renewed()).collect()
}

/// What the code interpreter was made without here the last time.
fn left_out(settings: &Settings) -> Vec<Part> {
    let Some(cache) = Cache::existing(&settings.cache_dir) else { return Vec::new() };
    // Of every kernel: the newest may have come after what was made the last time.
    let kernels = kept_kernels(&cache);
    let authorities = [Vec::new(), host_certificates(std::path::Path::new("/")).unwrap_or_default()];
    let last = |without: &Vec<Part>| -> Option<SystemTime> {
        let spec = Standard::of(CODE_INTERPRETER, without).root()?;
        let additions = kernels.iter().flat_map(|kernel| {
            authorities.iter().map(|certificates| Additions { kernel: kernel.clone(), certificates: certificates.clone() })
        });
        additions.filter_map(|additions| kept_rootfs(&cache, &spec, &additions)).max()
    };
    let made = Standard::choices().filter_map(|without| Some((last(&without)?, without)));
    made.max_by_key(|(when, _)| *when).map(|(_, without)| without).unwrap_or_default()
}

/// Has the server that runs renew what it makes guests of, and its templates, one after the other.
async fn by_server(settings: &Settings, api: &Api, wanted: Vec<Standard>, progress: &Progress) -> anyhow::Result<Vec<Built>> {
    let templates = api.templates().await?;
    let mut built = Vec::new();
    for standard in wanted {
        let there = templates.iter().find(|template| template.aliases.iter().any(|alias| alias == standard.name()));
        let Some(there) = there else { continue };
        let kept = Kept { standard, cpus: there.cpu_count, memory_mib: there.memory_mb };
        let request = kept.request(settings);
        let place = begin(api, &kept.standard, &request, false).await?;
        built.push(follow(api, place, &request, progress).await?);
    }
    Ok(built)
}

/// The same without a server. `None` if interrupted.
async fn here(
    settings: &Settings,
    wanted: Vec<Standard>,
    interrupts: &mut Interrupts,
    progress: &Progress,
) -> anyhow::Result<Option<Vec<Built>>> {
    hosting::demand_unused(settings)?;
    let opened = async {
        super::super::doctor::ensure_ready(settings, progress).await?;
        hosting::renew(settings, progress).await?;
        hosting::open_runtime(settings, progress).await
    };
    let Some(runtime) = interrupts.unless(opened).await? else { return Ok(None) };
    let built = interrupts.unless(build(settings, &runtime, wanted, progress)).await;
    runtime.shutdown(OnExit::Pause).await;
    built
}

async fn build(settings: &Settings, runtime: &Runtime, wanted: Vec<Standard>, progress: &Progress) -> anyhow::Result<Vec<Built>> {
    let mut built = Vec::new();
    for standard in wanted {
        let Some(there) = runtime.template(standard.name()).await? else { continue };
        let (cpus, memory_mib) = (there.budget.cpus, u32::try_from(there.budget.memory_mib)?);
        let kept = Kept { standard, cpus, memory_mib };
        let root = match kept.standard.root() {
            None => None,
            Some(spec) => Some(hosting::renewed_root_of(settings, kept.standard.name(), &spec, progress).await?),
        };
        let request = BuildTemplate { root, ..kept.request(settings) };
        let (template, is_new) = hosting::ensure(runtime, request, progress).await?;
        built.push(shown(template, is_new));
    }
    Ok(built)
}
