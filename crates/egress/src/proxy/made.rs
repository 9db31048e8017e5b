//! A connection outward: how it comes about, and whether it would come about again.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::Arc,
};

use tokio::time::timeout;

use super::Proxy;
use crate::{
    decision::{Decision, Grant, Refusal},
    dial::{Connection, Dial, DialError},
    name::HostName,
    policy::Target,
    resolve::{Nowhere, ResolveError, look_up, within},
    sniff::{Protocol, Unnamed},
    terminate::Sides,
    way::Way,
};

/// Addresses of a name that are tried.
const MAX_DIALED: usize = 3;

/// What a client calls its host; `None` where nobody listened.
pub(super) type Called = Option<Result<HostName, Unnamed>>;

/// A connection that is allowed.
pub(super) struct Made {
    pub(super) server: Box<dyn Connection>,
    pub(super) basis: Basis,
}

/// What a connection was made on.
pub(super) struct Basis {
    /// Where it leads.
    pub(super) to: SocketAddrV4,
    ground: Ground,
    protocol: Protocol,
    dialer: Arc<dyn Dial>,
    /// Something is put into its requests.
    was_filled: bool,
}

/// Why it leads there.
enum Ground {
    /// The address was found under this name.
    Found(HostName),
    /// The client meant the address, and calls it so. That says nothing of whose it is.
    Meant(Called),
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NotMade {
    /// It is not allowed.
    Denied { name: Option<HostName>, address: Option<Ipv4Addr>, refusal: Refusal },
    /// It is allowed and nobody answers.
    Unreachable,
}

/// Makes the connection that a client wants, who meant `meant` and calls it by a name. `proxy` tells of each address before that is
/// connected to.
pub(super) async fn make(
    proxy: &Proxy,
    way: &Way,
    called: Called,
    protocol: Protocol,
    meant: SocketAddrV4,
) -> Result<Made, NotMade> {
    let name = || called.as_ref().and_then(|called| called.as_ref().ok()).cloned();
    let denied = |address, refusal| NotMade::Denied { name: name(), address, refusal };
    let (target, grant) = route(way, &called, *meant.ip()).map_err(|refusal| denied(Some(*meant.ip()), refusal))?;
    let (addresses, ground) = match target {
        Target::Address(address) => (vec![address], Ground::Meant(called)),
        Target::Name(name) => {
            let found = look_up(&*way.resolver, &name).await.map_err(Nowhere::from);
            match found.and_then(|found| within(found, way.policy.bounds())) {
                Ok(found) => {
                    (reached(way, &name, found.addresses).map_err(|refusal| denied(None, refusal))?, Ground::Found(name))
                }
                Err(Nowhere::Bounds(net)) => return Err(denied(None, Refusal::Bounds(net))),
                Err(Nowhere::Resolve(ResolveError::NoName | ResolveError::NoAddress)) => {
                    return Err(denied(None, Refusal::Unresolved));
                }
                Err(Nowhere::Resolve(error @ ResolveError::Failed(_))) => {
                    tracing::debug!(%name, ?error, "cannot resolve a name");
                    return Err(NotMade::Unreachable);
                }
            }
        }
    };
    let mut basis = Basis { to: meant, ground, protocol, dialer: Arc::clone(&way.dialer), was_filled: false };
    basis.was_filled = basis.filled(way).is_some();
    for address in addresses.into_iter().take(MAX_DIALED) {
        basis.to = SocketAddrV4::new(address, meant.port());
        proxy.tell(basis.name(), Some(address), meant.port(), Decision::Allowed(grant.clone()));
        match timeout(proxy.limits.dial, way.dialer.dial(basis.to)).await {
            Ok(Ok(server)) => return Ok(Made { server, basis }),
            Ok(Err(error)) => unreachable(&error),
            Err(_) => tracing::debug!(to = %basis.to, "a host takes too long to be connected to"),
        }
    }
    Err(NotMade::Unreachable)
}

fn unreachable(error: &DialError) {
    tracing::debug!(?error, "cannot connect for a client");
}

/// The addresses of a name that is allowed of which none is denied.
fn reached(way: &Way, name: &HostName, mut addresses: Vec<Ipv4Addr>) -> Result<Vec<Ipv4Addr>, Refusal> {
    let reaches = |address: &Ipv4Addr| way.policy.reaches(Some(name), *address);
    let refused = addresses.iter().find_map(|address| reaches(address).err());
    addresses.retain(|address| reaches(address).is_ok());
    match refused {
        Some(refusal) if addresses.is_empty() => Err(refusal),
        Some(_) | None => Ok(addresses),
    }
}

fn route(way: &Way, called: &Called, meant: Ipv4Addr) -> Result<(Target, Grant), Refusal> {
    match called {
        None => way.policy.reaches(None, meant).map(|grant| (Target::Address(meant), grant)),
        Some(called) => {
            let (target, grant) = way.policy.route(called.as_ref().map_err(|unnamed| *unnamed), meant)?;
            // What is put in goes to where the name leads, and not to where the client says.
            let named = called.as_ref().ok().filter(|name| way.transform(name).is_some());
            Ok((named.map_or(target, |name| Target::Name(name.clone())), grant))
        }
    }
}

impl Basis {
    /// The name that it is known by.
    pub(super) fn name(&self) -> Option<&HostName> {
        match &self.ground {
            Ground::Found(name) | Ground::Meant(Some(Ok(name))) => Some(name),
            Ground::Meant(_) => None,
        }
    }

    /// Whether, by `way`, something is put into its requests: to whom, and all that TLS takes.
    pub(super) fn filled<'a>(&'a self, way: &'a Way) -> Option<(&'a HostName, &'a Sides)> {
        let Ground::Found(name) = &self.ground else { return None };
        way.transform(name).filter(|_| self.protocol == Protocol::Tls)?;
        way.termination.as_ref().map(|termination| (name, &*termination.sides))
    }

    /// Whether it would be made by `way` too.
    pub(super) fn holds(&self, way: &Way) -> Result<Grant, Refusal> {
        if !Arc::ptr_eq(&self.dialer, &way.dialer) || self.was_filled != self.filled(way).is_some() {
            return Err(Refusal::Former);
        }
        let address = *self.to.ip();
        match &self.ground {
            Ground::Found(name) => way.policy.reaches(Some(name), address),
            Ground::Meant(called) => match route(way, called, address)? {
                (Target::Address(_), grant) => Ok(grant),
                // A name that is allowed by now, under which nobody has found this address.
                (Target::Name(_), _) => way.policy.reaches(None, address),
            },
        }
    }
}
