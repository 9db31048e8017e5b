//! Who may use the control plane: whoever holds an API key, as the team whose it is and as far as the key goes.
//!
//! Each request is asked anew: a key that ended opens nothing more, on connections that are open either. The runtime keeps keys hashed and compares digests in constant time; nothing here sees a stored key. The data plane is not
//! guarded by API keys: envd demands its own token, and other ports are public by contract.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use firkin_runtime::{ids::KeyId, keys, runtime::Runtime, store::KeyScope, team::TeamId};
use firkin_wire::{
    headers::{ACCESS_TOKEN, API_KEY},
    secret::equal,
};
use http::{HeaderMap, Method, header, request::Parts};
use sha2::{Digest as _, Sha256};

use crate::{
    App,
    access::{self, Needs},
    error::ApiError,
    listing::Query,
    nodes::Identity,
    requests::note_route,
};

/// Carries the token that administers teams and keys.
pub const ADMIN_TOKEN: &str = "x-admin-token";

/// What a server is told of its admin token ([`ServerConfig::admin`](crate::ServerConfig::admin)).
pub fn admin_digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Longest key worth hashing: `e2b_` and 40 digits, with room for other issuers' forms.
pub(crate) const MAX_KEY_BYTES: usize = 256;

/// Whoever a route answers, and the host as they see it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Sees what the caller's team owns, and nothing else.
    pub(crate) runtime: Runtime,
    /// Whose key it came with.
    pub(crate) team: TeamId,
    /// Which key that was, if it is on record.
    pub(crate) key: Option<KeyId>,
    /// What that lets it do.
    pub(crate) scope: KeyScope,
}

impl Caller {
    pub(crate) fn of(app: &App, keys::Caller { team, key, scope }: keys::Caller) -> Self {
        Self { runtime: app.host().within(team.clone()), team, key, scope }
    }

