//! What everything stands on: chance, files of the server alone, names, blocking work. It knows nothing of sandboxes.

pub(crate) mod blocking;
pub(crate) mod private;
pub mod progress;
pub(crate) mod random;
pub mod reference;
mod text;
