//! What those who make images, boot machines and build templates say while they work.

/// What a build reports while it goes on: one line, for a person.
pub type Report<'a> = &'a (dyn Fn(&str) + Send + Sync);
