//! Everything that decides: which snapshot is restored, whether there is room, who runs, until when, and what is kept.

pub mod artifact;
pub mod capacity;
pub mod error;
pub mod network;
mod random;
pub mod runtime;
pub mod sandbox;
pub mod template;
