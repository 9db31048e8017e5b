//! The forms of bodies and answers of our own routes.
//!
//! Written beside the types that they describe and not derived from them: those are of four packages, none of which otherwise knows of such
//! descriptions. `tests/http/openapi.rs` holds answers of a server against them, so that a field that comes or goes is noticed.

use serde_json::{Map, Value, json};

use super::reference;
use crate::logging::MAX_FILTER_BYTES;

/// By name.
pub(super) fn all() -> Map<String, Value> {
    [of_the_host(), of_teams(), of_sandboxes()].into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn number() -> Value {
    json!({ "type": "integer", "minimum": 0 })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time" })
}

fn flag() -> Value {
    json!({ "type": "boolean" })
}

fn list(of: &Value) -> Value {
    json!({ "type": "array", "items": of })
}

fn one_of(words: &[&str]) -> Value {
    json!({ "type": "string", "enum": words })
}

/// The same, or null.
fn maybe(mut schema: Value) -> Value {
    schema["type"] = json!([schema["type"], "null"]);
    schema
}

fn by_name(of: &Value) -> Value {
    json!({ "type": "object", "additionalProperties": of })
}

/// An object whose fields are all there, but those whose names end with `?`.
fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).filter(|name| !name.ends_with('?')).collect();
    let properties: Map<String, Value> =
        fields.iter().map(|(name, schema)| (name.trim_end_matches('?').to_owned(), schema.clone())).collect();
    json!({ "type": "object", "properties": properties, "required": required })
}

fn resources() -> Value {
    record([("cpus", number()), ("memory_mib", number()), ("disk_mib", number())])
}

/// What is measured, or why it is not known.
fn measured(known: &Value) -> Value {
    json!({ "anyOf": [known, record([("error", text())])] })
}

fn of_the_host() -> Vec<(&'static str, Value)> {
    let class = record([("sessions", number()), ("held", resources())]);
    let outcomes = ["immediate", "queued", "timed_out", "rejected", "too_large"].map(|outcome| (outcome, number()));
    let shelf = record([("wanted", number()), ("ready", number()), ("prepared", number()), ("making", number())]);
    let counts =
        ["hits", "prepared_hits", "misses", "failed_claims", "refills", "failed_refills", "evictions", "retired", "lost"];
    let mut pool = record(counts.map(|count| (count, number())));
    for (name, schema) in [("templates", by_name(&shelf)), ("short_of_disk", flag())] {
        pool["properties"][name] = schema;
        if let Some(required) = pool["required"].as_array_mut() {
            required.push(name.into());
        }
    }
    let capacity = record([
        ("capacity", resources()),
        ("warm_limit", resources()),
        ("usage", record([("active", class.clone()), ("warm", class)])),
        ("waiting", number()),
        ("requests", record(outcomes)),
    ]);
    let lacking = record([("part", text()), ("reason", text())]);
    let health = record([
        ("acceleration", text()),
        ("engines", list(&text())),
        ("jail", record([("held", list(&text())), ("lacking", list(&lacking))])),
        ("catalog", record([("kind", text()), ("address", maybe(text())), ("away", maybe(text()))])),
        ("encryption", record([("enabled", flag()), ("key", maybe(text())), ("sealed", number())])),
    ]);
    let rotation = record([
        ("key", text()),
        ("former", text()),
        ("key_file", text()),
        ("rewrapped", number()),
        ("unreadable", list(&text())),
    ]);
    let imported = record([
        ("kind", one_of(&["template", "snapshot", "sandbox"])),
        ("id", text()),
        ("names", list(&text())),
        ("artifact", text()),
        ("was_here", flag()),
        ("bytes", number()),
    ]);
    let key_set = record([("keys", list(&record(["kty", "crv", "alg", "use", "kid", "x", "y"].map(|name| (name, text())))))]);
    let discovery = record([
        ("issuer", text()),
        ("jwks_uri", text()),
        ("response_types_supported", list(&text())),
        ("subject_types_supported", list(&text())),
        ("id_token_signing_alg_values_supported", list(&text())),
    ]);
    vec![
        ("Capacity", capacity),
        ("Description", json!({ "type": "object" })),
        ("Discovery", discovery),
        ("Error", record([("code", number()), ("message", text()), ("error_code?", text())])),
        ("Health", health),
        ("Host", host()),
        ("Imported", imported),
        ("KeySet", key_set),
        ("LogLevel", record([("filter", json!({ "type": "string", "minLength": 1, "maxLength": MAX_FILTER_BYTES }))])),
        ("Move", record([("node?", maybe(text()))])),
        ("Moved", record([("sandboxID", text()), ("node", text()), ("ran", flag()), ("blackoutMs", number())])),
        ("Pool", pool),
        ("Rotation", rotation),
        ("Signer", record([("sandboxID?", text())])),
        ("Take", record([("id", text()), ("until?", maybe(time()))])),
    ]
}

