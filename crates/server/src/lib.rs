//! The HTTP edge: E2B's control plane, and the proxy into sandboxes, on one port.
//!
//! This crate converts and decides nothing: a request becomes one call of the runtime, and the answer or the error becomes
//! E2B's JSON. Entry points are [`serve`] for a program and [`router`] for an embedding or a test.
//!
//! ```text
//!             ┌ host `<port>-<id>.<domain>`, routing headers or a signed URL ─► proxy ─► Runtime::dial
//!   request ──┤
//!             ├ `/ui` ─► session ─► pages, each of its team (`ui.rs`)
//!             └ everything else ─► CORS ─► API key, and what it may ─► routes ─► Runtime of its team
//! ```

use std::{
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use firkin_runtime::runtime::Runtime;
use firkin_traces::Traces;
use firkin_wire::unread;
use futures::future::BoxFuture;
use http::Method;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer, ExposeHeaders};
use tracing::Instrument as _;

mod access;
mod app;
pub mod audit;
mod auth;
mod cookies;
mod discreet;
mod doors;
mod elsewhere;
mod error;
mod extract;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod hosts;
mod idempotency;
mod latency;
mod listing;
mod logging;
mod metrics;
pub mod nodes;
mod openapi;
mod proxy;
mod redirect;
mod requests;
mod routes;
mod serve;
mod sever;
mod shape;
mod target;
mod tls;
mod ui;

pub use auth::{ADMIN_TOKEN, admin_digest};
pub use hosts::{AllowedHosts, HostPattern, InvalidHostPattern, OtherHosts};
pub use logging::{LogControl, LogFilterError};
pub use serve::{ServeError, serve};
pub use tls::{Listener, TlsError, TlsIdentity};

use app::App;
use doors::Place;
use elsewhere::{Home, overflow, signer::Signer};
use error::{ApiError, ProxyError};
use hosts::{Named, OtherHosts as Others};
use latency::FirstAnswer;
use nodes::{Nodes, SecondCopies};
use proxy::{origin, page};
use target::{InvalidTarget, Target, Way};

/// How the edge behaves. Resolved by the caller, once.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Domain of the sandboxes' host names, told to clients. `None` leaves the client's own setting in force, and lets host
    /// names of any domain in.
    pub domain: Option<String>,
    /// Host names that it answers to, beside the loopback's, those of its domain, and addresses.
    pub allowed_hosts: AllowedHosts,
    /// Whether clients may ask for templates whose guests run guests. These reach more of the host's kernel than others. What is built
    /// on such a template is as it is.
    pub nested_virtualization: bool,
    /// Longest body of a control plane request, in bytes. The data plane has no limit.
    pub max_body_bytes: usize,
    /// Connections served at once. Where there are as many, idle ones of those who have shown no key are closed for others.
    pub max_connections: usize,
    /// The same of one peer, unless it is this host. A reverse proxy elsewhere, or a network behind one address, is one peer.
    pub max_connections_per_peer: usize,
    /// How long a connection may be idle that has shown no key and reached no sandbox.
    pub stranger_idle: Duration,
    /// How long a new connection may take to send the head of its first request.
    pub head_deadline: Duration,
    /// How long the client of an upload may be silent.
    pub upload_silence: Duration,
    /// How long the client of an event stream may take nothing of what there is for it.
    pub event_silence: Duration,
    /// How often a stream of events says that it is still there, and is ended if its key is good no more.
    pub event_heartbeat: Duration,
    /// The token that administers teams and keys, by its SHA-256. Absent: nobody does it here.
    pub admin: Option<[u8; 32]>,
    /// Changes what is logged. Absent: nobody does it here.
    pub log: Option<LogControl>,
    /// Where spans have their places in traces. Absent: they are for the log alone.
    pub traces: Option<Traces>,
    /// The directory of the audit log. Absent: none is kept.
    pub audit: Option<PathBuf>,
    /// What its operator is shown of how it was started.
    pub about: About,
    /// The other nodes of its cluster. Absent: it is alone.
    pub nodes: Option<Arc<dyn Nodes>>,
    /// Who makes a second copy of what is paused, before it is answered that it is. Absent: a pause is answered once it is durable here.
    pub second_copies: Option<Arc<dyn SecondCopies>>,
    /// How long requests under way may take to finish once the server is told to stop.
    pub shutdown_grace: Duration,
}

