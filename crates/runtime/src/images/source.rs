//! The seam between builds and whatever gives root images of container images.
//!
//! The runtime knows no registries: whoever opens it says where images come from. On its own it has one, the root image of the
//! host's guest system, which stands for the image that E2B's SDKs build on when they are told nothing.

use std::{collections::BTreeMap, error::Error, fmt, path::Path};

use async_trait::async_trait;
use firkin_engine::ImageForm;

use crate::{
    ground::progress::Report,
    images::{root_image::RootImage, standard::BuildTemplate},
};

/// The image that the SDKs build on by default. Here that is what `base` is made of.
pub const SDK_BASE_IMAGE: &str = "e2bdev/base";

/// An image as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// As users write it, e.g. `ubuntu:22.04`.
    pub reference: String,
    /// How to log in to its registry.
    pub login: Option<RegistryLogin>,
}

/// How to log in to a registry. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub enum RegistryLogin {
    /// With a password.
    Password {
        /// User name.
        username: String,
        /// Password or token.
        password: String,
    },
    /// With AWS keys, which must be exchanged for a password at AWS.
    Aws,
}

impl fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => f.debug_struct("Password").field("username", username).finish_non_exhaustive(),
            Self::Aws => f.write_str("Aws"),
        }
    }
}

/// An image as a root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildImage {
    /// The file system.
    pub root: RootImage,
    /// Whether it has what a guest of ours needs: bash, `user`, sudo without a password.
    pub provisioned: bool,
    /// Environment that the image asks for.
    pub env: BTreeMap<String, String>,
    /// Set where it is no image alone but one of the host's own templates, with what is done in it. A build on it is made as that template is:
    /// booted once, with everything, and cut whole.
    pub standard: Option<Box<BuildTemplate>>,
}

/// Why there is no image. The source says what the registry, or whoever else was asked, answered.
#[derive(Debug, thiserror::Error)]
#[error("cannot get image `{reference}`")]
pub struct ImageError {
    /// As it was asked for.
    pub reference: String,
    /// Why.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

/// Where images come from.
#[async_trait]
pub trait ImageSource: fmt::Debug + Send + Sync {
    /// The root file system of an image, as it is now. Equal images have equal digests; what was returned stays where it is for
    /// as long as any template stands on it. Cancel-safe.
    async fn image(&self, request: &ImageRequest, report: Report<'_>) -> Result<BuildImage, ImageError>;

    /// A root image of this source, or the guest system's, in the form that an engine has its images in. It is as large to its guests, and
    /// has a digest of its own. What was returned stays as [`Self::image`]'s does. Cancel-safe.
    async fn in_form(&self, root: RootImage, form: ImageForm, _report: Report<'_>) -> Result<RootImage, ImageError> {
        match form {
            ImageForm::Ext4 => Ok(root),
            ImageForm::ErofsWithAgent => {
                Err(ImageError { reference: root.path.display().to_string(), source: Box::new(NoSuchForm) })
            }
        }
    }

    /// A root image that has a form with an agent in it, with what a guest has changed of it: `layer` is one of a container image, not
    /// compressed, and a stranger's. What was returned stays as [`Self::image`]'s does. Cancel-safe.
    async fn changed(&self, root: RootImage, _layer: &Path, _report: Report<'_>) -> Result<RootImage, ImageError> {
        Err(ImageError { reference: root.path.display().to_string(), source: Box::new(NoSuchForm) })
    }
}

/// Only the host's own root image, under the name that the SDKs use.
#[derive(Debug, Clone)]
pub struct OwnImage(pub RootImage);

/// There is nobody who makes it.
#[derive(Debug, thiserror::Error)]
#[error("this runtime has root images in ext4 alone")]
struct NoSuchForm;

/// There is no registry to ask.
#[derive(Debug, thiserror::Error)]
#[error("this runtime knows no registry, only `{SDK_BASE_IMAGE}`")]
struct NoRegistry;

#[async_trait]
impl ImageSource for OwnImage {
    async fn image(&self, request: &ImageRequest, _: Report<'_>) -> Result<BuildImage, ImageError> {
        if same_image(&request.reference, SDK_BASE_IMAGE) {
            return Ok(BuildImage { root: self.0.clone(), provisioned: true, env: BTreeMap::new(), standard: None });
        }
        Err(ImageError { reference: request.reference.clone(), source: Box::new(NoRegistry) })
    }
}

/// Whether two references name one image, with the registry and the tag that a reference without them means.
pub fn same_image(one: &str, other: &str) -> bool {
    fn whole(reference: &str) -> String {
        let hub = ["docker.io/", "index.docker.io/"].iter().find_map(|hub| reference.strip_prefix(hub)).unwrap_or(reference);
        let name = hub.strip_prefix("library/").unwrap_or(hub);
        let tagged = name.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
        if tagged { name.to_owned() } else { format!("{name}:latest") }
    }
    whole(one) == whole(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_compared_as_registries_understand_them() {
        assert!(same_image("e2bdev/base", "docker.io/e2bdev/base:latest"));
        assert!(same_image("ubuntu:22.04", "docker.io/library/ubuntu:22.04"));
        assert!(!same_image("ubuntu:22.04", "ubuntu"));
        assert!(!same_image("localhost:5000/base", "base"));
    }

    #[test]
    fn a_password_is_never_shown() {
        let login = RegistryLogin::Password { username: "u".into(), password: "hunter2".into() };
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
