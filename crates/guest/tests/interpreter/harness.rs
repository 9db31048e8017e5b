//! Starts the interpreter on a free port and talks to it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Bound of every wait: Python loads its libraries, on a busy host.
const WAIT: Duration = Duration::from_secs(120);

/// A running interpreter; killed when dropped.
pub(crate) struct Interpreter {
    child: Child,
    said: BufReader<ChildStdout>,
    url: String,
    _programs: tempfile::TempDir,
}

/// The lines of an execution that has ended.
#[derive(Debug)]
pub(crate) struct Told(pub(crate) Vec<Value>);

impl Told {
    /// The lines of one type.
    pub(crate) fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        self.0.iter().filter(move |line| line["type"] == kind)
    }

    /// Everything written to one stream.
    pub(crate) fn text(&self, kind: &str) -> String {
        self.of(kind).map(|line| line["text"].as_str().unwrap()).collect()
    }

    /// The text of the cell's own result.
    pub(crate) fn result(&self) -> Option<&str> {
        self.of("result").find(|line| line["is_main_result"] == true)?["text"].as_str()
    }

    /// The name of the error.
    pub(crate) fn error(&self) -> Option<&str> {
        self.of("error").next()?["name"].as_str()
    }
}

/// Whether a program runs here; says so if not.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
pub(crate) fn has(program: &str, args: &[&str]) -> bool {
    let ran = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let there = ran.is_ok_and(|status| status.success());
    if !there {
        eprintln!("skipped: this host does not run `{program} {}`", args.join(" "));
    }
    there
}

impl Interpreter {
    pub(crate) fn start(flags: &[&str]) -> Self {
        let programs = tempfile::tempdir().unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        let mut child = Command::new(env!("CARGO_BIN_EXE_firkin-guest"))
            .args(["envd", "--port", "0", "--default-user", &user(), "--default-workdir", "/"])
            .args(["--env", "FROM_SANDBOX=yes", "--env", &path, "--interpreter", programs.path().to_str().unwrap()])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let url = format!("http://{}", line.trim().strip_prefix("interpreter on ").unwrap());
        Self { child, said, url, _programs: programs }
    }

    /// What a restore of a snapshot does to the agent.
    pub(crate) fn begin_era(&mut self) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGUSR1).unwrap();
        let mut line = String::new();
        while line != "another era\n" {
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "the agent has ended");
        }
    }

    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> http::Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // One connection a request: dropping the answer is how a client goes away.
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        tokio::time::timeout(WAIT, client.request(request.body(Full::from(body)).unwrap())).await.unwrap().unwrap()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, body: Value) -> (StatusCode, String) {
        self.send_with(method, path, &[], body).await
    }

    /// Posts a body as it is.
    pub(crate) async fn send_text(&self, path: &str, body: &str) -> (StatusCode, String) {
        answer(self.request("POST", path, &[], body.to_owned()).await).await
    }

    pub(crate) async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> (StatusCode, String) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        answer(self.request(method, path, headers, body).await).await
    }

    /// Runs a cell to its end.
    pub(crate) async fn run(&self, request: Value) -> Told {
        self.run_with(&[], request).await
    }

    pub(crate) async fn run_with(&self, headers: &[(&str, &str)], request: Value) -> Told {
        let (status, text) = self.send_with("POST", "/execute", headers, request).await;
        assert_eq!(status, 200, "{text}");
        Told(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    pub(crate) async fn bash(&self, code: &str) -> Told {
        self.run(json!({"code": code, "language": "bash"})).await
    }

    /// Begins a cell, reads until `until` has been told, and goes away.
    pub(crate) async fn abandon(&self, request: Value, until: &str) {
        let mut body = self.request("POST", "/execute", &[], request.to_string()).await.into_body();
        let mut told = String::new();
        while !told.contains(until) {
            let frame = tokio::time::timeout(WAIT, body.frame()).await.unwrap().expect("it goes on").unwrap();
            told.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }
}

impl Drop for Interpreter {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// All of an answer.
async fn answer(answer: http::Response<Incoming>) -> (StatusCode, String) {
    let status = answer.status();
    let text = tokio::time::timeout(WAIT, answer.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (status, String::from_utf8(text.to_vec()).unwrap())
}

/// The user that the tests run as.
fn user() -> String {
    let uid = nix::unistd::geteuid().as_raw().to_string();
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
    let row = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid)).expect("the user has a name");
    row.split(':').next().unwrap().to_owned()
}
