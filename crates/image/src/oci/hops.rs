//! Where a pull may lead: the registry that was asked for, and public places by HTTPS.
//!
//! A registry says where its tokens are given and sends its clients on to wherever its layers are; who chooses an image chooses
//! the registry. So the server must not become such a stranger's client inside the host's network: every address is looked at
//! before it is connected to, and it is the looked-at address that is connected to, whatever a name resolves to a moment later.
//! Each `--registry-mirror` of the operator's names what is reached all the same, by its name and port and nothing beside it: a registry
//! of the own network, and likewise where it gives its tokens or keeps its layers.
//!
//! Where the environment names a proxy for the server, the proxy resolves names, and its rules decide about addresses.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::{Attempt, Policy},
};

/// Registries send their clients on once, to where the layers are; that place may have moved once or twice.
const MAX_REDIRECTS: usize = 5;
/// By which an HTTP client finds its proxy.
const PROXY_VARIABLES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// A place that is not connected to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HopError {
    /// Neither public nor named by the operator.
    #[error("`{0}` is no public address, and no `--registry-mirror` names it, as `--registry-mirror {0}={0}` would")]
    Private(String),
    /// Not by HTTPS.
    #[error("`{0}` would be spoken to in the clear")]
    Clear(String),
    /// Sent on and on.
    #[error("the registry sends its clients on more than {MAX_REDIRECTS} times")]
    TooMany,
}

/// A place that the operator named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// As a URL has it.
    pub(super) host: String,
    pub(super) port: u16,
    /// `http` or `https`.
    pub(super) scheme: &'static str,
}

/// The places that one pull may lead to.
#[derive(Debug, Clone)]
pub(super) struct Hops {
    named: Vec<Named>,
    /// Addresses of this host.
    own: Vec<IpAddr>,
    /// Names of the environment's proxies.
    proxies: Vec<String>,
}

impl Hops {
    pub(super) fn new(named: Vec<Named>) -> Self {
        let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| interface.address);
        let own = addresses.filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        });
        let proxies = PROXY_VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
        Self { named, own: own.collect(), proxies: proxies.filter_map(|proxy| proxy_host(&proxy)).collect() }
    }

    /// Whether `url` may be asked. Names are looked at again when they are resolved.
    pub(super) fn check(&self, url: &Url) -> Result<(), HopError> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(HopError::Private(url.scheme().to_owned()));
        };
        let shown = || host.to_owned();
        if self.named.iter().any(|named| named.host == host && named.port == port && named.scheme == url.scheme()) {
            return Ok(());
        }
        // It would be resolved without a look at its addresses.
        if self.named.iter().any(|named| named.host == host) {
            return Err(HopError::Private(format!("{host}:{port}")));
        }
        if url.scheme() != "https" {
            return Err(HopError::Clear(shown()));
        }
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        if literal.is_ok_and(|address| !self.is_allowed(address)) || self.proxies.iter().any(|proxy| proxy == host) {
            return Err(HopError::Private(shown()));
        }
        Ok(())
    }

    /// Follows redirects to where may be asked.
    pub(super) fn redirects(&self) -> Policy {
        let hops = self.clone();
        Policy::custom(move |attempt: Attempt<'_>| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error(HopError::TooMany);
            }
            match hops.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(error) => attempt.error(error),
            }
        })
    }

    fn is_allowed(&self, address: IpAddr) -> bool {
        is_public(address) && !self.own.contains(&address)
    }

    fn is_named(&self, name: &str) -> bool {
        self.named.iter().map(|named| &named.host).chain(&self.proxies).any(|host| host.eq_ignore_ascii_case(name))
    }
}

/// Resolves names to addresses that may be connected to.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<Hops>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let hops = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> =
                found.filter(|address| hops.is_named(name.as_str()) || hops.is_allowed(address.ip())).collect();
            if allowed.is_empty() {
                return Err(HopError::Private(name.as_str().to_owned()).into());
            }
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The host in a variable that names a proxy, which may have no scheme.
fn proxy_host(proxy: &str) -> Option<String> {
    let url = if proxy.contains("://") { Url::parse(proxy) } else { Url::parse(&format!("http://{proxy}")) };
    url.ok()?.host_str().map(ToOwned::to_owned)
}

/// Whether the IANA special-purpose registries (RFC 6890) call `address` globally reachable.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_public_v4(v4),
            None => {
                let [first, second, ..] = v6.segments();
                // Global unicast is 2000::/3. Of it, 2001::/23 is for protocols (Teredo holds an IPv4 address), 2002::/16 is 6to4,
                // which holds one too.
                first >> 13 == 1 && !(first == 0x2001 && second >> 9 == 0) && first != 0x2002
            }
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match a {
        0 | 10 | 127 | 224.. => true,
        100 => b & 0xc0 == 64,
        169 => b == 254,
        172 => b & 0xf0 == 16,
        192 => b == 168 || (b == 0 && c == 0),
        198 => b & 0xfe == 18,
        _ => false,
    };
    !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_global_addresses_are_public() {
        for address in ["1.1.1.1", "100.128.0.1", "172.32.0.1", "192.0.1.1", "198.20.0.1", "2606:4700::1111", "::ffff:1.1.1.1"] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:7f00::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn beside_the_named_registry_only_https_to_public_places_is_allowed() {
        let named = |host: &str, port, scheme| Named { host: host.into(), port, scheme };
        let hops = Hops::new(vec![named("127.0.0.1", 5000, "http"), named("tokens.internal", 443, "https")]);
        let check = |url: &str| hops.check(&Url::parse(url).unwrap());
        assert_eq!(check("http://127.0.0.1:5000/v2/"), Ok(()));
        assert_eq!(check("https://auth.docker.io/token"), Ok(()));
        assert_eq!(check("https://tokens.internal/auth"), Ok(()), "a place of its own, named by itself");
        for url in [
            "http://127.0.0.1:5001/x",
            "https://127.0.0.1/x",
            "https://127.0.0.1:5000/x",
            "https://tokens.internal:8443/auth",
            "http://auth.docker.io/",
            "https://169.254.169.254/",
            "https://[::1]/",
            "https://[::ffff:7f00:1]/",
            "https://0x7f000001/",
            "https://10.0.0.1/",
            "file:///etc/passwd",
        ] {
            assert!(check(url).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_to_this_host_is_not_resolved() {
        let resolver = |named| Resolver(Arc::new(Hops::new(named)));
        let refused = resolver(Vec::new()).resolve("localhost".parse().unwrap()).await;
        assert!(refused.err().unwrap().downcast_ref::<HopError>().is_some());
        let named = vec![Named { host: "localhost".to_owned(), port: 5000, scheme: "https" }];
        let named = resolver(named).resolve("localhost".parse().unwrap()).await;
        assert!(named.is_ok());
    }

    #[test]
    fn a_proxy_is_known_by_its_host_with_or_without_a_scheme() {
        for proxy in ["proxy.corp:3128", "http://Proxy.corp:3128", "https://user:secret@proxy.corp"] {
            assert_eq!(proxy_host(proxy).as_deref(), Some("proxy.corp"), "{proxy}");
        }
    }
}
