//! How fast programs run in a sandbox, against the same program on this host.
//!
//! What an engine costs is the processor's time, so the program is arithmetic of an interpreter and a digest of memory: no files,
//! no processes, no network. It repeats each for a moment and keeps the best, since a host that is busy makes one longer and never
//! shorter. Both sides run one Python program, each with its own `python3`; where the host has none, nothing stands for it.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use firkin_image::command::{capture, command};
use serde::{Deserialize, Serialize};

use crate::output::Table;

/// Says of each piece of work how long it took at best. An emulated processor needs about a second for both.
pub(super) const PROGRAM: &str = r#"import hashlib, json, platform, time
def loop():
    total = 0
    for number in range(300000):
        total += number * number % 7
data = bytes(4 << 20)
def digest():
    hashlib.sha256(data).digest()
def best(work):
    begun, times = time.perf_counter(), []
    while not times or time.perf_counter() - begun < 0.2:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)
print(json.dumps({"loop_ms": best(loop), "digest_ms": best(digest), "python": platform.python_version()}))
"#;

/// The interpreter in a sandbox.
pub(super) const PYTHON: &str = "python3";
/// That of the host: rather Debian's, which the sandbox has too, than another that stands first in `PATH`.
const HOST_PYTHONS: [&str; 2] = ["/usr/bin/python3", PYTHON];

/// A host that needs longer for what takes it half a second has no speed to compare with.
const HOST_DEADLINE: Duration = Duration::from_secs(30);

/// What the program says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Times {
    loop_ms: f64,
    digest_ms: f64,
    /// The interpreter's version.
    python: String,
}

impl Times {
    /// Reads the program's answer.
    pub(super) fn parse(said: &str) -> anyhow::Result<Self> {
        serde_json::from_str(said).with_context(|| format!("the speed test answered `{}`", said.trim_end()))
    }
}

/// Both sides. The host's is absent where it could not be measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Speed {
    pub(super) sandbox: Times,
    pub(super) host: Option<Times>,
}

/// The same program on this host, if it has what runs it.
pub(super) async fn of_host() -> Option<Times> {
    of_host_by(&HOST_PYTHONS).await
}

async fn of_host_by(interpreters: &[&str]) -> Option<Times> {
    for python in interpreters {
        let mut run = command(python);
        // Neither the user's own modules nor those of the working directory.
        run.args(["-I", "-c", PROGRAM]);
        match capture(run, HOST_DEADLINE).await {
            Ok(said) => return Times::parse(&said).ok(),
            Err(error) => tracing::debug!(%error, python, "the host's speed was not measured"),
        }
    }
    None
}

impl Speed {
    fn rows(&self) -> [(&'static str, f64, Option<f64>); 2] {
        [
            ("python loop, 300,000 rounds", self.sandbox.loop_ms, self.host.as_ref().map(|host| host.loop_ms)),
            ("sha256 of 4 MiB", self.sandbox.digest_ms, self.host.as_ref().map(|host| host.digest_ms)),
        ]
    }

    /// Both sides by each other.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&["speed", ">sandbox, ms", ">host, ms", ">times"]);
        for (what, sandbox, host) in self.rows() {
            let (beside, times) = match host {
                Some(host) => (shown(host), format!("{:.1}", sandbox / host)),
                None => ("not measured".to_owned(), String::new()),
            };
            table.row([what.to_owned(), shown(sandbox), beside, times]);
        }
        if let Some(host) = self.host.as_ref().filter(|host| host.python != self.sandbox.python) {
            table.row(["by python".to_owned(), self.sandbox.python.clone(), host.python.clone(), String::new()]);
        }
        table
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Some(host) => {
                let times = [self.sandbox.loop_ms / host.loop_ms, self.sandbox.digest_ms / host.digest_ms];
                write!(f, "loop {:.1} times the host's time, digest {:.1}", times[0], times[1])
            }
            None => write!(f, "the host's was not measured: it has no {PYTHON}"),
        }
    }
}

fn shown(ms: f64) -> String {
    format!("{ms:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(loop_ms: f64, digest_ms: f64) -> Times {
        Times { loop_ms, digest_ms, python: "3.11.2".to_owned() }
    }

    #[test]
    fn both_sides_stand_by_each_other() {
        let speed = Speed { sandbox: times(440.0, 250.0), host: Some(times(20.0, 2.5)) };
        assert_eq!(
            speed.table().render(),
            "SPEED                        SANDBOX, MS  HOST, MS  TIMES\n\
             python loop, 300,000 rounds        440.0      20.0   22.0\n\
             sha256 of 4 MiB                    250.0       2.5  100.0\n"
        );
        let other = Times { python: "3.13.1".to_owned(), ..times(20.0, 2.5) };
        let last = Speed { host: Some(other), ..speed.clone() }.table().render();
        assert!(last.ends_with("by python                         3.11.2    3.13.1\n"), "{last}");
        assert_eq!(speed.to_string(), "loop 22.0 times the host's time, digest 100.0");
    }

    #[test]
    fn a_host_without_python_is_not_guessed() {
        let speed = Speed { sandbox: times(44.0, 2.0), host: None };
        assert_eq!(
            speed.table().render(),
            "SPEED                        SANDBOX, MS      HOST, MS  TIMES\n\
             python loop, 300,000 rounds         44.0  not measured\n\
             sha256 of 4 MiB                      2.0  not measured\n"
        );
        assert_eq!(serde_json::to_value(speed).unwrap()["host"], serde_json::Value::Null);
    }

    #[tokio::test]
    #[expect(clippy::print_stderr, reason = "a skip is printed")]
    async fn the_host_is_measured_by_the_same_program() {
        assert_eq!(of_host_by(&["firkin-no-such-python"]).await, None);
        if crate::host::which(PYTHON).is_none() {
            eprintln!("SKIP: the host's speed was not measured: it has no {PYTHON}");
            return;
        }
        let host = of_host().await.expect("a host with the interpreter is measured");
        assert!(host.loop_ms > 0.0 && host.digest_ms > 0.0, "{host:?}");
    }

    #[test]
    fn another_answer_is_an_error_that_shows_it() {
        let error = Times::parse("Killed\n").unwrap_err();
        assert_eq!(error.to_string(), "the speed test answered `Killed`");
    }
}