/// What whoever starts a server knows of it, for the dashboard.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Settings as they were resolved, each with its name, and nothing that is secret.
    pub settings: Vec<(String, String)>,
    /// What a look at the host found.
    pub findings: Vec<Finding>,
}

/// Something that was found by looking at the host.
#[derive(Debug, Clone)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// `ok`, `warning` or `failed`.
    pub status: &'static str,
    /// What was found.
    pub found: String,
    /// What helps.
    pub remedy: Option<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            domain: None,
            allowed_hosts: AllowedHosts::default(),
            nested_virtualization: false,
            admin: None,
            log: None,
            traces: None,
            about: About::default(),
            nodes: None,
            second_copies: None,
            audit: None,
            // The largest create is its environment and metadata, far below this.
            max_body_bytes: 1 << 20,
            // Each costs a descriptor here and, in use, one more into a sandbox.
            max_connections: 8192,
            // An office behind one address has fewer, and one address alone does not fill the house.
            max_connections_per_peer: 2048,
            // Longer than a person needs from one request of a page to the next.
            stranger_idle: Duration::from_secs(15),
            head_deadline: Duration::from_secs(30),
            // A connection that lost its way recovers sooner, or never.
            upload_silence: Duration::from_secs(60),
            // As long as a laptop's network may be away without its pages noticing.
            event_silence: Duration::from_secs(30),
            event_heartbeat: Duration::from_secs(15),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// Both planes as one service. Upgraded connections and pooled ones live until the runtime ends their sandboxes.
///
/// Fails where the audit log cannot be opened.
pub fn router(runtime: Runtime, config: ServerConfig) -> io::Result<Router> {
    Ok(assemble(App::new(runtime, config, false)?))
}

pub(crate) fn assemble(app: Arc<App>) -> Router {
    // Browsers may call from anywhere: a request is authorised by a key that it carries, never by where it comes from.
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(ExposeHeaders::any());
    // Pages of our own are for themselves: no other page reads them.
    let pages = ui::pages(&app);
    routes::control_plane(&app)
        .layer(cors)
        .merge(pages)
        .layer(from_fn_with_state(app, choose_plane))
        .layer(from_fn(unread::settle))
}

/// Marks an answer that a sandbox gave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FromSandbox;

async fn choose_plane(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let place = request.extensions().get::<Place>().cloned();
    let from_peer = match elsewhere::enter(&app, &mut request) {
        Ok(from_peer) => from_peer,
        Err(error) => return nodes::refuse_former(error.into_response()),
    };
    if let Some(place) = &place {
        let is_known = || from_peer || auth::is_known(&app, request.headers()) || ui::is_visitor(&app, &request);
        if !place.is_known() && is_known() {
            place.know();
        }
        if place.is_too_many() {
            return ApiError::crowded().into_response();
        }
    }
    let way = target::target(request.uri(), request.headers(), app.config.domain.as_deref());
    // A peer has looked at that.
    let admitted = if from_peer { Ok(()) } else { check_host(&app, &request, way.as_ref()) };
    let sought = elsewhere::sought(&app, way.as_ref(), from_peer, &request);
    let rest = from_peer.then(|| elsewhere::hear_out::listen(&mut request));
    let mut response = match admitted {
        Ok(()) => match elsewhere::home(&app, sought).await {
            Home::Here => answer_at_home(&app, way, request, next).await,
            Home::There(nodes, passed) => {
                // What is for a guest is never answered here.
                let here = way.is_none().then_some(|request| answer_at_home(&app, None, request, next));
                overflow::there(&app, (&nodes, passed), request, here).await.unwrap_or_else(IntoResponse::into_response)
            }
            Home::Anywhere(create) => {
                let own = Arc::clone(&app);
                let here = move |request| {
                    let (app, next) = (Arc::clone(&own), next.clone());
                    Box::pin(async move { answer(&app, None, request, next).await }) as BoxFuture<'static, Response>
                };
                create.run(&app, request, here).await
            }
            Home::Refused(response) => response,
        },
        Err(error) => error.into_response(),
    };
    if let Some(rest) = rest {
        rest.hear(&response);
    }
    metrics::count(&app, &response);
    let visited = response.extensions().get::<FromSandbox>().is_some();
    if let Some(place) = place.filter(|_| visited) {
        place.visit();
    }
    if let Some(nodes) = &app.config.nodes {
        nodes::sign(&**nodes, from_peer, visited, &mut response);
    }
    response
}

