//! What a user does with a server: the API over HTTP, and commands by the command line, which speaks to envd.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    http::{self, Answer, Request},
    server,
    workspace::Workspace,
};

/// How long the server may be silent: an emulated guest on a busy host boots for a minute.
const PATIENCE: Duration = Duration::from_secs(180);
/// Seconds until a command is given up, first in the guest, then here.
const COMMAND_DEADLINE: &str = "120";
const PROGRAM_DEADLINE: &str = "180";
/// A build of one step.
const BUILD_DEADLINE: Duration = Duration::from_secs(300);
/// Between two looks at what takes its time.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Seconds that a sandbox lives at most, longer than any cycle.
const LIFETIME: u32 = 1800;
/// The port of envd.
const ENVD: &str = "49983";

/// A user of one server.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    variables: BTreeMap<String, String>,
    firkin: PathBuf,
    state_dir: PathBuf,
}

/// A sandbox, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct Sandbox<'a> {
    client: &'a Client,
    pub(super) id: String,
    token: String,
    ended: bool,
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if !self.ended && self.client.call("DELETE", &format!("/sandboxes/{}", self.id), None).is_err() {
            // Why it is dropped is told already; if it stays, the ledger will tell.
        }
    }
}

impl Client {
    pub(super) fn new(workspace: &Workspace, state_dir: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let variables = server::variables(workspace, state_dir)?;
        Ok(Self { address, variables, firkin: workspace.binaries.join("firkin"), state_dir: state_dir.to_owned() })
    }

    /// Asks the control plane, and fails unless it answers with success.
    pub(super) fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let key = &self.variables["E2B_API_KEY"];
        let headers = [("X-API-Key", key.as_str()), ("Content-Type", "application/json")];
        let answer = self.ask(&Request { method, path, headers: &headers, body: body.as_bytes() })?;
        if answer.body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&answer.body).with_context(|| format!("cannot understand the answer to `{method} {path}`"))
    }

    fn ask(&self, request: &Request<'_>) -> anyhow::Result<Answer> {
        let shown = format!("{} {}", request.method, request.path);
        let answer = http::ask(self.address, request, PATIENCE).with_context(|| format!("cannot ask `{shown}`"))?;
        ensure!((200..300).contains(&answer.status), "`{shown}` was answered with {}: {}", answer.status, answer.text());
        Ok(answer)
    }

    /// What the server counts of itself.
    pub(super) fn metrics(&self) -> anyhow::Result<String> {
        Ok(self.ask(&Request { method: "GET", path: "/metrics", headers: &[], body: b"" })?.text())
    }

    pub(super) fn create(&self, template: &str) -> anyhow::Result<Sandbox<'_>> {
        let body =
            json!({ "templateID": template, "timeout": LIFETIME, "metadata": { "by": "soak" }, "envVars": { "SOAK": "1" } });
        self.sandbox(&self.call("POST", "/v2/sandboxes", Some(&body))?)
    }

    fn sandbox(&self, told: &Value) -> anyhow::Result<Sandbox<'_>> {
        let (id, token) = (text(told, "/sandboxID")?, text(told, "/envdAccessToken")?);
        Ok(Sandbox { client: self, id, token, ended: false })
    }

    /// Builds a template of one step on `base`, also where the state after that step is known: states are kept for later builds, and
    /// new ones each time would fill the disk.
    pub(super) fn build(&self, name: &str, command: &str) -> anyhow::Result<()> {
        let place = self.call("POST", "/v3/templates", Some(&json!({ "name": name })))?;
        let path = format!("/templates/{}/builds/{}", text(&place, "/templateID")?, text(&place, "/buildID")?);
        let body = json!({ "fromTemplate": "base", "force": true, "steps": [{ "type": "RUN", "args": [command] }] });
        self.call("POST", &format!("/v2{path}"), Some(&body))?;
        let deadline = Instant::now() + BUILD_DEADLINE;
        loop {
            let state = self.call("GET", &format!("{path}/status"), None)?;
            match text(&state, "/status")?.as_str() {
                "ready" => return Ok(()),
                "error" => anyhow::bail!("the build failed: {state}"),
                _ => ensure!(Instant::now() < deadline, "the build takes longer than {} s: {state}", BUILD_DEADLINE.as_secs()),
            }
            thread::park_timeout(LOOK_INTERVAL);
        }
    }

    /// The content of a volume, by the token that opens it.
    pub(super) fn content(&self, (method, path): (&str, &str), token: &str, body: &[u8]) -> anyhow::Result<Vec<u8>> {
        let headers = [("Authorization", format!("Bearer {token}"))];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        Ok(self.ask(&Request { method, path, headers: &headers, body })?.body)
    }
}

