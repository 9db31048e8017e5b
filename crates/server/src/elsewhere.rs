//! Which requests are for another node, and who is believed that they come from one.
//!
//! A request for a sandbox that is here stays here, whatever a record says: it is the owner of the machine who knows. One that came from
//! a peer is never passed on again, so none can go round in a ring.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{ConnectInfo, Request},
    response::{IntoResponse as _, Response},
};
use firkin_runtime::{
    relocating::TakeOverError,
    sandbox::{SandboxId, SandboxState},
};

use http::{HeaderValue, StatusCode};

use crate::{
    App, auth,
    error::ApiError,
    nodes::{self, Asked, AtOnce, FromPeer, Identity, Misdirected, NodeId, Nodes, Whereabouts},
    requests::sandbox_of,
    serve::Encrypted,
    target::{InvalidTarget, SANDBOX_ID, SANDBOX_PORT, Target, Way, sandbox_id},
};

pub(crate) mod departing;
pub(crate) mod forward;
pub(crate) mod gather;
pub(crate) mod hear_out;
pub(crate) mod overflow;
mod placing;
pub(crate) mod signer;

use forward::Passed;
use placing::{Create, is_create};

/// Who answers a request.
pub(crate) enum Home {
    /// This node.
    Here,
    /// Another one.
    There(Arc<dyn Nodes>, Passed),
    /// Any, for it makes a sandbox.
    Anywhere(Create),
    /// Nobody.
    Refused(Response),
}

/// The life of a sandbox that a peer which asks for it has heard of.
#[derive(Debug, Clone, Copy)]
struct Known(u64);

/// Takes in a request: one of a peer for what the peer says that it is, any other without what only peers may say. Whether it is a peer's.
pub(crate) fn enter(app: &App, request: &mut Request) -> Result<bool, ApiError> {
    let Some(nodes) = &app.config.nodes else { return Ok(false) };
    let Some(FromPeer(peer)) = request.extensions().get() else {
        nodes::disbelieve(request.headers_mut());
        return Ok(false);
    };
    if !nodes.is_alive(peer) {
        return Err(ApiError::former_peer(peer));
    }
    let headers = request.headers_mut();
    let client = headers.remove(nodes::CLIENT).and_then(|client| client.to_str().ok()?.parse::<SocketAddr>().ok());
    let encrypted = headers.remove(nodes::ENCRYPTED).is_some();
    let at_once = headers.remove(nodes::AT_ONCE).and_then(|value| AtOnce::of(&value));
    let known = nodes::epoch_in(headers);
    headers.remove(nodes::EPOCH);
    if let Some(client) = client {
        request.extensions_mut().insert(ConnectInfo(client));
    }
    request.extensions_mut().insert(Encrypted(encrypted));
    if let Some(at_once) = at_once {
        request.extensions_mut().insert(at_once);
    }
    if let Some(known) = known {
        request.extensions_mut().insert(Known(known));
    }
    Ok(true)
}

/// What has to be found out before it is known who answers.
pub(crate) enum Sought {
    /// Where a sandbox is that is not here.
    Sandbox {
        /// Its id.
        id: SandboxId,
        /// Who asks. Absent where the sandbox itself decides whom it lets in.
        identity: Option<Identity>,
        /// Whether the client came by HTTPS.
        encrypted: bool,
        /// Whether a peer asks.
        from_peer: bool,
        /// Whether it is here, and another may have it: in an older life than the peer has heard of, or paused on a node whose lease is over. Nobody is
        /// answered by this one then that the record does not name.
        is_unsure: bool,
        /// The second of these: what is not on record was ended by another, and not by this node.
        may_be_lost: bool,
        /// Whether it is to run.
        resumes: bool,
    },
    /// Where a template is built.
    Build {
        /// The template.
        template: String,
        /// Who asks. Absent for who brings a link that was signed.
        identity: Option<Identity>,
        /// Whether the client came by HTTPS.
        encrypted: bool,
    },
    /// Where a sandbox may be made.
    Place(Create),
    /// Whether there is room now for one that a peer would have made elsewhere otherwise.
    Room(AtOnce),
    /// Whether another node has room for a paused sandbox that is to run, and for which there is none here.
    Resume {
        /// Its id.
        id: SandboxId,
        /// Who asks.
        identity: Option<Identity>,
        /// Whether the client came by HTTPS.
        encrypted: bool,
        /// Whether a peer asks.
        from_peer: bool,
    },
}

