//! Lists of what all nodes of a cluster have. Each node is asked what is its own; one that was asked by another asks no further.

use std::sync::Arc;

use axum::extract::{FromRequestParts, OriginalUri};
use http::{request::Parts, uri::PathAndQuery};
use serde::de::DeserializeOwned;

use crate::{
    App,
    auth::Caller,
    elsewhere::gather::{Gathered, gather},
    error::ApiError,
    nodes::{FromPeer, Identity, Nodes},
};

/// Where else a list has to be asked for.
pub(crate) enum Elsewhere {
    /// Nowhere: this server is alone.
    Alone,
    /// Nowhere: it is another node that asks, for this one's part.
    Peer,
    /// With all other nodes.
    Others(Asking),
}

/// Who is asked by what.
pub(crate) struct Asking {
    nodes: Arc<dyn Nodes>,
    identity: Identity,
    /// The same path and query.
    address: PathAndQuery,
}

impl FromRequestParts<Arc<App>> for Elsewhere {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Some(nodes) = app.config.nodes.clone() else { return Ok(Self::Alone) };
        if parts.extensions.get::<FromPeer>().is_some() {
            return Ok(Self::Peer);
        }
        let Some(caller) = parts.extensions.get::<Caller>().map(Caller::as_told) else { return Ok(Self::Alone) };
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
        let address = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self::Others(Asking { nodes, identity: Identity { caller: Some(caller), admin: false }, address }))
    }
}

impl Elsewhere {
    /// Whether another node asks for this one's part.
    pub(crate) fn is_peer(&self) -> bool {
        matches!(self, Self::Peer)
    }

    /// What the other nodes answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self) -> Gathered<T> {
        match self {
            Self::Others(Asking { address, .. }) => self.ask_for(address.as_str()).await,
            Self::Alone | Self::Peer => Gathered::none(),
        }
    }

    /// What the other nodes answer to another question: a path with its query.
    pub(crate) async fn ask_for<T: DeserializeOwned>(&self, question: &str) -> Gathered<T> {
        match self {
            Self::Others(Asking { nodes, identity, .. }) => gather(nodes, identity, question).await,
            Self::Alone | Self::Peer => Gathered::none(),
        }
    }
}
