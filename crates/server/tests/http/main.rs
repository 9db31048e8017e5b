//! The server through its boundary: real sockets in front, the real runtime on the fake engine behind.

mod agent;
mod bench;
mod control;
mod data;
mod lifecycle;
mod listing;
