//! Warm sessions as active work sees them: capacity that can be had back.

use std::fmt;

use async_trait::async_trait;

use super::CapacityError;

/// Why no warm session may be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WarmCapacityError {
    /// Warm sessions hold their share of the host already.
    #[error("warm sessions hold their share of the host")]
    Share(#[source] CapacityError),
    /// Active sessions need the rest of the host.
    #[error("the host has no room for a warm session")]
    Host(#[source] CapacityError),
}

/// Takes capacity back from warm sessions. Implemented by whoever keeps them.
#[async_trait]
pub trait WarmEviction: Send + Sync + fmt::Debug {
    /// Ends one warm session, the least valuable one, and returns `true` only after it has ended and its
    /// [`WarmSessionReservation`](super::WarmSessionReservation) was dropped; `false` at once when there is none.
    ///
    /// A session that is still being made counts as one: its making is given up. Calls may overlap; each ends a session of its
    /// own. A call whose future is dropped has either not chosen a session yet, or the session ends all the same.
    async fn evict_one(&self) -> bool;
}

/// For runtimes that keep no warm sessions.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWarmSessions;

#[async_trait]
impl WarmEviction for NoWarmSessions {
    async fn evict_one(&self) -> bool {
        false
    }
}