    /// As the runtime knows who came with a key.
    pub(crate) fn as_told(&self) -> keys::Caller {
        keys::Caller { team: self.team.clone(), key: self.key.clone(), scope: self.scope }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, ApiError> {
        // A route that wants to know who asks has a row that asks for a key.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| ApiError::unauthorized(NO_KEY))
    }
}

/// What whoever has no key is told.
const NO_KEY: &str = "header `X-API-Key` is missing";

/// Lets a request through to its route when it brings what that asks for.
pub(crate) async fn admit(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    note_route(app.config.traces.as_ref(), &request);
    let (caller, refused) = match admitted(&app, &request) {
        Ok(caller) => (caller, None),
        // Whose key goes not so far is somebody.
        Err(error) => (check(&app, request.headers()).ok(), Some(error)),
    };
    // Who is nobody writes nothing down.
    let is_known = caller.is_some() || is_admin(&app, request.headers());
    let noted = refused.is_none() || caller.is_some();
    let entry = app.audit.as_ref().filter(|_| noted).and_then(|audit| audit.begin(&request, caller.as_ref(), is_known));
    let response = match refused {
        Some(error) => error.into_response(),
        None => {
            if let Some(caller) = caller {
                tracing::Span::current().record("team", caller.team.as_str());
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
    };
    // Nor does one who brings a secret that is none.
    if let Some(entry) = entry {
        entry.end(&response);
    }
    response
}

fn admitted(app: &App, request: &Request) -> Result<Option<Caller>, ApiError> {
    let headers = request.headers();
    match access::needs(request).ok_or_else(ApiError::method_not_allowed)? {
        Needs::Nothing | Needs::Own => Ok(None),
        Needs::Key(least) => check_for(app, headers, least).map(Some),
        Needs::Watcher => check_watcher(app, headers),
        Needs::Operator => check_for_host(app, headers).map(|()| None),
        Needs::Host if is_admin(app, headers) => Ok(None),
        Needs::Host => {
            let caller = check(app, headers)?;
            let whole = caller.scope == KeyScope::Full && caller.team.is_first();
            if whole { Ok(Some(caller)) } else { Err(ApiError::for_the_host()) }
        }
        // Pages have their own way in, and no other route asks for a session.
        Needs::Session(_) => Err(ApiError::method_not_allowed()),
        Needs::Admin if is_admin(app, headers) => Ok(None),
        Needs::Admin => Err(ApiError::unauthorized("header `X-Admin-Token` is missing or not valid")),
    }
}

/// Who a peer says that asks. Whatever else comes in has lost that header before anybody looks, and where there are no peers nobody does.
fn told(app: &App, headers: &HeaderMap) -> Option<Identity> {
    app.config.nodes.as_ref().and_then(|_| Identity::of(headers))
}

/// Who asks, to be told to a peer. `None` for who brings nothing that is good.
pub(crate) fn identity(app: &App, headers: &HeaderMap) -> Option<Identity> {
    let (caller, admin) = (check(app, headers).ok(), is_admin(app, headers));
    (caller.is_some() || admin).then(|| Identity { caller: caller.map(|caller| caller.as_told()), admin })
}

/// Whether these headers hold the admin token.
pub(crate) fn is_admin(app: &App, headers: &HeaderMap) -> bool {
    if let Some(identity) = told(app, headers) {
        return identity.admin;
    }
    headers.get(ADMIN_TOKEN).is_some_and(|token| is_admin_token(app, token.as_bytes()))
}

/// Whether this is the admin token.
pub(crate) fn is_admin_token(app: &App, shown: &[u8]) -> bool {
    shown.len() <= MAX_KEY_BYTES && app.config.admin.is_some_and(|admin| equal(&admin, &Sha256::digest(shown)))
}

/// Whether whoever sends these headers holds a valid key, or the token of any sandbox.
pub(crate) fn is_known(app: &App, headers: &HeaderMap) -> bool {
    let token = || headers.get(ACCESS_TOKEN)?.to_str().ok().filter(|token| token.len() <= MAX_KEY_BYTES);
    check(app, headers).is_ok() || is_admin(app, headers) || token().is_some_and(|token| app.host().with_token(token).is_some())
}

/// Whether a request brings a secret to a route that asks for one of its own: the signature of an upload's link, a volume's token, a key
/// that is borne as a token. Whether it is the right one is for the route to see, which answers nothing before.
pub(crate) fn brings_own(request: &Request) -> bool {
    let mut path = request.uri().path().split('/').skip(1);
    match (path.next(), path.next(), path.next(), path.next(), path.next()) {
        (Some("volumecontent"), Some(_), Some(_), None, None) | (Some("teams" | "metrics"), None, None, None, None) => {
            request.headers().get(header::AUTHORIZATION).is_some_and(|value| value.as_bytes().starts_with(b"Bearer "))
        }
        (Some("templates"), Some(_), Some("files"), Some(_), None) => {
            request.method() == Method::PUT && Query::parse(request.uri().query()).get("signature").is_some()
        }
        _ => false,
    }
}

/// Who comes to watch: with a key, or as nobody's with the admin token.
pub(crate) fn check_watcher(app: &App, headers: &HeaderMap) -> Result<Option<Caller>, ApiError> {
    if is_admin(app, headers) { Ok(None) } else { check_for(app, headers, KeyScope::Read).map(Some) }
}

/// Lets in who may know about the host as a whole: its own team, and who administers it.
pub(crate) fn check_for_host(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    if is_admin(app, headers) || check(app, headers)?.team.is_first() { Ok(()) } else { Err(ApiError::for_the_host()) }
}

/// Who comes with the key in these headers, if that goes so far.
pub(crate) fn check_for(app: &App, headers: &HeaderMap, least: KeyScope) -> Result<Caller, ApiError> {
    let caller = check(app, headers)?;
    if caller.scope < least { Err(ApiError::beyond_key(caller.scope)) } else { Ok(caller) }
}

/// Who comes with the key in these headers.
pub(crate) fn check(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    if let Some(identity) = told(app, headers) {
        return identity.caller.map(|caller| Caller::of(app, caller)).ok_or_else(|| ApiError::unauthorized(NO_KEY));
    }
    let key = headers.get(API_KEY).ok_or_else(|| ApiError::unauthorized(NO_KEY))?;
    let key = key.to_str().ok().filter(|key| key.len() <= MAX_KEY_BYTES);
    let known = key.and_then(|key| app.host().authenticate(key));
    known.map(|caller| Caller::of(app, caller)).ok_or_else(|| ApiError::unauthorized("the API key is not valid"))
}
