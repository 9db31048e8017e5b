//! How the addresses of a name are found: a seam, and what is left of an answer inside a policy's bounds.

use std::{error::Error, fmt::Debug, net::Ipv4Addr, time::Duration};

use async_trait::async_trait;
use ipnet::Ipv4Net;

use crate::{name::HostName, policy::Bounds};

/// How long an answer is waited for, whatever a resolver does itself. C libraries ask again after 5 s.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses of one name that are used. With a name of full length as many still fit the 512 bytes that every client takes.
pub(crate) const MAX_ADDRESSES: usize = 12;

/// Finds addresses of names.
///
/// Any number of calls may be under way. A call that is dropped ends. What it is asked for is allowed: it need not look.
#[async_trait]
pub trait Resolve: Debug + Send + Sync {
    /// The addresses of `name` itself: no search list, no file of hosts.
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError>;
}

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// In the order in which they are tried.
    pub addresses: Vec<Ipv4Addr>,
    /// How long that may be believed.
    pub lifetime: Duration,
}

/// Why a name leads nowhere.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is no such name.
    #[error("there is no such name")]
    NoName,
    /// The name has no IPv4 address.
    #[error("the name has no address")]
    NoAddress,
    /// Nobody answered, or nobody could say.
    #[error("the name cannot be resolved")]
    Failed(#[source] Option<Box<dyn Error + Send + Sync>>),
}

/// Why a name leads nowhere that may be reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Nowhere {
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// It leads to addresses that no rule opens, and to no other: whoever owns it would have us connect to what is ours.
    #[error("the name leads to addresses that no rule opens")]
    Bounds(Ipv4Net),
}

/// The addresses of a name, in time.
pub(crate) async fn look_up(resolver: &dyn Resolve, name: &HostName) -> Result<Found, ResolveError> {
    let found = tokio::time::timeout(LOOKUP_TIMEOUT, resolver.resolve(name)).await;
    let found = found.map_err(|elapsed| ResolveError::Failed(Some(elapsed.into())))??;
    if found.addresses.is_empty() { Err(ResolveError::NoAddress) } else { Ok(found) }
}

/// Of what was found, what no rule keeps closed.
pub(crate) fn within(mut found: Found, bounds: &Bounds) -> Result<Found, Nowhere> {
    let mut closing = None;
    found.addresses.retain(|address| {
        let closed = bounds.closing(*address);
        closing = closing.or(closed);
        closed.is_none()
    });
    found.addresses.truncate(MAX_ADDRESSES);
    match closing {
        Some(net) if found.addresses.is_empty() => Err(Nowhere::Bounds(net)),
        _ => Ok(found),
    }
}
