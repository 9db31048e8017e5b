//! The dashboard: pages for people, at `/ui`. The pages are `firkin-dashboard`'s; here is who sees them, what they are filled with, and
//! what their forms do.
//!
//! ```text
//!   request ─► host is ours ─► origin is ours, if it may change something ─► session, and its key as it is now ─► page of its team
//!                                                                              └─ forms: the session's token
//! ```
//!
//! A browser sends its cookie along with whatever a page makes it ask, so a request counts for nothing by its cookie alone. What changes
//! something has to come from a page of this origin (`Origin`) and to bring what only such a page has (the token). Sandboxes may have
//! names below this server's own, and are to browsers the same site: `SameSite` does not hold them off, the other two do.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{ConnectInfo, FromRequestParts, Path, Request, State},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use firkin_dashboard::{
    assets,
    frame::{self, Section, Viewer},
    problem::{self, Problem},
};
use firkin_runtime::store::KeyScope;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri, header, request::Parts};

use crate::{
    App,
    access::{self, Needs},
    auth::Caller,
    doors,
    error::{ApiError, Told},
    hosts::Named,
    proxy::page::wanted,
    serve::Encrypted,
    target::host,
};

mod answer;
mod code;
mod envd;
mod files;
mod form;
mod host;
mod inside;
mod lineage;
mod nodes;
pub(crate) mod notebooks;
mod recipe;
mod sandbox;
mod sandboxes;
pub(crate) mod screen;
pub(crate) mod session;
mod sign;
mod teams;
mod templates;
pub(crate) mod terminal;
mod upload;

use session::Ticket;

/// Where one signs in.
const SIGN_IN: &str = "/ui/sign-in";
/// The first page.
const HOME: &str = "/ui/sandboxes";

/// Every route of the dashboard.
pub(crate) fn pages(app: &Arc<App>) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/ui", get(home))
        .route("/ui/", get(home))
        .route("/ui/assets/{name}", get(asset))
        .route("/ui/sign-in", get(sign::page).post(sign::enter))
        .route("/ui/sign-out", post(sign::leave))
        .route("/ui/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/ui/sandboxes/rows", get(sandboxes::rows))
        .route("/ui/sandboxes/bulk", post(sandboxes::bulk))
        .route("/ui/sandboxes/{id}", get(sandbox::overview))
        .route("/ui/sandboxes/{id}/overview", get(sandbox::moving))
        .route("/ui/sandboxes/{id}/files", get(files::directory))
        .route("/ui/sandboxes/{id}/file", get(files::download))
        .route("/ui/sandboxes/{id}/preview", get(files::preview))
        .route("/ui/sandboxes/{id}/image", get(files::image))
        .route("/ui/sandboxes/{id}/edit", get(files::edit))
        .route("/ui/sandboxes/{id}/files/upload", post(upload::upload))
        .route("/ui/sandboxes/{id}/files/save", post(files::save))
        .route("/ui/sandboxes/{id}/files/directory", post(files::make))
        .route("/ui/sandboxes/{id}/files/remove", post(files::remove))
        .route("/ui/sandboxes/{id}/code", get(code::page).post(code::run))
        .route("/ui/sandboxes/{id}/code/{cell}/{at}", get(code::picture))
        .route("/ui/sandboxes/{id}/terminal", get(terminal::page))
        .route("/ui/sandboxes/{id}/terminal/socket", get(terminal::socket))
        .route("/ui/sandboxes/{id}/processes", get(sandbox::processes))
        .route("/ui/sandboxes/{id}/network", get(sandbox::network))
        .route("/ui/sandboxes/{id}/pause", post(sandbox::pause))
        .route("/ui/sandboxes/{id}/resume", post(sandbox::resume))
        .route("/ui/sandboxes/{id}/extend", post(sandbox::extend))
        .route("/ui/sandboxes/{id}/fork", post(sandbox::fork))
        .route("/ui/sandboxes/{id}/snapshot", post(sandbox::snapshot))
        .route("/ui/sandboxes/{id}/rollback", post(sandbox::rollback))
        .route("/ui/sandboxes/{id}/kill", post(sandbox::kill))
        .route("/ui/sandboxes/{id}/signal", post(sandbox::signal))
        .route("/ui/templates", get(templates::list).post(templates::create))
        .route("/ui/templates/{id}", get(templates::detail))
        .route("/ui/templates/{id}/delete", post(templates::delete))
        .route("/ui/templates/{id}/builds/{build}", get(templates::one_build))
        .route("/ui/templates/{id}/builds/{build}/log", get(templates::build_log))
        .route("/ui/lineage", get(lineage::lineage))
        .route("/ui/host", get(host::host))
        .route("/ui/host/now", get(host::now))
        .route("/ui/settings", get(host::settings))
        .route("/ui/teams", get(teams::page).post(teams::add))
        .route("/ui/teams/unlock", post(teams::unlock))
        .route("/ui/teams/quota", post(teams::quota))
        .route("/ui/teams/keys", post(teams::add_key))
        .route("/ui/teams/revoke", post(teams::revoke))
        .merge(of_nodes(app))
        .route_layer(from_fn_with_state(Arc::clone(app), admit))
        .with_state(Arc::clone(app))
}

