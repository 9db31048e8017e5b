//! The control plane as a client: one method per route that a command uses.
//!
//! Errors of the server keep its words; what the user can do about each status is added here, once for all commands.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use firkin_server::ADMIN_TOKEN;
use firkin_wire::{
    DEFAULT_USER, builds,
    headers::{API_KEY, NEXT_TOKEN},
    rest,
};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    envd::{self, Access},
    failure::{ExitStatus, advised},
    serverfile::Target,
};

/// The largest answer that is read: a page of one hundred sandboxes with metadata stays far below.
const ANSWER_LIMIT: usize = 16 << 20;

/// Longer than any operation of the server takes, its own deadlines included; a hung server must not hang a script for ever.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);

/// A client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    http: Client<HttpConnector, Full<Bytes>>,
    target: Target,
}

/// Whether memory is kept, or resumed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Memory and files.
    All,
    /// Files; the guest boots from them.
    Files,
}

impl Keep {
    /// As a flag of the command line says it.
    pub(crate) fn files_only(files_only: bool) -> Self {
        if files_only { Self::Files } else { Self::All }
    }

    /// As requests say it; absent is the default.
    fn memory(self) -> Option<bool> {
        (self == Self::Files).then_some(false)
    }
}

/// An error that the server answered.
#[derive(Debug)]
pub(crate) struct Refused {
    /// HTTP status.
    pub(crate) status: StatusCode,
    /// The server's words.
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

/// A successful answer.
struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.body).context("cannot understand the server's answer")
    }
}

impl Api {
    /// A client of `target`; nothing is sent yet.
    pub(crate) fn new(target: Target) -> Self {
        Self { http: Client::builder(TokioExecutor::new()).build_http(), target }
    }

    /// The server.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Creates a sandbox.
    pub(crate) async fn create(&self, new: &rest::NewSandbox) -> anyhow::Result<rest::Sandbox> {
        self.send(Method::POST, "/v2/sandboxes", Some(new)).await?.json()
    }

    /// Every sandbox that matches, page after page.
    pub(crate) async fn list(&self, filter: &[(&str, String)]) -> anyhow::Result<Vec<rest::ListedSandbox>> {
        let mut all = Vec::new();
        let mut token: Option<String> = None;
        loop {
            let next = token.take().map(|token| ("nextToken", token));
            let answer =
                self.send::<()>(Method::GET, &with_query("/v2/sandboxes", filter.iter().cloned().chain(next)), None).await?;
            all.append(&mut answer.json()?);
            token = answer.headers.get(NEXT_TOKEN).and_then(|value| value.to_str().ok()).map(str::to_owned);
            if token.as_deref().is_none_or(str::is_empty) {
                return Ok(all);
            }
        }
    }

    /// One sandbox.
    pub(crate) async fn sandbox(&self, id: &str) -> anyhow::Result<rest::SandboxDetail> {
        self.send::<()>(Method::GET, &sandbox_path(id, ""), None).await?.json()
    }

    /// Rotates the encryption key.
    pub(crate) async fn rotate_key(&self) -> anyhow::Result<serde_json::Value> {
        self.send::<()>(Method::POST, "/encryption/rotate", None).await?.json()
    }

    /// Pauses a sandbox.
    pub(crate) async fn pause(&self, id: &str, keep: Keep) -> anyhow::Result<()> {
        let body = rest::PauseSandbox { memory: keep.memory(), ..Default::default() };
        self.send(Method::POST, &sandbox_path(id, "/pause"), Some(&body)).await.map(drop)
    }

    /// Resumes a sandbox. `true` if it was paused.
    pub(crate) async fn connect(&self, id: &str, timeout: u32, keep: Keep) -> anyhow::Result<(rest::Sandbox, bool)> {
        let body = rest::ConnectSandbox { timeout: Some(timeout.into()), memory: keep.memory() };
        let path = format!("/v2{}", sandbox_path(id, "/connect"));
        let answer = self.send(Method::POST, &path, Some(&body)).await?;
        Ok((answer.json()?, answer.status == StatusCode::CREATED))
    }

