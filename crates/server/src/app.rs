//! What all routes share.

use std::{io, sync::Arc};

use firkin_runtime::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    ServerConfig,
    audit::Audit,
    extract::Ignored,
    hosts::Hosts,
    idempotency::Keys,
    latency::Latency,
    metrics::KINDS,
    proxy::{misses::Misses, pool::ConnectionPool},
    requests::Requests,
    routes::events::Streams,
    ui::{notebooks::Notebooks, session::Sessions, terminal::MAX_TERMINALS},
};

/// Signed URLs whose signers are looked for on other nodes at once: each is a request to each of them, by whoever wants one.
const MAX_SEARCHES: usize = 256;

/// State that all routes share.
#[derive(Debug)]
pub(crate) struct App {
    /// For the host itself. Behind a name of its own, so that whoever answers a client has to say that the client's team is not asked.
    host: Runtime,
    pub(crate) config: ServerConfig,
    pub(crate) hosts: Hosts,
    pub(crate) pool: Arc<ConnectionPool>,
    pub(crate) idempotency: Keys,
    pub(crate) latency: Latency,
    pub(crate) misses: Misses,
    /// Places for looking on other nodes for who signed a URL.
    pub(crate) searches: Semaphore,
    pub(crate) requests: Requests,
    /// Cells that ran in pages.
    pub(crate) notebooks: Notebooks,
    /// Open event streams.
    pub(crate) streams: Streams,
    /// Cancelled when the server ends: answers without an end of their own end then.
    pub(crate) closing: CancellationToken,
    /// Who has signed in to the dashboard.
    pub(crate) sessions: Sessions,
    /// Places for terminals in pages.
    pub(crate) terminals: Arc<Semaphore>,
    /// Where requests that may change something are written down.
    pub(crate) audit: Option<Audit>,
    /// Whether this server is meant for other hosts: it has a name that they resolve, or speaks TLS.
    pub(crate) is_for_others: bool,
}

impl App {
    pub(crate) fn new(runtime: Runtime, config: ServerConfig, tls: bool) -> io::Result<Arc<Self>> {
        let audit = config.audit.as_deref().map(Audit::open).transpose()?;
        let is_for_others = tls || config.domain.as_deref().is_some_and(|domain| !is_local(domain));
        let pool = ConnectionPool::new(Arc::new(runtime.clone()));
        runtime.metrics().expect_errors(&KINDS);
        let latency = Latency::new(Arc::clone(runtime.metrics()), config.traces.clone());
        let hosts = Hosts::new(config.allowed_hosts.clone(), config.domain.as_deref());
        Ok(Arc::new(Self {
            host: runtime,
            config,
            hosts,
            pool,
            idempotency: Keys::default(),
            latency,
            misses: Misses::default(),
            searches: Semaphore::new(MAX_SEARCHES),
            requests: Requests::default(),
            notebooks: Notebooks::default(),
            streams: Streams::default(),
            closing: CancellationToken::new(),
            sessions: Sessions::default(),
            terminals: Arc::new(Semaphore::new(MAX_TERMINALS)),
            audit,
            is_for_others,
        }))
    }

    /// The runtime of the host itself, which sees everything: for what is of no team, and for what is guarded by a secret of its own. A
    /// route that answers for a team has a [`Caller`](crate::auth::Caller), whose runtime sees that team's and nothing else.
    pub(crate) fn host(&self) -> &Runtime {
        &self.host
    }

    /// Counts fields that a client sent in vain, and names them in the log.
    pub(crate) fn count_unknown(&self, fields: &Ignored) {
        if fields.count > 0 {
            let total = self.host.metrics().count_unknown_fields(fields.count);
            tracing::debug!(fields = ?fields.first, count = fields.count, total, "unknown fields ignored");
        }
    }
}

/// Whether a domain, with or without a port, is one that every host has for itself.
fn is_local(domain: &str) -> bool {
    let name = domain.split(':').next().unwrap_or(domain).trim_end_matches('.');
    name.rsplit('.').next().is_some_and(|top| top.eq_ignore_ascii_case("localhost"))
}
