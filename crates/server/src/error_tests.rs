//! The table of failures and their answers.

use std::time::Duration;

use firkin_runtime::{
    artifact::FetchError, capacity::CapacityError, fence::FenceError, reference::Reference, sandbox::TooMuchMetadata,
};

use firkin_runtime::templates::DeleteError;

use super::*;

fn id() -> SandboxId {
    "iabc".parse().unwrap()
}

fn absent() -> NoSuchSandbox {
    NoSuchSandbox(id())
}

fn create(source: SnapshotRestoreError) -> ApiError {
    CreateError::Restore { template: "base".into(), source }.into()
}

fn resume(source: SnapshotRestoreError) -> ApiError {
    ResumeError::Restore { id: id(), source }.into()
}

fn never_fits() -> SnapshotRestoreError {
    SnapshotRestoreError::Admission(AdmissionError::NeverFits(SHORT))
}

const SHORT: CapacityError = CapacityError::Cpu { requested: 2, available: 1 };

fn full() -> SnapshotRestoreError {
    SnapshotRestoreError::Admission(AdmissionError::QueueFull { waiting: 64, source: SHORT })
}

fn waited() -> SnapshotRestoreError {
    SnapshotRestoreError::Admission(AdmissionError::Deadline { waited: Duration::from_secs(5), source: SHORT })
}

fn stalled() -> SnapshotRestoreError {
    SnapshotRestoreError::Admission(AdmissionError::Memory(MemoryPressure::Stalled { percent: 12, limit_percent: 10 }))
}

fn pressure() -> DiskPressure {
    DiskPressure::BelowFloor { path: "/s".into(), free_mib: 1, floor_mib: 2 }
}

fn damaged() -> SnapshotRestoreError {
    SnapshotRestoreError::Integrity {
        artifact: "a".parse().unwrap(),
        source: IntegrityError::Size { member: "memory".into(), expected: 2, found: 1 },
    }
}

fn incompatible() -> SnapshotRestoreError {
    SnapshotRestoreError::Incompatible {
        artifact: "a".parse().unwrap(),
        what: "cpu",
        made_with: "x".into(),
        here: "y".into(),
        remedy: "z",
    }
}

fn refused_guest() -> SnapshotError {
    let source = firkin_runtime::agent::AgentError::Deadline { call: "sync", deadline_ms: 1 };
    SnapshotError::Guest { id: id(), source }
}

fn away() -> StoreError {
    StoreError::Away { operation: "begin", source: "nobody answers".into() }
}

fn in_doubt() -> StoreError {
    StoreError::Unknown { operation: "commit", source: "it was cut".into() }
}

type Row = (ApiError, u16, &'static str, Option<&'static str>, Retry);

#[test]
fn a_catalogue_that_is_away_is_said_to_be_whoever_missed_it() {
    let not_booted = BootError::Up { attempts: 1, source: LaunchError::Fence(FenceError::Over) };
    let errors: [(ApiError, Retry, &str); 6] = [
        (CreateError::Store(away()).into(), Retry::After(5), "the database is away, and cannot begin"),
        (
            resume(SnapshotRestoreError::Launch(LaunchError::Fence(FenceError::Over))),
            Retry::After(5),
            "the lease of this host is over",
        ),
        (resume(SnapshotRestoreError::Boot(not_booted)), Retry::After(5), "the lease of this host is over"),
        (TeamError::Store(away()).into(), Retry::After(5), "the database is away"),
        (away().into(), Retry::After(5), "nobody answers"),
        // What may have been done is not done again unasked.
        (DeadlineError::Store(in_doubt()).into(), Retry::Never, "whether it was done is not known"),
    ];
    for (error, retry, message) in errors {
        let body = error.to_body();
        assert_eq!((body.code, body.error_code.as_deref(), error.retry), (503, Some("catalog_unavailable"), retry), "{body:?}");
        assert!(body.message.contains(message), "{body:?}");
    }
}

#[test]
fn what_is_on_another_host_is_said_to_be_there() {
    let elsewhere = |place: &str| IntegrityError::Elsewhere(Box::new(FetchError::Away { place: place.into(), source: None }));
    let restore = |source| SnapshotRestoreError::Integrity { artifact: "a".repeat(20).parse().unwrap(), source };
    let place = "the only copy is on node-b, which has been away for 43 s";
    let errors: [ApiError; 3] = [
        resume(restore(elsewhere(place))),
        create(restore(elsewhere(place))),
        SnapshotError::Integrity { id: id(), source: elsewhere(place) }.into(),
    ];
    for error in errors {
        let body = error.to_body();
        let found = (body.code, body.error_code.as_deref(), error.retry);
        assert_eq!(found, (503, Some("artifact_elsewhere"), Retry::After(CAPACITY_RETRY_SECONDS)), "{body:?}");
        assert!(body.message.contains(place), "{body:?}");
    }
}

