//! What templates are made of: root images, images that users name, and what the standard templates have in them.

pub mod desktop;
pub mod root_image;
pub mod standard;

mod source;

pub use self::source::{BuildImage, ImageError, ImageRequest, ImageSource, OwnImage, RegistryLogin, SDK_BASE_IMAGE, same_image};
