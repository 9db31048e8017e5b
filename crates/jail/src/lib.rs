//! The jail of a program that runs what strangers wrote: what is left to it when all of it is theirs.

mod filter;

pub use filter::{Allowed, Condition};