#[test]
fn what_is_paused_on_one_node_alone_is_said_to_be_and_whether_that_changes() {
    for (may_come, retry) in [(true, Retry::After(5)), (false, Retry::Never)] {
        let source = "no other node is there".into();
        let error = ApiError::from(crate::nodes::NotCopied { id: id(), node: "a".to_owned(), may_come, source });
        let body = error.to_body();
        assert_eq!((body.code, body.error_code.as_deref(), error.retry), (503, Some("sandbox_paused_on_one_node"), retry));
        assert_eq!(body.message, "sandbox `iabc` is paused, and only on node `a`: no other node is there");
    }
}

#[test]
fn each_failure_has_its_status_code_and_retry_advice() {
    let capacity = Some("sandbox_capacity_unavailable");
    let placement = Some("sandbox_placement_timeout");
    let internal = Some("internal_server_error");
    let table: Vec<Row> = vec![
        (absent().into(), 404, "Sandbox \"iabc\" doesn't exist or you don't have access to it", None, Retry::Unsaid),
        (CreateError::NoTemplate(NoTemplate::Absent("x".into())).into(), 404, "template 'x' not found", None, Retry::Unsaid),
        (CreateError::InvalidTimeout(InvalidTimeout::Zero).into(), 400, "Timeout must be greater than 0", None, Retry::Unsaid),
        (
            CreateError::InvalidTimeout(InvalidTimeout::TooLong { max_hours: 24 }).into(),
            400,
            "Timeout cannot be greater than 24 hours",
            None,
            Retry::Unsaid,
        ),
        (create(full()), 503, "64 requests wait for room already: 2 cpus requested, 1 available", capacity, Retry::After(5)),
        (create(waited()), 503, "full for 5 s: 2 cpus requested, 1 available", placement, Retry::After(1)),
        (create(stalled()), 503, "takes no new work: the host waited for memory in 12 %", capacity, Retry::After(10)),
        (
            create(never_fits()),
            400,
            "larger than this host can ever hold: 2 cpus requested, 1 available; build the template smaller",
            Some("sandbox_no_compatible_node"),
            Retry::Never,
        ),
        (create(SnapshotRestoreError::DiskPressure(pressure())), 507, "the floor is 2 MiB", capacity, Retry::Never),
        (create(damaged()), 500, "member `memory` has 1 bytes", Some("sandbox_create_failed"), Retry::Never),
        // The runtime says what helps, once.
        (create(incompatible()), 500, "this host has `y`; z", Some("sandbox_no_compatible_node"), Retry::Never),
        (create(damaged()), 500, "firkin template build NAME --force", Some("sandbox_create_failed"), Retry::Never),
        (resume(damaged()), 500, "firkin sandbox resume --reboot", Some("sandbox_create_failed"), Retry::Never),
        (resume(never_fits()), 400, "or resume it on a larger one", Some("sandbox_no_compatible_node"), Retry::Never),
        (RollbackError::Checkpoint(damaged()).into(), 500, "roll back to another", Some("sandbox_create_failed"), Retry::Never),
        (CreateError::Metadata(TooMuchMetadata { bytes: 70_000 }).into(), 400, "the limit is 65536", None, Retry::Unsaid),
        (CreateError::Stopping.into(), 503, "the server is stopping", None, Retry::After(5)),
        (CreateError::Store(StoreError::Closed).into(), 500, "the database is closed", internal, Retry::Never),
        (ResumeError::AlreadyRunning(id()).into(), 409, "already running", None, Retry::Unsaid),
        (ResumeError::Restore { id: id(), source: waited() }.into(), 503, "cannot be resumed", placement, Retry::After(1)),
        (SnapshotError::AlreadyPaused(id()).into(), 409, "already paused", None, Retry::Unsaid),
        (SnapshotError::InvalidName("a b".parse::<Reference>().unwrap_err()).into(), 400, "`a b`", None, Retry::Unsaid),
        (refused_guest().into(), 503, "no answer", Some("sandbox_snapshot_guest_agent_unresponsive"), Retry::Never),
        (ForkError::Count { asked: 0, max: 100 }.into(), 400, "1 to 100", None, Retry::Unsaid),
        (ForkError::Snapshot(SnapshotError::NotFound(absent())).into(), 404, "doesn't exist", None, Retry::Unsaid),
        (KillError::NotFound(absent()).into(), 404, "doesn't exist", None, Retry::Unsaid),
        (DeadlineError::NotFound(absent()).into(), 404, "doesn't exist", None, Retry::Unsaid),
        (DeleteError::NotFound(NoTemplate::Absent("s".into())).into(), 404, "template 's' not found", None, Retry::Unsaid),
        (DeleteError::InUse { template: "t".into(), users: vec!["i1".into()] }.into(), 409, "i1", None, Retry::Unsaid),
        (ApiError::too_large(10), 413, "10 bytes", None, Retry::Unsaid),
        (ApiError::unauthorized("no key"), 401, "no key", None, Retry::Unsaid),
        (ApiError::idempotency_mismatch(), 422, "another request", Some("idempotency_request_mismatch"), Retry::Unsaid),
        (ApiError::idempotency_in_progress(), 409, "in progress", Some("idempotency_in_progress"), Retry::After(1)),
    ];
    for (error, status, message, code, retry) in table {
        let body = error.to_body();
        let for_a_paused_one = body.message.contains("cannot be resumed") && body.message.contains("template");
        assert!(!for_a_paused_one, "whose memory is in no template: {body:?}");
        assert!(body.message.contains(message), "{message}: {body:?}");
        assert_eq!((body.code, body.error_code.as_deref(), error.retry), (status, code, retry), "{message}");
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status);
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (should, after) = match retry {
            Retry::Unsaid => (None, None),
            Retry::Never => (Some("false".to_owned()), None),
            Retry::After(seconds) => (Some("true".to_owned()), Some(seconds.to_string())),
        };
        assert_eq!((header("should-retry"), header("retry-after")), (should, after), "{message}");
        assert_eq!(header("content-type").as_deref(), Some("application/json; charset=utf-8"));
    }
}

