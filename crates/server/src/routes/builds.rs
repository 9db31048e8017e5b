//! Template builds as E2B's SDKs ask for them: a place, files, a start, and looking at how it goes.

use std::sync::Arc;

use axum::{
    Json as Reply,
    extract::{Path, Request, State},
};
use firkin_runtime::{
    build::{BuildInfo, BuildPlan, BuildRequest, Source, StepSpec, dockerfile},
    engines::Acceleration,
    images::{ImageRequest, RegistryLogin},
    reference::with_team,
    store::{BuildLogEntry, BuildReason, KeyScope},
    team::TeamId,
};
use firkin_wire::{builds, rest};
use http::{StatusCode, header};
use jiff::Timestamp;

use crate::{
    App,
    auth::{self, Caller},
    error::ApiError,
    extract::{Json, piece},
    listing::Query,
    serve::Encrypted,
    shape::build_status,
};

/// Log entries of one answer, at most and by default. The SDKs count on no more.
const MAX_ENTRIES: usize = 100;

/// Last log entries of a failed step that its reason repeats.
const REASON_ENTRIES: usize = 20;

/// How long an upload may begin after it was announced: the SDKs' own deadline for one.
const UPLOAD_SECONDS: i64 = 3600;

/// A path of a template and something of it.
type Pair = Path<(String, String)>;

/// `POST /v3/templates`.
pub(super) async fn request(
    caller: Caller,
    body: Json<builds::RequestBuild>,
) -> Result<(StatusCode, Reply<builds::RequestedBuild>), ApiError> {
    let body = body.value;
    let name = body.name.or(body.alias).ok_or_else(|| ApiError::bad_request("`name` is missing"))?;
    let request = BuildRequest {
        name: Some(name),
        tags: body.tags.unwrap_or_default(),
        cpus: body.cpu_count,
        memory_mib: body.memory_mb,
        min_free_disk_mib: body.min_free_disk_mb,
    };
    place(&caller, &request).await
}

async fn place(caller: &Caller, request: &BuildRequest) -> Result<(StatusCode, Reply<builds::RequestedBuild>), ApiError> {
    let place = caller.runtime.request_build(request).await?;
    let answer = builds::RequestedBuild {
        template_id: place.template_id,
        build_id: place.build_id,
        public: place.public,
        names: place.name.iter().map(|name| with_team(&place.owner, name)).collect(),
        tags: place.tags,
        aliases: place.name.into_iter().collect(),
    };
    Ok((StatusCode::ACCEPTED, Reply(answer)))
}

/// `POST /templates`, as clients before the second kind of builds: they build an image themselves, push it to the service's registry,
/// and have a template made of that. There is no registry here, so such a client is told so before it builds anything. A request
/// without a Dockerfile has nothing to push, and gets a place like any other.
pub(super) async fn request_legacy(
    caller: Caller,
    body: Json<builds::RequestLegacyBuild>,
) -> Result<(StatusCode, Reply<builds::RequestedBuild>), ApiError> {
    let body = body.value;
    if body.dockerfile.is_some_and(|text| !text.is_empty()) || body.start_cmd.is_some() || body.ready_cmd.is_some() {
        return Err(no_registry());
    }
    let (cpus, memory_mib) = (body.cpu_count, body.memory_mb);
    place(&caller, &BuildRequest { name: body.alias, cpus, memory_mib, ..BuildRequest::default() }).await
}

/// `POST /templates/{id}`: the same for a template that is there, and `POST /templates/{id}/builds/{build}`: the image was pushed.
pub(super) async fn rebuild_legacy(caller: Caller, Path(path): Path<Vec<(String, String)>>) -> ApiError {
    let reference = path.first().map(|(_, reference)| reference.as_str()).unwrap_or_default();
    match caller.runtime.template(reference).await {
        Ok(Some(_)) => no_registry(),
        Ok(None) => ApiError::template_not_found(reference),
        Err(error) => error.into(),
    }
}

fn no_registry() -> ApiError {
    ApiError::bad_request(
        "this server has no registry that an image could be pushed to: it builds templates itself, of a Dockerfile's steps; use \
         `e2b template create NAME` of a newer E2B CLI, or `Template.build()` of an SDK",
    )
}

