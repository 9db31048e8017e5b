//! Where container images come from that templates are built on: registries, by way of mirrors; and this host's own root image,
//! under the name that E2B's SDKs build on by default.
//!
//! A mirror that has an image of that name is believed. Without one, or without a mirror, the own root image is what the name
//! stands for here: it holds what the SDKs expect of it, and needs no network.
//!
//! A client that asks for one of the host's own templates renewed has kernel and root images made anew first, of what the mirror has
//! now. What exists stands on the old ones until a build of new ones is on record.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{PoisonError, RwLock},
};

use async_trait::async_trait;
use firkin_engine::{BootFile, BootFiles, ImageForm};
use firkin_image::{
    Additions, Cache, Initramfs, OwnKernel, RootSpec, changed_root, container_root, initramfs,
    oci::{
        self, ImageError as OciError,
        credentials::Credentials,
        registry::{ImageSource as OciSource, MirrorError, Mirrors, PullError},
    },
    renewed_kernel, renewed_rootfs, rootfs,
};
use firkin_runtime::{
    config::{GuestSystem, Guests},
    images::{BuildImage, ImageError, ImageRequest, ImageSource, RegistryLogin, SDK_BASE_IMAGE, same_image},
    progress::Report,
    root_image::RootImage,
};

use crate::standard::Standard;

/// The registry of references that name none.
const HUB: &str = "docker.io";

/// Where images are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageSettings {
    /// Registries that are asked at another address.
    pub(crate) mirrors: Mirrors,
    /// As they were given.
    given: Vec<String>,
    /// Further names of the host's own root image.
    pub(crate) own: Vec<String>,
}

impl ImageSettings {
    /// Understands `[REGISTRY=]HOST[:PORT]` each; without a registry, Docker's.
    pub(crate) fn parse(mirrors: &[String], own: &[String]) -> Result<Self, MirrorError> {
        let whole: Vec<String> =
            mirrors.iter().map(|text| if text.contains('=') { text.clone() } else { format!("{HUB}={text}") }).collect();
        let parsed = Mirrors::parse(whole.iter().map(String::as_str))?;
        Ok(Self { mirrors: parsed, given: mirrors.to_vec(), own: own.to_vec() })
    }

    /// The options that make another server of ours find the same images.
    pub(crate) fn options(&self) -> String {
        let mirrors = self.given.iter().map(|mirror| format!(" --registry-mirror {mirror}"));
        mirrors.chain(self.own.iter().map(|own| format!(" --own-image {own}"))).collect()
    }
}

/// The images of one host.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) cache: Cache,
    pub(crate) settings: ImageSettings,
    /// Added to every image.
    additions: RwLock<Additions>,
    /// Environment of every template that is built on one.
    pub(crate) env: BTreeMap<String, String>,
    /// The kernel that the host's owner brings, which stays when everything else is renewed.
    own_kernel: Option<OwnKernel>,
    /// What guests are made of: the runtime's own word for it.
    guests: Guests,
    /// Held by who renews it: another who wants that finds it renewed.
    renewal: tokio::sync::Mutex<()>,
}

/// What guests are booted from, and the root image of templates that name no other.
pub(crate) fn guest_system(
    additions: &Additions,
    own_kernel: Option<&OwnKernel>,
    initrd: Initramfs,
    root: firkin_image::RootImage,
) -> GuestSystem {
    let (kernel, digest) = match own_kernel {
        Some(own) => (&own.path, &own.digest),
        None => (&additions.kernel.kernel, &additions.kernel.digest),
    };
    GuestSystem {
        boot: BootFiles::new(
            BootFile { path: kernel.clone(), digest: digest.clone() },
            BootFile { path: initrd.path, digest: initrd.digest },
        ),
        rootfs: root.path,
        rootfs_digest: root.digest,
        rootfs_bytes: root.virtual_bytes,
    }
}

/// AWS gives a registry's password only for a signed request to another of its services.
#[derive(Debug, thiserror::Error)]
#[error(
    "logging in with AWS keys is not supported: get a password with `aws ecr get-login-password` and give user `AWS` with it"
)]
struct AwsLogin;

