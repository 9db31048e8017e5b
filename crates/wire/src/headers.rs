//! Names of the headers that more than one of client, server and guest must know.
//!
//! As text: each side makes of it what its HTTP library wants. Header names are compared without regard to case; these are in
//! lower case, as HTTP/2 has them.

/// The key that opens the control plane.
pub const API_KEY: &str = "x-api-key";

/// Names the sandbox that a request of the data plane is for.
pub const SANDBOX_ID: &str = "e2b-sandbox-id";

/// Names the port inside that sandbox.
pub const SANDBOX_PORT: &str = "e2b-sandbox-port";

/// Carries the sandbox's token to its envd.
pub const ACCESS_TOKEN: &str = "x-access-token";

/// Seconds after which an idle stream of envd shows that it is alive.
pub const KEEPALIVE: &str = "keepalive-ping-interval";

/// On a request that starts a process: its group is killed when the stream of that request ends before it. Agents of earlier versions let it
/// run on.
pub const ENDS_WITH_STREAM: &str = "firkin-ends-with-stream";

/// Where the next page of a list begins; absent after the last.
pub const NEXT_TOKEN: &str = "x-next-token";