/// Refuses what asks under a name that is not ours, unless it shows what no page of elsewhere has.
fn check_host(app: &App, request: &Request, way: Option<&Result<(Target, Way), InvalidTarget>>) -> Result<(), ApiError> {
    let named = app.hosts.named(request.uri(), request.headers()).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let Named::Foreign(name) = named else { return Ok(()) };
    let admitted = match app.hosts.others {
        Others::Anybody => true,
        Others::Nobody => false,
        Others::Known => match way {
            Some(Ok((_, Way::Host))) => true,
            // The same sandbox is reached by a host name that says no more than this.
            Some(Ok((target, Way::Headers))) if target.id.is_generated() => true,
            // The CORS layer answers these itself, and browsers put no key into them.
            None if request.method() == Method::OPTIONS => true,
            // Whether the signature is anybody's is seen by those whom it leads to, and leads to no route if it is not.
            None if proxy::signed::is_signed(request) || auth::brings_own(request) => true,
            Some(Ok((_, Way::Headers)) | Err(_)) | None => auth::is_known(app, request.headers()),
        },
    };
    if admitted { Ok(()) } else { Err(ApiError::foreign_host(&name)) }
}

/// Answers what is not another node's, as far as was known when it was asked for, and says in which life of a sandbox.
async fn answer_at_home(app: &App, way: Option<Result<(Target, Way), InvalidTarget>>, request: Request, next: Next) -> Response {
    let here = elsewhere::at_home(app, way.as_ref(), request.uri().path());
    let before = here.as_ref().and_then(|id| app.host().epoch(id));
    let response = answer(app, way, request, next).await;
    let response = elsewhere::date(app, here.as_ref(), before, response);
    elsewhere::unless_left(app, here, response).await
}

/// Whose token signed a URL that a request without a target may be.
fn signer(app: &App, request: &Request) -> impl Future<Output = Result<Signer, ApiError>> {
    // What is asked of others does not hold on to the request.
    let sought = elsewhere::signer::sought(app, request);
    async move {
        match sought? {
            Some(sought) => sought.signer(app).await,
            None => Ok(Signer::Nobody),
        }
    }
}

async fn answer(app: &App, way: Option<Result<(Target, Way), InvalidTarget>>, request: Request, next: Next) -> Response {
    match way {
        None => match signer(app, &request).await {
            Ok(Signer::Here(target)) => {
                let (id, before) = (target.id.clone(), app.host().epoch(&target.id));
                let response = forward(app, target, request).await;
                let mut response = elsewhere::date(app, Some(&id), before, response);
                origin::confine(response.headers_mut());
                response
            }
            Ok(Signer::There(nodes, node, target)) => {
                let mut response = elsewhere::lead_to(app, (&nodes, node, target), request).await;
                origin::confine(response.headers_mut());
                response
            }
            Ok(Signer::Nobody) => {
                let received = Instant::now();
                let mut request = request;
                let traces = app.config.traces.as_ref();
                let begun = app.requests.begin(&mut request, traces);
                let mut response = next.run(request).instrument(begun.span.clone()).await;
                let made = response.extensions().get::<FirstAnswer>().map(|FirstAnswer(id)| id);
                begun.answered(response.status(), made, traces);
                tracing::debug!(parent: &begun.span, status = response.status().as_u16(), took = ?received.elapsed(), "answered");
                begun.id.tell(response.headers_mut());
                app.latency.created(&response, received, &begun.span);
                origin::never_sniffed(response.headers_mut());
                response
            }
            Err(error) => {
                let mut response = error.into_response();
                origin::never_sniffed(response.headers_mut());
                response
            }
        },
        Some(Ok((target, Way::Host))) => forward(app, target, request).await,
        Some(Ok((target, Way::Headers))) => {
            let mut response = forward(app, target, request).await;
            origin::vary(response.headers_mut());
            response
        }
        Some(Err(reason)) => ProxyError::Target(reason).into_response(),
    }
}

async fn forward(app: &App, target: Target, mut request: Request) -> Response {
    let refuse = if page::wanted(request.headers()) { page::of } else { IntoResponse::into_response };
    if let Err(error) = proxy::ingress::admit(app.host(), &target, &mut request) {
        return refuse(error);
    }
    let watch = app.latency.watch(&target, &mut request);
    let mut response = match (proxy::forward(&app.pool, target, request).await, watch) {
        (Ok(response), Some(watch)) => watch.over(response),
        (Ok(response), None) => response,
        (Err(error), _) => return refuse(error),
    };
    response.extensions_mut().insert(FromSandbox);
    response
}
