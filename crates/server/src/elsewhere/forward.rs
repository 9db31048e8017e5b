//! Passing one request on to the node that has its sandbox, and that node's answer back.
//!
//! Bodies stream; only a short one whose length is known is read first, so that it can be sent again. A node that does not have the
//! sandbox says so before it has done anything (421), so what can be sent again is sent once more, to where the record says the
//! sandbox is by now. A body that breaks off breaks off here too, and takes the client's connection along where that is all there is.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    body::Body,
    extract::{ConnectInfo, Request},
    response::Response,
};
use bytes::Bytes;
use firkin_runtime::sandbox::SandboxId;
use firkin_wire::headers::API_KEY;
use http::{Extensions, HeaderValue, StatusCode, Uri, Version, header, request::Parts, uri::PathAndQuery};
use http_body::{Body as _, Frame, SizeHint};
use hyper::upgrade::OnUpgrade;
use tokio_util::sync::CancellationToken;

use crate::{
    App, FromSandbox,
    doors::Place,
    error::ApiError,
    extract::collect,
    nodes::{
        self, Asked, CLIENT, ENCRYPTED, EPOCH, IDENTITY, Identity, MISDIRECTED, NoRoom, NodeId, Nodes, OfAnother, REFUSED,
        SendError, VISITED, Whereabouts,
    },
    proxy::{self, upgrade},
    sever::Sever,
};

/// Longest body that is kept so that it can be sent again: a command with its arguments, a create with its metadata.
const KEPT_BYTES: usize = 64 << 10;

/// What is passed on, and for whom.
#[derive(Debug)]
pub(crate) struct Passed {
    /// The sandbox. Absent where it is no sandbox that is elsewhere.
    pub(crate) id: Option<SandboxId>,
    /// The node that has it, as far as is known.
    pub(crate) node: NodeId,
    /// Who asks for it. Absent where the sandbox itself decides whom it lets in.
    pub(crate) identity: Option<Identity>,
    /// Whether the client came by HTTPS.
    pub(crate) encrypted: bool,
}

/// A body on its way.
enum Cargo {
    /// Whole, and to be sent again if need be.
    Kept(Bytes),
    /// To be sent once.
    Once(Body),
}

/// Passes a request on.
pub(crate) async fn forward(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    Passed { id, node, identity, encrypted }: Passed,
    mut request: Request,
) -> Result<Response, ApiError> {
    let protocol = proxy::upgrade_protocol(request.headers());
    let client = protocol.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let sever = Sever::of(&request);
    let busy = request.extensions().get::<Place>().filter(|_| client.is_some()).map(Place::busy);
    let (mut parts, body) = request.into_parts();
    let (first, kept) = match load(&parts, body).await? {
        Cargo::Kept(bytes) => (Body::from(bytes.clone()), Some(bytes)),
        Cargo::Once(body) => (body, None),
    };
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    outgoing(&mut parts, (identity.as_ref(), peer, encrypted), protocol)?;
    let say_epoch = |parts: &mut Parts| {
        parts.headers.remove(EPOCH);
        let known = id.as_ref().and_then(|id| nodes.epoch(id));
        parts.headers.extend(known.map(|epoch| (EPOCH, HeaderValue::from(epoch))));
    };
    say_epoch(&mut parts);
    let (mut by, mut response) = (node.clone(), send(app, nodes, &node, Request::from_parts(parts.clone(), first)).await?);
    if let Some(id) = id.as_ref().filter(|_| is_misdirected(&response)) {
        // Asked so, it makes what was known of it forgotten, too.
        let (Whereabouts::There(next), Some(bytes)) = (nodes.locate(id, Asked::Now).await?, kept) else {
            return Err(ApiError::sandbox_moved(id));
        };
        if next != node {
            say_epoch(&mut parts);
            response = send(app, nodes, &next, Request::from_parts(parts, Body::from(bytes))).await?;
            by = next;
        }
        if is_misdirected(&response) {
            return Err(ApiError::sandbox_moved(id));
        }
    }
    if let Some((id, epoch)) = id.as_ref().zip(nodes::epoch_in(response.headers())) {
        nodes.heard(id, &by, epoch);
    }
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(relayed(response, sever));
    }
    let Some(client) = client else { return Err(ApiError::unasked_switch()) };
    let protocol = response.headers().get(header::UPGRADE).cloned();
    let there: OnUpgrade = hyper::upgrade::on(&mut response);
    // It ends with the other node's end of it.
    upgrade::join(&app.pool, (client, busy), there, CancellationToken::new());
    let mut response = relayed(response, None);
    proxy::restore_upgrade(response.headers_mut(), protocol);
    Ok(response)
}

