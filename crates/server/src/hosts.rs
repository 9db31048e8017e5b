//! The host that a request names, read for what it is: any part of it may be a stranger's.

use std::net::IpAddr;

/// Longest name of a host (RFC 1035, 2.3.4).
const MAX_NAME_BYTES: usize = 253;

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

/// A host name in lower case and without its final dot. `None` for what is none.
fn normal(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let label =
        |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let good = name.len() <= MAX_NAME_BYTES && name.split('.').all(label);
    good.then(|| name.to_ascii_lowercase())
}
