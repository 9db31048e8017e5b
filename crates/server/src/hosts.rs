//! Under which names this server answers.
//!
//! A page of `evil.example` may have that name resolve to 127.0.0.1 a moment after it was loaded (DNS rebinding). To the browser the
//! page and this server are then one origin, and it lets the page read whatever needs no key. What the page cannot change is the name
//! in its requests. So a request is answered under names that nobody else can give out: the loopback's, an address, the server's
//! domain and those below it, and what the operator allows.
//!
//! A name of none of these need not be an attack: a reverse proxy or a tunnel may pass on a name that the server was never told. Unless the
//! operator has listed names, two things tell such a request from a page's: a secret, which no browser adds by itself (a key, a token, the
//! signature of a link), and the id of a sandbox in the name or the routing headers, which leads to that sandbox and nowhere else.

use std::{fmt, net::IpAddr, str::FromStr};

use http::{HeaderMap, Uri, header};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

/// Longest name of a host (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 253;

/// Names that a server answers to, beside its own.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts {
    /// Allowed as if they were its own.
    pub names: Vec<HostPattern>,
    /// Who may ask under any other name.
    pub others: OtherHosts,
}

/// Who may ask under a name that is neither the server's own nor allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherHosts {
    /// Whoever shows what no page of elsewhere has: a key, a token, a signed URL, or the id of a sandbox.
    #[default]
    Known,
    /// Anybody: other hosts reach this server by names that it cannot know.
    Anybody,
    /// Nobody.
    Nobody,
}

/// A host name, or with `*.` before it all names below it. Without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    name: String,
    below: bool,
}

/// What is no pattern of host names.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is neither a host name nor `*.` and one; ports are left out, and addresses need not be allowed")]
pub struct InvalidHostPattern(String);

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, below) = text.strip_prefix("*.").map_or((text, false), |rest| (rest, true));
        let name = normal(rest).filter(|name| name.parse::<IpAddr>().is_err());
        name.map(|name| Self { name, below }).ok_or_else(|| InvalidHostPattern(text.to_owned()))
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}", if self.below { "*." } else { "" }, self.name)
    }
}

impl HostPattern {
    fn matches(&self, name: &str) -> bool {
        if self.below { is_below(name, &self.name) } else { name == self.name }
    }
}

/// The host that a request names, as it is compared: without port and final dot, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostName {
    /// An address.
    Address(IpAddr),
    /// A name.
    Name(String),
}

impl HostName {
    /// Of a host with or without a port. `None` for what is no host.
    pub(crate) fn read(host: &str) -> Option<Self> {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => {
                let (address, port) = rest.split_once(']')?;
                // Some clients leave the zone of a link-local address in.
                let address = address.split_once('%').map_or(address, |(address, _)| address);
                (Self::Address(IpAddr::V6(address.parse().ok()?)), port)
            }
            None => {
                let end = host.find(':').unwrap_or(host.len());
                let name = normal(&host[..end])?;
                // Only the form with four numbers: browsers write the others this way.
                (name.parse().map_or(Self::Name(name), |address| Self::Address(IpAddr::V4(address))), &host[end..])
            }
        };
        let is_port = port.strip_prefix(':').unwrap_or(port).bytes().all(|byte| byte.is_ascii_digit());
        Some(name).filter(|_| is_port && (port.is_empty() || port.starts_with(':')))
    }
}

/// Which names are this server's, and what of the others.
#[derive(Debug)]
pub(crate) struct Hosts {
    names: Vec<HostPattern>,
    pub(crate) others: OtherHosts,
}

/// What a request says of the host that it is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    /// One of ours, or none, as only programs do.
    Ours,
    /// Another one.
    Foreign(String),
}

/// A request whose host is not to be made out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidHost {
    #[error("header `Host` is there more than once")]
    Repeated,
    #[error("the host of this request is not a host name or an address, with or without a port")]
    Malformed,
}

impl Hosts {
    pub(crate) fn new(allowed: AllowedHosts, domain: Option<&str>) -> Self {
        let AllowedHosts { mut names, others } = allowed;
        if let Some(HostName::Name(domain)) = domain.and_then(HostName::read) {
            names.push(HostPattern { name: domain.clone(), below: false });
            names.push(HostPattern { name: domain, below: true });
        }
        Self { names, others }
    }

