//! What leaves a sandbox: the proxy that it goes through, what is put into its requests, and what was decided of it.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A SOCKS5 proxy for outbound TCP. Its password is never answered.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxy {
    /// `host:port`.
    pub address: String,
    /// Who is spoken for there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// What proves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// Whether and how TLS is spoken with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<EgressProxyTls>,
}

/// TLS with a proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxyTls {
    /// Whether there is any.
    pub enabled: bool,
    /// The name in its certificate, if that is not the one in its address.
    #[serde(rename = "serverName", default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// PEM of the authority that it is believed of.
    #[serde(rename = "caCert", default, skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<String>,
}

/// Without its password, which is in no log, nor its address, in which people write passwords.
impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy").field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// One decision on what a sandbox tried to reach. Ours: the contract has no such thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDecision {
    /// When it was made.
    pub timestamp: Timestamp,
    /// What was tried.
    pub kind: NetworkAttempt,
    /// The name that was asked for or connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address that was connected to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// And the port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// `allowed`, or a word for why not.
    pub outcome: String,
    /// By what it was allowed, or why not.
    pub reason: String,
}

/// What a sandbox tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkAttempt {
    /// A question to a resolver.
    Dns,
    /// A connection of TCP.
    Tcp,
}

/// What happens to requests to a domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRule {
    /// How they are changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transform: Option<NetworkTransform>,
}

/// How requests are changed. Texts may have places for values: `${e2b.secrets.NAME}`, `${e2b.identity.tokens.NAME}`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkTransform {
    /// Headers that are put in, in the place of the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// Names of secrets whose placeholder is replaced wherever the client sends it in a header. Ours: the contract has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placeholders: Option<Vec<String>>,
}

/// Without the texts: people write values into them.
impl fmt::Debug for NetworkTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.headers.as_ref().map(|headers| headers.keys().collect::<Vec<_>>());
        f.debug_struct("NetworkTransform").field("headers", &names).finish_non_exhaustive()
    }
}

/// By what a sandbox can be known to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iam {
    /// Tokens by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<BTreeMap<String, IamToken>>,
}

/// One kind of token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IamToken {
    /// Who is to believe it.
    pub audience: String,
    /// Its form: `JWT-SVID`.
    #[serde(rename = "tokenType")]
    pub token_type: String,
}
