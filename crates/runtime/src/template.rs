//! Templates: what they look like from outside, their tags, what depends on them, and how they are built.

pub mod build;
pub(crate) mod dependents;
pub mod tags;

mod info;

pub use self::info::{TagInfo, TemplateInfo, TemplateUpdate};
