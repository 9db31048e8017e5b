//! The way out of one network: what is allowed, who is asked for addresses, what connections go through.
//!
//! All of it changes at once, or a connection would be made under the old rules through the new proxy.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{dial::Dial, policy::Policy, resolve::Resolve};

/// The way out at one time.
#[derive(Debug, Clone)]
pub struct Way {
    /// What may be reached.
    pub policy: Policy,
    /// Finds the addresses of allowed names.
    pub resolver: Arc<dyn Resolve>,
    /// Makes connections to them. Those that another one made are cut when a way takes the place of another.
    pub dialer: Arc<dyn Dial>,
}

/// The way out as it is now, and word of every change.
pub type Ways = watch::Receiver<Arc<Way>>;
