//! Fetches an image's manifest, configuration and layers, and believes nothing that its digest does not prove.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures::StreamExt;
use oci_client::client::linux_amd64_resolver;
use oci_client::config::ConfigFile;
use oci_client::manifest::{OciDescriptor, OciImageManifest, OciManifest};
use oci_client::{ParseError, Reference};
use reqwest::Url;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use super::client::{Client, RegistryError, digest_of};
use super::credentials::Credentials;
use super::hops::Named;

/// Layers of one image. Docker allows as many; more is an attack on whoever merges them.
const MAX_LAYERS: usize = 127;
/// A configuration is some kilobytes, with a long history a megabyte.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// All layers together as they travel. The largest public images are near 10 GiB.
const MAX_COMPRESSED_BYTES: u64 = 16 << 30;

/// Where an image is.
#[derive(Debug, Clone, Default)]
pub struct ImageSource {
    /// As users write it: `ubuntu:22.04`, `ghcr.io/owner/name@sha256:...`.
    pub reference: String,
    /// How to log in.
    pub credentials: Option<Credentials>,
    /// Where registries really are.
    pub mirrors: Mirrors,
}

/// Registries that are asked at another address. On the loopback they are spoken to in the clear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors(BTreeMap<String, String>);

/// Why a mirror is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot use the registry mirror `{0}`: write it as `docker.io=HOST[:PORT]`")]
pub struct MirrorError(String);

impl Mirrors {
    /// Parses `REGISTRY=HOST[:PORT]` each.
    pub fn parse<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Self, MirrorError> {
        let parse = |text: &str| {
            let (registry, mirror) = text.split_once('=')?;
            let plain = |host: &str| !host.is_empty() && !host.contains(['/', '@', ' ']);
            (plain(registry) && plain(mirror)).then(|| (registry.to_owned(), mirror.to_owned()))
        };
        texts.into_iter().map(|text| parse(text).ok_or_else(|| MirrorError(text.to_owned()))).collect::<Result<_, _>>().map(Self)
    }

    /// Every place that is named.
    fn places(&self) -> Vec<Named> {
        let place = |mirror: &String| {
            let scheme = if is_loopback(mirror) { "http" } else { "https" };
            let url = Url::parse(&format!("{scheme}://{mirror}/")).ok()?;
            Some(Named { host: url.host_str()?.to_owned(), port: url.port_or_known_default()?, scheme })
        };
        self.0.values().filter_map(place).collect()
    }
}

/// Why an image cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference is none.
    #[error("cannot understand the image reference `{reference}`")]
    Reference {
        /// As given.
        reference: String,
        /// The fault.
        #[source]
        source: ParseError,
    },
    /// The registry does not have it, or does not show it.
    #[error("cannot get the manifest of `{image}`")]
    Manifest {
        /// The image, with registry.
        image: String,
        /// Why not.
        #[source]
        source: RegistryError,
    },
    /// The manifest asks for more than is reasonable.
    #[error("cannot use `{image}`: it has {what}")]
    Unreasonable {
        /// The image.
        image: String,
        /// The part that is too large.
        what: String,
    },
    /// A part cannot be fetched, or is not what its digest says.
    #[error("cannot get `{digest}` of `{image}`")]
    Blob {
        /// The image.
        image: String,
        /// The part.
        digest: String,
        /// Why.
        #[source]
        source: RegistryError,
    },
    /// A part cannot be stored.
    #[error("cannot store `{digest}`")]
    Store {
        /// The part.
        digest: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The configuration is not one.
    #[error("cannot read the configuration of `{image}`")]
    Config {
        /// The image.
        image: String,
        /// The fault.
        #[source]
        source: serde_json::Error,
    },
}

/// An image in its registry.
pub(super) struct Remote {
    client: Client,
    reference: Reference,
    pub(super) manifest: OciImageManifest,
    /// Digest of the manifest: two images with the same are the same.
    pub(super) digest: String,
}

impl Remote {
    /// Asks the registry what the reference names now, for a Linux machine with an x86-64 processor.
    pub(super) async fn resolve(source: &ImageSource) -> Result<Self, PullError> {
        let mut reference: Reference = source
            .reference
            .parse()
            .map_err(|error| PullError::Reference { reference: source.reference.chars().take(200).collect(), source: error })?;
        let mirror = source.mirrors.0.get(reference.registry());
        if let Some(mirror) = mirror {
            reference.set_mirror_registry(mirror.clone());
        }
        let registry = reference.resolve_registry().to_owned();
        let clear = mirror.is_some() && is_loopback(&registry);
        let named = source.mirrors.places();
        let client = Client::new(&registry, clear, named, reference.repository(), source.credentials.clone());
        let failed = |source| PullError::Manifest { image: reference.to_string(), source };
        let client = client.map_err(failed)?;
        let (manifest, digest) = image_manifest(&client, &reference).await.map_err(failed)?;
        let remote = Self { client, reference, manifest, digest };
        remote.check()?;
        Ok(remote)
    }

