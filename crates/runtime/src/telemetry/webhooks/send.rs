//! How an event is sent to a webhook: where it may go, what it is signed with, and what counts as arrived.
//!
//! Whoever registers a webhook would have this server be its client. So it asks public addresses, by HTTPS, and others only where the
//! operator opened them: a name is looked up here, each address is held against the bounds that sandboxes have, and it is the
//! looked-at address that is connected to. Redirects are not followed, no proxy of the environment is used, and of an answer
//! nothing but its status is read, or told.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use firkin_egress::Bounds;
use ipnet::Ipv4Net;
use reqwest::{
    Client, Url,
    dns::{Addrs, Name, Resolve, Resolving},
    header,
    redirect::Policy,
};
use sha2::{Digest as _, Sha256};

use crate::{ground::random, store::Webhook};

/// How long a receiver may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// The longest URL.
const MAX_URL_BYTES: usize = 2048;

/// Spaces that may be put behind a payload. Each makes another signature, of which a quarter will do.
const MAX_PADDING: usize = 64;

/// Why a URL is none that events are sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a URL.
    #[error("this is not an absolute URL of at most {MAX_URL_BYTES} bytes")]
    Malformed,
    /// Neither HTTPS nor, to what the operator opened, HTTP.
    #[error("events are sent by `https://`, and by `http://` only to networks that the operator opened (`--webhook-allow`)")]
    Scheme,
    /// A name or password in it.
    #[error("a URL with a user name or password would be kept in the clear: the signature tells who sends")]
    Credentials,
    /// An address that is not for this.
    #[error("`{0}` is not a public address, and the operator has not opened it (`--webhook-allow`)")]
    Closed(String),
}

/// Why an event did not arrive. Nothing of what was found there is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("the receiver answered with status {0}")]
    Status(u16),
    #[error("the receiver did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Deadline,
    #[error("the receiver cannot be reached")]
    Unreachable,
    #[error("this server cannot speak TLS")]
    Client,
}

/// Which addresses are connected to.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    /// What no webhook reaches, but for what the operator opened.
    bounds: Arc<Bounds>,
}

impl Reach {
    /// What is closed, this host's own addresses among it, but for what the operator opened.
    pub(super) fn new(closed: Vec<Ipv4Net>, opened: Vec<Ipv4Net>) -> Self {
        // Own addresses are closed too, so that the operator can open them: nothing of a sandbox comes this way.
        Self { bounds: Arc::new(Bounds { own: Vec::new(), opened, closed }) }
    }

    fn is_opened(&self, address: Ipv4Addr) -> bool {
        self.bounds.opened.iter().any(|net| net.contains(&address))
    }

    fn admits(&self, address: IpAddr, clear: bool) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) if clear => self.is_opened(address),
            IpAddr::V4(address) => self.bounds.closing(address).is_none(),
            // The bounds know no such networks.
            IpAddr::V6(_) => false,
        }
    }

    /// Reads a URL and refuses what can be refused without looking its name up.
    pub(super) fn check(&self, text: &str) -> Result<Url, TargetError> {
        let url = Url::parse(text).ok().filter(|_| text.len() <= MAX_URL_BYTES).ok_or(TargetError::Malformed)?;
        let host = url.host_str().ok_or(TargetError::Malformed)?;
        let clear = match url.scheme() {
            "https" => false,
            "http" if !self.bounds.opened.is_empty() => true,
            _ => return Err(TargetError::Scheme),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Credentials);
        }
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match literal {
            Ok(address) if !self.admits(address, clear) => Err(TargetError::Closed(host.to_owned())),
            Ok(_) | Err(_) => Ok(url),
        }
    }
}

/// Looks names up, and gives what may be connected to.
#[derive(Debug)]
struct Guarded {
    reach: Reach,
    clear: bool,
}

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, clear) = (self.reach.clone(), self.clear);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let admitted: Vec<SocketAddr> = found.filter(|address| reach.admits(address.ip(), clear)).collect();
            if admitted.is_empty() {
                return Err(TargetError::Closed(name.as_str().to_owned()).into());
            }
            Ok(Box::new(admitted.into_iter()) as Addrs)
        })
    }
}

/// Sends events.
#[derive(Debug)]
pub(super) struct Sender {
    pub(super) reach: Reach,
    /// By HTTPS, and in the clear. Made when there is something to send: the host's authorities are read for it.
    clients: [OnceLock<Option<Client>>; 2],
}

