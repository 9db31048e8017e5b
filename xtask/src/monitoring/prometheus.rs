//! Debian's Prometheus, unpacked into the cache and not installed, so that no service of it is on the host; and one process of it, on a port of
//! its own, with its data in the run's directory.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use fs_err as fs;
use serde_json::Value;

use crate::{
    http,
    run::{Step, say},
    server::free_address,
};

/// The Debian package.
const PACKAGE: &str = "prometheus";

/// From its start to its first answer.
const START_DEADLINE: Duration = Duration::from_secs(120);

/// Between two questions to one that does not answer yet.
const PROBE_INTERVAL: Duration = Duration::from_millis(50);

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// By when the server has been asked again, which is asked each second.
const SCRAPED_WITHIN: Duration = Duration::from_secs(15);

/// Where the package's programs are.
#[derive(Debug)]
pub(super) struct Programs(PathBuf);

impl Programs {
    /// Those of an earlier run, else what is fetched from where this machine gets its packages. Says why where it cannot.
    pub(super) fn set_up(cache: &Path, step: &mut Step) -> anyhow::Result<Option<Self>> {
        let dir = cache.join(PACKAGE);
        if !dir.exists() {
            say("fetching the Debian package prometheus, which is not installed");
            if let Err(error) = fetch(&dir, step) {
                step.skip(&format!(
                    "Prometheus cannot be had here, so that its rules and Grafana's panels are not tried: {error:#}"
                ));
                return Ok(None);
            }
        }
        Ok(Some(Self(dir.join("usr/bin"))))
    }

    pub(super) fn promtool(&self) -> Command {
        Command::new(self.0.join("promtool"))
    }
}

/// Unpacks the package aside, so that what has its name is whole.
fn fetch(dir: &Path, step: &mut Step) -> anyhow::Result<()> {
    let draft = dir.with_extension("draft");
    if draft.exists() {
        fs::remove_dir_all(&draft)?;
    }
    fs::create_dir_all(&draft)?;
    step.run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq", "-o", "APT::Sandbox::User=root", PACKAGE]).current_dir(&draft);
    step.run(&mut download)?;
    let files = fs::read_dir(&draft)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    let [archive] = files.as_slice() else { bail!("apt-get left {} files and not one", files.len()) };
    step.run(Command::new("dpkg").arg("-x").arg(archive).arg(&draft))?;
    fs::remove_file(archive)?;
    fs::rename(&draft, dir)?;
    Ok(())
}

/// One process. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Prometheus {
    address: SocketAddr,
    child: Child,
    log: PathBuf,
}

impl Prometheus {
    /// Starts one with this configuration, and returns once it answers.
    pub(super) fn start(programs: &Programs, config: &Path, dir: &Path) -> anyhow::Result<Self> {
        let (address, log) = (free_address()?, dir.join("log"));
        let output = fs::File::create(&log)?.into_parts().0;
        let mut command = Command::new(programs.0.join(PACKAGE));
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let child = command.spawn().context("cannot start Prometheus")?;
        let mut prometheus = Self { address, child, log };
        let started = Instant::now();
        while !prometheus.is_ready() {
            if let Some(status) = prometheus.child.try_wait()? {
                bail!("Prometheus ended at start: {status}\n{}", fs::read_to_string(&prometheus.log)?);
            }
            let late = started.elapsed() > START_DEADLINE;
            ensure!(!late, "Prometheus does not answer\n{}", fs::read_to_string(&prometheus.log)?);
            thread::park_timeout(PROBE_INTERVAL);
        }
        say(&format!("Prometheus answers on {address} after {:.1} s", started.elapsed().as_secs_f32()));
        Ok(prometheus)
    }

    fn is_ready(&self) -> bool {
        let request = http::Request { method: "GET", path: "/-/ready", headers: &[], body: b"" };
        http::ask(self.address, &request, PATIENCE).is_ok_and(|answer| answer.status == 200)
    }

    /// What a query finds now. Fails where it is refused.
    pub(super) fn query(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let body = format!("query={}", encoded(query));
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let request = http::Request { method: "POST", path: "/api/v1/query", headers: &headers, body: body.as_bytes() };
        let data = self.data(&request).with_context(|| format!("Prometheus refuses `{query}`"))?;
        data["result"].as_array().cloned().context("the answer has no result")
    }

    /// What a query finds, soon: one scrape that the host is late with leaves series out until the next.
    pub(super) fn found(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let asked = Instant::now();
        loop {
            let found = self.query(query)?;
            if !found.is_empty() || asked.elapsed() > SCRAPED_WITHIN {
                return Ok(found);
            }
            thread::park_timeout(PROBE_INTERVAL);
        }
    }

    /// Every rule that is loaded, by name, with its query. Fails where the evaluation of one has failed.
    pub(super) fn rules(&self) -> anyhow::Result<Vec<(String, String)>> {
        let request = http::Request { method: "GET", path: "/api/v1/rules", headers: &[], body: b"" };
        let data = self.data(&request)?;
        let mut found = Vec::new();
        for rule in data["groups"].as_array().into_iter().flatten().filter_map(|group| group["rules"].as_array()).flatten() {
            let text = |name: &str| rule[name].as_str().map(str::to_owned).with_context(|| format!("a rule has no `{name}`"));
            let (name, query) = (text("name")?, text("query")?);
            ensure!(text("health")? != "err", "rule `{name}` fails: {}", rule["lastError"]);
            found.push((name, query));
        }
        Ok(found)
    }

    /// How its scrapes went.
    pub(super) fn targets(&self) -> anyhow::Result<String> {
        let request = http::Request { method: "GET", path: "/api/v1/targets", headers: &[], body: b"" };
        Ok(self.data(&request)?["activeTargets"].to_string())
    }

    fn data(&self, request: &http::Request<'_>) -> anyhow::Result<Value> {
        let answer: Value = serde_json::from_slice(&http::ask(self.address, request, PATIENCE)?.body)?;
        ensure!(answer["status"] == "success", "{}", answer["error"].as_str().unwrap_or("no reason is given"));
        Ok(answer["data"].clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Nobody wants its data. One that has ended by itself is only waited for.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            say(&format!("cannot end Prometheus: {error}"));
        }
    }
}

/// As a form has it.
fn encoded(text: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encoded).collect()
}

#[cfg(test)]
mod tests {
    use super::encoded;

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("rate(a_b{c=\"d\"}[1m]) > 0"), "rate%28a_b%7Bc%3D%22d%22%7D%5B1m%5D%29%20%3E%200");
    }
}
