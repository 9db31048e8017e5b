//! Several servers as one address, through their boundary: real sockets in front and between them, the real runtime on the fake engine
//! behind, and a map in the place of the catalogue.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../server/tests/http/agent.rs"]
mod agent;
mod bench;
mod control;
mod data;
mod failures;
mod lists;
mod placement;
