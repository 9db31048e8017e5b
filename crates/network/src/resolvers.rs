//! Which DNS resolvers guests are told.
//!
//! The host's own, so that a guest resolves what its host resolves: the IPv4 `nameserver` lines of `/etc/resolv.conf`; when those
//! are all on loopback (a local stub), the servers that systemd-resolved asks, from `/run/systemd/resolve/resolv.conf`. Resolvers
//! that a guest could not reach are left out: addresses of the host itself, and link-local ones (clouds serve metadata from
//! there). When nothing is left, public resolvers stand in. The operator may name others (`NetworkConfig::resolvers`).

use std::{collections::BTreeSet, io, net::Ipv4Addr};

/// Asked when the host names none that a guest can reach: Cloudflare's and Google's.
const FALLBACK: [Ipv4Addr; 2] = [Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
/// More are ignored by the C library (`MAXNS` in resolv.h).
const MAX_RESOLVERS: usize = 3;
/// Where to look, in order.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host's resolvers, for guests; `own` are the host's addresses.
pub(super) fn of_host(own: &BTreeSet<Ipv4Addr>) -> io::Result<Vec<Ipv4Addr>> {
    for file in FILES {
        let text = match fs_err::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let usable = usable(&text, own);
        if !usable.is_empty() {
            return Ok(usable);
        }
    }
    Ok(FALLBACK.to_vec())
}

fn usable(text: &str, own: &BTreeSet<Ipv4Addr>) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<Ipv4Addr>().ok())?
    });
    let reachable = servers.filter(|ip| !ip.is_loopback() && !ip.is_link_local() && !ip.is_unspecified() && !own.contains(ip));
    reachable.take(MAX_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_resolvers_that_a_guest_can_reach_are_named() {
        let own = BTreeSet::from([Ipv4Addr::new(192, 168, 1, 2)]);
        let ip = |last| Ipv4Addr::new(10, 0, 0, last);
        for (text, expected) in [
            ("nameserver 127.0.0.53\noptions edns0\n", vec![]),
            ("# nameserver 10.0.0.9\n nameserver\t10.0.0.1 # comment\nnameserver fd00::1\n", vec![ip(1)]),
            (
                "nameserver 169.254.169.254\nnameserver 192.168.1.2\nnameserver 0.0.0.0\nnameserver\nnameserver 10.0.0.2",
                vec![ip(2)],
            ),
            ("nameserver 10.0.0.1\nnameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n", vec![ip(1), ip(2), ip(3)]),
        ] {
            assert_eq!(usable(text, &own), expected, "{text}");
        }
    }
}
