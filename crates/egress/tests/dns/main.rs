//! The resolver, asked over sockets; another one stands behind it and remembers what it was asked.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod answers;
mod messages;
mod scene;
mod upstream;
