//! Network options: what of E2B's rules becomes which access, and what is refused because it could not be kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use axum::Json as Reply;
use firkin_network::{EgressFilter, MAX_RULES};
use firkin_runtime::sandbox::{Filled, Ingress, InternetAccess, SocksProxy, SocksProxyTls, Steered};
use firkin_wire::{ENVD_PORT, rest};
use http::{StatusCode, uri::Authority};
use ipnet::{IpNet, Ipv4Net};

use crate::{
    auth::Caller,
    error::ApiError,
    extract::{Json, Sandbox},
    shape,
};

/// Entries of `dnsServers`, by contract.
const MAX_DNS_SERVERS: usize = 10;

/// Placeholders of one host: as many as headers, by contract.
const MAX_PLACEHOLDERS: usize = 20;

/// What E2B says of names where nothing is denied.
const NAMES_NEED_DENIAL: &str =
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out to block all other traffic.";

/// Every destination, in the notation of `denyOut`.
const ALL_TRAFFIC: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::UNSPECIFIED, 0);

/// `PUT /sandboxes/{id}/network`: replaces the outbound rules; what is left out is cleared.
pub(super) async fn update(
    caller: Caller,
    Sandbox(id): Sandbox,
    body: Json<rest::UpdateNetwork>,
) -> Result<StatusCode, ApiError> {
    let (allow_internet, network) = body.value.split();
    if network.allow_public_traffic.is_some() || network.mask_request_host.is_some() || network.https_ports.is_some() {
        return Err(ApiError::bad_request("only the outbound rules of a sandbox can be changed after it was created"));
    }
    let access = internet(allow_internet, &network)?;
    caller.runtime.set_internet(&id, access, dns_servers(&network)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /sandboxes/{id}/network/audit`: what was decided last, the oldest first.
pub(super) async fn audit(caller: Caller, Sandbox(id): Sandbox) -> Result<Reply<Vec<rest::NetworkDecision>>, ApiError> {
    let decisions = caller.runtime.outbound_decisions(&id).await?;
    Ok(Reply(decisions.into_iter().map(shape::network_decision).collect()))
}

/// The outbound access that the rules describe.
pub(super) fn internet(allow_internet: Option<bool>, rules: &rest::NetworkConfig) -> Result<InternetAccess, ApiError> {
    let mut deny = denied(rules.deny_out.as_deref().unwrap_or_default())?;
    if allow_internet == Some(false) {
        deny.push(ALL_TRAFFIC);
    }
    let texts = rules.allow_out.as_deref().unwrap_or_default();
    let proxy = rules.egress_proxy.as_ref().map(socks_proxy);
    for (count, name) in [(texts.len(), "allowOut"), (deny.len(), "denyOut")] {
        if count > MAX_RULES {
            return Err(ApiError::bad_request(format!("`network.{name}` has {count} entries, the limit is {MAX_RULES}")));
        }
    }
    let (allow, has_names) = allowed(texts, deny.contains(&ALL_TRAFFIC))?;
    let filled = filled(rules.rules.as_ref())?;
    if has_names || proxy.is_some() || !filled.is_empty() {
        let (allow, deny) = (texts.to_vec(), deny.iter().map(shape::destination).collect());
        // Of no effect where rules have no names.
        let resolvers = if has_names { dns_servers(rules)? } else { None };
        return Ok(InternetAccess::Steered(Box::new(Steered { allow, deny, resolvers, proxy, filled, ..Default::default() })));
    }
    Ok(match (allow.is_empty(), deny.is_empty()) {
        (_, true) => InternetAccess::Allowed,
        // No way out at all is stronger than a rule.
        (true, false) if deny.contains(&ALL_TRAFFIC) => InternetAccess::Denied,
        _ => InternetAccess::Filtered(EgressFilter { allow, deny }),
    })
}

/// A proxy as it was asked for. Whether there can be such a one, the runtime says.
fn socks_proxy(proxy: &rest::EgressProxy) -> SocksProxy {
    let credentials = match (&proxy.username, &proxy.password) {
        (None, None) => None,
        (name, password) => Some((name.clone().unwrap_or_default(), password.clone().unwrap_or_default())),
    };
    let tls = proxy.tls.as_ref().filter(|tls| tls.enabled);
    let tls = tls.map(|tls| SocksProxyTls { server_name: tls.server_name.clone(), authorities: tls.ca_cert.clone() });
    SocksProxy { address: proxy.address.clone(), credentials, tls }
}

/// The rules for traffic to the sandbox.
pub(super) fn ingress(rules: &rest::NetworkConfig, secure: bool) -> Result<Ingress, ApiError> {
    let private = rules.allow_public_traffic == Some(false);
    if private && !secure {
        return Err(ApiError::bad_request("`network.allowPublicTraffic: false` needs a secure sandbox"));
    }
    if let Some(mask) = &rules.mask_request_host {
        // Any port will do to see whether a host name comes out.
        let host = mask.replace("${PORT}", "1").parse::<Authority>();
        if mask.is_empty() || mask.contains('@') || host.is_err() {
            return Err(ApiError::bad_request(format!("`network.maskRequestHost` is not a host: `{mask}`")));
        }
    }
    let https_ports: BTreeSet<u16> = rules.https_ports.iter().flatten().copied().collect();
    if let Some(port) = https_ports.iter().find(|&&port| port == ENVD_PORT || port == 0) {
        return Err(ApiError::bad_request(format!("`network.httpsPorts` cannot have {port}")));
    }
    Ok(Ingress { private, mask_host: rules.mask_request_host.clone(), https_ports })
}

/// Resolvers for names in the outbound rules.
pub(super) fn dns_servers(rules: &rest::NetworkConfig) -> Result<Option<Vec<Ipv4Addr>>, ApiError> {
    let Some(texts) = &rules.dns_servers else { return Ok(None) };
    if texts.len() > MAX_DNS_SERVERS {
        return Err(ApiError::bad_request(format!(
            "`network.dnsServers` has {} entries, the limit is {MAX_DNS_SERVERS}",
            texts.len()
        )));
    }
    let address = |text: &String| {
        text.parse().map_err(|_| ApiError::bad_request(format!("`network.dnsServers` takes IPv4 addresses, not `{text}`")))
    };
    texts.iter().map(address).collect::<Result<_, _>>().map(Some)
}

/// What is put into requests. Whether it can be, the runtime says.
fn filled(rules: Option<&BTreeMap<String, Vec<rest::NetworkRule>>>) -> Result<Vec<Filled>, ApiError> {
    let mut filled = Vec::new();
    for (host, rules) in rules.into_iter().flatten() {
        if rules.len() > 1 {
            return Err(ApiError::bad_request(format!(
                "`network.rules` has {} transforms of `{host}`, the limit is 1",
                rules.len()
            )));
        }
        let Some(transform) = rules.first().and_then(|rule| rule.transform.clone()) else { continue };
        let (headers, placeholders) = (transform.headers.unwrap_or_default(), transform.placeholders.unwrap_or_default());
        if placeholders.len() > MAX_PLACEHOLDERS {
            let count = placeholders.len();
            return Err(ApiError::bad_request(format!(
                "`network.rules` has {count} placeholders of `{host}`, the limit is {MAX_PLACEHOLDERS}"
            )));
        }
        filled.push(Filled { host: host.clone(), headers: headers.into_iter().collect(), placeholders });
    }
    Ok(filled)
}

/// An address or a network.
fn parse(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from))
}

fn denied(texts: &[String]) -> Result<Vec<Ipv4Net>, ApiError> {
    let nets = texts.iter().map(|text| match parse(text) {
        Some(IpNet::V4(net)) => Ok(Some(net.trunc())),
        // Guests have no IPv6: it is denied whether or not someone says so.
        Some(IpNet::V6(_)) => Ok(None),
        None => Err(ApiError::bad_request(format!("invalid denied CIDR {text}"))),
    });
    nets.filter_map(Result::transpose).collect()
}

/// The networks among them, and whether there are names too.
fn allowed(texts: &[String], all_denied: bool) -> Result<(Vec<Ipv4Net>, bool), ApiError> {
    let mut nets = Vec::new();
    for text in texts {
        match parse(text) {
            Some(IpNet::V4(net)) => nets.push(net.trunc()),
            Some(IpNet::V6(_)) => {
                return Err(ApiError::bad_request(format!("`network.allowOut`: sandboxes have no IPv6, so no `{text}`")));
            }
            None if !all_denied => return Err(ApiError::bad_request(NAMES_NEED_DENIAL)),
            None => {}
        }
    }
    let has_names = nets.len() < texts.len();
    Ok((nets, has_names))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: &str) -> Result<InternetAccess, ApiError> {
        let (allow_internet, rules) = serde_json::from_str::<rest::UpdateNetwork>(body).unwrap().split();
        internet(allow_internet, &rules)
    }

    fn filtered(allow: &[&str], deny: &[&str]) -> InternetAccess {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        InternetAccess::Filtered(EgressFilter { allow: nets(allow), deny: nets(deny) })
    }

    #[test]
    fn rules_become_the_access_they_describe() {
        let table = [
            ("{}", InternetAccess::Allowed),
            (r#"{"allow_internet_access":true,"allowOut":[],"denyOut":[]}"#, InternetAccess::Allowed),
            (r#"{"allowOut":["1.1.1.1"]}"#, InternetAccess::Allowed),
            (r#"{"denyOut":["::/0"]}"#, InternetAccess::Allowed),
            (r#"{"denyOut":["0.0.0.0/0"]}"#, InternetAccess::Denied),
            (r#"{"denyOut":["0.0.0.0/0","8.8.8.8"]}"#, InternetAccess::Denied),
            (r#"{"allow_internet_access":false}"#, InternetAccess::Denied),
            (r#"{"denyOut":["8.8.8.8","10.1.2.3/8"]}"#, filtered(&[], &["8.8.8.8/32", "10.0.0.0/8"])),
            (r#"{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}"#, filtered(&["1.1.1.1/32"], &["0.0.0.0/0"])),
            (r#"{"allowOut":["1.1.1.0/24"],"allow_internet_access":false}"#, filtered(&["1.1.1.0/24"], &["0.0.0.0/0"])),
        ];
        for (body, expected) in table {
            assert_eq!(parsed(body).unwrap(), expected, "{body}");
        }
    }

    #[test]
    fn names_and_proxies_are_steered() {
        let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        let steered = |body: &str| match parsed(body).unwrap() {
            InternetAccess::Steered(steered) => *steered,
            other => panic!("{body}: {other:?}"),
        };
        let named = Steered { allow: texts(&["*.x.com", "1.1.1.1"]), deny: texts(&["0.0.0.0/0"]), ..Steered::default() };
        assert_eq!(steered(r#"{"allowOut":["*.x.com","1.1.1.1"],"denyOut":["0.0.0.0/0"]}"#), named);
        assert_eq!(steered(r#"{"allowOut":["*.x.com","1.1.1.1"],"allow_internet_access":false}"#), named);
        let resolvers = r#"{"allowOut":["x.com"],"denyOut":["0.0.0.0/0"],"dnsServers":[]}"#;
        assert_eq!(steered(resolvers).resolvers, Some(Vec::new()));

        let proxy = |body: &str| steered(&format!(r#"{{"egressProxy":{body},"dnsServers":["1.1.1.1"]}}"#));
        let plain = SocksProxy { address: "p:1".into(), credentials: None, tls: None };
        let through = |proxy| Steered { proxy: Some(proxy), ..Steered::default() };
        assert_eq!(proxy(r#"{"address":"p:1","tls":null}"#), through(plain.clone()));
        assert_eq!(proxy(r#"{"address":"p:1","tls":{"enabled":false,"serverName":"q"}}"#), through(plain.clone()));
        let (credentials, tls) =
            (Some(("u".into(), "s".into())), SocksProxyTls { server_name: Some("q".into()), authorities: None });
        let body = r#"{"address":"p:1","username":"u","password":"s","tls":{"enabled":true,"serverName":"q"}}"#;
        assert_eq!(proxy(body), through(SocksProxy { credentials, tls: Some(tls), ..plain }));
    }

    #[test]
    fn what_is_put_into_requests_is_steered() {
        let body =
            r#"{"rules":{"a.com":[{"transform":{"headers":{"X-A":"${e2b.secrets.k}"},"placeholders":["p"]}}],"b.com":[]}}"#;
        let (headers, placeholders) = (vec![("X-A".to_owned(), "${e2b.secrets.k}".to_owned())], vec!["p".to_owned()]);
        let filled = vec![Filled { host: "a.com".into(), headers, placeholders }];
        assert_eq!(parsed(body).unwrap(), InternetAccess::Steered(Box::new(Steered { filled, ..Steered::default() })));
        let denied = r#"{"denyOut":["0.0.0.0/0"],"rules":{"a.com":[{"transform":null}]}}"#;
        assert_eq!(parsed(denied).unwrap(), InternetAccess::Denied, "a rule that does nothing opens nothing");
    }

    #[test]
    fn what_cannot_be_kept_is_refused_and_named() {
        let many = format!(r#"{{"denyOut":{:?}}}"#, vec!["8.8.8.8"; MAX_RULES + 1]);
        let table = [
            (r#"{"denyOut":["x.com"]}"#, "invalid denied CIDR x.com"),
            (r#"{"denyOut":["8.8.8.8/33"]}"#, "invalid denied CIDR"),
            (r#"{"allowOut":["x.com"]}"#, "ALL_TRAFFIC"),
            (r#"{"allowOut":["2606:4700::1"],"denyOut":["0.0.0.0/0"]}"#, "IPv6"),
            (r#"{"rules":{"a.com":[{},{}]}}"#, "rules"),
            (many.as_str(), "limit"),
        ];
        for (body, named) in table {
            let error = parsed(body).unwrap_err().to_body();
            assert_eq!(error.code, 400, "{body}");
            assert!(error.message.contains(named), "{body}: {}", error.message);
        }
    }

    #[test]
    fn resolvers_are_a_few_addresses() {
        let parsed = |texts: &[&str]| {
            let texts = Some(texts.iter().map(|text| (*text).to_owned()).collect());
            dns_servers(&rest::NetworkConfig { dns_servers: texts, ..Default::default() })
        };
        assert_eq!(dns_servers(&rest::NetworkConfig::default()).unwrap(), None);
        assert_eq!(parsed(&[]).unwrap(), Some(vec![]));
        assert_eq!(parsed(&["1.1.1.1"]).unwrap(), Some(vec![Ipv4Addr::new(1, 1, 1, 1)]));
        for bad in [vec!["dns.example"], vec!["2606:4700::1111"], vec!["1.1.1.1"; MAX_DNS_SERVERS + 1]] {
            assert_eq!(parsed(&bad).unwrap_err().to_body().code, 400, "{bad:?}");
        }
    }

    #[test]
    fn a_mask_must_be_a_host_and_privacy_needs_a_token() {
        let rules = |mask: &str| rest::NetworkConfig { mask_request_host: Some(mask.into()), ..Default::default() };
        for (mask, good) in [
            ("custom.example.com", true),
            ("custom.example.com:${PORT}", true),
            ("${PORT}-x.example.com", true),
            ("localhost:80", true),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("user@host", false),
            ("a\r\nb: c", false),
        ] {
            assert_eq!(ingress(&rules(mask), true).is_ok(), good, "{mask:?}");
        }
        let ports = |ports: &[u16]| rest::NetworkConfig { https_ports: Some(ports.to_vec()), ..Default::default() };
        assert_eq!(ingress(&ports(&[3000, 8443, 3000]), true).unwrap().https_ports, [3000, 8443].into());
        assert!(ingress(&ports(&[3000, ENVD_PORT]), true).is_err());
        assert!(ingress(&ports(&[0]), true).is_err());
        let private = rest::NetworkConfig { allow_public_traffic: Some(false), ..Default::default() };
        assert!(ingress(&private, true).unwrap().private);
        assert!(ingress(&private, false).is_err());
    }
}