/// Those of a server that is a node of a cluster.
fn of_nodes(app: &App) -> Router<Arc<App>> {
    let pages = Router::new();
    if app.config.nodes.is_none() {
        return pages;
    }
    pages.route("/ui/nodes", get(nodes::nodes)).route("/ui/nodes/now", get(nodes::now))
}

/// Whoever looks at a page, and the runtime as they see it.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    /// As a program with the same key.
    pub(crate) caller: Caller,
    /// The session.
    pub(crate) ticket: Ticket,
    /// Whether the server is a node of a cluster.
    is_of_cluster: bool,
}

impl Visitor {
    /// Whose session a request is of, if its key is still good.
    fn of(app: &App, request: &Request) -> Option<Self> {
        let ticket = app.sessions.find(request.headers(), is_encrypted(request.headers(), request.extensions()))?;
        let caller = Caller::of(app, app.host().authenticate_digest(ticket.key)?);
        Some(Self { caller, ticket, is_of_cluster: app.config.nodes.is_some() })
    }

    /// Whether it may change sandboxes.
    fn may_act(&self) -> bool {
        self.caller.scope >= KeyScope::Sandboxes
    }

    /// As pages have it.
    fn viewer(&self) -> Viewer {
        let scope = match self.caller.scope {
            KeyScope::Read => "looks only",
            KeyScope::Sandboxes => "sandboxes",
            KeyScope::Full => "everything",
        };
        Viewer {
            team: self.caller.team.to_string(),
            scope,
            is_of_host: self.caller.team.is_first(),
            is_of_cluster: self.is_of_cluster,
            may_act: self.may_act(),
            token: self.ticket.token.clone(),
        }
    }
}

impl FromRequestParts<Arc<App>> for Visitor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        // A route that wants to know who looks has a row that asks for a session.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthorized(SIGNED_OUT))
    }
}

/// What whoever has no session is told.
const SIGNED_OUT: &str = "nobody is signed in here, or not any more";

/// Whether whoever sends this has signed in.
pub(crate) fn is_visitor(app: &App, request: &Request) -> bool {
    request.headers().contains_key(header::COOKIE) && Visitor::of(app, request).is_some()
}

/// A place in the list of pages, for whoever looks.
fn place(viewer: &Viewer, section: Section) -> frame::Place<'_> {
    frame::Place { viewer, section, title: "", scripts: &[] }
}

/// Lets a request through to its page.
async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let reads_html = wanted(request.headers());
    let admitted = admitted(&app, &request);
    let visitor = admitted.as_ref().ok().and_then(Option::as_ref).cloned();
    let response = match admitted {
        Ok(visitor) => {
            if let (Some(_), Some(place)) = (&visitor, request.extensions().get::<doors::Place>()) {
                place.know();
            }
            // Who signs in anew is not who was signed in before.
            let caller = visitor.as_ref().map(|visitor| &visitor.caller).filter(|_| uri.path() != SIGN_IN);
            let entry = app.audit.as_ref().and_then(|audit| audit.begin(&request, caller, visitor.is_some()));
            if let Some(visitor) = visitor {
                request.extensions_mut().insert(visitor);
            }
            let response = next.run(request).await;
            if let Some(entry) = entry {
                entry.end(&response);
            }
            response
        }
        Err(Refused::SignedOut) if method == Method::GET && reads_html => Redirect::to(&sign::way_back(&uri)).into_response(),
        Err(Refused::SignedOut) => ApiError::unauthorized(SIGNED_OUT).into_response(),
        Err(Refused::Otherwise(error)) => error.into_response(),
    };
    dress(shown(response, visitor.as_ref(), &uri))
}

enum Refused {
    SignedOut,
    Otherwise(ApiError),
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self::Otherwise(error)
    }
}

fn admitted(app: &App, request: &Request) -> Result<Option<Visitor>, Refused> {
    let headers = request.headers();
    let needs = access::needs(request).ok_or_else(ApiError::method_not_allowed)?;
    // Who asks for `/` may be any program, under any name that the rest of the server answers to.
    if request.uri().path() != "/" {
        check_host(app, request.uri(), headers)?;
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) || headers.contains_key(header::UPGRADE) {
        check_origin(request.uri(), headers)?;
    }
    let Needs::Session(least) = needs else { return Ok(Visitor::of(app, request)) };
    let visitor = Visitor::of(app, request).ok_or(Refused::SignedOut)?;
    if visitor.caller.scope < least { Err(ApiError::beyond_key(visitor.caller.scope).into()) } else { Ok(Some(visitor)) }
}

