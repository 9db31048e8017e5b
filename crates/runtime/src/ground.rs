//! What everything stands on: chance, files of the server alone, ids, names, blocking work. It knows nothing of sandboxes.

pub(crate) mod blocking;
pub mod ids;
pub(crate) mod private;
pub mod progress;
pub(crate) mod random;
pub mod reference;
pub mod team;
mod text;