    fn check(&self) -> Result<(), PullError> {
        let unreasonable = |what| PullError::Unreasonable { image: self.reference.to_string(), what };
        let layers = &self.manifest.layers;
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(unreasonable(format!("{} layers, of 1 to {MAX_LAYERS}", layers.len())));
        }
        let all = std::iter::once(&self.manifest.config).chain(layers);
        if all.clone().any(|part| part.size < 0 || !part.digest.starts_with("sha256:")) {
            return Err(unreasonable("a part of negative size or without a SHA-256 digest".to_owned()));
        }
        let total = all.map(bytes).fold(0, u64::saturating_add);
        if total > MAX_COMPRESSED_BYTES || bytes(&self.manifest.config) > MAX_CONFIG_BYTES {
            return Err(unreasonable(format!("{total} bytes, more than is taken")));
        }
        Ok(())
    }

    /// The image's configuration.
    pub(super) async fn config(&self) -> Result<ConfigFile, PullError> {
        let mut text = Vec::new();
        self.fetch(&self.manifest.config, &mut text).await?;
        serde_json::from_slice(&text).map_err(|source| PullError::Config { image: self.reference.to_string(), source })
    }

    /// Writes a layer, as it travels, to `to`.
    pub(super) async fn layer(&self, layer: &OciDescriptor, to: &Path) -> Result<(), PullError> {
        let store = |source| PullError::Store { digest: layer.digest.clone(), source };
        let mut file = tokio::fs::File::create(to).await.map_err(store)?;
        self.fetch(layer, &mut file).await?;
        file.flush().await.map_err(store)
    }

    /// Streams one part. The stream ends with an error unless its bytes have the part's digest.
    async fn fetch(&self, part: &OciDescriptor, to: &mut (impl tokio::io::AsyncWrite + Unpin)) -> Result<(), PullError> {
        let failed = |source| PullError::Blob { image: self.reference.to_string(), digest: part.digest.clone(), source };
        let response = self.client.get(&format!("blobs/{}", part.digest), None).await.map_err(failed)?;
        let mut stream = response.bytes_stream();
        let (mut left, mut hash) = (bytes(part), Sha256::new());
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| failed(RegistryError::from(error)))?;
            left = left.checked_sub(chunk.len() as u64).ok_or_else(|| PullError::Unreasonable {
                image: self.reference.to_string(),
                what: format!("a part `{}` that is longer than it says", part.digest),
            })?;
            hash.update(&chunk);
            to.write_all(&chunk).await.map_err(|source| PullError::Store { digest: part.digest.clone(), source })?;
        }
        let is_whole = digest_of(hash) == part.digest;
        if is_whole { Ok(()) } else { Err(failed(RegistryError::Digest)) }
    }
}

/// The manifest of the image for a Linux machine with an x86-64 processor, and its digest.
async fn image_manifest(client: &Client, reference: &Reference) -> Result<(OciImageManifest, String), RegistryError> {
    let wanted = reference.digest().or(reference.tag()).unwrap_or("latest");
    let (manifest, digest) = client.manifest(wanted).await?;
    match manifest {
        OciManifest::Image(manifest) => Ok((manifest, digest)),
        OciManifest::ImageIndex(index) => {
            let digest = linux_amd64_resolver(&index.manifests).ok_or(RegistryError::Platform)?;
            match client.manifest(&digest).await? {
                (OciManifest::Image(manifest), digest) => Ok((manifest, digest)),
                (OciManifest::ImageIndex(_), _) => Err(RegistryError::Form("manifest")),
            }
        }
    }
}

/// Checked to be no less than zero in [`Remote::check`].
pub(super) fn bytes(part: &OciDescriptor) -> u64 {
    u64::try_from(part.size).unwrap_or_default()
}

fn is_loopback(registry: &str) -> bool {
    let host =
        registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit())).map_or(registry, |(h, _)| h);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_loopback_is_spoken_to_in_the_clear() {
        for host in ["127.0.0.1:5000", "localhost", "localhost:80", "[::1]:5000", "127.9.9.9"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "10.0.0.1:5000", "127.0.0.1.example.com", "localhost.example.com:5000"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn mirrors_are_parsed_or_refused() {
        assert_eq!(
            Mirrors::parse(["docker.io=127.0.0.1:5000"]).unwrap().0,
            BTreeMap::from([("docker.io".to_owned(), "127.0.0.1:5000".to_owned())])
        );
        for text in ["docker.io", "=x", "x=", "docker.io=http://x/y", "docker.io=user@x"] {
            assert_eq!(Mirrors::parse([text]), Err(MirrorError(text.to_owned())));
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        let credentials = Credentials { username: "u".into(), password: "hunter2".into() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