    /// Looks at every place where a request names its host: of two that differ, each must be ours.
    pub(crate) fn named(&self, uri: &Uri, headers: &HeaderMap) -> Result<Named, InvalidHost> {
        let mut values = headers.get_all(header::HOST).iter();
        let value = values.next().map(|value| value.to_str().map_err(|_| InvalidHost::Malformed)).transpose()?;
        if values.next().is_some() {
            return Err(InvalidHost::Repeated);
        }
        for host in uri.authority().map(|authority| authority.as_str()).into_iter().chain(value) {
            match HostName::read(host).ok_or(InvalidHost::Malformed)? {
                HostName::Name(name) if !self.is_ours(&name) => return Ok(Named::Foreign(name)),
                // A page of an address came from that address.
                HostName::Name(_) | HostName::Address(_) => {}
            }
        }
        Ok(Named::Ours)
    }

    fn is_ours(&self, name: &str) -> bool {
        // No name server gives out `localhost`, nor names below it (RFC 6761, 6.3).
        name == "localhost" || is_below(name, "localhost") || self.names.iter().any(|pattern| pattern.matches(name))
    }
}

fn is_below(name: &str, above: &str) -> bool {
    name.strip_suffix(above).is_some_and(|label| label.len() > 1 && label.ends_with('.'))
}

/// A host name in lower case and without its final dot. `None` for what is none.
fn normal(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let good = name.len() <= MAX_NAME_BYTES && name.split('.').all(label);
    good.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(names: &[&str]) -> Hosts {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        Hosts::new(AllowedHosts { names, others: OtherHosts::Known }, Some("Boxes.test:8443"))
    }

    fn named(uri: &str, headers: &[&str]) -> String {
        let values = headers.iter().map(|value| (header::HOST, value.parse().unwrap())).collect();
        match hosts(&["build.example", "*.tunnel.example"]).named(&uri.parse().unwrap(), &values) {
            Ok(Named::Ours) => "ours".to_owned(),
            Ok(Named::Foreign(name)) => name,
            Err(InvalidHost::Repeated) => "repeated".to_owned(),
            Err(InvalidHost::Malformed) => "malformed".to_owned(),
        }
    }

    #[test]
    fn our_names_are_those_that_nobody_else_gives_out() {
        for host in [
            "localhost",
            "LocalHost.:3000",
            "firkin.localhost:3443",
            "127.0.0.1:3000",
            "127.0.0.1.",
            "0.0.0.0",
            "192.0.2.1:80",
            "[::1]:3000",
            "[::FFFF:127.0.0.1]",
            "[fe80::1%25eth0]:3000",
            "boxes.test",
            "BOXES.test.:8443",
            "api.boxes.test",
            "3000-iabc.boxes.test:8443",
            "build.example:1",
            "a.b.tunnel.example",
            "localhost:",
        ] {
            assert_eq!(named("/", &[host]), "ours", "{host}");
        }
        for (host, name) in [
            ("evil.example:3000", "evil.example"),
            ("EVIL.example.", "evil.example"),
            ("localhost.evil.example", "localhost.evil.example"),
            ("127.0.0.1.evil.example", "127.0.0.1.evil.example"),
            ("notlocalhost", "notlocalhost"),
            ("evilboxes.test", "evilboxes.test"),
            ("boxes.test.evil.example", "boxes.test.evil.example"),
            ("tunnel.example", "tunnel.example"),
            ("a.build.example", "a.build.example"),
            ("2130706433", "2130706433"),
        ] {
            assert_eq!(named("/", &[host]), name, "{host}");
        }
    }

    #[test]
    fn what_is_no_host_is_malformed() {
        let long = "a".repeat(MAX_NAME_BYTES + 1);
        for host in [
            "",
            ".",
            "..",
            "a..b",
            "user@localhost",
            "localhost:x",
            "localhost:1:2",
            "::1",
            "[::1",
            "[::1]x",
            "[localhost]",
            "a b",
            "*.a",
            &long,
        ] {
            assert_eq!(named("/", &[host]), "malformed", "{host}");
        }
    }

    #[test]
    fn a_request_that_names_two_hosts_is_ours_only_if_both_are() {
        assert_eq!(named("/", &[]), "ours");
        assert_eq!(named("/", &["localhost", "localhost"]), "repeated");
        assert_eq!(named("http://localhost:1/", &[]), "ours");
        assert_eq!(named("http://evil.example/", &["localhost"]), "evil.example");
        assert_eq!(named("http://localhost/", &["evil.example"]), "evil.example");
        assert_eq!(named("http://user@localhost/", &[]), "malformed");
    }

    #[test]
    fn patterns_are_names() {
        for (text, shown) in [("A.Example.", "a.example"), ("*.a", "*.a"), ("my_host", "my_host")] {
            assert_eq!(text.parse::<HostPattern>().unwrap().to_string(), shown);
        }
        for text in ["", "*", "*.", "a:80", "http://a", "*a.example", "a.*.b", "127.0.0.1", "::1", "a b"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }
}