    /// Copies a sandbox.
    pub(crate) async fn fork(&self, id: &str, count: u32, timeout: u32) -> anyhow::Result<Vec<rest::ForkResult>> {
        let body = rest::ForkSandbox { timeout: Some(timeout.into()), count: Some(count.into()) };
        self.send(Method::POST, &sandbox_path(id, "/fork"), Some(&body)).await?.json()
    }

    /// Snapshots a sandbox.
    pub(crate) async fn snapshot(&self, id: &str, name: Option<String>, keep: Keep) -> anyhow::Result<rest::SnapshotInfo> {
        let body = rest::NewSnapshot { name, memory: keep.memory() };
        self.send(Method::POST, &sandbox_path(id, "/snapshots"), Some(&body)).await?.json()
    }

    /// Takes a sandbox back to one of its snapshots.
    pub(crate) async fn rollback(&self, id: &str, snapshot: &str) -> anyhow::Result<()> {
        let body = rest::RollbackSandbox { snapshot_id: snapshot.to_owned() };
        self.send(Method::POST, &sandbox_path(id, "/rollback"), Some(&body)).await.map(drop)
    }

    /// Has a sandbox go to another node, wherever it fits where none is named.
    pub(crate) async fn move_to(&self, id: &str, node: Option<&str>) -> anyhow::Result<Value> {
        let body = serde_json::json!({ "node": node });
        self.send(Method::POST, &format!("/admin{}", sandbox_path(id, "/move")), Some(&body)).await?.json()
    }

    /// What was decided last on what a sandbox tried to reach.
    pub(crate) async fn network_log(&self, id: &str) -> anyhow::Result<Vec<rest::NetworkDecision>> {
        self.send::<()>(Method::GET, &sandbox_path(id, "/network/audit"), None).await?.json()
    }

    /// Everything below what it came from.
    pub(crate) async fn lineage(&self) -> anyhow::Result<Vec<rest::LineageNode>> {
        self.send::<()>(Method::GET, "/lineage", None).await?.json()
    }

    /// Sets how long a sandbox lives from now on.
    pub(crate) async fn set_timeout(&self, id: &str, seconds: u32) -> anyhow::Result<()> {
        let body = rest::SetTimeout { timeout: seconds.into() };
        self.send(Method::POST, &sandbox_path(id, "/timeout"), Some(&body)).await.map(drop)
    }

    /// Ends a sandbox.
    pub(crate) async fn kill(&self, id: &str) -> anyhow::Result<()> {
        self.send::<()>(Method::DELETE, &sandbox_path(id, ""), None).await.map(drop)
    }

    /// Every template.
    pub(crate) async fn templates(&self) -> anyhow::Result<Vec<rest::Template>> {
        self.send::<()>(Method::GET, "/templates", None).await?.json()
    }

    /// Makes a place for a build.
    pub(crate) async fn request_build(&self, request: &builds::RequestBuild) -> anyhow::Result<builds::RequestedBuild> {
        self.send(Method::POST, "/v3/templates", Some(request)).await?.json()
    }

    /// Starts a build, which goes on by itself.
    pub(crate) async fn start_build(&self, place: &builds::RequestedBuild, build: &builds::StartBuild) -> anyhow::Result<()> {
        let path = format!("/v2/templates/{}/builds/{}", escape(&place.template_id), escape(&place.build_id));
        self.send(Method::POST, &path, Some(build)).await.map(drop)
    }

    /// How far a build has come, with what it has said after the first `seen` entries of its log.
    pub(crate) async fn build_status(&self, place: &builds::RequestedBuild, seen: usize) -> anyhow::Result<builds::BuildInfo> {
        let path = format!("/templates/{}/builds/{}/status", escape(&place.template_id), escape(&place.build_id));
        self.send::<()>(Method::GET, &with_query(&path, [("logsOffset", seen.to_string())]), None).await?.json()
    }

