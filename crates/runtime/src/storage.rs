//! What users have besides sandboxes: secrets, volumes, files that they brought for builds, and what their sandboxes
//! are known by.

pub mod secrets;
pub(crate) mod uploads;
pub mod volumes;
pub mod workload;
