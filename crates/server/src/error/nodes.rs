//! Errors of a server that is one of several: a sandbox that moves, a node that is away, a peer that is none any more.

use axum::response::{IntoResponse as _, Response};
use firkin_causes::chain;
use firkin_runtime::{artifact::IntegrityError, capacity::CapacityError, sandbox::SandboxId, second_copies::KeepCopyError};
use http::StatusCode;

use super::{ApiError, CATALOG_RETRY_SECONDS, Retry};
use crate::nodes::{LocateError, Misdirected, NotCopied, Peer, SendError};

/// Seconds in which a sandbox has come to where it goes.
const MOVE_RETRY_SECONDS: u32 = 1;

/// Seconds after which a node that was restarted is back.
const NODE_RETRY_SECONDS: u32 = 5;

/// Seconds in which another node may have become one that takes a copy.
const COPY_RETRY_SECONDS: u32 = 5;

/// Whether what is refused with this code is refused because of the node that it was asked of.
pub(super) fn is_of_this_node(error_code: &str) -> bool {
    matches!(error_code, "sandbox_capacity_unavailable" | "sandbox_placement_timeout" | "sandbox_no_compatible_node")
}

impl ApiError {
    /// The sandbox left its node while it was asked for, and what was sent cannot be sent again. Nothing was done.
    pub(crate) fn sandbox_moved(id: &SandboxId) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("sandbox `{id}` is going to another node, please try again"))
            .code("sandbox_moved")
            .retry(Retry::After(MOVE_RETRY_SECONDS))
    }

    /// Whether it says that a sandbox went to another node meanwhile.
    pub(crate) fn is_of_moved(&self) -> bool {
        self.error_code == Some("sandbox_moved")
    }

    /// A peer came to the wrong node, of which it is told the right one.
    pub(crate) fn misdirected(id: &SandboxId, owner: Misdirected) -> Response {
        let mut response = Self::new(StatusCode::MISDIRECTED_REQUEST, format!("sandbox `{id}` is on another node"))
            .code("sandbox_moved")
            .into_response();
        response.extensions_mut().insert(owner);
        response
    }

    /// A connection of a peer that has outlived its term.
    pub(crate) fn former_peer(peer: &Peer) -> Self {
        Self::forbidden(format!("term {} of node `{}` is over", peer.term, peer.node))
    }

    /// By their operator's word this node takes nothing new, and nobody else has room.
    pub(crate) fn no_node_takes_new() -> Self {
        let message = "this node takes nothing new (`firkin node uncordon`), and no other node has room";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            .code("sandbox_capacity_unavailable")
            .retry(Retry::After(NODE_RETRY_SECONDS))
    }

    /// What is asked for would wait here, and others are asked before it does.
    pub(crate) fn full(short: &CapacityError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, format!("the host is full: {short}"))
            .code("sandbox_capacity_unavailable")
            .retry(Retry::After(NODE_RETRY_SECONDS))
    }

    /// Nobody's token signed a URL, as far as is known, and not all nodes have said so.
    pub(crate) fn signer_unknown(missing: &[String]) -> Self {
        let message =
            format!("no sandbox signed this URL but maybe one of node `{}`, which does not answer", missing.join("`, `"));
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message).code("node_away").retry(Retry::After(NODE_RETRY_SECONDS))
    }

    /// Other nodes are asked for as many signers of URLs as they may be.
    pub(crate) fn many_searches() -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too many signatures are looked for on other nodes")
            .retry(Retry::After(MOVE_RETRY_SECONDS))
    }

    /// Another node switched protocols and was not asked to.
    pub(crate) fn unasked_switch() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "another node switched protocols unasked")
    }
}

impl From<NotCopied> for ApiError {
    fn from(error: NotCopied) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error)).code("sandbox_paused_on_one_node").retry(if error.may_come {
            Retry::After(COPY_RETRY_SECONDS)
        } else {
            Retry::Never
        })
    }
}

impl From<KeepCopyError> for ApiError {
    fn from(error: KeepCopyError) -> Self {
        match &error {
            KeepCopyError::Alone | KeepCopyError::Unneeded(_) => Self::conflict(chain(&error)),
            KeepCopyError::Absent { source: IntegrityError::Elsewhere(why), .. } => Self::elsewhere(&error, why),
            KeepCopyError::Disk(pressure) => Self::disk(&error, pressure),
            KeepCopyError::Absent { .. } | KeepCopyError::Damaged(_) | KeepCopyError::Store(_) => Self::internal(&error),
        }
    }
}

impl From<LocateError> for ApiError {
    fn from(error: LocateError) -> Self {
        Self::catalog_away(&error).retry(Retry::After(CATALOG_RETRY_SECONDS))
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        let refused = Self::new(StatusCode::SERVICE_UNAVAILABLE, chain(&error)).code("node_away");
        match error {
            SendError::Unreached { .. } => refused.retry(Retry::After(NODE_RETRY_SECONDS)),
            // To do it again may be to do it twice.
            SendError::Broken { .. } => refused.retry(Retry::Never),
        }
    }
}