    /// Removes a template or a snapshot.
    pub(crate) async fn remove_template(&self, reference: &str) -> anyhow::Result<()> {
        self.send::<()>(Method::DELETE, &format!("/templates/{}", escape(reference)), None).await.map(drop)
    }

    /// Reads a file of a sandbox, through the data plane.
    pub(crate) async fn read_file(&self, sandbox: &rest::Sandbox, path: &str) -> anyhow::Result<Bytes> {
        let request = self.file_request(Method::GET, sandbox, path)?.body(Full::default()).context("cannot make the request")?;
        Ok(self.exchange(request).await?.body)
    }

    /// Writes a file of a sandbox, through the data plane.
    pub(crate) async fn write_file(&self, sandbox: &rest::Sandbox, path: &str, content: Bytes) -> anyhow::Result<()> {
        let request = self
            .file_request(Method::POST, sandbox, path)?
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(Full::new(content))
            .context("cannot make the request")?;
        self.exchange(request).await.map(drop)
    }

    /// Asks `/` of a port in a sandbox, through the data plane.
    pub(crate) async fn get_port(&self, sandbox: &rest::Sandbox, port: u16) -> anyhow::Result<Bytes> {
        let mut request =
            self.data_request(Method::GET, sandbox, "/")?.body(Full::default()).context("cannot make the request")?;
        request.headers_mut().insert(envd::PORT_HEADER, port.into());
        Ok(self.exchange(request).await?.body)
    }

    /// Reads a file of a sandbox as it comes, whatever its size.
    pub(crate) async fn fetch_file(&self, of: (&str, Option<&str>), file: (&str, &str)) -> anyhow::Result<Incoming> {
        let request = self.whole_file(Method::GET, of, file)?.body(Full::default()).context("cannot make the request")?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() { Ok(response.into_body()) } else { Err(refused(response).await) }
    }

    /// Writes a file of a sandbox as it is read, whatever its size.
    pub(crate) async fn send_file(
        &self,
        of: (&str, Option<&str>),
        file: (&str, &str),
        body: UnsyncBoxBody<Bytes, anyhow::Error>,
    ) -> anyhow::Result<()> {
        let request = self.whole_file(Method::POST, of, file)?.header(header::CONTENT_TYPE, "application/octet-stream");
        let request = request.body(body).context("cannot make the request")?;
        let http: Client<HttpConnector, UnsyncBoxBody<Bytes, anyhow::Error>> = Client::builder(TokioExecutor::new()).build_http();
        let response = http.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() { Ok(()) } else { Err(refused(response).await) }
    }

    /// What is exported, as it comes, whatever its size.
    pub(crate) async fn export(&self, kind: &'static str, id: &str) -> anyhow::Result<Incoming> {
        let uri =
            format!("{}{}", self.target.api_url.trim_end_matches('/'), with_query("/admin/export", [(kind, id.to_owned())]));
        let request = Request::builder().uri(uri).header(API_KEY, &self.target.api_key);
        let request = request.body(Full::default()).context("cannot make the request")?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() { Ok(response.into_body()) } else { Err(refused(response).await) }
    }

