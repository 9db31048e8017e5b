//! The routes that are Firkin's own, described for programs: `GET /openapi.json`.
//!
//! Method and path of every route, and what it asks of who comes, stand in [`access`](crate::access); here stands what each of ours takes
//! and answers, and which are E2B's, whose own file describes them. A test holds both against that table, so that no route is without a
//! place. What goes for many is said once: refusals follow from what a route asks for, and from whether it has a body or names something.

use std::collections::BTreeMap;

use axum::Json as Reply;
use serde_json::{Map, Value, json};

use crate::access::{Needs, TABLE};

mod contract;
mod own;
mod schemas;

/// The version of the form that this is written in.
const FORM: &str = "3.1.0";

/// A route of ours.
struct Described {
    method: &'static str,
    path: &'static str,
    /// What it is for, in a line.
    says: &'static str,
    /// Name, type and meaning of what a query may have. None of it must be there.
    query: &'static [(&'static str, &'static str, &'static str)],
    /// The schema of what it takes, and whether that must be there.
    body: Option<(&'static str, bool)>,
    /// The status of a success.
    status: u16,
    answer: Answer,
    /// Statuses of refusals beside those that follow from the table.
    refusals: &'static [u16],
}

/// What a success has.
enum Answer {
    /// Nothing.
    Nothing,
    /// JSON by one of these schemas.
    One(&'static str),
    /// A list of it.
    Many(&'static str),
    /// Text of this media type.
    Text(&'static str),
    /// Plain text; JSON where the query asks for it.
    TextOr(&'static str),
}

/// `GET /openapi.json`.
pub(crate) async fn read() -> Reply<Value> {
    Reply(document())
}

/// All of it.
fn document() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for (route, needs) in own::ROUTES.iter().filter_map(|route| Some((route, needs(route.method, route.path)?))) {
        paths.entry(route.path).or_default().insert(route.method.to_lowercase(), operation(route, needs));
    }
    let of_e2b: Vec<String> = contract::ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
    json!({
        "openapi": FORM,
        "info": {
            "title": "Firkin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The routes that are Firkin's own. Those of E2B that it serves are listed in `x-e2b-routes` and described by E2B.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas::all(),
            "securitySchemes": {
                "apiKey": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
                "adminToken": { "type": "apiKey", "in": "header", "name": "X-Admin-Token" },
            },
        },
        "x-e2b-routes": of_e2b,
    })
}

/// What a route asks for.
fn needs(method: &str, path: &str) -> Option<Needs> {
    TABLE.iter().find(|(of, at, _)| *of == method && *at == path).map(|(_, _, needs)| *needs)
}

fn operation(route: &Described, needs: Needs) -> Value {
    let refused = content("It was refused, for the reason that it gives.", [("application/json", reference("Error"))]);
    let mut responses: BTreeMap<String, Value> =
        refusals(route, needs).map(|status| (status.to_string(), refused.clone())).collect();
    responses.insert(route.status.to_string(), success(&route.answer));
    let mut operation = json!({
        "operationId": name(route),
        "summary": route.says,
        "parameters": parameters(route),
        "security": security(route, needs),
        "responses": responses,
    });
    if let Some((schema, required)) = route.body {
        operation["requestBody"] =
            json!({ "required": required, "content": { "application/json": { "schema": reference(schema) } } });
    }
    operation
}

/// A word for programs that make a client of this.
fn name(route: &Described) -> String {
    let words = route.path.split(|at: char| !at.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(route.method.to_lowercase()).chain(words.map(str::to_owned)).collect::<Vec<_>>().join("_")
}

fn parameters(route: &Described) -> Vec<Value> {
    let named = route.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let in_path = named.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }));
    let in_query = route.query.iter().map(|(name, kind, says)| {
        json!({ "name": name, "in": "query", "required": false, "description": says, "schema": { "type": kind } })
    });
    in_path.chain(in_query).collect()
}

/// What opens a route: any one of these.
fn security(route: &Described, needs: Needs) -> Value {
    match needs {
        Needs::Key(_) => json!([{ "apiKey": [] }]),
        Needs::Watcher | Needs::Operator | Needs::Host => json!([{ "apiKey": [] }, { "adminToken": [] }]),
        Needs::Admin => json!([{ "adminToken": [] }]),
        // Such a route is open, or looks itself.
        Needs::Nothing | Needs::Own | Needs::Session(_) if route.refusals.contains(&401) => {
            json!([{}, { "apiKey": [] }, { "adminToken": [] }])
        }
        Needs::Nothing | Needs::Own | Needs::Session(_) => json!([]),
    }
}

/// Statuses of all refusals of a route.
fn refusals(route: &Described, needs: Needs) -> impl Iterator<Item = u16> {
    // A host name that is none or not ours; something of the host failed; too many connections, or the end of the server.
    let all = [400, 421, 500, 503];
    let of_keys: &[u16] = match needs {
        Needs::Key(_) | Needs::Watcher | Needs::Operator | Needs::Host => &[401, 403],
        Needs::Admin => &[401],
        Needs::Nothing | Needs::Own | Needs::Session(_) => &[],
    };
    // It does not arrive in time, or is too long.
    let of_bodies: &[u16] = if route.body.is_some() { &[408, 413] } else { &[] };
    let of_names: &[u16] = if route.path.contains('{') { &[404] } else { &[] };
    all.into_iter().chain([of_keys, of_bodies, of_names, route.refusals].into_iter().flatten().copied())
}

fn success(answer: &Answer) -> Value {
    const DONE: &str = "It was done.";
    let text = || json!({ "type": "string" });
    match answer {
        Answer::Nothing => json!({ "description": DONE }),
        Answer::One(schema) => content(DONE, [("application/json", reference(schema))]),
        Answer::Many(schema) => content(DONE, [("application/json", json!({ "type": "array", "items": reference(schema) }))]),
        Answer::Text(media) => content(DONE, [(*media, text())]),
        Answer::TextOr(schema) => content(DONE, [("text/plain", text()), ("application/json", reference(schema))]),
    }
}

fn content<const N: usize>(says: &str, forms: [(&str, Value); N]) -> Value {
    let forms: Map<String, Value> =
        forms.map(|(media, schema)| (media.to_owned(), json!({ "schema": schema }))).into_iter().collect();
    json!({ "description": says, "content": forms })
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, path::Path};