/// `GET /templates/{id}/files/{hash}`: whether the files are there, and where to bring them.
pub(super) async fn upload_link(
    caller: Caller,
    Path((template, hash)): Pair,
    request: Request,
) -> Result<(StatusCode, Reply<builds::FileUpload>), ApiError> {
    let present = caller.runtime.has_files(&hash)?;
    let text = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok());
    let encrypted = request.extensions().get() == Some(&Encrypted(true));
    let host = text(header::HOST.as_str()).ok_or_else(|| ApiError::bad_request("header `Host` is missing"))?;
    // A proxy in front of us knows how its clients came.
    let scheme = text("x-forwarded-proto").unwrap_or(if encrypted { "https" } else { "http" });
    let expires = Timestamp::now().as_second() + UPLOAD_SECONDS;
    let signature = caller.runtime.sign_upload(&template, &hash, expires);
    // Who brings the files has no key with them. The first team's links are as they were.
    let team = if caller.team.is_first() { String::new() } else { format!("&team={}", caller.team) };
    let url = format!("{scheme}://{host}/templates/{template}/files/{hash}?expires={expires}&signature={signature}{team}");
    Ok((StatusCode::CREATED, Reply(builds::FileUpload { present, url: Some(url), headers: None })))
}

/// `PUT` on the same: by whoever holds the link, or a key.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    Path((template, hash)): Pair,
    query: Query,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let signed = || {
        let (expires, signature) = (query.get("expires")?.parse().ok()?, query.get("signature")?);
        let team = query.get("team").map_or(Some(TeamId::first()), |team| team.parse().ok())?;
        let runtime = app.host().within(team);
        runtime.upload_is_signed(&template, &hash, expires, signature).then_some(runtime)
    };
    let runtime = match signed() {
        Some(runtime) => runtime,
        None => auth::check_for(&app, request.headers(), KeyScope::Full)?.runtime,
    };
    let mut upload = runtime.receive_files(&hash)?;
    let mut body = request.into_body();
    while let Some(bytes) = piece(&app, &mut body).await? {
        upload.write(&bytes).await?;
    }
    upload.finish().await?;
    Ok(StatusCode::OK)
}

/// `POST /v2/templates/{id}/builds/{build}`.
pub(super) async fn start(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((template, build)): Pair,
    body: Json<builds::StartBuild>,
) -> Result<StatusCode, ApiError> {
    let plan = plan(body.value)?;
    if plan.nested_virtualization && !app.config.nested_virtualization {
        return Err(ApiError::forbidden(
            "this server builds no templates whose guests run guests: start it with `--allow-nested-virtualization`".to_owned(),
        ));
    }
    caller.runtime.start_build(&template, &build, plan).await?;
    Ok(StatusCode::ACCEPTED)
}

fn plan(body: builds::StartBuild) -> Result<BuildPlan, ApiError> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let step = |step: builds::Step| StepSpec {
        kind: step.kind,
        args: step.args.unwrap_or_default(),
        files_hash: step.files_hash,
        force: step.force == Some(true),
    };
    let steps: Vec<StepSpec> = body.steps.unwrap_or_default().into_iter().map(step).collect();
    let source = match (given(body.from_image), given(body.from_template)) {
        (Some(reference), None) => {
            let reference = dockerfile::image(&reference, &steps).map_err(|name| {
                ApiError::bad_request(format!("image `{reference}` needs a value for `${name}`: give its `ARG` a default"))
            })?;
            let login = body.from_image_registry.map(|registry| match registry {
                builds::Registry::Registry { username, password } => RegistryLogin::Password { username, password },
                // What Google's registries document for service accounts.
                builds::Registry::Gcp { service_account } => {
                    RegistryLogin::Password { username: "_json_key".to_owned(), password: service_account }
                }
                builds::Registry::Aws { .. } => RegistryLogin::Aws,
            });
            Source::Image(ImageRequest { reference, login })
        }
        (None, Some(template)) => Source::Template(template),
        (Some(_), Some(_)) => return Err(ApiError::bad_request("give `fromImage` or `fromTemplate`, not both")),
        (None, None) => return Err(ApiError::bad_request("`fromImage` or `fromTemplate` is missing")),
    };
    let engine = given(body.engine).map(|word| {
        Acceleration::of_word(&word)
            .ok_or_else(|| ApiError::bad_request(format!("`engine` is `kvm`, `gvisor` or `emulated`, not `{word}`")))
    });
    Ok(BuildPlan {
        engine: engine.transpose()?,
        source,
        force: body.force == Some(true),
        steps,
        start: given(body.start_cmd),
        ready: given(body.ready_cmd),
        nested_virtualization: body.nested_virtualization == Some(true),
    })
}

