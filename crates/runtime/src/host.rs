//! How much the host has left: disk and memory, measured, and the floors below which no new work is taken.

pub mod disk;
pub mod memory_pressure;
