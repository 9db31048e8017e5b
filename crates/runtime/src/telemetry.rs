//! What is remembered of what happened, for those who look: events, use over time, counts and durations.

pub mod activity;
pub mod history;
pub mod metrics;