fn host() -> Value {
    let number_or_null = || json!({ "type": ["number", "null"] });
    let disk = record([("free_mib", number()), ("total_mib", number()), ("floor_mib", number())]);
    let memory = record([
        ("available_mib", number()),
        ("total_mib", number()),
        ("floor_mib", number()),
        ("stalled_percent", maybe(number())),
        ("stall_limit_percent", number()),
        ("stalls_count_below_mib", number()),
    ]);
    let used = record([("budget_bytes", number()), ("held_bytes", number()), ("reclaimable_bytes", number())]);
    let condition =
        record([("condition", one_of(&["short_of_disk", "short_of_memory", "short_of_disk_for_pool"])), ("holds", flag())]);
    let damaged = record([("format", number()), ("artifact", text()), ("since", time()), ("reason", text())]);
    let phase = record([("phase", text()), ("count", number()), ("p50_ms", number_or_null()), ("p95_ms", number_or_null())]);
    record([
        ("acceleration", text()),
        ("meaning", text()),
        ("engines", list(&text())),
        ("safeguards", list(&record([("name", text()), ("lacking", maybe(text()))]))),
        ("running", number()),
        ("paused", number()),
        ("disk", measured(&disk)),
        ("state_directory", maybe(used)),
        ("memory", measured(&memory)),
        ("conditions", list(&condition)),
        ("quarantine", list(&damaged)),
        ("phases", list(&phase)),
        ("errors", by_name(&number())),
        ("outbound", by_name(&number())),
    ])
}

/// The id of a team.
fn team() -> Value {
    json!({ "type": "string", "pattern": "^[a-z][a-z0-9-]{0,31}$" })
}

fn of_teams() -> Vec<(&'static str, Value)> {
    let small = || json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    let large = || json!({ "type": "integer", "minimum": 0, "maximum": u64::MAX });
    let mut quota = record([
        ("running?", maybe(small())),
        ("paused?", maybe(small())),
        ("cpus?", maybe(small())),
        ("memory_mib?", maybe(large())),
        ("disk_mib?", maybe(large())),
        ("snapshots?", maybe(small())),
        ("volumes?", maybe(small())),
        ("creates_per_minute?", maybe(small())),
    ]);
    // A limit that is not understood would be one that does not hold.
    quota["additionalProperties"] = false.into();
    let scope = || one_of(&["read", "sandboxes", "full"]);
    let mut optional_scope = maybe(scope());
    optional_scope["enum"] = json!(["read", "sandboxes", "full", null]);
    let key = record([
        ("id", text()),
        ("teamID", text()),
        ("name", text()),
        ("scope", scope()),
        ("createdAt", maybe(time())),
        ("expiresAt", maybe(time())),
        ("revokedAt", maybe(time())),
        ("lastUsedAt", maybe(time())),
        ("key?", text()),
    ]);
    vec![
        ("Expiry", record([("expiresAt?", maybe(time()))])),
        ("Key", key),
        ("NewKey", record([("name?", text()), ("scope?", optional_scope), ("expiresAt?", maybe(time()))])),
        ("NewTeam", record([("teamID", team()), ("name?", maybe(text())), ("quota?", reference("Quota"))])),
        ("Quota", quota),
        ("Team", record([("teamID", text()), ("name", text()), ("createdAt", time()), ("quota", reference("Quota"))])),
    ]
}

fn of_sandboxes() -> Vec<(&'static str, Value)> {
    let node = record([
        ("kind", one_of(&["template", "snapshot", "sandbox"])),
        ("id", text()),
        ("names", list(&text())),
        ("state?", one_of(&["running", "paused"])),
        ("since", time()),
        ("children", list(&reference("LineageNode"))),
    ]);
    let decision = record([
        ("timestamp", time()),
        ("kind", one_of(&["dns", "tcp"])),
        ("name?", text()),
        ("address?", text()),
        ("port?", number()),
        ("allowed", flag()),
        ("outcome", text()),
        ("reason", text()),
    ]);
    let sandbox = record([
        ("templateID", text()),
        ("sandboxID", text()),
        ("clientID", text()),
        ("envdVersion", text()),
        ("alias?", text()),
        ("envdAccessToken?", text()),
        ("trafficAccessToken?", text()),
        ("domain", maybe(text())),
    ]);
    let delivery = record([
        ("eventId", text()),
        ("type", text()),
        ("timestamp", time()),
        ("state", one_of(&["waiting", "dead"])),
        ("attempts", number()),
        ("nextAttemptAt", maybe(time())),
        ("error", maybe(text())),
    ]);
    vec![
        ("Delivery", delivery),
        ("LineageNode", node),
        ("NetworkDecision", decision),
        ("Retried", record([("retried", number())])),
        ("Rollback", record([("snapshotID", text())])),
        ("Sandbox", sandbox),
    ]
}
