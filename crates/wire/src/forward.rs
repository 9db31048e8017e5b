//! How the host reaches programs of a guest that listen on its loopback only: through the agent.
//!
//! ```text
//!   host:  GET /forward?port=8080, Connection: Upgrade, Upgrade: firkin-forward
//!   agent: 101 Switching Protocols, and from there on the bytes of a connection to the loopback's port 8080
//! ```
//!
//! It is a route of envd, so that no port of the guest is taken for it, and only for the host: the proxy does not pass it on. Agents
//! that do not know it answer 404, which means what it means there: nothing can be reached.

/// The route.
pub const PATH: &str = "/forward";

/// The protocol that both sides switch to.
pub const PROTOCOL: &str = "firkin-forward";