    use super::*;

    #[test]
    fn each_route_is_ours_and_described_or_e2bs_or_a_page() {
        let ours: BTreeSet<_> = own::ROUTES.iter().map(|route| (route.method, route.path)).collect();
        let theirs: BTreeSet<_> = contract::ROUTES.iter().copied().collect();
        assert_eq!((ours.len(), theirs.len()), (own::ROUTES.len(), contract::ROUTES.len()), "a route is there twice");
        assert_eq!(ours.intersection(&theirs).next(), None, "it is described as ours and named as E2B's");
        let is_page = |path: &str| path == "/" || path == "/ui" || path.starts_with("/ui/");
        let all: BTreeSet<_> =
            TABLE.iter().map(|(method, path, _)| (*method, *path)).filter(|(_, path)| !is_page(path)).collect();
        assert_eq!(ours.union(&theirs).copied().collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn what_is_referred_to_is_there_and_nothing_else_is() {
        let text = document().to_string();
        let named = text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next());
        let named: BTreeSet<String> = named.map(str::to_owned).collect();
        let there: BTreeSet<String> = schemas::all().keys().cloned().collect();
        assert_eq!(named, there);
    }

    #[test]
    fn the_page_of_routes_is_written_anew() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/routes.md");
        if std::env::var_os("FIRKIN_WRITE_REFERENCE").is_some() {
            fs_err::write(&path, page()).unwrap();
        }
        assert_eq!(fs_err::read_to_string(&path).unwrap(), page(), "write it anew with FIRKIN_WRITE_REFERENCE=1");
    }

    /// The same for people.
    fn page() -> String {
        let mut text = String::from(
            "# Routes\n\n\
             Firkin's own, by path; a test writes this page and holds it against the code. `GET /openapi.json` of a server describes what each takes \
             and\nanswers, for programs, and lists the routes of E2B that it serves, which E2B describes ([E2B compatibility](e2b-compatibility.md)).\n\
             What refusals mean is in [errors](errors.md).\n\n\
             | route | opened by | is for |\n|---|---|---|\n",
        );
        let mut routes: Vec<_> = own::ROUTES.iter().collect();
        routes.sort_by_key(|route| (route.path, route.method));
        for route in routes {
            let needs = needs(route.method, route.path).unwrap();
            text += &format!("| `{} {}` | {} | {} |\n", route.method, route.path, opened_by(route, needs), route.says);
        }
        text
    }

    fn opened_by(route: &Described, needs: Needs) -> String {
        use firkin_runtime::store::KeyScope::{Full, Read, Sandboxes};
        match needs {
            Needs::Key(Read) => "any key".to_owned(),
            Needs::Key(Sandboxes) => "a key of scope `sandboxes`".to_owned(),
            Needs::Key(Full) => "a key of scope `full`".to_owned(),
            Needs::Watcher => "any key, the admin token".to_owned(),
            Needs::Operator => "a key of the first team, the admin token".to_owned(),
            Needs::Host => "a key of the first team of scope `full`, the admin token".to_owned(),
            Needs::Admin => "the admin token".to_owned(),
            Needs::Nothing | Needs::Own | Needs::Session(_) if route.refusals.contains(&401) => "see its page".to_owned(),
            Needs::Nothing | Needs::Own | Needs::Session(_) => "everybody".to_owned(),
        }
    }
}
