//! Creating a sandbox: the two generations of the request, checked and converted.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Extension, Json as Reply, extract::State};
use firkin_runtime::sandbox::{CreateSandbox, OnTimeout, SandboxId, VolumeMount};
use firkin_wire::{ENVD_PORT, rest};
use http::{HeaderMap, StatusCode};

use super::{SHORT_TIMEOUT, V2_TIMEOUT, identity, network, seconds};
use crate::{
    App, auth::Caller, error::ApiError, extract::Json, idempotency::Claim, latency::FirstAnswer, nodes::OfEpoch, shape,
    target::Target,
};

/// Environment of one sandbox: names and values together must fit one message to the guest with room to spare.
const MAX_ENV_BYTES: usize = 128 << 10;

type Created = Result<(StatusCode, Option<Extension<FirstAnswer>>, Option<Extension<OfEpoch>>, Reply<rest::Sandbox>), ApiError>;

/// `POST /sandboxes`.
pub(super) async fn v1(State(app): State<Arc<App>>, caller: Caller, headers: HeaderMap, body: Json<rest::NewSandbox>) -> Created {
    let secure = body.value.secure.unwrap_or(true);
    create(&app, &caller, &headers, body, (SHORT_TIMEOUT, secure)).await
}

/// `POST /v2/sandboxes`.
pub(super) async fn v2(State(app): State<Arc<App>>, caller: Caller, headers: HeaderMap, body: Json<rest::NewSandbox>) -> Created {
    create(&app, &caller, &headers, body, (V2_TIMEOUT, true)).await
}

async fn create(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    body: Json<rest::NewSandbox>,
    (timeout, secure): (i64, bool),
) -> Created {
    let request = convert(body.value, timeout, secure)?;
    let attempt = match app.idempotency.claim(&caller.team, headers, &body.bytes)? {
        Claim::Done(answer) => {
            let life = answer.sandbox_id.parse().ok().and_then(|id| life(app, &id));
            return Ok((StatusCode::CREATED, None, life, Reply(answer)));
        }
        Claim::First(attempt) => attempt,
    };
    let sandbox = caller.runtime.create(request).await?;
    // The first command follows at once, mostly. Connecting takes a guest some milliseconds, and the answer the client some. One that
    // was not kept warm has more to do than that, and pays for what it does in memory.
    if sandbox.claimed {
        app.pool.open_ahead(Target { id: sandbox.id.clone(), port: ENVD_PORT });
    }
    tracing::Span::current().record("sandbox", sandbox.id.as_str());
    let (first, life) = (FirstAnswer(sandbox.id.clone()), life(app, &sandbox.id));
    let answer = shape::sandbox(sandbox, app.config.domain.as_deref());
    attempt.done(&answer);
    Ok((StatusCode::CREATED, Some(Extension(first)), life, Reply(answer)))
}

/// Says of an answer in which life the sandbox is that it is about.
fn life(app: &App, id: &SandboxId) -> Option<Extension<OfEpoch>> {
    app.host().epoch(id).map(|epoch| Extension(OfEpoch(epoch)))
}

fn convert(body: rest::NewSandbox, default_timeout: i64, secure: bool) -> Result<CreateSandbox, ApiError> {
    if body.template_id.is_empty() {
        return Err(ApiError::bad_request("`templateID` must not be empty"));
    }
    // `mcp` is not refused: the client itself starts the gateway, with a command inside the sandbox, and tells its failure.
    let auto_resume = body.auto_resume.is_some_and(|auto_resume| auto_resume.enabled);
    let on_timeout = on_timeout(body.auto_pause, body.auto_pause_memory, auto_resume)?;
    let network = body.network.unwrap_or_default();
    let env = body.env_vars.unwrap_or_default();
    check_env(&env)?;
    Ok(CreateSandbox {
        template: body.template_id,
        timeout: seconds(body.timeout.unwrap_or(default_timeout))?,
        on_timeout,
        auto_resume,
        env,
        metadata: body.metadata.unwrap_or_default(),
        internet: network::internet(body.allow_internet_access, &network)?,
        dns_servers: network::dns_servers(&network)?,
        ingress: network::ingress(&network, secure)?,
        tokens: identity::tokens(body.iam)?,
        volumes: body.volume_mounts.unwrap_or_default().into_iter().map(volume).collect(),
        secure,
    })
}

fn volume(mount: rest::VolumeMount) -> VolumeMount {
    let mut wanted = VolumeMount::new(mount.name, mount.path);
    wanted.read_only = mount.read_only.unwrap_or(false);
    wanted
}