    /// Has an archive imported as it is read, whatever its size.
    pub(crate) async fn import(
        &self,
        kind: &'static str,
        name: Option<String>,
        body: UnsyncBoxBody<Bytes, anyhow::Error>,
    ) -> anyhow::Result<Value> {
        let query = [("kind", kind.to_owned())].into_iter().chain(name.map(|name| ("name", name)));
        let uri = format!("{}{}", self.target.api_url.trim_end_matches('/'), with_query("/admin/import", query));
        let request = Request::builder().method(Method::POST).uri(uri).header(API_KEY, &self.target.api_key);
        let request = request.header(header::CONTENT_TYPE, "application/zstd").body(body).context("cannot make the request")?;
        let http: Client<HttpConnector, UnsyncBoxBody<Bytes, anyhow::Error>> = Client::builder(TokioExecutor::new()).build_http();
        let response = http.request(request).await.map_err(|error| self.unreachable(error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let answer = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
        let answer = answer.map_err(|error| anyhow!(error)).context("the answer broke off")?.to_bytes();
        serde_json::from_slice(&answer).context("cannot understand the server's answer")
    }

    /// A request about a file: of which sandbox with which token, which file as which user.
    fn whole_file(
        &self,
        method: Method,
        (sandbox_id, token): (&str, Option<&str>),
        (path, user): (&str, &str),
    ) -> anyhow::Result<http::request::Builder> {
        let query = with_query("/files", [("path", path.to_owned()), ("username", user.to_owned())]);
        let uri = format!("{}{query}", self.target.sandbox_url.trim_end_matches('/'));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in &envd::headers(&Access { sandbox_id, token, user: None })? {
            request = request.header(name, value);
        }
        Ok(request)
    }

    fn file_request(&self, method: Method, sandbox: &rest::Sandbox, path: &str) -> anyhow::Result<http::request::Builder> {
        self.data_request(
            method,
            sandbox,
            &with_query("/files", [("path", path.to_owned()), ("username", DEFAULT_USER.to_owned())]),
        )
    }

    fn data_request(&self, method: Method, sandbox: &rest::Sandbox, path: &str) -> anyhow::Result<http::request::Builder> {
        let mut request =
            Request::builder().method(method).uri(format!("{}{path}", self.target.sandbox_url.trim_end_matches('/')));
        let access = Access { sandbox_id: &sandbox.sandbox_id, token: sandbox.envd_access_token.as_deref(), user: None };
        for (name, value) in &envd::headers(&access)? {
            request = request.header(name, value);
        }
        Ok(request)
    }

    /// Asks a route for who administers the host. What it answers is shown as it is.
    pub(crate) async fn admin(&self, token: &str, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let uri = format!("{}/admin{path}", self.target.api_url.trim_end_matches('/'));
        let request = Request::builder().method(method).uri(uri).header(ADMIN_TOKEN, token);
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let answer = self.exchange(request.body(Full::new(bytes)).context("cannot make the request")?).await?;
        if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
    }

    /// Asks a route, and shows what it answers as it is.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.send(method, path, body).await?;
        if answer.body.is_empty() { Ok(Value::Null) } else { answer.json() }
    }

    /// As [`Api::ask`], of what is only looked at.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    /// The event stream, from a place on or from the beginning.
    pub(crate) async fn events(&self, topics: Option<&str>, after: Option<&str>) -> anyhow::Result<Incoming> {
        let path = with_query("/events", topics.map(|topics| ("topics", topics.to_owned())));
        let uri = format!("{}{path}", self.target.api_url.trim_end_matches('/'));
        let mut request = Request::builder().uri(uri).header(API_KEY, &self.target.api_key);
        if let Some(after) = after {
            request = request.header("last-event-id", after);
        }
        let request = request.body(Full::default()).context("cannot make the request")?;
        let response = self.http.request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }
        Err(refused(response).await)
    }

    async fn send<T: Serialize>(&self, method: Method, path: &str, body: Option<&T>) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.target.api_url.trim_end_matches('/')))
            .header(API_KEY, &self.target.api_key);
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                serde_json::to_vec(body).context("cannot write the request as JSON")?.into()
            }
        };
        self.exchange(request.body(Full::new(bytes)).context("cannot make the request")?).await
    }

    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> anyhow::Result<Answer> {
        let user_agent = header::HeaderValue::from_static(concat!("firkin/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(header::USER_AGENT, user_agent);
        let answer = tokio::time::timeout(ANSWER_DEADLINE, async {
            let response = self.http.request(request).await.map_err(|error| self.unreachable(error))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_LIMIT).collect().await.map_err(|error| anyhow!(error));
            let body = body.context("the server's answer broke off")?.to_bytes();
            anyhow::Ok(Answer { status: parts.status, headers: parts.headers, body })
        });
        let answer =
            answer.await.with_context(|| format!("the server did not answer within {} s", ANSWER_DEADLINE.as_secs()))??;
        if answer.status.is_success() { Ok(answer) } else { Err(refusal(&answer)) }
    }

    fn unreachable(&self, error: hyper_util::client::legacy::Error) -> anyhow::Error {
        let error = anyhow!(error).context(format!("cannot reach a server at `{}`", self.target.api_url));
        advised(error, Some("start one with `firkin up`".to_owned()), Some(ExitStatus::Unreachable))
    }
}