/// `GET /templates/{id}/builds/{build}/status`.
pub(super) async fn status(
    caller: Caller,
    Path((template, build)): Pair,
    query: Query,
) -> Result<Reply<builds::BuildInfo>, ApiError> {
    // The state first: whatever an ended build said is in the log that is read after it.
    let info = caller.runtime.build(&template, &build).await?;
    let log = caller.runtime.build_log(&template, &build).await?;
    let offset = number(&query, "logsOffset")?.unwrap_or(0);
    let shown: Vec<_> = at_level(&log, &query)?.skip(offset).take(limit(&query)?).map(entry).collect();
    Ok(Reply(builds::BuildInfo {
        logs: shown.iter().map(|entry| entry.message.clone()).collect(),
        log_entries: shown,
        template_id: info.template_id,
        build_id: info.id,
        status: build_status(info.state),
        reason: info.reason.map(|reason| told(reason, &log)),
    }))
}

fn told(reason: BuildReason, log: &[BuildLogEntry]) -> builds::BuildReason {
    let mut last: Vec<_> = log.iter().rev().filter(|entry| entry.step == reason.step).take(REASON_ENTRIES).map(entry).collect();
    last.reverse();
    builds::BuildReason { message: reason.message, step: reason.step, log_entries: last }
}

/// `GET /templates/{id}/builds/{build}/logs`: forwards from, or backwards to, a time in milliseconds.
pub(super) async fn logs(
    caller: Caller,
    Path((template, build)): Pair,
    query: Query,
) -> Result<Reply<builds::BuildLogs>, ApiError> {
    let log = caller.runtime.build_log(&template, &build).await?;
    let cursor = query.get("cursor").map(str::parse::<i64>).transpose();
    let cursor = cursor.map_err(|_| ApiError::bad_request("`cursor` must be a time in milliseconds"))?;
    let backward = query.is_backward()?;
    let limit = limit(&query)?;
    let within = |entry: &&BuildLogEntry| {
        let at = entry.at.as_millisecond();
        cursor.is_none_or(|cursor| if backward { at <= cursor } else { at >= cursor })
    };
    let wanted = at_level(&log, &query)?.filter(within);
    let logs = if backward {
        let all: Vec<_> = wanted.collect();
        all.into_iter().rev().take(limit).map(entry).collect()
    } else {
        wanted.take(limit).map(entry).collect()
    };
    Ok(Reply(builds::BuildLogs { logs }))
}

fn at_level<'a>(log: &'a [BuildLogEntry], query: &Query) -> Result<impl Iterator<Item = &'a BuildLogEntry> + use<'a>, ApiError> {
    let least = query.least_level()?;
    Ok(log.iter().filter(move |entry| entry.level >= least))
}

fn limit(query: &Query) -> Result<usize, ApiError> {
    match number(query, "limit")? {
        None => Ok(MAX_ENTRIES),
        Some(limit) if limit <= MAX_ENTRIES => Ok(limit),
        Some(_) => Err(ApiError::bad_request(format!("`limit` must be at most {MAX_ENTRIES}"))),
    }
}

fn number(query: &Query, name: &str) -> Result<Option<usize>, ApiError> {
    let parsed = query.get(name).map(str::parse).transpose();
    parsed.map_err(|_| ApiError::bad_request(format!("`{name}` must be a number")))
}

fn entry(entry: &BuildLogEntry) -> builds::BuildLogEntry {
    builds::BuildLogEntry { timestamp: entry.at, message: entry.message.clone(), level: entry.level, step: entry.step.clone() }
}

/// A build in the list of its template.
pub(super) fn listed(build: BuildInfo) -> rest::TemplateBuild {
    rest::TemplateBuild {
        build_id: build.id,
        status: build_status(build.state),
        created_at: build.created_at,
        updated_at: build.updated_at,
        finished_at: build.finished_at,
        cpu_count: build.cpus,
        memory_mb: build.memory_mib,
        disk_size_mb: build.disk_mib,
        envd_version: Some(firkin_wire::ENVD_VERSION.to_owned()),
    }
}
