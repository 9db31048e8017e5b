//! The server through its boundary: real sockets in front, the real runtime on the fake engine behind.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod bench;
mod builds;
mod control;
mod data;
mod doors;
mod dropped_files;
mod events;
mod history;
mod hosts;
mod lifecycle;
mod listing;
mod metrics;
mod moving;
mod network;
mod openapi;
mod quotas;
mod requests;
mod storage;
mod teams;
mod terminals;
mod tls;
mod traces;
mod ui;
mod uploads;
mod webhooks;
