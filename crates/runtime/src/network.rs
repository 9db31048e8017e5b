//! Placeholder until the network lands.
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct SlotError;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct PoolError;