/// The error that an answer is, once it is read.
async fn refused(response: Response<Incoming>) -> anyhow::Error {
    let (parts, body) = response.into_parts();
    match Limited::new(body, ANSWER_LIMIT).collect().await {
        Ok(body) => refusal(&Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() }),
        Err(error) => anyhow!(error).context("the server's answer broke off"),
    }
}

/// The server's error in its own words, with the next step.
fn refusal(answer: &Answer) -> anyhow::Error {
    let (message, code) = match serde_json::from_slice::<rest::Error>(&answer.body) {
        Ok(error) => (error.message, error.error_code),
        Err(_) => (format!("the server answered `{}`", answer.status), None),
    };
    let hint = match answer.status {
        StatusCode::UNAUTHORIZED => Some("the API key is not this server's; `firkin env` prints the right one".to_owned()),
        StatusCode::NOT_FOUND => Some("`firkin sandbox ls` and `firkin template ls` list what there is".to_owned()),
        // It says itself what is away.
        StatusCode::SERVICE_UNAVAILABLE if code.as_deref() == Some("catalog_unavailable") => None,
        StatusCode::SERVICE_UNAVAILABLE => Some(match answer.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()) {
            Some(seconds) => {
                format!("the host is full: try again in {seconds} s, or end a sandbox with `firkin sandbox kill ID`")
            }
            None => "the host is full: end a sandbox with `firkin sandbox kill ID`".to_owned(),
        }),
        _ => None,
    };
    advised(Refused { status: answer.status, message }, hint, None)
}

fn sandbox_path(id: &str, rest: &str) -> String {
    format!("/sandboxes/{}{rest}", escape(id))
}

/// `path` with `pairs` as its query.
fn with_query<'a>(path: &str, pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut text = path.to_owned();
    let mut separator = '?';
    for (key, value) in pairs {
        text.push(separator);
        text += key;
        text.push('=');
        text += &escape(&value);
        separator = '&';
    }
    text
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => write!(escaped, "%{byte:02X}").expect("a string takes everything"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_cannot_leave_their_place_in_a_path() {
        assert_eq!(sandbox_path("../x?y", "/pause"), "/sandboxes/..%2Fx%3Fy/pause");
        assert_eq!(with_query("/p", [("a", "1 &".to_owned()), ("b", "ä".to_owned())]), "/p?a=1%20%26&b=%C3%A4");
    }

    #[test]
    fn a_refusal_keeps_the_servers_words() {
        let answer = |status, body: &'static str, headers| Answer { status, headers, body: Bytes::from_static(body.as_bytes()) };
        let full: http::HeaderMap = [(header::RETRY_AFTER, "7".parse().unwrap())].into_iter().collect();
        for (answer, expected) in [
            (
                answer(StatusCode::CONFLICT, r#"{"code":409,"message":"already paused"}"#, http::HeaderMap::new()),
                "error: already paused\n",
            ),
            (
                answer(StatusCode::SERVICE_UNAVAILABLE, r#"{"code":503,"message":"no memory left"}"#, full),
                "error: no memory left\n\
                 hint: the host is full: try again in 7 s, or end a sandbox with `firkin sandbox kill ID`\n",
            ),
            (answer(StatusCode::BAD_GATEWAY, "<html>", http::HeaderMap::new()), "error: the server answered `502 Bad Gateway`\n"),
        ] {
            assert_eq!(crate::failure::render(&refusal(&answer)), expected);
        }
    }
}
