//! The files for Prometheus and Grafana in `packaging`, against a real Prometheus that reads a real server: each query of each panel and each
//! alert is accepted, and each series that one names is there.
//!
//! Grafana is not run: Debian has none. What of its file can be wrong without it, the queries, is asked of Prometheus as Grafana would ask.

use std::{
    collections::BTreeSet,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;

use crate::{
    gvisor,
    household::Household,
    http,
    run::{Report, Step, say},
    server::Server,
    workspace::Workspace,
};

mod dashboard;
mod prometheus;

use prometheus::{Programs, Prometheus};

/// What operators load.
const RULES: &str = "packaging/prometheus/firkin.rules.yml";
const RULES_TEST: &str = "packaging/prometheus/firkin.rules.test.yml";
const SCRAPE: &str = "packaging/prometheus/scrape.yml";
const DASHBOARD: &str = "packaging/grafana/firkin.json";

/// Where each metric is explained.
const EXPLAINED: [&str; 2] = ["docs/metrics.md", "docs/monitoring.md"];

/// Series of nodes of a cluster, which the server here is not: that these are what a node exports, its own tests say
/// (`crates/cluster/tests/cluster/placement.rs`).
const OF_NODES: [&str; 5] = [
    "firkin_lease_left_seconds",
    "firkin_nodes",
    "firkin_fenced_total",
    "firkin_second_copies_owed",
    "firkin_second_copies_total",
];

/// What has the server export all that it can, and start nothing.
const OPTIONS: [&str; 4] = ["--disk-budget", "1000000", "--warm", "0"];

/// Scrapes that rates want.
const SCRAPES: &str = "count_over_time(up[1m]) >= 3 and up == 1";

/// From its start until it has scraped so often, once a second.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(60);

/// Between two questions whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the server may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The whole of it.
pub(crate) fn run(workspace: &Workspace, household: &Household, report: &mut Report) -> anyhow::Result<()> {
    report.step("Prometheus and Grafana", |step| {
        let Some(programs) = Programs::set_up(&workspace.cache(), step)? else { return Ok(()) };
        for (what, file) in [("check", RULES), ("test", RULES_TEST)] {
            step.run(programs.promtool().args([what, "rules"]).arg(workspace.root.join(file)).stdin(Stdio::null()))?;
            step.passed(1);
        }
        // Any engine will do: no sandbox is started. Where gVisor is, its server is ready soonest.
        let workspace = if gvisor::is_here() { &workspace.with_engine("gvisor") } else { workspace };
        let state = household.passable_dir("state-")?;
        let copies = household.passable_dir("copies-")?;
        let copy_to = format!("file://{}", copies.path().display());
        let options = [&OPTIONS[..], &["--copy-to", &copy_to]].concat();
        let server = Server::start_with(workspace, state.path(), &options)?;
        let dir = household.passable_dir("prometheus-")?;
        let config = dir.path().join("prometheus.yml");
        fs::write(&config, scrape(workspace, &server, &state.path().join("admin-token"))?)?;
        step.run(programs.promtool().args(["check", "config"]).arg(&config))?;
        let prometheus = Prometheus::start(&programs, &config, dir.path())?;
        ask_everything(workspace, &server, &prometheus, step).with_context(|| server.log_tail())?;
        drop(prometheus);
        server.stop()
    })
}

/// The example configuration with this server in it, which is asked every second.
fn scrape(workspace: &Workspace, server: &Server, key: &std::path::Path) -> anyhow::Result<String> {
    let mut text = fs::read_to_string(workspace.root.join(SCRAPE))?;
    for (example, ours) in [
        ("/etc/prometheus/firkin.rules.yml", workspace.root.join(RULES).display().to_string()),
        ("/etc/prometheus/firkin.key", key.display().to_string()),
        ("127.0.0.1:3000", server.address().to_string()),
        ("scrape_interval: 15s", "scrape_interval: 1s".to_owned()),
        ("evaluation_interval: 30s", "evaluation_interval: 1s".to_owned()),
    ] {
        ensure!(text.matches(example).count() == 1, "{SCRAPE} has `{example}` not exactly once");
        text = text.replace(example, &ours);
    }
    Ok(text)
}

fn ask_everything(workspace: &Workspace, server: &Server, prometheus: &Prometheus, step: &mut Step) -> anyhow::Result<()> {
    let started = Instant::now();
    while prometheus.query(SCRAPES)?.is_empty() {
        ensure!(started.elapsed() < SCRAPE_DEADLINE, "Prometheus does not get metrics: {}", prometheus.targets()?);
        thread::park_timeout(LOOK_INTERVAL);
    }
    let mut wrong = Vec::new();
    let file = fs::read_to_string(workspace.root.join(DASHBOARD))?;
    dashboard::check_layout(&file)?;
    let panels = dashboard::panels(&file)?;
    for (name, query) in &panels {
        match prometheus.found(query) {
            Ok(found) if found.is_empty() => wrong.push(format!("panel `{name}` shows nothing: {query}")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("panel `{name}`: {error:#}")),
        }
    }
    let rules = prometheus.rules()?;
    ensure!(!rules.is_empty(), "Prometheus has loaded no rules");
    let mut selectors = BTreeSet::new();
    for (name, query) in &rules {
        selectors.extend(dashboard::selectors(query));
        // Most find nothing where all is well, and are accepted.
        if let Err(error) = prometheus.query(query) {
            wrong.push(format!("alert `{name}`: {error:#}"));
        }
    }
    let of_nodes = |selector: &&String| OF_NODES.contains(&selector.split('{').next().unwrap_or_default());
    for selector in selectors.iter().filter(|selector| !of_nodes(selector)) {
        match prometheus.found(selector) {
            Ok(found) if found.is_empty() => wrong.push(format!("no such series is in /metrics: {selector}")),
            Ok(_) => {}
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    let unexplained = unexplained(workspace, server)?;
    wrong.extend(unexplained.iter().map(|family| format!("nothing explains {family}: neither {}", EXPLAINED.join(" nor "))));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    say(&format!("{} queries of panels, {} alerts with {} selectors", panels.len(), rules.len(), selectors.len()));
    step.passed(u64::try_from(panels.len() + rules.len() + 1)?);
    Ok(())
}

/// Metrics of the server that no document names.
fn unexplained(workspace: &Workspace, server: &Server) -> anyhow::Result<Vec<String>> {
    let request = http::Request { method: "GET", path: "/metrics", headers: &[], body: b"" };
    let text = http::ask(server.address(), &request, PATIENCE)?.text();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let texts = EXPLAINED.map(|file| fs::read_to_string(workspace.root.join(file)));
    let texts = texts.into_iter().collect::<Result<Vec<_>, _>>()?;
    let families: Vec<&str> = families.collect();
    ensure!(!families.is_empty(), "the server has no metrics: {text}");
    Ok(families.into_iter().filter(|family| !texts.iter().any(|text| text.contains(*family))).map(str::to_owned).collect())
}

/// What a document and the files for operators say of each other, which needs no program.
#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str) -> String {
        fs::read_to_string(Workspace::find().unwrap().root.join(name)).unwrap()
    }

    #[test]
    fn what_only_nodes_export_is_tried_and_explained_elsewhere() {
        let tried: String =
            ["placement", "copies", "store"].map(|name| read(&format!("crates/cluster/tests/cluster/{name}.rs"))).concat();
        let explained = read("docs/metrics.md");
        for series in OF_NODES {
            let name = series.trim_start_matches("firkin_");
            assert!(tried.contains(name) && explained.contains(&format!("`{series}")), "{series}");
        }
    }

    #[test]
    fn every_alert_says_what_to_do_and_is_documented() {
        let (rules, document) = (read(RULES), read("docs/monitoring.md"));
        let alerts: Vec<&str> = rules.split("- alert: ").skip(1).collect();
        assert!(alerts.len() > 10);
        for alert in &alerts {
            let name = alert.lines().next().unwrap();
            for part in ["expr:", "severity:", "summary:", "description:", "action:"] {
                assert!(alert.contains(part), "{name} has no {part}");
            }
            assert!(document.contains(&format!("`{name}`")), "docs/monitoring.md does not name {name}");
        }
        let names: BTreeSet<&str> = alerts.iter().map(|alert| alert.lines().next().unwrap()).collect();
        for text in [document, read(DASHBOARD)] {
            let words = text.split(|one: char| !one.is_ascii_alphanumeric());
            for word in words.filter(|word| word.len() > 6 && word.starts_with("Firkin")) {
                assert!(names.contains(word), "there is no alert {word}");
            }
        }
    }
}