/// What has to be found out for a request, if that is anything. What is refused to whoever asks is refused here, before anybody is told what
/// there is.
pub(crate) fn sought(
    app: &App,
    way: Option<&Result<(Target, Way), InvalidTarget>>,
    from_peer: bool,
    request: &Request,
) -> Option<Sought> {
    let nodes = app.config.nodes.as_ref()?;
    let encrypted = request.extensions().get() == Some(&Encrypted(true));
    if way.is_none() && !from_peer && is_create(request) {
        let identity = auth::identity(app, request.headers()).filter(Create::may)?;
        return Some(Sought::Place(Create { nodes: Arc::clone(nodes), identity, encrypted }));
    }
    if way.is_none()
        && !from_peer
        && let Some(template) = built(request.uri().path())
    {
        let identity = auth::identity(app, request.headers());
        // Whoever uploads may bring no key, but a link, which its home looks at.
        let may = identity.is_some() || auth::brings_own(request);
        return may.then(|| Sought::Build { template: template.to_owned(), identity, encrypted });
    }
    if way.is_none()
        && let Some(at_once) = request.extensions().get::<AtOnce>().filter(|_| is_create(request))
    {
        return Some(Sought::Room(*at_once));
    }
    let (id, into_sandbox) = match way {
        Some(target) => (target.as_ref().ok()?.0.id.clone(), true),
        None => (of_control(request.uri().path())?, false),
    };
    let own = app.host().epoch(&id);
    let is_older = own.zip(request.extensions().get()).is_some_and(|(own, Known(known))| own < *known);
    let is_paused = || app.host().sandbox(&id).is_ok_and(|sandbox| sandbox.state == SandboxState::Paused);
    let may_be_lost = own.is_some() && !nodes.holds_lease() && is_paused();
    if !id.is_generated() {
        return None;
    }
    if own.is_some() && !is_older && !may_be_lost {
        overflow::resumed(request).filter(|_| !into_sandbox)?;
        let identity = auth::identity(app, request.headers());
        let wanted = overflow::is_wanted(app, identity.as_ref(), &id);
        return wanted.then_some(Sought::Resume { id, identity, encrypted, from_peer });
    }
    let identity = if into_sandbox || from_peer { None } else { Some(auth::identity(app, request.headers())?) };
    let resumes = !into_sandbox && overflow::resumed(request).is_some();
    Some(Sought::Sandbox { id, identity, encrypted, from_peer, is_unsure: is_older || may_be_lost, may_be_lost, resumes })
}