impl<'a> Sandbox<'a> {
    fn call(&self, method: &str, rest: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        self.client.call(method, &format!("/sandboxes/{}{rest}", self.id), body)
    }

    /// Fails unless a command prints this.
    pub(super) fn expect(&self, script: &str, wanted: &str) -> anyhow::Result<()> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=10", PROGRAM_DEADLINE]).arg(&self.client.firkin).args(["sandbox", "exec", "--state-dir"]);
        command.arg(&self.client.state_dir).args(["--timeout", COMMAND_DEADLINE, &self.id, "--", "sh", "-c", script]);
        let output = command.stdin(Stdio::null()).output().context("cannot start `timeout firkin sandbox exec`")?;
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "`{script}` in {} ended with {}: {said}{errors}", self.id, output.status);
        ensure!(said.trim() == wanted, "`{script}` in {} printed `{said}`, not `{wanted}`", self.id);
        Ok(())
    }

    /// Writes a file and reads it again.
    pub(super) fn file(&self, path: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = format!("/files?path={path}&username=user");
        let common = [("X-Access-Token", self.token.as_str()), ("E2b-Sandbox-Id", self.id.as_str()), ("E2b-Sandbox-Port", ENVD)];
        let headers = [common.as_slice(), &[("Content-Type", "application/octet-stream")]].concat();
        self.client.ask(&Request { method: "POST", path: &path, headers: &headers, body: content })?;
        let read = self.client.ask(&Request { method: "GET", path: &path, headers: &common, body: b"" })?;
        ensure!(read.body == content, "of {} bytes {} were read, or others", content.len(), read.body.len());
        Ok(())
    }

    /// Pauses it, with its memory or only with its files.
    pub(super) fn pause(&self, memory: bool) -> anyhow::Result<()> {
        self.call("POST", "/pause", Some(&json!({ "memory": memory })))?;
        let state = text(&self.call("GET", "", None)?, "/state")?;
        ensure!(state == "paused", "a paused sandbox is {state}");
        Ok(())
    }

    pub(super) fn resume(&self) -> anyhow::Result<()> {
        let path = format!("/v2/sandboxes/{}/connect", self.id);
        self.client.call("POST", &path, Some(&json!({ "timeout": LIFETIME }))).map(drop)
    }

    pub(super) fn fork(&self) -> anyhow::Result<Sandbox<'a>> {
        let forks = self.call("POST", "/fork", Some(&json!({ "timeout": LIFETIME, "count": 1 })))?;
        let child = self.client.sandbox(forks.pointer("/0/sandbox").with_context(|| format!("no fork: {forks}"))?)?;
        ensure!(child.id != self.id && child.token != self.token, "a fork is its source");
        Ok(child)
    }

    pub(super) fn snapshot(&self) -> anyhow::Result<String> {
        text(&self.call("POST", "/snapshots", Some(&json!({})))?, "/snapshotID")
    }

    pub(super) fn rollback(&self, snapshot: &str) -> anyhow::Result<()> {
        self.call("POST", "/rollback", Some(&json!({ "snapshotID": snapshot }))).map(drop)
    }

    /// Waits until the server has noticed that its machine is dead.
    pub(super) fn expect_gone(mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let listed = self.client.call("GET", "/v2/sandboxes?state=running,paused&limit=100", None)?;
            let listed = listed.as_array().context("a list is one")?;
            if !listed.iter().any(|one| one.pointer("/sandboxID").and_then(Value::as_str) == Some(&self.id)) {
                self.ended = true;
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{} has no machine and is listed", self.id);
            thread::park_timeout(LOOK_INTERVAL);
        }
    }

    pub(super) fn kill(mut self) -> anyhow::Result<()> {
        self.call("DELETE", "", None)?;
        self.ended = true;
        Ok(())
    }
}

/// A text in an answer.
pub(super) fn text(value: &Value, pointer: &str) -> anyhow::Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found.with_context(|| format!("there is no {pointer} in {value}"))?.to_owned())
}
