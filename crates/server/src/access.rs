//! What each route asks of who comes: one table, so that what a key may is read in one place. A route without a row is refused whoever
//! asks, and a test holds the table against the routes.

use axum::extract::{MatchedPath, Request};
use firkin_runtime::store::KeyScope;
use http::Method;

/// What a route asks for before it does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing: what it tells is for everybody.
    Nothing,
    /// A secret of its own, which it looks for itself: a volume's token, a signature, a key borne as a token.
    Own,
    /// A key that lets its holder do this, and sees its own team's only.
    Key(KeyScope),
    /// A key of the host's own team that opens everything, or the admin token.
    Host,
    /// The admin token.
    Admin,
}

use Needs::{Admin, Host, Key, Nothing, Own};

const READ: Needs = Key(KeyScope::Read);
const SANDBOXES: Needs = Key(KeyScope::Sandboxes);
const FULL: Needs = Key(KeyScope::Full);

/// Method and path of every route, as the router knows them.
pub(crate) const TABLE: &[(&str, &str, Needs)] = &[
    ("GET", "/health", Nothing),
    ("GET", "/metrics", Nothing),
    ("GET", "/.well-known/jwks.json", Nothing),
    ("GET", "/.well-known/openid-configuration", Nothing),
    ("GET", "/files", Nothing),
    ("POST", "/files", Nothing),
    ("GET", "/teams", Own),
    ("GET", "/volumecontent/{id}/path", Own),
    ("PATCH", "/volumecontent/{id}/path", Own),
    ("DELETE", "/volumecontent/{id}/path", Own),
    ("GET", "/volumecontent/{id}/dir", Own),
    ("POST", "/volumecontent/{id}/dir", Own),
    ("GET", "/volumecontent/{id}/file", Own),
    ("PUT", "/volumecontent/{id}/file", Own),
    ("PUT", "/templates/{id}/files/{hash}", Own),
    ("POST", "/sandboxes", SANDBOXES),
    ("GET", "/sandboxes", READ),
    ("POST", "/v2/sandboxes", SANDBOXES),
    ("GET", "/v2/sandboxes", READ),
    ("GET", "/sandboxes/metrics", READ),
    ("GET", "/sandboxes/{id}", READ),
    ("DELETE", "/sandboxes/{id}", SANDBOXES),
    ("GET", "/sandboxes/{id}/metrics", READ),
    ("POST", "/sandboxes/{id}/connect", SANDBOXES),
    ("POST", "/v2/sandboxes/{id}/connect", SANDBOXES),
    ("POST", "/sandboxes/{id}/resume", SANDBOXES),
    ("POST", "/sandboxes/{id}/pause", SANDBOXES),
    ("POST", "/sandboxes/{id}/fork", SANDBOXES),
    ("POST", "/sandboxes/{id}/rollback", SANDBOXES),
    ("POST", "/sandboxes/{id}/timeout", SANDBOXES),
    ("POST", "/sandboxes/{id}/refreshes", SANDBOXES),
    ("PUT", "/sandboxes/{id}/network", SANDBOXES),
    ("GET", "/sandboxes/{id}/network/audit", READ),
    ("POST", "/sandboxes/{id}/snapshots", SANDBOXES),
    ("GET", "/sandboxes/{id}/logs", READ),
    ("GET", "/v2/sandboxes/{id}/logs", READ),
    ("GET", "/snapshots", READ),
    ("GET", "/lineage", READ),
    ("GET", "/teams/{id}/metrics", READ),
    ("GET", "/teams/{id}/metrics/max", READ),
    ("POST", "/encryption/rotate", Host),
    ("GET", "/templates", READ),
    ("POST", "/templates", FULL),
    ("GET", "/v2/templates", READ),
    ("POST", "/v2/templates", FULL),
    ("GET", "/templates/aliases/{alias}", READ),
    ("POST", "/templates/tags", FULL),
    ("DELETE", "/templates/tags", FULL),
    ("GET", "/templates/{id}/tags", READ),
    ("GET", "/templates/{id}", READ),
    ("PATCH", "/templates/{id}", FULL),
    ("POST", "/templates/{id}", FULL),
    ("DELETE", "/templates/{id}", FULL),
    ("GET", "/default-templates", READ),
    ("GET", "/templates/{id}/tags/count", READ),
    ("GET", "/templates/{id}/tags/exists", READ),
    ("GET", "/templates/{id}/tags/groups", READ),
    ("GET", "/templates/{id}/tags/{tag}/assignments", READ),
    ("PATCH", "/v2/templates/{id}", FULL),
    ("POST", "/v3/templates", FULL),
    ("GET", "/templates/{id}/files/{hash}", FULL),
    ("POST", "/templates/{id}/builds/{build}", FULL),
    ("POST", "/v2/templates/{id}/builds/{build}", FULL),
    ("GET", "/templates/{id}/builds/{build}/status", READ),
    ("GET", "/templates/{id}/builds/{build}/logs", READ),
    ("POST", "/secrets", FULL),
    ("GET", "/secrets", READ),
    ("GET", "/secrets/{id}", READ),
    ("POST", "/secrets/{id}", FULL),
    ("DELETE", "/secrets/{id}", FULL),
    ("POST", "/volumes", FULL),
    ("GET", "/volumes", READ),
    // It gives the token that opens the content.
    ("GET", "/volumes/{id}", SANDBOXES),
    ("DELETE", "/volumes/{id}", FULL),
    ("GET", "/admin/teams", Admin),
    ("POST", "/admin/teams", Admin),
    ("PUT", "/admin/teams/{id}/quota", Admin),
    ("GET", "/admin/keys", Admin),
    ("POST", "/admin/teams/{id}/keys", Admin),
    ("PATCH", "/admin/keys/{id}", Admin),
    ("DELETE", "/admin/keys/{id}", Admin),
];

/// What the route of a request asks for, if there is one with this method.
pub(crate) fn needs(request: &Request) -> Option<Needs> {
    let path = request.extensions().get::<MatchedPath>()?.as_str();
    // A question without the answer's body is the same question.
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    TABLE.iter().find(|(of, at, _)| *at == path && *of == method.as_str()).map(|(_, _, needs)| *needs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Where routes are made.
    const ROUTES: &str = include_str!("routes/mod.rs");

    /// The methods and paths of all `.route("PATH", get(..).post(..))` of a source text.
    fn routes(source: &str) -> BTreeSet<(String, String)> {
        let mut found = BTreeSet::new();
        for route in source.split(".route(\"").skip(1) {
            let (path, rest) = route.split_once('"').unwrap();
            let end = rest.find(".route").unwrap_or(rest.len());
            for method in ["get", "post", "put", "patch", "delete"] {
                let (first, then) = (format!(" {method}("), format!(".{method}("));
                if rest[..end].contains(&first) || rest[..end].contains(&then) {
                    found.insert((method.to_uppercase(), path.to_owned()));
                }
            }
        }
        found
    }

    #[test]
    fn each_route_has_a_row_and_each_row_a_route() {
        let rows: BTreeSet<_> = TABLE.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(rows.len(), TABLE.len(), "a row is there twice");
        assert_eq!(routes(ROUTES), rows);
    }
}
