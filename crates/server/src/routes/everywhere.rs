//! Lists of what all nodes of a cluster have. Each node is asked what is its own; one that was asked by another asks no further.

use std::sync::Arc;

use axum::extract::{FromRequestParts, OriginalUri};
use http::request::Parts;
use serde::de::DeserializeOwned;

use crate::{
    App,
    auth::Caller,
    elsewhere::gather::{Gathered, gather},
    error::ApiError,
    nodes::{FromPeer, Identity, Nodes},
};

/// Where else a list has to be asked for. Of a server that is alone, and for a peer, nowhere.
pub(crate) struct Elsewhere(Option<Asking>);

struct Asking {
    nodes: Arc<dyn Nodes>,
    identity: Identity,
    /// The same path and query.
    path: String,
}

impl FromRequestParts<Arc<App>> for Elsewhere {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let Some(nodes) = app.config.nodes.clone().filter(|_| parts.extensions.get::<FromPeer>().is_none()) else {
            return Ok(Self(None));
        };
        let caller = parts.extensions.get::<Caller>().map(Caller::as_told);
        let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |OriginalUri(uri)| uri);
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self(caller.map(|caller| Asking { nodes, identity: Identity { caller: Some(caller), admin: false }, path })))
    }
}

impl Elsewhere {
    /// What the other nodes answer.
    pub(crate) async fn ask<T: DeserializeOwned>(&self) -> Gathered<T> {
        match &self.0 {
            Some(Asking { nodes, identity, path }) => gather(nodes, identity, path).await,
            None => Gathered::none(),
        }
    }
}
