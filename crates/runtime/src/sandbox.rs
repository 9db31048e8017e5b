//! Sandboxes: what they are to those outside, and how one is created.

mod create;
pub mod lineage;
pub(crate) mod mounts;
pub mod owner;
pub(crate) mod refusal;
pub(crate) mod sampler;
pub mod stale_state;
pub mod trust;

pub use crate::store::spec::{
    CreateSandbox, DEFAULT_TIMEOUT, Filled, Ingress, InternetAccess, InvalidSandboxId, InvalidTimeout, MAX_METADATA_BYTES,
    MAX_TIMEOUT, Memory, NoSuchSandbox, OnTimeout, RuntimeSandbox, SandboxId, SandboxState, SocksProxy, SocksProxyTls, Steered,
    TooMuchMetadata, VolumeMount, WorkloadToken,
};

pub(crate) use self::create::{create, fork};
pub use self::{create::CreateError, mounts::MountsError};
