//! Asks a registry, as the OCI distribution specification and Docker's token authentication prescribe.
//!
//! Written here because nothing that exists lets us say which addresses it connects to ([`super::hops`]). What a registry, or a
//! place that it sends us to, answers to a request that fails is not read and never shown: it may be the answer of somebody
//! whom only this host reaches.

use std::{sync::Arc, time::Duration};

use oci_client::manifest::OciManifest;
use reqwest::{
    Response, StatusCode, Url,
    header::{ACCEPT, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{
    credentials::Credentials,
    hops::{HopError, Hops, Named, Resolver},
};

const CONNECT_DEADLINE: Duration = Duration::from_secs(30);
/// A registry that sends nothing for this long has died.
const READ_DEADLINE: Duration = Duration::from_secs(60);
/// Manifests of more are refused by registries themselves.
const MAX_MANIFEST_BYTES: usize = 4 << 20;
/// Tokens are some kilobytes.
const MAX_TOKEN_BYTES: usize = 256 << 10;
/// Where Docker's registry answers.
const HUB: (&str, &str) = ("docker.io", "index.docker.io");
/// The forms of manifest that are understood.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                         application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

/// Why a registry did not give a part.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The registry's name is none.
    #[error("`{0}` is no name of a registry")]
    Name(String),
    /// The TLS client cannot be made.
    #[error("cannot prepare a client")]
    Client(#[source] reqwest::Error),
    /// It led where the server does not go.
    #[error(transparent)]
    Hop(#[from] HopError),
    /// No connection, or it broke.
    #[error("the registry, or the place that it sends its clients to, is not reached")]
    Unreachable,
    /// The registry's answer.
    #[error("the registry answers with status {0}")]
    Status(u16),
    /// Someone else did not give what the registry sent us for.
    #[error("the place that the registry sends its clients to does not give it")]
    Elsewhere,
    /// There is no login.
    #[error("the registry wants a login")]
    Login,
    /// An answer that is not as prescribed.
    #[error("the registry's {0} is not as the OCI distribution specification has it")]
    Form(&'static str),
    /// Not what was asked for.
    #[error("it has another digest than it should have")]
    Digest,
    /// No such machine.
    #[error("there is no image for linux/amd64")]
    Platform,
}

impl From<reqwest::Error> for RegistryError {
    fn from(error: reqwest::Error) -> Self {
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(inner) = cause {
            if let Some(hop) = inner.downcast_ref::<HopError>() {
                return Self::Hop(hop.clone());
            }
            cause = inner.source();
        }
        tracing::debug!(error = &error as &dyn std::error::Error, "a registry is not reached");
        Self::Unreachable
    }
}

/// One repository of a registry.
pub(super) struct Client {
    http: reqwest::Client,
    hops: Arc<Hops>,
    /// With a slash at the end.
    base: Url,
    repository: String,
    credentials: Option<Credentials>,
    /// What the last challenge led to: the value of `Authorization`.
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// For `repository` of `registry`, which is spoken to in the `clear` if so said. The operator has `named` places that are reached
    /// wherever they are.
    pub(super) fn new(
        registry: &str,
        clear: bool,
        named: Vec<Named>,
        repository: &str,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        // Only one of the process's parts can have installed it before us.
        drop(rustls::crypto::ring::default_provider().install_default());
        let (scheme, host) = (if clear { "http" } else { "https" }, if registry == HUB.0 { HUB.1 } else { registry });
        let wrong = || RegistryError::Name(registry.to_owned());
        let base = Url::parse(&format!("{scheme}://{host}/v2/{repository}/")).map_err(|_| wrong())?;
        let hops = Arc::new(Hops::new(named));
        let http = reqwest::Client::builder()
            .dns_resolver(Resolver(Arc::clone(&hops)))
            .redirect(hops.redirects())
            .connect_timeout(CONNECT_DEADLINE)
            .read_timeout(READ_DEADLINE)
            .user_agent(concat!("firkin/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(RegistryError::Client)?;
        Ok(Self { http, hops, base, repository: repository.to_owned(), credentials, authorization: Mutex::default() })
    }

    /// A manifest by tag or digest, and its digest.
    pub(super) async fn manifest(&self, wanted: &str) -> Result<(OciManifest, String), RegistryError> {
        let response = self.get(&format!("manifests/{wanted}"), Some(MANIFESTS)).await?;
        let text = bounded(response, MAX_MANIFEST_BYTES).await?.ok_or(RegistryError::Form("manifest"))?;
        let digest = digest_of(Sha256::new_with_prefix(&text));
        if wanted.contains(':') && wanted != digest {
            return Err(RegistryError::Digest);
        }
        let manifest = serde_json::from_slice(&text).map_err(|_| RegistryError::Form("manifest"))?;
        Ok((manifest, digest))
    }

    /// Gets `path` of the repository. A token that is missing or has expired is asked for, once.
    pub(super) async fn get(&self, path: &str, accept: Option<&'static str>) -> Result<Response, RegistryError> {
        let url = self.base.join(path).map_err(|_| RegistryError::Form("reference"))?;
        self.hops.check(&url)?;
        let ask = async || {
            let mut request = self.http.get(url.clone());
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(authorization) = self.authorization.lock().await.clone() {
                request = request.header(reqwest::header::AUTHORIZATION, authorization);
            }
            Ok::<_, RegistryError>(request.send().await?)
        };
        let mut response = ask().await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.is_registry(response.url()) {
            let challenge = response.headers().get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
            let authorization = self.authorize(challenge.unwrap_or_default()).await?;
            *self.authorization.lock().await = Some(authorization);
            response = ask().await?;
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            status if self.is_registry(response.url()) => Err(RegistryError::Status(status.as_u16())),
            _ => Err(RegistryError::Elsewhere),
        }
    }

    fn is_registry(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Answers a challenge: with a token of the place that it names, or with the login itself.
    async fn authorize(&self, challenge: &str) -> Result<HeaderValue, RegistryError> {
        let (scheme, parameters) = challenge.split_once(' ').unwrap_or((challenge, ""));
        let login = |request: reqwest::RequestBuilder| match &self.credentials {
            Some(Credentials { username, password }) => request.basic_auth(username, Some(password)),
            None => request,
        };
        if !scheme.eq_ignore_ascii_case("bearer") {
            // The client's own way of writing it, of a request that is not sent.
            let request = self.credentials.as_ref().and_then(|_| login(self.http.get(self.base.clone())).build().ok());
            let value = request.and_then(|request| request.headers().get(reqwest::header::AUTHORIZATION).cloned());
            return value.ok_or(RegistryError::Login);
        }
        let realm = parameter(parameters, "realm").ok_or(RegistryError::Form("challenge"))?;
        let mut realm = Url::parse(realm).map_err(|_| RegistryError::Form("challenge"))?;
        self.hops.check(&realm)?;
        realm.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", self.repository));
        if let Some(service) = parameter(parameters, "service") {
            realm.query_pairs_mut().append_pair("service", service);
        }
        let response = login(self.http.get(realm)).send().await?;
        if response.status() != StatusCode::OK {
            return Err(RegistryError::Login);
        }
        let text = bounded(response, MAX_TOKEN_BYTES).await?.ok_or(RegistryError::Form("token"))?;
        let token: Token = serde_json::from_slice(&text).map_err(|_| RegistryError::Form("token"))?;
        let token = token.token.or(token.access_token).ok_or(RegistryError::Form("token"))?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| RegistryError::Form("token"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

/// The body, unless it is longer than `limit`.
async fn bounded(mut response: Response, limit: usize) -> Result<Option<Vec<u8>>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// One of a challenge's `name="value"`, separated by commas, which values may hold too.
fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = parameters;
    loop {
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        if key.trim_matches([' ', ',']).eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = after;
    }
}

/// `sha256:` and the hash in hexadecimal.
pub(super) fn digest_of(hash: Sha256) -> String {
    use std::fmt::Write;
    hash.finalize().iter().fold("sha256:".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes every text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_a_challenge_are_found() {
        let challenge = r#"realm="https://auth.docker.io/token",service="registry.docker.io", scope="repository:a:pull,push""#;
        assert_eq!(parameter(challenge, "realm"), Some("https://auth.docker.io/token"));
        assert_eq!(parameter(challenge, "Service"), Some("registry.docker.io"));
        assert_eq!(parameter(challenge, "scope"), Some("repository:a:pull,push"));
        for text in ["", "realm", "realm=\"", "=\"\"", ",,"] {
            assert_eq!(parameter(text, "realm"), None, "{text}");
        }
    }
}
