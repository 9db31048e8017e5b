//! What is remembered of what happened, for those who look: events, use over time, counts and durations; and what is told as it happens.

pub mod activity;
pub mod changes;
pub mod copies;
pub mod history;
pub mod lifecycle;
pub mod metrics;
pub mod nodes;
pub mod phases;
pub(crate) mod spawns;
pub(crate) mod standing;
mod teams;
mod timing;
pub(crate) mod webhooks;