/// The action at the deadline. Traffic cannot resume what has to boot: clients would give up before it answers.
fn on_timeout(auto_pause: Option<bool>, memory: Option<bool>, auto_resume: bool) -> Result<OnTimeout, ApiError> {
    match (auto_pause.unwrap_or(false), memory.unwrap_or(true)) {
        (false, true) => Ok(OnTimeout::Kill),
        (true, true) => Ok(OnTimeout::Pause),
        (false, false) => Err(ApiError::bad_request("`autoPauseMemory: false` needs `autoPause: true`")),
        (true, false) if auto_resume => {
            Err(ApiError::bad_request("`autoPauseMemory: false` and `autoResume` exclude each other"))
        }
        (true, false) => Ok(OnTimeout::PauseFiles),
    }
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), ApiError> {
    let bytes: usize = env.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > MAX_ENV_BYTES {
        return Err(ApiError::bad_request(format!("`envVars` has {bytes} bytes, the limit is {MAX_ENV_BYTES}")));
    }
    let bad = |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match env.iter().find(bad) {
        Some((name, _)) => Err(ApiError::bad_request(format!("`envVars` has an entry that no process can be given: `{name}`"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use firkin_runtime::sandbox::InternetAccess;

    use super::*;

    fn converted(body: &str) -> Result<CreateSandbox, ApiError> {
        convert(serde_json::from_str(body).unwrap(), 300, true)
    }

    #[test]
    fn what_cannot_be_kept_is_refused_and_named() {
        let table = [
            (r#"{"templateID":""}"#, "templateID"),
            (r#"{"templateID":"base","timeout":-1}"#, "Timeout must be greater than 0"),
            (r#"{"templateID":"base","iam":{"tokens":{"a":{"audience":"b","tokenType":"SAML"}}}}"#, "JWT-SVID"),
            (r#"{"templateID":"base","autoPauseMemory":false}"#, "autoPause: true"),
            (r#"{"templateID":"base","autoPause":true,"autoPauseMemory":false,"autoResume":{"enabled":true}}"#, "autoResume"),
            (r#"{"templateID":"base","network":{"dnsServers":["x"]}}"#, "dnsServers"),
            (r#"{"templateID":"base","network":{"httpsPorts":[49983]}}"#, "httpsPorts"),
            (r#"{"templateID":"base","network":{"rules":{"a.com":[{},{}]}}}"#, "network.rules"),
            (r#"{"templateID":"base","network":{"maskRequestHost":"a b"}}"#, "maskRequestHost"),
            (r#"{"templateID":"base","envVars":{"":"x"}}"#, "envVars"),
            (r#"{"templateID":"base","envVars":{"A=B":"x"}}"#, "envVars"),
            (r#"{"templateID":"base","envVars":{"A":"x\u0000"}}"#, "envVars"),
        ];
        for (body, named) in table {
            let error = converted(body).unwrap_err().to_body();
            assert_eq!(error.code, 400, "{body}");
            assert!(error.message.contains(named), "{body}: {}", error.message);
        }
    }

    #[test]
    fn options_that_ask_for_nothing_are_accepted() {
        let body = r#"{"templateID":"base","mcp":{"any":{}},"iam":null,"volumeMounts":[],"autoPauseMemory":true,
            "network":{"allowPublicTraffic":true,"allowOut":[],"denyOut":[],"egressProxy":null,"rules":{}},"newer":1}"#;
        let expected = CreateSandbox { timeout: std::time::Duration::from_secs(300), ..CreateSandbox::from_template("base") };
        assert_eq!(converted(body).unwrap(), expected);
    }

    #[test]
    fn both_ways_to_deny_the_internet_are_understood() {
        for body in [
            r#"{"templateID":"base","allow_internet_access":false}"#,
            r#"{"templateID":"base","network":{"denyOut":["0.0.0.0/0"]}}"#,
        ] {
            assert_eq!(converted(body).unwrap().internet, InternetAccess::Denied, "{body}");
        }
    }

    #[test]
    fn life_cycle_options_arrive() {
        let request = converted(r#"{"templateID":"base","timeout":7,"autoPause":true,"autoResume":{"enabled":true}}"#).unwrap();
        assert_eq!((request.timeout.as_secs(), request.on_timeout, request.auto_resume), (7, OnTimeout::Pause, true));
        let request = converted(r#"{"templateID":"base","autoPause":true,"autoPauseMemory":false}"#).unwrap();
        assert_eq!(request.on_timeout, OnTimeout::PauseFiles);
    }
}
