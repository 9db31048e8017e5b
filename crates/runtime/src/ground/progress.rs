//! Progress of those who make images, boot machines and build templates.

/// Takes one line of progress, for a person.
pub type Report<'a> = &'a (dyn Fn(&str) + Send + Sync);
