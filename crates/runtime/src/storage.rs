//! What users have besides sandboxes: secrets, volumes, and files that they brought for builds.

pub mod secrets;
pub(crate) mod uploads;
pub mod volumes;