/// Sends one request, and counts it by what came of it.
async fn send(app: &App, nodes: &Arc<dyn Nodes>, node: &NodeId, request: Request) -> Result<Response, SendError> {
    let sent = match nodes.send(node, request).await {
        // Its lease is over by what that node knows. Nothing was done.
        Ok(response) if nodes::is_refused_as_former(response.headers()) => {
            let source = std::io::Error::other("it does not take this node for one any more");
            Err(SendError::Unreached { node: node.to_string(), source: source.into() })
        }
        sent => sent,
    };
    app.host().metrics().count_forwarded(match &sent {
        Ok(response) if is_misdirected(response) => "misdirected",
        Ok(_) => "answered",
        Err(SendError::Unreached { .. }) => "unreached",
        Err(SendError::Broken { .. }) => "broken",
    });
    sent
}

/// Whether a peer says that it has done nothing, for the sandbox is not there.
fn is_misdirected(response: &Response) -> bool {
    response.status() == StatusCode::MISDIRECTED_REQUEST && response.headers().contains_key(MISDIRECTED)
}

/// Passes on what any node may do, whole.
pub(crate) async fn pass(
    app: &App,
    nodes: &Arc<dyn Nodes>,
    node: &NodeId,
    (identity, encrypted): (&Identity, bool),
    request: Request,
) -> Result<Response, PassError> {
    let (mut parts, body) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer);
    outgoing(&mut parts, (Some(identity), peer, encrypted), None).map_err(PassError::Request)?;
    let sent = send(app, nodes, node, Request::from_parts(parts, body)).await.map_err(PassError::Send)?;
    Ok(relayed(sent, None))
}

/// Why what any node may do was not done by one.
pub(crate) enum PassError {
    /// It cannot be sent to anybody.
    Request(ApiError),
    /// That node gave no answer.
    Send(SendError),
}

/// Reads a body that is short; leaves any other to be streamed.
async fn load(parts: &Parts, body: Body) -> Result<Cargo, ApiError> {
    if body.is_end_stream() {
        return Ok(Cargo::Kept(Bytes::new()));
    }
    // A stream whose end is not known may go on for as long as the answer does.
    if body.size_hint().exact().is_none_or(|bytes| bytes > KEPT_BYTES as u64) || parts.headers.contains_key(header::UPGRADE) {
        return Ok(Cargo::Once(body));
    }
    Ok(Cargo::Kept(collect(body, KEPT_BYTES).await?))
}

/// Makes a head ready for another node: a path, HTTP/1.1, and what only peers say.
fn outgoing(
    parts: &mut Parts,
    (identity, peer, encrypted): (Option<&Identity>, Option<SocketAddr>, bool),
    protocol: Option<HeaderValue>,
) -> Result<(), ApiError> {
    if parts.method == http::Method::CONNECT {
        return Err(ApiError::bad_request("method CONNECT is not supported"));
    }
    if let Some(authority) = parts.uri.authority() {
        // The authority of an absolute address counts, whatever `Host` says (RFC 9112, section 3.2.2).
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| ApiError::bad_request("the host is not text"))?;
        parts.headers.insert(header::HOST, host);
    }
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    parts.extensions = Extensions::new();
    let headers = &mut parts.headers;
    // We answer it ourselves by reading the body.
    headers.remove(header::EXPECT);
    proxy::strip(headers);
    proxy::restore_upgrade(headers, protocol);
    if let Some(identity) = identity {
        // What it showed has been looked at, and is nobody else's affair.
        headers.remove(API_KEY);
        headers.remove(crate::ADMIN_TOKEN);
        headers.insert(IDENTITY, identity.to_header());
    }
    if let Some(peer) = peer.and_then(|peer| HeaderValue::try_from(peer.to_string()).ok()) {
        headers.insert(CLIENT, peer);
    }
    if encrypted {
        headers.insert(ENCRYPTED, HeaderValue::from_static("1"));
    }
    Ok(())
}

/// A peer's answer, as the client gets it.
fn relayed(response: Response, sever: Option<Sever>) -> Response {
    let mut response = response.map(|inner| Body::new(Relayed { inner, sever }));
    proxy::strip(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    let visited = response.headers_mut().remove(VISITED).is_some();
    let refused = response.headers_mut().remove(REFUSED).is_some();
    let extensions = response.extensions_mut();
    extensions.insert(OfAnother);
    if refused {
        extensions.insert(NoRoom);
    }
    if visited {
        extensions.insert(FromSandbox);
    }
    response
}

/// The body of another node's answer, frame by frame.
struct Relayed {
    inner: Body,
    /// The client's connection, which must not end in order when this does not.
    sever: Option<Sever>,
}

impl http_body::Body for Relayed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let frame = std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if matches!(frame, Some(Err(_)))
            && let Some(sever) = &this.sever
        {
            sever.sever();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
