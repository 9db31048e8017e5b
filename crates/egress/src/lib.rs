//! What leaves a network by name: rules, a resolver that answers allowed names only, and a proxy that connects to them.
//!
//! It knows no sandbox, no namespace and no firewall. Whoever uses it opens the sockets where the clients are, sees to it that
//! nothing passes them by, and says what is reached under no rule (its bounds). It gets a decision with its reason for everything
//! that was tried.
//!
//! Names are the only thing here that clients choose. So all are brought into one form ([`HostName`]) before they are compared, and
//! every connection goes to an address that was found under the allowed name here, and looked at, never to one that the client
//! came with.
//!
//! For one network there are a [`Resolver`] on its sockets, a [`Proxy`] on its listener, and a [`Way`] for both, which can be replaced
//! at any time. What is not TCP is not proxied: whoever filters packets drops it, QUIC included, but for addresses that are
//! allowed as such, or that [`Answers`] names if names are to open them.

mod audit;
mod decision;
mod dial;
mod dns;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod name;
mod policy;
mod proxy;
mod relay;
mod resolve;
mod rule;
mod sniff;
mod socks;
mod terminate;
mod trust;
mod upstream;
mod way;

pub use audit::{Attempt, AttemptKind, Audit, AuditReader, Told};
pub use decision::{Decision, Grant, Refusal};
pub use dial::{Connection, Dial, DialError, Direct};
pub use dns::{Answers, Resolver};
pub use name::{HostName, MAX_NAME_BYTES, NameError};
pub use policy::{Bounds, List, MAX_RULES, Policy, Rules, RulesError, Target};
pub use proxy::{Limits, Origin, Proxy};
pub use resolve::{Found, Resolve, ResolveError};
pub use rule::{Names, Rule, RuleError};
pub use sniff::{Greeting, MAX_GREETING_BYTES, Protocol, Unnamed, greeting};
pub use socks::{Socks, SocksSettings, SocksSettingsError, SocksTls};
pub use terminate::{
    Authority, AuthorityError, MAX_HEADERS, MAX_HOSTS, Reference, Sides, Template, TemplateError, Termination, Transform,
    TransformError, Transforms, ValueError, Values,
};
pub use trust::TrustError;
pub use upstream::{Upstream, UpstreamError};
pub use way::{Way, Ways};
