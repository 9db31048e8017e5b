//! Clients: what they ask of any node, and a log of what they were answered.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use fastrand::Rng;
use firkin_wire::{ENVD_PORT, headers};
use http::{HeaderMap, Method, Request, StatusCode, header::RETRY_AFTER};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::{
    envd::STREAM,
    faults::Silent,
    node::{ADMIN, Node, PORT},
    record::{Answer, Ask, Asked, Found, Severed, now},
    schedule::{NODES, Party},
    world::address,
};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a stream may say nothing: longer than anything of a schedule stands still.
const SILENCE: Duration = Duration::from_secs(30);

/// Longer than any schedule.
pub(crate) const LONG_S: u64 = 3600;

/// How long brief sandboxes live.
const BRIEF_S: std::ops::Range<u64> = 2..7;

/// Sandboxes of one user at the same time.
const MOST: usize = 6;

/// Between two visits of one who comes back to what rests, in milliseconds.
const VISIT_MS: std::ops::Range<u64> = 200..700;

/// How many are made until one is where it is to be.
const TRIES: usize = 60;

/// Between two requests of a user, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 50..400;

/// A client of one node.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    node: usize,
    key: String,
    http: Http<HttpConnector, Full<Bytes>>,
    log: Arc<Mutex<Vec<Asked>>>,
}

/// What was answered.
struct Said {
    status: StatusCode,
    /// Whether it may be asked for again, because nothing was done.
    is_undone: bool,
    /// Which node says so.
    by: String,
    epoch: Option<u64>,
    body: Value,
}

/// Which life of a sandbox has answered.
fn epoch(headers: &HeaderMap) -> Option<u64> {
    headers.get("x-firkin-epoch")?.to_str().ok()?.parse().ok()
}

/// What a user believes of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belief {
    Running,
    Paused,
    Unsure,
}