/// Refuses a name that somebody else may have made to point here, whatever other clients may ask under.
fn check_host(app: &App, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    match app.hosts.named(uri, headers).map_err(|error| ApiError::bad_request(error.to_string()))? {
        Named::Ours => Ok(()),
        Named::Foreign(name) => Err(ApiError::foreign_host(&name)),
    }
}

/// Refuses what a page of elsewhere made a browser ask. A browser says where from, and whoever leaves it out is none, or too old to trust.
fn check_origin(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let origin = origins.next().and_then(|origin| origin.to_str().ok()).and_then(|origin| origin.split_once("://"));
    let own = host(uri, headers);
    let same = origin.zip(own).is_some_and(|((scheme, origin), own)| {
        matches!(scheme, "http" | "https") && origin.eq_ignore_ascii_case(own) && origins.next().is_none()
    });
    if same {
        Ok(())
    } else {
        Err(ApiError::forbidden("this did not come from a page of this server: `Origin` is another".to_owned()))
    }
}

/// An error as a page.
fn shown(response: Response, visitor: Option<&Visitor>, uri: &Uri) -> Response {
    let Some(told) = response.extensions().get::<Told>().cloned() else { return response };
    let problem = Problem {
        status: response.status().as_u16(),
        message: told.message,
        code: told.error_code,
        retry_after_s: told.retry_after_s,
    };
    let page = match visitor {
        Some(visitor) => {
            let viewer = visitor.viewer();
            problem::shown(place(&viewer, Section::Sandboxes), &problem, &back(uri.path()))
        }
        None => problem::plain(&problem),
    };
    let mut response = response.map(|_| page.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(answer::HTML));
    response
}

/// Where one comes from to what was refused: the page of the sandbox, if it was one's, else the first.
fn back(path: &str) -> String {
    match path.strip_prefix("/ui/sandboxes/").and_then(|rest| rest.split_once('/')) {
        Some((id, _)) if id.bytes().all(|byte| byte.is_ascii_alphanumeric()) => format!("{HOME}/{id}"),
        _ => ["/ui/templates", "/ui/teams"].into_iter().find(|page| path.starts_with(page)).unwrap_or(HOME).to_owned(),
    }
}

/// What every answer says of itself. A page that says more says it first.
fn dress(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, assets::POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// `GET /`: a browser is led to the pages, a program is told what it was always told.
async fn root(headers: HeaderMap) -> Response {
    if wanted(&headers) { Redirect::to("/ui").into_response() } else { ApiError::no_route("/").into_json() }
}

/// `GET /ui`.
async fn home() -> Redirect {
    Redirect::to(HOME)
}

/// `GET /ui/assets/{name}`: it never changes under this name.
async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    let asset = assets::named(&name).ok_or_else(|| ApiError::no_route(&format!("{}{name}", assets::PATH)))?;
    let kept = HeaderValue::from_static("public, max-age=31536000, immutable");
    let media_type = HeaderValue::from_static(asset.media_type);
    Ok(([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, kept)], asset.text).into_response())
}

/// Whether the browser reached us over TLS, as far as one can tell. A proxy that lies makes its cookie stricter, no more.
fn is_encrypted(headers: &HeaderMap, extensions: &Extensions) -> bool {
    let by_proxy = headers.get("x-forwarded-proto").is_some_and(|value| value == "https");
    by_proxy || extensions.get::<Encrypted>().is_some_and(|Encrypted(encrypted)| *encrypted)
}

/// From where a request came, for the log.
fn peer(parts: &Parts) -> Option<SocketAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_origin_may_ask_for_changes() {
        let check = |origins: &[&str], host: &str| {
            let mut headers: HeaderMap = origins.iter().map(|origin| (header::ORIGIN, origin.parse().unwrap())).collect();
            headers.insert(header::HOST, host.parse().unwrap());
            check_origin(&Uri::from_static("/ui/sandboxes"), &headers).is_ok()
        };
        assert!(check(&["http://localhost:3000"], "localhost:3000") && check(&["https://Boxes.test"], "boxes.test"));
        for origins in [
            &[][..],
            &["null"],
            &["http://localhost:3001"],
            &["http://evil.example"],
            &["http://3000-iabc.localhost:3000"],
            &["http://localhost:3000.evil.example"],
            &["localhost:3000"],
            &["file://localhost:3000"],
            &["http://localhost:3000", "http://evil.example"],
        ] {
            assert!(!check(origins, "localhost:3000"), "{origins:?}");
        }
    }

    #[test]
    fn back_is_the_page_of_the_sandbox() {
        for (path, page) in [
            ("/ui/sandboxes/iabc/pause", "/ui/sandboxes/iabc"),
            ("/ui/sandboxes/iabc", "/ui/sandboxes"),
            ("/ui/sandboxes/%2e%2e/x", "/ui/sandboxes"),
            ("/ui/host", "/ui/sandboxes"),
        ] {
            assert_eq!(back(path), page);
        }
    }
}
