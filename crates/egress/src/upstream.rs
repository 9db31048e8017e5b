//! Resolvers out there, asked over UDP and TCP.
//!
//! Names are asked for as they are: no search list is put behind them and no file of hosts is read, or a name that is allowed would
//! become one that is not.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
};

use crate::{
    name::HostName,
    resolve::{Found, Resolve, ResolveError},
};

/// How long one server is waited for. Two attempts end before clients ask again.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1500);
/// Attempts after the first.
const RETRIES: usize = 1;
/// Answers that are kept. Some KiB each at most.
const CACHED: u64 = 1024;
/// For how long an answer is kept at least: each connection looks its name up, and servers of changing addresses give them a
/// second or none.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// And at most, whatever it says.
const MAX_LIFETIME: Duration = Duration::from_secs(300);
/// Likewise, that there is nothing.
const MAX_ABSENCE: Duration = Duration::from_secs(10);

/// Asks other resolvers, and remembers what they said.
#[derive(Debug)]
pub struct Upstream(TokioResolver);

/// Why there can be no such resolver.
#[derive(Debug, thiserror::Error)]
#[error("cannot set a resolver up")]
pub struct UpstreamError(#[source] NetError);

impl Upstream {
    /// Asks these servers; with none, no name has an address. Must be called inside a tokio runtime.
    pub fn new(servers: &[SocketAddrV4]) -> Result<Self, UpstreamError> {
        let server = |address: &SocketAddrV4| {
            let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
            for connection in &mut connections {
                connection.port = address.port();
            }
            NameServerConfig::new(IpAddr::V4(*address.ip()), true, connections)
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
        let mut options = ResolverOpts::default();
        options.timeout = SERVER_TIMEOUT;
        options.attempts = RETRIES;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = CACHED;
        options.positive_min_ttl = Some(MIN_LIFETIME);
        options.positive_max_ttl = Some(MAX_LIFETIME);
        options.negative_max_ttl = Some(MAX_ABSENCE);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(options);
        Ok(Self(resolver.build().map_err(UpstreamError)?))
    }
}

#[async_trait]
impl Resolve for Upstream {
    async fn resolve(&self, name: &HostName) -> Result<Found, ResolveError> {
        let failed = |error: NetError| match error {
            error if error.is_nx_domain() => ResolveError::NoName,
            error if error.is_no_records_found() => ResolveError::NoAddress,
            error => ResolveError::Failed(Some(error.into())),
        };
        // With its final dot a name is whole.
        let name = Name::from_ascii(format!("{name}.")).map_err(|error| ResolveError::Failed(Some(error.into())))?;
        let lookup = self.0.lookup(name, RecordType::A).await.map_err(failed)?;
        let address = |data: &RData| match data {
            RData::A(address) => Some(Ipv4Addr::from(*address)),
            _ => None,
        };
        let addresses = lookup.answers().iter().filter_map(|record| address(&record.data)).collect();
        Ok(Found { addresses, lifetime: lookup.valid_until().saturating_duration_since(Instant::now()) })
    }
}