/// Who answers.
pub(crate) async fn home(app: &App, sought: Option<Sought>) -> Home {
    let Some(nodes) = &app.config.nodes else { return Home::Here };
    let (id, identity, encrypted, from_peer, (is_unsure, may_be_lost, resumes)) = match sought {
        None => return Home::Here,
        Some(Sought::Place(create)) => return Home::Anywhere(create),
        Some(Sought::Build { template, identity, encrypted }) => {
            return match nodes.builder(&template).await {
                Ok(Whereabouts::There(node)) => Home::There(Arc::clone(nodes), Passed { id: None, node, identity, encrypted }),
                Ok(Whereabouts::Here | Whereabouts::Nowhere) => Home::Here,
                Err(error) => Home::Refused(ApiError::from(error).into_response()),
            };
        }
        Some(Sought::Room(AtOnce(budget))) => {
            return app
                .host()
                .has_room(&budget)
                .map_or_else(|short| Home::Refused(ApiError::full(&short).into_response()), |()| Home::Here);
        }
        Some(Sought::Resume { id, identity, encrypted, from_peer }) => {
            return sent_away(app, nodes, id, (identity, encrypted, from_peer)).await;
        }
        Some(Sought::Sandbox { id, identity, encrypted, from_peer, is_unsure, may_be_lost, resumes }) => {
            (id, identity, encrypted, from_peer, (is_unsure, may_be_lost, resumes))
        }
    };
    let asked = if from_peer || is_unsure { Asked::Now } else { Asked::Lately };
    match nodes.locate(&id, asked).await {
        Ok(Whereabouts::There(node)) if from_peer => Home::Refused(ApiError::misdirected(&id, Misdirected(node))),
        // What is here as it was before is not what would be taken over.
        Ok(Whereabouts::There(node)) if !is_unsure && is_away(&**nodes, &node) => {
            take_over(app, nodes, id, (identity, encrypted, resumes)).await
        }
        Ok(Whereabouts::There(node)) => Home::There(Arc::clone(nodes), Passed { id: Some(id), node, identity, encrypted }),
        Ok(Whereabouts::Nowhere) if may_be_lost => Home::Refused(ApiError::sandbox_moved(&id).into_response()),
        // The record names this node: a later life of it can only be one that this node has claimed, and does not know yet whether it did.
        // Where there is none, it is for the route to say so.
        Ok(Whereabouts::Here | Whereabouts::Nowhere) => Home::Here,
        Err(error) => Home::Refused(ApiError::from(error).into_response()),
    }
}

/// Whether a node does not hold its lease, as far as is known; one that an operator has called off is none any more.
fn is_away(nodes: &dyn Nodes, node: &NodeId) -> bool {
    !nodes.others().iter().any(|other| other.id == *node && other.alive)
}

/// Passes a request without a target on to a port of a sandbox that another node has, by the sandbox's name.
pub(crate) async fn lead_to(
    app: &App,
    (nodes, node, Target { id, port }): (&Arc<dyn Nodes>, NodeId, Target),
    mut request: Request,
) -> Response {
    let encrypted = request.extensions().get() == Some(&Encrypted(true));
    let name = HeaderValue::from_str(id.as_str()).expect("an id is of letters and digits");
    request.headers_mut().insert(SANDBOX_ID.clone(), name);
    request.headers_mut().insert(SANDBOX_PORT.clone(), HeaderValue::from(port));
    let passed = Passed { id: Some(id), node, identity: None, encrypted };
    forward::forward(app, nodes, passed, request).await.unwrap_or_else(|error| error.into_response())
}

/// Who answers for a paused sandbox that is to run, and for which there is no room here: where it was sent, by this request or by another one.
async fn sent_away(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    id: SandboxId,
    (identity, encrypted, from_peer): (Option<Identity>, bool, bool),
) -> Home {
    let node = match overflow::send_away(app, nodes, &id).await {
        Some(node) => node,
        None if app.host().has(&id) => return Home::Here,
        None => match nodes.locate(&id, Asked::Now).await {
            Ok(Whereabouts::There(node)) => node,
            Ok(Whereabouts::Here | Whereabouts::Nowhere) => return Home::Here,
            Err(error) => return Home::Refused(ApiError::from(error).into_response()),
        },
    };
    if from_peer {
        return Home::Refused(ApiError::misdirected(&id, Misdirected(node)));
    }
    Home::There(Arc::clone(nodes), Passed { id: Some(id), node, identity, encrypted })
}

/// A sandbox whose node is away is this one's from now on, if it is paused and its node has been away for long enough. What cannot be had is
/// refused with the reason.
async fn take_over(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    id: SandboxId,
    (identity, encrypted, resumes): (Option<Identity>, bool, bool),
) -> Home {
    match app.host().take_over(&id, None).await {
        // It was wanted here only because here it was asked for.
        Ok(()) if resumes && overflow::is_wanted(app, identity.as_ref(), &id) => {
            return sent_away(app, nodes, id, (identity, encrypted, false)).await;
        }
        Ok(()) => return Home::Here,
        Err(TakeOverError::Held { .. } | TakeOverError::Running(_) | TakeOverError::NotFound(_)) => {}
        Err(error) => return Home::Refused(ApiError::from(error).into_response()),
    }
    // Another may have taken it; of one that is away it is said that it is.
    match nodes.locate(&id, Asked::Now).await {
        Ok(Whereabouts::There(node)) => Home::There(Arc::clone(nodes), Passed { id: Some(id), node, identity, encrypted }),
        Ok(Whereabouts::Here | Whereabouts::Nowhere) => Home::Here,
        Err(error) => Home::Refused(ApiError::from(error).into_response()),
    }
}

