//! Sandboxes: what they are to those outside.

pub use crate::spec::{
    CreateSandbox, DEFAULT_TIMEOUT, Ingress, InternetAccess, InvalidSandboxId, InvalidTimeout, MAX_TIMEOUT, Memory,
    NoSuchSandbox, OnTimeout, RuntimeSandbox, SandboxId, SandboxState,
};
