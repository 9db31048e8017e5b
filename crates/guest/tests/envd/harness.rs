//! Starts envd on a free port and talks to it.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use connectrpc::client::{ClientConfig, HttpClient};
use firkin_wire::envd::{filesystem::FilesystemClient, process::ProcessClient};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};

/// A running envd; killed when dropped.
pub(crate) struct Envd {
    child: Child,
    /// `http://127.0.0.1:port`.
    pub(crate) url: String,
    /// A directory for the test's files, removed afterwards.
    pub(crate) dir: tempfile::TempDir,
}

/// An answer, whole.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Envd {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_firkin-guest"))
            .args(["envd", "--port", "0", "--default-user", &user(), "--env", "FROM_SANDBOX=yes"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap();
        Self { url: format!("http://{address}"), child, dir: tempfile::tempdir().unwrap() }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A path below the test's directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn processes(&self) -> ProcessClient<HttpClient> {
        ProcessClient::new(HttpClient::plaintext(), self.config())
    }

    pub(crate) fn filesystem(&self) -> FilesystemClient<HttpClient> {
        FilesystemClient::new(HttpClient::plaintext(), self.config())
    }

    pub(crate) fn config(&self) -> ClientConfig {
        ClientConfig::new(self.url.parse().unwrap())
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers, Bytes::new()).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        self.try_send(method, path, headers, body.into()).await.unwrap()
    }

    /// As [`Self::send`], for requests that the server may cut off.
    pub(crate) async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, Box<dyn std::error::Error>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = client.request(request.body(Full::new(body))?).await?;
        let (head, body) = answer.into_parts();
        Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
    }
}

impl Drop for Envd {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The user that the tests run as.
pub(crate) fn user() -> String {
    let uid = nix::unistd::geteuid().as_raw().to_string();
    let passwd = fs_err::read_to_string("/etc/passwd").unwrap();
    let row = passwd.lines().find(|line| line.split(':').nth(2) == Some(&uid)).expect("the user has a name");
    row.split(':').next().unwrap().to_owned()
}
