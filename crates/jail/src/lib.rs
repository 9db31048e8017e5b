//! The jail of a program that runs what strangers wrote: what is left to it when all of it is theirs.

mod filter;
mod paths;
mod program;
mod root;

pub use filter::{Allowed, Condition};
pub use program::Program;
