//! The way out of one network: what is allowed, who is asked for addresses, what connections go through.
//!
//! All of it changes at once, or a connection would be made under the old rules through the new proxy.

use std::{net::Ipv4Addr, sync::Arc};

use tokio::sync::watch;

use crate::{
    dial::Dial,
    name::HostName,
    policy::Policy,
    resolve::Resolve,
    terminate::{Termination, Transform},
};

/// The way out at one time.
#[derive(Debug, Clone)]
pub struct Way {
    /// What may be reached.
    pub policy: Policy,
    /// Finds the addresses of allowed names.
    pub resolver: Arc<dyn Resolve>,
    /// Makes connections to them. Those that another one made are cut when a way takes the place of another.
    pub dialer: Arc<dyn Dial>,
    /// What is put into requests, if anything is.
    pub termination: Option<Termination>,
}

impl Way {
    /// Whether a client is heard that connects to `address`.
    pub(crate) fn listening(&self, address: Ipv4Addr) -> Listening {
        match (self.policy.unheard(address).is_some(), &self.termination) {
            (false, _) => Listening::Long,
            (true, Some(_)) => Listening::Briefly,
            (true, None) => Listening::Not,
        }
    }

    /// What is put into requests to `name`.
    pub(crate) fn transform(&self, name: &HostName) -> Option<&Transform> {
        self.termination.as_ref()?.transforms.of(name)
    }
}

/// Whether it matters what a client calls its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listening {
    /// It is decided without.
    Not,
    /// It is decided without, but something may be put into its requests.
    Briefly,
    /// Its name decides.
    Long,
}

/// The way out as it is now, and word of every change.
pub type Ways = watch::Receiver<Arc<Way>>;
