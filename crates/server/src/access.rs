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
    /// A key that lets its holder look, and sees its own team's only, or the admin token, which sees what all teams have.
    Watcher,
    /// A key of the host's own team, whatever it lets do, or the admin token.
    Operator,
    /// A session of the dashboard that stands on such a key.
    Session(KeyScope),
    /// A key of the host's own team that opens everything, or the admin token.
    Host,
    /// The admin token.
    Admin,
}

use Needs::{Admin, Host, Key, Nothing, Operator, Own, Session, Watcher};

const READ: Needs = Key(KeyScope::Read);
const SANDBOXES: Needs = Key(KeyScope::Sandboxes);
const FULL: Needs = Key(KeyScope::Full);
const LOOKS: Needs = Session(KeyScope::Read);
const ACTS: Needs = Session(KeyScope::Sandboxes);
const BUILDS: Needs = Session(KeyScope::Full);

/// Method and path of every route, as the router knows them.
pub(crate) const TABLE: &[(&str, &str, Needs)] = &[
    ("GET", "/health", Nothing),
    ("GET", "/metrics", Nothing),
    ("GET", "/openapi.json", Nothing),
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
    ("GET", "/events", Watcher),
    ("GET", "/events/sandboxes", READ),
    ("GET", "/events/sandboxes/{id}", READ),
    ("POST", "/events/webhooks", FULL),
    ("GET", "/events/webhooks", READ),
    ("GET", "/events/webhooks/{id}", READ),
    ("PATCH", "/events/webhooks/{id}", FULL),
    ("DELETE", "/events/webhooks/{id}", FULL),
    ("GET", "/events/webhooks/{id}/deliveries", READ),
    ("POST", "/events/webhooks/{id}/deliveries/retry", FULL),
    ("GET", "/host", Operator),
    ("GET", "/capacity", Operator),
    ("GET", "/pool", Operator),
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
    ("GET", "/admin/log-level", Admin),
    ("PUT", "/admin/log-level", Admin),
    ("POST", "/admin/teams/{id}/keys", Admin),
    ("PATCH", "/admin/keys/{id}", Admin),
    ("DELETE", "/admin/keys/{id}", Admin),
    // What leaves has everything that is in it, secrets too; what comes is believed as a template of the host's own is.
    ("GET", "/admin/export", Host),
    ("POST", "/admin/import", Host),
    ("POST", "/admin/sandboxes/{id}/move", Host),
    // It asks that a node asks.
    ("POST", "/admin/take", Admin),
    ("GET", "/admin/signer", Admin),
    ("POST", "/admin/copies", Admin),
    ("GET", "/", Nothing),
    ("GET", "/ui", Nothing),
    ("GET", "/ui/", Nothing),
    ("GET", "/ui/assets/{name}", Nothing),
    ("GET", "/ui/sign-in", Nothing),
    // It looks at the key that it is given.
    ("POST", "/ui/sign-in", Own),
    ("POST", "/ui/sign-out", LOOKS),
    ("GET", "/ui/sandboxes", LOOKS),
    ("POST", "/ui/sandboxes", ACTS),
    ("GET", "/ui/sandboxes/rows", LOOKS),
    ("POST", "/ui/sandboxes/bulk", ACTS),
    ("GET", "/ui/sandboxes/{id}", LOOKS),
    ("GET", "/ui/sandboxes/{id}/overview", LOOKS),
    // What is in a sandbox is for who may use it.
    ("GET", "/ui/sandboxes/{id}/files", ACTS),
    ("GET", "/ui/sandboxes/{id}/file", ACTS),
    ("GET", "/ui/sandboxes/{id}/preview", ACTS),
    ("GET", "/ui/sandboxes/{id}/image", ACTS),
    ("GET", "/ui/sandboxes/{id}/edit", ACTS),
    ("POST", "/ui/sandboxes/{id}/files/upload", ACTS),
    ("POST", "/ui/sandboxes/{id}/files/save", ACTS),
    ("POST", "/ui/sandboxes/{id}/files/directory", ACTS),
    ("POST", "/ui/sandboxes/{id}/files/remove", ACTS),
    ("GET", "/ui/sandboxes/{id}/code", ACTS),
    ("POST", "/ui/sandboxes/{id}/code", ACTS),
    ("GET", "/ui/sandboxes/{id}/code/{cell}/{at}", ACTS),
    ("GET", "/ui/sandboxes/{id}/terminal", ACTS),
    ("GET", "/ui/sandboxes/{id}/terminal/socket", ACTS),
    // It runs a command in the sandbox.
    ("GET", "/ui/sandboxes/{id}/processes", ACTS),
    ("GET", "/ui/sandboxes/{id}/network", LOOKS),
    ("POST", "/ui/sandboxes/{id}/pause", ACTS),
    ("POST", "/ui/sandboxes/{id}/resume", ACTS),
    ("POST", "/ui/sandboxes/{id}/extend", ACTS),
    ("POST", "/ui/sandboxes/{id}/fork", ACTS),
    ("POST", "/ui/sandboxes/{id}/snapshot", ACTS),
    ("POST", "/ui/sandboxes/{id}/rollback", ACTS),
    ("POST", "/ui/sandboxes/{id}/kill", ACTS),
    ("POST", "/ui/sandboxes/{id}/signal", ACTS),
    ("GET", "/ui/templates", LOOKS),
    ("POST", "/ui/templates", BUILDS),
    ("GET", "/ui/templates/{id}", LOOKS),
    ("POST", "/ui/templates/{id}/delete", BUILDS),
    ("GET", "/ui/templates/{id}/builds/{build}", LOOKS),
    ("GET", "/ui/templates/{id}/builds/{build}/log", LOOKS),
    ("GET", "/ui/lineage", LOOKS),
    // Of the host: they look for its own team.
    ("GET", "/ui/host", LOOKS),
    ("GET", "/ui/host/now", LOOKS),
    ("GET", "/ui/nodes", LOOKS),
    ("GET", "/ui/nodes/now", LOOKS),
    ("GET", "/ui/settings", LOOKS),
    ("GET", "/ui/teams", LOOKS),
    // These ask for the admin token, once in fifteen minutes.
    ("POST", "/ui/teams", LOOKS),
    ("POST", "/ui/teams/unlock", LOOKS),
    ("POST", "/ui/teams/quota", LOOKS),
    ("POST", "/ui/teams/keys", LOOKS),
    ("POST", "/ui/teams/revoke", LOOKS),
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
    const ROUTES: [&str; 2] = [include_str!("routes/mod.rs"), include_str!("ui.rs")];

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
        assert_eq!(ROUTES.into_iter().flat_map(routes).collect::<BTreeSet<_>>(), rows);
    }
}