/// The sandbox of this node that a request is about, if it is one of several.
pub(crate) fn at_home(app: &App, way: Option<&Result<(Target, Way), InvalidTarget>>, path: &str) -> Option<SandboxId> {
    app.config.nodes.as_ref()?;
    let id = match way {
        Some(target) => target.as_ref().ok()?.0.id.clone(),
        None => of_control(path)?,
    };
    app.host().has(&id).then_some(id)
}

/// Says of an answer which life of its sandbox gave it: the one that it is in when it answers, or was in before it ended or left.
pub(crate) fn date(app: &App, id: Option<&SandboxId>, before: Option<u64>, mut response: Response) -> Response {
    if let Some(epoch) = id.and_then(|id| app.host().epoch(id)).or(before) {
        response.extensions_mut().insert(nodes::OfEpoch(epoch));
    }
    response
}

/// What is answered for a sandbox that was here when it was asked for: where it has gone to another node since, that it can be asked for
/// again. Nothing was done by who finds none.
pub(crate) async fn unless_left(app: &App, id: Option<SandboxId>, response: Response) -> Response {
    let (Some(nodes), Some(id)) = (&app.config.nodes, id) else { return response };
    let says_none = matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::BAD_GATEWAY);
    if !says_none || app.host().has(&id) {
        return response;
    }
    match nodes.locate(&id, Asked::Now).await {
        Ok(Whereabouts::There(_)) => ApiError::sandbox_moved(&id).into_response(),
        _ => response,
    }
}

/// The sandbox at whose home a request of the control plane is answered. Pages are of whoever signed in here, and stay here; what happened to a sandbox
/// is wherever it was, and all are asked.
fn of_control(path: &str) -> Option<SandboxId> {
    if path.starts_with("/ui/") || path.starts_with("/events/") {
        return None;
    }
    sandbox_of(path).and_then(|text| sandbox_id(text).ok())
}

/// The template whose build, or files for one, a request of the control plane is about.
fn built(path: &str) -> Option<&str> {
    let mut parts = path.strip_prefix("/v2").unwrap_or(path).strip_prefix("/templates/")?.split('/');
    let (template, what) = (parts.next()?, parts.next()?);
    // As long as an id may be, and as they are written.
    let is_id =
        (1..=64).contains(&template.len()) && template.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    (is_id && matches!(what, "builds" | "files") && parts.next().is_some()).then_some(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_it_is_about() {
        for (path, template) in [
            ("/templates/t1/builds/b1/status", Some("t1")),
            ("/v2/templates/t1/builds/b1", Some("t1")),
            ("/templates/t-1_x/files/abc", Some("t-1_x")),
            ("/templates/t1/builds", None),
            ("/templates/t1", None),
            ("/templates/t1/tags/x", None),
            ("/templates//builds/b", None),
            ("/templates/t%20/builds/b", None),
            ("/v3/templates/t1/builds/b", None),
            ("/ui/templates/t1/builds/b", None),
        ] {
            assert_eq!(built(path), template, "{path}");
        }
        let id = SandboxId::generate();
        let found = |path: String| of_control(&path).filter(SandboxId::is_generated);
        for path in [format!("/sandboxes/{id}"), format!("/v2/sandboxes/{id}/logs")] {
            assert_eq!(found(path), Some(id.clone()));
        }
        let everywhere = ["/sandboxes/metrics".to_owned(), "/sandboxes".to_owned(), format!("/events/sandboxes/{id}")];
        for path in everywhere.into_iter().chain([format!("/ui/sandboxes/{id}")]) {
            assert_eq!(found(path), None);
        }
    }
}
