//! What each route of ours takes and answers.

use super::{
    Answer::{self, Many, Nothing, One, Text, TextOr},
    Described,
};

/// One that takes nothing and refuses nothing beside what the table says.
const fn get(path: &'static str, says: &'static str, answer: Answer) -> Described {
    Described { method: "GET", path, says, query: &[], body: None, status: 200, answer, refusals: &[] }
}

/// By path.
pub(super) const ROUTES: &[Described] = &[
    get("/.well-known/jwks.json", "The public keys of sandboxes' identity tokens", One("KeySet")),
    get("/.well-known/openid-configuration", "Where these keys are, as OpenID Connect's discovery", One("Discovery")),
    Described {
        method: "POST",
        status: 204,
        refusals: &[403, 409, 503, 507],
        ..get(
            "/admin/copies",
            "Keep a copy of what holds a paused sandbox of another node of the cluster: for nodes alone",
            Nothing,
        )
    }
    .asking(&[("artifact", "string", "its id")]),
    Described {
        refusals: &[404, 409],
        ..get("/admin/export", "One of a template, a snapshot and a paused sandbox as one file", Text("application/zstd"))
    }
    .asking(&[
        ("template", "string", "a version of this template, by name or id"),
        ("snapshot", "string", "this snapshot, by name or id"),
        ("sandbox", "string", "this sandbox, which must be paused"),
        (
            "artifact",
            "string",
            "this artifact without the record of what stands on it: for another node of a cluster, which has that",
        ),
        ("part", "string", "`header`: what the archive says of itself (JSON), and no content"),
        (
            "without",
            "string",
            "digests (BLAKE3, hexadecimal, with commas between them) of contents to leave out, which whoever asks has",
        ),
        (
            "begun",
            "string",
            "contents of which whoever asks has the first bytes, as `DIGEST:BYTES` with commas between them: only the rest of them is sent",
        ),
    ]),
    Described {
        method: "POST",
        refusals: &[409, 507],
        ..get("/admin/import", "Take in what was exported, which is the body, of `application/zstd`", One("Imported"))
    }
    .asking(&[
        ("kind", "string", "refuse it unless it is of this: `template`, `snapshot` or `sandbox`"),
        ("name", "string", "what a template or a snapshot is to be called instead"),
    ]),
    Described { refusals: &[404], ..get("/admin/keys", "Keys, without the keys", Many("Key")) }.asking(&[(
        "team",
        "string",
        "only this team's",
    )]),
    Described { method: "PATCH", body: Some(("Expiry", false)), ..get("/admin/keys/{id}", "Change when a key ends", One("Key")) },
    Described { method: "DELETE", status: 204, ..get("/admin/keys/{id}", "Revoke a key", Nothing) },
    Described { refusals: &[404], ..get("/admin/log-level", "What is logged", One("LogLevel")) },
    Described {
        method: "PUT",
        body: Some(("LogLevel", true)),
        refusals: &[404],
        ..get("/admin/log-level", "Change what is logged, until the server ends", One("LogLevel"))
    },
    Described {
        method: "POST",
        body: Some(("Move", false)),
        refusals: &[404, 409, 503],
        ..get(
            "/admin/sandboxes/{id}/move",
            "Have a sandbox go to another node of the cluster; where it does not, it is what it was",
            One("Moved"),
        )
    },
    Described {
        refusals: &[403],
        ..get("/admin/signer", "Which sandbox of this node signed a URL: for nodes alone", One("Signer"))
    }
    .asking(&[("method", "string", "that of the request for it; the rest is the URL's own query")]),
    Described {
        method: "POST",
        body: Some(("Take", true)),
        status: 204,
        refusals: &[403, 404, 409, 503],
        ..get("/admin/take", "Take over a sandbox that another node of the cluster has given up: for nodes alone", Nothing)
    },
    get("/admin/teams", "Teams with their quotas", Many("Team")),
    Described {
        method: "POST",
        body: Some(("NewTeam", true)),
        status: 201,
        refusals: &[403, 409],
        ..get("/admin/teams", "Add a team", One("Team"))
    },
    Described {
        method: "POST",
        body: Some(("NewKey", false)),
        status: 201,
        refusals: &[403, 409],
        ..get("/admin/teams/{id}/keys", "Add a key, which is told this once", One("Key"))
    },
    Described {
        method: "PUT",
        body: Some(("Quota", false)),
        ..get("/admin/teams/{id}/quota", "Replace a team's quota", One("Team"))
    },
    get("/capacity", "What the host offers, what is held of it, and what became of requests", One("Capacity")),
    Described {
        method: "POST",
        refusals: &[409],
        ..get("/encryption/rotate", "Seal under another key from now on", One("Rotation"))
    },
    Described { refusals: &[429], ..get("/events", "What changes, as server-sent events", Text("text/event-stream")) }.asking(&[
        ("topics", "string", "those that are wanted, with commas between them"),
        ("lastEventId", "string", "where an earlier stream was broken off; also as the header `Last-Event-ID`"),
    ]),
    get("/events/webhooks/{id}/deliveries", "What has not arrived at a webhook", Many("Delivery")),
    Described { method: "POST", ..get("/events/webhooks/{id}/deliveries/retry", "Send again what was given up", One("Retried")) },
    Described {
        refusals: &[401, 403],
        ..get(
            "/health",
            "Whether the server serves; with `details`, and a key, what keeps its machines from its host",
            TextOr("Health"),
        )
    }
    .asking(&[("details", "string", "asks for JSON")]),
    get("/host", "The host in figures and words", One("Host")),
    get("/lineage", "What came from what, as a tree for each root", Many("LineageNode")),
    Described {
        refusals: &[401, 403],
        ..get(
            "/metrics",
            "Figures for Prometheus; with the admin token those of each team too",
            Text("application/openmetrics-text"),
        )
    },
    get("/openapi.json", "This description", One("Description")),
    get("/pool", "The warm pool by template", One("Pool")),
    get(
        "/sandboxes/{id}/network/audit",
        "What was decided last of what a sandbox tried to reach by name",
        Many("NetworkDecision"),
    ),
    Described {
        method: "POST",
        body: Some(("Rollback", true)),
        refusals: &[409, 429, 502, 507],
        ..get("/sandboxes/{id}/rollback", "Put a sandbox back to one of its own snapshots", One("Sandbox"))
    },
];

impl Described {
    /// The same with a query.
    const fn asking(mut self, query: &'static [(&'static str, &'static str, &'static str)]) -> Self {
        self.query = query;
        self
    }
}
