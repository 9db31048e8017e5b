//! Several servers as one address, through their boundary: real sockets in front and between them, the real runtime on the fake engine
//! behind, and a map in the place of the catalogue, but where it is the catalogue that decides (`joint.rs`).

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says what was not tried")]

#[path = "../../../server/tests/http/agent.rs"]
mod agent;
mod bench;
mod burst;
mod control;
mod copies;
mod crash;
mod data;
#[path = "../../../postgres/tests/real/database.rs"]
#[expect(dead_code, reason = "what is done there to a database behind its server's back is not done here")]
mod database;
mod epochs;
mod failures;
#[expect(dead_code, reason = "nodes of other engines are the drain's, which the program does")]
mod joint;
mod lists;
mod lives;
mod pages;
mod placement;
mod room;
mod secrets;
mod signed;
#[path = "../../../runtime/tests/crash/steps.rs"]
mod steps;
mod store;
mod teams;
