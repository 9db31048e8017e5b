//! `firkin bench` against a server on the fake engine, which removes and creates as any other.
#![expect(clippy::unwrap_used, reason = "a helper that cannot help ends the test")]

use std::{net::Ipv4Addr, path::Path, process::Command, sync::Arc};

use firkin_runtime::{
    capacity::HostCapacity, config::RuntimeConfig, memory_pressure::HostMemory, owner::OnExit, runtime::Runtime,
    standard::BuildTemplate,
};
use firkin_server::{ServerConfig, serve};
use fs_err as fs;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[path = "../../runtime/examples/stand_in/mod.rs"]
mod stand_in;

/// A server in `dir/state`, to be found as the program's own is. Serves until the runtime of Tokio ends.
async fn server(dir: &Path) -> Runtime {
    let state_dir = dir.join("state");
    let (engine, network) = stand_in::guests().await.unwrap();
    let capacity = HostCapacity { cpus: 8, memory_mib: 1 << 20, disk_mib: 1 << 30 };
    let defaults = RuntimeConfig::new(state_dir.clone(), capacity, network, stand_in::guest_system(dir).unwrap());
    let config = RuntimeConfig { disk_floor_mib: Some(0), memory_probe: Arc::new(HostMemory::PLENTY), ..defaults };
    let runtime = Runtime::open(config, Arc::new(engine)).await.unwrap();
    let base = BuildTemplate { ready: None, ..BuildTemplate::base() };
    Box::pin(runtime.build_template(base, &|_| ())).await.unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let found = format!(r#"{{"url":"http://{}","pid":1}}"#, listener.local_addr().unwrap());
    fs::write(state_dir.join("server.json"), found).unwrap();
    fs::write(state_dir.join("api-key"), runtime.issue_api_key().await.unwrap()).unwrap();
    tokio::spawn(serve(vec![listener.into()], runtime.clone(), ServerConfig::default(), CancellationToken::new()));
    runtime
}

#[test]
fn creates_are_measured_while_artifacts_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let runtime = tokio.block_on(server(dir.path()));
    let known = fs::read_dir(dir.path().join("state/artifacts")).unwrap().count();
    let output = Command::new(env!("CARGO_BIN_EXE_firkin"))
        .args(["bench", "--dead-artifacts", "3", "--dead-mib", "1", "--dead-files", "written", "--samples", "2", "--json"])
        .env("FIRKIN_STATE_DIR", dir.path().join("state"))
        .env_remove("E2B_API_KEY")
        .env_remove("E2B_API_URL")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows: Vec<_> = report["rows"].as_array().unwrap().iter().map(|row| (&row["name"], &row["samples"])).collect();
    assert_eq!(rows, [(&"create, idle, ms".into(), &2.into()), (&"create while artifacts are removed, ms".into(), &2.into())]);
    assert_eq!(report["removal"]["artifacts"], 3);
    assert!(report["removal"]["p50_ratio"].as_f64().unwrap() > 0.0);
    assert_eq!(fs::read_dir(dir.path().join("state/artifacts")).unwrap().count(), known, "all of them are gone");
    assert!(runtime.sandboxes().is_empty());
    tokio.block_on(runtime.shutdown(OnExit::Kill));
}
