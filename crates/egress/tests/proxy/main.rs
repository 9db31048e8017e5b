//! The proxy, as its clients see it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod bounds;
mod changes;
mod filled;
mod reach;
mod refusals;
mod scene;
mod whole;
