//! State of envd about the sandbox it runs in, and how a restore replaces it.
//!
//! Settings are swapped whole: a request reads one consistent set. Each restore also begins a new *era*: connections of an
//! earlier era lead to clients of another life of this memory, so they are cut, or a dead client would hold back a command's
//! output for as long as TCP tries.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio_util::sync::CancellationToken;

/// The host's settings for this sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings {
    /// Token demanded in `X-Access-Token`; none: envd is open.
    pub(crate) access_token: Option<String>,
    /// User of requests that name none.
    pub(crate) default_user: Option<String>,
    /// Working directory of commands that name none.
    pub(crate) default_workdir: Option<String>,
    /// Environment of every command, `E2B_*` included.
    pub(crate) env: BTreeMap<String, String>,
}

impl Settings {
    /// User of requests that name none: [`DEFAULT_USER`](firkin_wire::DEFAULT_USER), unless the host said otherwise.
    pub(crate) fn default_user(&self) -> &str {
        self.default_user.as_deref().unwrap_or(firkin_wire::DEFAULT_USER)
    }
}

/// Text is UTF-8 where neither image nor user says otherwise: without it programs take each letter beyond ASCII for several.
const LOCALE: &str = "C.UTF-8";

/// The environment of a sandbox: what its creator gave, and the names by which programs know where they are.
pub(crate) fn sandbox_env(sandbox_id: &str, template_id: &str, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut env = BTreeMap::from([
        ("E2B_SANDBOX".to_owned(), "true".to_owned()),
        ("E2B_SANDBOX_ID".to_owned(), sandbox_id.to_owned()),
        ("E2B_TEMPLATE_ID".to_owned(), template_id.to_owned()),
    ]);
    env.extend(given.iter().map(|(key, value)| (key.clone(), value.clone())));
    // `LC_ALL` wins over `LANG`, and `LC_CTYPE` would too: whoever sets one of them has chosen.
    if !["LANG", "LC_ALL", "LC_CTYPE"].iter().any(|name| env.contains_key(*name)) {
        env.insert("LANG".to_owned(), LOCALE.to_owned());
    }
    env
}

/// Shared by envd's handlers and the control channel.
#[derive(Debug, Clone, Default)]
pub(crate) struct EnvdState(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    settings: RwLock<Arc<Settings>>,
    era: RwLock<CancellationToken>,
    serving: AtomicBool,
}

impl EnvdState {
    /// The settings in force.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.0.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts settings in force for every request that begins from now on.
    pub(crate) fn set(&self, settings: Settings) {
        *self.0.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// Cancelled when a restore has made the connections of this era meaningless.
    pub(crate) fn era(&self) -> CancellationToken {
        self.0.era.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Begins a new era and cuts the connections of the last.
    pub(crate) fn begin_era(&self) {
        let mut era = self.0.era.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *era).cancel();
    }

    /// Whether envd accepts connections.
    pub(crate) fn is_serving(&self) -> bool {
        self.0.serving.load(Ordering::Acquire)
    }

    /// Says that envd accepts connections.
    pub(crate) fn set_serving(&self) {
        self.0.serving.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_utf8_unless_somebody_has_chosen() {
        let env = |given: &[(&str, &str)]| {
            let given = given.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
            sandbox_env("i", "t", &given).get("LANG").cloned()
        };
        assert_eq!(env(&[]).as_deref(), Some("C.UTF-8"));
        assert_eq!(env(&[("LANG", "de_DE.UTF-8")]).as_deref(), Some("de_DE.UTF-8"));
        assert_eq!(env(&[("LC_ALL", "C")]), None);
        assert_eq!(env(&[("LC_CTYPE", "C")]), None);
    }
}