impl Images {
    /// Images with these additions, beside guests that are made of `guests`.
    pub(crate) fn new(
        cache: Cache,
        settings: ImageSettings,
        additions: Additions,
        env: BTreeMap<String, String>,
        guests: Guests,
    ) -> Self {
        let (additions, renewal) = (RwLock::new(additions), tokio::sync::Mutex::new(()));
        Self { cache, settings, additions, env, own_kernel: None, guests, renewal }
    }

    /// The same, with guests that boot this kernel if there is one.
    pub(crate) fn booting(self, own_kernel: Option<OwnKernel>) -> Self {
        Self { own_kernel, ..self }
    }

    fn additions(&self) -> Additions {
        self.additions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes kernel, initial RAM file system and root image anew, and has guests made of them from now on.
    async fn renew(&self, report: firkin_image::Report<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let turn = self.renewal.lock().await;
        let kernel = renewed_kernel(&self.cache, report).await?;
        let initrd = initramfs(&self.cache, &kernel, firkin_agent::GUEST_AGENT).await?;
        let additions = Additions { kernel, ..self.additions() };
        let root = renewed_rootfs(&self.cache, &RootSpec::default(), &additions, report).await?;
        let renewed = guest_system(&additions, self.own_kernel.as_ref(), initrd, root);
        if *self.guests.now() != renewed {
            tracing::info!(kernel = %additions.kernel.version, "the guest system was renewed");
            *self.additions.write().unwrap_or_else(PoisonError::into_inner) = additions;
            self.guests.renew(renewed);
        }
        drop(turn);
        Ok(())
    }

    /// The host's own root image, as guests have it now.
    fn own_root(&self) -> RootImage {
        self.guests.now().root()
    }

    async fn pull(&self, request: &ImageRequest, report: Report<'_>) -> Result<BuildImage, ImageError> {
        let failed = |source| ImageError { reference: request.reference.clone(), source };
        let credentials = match &request.login {
            None => None,
            Some(RegistryLogin::Password { username, password }) => {
                Some(Credentials { username: username.clone(), password: password.clone() })
            }
            Some(RegistryLogin::Aws) => return Err(failed(Box::new(AwsLogin))),
        };
        let source = OciSource { reference: request.reference.clone(), credentials, mirrors: self.settings.mirrors.clone() };
        let told = |event: firkin_image::Event| report(&format!("{}: {}", event.step, event.detail));
        let image = oci::image(&self.cache, &source, &self.additions(), self.own_root().bytes, &told).await;
        let image = image.map_err(|error| failed(Box::new(error) as _))?;
        let own = image.config.env.iter().filter_map(|pair| pair.split_once('='));
        let mut env = self.env.clone();
        env.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
        Ok(BuildImage {
            root: RootImage { path: image.root.path, digest: image.root.digest, bytes: image.root.virtual_bytes },
            provisioned: false,
            env,
            standard: None,
        })
    }

    /// One of the host's own templates, its root image from the cache or built into it.
    async fn standard(&self, standard: &Standard, report: Report<'_>) -> Result<BuildImage, ImageError> {
        let failed = |source| ImageError { reference: standard.reference(), source };
        let told = |event: firkin_image::Event| report(&format!("{}: {}", event.step, event.detail));
        if standard.is_renewed() {
            self.renew(&told).await.map_err(failed)?;
        }
        let root = match standard.root() {
            None => self.own_root(),
            Some(spec) => {
                let (cache, additions) = (&self.cache, self.additions());
                let root = if standard.is_renewed() {
                    renewed_rootfs(cache, &spec, &additions, &told).await
                } else {
                    rootfs(cache, &spec, &additions, &told).await
                };
                let root = root.map_err(|error| failed(Box::new(error) as _))?;
                RootImage { path: root.path, digest: root.digest, bytes: root.virtual_bytes }
            }
        };
        let template = standard.template(Some(root.clone()), self.env.clone());
        Ok(BuildImage { standard: Some(Box::new(template)), root, ..self.own() })
    }

    fn own(&self) -> BuildImage {
        BuildImage { root: self.own_root(), provisioned: true, env: self.env.clone(), standard: None }
    }
}

/// The agent, for an image that has it in it.
const AGENT: &[u8] = firkin_agent::GUEST_AGENT;

#[async_trait]
impl ImageSource for Images {
    async fn in_form(&self, root: RootImage, form: ImageForm, report: Report<'_>) -> Result<RootImage, ImageError> {
        match form {
            ImageForm::Ext4 => Ok(root),
            ImageForm::ErofsWithAgent => {
                let told = |event: firkin_image::Event| report(&format!("{}: {}", event.step, event.detail));
                let failed = |error| ImageError { reference: root.path.display().to_string(), source: Box::new(error) };
                let from =
                    firkin_image::RootImage { path: root.path.clone(), digest: root.digest.clone(), virtual_bytes: root.bytes };
                let made = container_root(&self.cache, &from, AGENT, &told).await.map_err(failed)?;
                Ok(RootImage { path: made.path, digest: made.digest, bytes: made.virtual_bytes })
            }
        }
    }