impl Sender {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach, clients: [OnceLock::new(), OnceLock::new()] }
    }

    fn client(&self, clear: bool) -> Option<&Client> {
        let make = || {
            // Only one of the process's parts can have installed it before us.
            drop(rustls::crypto::ring::default_provider().install_default());
            let resolver = Guarded { reach: self.reach.clone(), clear };
            let client = Client::builder().dns_resolver(Arc::new(resolver)).redirect(Policy::none()).no_proxy();
            let client = client.timeout(ANSWER_DEADLINE).user_agent(concat!("firkin/", env!("CARGO_PKG_VERSION")));
            // Between two events of a webhook lies more time than a connection is worth.
            client.pool_max_idle_per_host(0).build().inspect_err(|error| tracing::error!(%error, "cannot send webhooks")).ok()
        };
        self.clients[usize::from(clear)].get_or_init(make).as_ref()
    }

    /// Sends one event once.
    pub(super) async fn send(&self, webhook: &Webhook, payload: &str) -> Result<(), SendError> {
        let url = self.reach.check(&webhook.url)?;
        let client = self.client(url.scheme() == "http").ok_or(SendError::Client)?;
        let (body, signature) = signed(&webhook.secret, payload);
        let request = client
            .post(url)
            .header(header::CONTENT_TYPE, "application/json")
            .header("e2b-webhook-id", webhook.id.as_str())
            .header("e2b-delivery-id", random::uuid())
            .header("e2b-signature-version", "v1")
            .header("e2b-signature", signature)
            .body(body);
        match request.send().await {
            Ok(response) if response.status().is_success() => Ok(()),
            Ok(response) => Err(SendError::Status(response.status().as_u16())),
            Err(error) if error.is_timeout() => Err(SendError::Deadline),
            Err(error) => {
                // Receivers have secrets in their URLs.
                let error = error.without_url();
                tracing::debug!(webhook = %webhook.id, error = firkin_causes::chain(&error), "a webhook is not reached");
                Err(SendError::Unreachable)
            }
        }
    }
}

/// A payload and its signature, as E2B makes it: SHA-256 of the secret and the body, in base64 without padding.
///
/// E2B's documents say of the alphabet once that it is that of URLs, once that it is not, and receivers are written by either. Spaces at
/// the end mean nothing in JSON: so many are put there that the signature has no letter in which the two differ.
fn signed(secret: &str, payload: &str) -> (String, String) {
    let mut body = payload.to_owned();
    loop {
        let digest = Sha256::new().chain_update(secret).chain_update(&body).finalize();
        let signature = STANDARD_NO_PAD.encode(digest);
        if !signature.contains(['+', '/']) || body.len() >= payload.len() + MAX_PADDING {
            return (body, signature);
        }
        body.push(' ');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn only_what_is_public_or_opened_is_a_target() {
        let closed = || nets(&["127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16"]);
        let plain = Reach::new(closed(), Vec::new());
        let opened = Reach::new(closed(), nets(&["10.1.0.0/16"]));
        for good in ["https://a.example/x", "https://8.8.8.8:8443/"] {
            assert!(plain.check(good).is_ok(), "{good}");
        }
        for bad in [
            "a.example",
            "http://a.example/",
            "ftp://a.example/",
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://10.1.2.3/",
            "https://169.254.169.254/latest",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://me:secret@a.example/",
        ] {
            assert!(plain.check(bad).is_err(), "{bad}");
        }
        assert!(opened.check("http://10.1.2.3:80/").is_ok() && opened.check("https://10.1.2.3/").is_ok());
        assert!(opened.check("http://10.2.0.1/").is_err() && opened.check("http://8.8.8.8/").is_err());
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_leads_nowhere() {
        let closed = Reach::new(nets(&["127.0.0.0/8"]), Vec::new());
        let name = || "localhost".parse::<Name>().unwrap();
        assert!(Guarded { reach: closed, clear: false }.resolve(name()).await.is_err());
        let opened = Reach::new(nets(&["127.0.0.0/8"]), nets(&["127.0.0.0/8"]));
        assert!(Guarded { reach: opened, clear: true }.resolve(name()).await.unwrap().all(|address| address.is_ipv4()));
    }

    #[test]
    fn a_signature_is_the_same_in_both_alphabets() {
        for n in 0..50 {
            let payload = format!(r#"{{"n":{n}}}"#);
            let (body, signature) = signed("secret", &payload);
            assert_eq!(body.trim_end(), payload);
            let digest = Sha256::digest(format!("secret{body}"));
            assert_eq!(signature, STANDARD_NO_PAD.encode(digest));
            assert!(!signature.contains(['+', '/', '=']), "{signature}");
        }
    }
}