impl Client {
    pub(crate) fn of(node: usize, key: String, log: Arc<Mutex<Vec<Asked>>>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(Duration::from_secs(10)));
        Self { node, key, http: Http::builder(TokioExecutor::new()).build(connector), log }
    }

    /// The same user, at another node.
    pub(crate) fn at(&self, node: usize) -> Self {
        Self { node, ..self.clone() }
    }

    /// Status and body, or why there is none.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> anyhow::Result<Said> {
        let uri = format!("http://{}:{PORT}{path}", address(Party::Node(self.node)));
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let request = Request::builder().method(method).uri(uri).header(headers::API_KEY, &self.key);
        let request = request.header("x-admin-token", ADMIN).header("content-type", "application/json").body(Full::from(body))?;
        let answering = async {
            let (head, body) = self.http.request(request).await?.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let by = head.headers.get("x-firkin-node").and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
            let is_undone = head.headers.contains_key(RETRY_AFTER);
            let epoch = epoch(&head.headers);
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            anyhow::Ok(Said { status: head.status, is_undone, by, epoch, body })
        };
        timeout(PATIENCE, answering).await.context("there was no answer")?
    }

    /// What a look at a path shows.
    pub(crate) async fn look(&self, path: &str) -> anyhow::Result<Value> {
        let Said { status, body, .. } = self.call(Method::GET, path, None).await?;
        ensure!(status.is_success(), "node {}: a look at `{path}` was answered with {status} {body}", self.node);
        Ok(body)
    }

    /// Asks, and writes down what came of it.
    pub(crate) async fn ask(&self, sandbox: &str, ask: Ask) -> (String, Answer, Value) {
        let (method, path, body) = match ask {
            Ask::Create { timeout_s } => {
                (Method::POST, "/sandboxes".to_owned(), Some(json!({"templateID": "base", "timeout": timeout_s})))
            }
            Ask::Pause => (Method::POST, format!("/sandboxes/{sandbox}/pause"), None),
            Ask::Resume => (Method::POST, format!("/sandboxes/{sandbox}/resume"), Some(json!({"timeout": LONG_S}))),
            Ask::Move { to } => (Method::POST, format!("/admin/sandboxes/{sandbox}/move"), Some(json!({"node": Node::name(to)}))),
            Ask::Kill => (Method::DELETE, format!("/sandboxes/{sandbox}"), None),
            Ask::Look | Ask::Listen => (Method::GET, format!("/sandboxes/{sandbox}"), None),
        };
        let from = now();
        let called = self.call(method, &path, body).await;
        let to = now();
        let epoch = called.as_ref().ok().and_then(|said| said.epoch);
        let (answer, body) = match called {
            Ok(said) if said.status.is_success() => (Answer::Done, said.body),
            Ok(Said { status, is_undone, by, body, .. }) => {
                let code = body["error_code"].as_str().unwrap_or_default().to_owned();
                // A server that has begun something may not know itself how far it came, and says when nothing was done. A kill ends a machine
                // also where that cannot be recorded, and is answered so.
                let is_refused = is_undone && ask != Ask::Kill;
                let is_known = status.is_client_error() || is_refused;
                let code = format!("{by}: {code}");
                let text = format!("{code} {}", body["message"].as_str().unwrap_or_default());
                let answer =
                    if is_known { Answer::Refused(status.as_u16(), text) } else { Answer::Unknown(format!("{status} {text}")) };
                (answer, body)
            }
            Err(error) => (Answer::Unknown(format!("{error:#}")), Value::Null),
        };
        let sandbox = body["sandboxID"].as_str().filter(|_| sandbox.is_empty()).unwrap_or(sandbox).to_owned();
        self.note(Asked { node: self.node, sandbox: sandbox.clone(), ask, from, to, answer: answer.clone(), epoch });
        (sandbox, answer, body)
    }

    fn note(&self, asked: Asked) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    }

    /// Waits until the node has heard of the key.
    pub(crate) async fn is_let_in(&self) -> anyhow::Result<()> {
        let since = Instant::now();
        loop {
            match self.call(Method::GET, "/v2/sandboxes", None).await {
                Ok(said) if said.status.is_success() => return Ok(()),
                Ok(_) | Err(_) if since.elapsed() < PATIENCE => sleep(Duration::from_millis(100)).await,
                Ok(Said { status, body, .. }) => bail!("node {} lets nobody in: {status} {body}", self.node),
                Err(error) => return Err(error),
            }
        }
    }

    /// A sandbox on a node, made by it or by another that it was asked of. Those that others get are killed.
    pub(crate) async fn create_on(&self, node: usize) -> anyhow::Result<String> {
        for _ in 0..TRIES {
            let id = self.surely("", Ask::Create { timeout_s: LONG_S }).await?;
            let said = self.call(Method::GET, &format!("/sandboxes/{id}"), None).await?;
            if said.by == Node::name(node) {
                return Ok(id);
            }
            self.surely(&id, Ask::Kill).await?;
        }
        bail!("no sandbox is made on node {node}")
    }

    /// What is to be done; asked for again where nothing was.
    pub(crate) async fn surely(&self, sandbox: &str, ask: Ask) -> anyhow::Result<String> {
        let since = Instant::now();
        loop {
            match self.ask(sandbox, ask).await {
                (sandbox, Answer::Done, _) => return Ok(sandbox),
                (_, Answer::Refused(..), _) if since.elapsed() < PATIENCE => sleep(Duration::from_millis(200)).await,
                (_, answer, _) => bail!("node {}: {ask:?} was answered with {answer:?}", self.node),
            }
        }
    }

    /// How a sandbox is found.
    pub(crate) async fn find(&self, sandbox: &str) -> anyhow::Result<Found> {
        match self.ask(sandbox, Ask::Look).await {
            (_, Answer::Done, body) if body["state"] == "paused" => Ok(Found::Paused),
            (_, Answer::Done, _) => Ok(Found::Running),
            (_, Answer::Refused(404, _), _) => Ok(Found::Gone),
            (_, answer, _) => bail!("node {}: a look at `{sandbox}` was answered with {answer:?}", self.node),
        }
    }

    /// Kills all that there are.
    pub(crate) async fn clear(&self) -> anyhow::Result<()> {
        let Said { status, body, .. } = self.call(Method::GET, "/v2/sandboxes?state=running,paused&limit=100", None).await?;
        if !status.is_success() {
            bail!("node {}: a list was answered with {status} {body}", self.node);
        }
        for sandbox in body.as_array().into_iter().flatten() {
            let id = sandbox["sandboxID"].as_str().context("a sandbox has an id")?;
            // One whose deadline comes meanwhile is gone, too.
            match self.ask(id, Ask::Kill).await {
                (_, Answer::Done | Answer::Refused(404, _), _) => {}
                (_, answer, _) => bail!("node {}: the kill of `{id}` was answered with {answer:?}", self.node),
            }
        }
        Ok(())
    }

    /// Uses the nodes as somebody does who asks any of them, until it is over.
    pub(crate) async fn user(self, mut rng: Rng, (is_over, silent): (Arc<AtomicBool>, Arc<Silent>)) {
        let mut sandboxes: Vec<(String, Belief)> = Vec::new();
        while !is_over.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(rng.u64(PAUSE_MS))).await;
            let answering: Vec<usize> = (0..NODES).filter(|node| !silent.is(*node)).collect();
            let Some(node) = rng.choice(&answering) else { continue };
            let any = self.at(*node);
            if sandboxes.is_empty() || sandboxes.len() < MOST && rng.u32(..4) == 0 {
                let is_brief = rng.u32(..3) == 0;
                let timeout_s = if is_brief { rng.u64(BRIEF_S) } else { LONG_S };
                if let (id, Answer::Done, _) = any.ask("", Ask::Create { timeout_s }).await
                    && !is_brief
                {
                    sandboxes.push((id, Belief::Running));
                }
                continue;
            }
            let chosen = rng.usize(..sandboxes.len());
            let (id, belief) = sandboxes[chosen].clone();
            if belief == Belief::Running && rng.bool() {
                self.at(answering[rng.usize(..answering.len())]).glance(&id).await;
            }
            let ask = match (belief, rng.u32(..12)) {
                (Belief::Unsure, _) | (_, 0) => Ask::Look,
                (_, 1) => Ask::Kill,
                (_, 2) | (Belief::Paused, 3..=5) => Ask::Move { to: rng.usize(..NODES) },
                (Belief::Running, _) => Ask::Pause,
                (Belief::Paused, _) => Ask::Resume,
            };
            let (_, answer, body) = any.ask(&id, ask).await;
            if (ask, &answer) == (Ask::Kill, &Answer::Done) && rng.bool() {
                // Nobody has it any more.
                self.at(answering[rng.usize(..answering.len())]).ask(&id, Ask::Resume).await;
            }
            sandboxes[chosen].1 = match (ask, &answer) {
                (Ask::Kill, Answer::Done) | (_, Answer::Refused(404, _)) => {
                    sandboxes.remove(chosen);
                    continue;
                }
                (Ask::Pause, Answer::Done) => Belief::Paused,
                (Ask::Look, Answer::Done) if body["state"] == "paused" => Belief::Paused,
                (Ask::Resume | Ask::Look, Answer::Done) => Belief::Running,
                (Ask::Move { .. }, Answer::Done | Answer::Refused(409, _)) => belief,
                _ => Belief::Unsure,
            };
        }
    }

    /// Comes back to sandboxes that rest, paused where not only their own node has their files: wakes one, and has it rest on some node again. What a
    /// lost node has of them is had by others.
    pub(crate) async fn visit(self, mut rng: Rng, sandboxes: Vec<String>, (is_over, silent): (Arc<AtomicBool>, Arc<Silent>)) {
        while !is_over.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(rng.u64(VISIT_MS))).await;
            let answering: Vec<usize> = (0..NODES).filter(|node| !silent.is(*node)).collect();
            let (Some(node), Some(id)) = (rng.choice(&answering), rng.choice(&sandboxes)) else { continue };
            let any = self.at(*node);
            let runs = matches!(any.ask(id, Ask::Resume).await.1, Answer::Done | Answer::Refused(409, _));
            if runs {
                self.at(answering[rng.usize(..answering.len())]).glance(id).await;
            }
            if runs && any.ask(id, Ask::Pause).await.1 == Answer::Done {
                any.ask(id, Ask::Move { to: rng.usize(..NODES) }).await;
            }
        }
    }

    /// Listens to a sandbox through its server, until it is over, and writes down each time that it was cut off.
    pub(crate) async fn listen(self, sandbox: String, is_over: Arc<AtomicBool>, log: Arc<Mutex<Vec<Severed>>>) {
        while !is_over.load(Ordering::SeqCst) {
            match self.stream(&sandbox, &is_over).await {
                // It was not there to be cut.
                Ok(None) => sleep(Duration::from_millis(200)).await,
                Ok(Some(why)) => {
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(Severed {
                        at: now(),
                        node: self.node,
                        sandbox: sandbox.clone(),
                        why,
                    });
                }
                Err(()) => return,
            }
        }
    }

    /// Listens to a sandbox until it has said something.
    async fn glance(&self, sandbox: &str) {
        if let Ok(mut body) = self.hear(sandbox).await {
            // What became of it is nothing to who has heard who answers.
            drop(timeout(PATIENCE, body.frame()).await);
        }
    }

    /// What is told from within a sandbox, and a note of which life tells it.
    async fn hear(&self, sandbox: &str) -> anyhow::Result<Incoming> {
        let uri = format!("http://{}:{PORT}{STREAM}", address(Party::Node(self.node)));
        let request = Request::builder().uri(uri).header(headers::SANDBOX_ID, sandbox).header(headers::SANDBOX_PORT, ENVD_PORT);
        let from = now();
        let response = timeout(PATIENCE, self.http.request(request.body(Full::default())?)).await??;
        if !response.status().is_success() {
            bail!("{}", response.status());
        }
        let (epoch, answer) = (epoch(response.headers()), Answer::Done);
        self.note(Asked { node: self.node, sandbox: sandbox.to_owned(), ask: Ask::Listen, from, to: now(), answer, epoch });
        Ok(response.into_body())
    }

    /// Why a stream that had begun was cut.
    async fn stream(&self, sandbox: &str, is_over: &AtomicBool) -> Result<Option<String>, ()> {
        let Ok(mut body) = self.hear(sandbox).await else { return Ok(None) };
        loop {
            if is_over.load(Ordering::SeqCst) {
                return Err(());
            }
            match timeout(SILENCE, body.frame()).await {
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(error))) => return Ok(Some(error.to_string())),
                Ok(None) => return Ok(Some("it ended".to_owned())),
                Err(_) => return Ok(Some("it was silent".to_owned())),
            }
        }
    }
}