    async fn changed(&self, root: RootImage, layer: &Path, report: Report<'_>) -> Result<RootImage, ImageError> {
        let told = |event: firkin_image::Event| report(&format!("{}: {}", event.step, event.detail));
        let failed = |error| ImageError { reference: root.path.display().to_string(), source: Box::new(error) };
        let from = firkin_image::RootImage { path: root.path.clone(), digest: root.digest.clone(), virtual_bytes: root.bytes };
        let made = changed_root(&self.cache, &from, layer, AGENT, &told).await.map_err(failed)?;
        Ok(RootImage { path: made.path, digest: made.digest, bytes: made.virtual_bytes })
    }

    async fn image(&self, request: &ImageRequest, report: Report<'_>) -> Result<BuildImage, ImageError> {
        if let Some(standard) = Standard::parse(&request.reference) {
            let standard =
                standard.map_err(|source| ImageError { reference: request.reference.clone(), source: Box::new(source) })?;
            return self.standard(&standard, report).await;
        }
        if self.settings.own.iter().any(|own| same_image(own, &request.reference)) {
            return Ok(self.own());
        }
        if !same_image(&request.reference, SDK_BASE_IMAGE) {
            return self.pull(request, report).await;
        }
        if self.settings.given.is_empty() {
            return Ok(self.own());
        }
        match self.pull(request, report).await {
            Err(error) if has_none(&error) => {
                report("the mirror does not have it: this host's own root image stands for it");
                Ok(self.own())
            }
            result => result,
        }
    }
}

/// Whether a registry answered that it has no such image, or did not answer.
fn has_none(error: &ImageError) -> bool {
    matches!(error.source.downcast_ref::<OciError>(), Some(OciError::Pull(PullError::Manifest { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_ones_own_is_booted_and_is_another_recipe() {
        let additions = Additions {
            kernel: firkin_image::GuestKernel {
                kernel: "/c/vmlinuz".into(),
                modules: "/c/modules".into(),
                archive: "/c/modules.tar".into(),
                version: "6.12.1".into(),
                digest: "packaged".into(),
            },
            certificates: Vec::new(),
        };
        let guests = |own: Option<&OwnKernel>| {
            let initrd = Initramfs { path: "/c/initramfs".into(), digest: "i".into() };
            let root = firkin_image::RootImage { path: "/c/root".into(), digest: "r".into(), virtual_bytes: 1 };
            guest_system(&additions, own, initrd, root)
        };
        let own = OwnKernel { path: "/own/vmlinuz".into(), digest: "own".into() };
        let (packaged, brought) = (guests(None), guests(Some(&own)));
        assert_eq!((packaged.boot.digests(), brought.boot.digests()), (["packaged", "i"], ["own", "i"]));
        assert_eq!(brought.boot.kernel().unwrap().kernel.path, own.path);
        assert_eq!(brought.rootfs_digest, packaged.rootfs_digest);
    }

    #[test]
    fn a_mirror_without_a_registry_is_the_hubs() {
        let short = ImageSettings::parse(&["127.0.0.1:5000".to_owned()], &[]).unwrap();
        let long = ImageSettings::parse(&["docker.io=127.0.0.1:5000".to_owned()], &[]).unwrap();
        assert_eq!(short.mirrors, long.mirrors);
        assert!(ImageSettings::parse(&["http://127.0.0.1:5000".to_owned()], &[]).is_err());
        let given = ImageSettings::parse(&["m".to_owned()], &["ubuntu:22.04".to_owned()]).unwrap();
        assert_eq!(given.options(), " --registry-mirror m --own-image ubuntu:22.04");
    }
}