#[test]
fn a_failure_of_ours_tells_no_path_of_the_host() {
    let file = || std::io::Error::other("cannot open `/var/lib/firkin/x`");
    let damaged = IntegrityError::Size { member: "/var/lib/firkin/artifacts/a/memory".into(), expected: 2, found: 1 };
    let volume = firkin_runtime::volumes::VolumeError::File { path: "/var/lib/firkin/volumes/v".into(), source: file() };
    for error in [
        create(SnapshotRestoreError::DiskPressure(pressure())),
        create(SnapshotRestoreError::Integrity { artifact: "a".parse().unwrap(), source: damaged }),
        volume.into(),
        ApiError::internal(&file()),
    ] {
        assert!(error.status.is_server_error() && error.message.contains("/"), "{error:?}");
        let message = error.to_body().message;
        let path = message.contains("/var") || message.contains("`/s");
        assert!(!path && message.contains("the server's log has more under "), "{message}");
    }
}

#[tokio::test]
async fn proxy_errors_are_the_contracts() {
    let table = [
        (ProxyError::NotFound(id()), 502, r#"{"code":502,"message":"The sandbox was not found","sandboxId":"iabc"}"#),
        (
            ProxyError::PortClosed(id(), 8080),
            502,
            r#"{"code":502,"message":"The sandbox is running but port is not open","port":8080,"sandboxId":"iabc"}"#,
        ),
        (ProxyError::HostOnly("/init".into()), 404, r#"{"code":404,"message":"no route `/init`"}"#),
        (ProxyError::Target(InvalidTarget::Host), 400, r#"{"code":400,"message":"the host is not text"}"#),
        (
            ProxyError::Transitioning(id()),
            409,
            r#"{"code":409,"message":"The sandbox is changing its state, please try again","sandboxId":"iabc"}"#,
        ),
    ];
    for (error, status, expected) in table {
        let response = error.into_response();
        assert_eq!(response.status().as_u16(), status);
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let (found, expected): (serde_json::Value, serde_json::Value) =
            (serde_json::from_slice(&body).unwrap(), serde_json::from_str(expected).unwrap());
        assert_eq!(found, expected);
    }
}

#[test]
fn a_sandbox_that_ends_while_it_is_woken_was_not_found() {
    let error = DialError::Wake { id: id(), source: Box::new(ResumeError::NotFound(absent())) };
    assert!(matches!(ProxyError::from(error), ProxyError::NotFound(_)));
    let error = DialError::Wake { id: id(), source: Box::new(ResumeError::Restore { id: id(), source: full() }) };
    assert_eq!(ProxyError::from(error).into_response().status().as_u16(), 503);
}
