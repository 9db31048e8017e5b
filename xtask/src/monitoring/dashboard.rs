//! What is in a dashboard's file and in a query, as far as it can be checked.

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// What takes the place of Grafana's variables.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "1m"), ("$instance", ".*")];

/// The width of Grafana's grid.
const COLUMNS: u64 = 24;

/// Each panel's title, with each of its queries, and each query that marks times in all of them.
pub(super) fn panels(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(text).context("cannot read the dashboard")?;
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"])? {
        let title = panel["title"].as_str().context("a panel has no title")?;
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().with_context(|| format!("panel `{title}` has no query"))?;
            found.push((title.to_owned(), filled(query)?));
        }
    }
    ensure!(!found.is_empty(), "the dashboard has no panels");
    Ok(found)
}

fn list(value: &Value) -> anyhow::Result<&Vec<Value>> {
    value.as_array().context("the dashboard has no list where one should be")
}

/// A query as Grafana would send it.
fn filled(query: &str) -> anyhow::Result<String> {
    let filled = VARIABLES.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    ensure!(!filled.contains('$'), "`{query}` has a variable that is not known");
    Ok(filled)
}

/// Fails where two panels have one id or one place, or one is wider than the grid.
pub(super) fn check_layout(text: &str) -> anyhow::Result<()> {
    let dashboard: Value = serde_json::from_str(text)?;
    let (mut ids, mut taken) = (Vec::new(), Vec::new());
    for panel in list(&dashboard["panels"])? {
        let id = panel["id"].as_u64().context("a panel has no id")?;
        ensure!(!ids.contains(&id), "two panels have the id {id}");
        ids.push(id);
        let side = |name: &str| panel["gridPos"][name].as_u64().with_context(|| format!("panel {id} has no `{name}`"));
        let (x, y, w, h) = (side("x")?, side("y")?, side("w")?, side("h")?);
        ensure!(x + w <= COLUMNS, "panel {id} is wider than the grid");
        for (other, ox, oy, ow, oh) in &taken {
            let apart = x + w <= *ox || ox + ow <= x || y + h <= *oy || oy + oh <= y;
            ensure!(apart, "panels {id} and {other} lie over each other");
        }
        taken.push((id, x, y, w, h));
    }
    Ok(())
}

/// The selectors of our series in a query: each name with the labels that it is asked for by.
pub(super) fn selectors(query: &str) -> Vec<String> {
    const PREFIX: &str = "firkin_";
    let is_of_name = |one: char| one.is_ascii_alphanumeric() || one == '_';
    let mut found = Vec::new();
    for (at, _) in query.match_indices(PREFIX) {
        if query[..at].ends_with(|one| is_of_name(one) || one == '"') {
            continue;
        }
        let rest = &query[at..];
        let name = rest.find(|one| !is_of_name(one)).unwrap_or(rest.len());
        let mut end = name;
        if rest[name..].starts_with('{') {
            let mut quoted = false;
            for one in rest[name..].chars() {
                end += one.len_utf8();
                match one {
                    '"' => quoted = !quoted,
                    '}' if !quoted => break,
                    _ => {}
                }
            }
        }
        found.push(rest[..end].to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_found_with_their_labels() {
        let query =
            r#"sum by (kind) (rate(firkin_a_total{kind=~"x|}y",z="1"}[5m])) / ignoring(x) firkin_b > 2 and other_firkin_c"#;
        assert_eq!(selectors(query), [r#"firkin_a_total{kind=~"x|}y",z="1"}"#, "firkin_b"]);
    }

    #[test]
    fn queries_are_filled_and_layouts_looked_at() {
        let panel = |id: u64, x: u64, query: &str| {
            format!(r#"{{"id":{id},"title":"t{id}","gridPos":{{"x":{x},"y":0,"w":12,"h":2}},"targets":[{{"expr":"{query}"}}]}}"#)
        };
        let with = |panels: &[String]| format!(r#"{{"panels":[{}]}}"#, panels.join(","));
        let good = with(&[panel(1, 0, "rate(a[$__rate_interval])"), panel(2, 12, "b{instance=~'$instance'}")]);
        let queries = [("t1", "rate(a[1m])"), ("t2", "b{instance=~'.*'}")].map(|(title, query)| (title.into(), query.into()));
        assert_eq!(panels(&good).unwrap(), queries);
        check_layout(&good).unwrap();
        for bad in
            [[panel(1, 0, "a"), panel(1, 12, "a")], [panel(1, 0, "a"), panel(2, 11, "a")], [panel(1, 0, "a"), panel(2, 13, "a")]]
        {
            check_layout(&with(&bad)).unwrap_err();
        }
        panels(&with(&[panel(1, 0, "$unknown")])).unwrap_err();
    }
}
