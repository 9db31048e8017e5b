//! `firkin quickstart`: set this host up, then try every part of the product once, through the same doors as any client.
//!
//! Each step proves something and is timed from outside, so that the table shows what a user would feel. The counter lives in
//! the memory of a process alone: whatever value it goes on from after a pause or in a fork came out of a snapshot. At the end the
//! sandbox's processor is held against the host's, because engines differ by it more than by anything else.

use std::time::Instant;

use anyhow::{Context as _, anyhow, bail, ensure};
use bytes::Bytes;
use firkin_runtime::reference::BASE;
use firkin_traces::Traces;
use firkin_wire::{DEFAULT_USER, rest};
use serde::Serialize;

use super::{
    hosting::{self, Interrupts},
    speed::{self, Speed, Times},
};
use crate::{
    api::{Api, Keep},
    envd::{Access, CommandLine, Output, Processes},
    failure::{Advise as _, ExitStatus},
    output::{self, Table},
    progress::Progress,
    serverfile::{self, ServerFile},
    service::Handed,
    settings::{Consent, Format, ServerSource, Settings},
};

/// How long each sandbox may live: far longer than the tour takes on the slowest host, and bounded if we are killed.
const SANDBOX_SECONDS: u32 = 900;

/// How many copies are forked.
const FORKS: u32 = 2;

/// The guest port that the counter answers on.
const COUNTER_PORT: u16 = 8000;

/// Answers each request with a token made at its start and the number of requests so far, both kept in memory only.
const COUNTER: &str = r#"import os, socket
token, count = os.urandom(8).hex(), 0
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("0.0.0.0", 8000))
server.listen()
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.recv(65536)
    count += 1
    body = f"{token} {count}"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    client.sendall((head + body).encode())
    client.close()
"#;

/// A step that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Taken {
    step: &'static str,
    result: String,
    ms: u128,
}

/// The report of the tour.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    acceleration: String,
    steps: Vec<Taken>,
    speed: Speed,
}

/// What a tour that came to its end brings home.
type Seen = (Vec<Taken>, Speed);

/// Runs the command.
pub(crate) async fn run(settings: &Settings, traces: Option<Traces>) -> anyhow::Result<ExitStatus> {
    if settings.consent == Consent::Nobody {
        return Err(anyhow!("cannot set a host up without a terminal to ask at"))
            .hint("`firkin quickstart --yes` agrees beforehand; `firkin doctor` shows what is missing");
    }
    let mut interrupts = Interrupts::listen()?;
    let progress = Progress::on_stderr(settings.live_progress);
    let report = match running_server(settings).await? {
        Some((api, acceleration)) => {
            output::note(&format!("using the server that runs at {}", api.target().api_url));
            tour(&api, &progress, &mut interrupts).await?.map(|seen| report(acceleration, seen))
        }
        None => own_server((settings, traces), &progress, &mut interrupts).await?,
    };
    let Some(report) = report else { return Ok(ExitStatus::Interrupted) };
    output::result(settings.format, &report, || table(&report))?;
    let farewell = farewell(settings, &report.acceleration);
    match settings.format {
        Format::Table => output::text(&format!("\n{}{farewell}", report.speed.table().render()))?,
        Format::Json => output::note(farewell.trim_end()),
    }
    Ok(ExitStatus::Success)
}

/// A server that uses this state directory already, with its acceleration: two cannot.
pub(super) async fn running_server(settings: &Settings) -> anyhow::Result<Option<(Api, String)>> {
    let Some(file) = ServerFile::read(&settings.server_file())? else { return Ok(None) };
    let api = Api::new(serverfile::find(&Settings { server: ServerSource::StateDir, ..settings.clone() })?);
    // A file of a server that is gone is no server.
    Ok(api.list(&[]).await.is_ok().then_some((api, file.acceleration)))
}

/// Takes the tour against a server of our own. `None` if interrupted.
async fn own_server(
    (settings, traces): (&Settings, Option<Traces>),
    progress: &Progress,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<Report>> {
    let (cache, state) = (settings.cache_dir.display(), settings.state_dir.display());
    output::note(&format!("downloads and builds are kept in {cache}, templates and sandboxes in {state}"));
    let socket = hosting::bind(settings, hosting::IfTaken::AnyFreePort, &mut Handed::default())?;
    let Some(host) = interrupts.unless(hosting::open(settings, progress, &hosting::Begins::default())).await? else {
        return Ok(None);
    };
    let acceleration = host.acceleration();
    let server = host.serve(settings, socket, Handed::default(), traces).await?;
    let seen = tour(&Api::new(server.target().clone()), progress, interrupts).await;
    let ended = server.stop(firkin_runtime::owner::OnExit::Kill).await;
    let report = seen?.map(|seen| report(acceleration, seen));
    ended?;
    Ok(report)
}

/// Every part of the product once. Whatever happens, no sandbox of the tour is left running. `None` if interrupted.
async fn tour(api: &Api, progress: &Progress, interrupts: &mut Interrupts) -> anyhow::Result<Option<Seen>> {
    let mut tour = Tour { api, progress, taken: Vec::new(), sandboxes: Vec::new() };
    let walked = interrupts.unless(Box::pin(tour.walk())).await;
    for sandbox in std::mem::take(&mut tour.sandboxes) {
        // Only a tour that broke off comes here. That it did is what gets reported.
        drop(api.kill(&sandbox.sandbox_id).await);
    }
    Ok(walked?.map(|speed| (tour.taken, speed)))
}

fn report(acceleration: String, (steps, speed): Seen) -> Report {
    Report { acceleration, steps, speed }
}

struct Tour<'a> {
    api: &'a Api,
    progress: &'a Progress,
    taken: Vec<Taken>,
    /// Those that must be ended.
    sandboxes: Vec<rest::Sandbox>,
}

impl Tour<'_> {
    async fn walk(&mut self) -> anyhow::Result<Speed> {
        let sandbox = self.create().await?;
        let processes = processes(self.api, &sandbox)?;
        self.command_and_files(&sandbox, &processes).await?;
        self.start_counter(&sandbox, &processes).await?;
        self.pause_and_resume(&sandbox).await?;
        self.fork(&sandbox).await?;
        let speed = self.speed(&sandbox, &processes).await?;
        self.kill().await?;
        Ok(speed)
    }

    async fn create(&mut self) -> anyhow::Result<rest::Sandbox> {
        let new = rest::NewSandbox {
            template_id: BASE.to_owned(),
            timeout: Some(SANDBOX_SECONDS.into()),
            metadata: Some([("made-by".to_owned(), "firkin quickstart".to_owned())].into()),
            ..Default::default()
        };
        let sandbox = self.timed("create a sandbox", self.api.create(&new), |sandbox| sandbox.sandbox_id.clone()).await?;
        self.sandboxes.push(sandbox.clone());
        Ok(sandbox)
    }

    async fn command_and_files(&mut self, sandbox: &rest::Sandbox, processes: &Processes) -> anyhow::Result<()> {
        let command = processes.output("echo \"hello from $(hostname), Linux $(uname -r)\"");
        let said = self.timed("run a command", command, |said| said.trim_end().to_owned()).await?;
        ensure!(
            said.contains(&sandbox.sandbox_id),
            "the sandbox calls itself `{}`, not `{}`",
            said.trim_end(),
            sandbox.sandbox_id
        );

        let content = Bytes::from_static(b"written from outside\n");
        let write = self.api.write_file(sandbox, "/home/user/hello.txt", content.clone());
        self.timed("write a file", write, |()| "/home/user/hello.txt".to_owned()).await?;
        let read = self.api.read_file(sandbox, "/home/user/hello.txt");
        let read = self.timed("read it back", read, |bytes| format!("{} bytes, equal", bytes.len())).await?;
        ensure!(read == content, "the file came back different");
        Ok(())
    }

    async fn start_counter(&mut self, sandbox: &rest::Sandbox, processes: &Processes) -> anyhow::Result<()> {
        let start = async {
            self.api.write_file(sandbox, "/home/user/counter.py", Bytes::from_static(COUNTER.as_bytes())).await?;
            let mut process = processes.start(&CommandLine::words(&["python3", "counter.py"].map(str::to_owned))).await?;
            loop {
                match process.next().await? {
                    Output::Stdout(bytes) if bytes.starts_with(b"ready") => return anyhow::Ok(()),
                    Output::Stdout(_) => {}
                    Output::Stderr(bytes) => bail!("the counter failed: {}", String::from_utf8_lossy(&bytes)),
                    Output::End(status) => bail!("the counter ended with status {status}"),
                }
            }
        };
        self.timed("start a counter in Python", start, |()| format!("listening on port {COUNTER_PORT}")).await
    }

    async fn pause_and_resume(&mut self, sandbox: &rest::Sandbox) -> anyhow::Result<()> {
        let before = count(self.api, sandbox).await?;
        let id = &sandbox.sandbox_id;
        self.timed("pause it with its memory", self.api.pause(id, Keep::All), |()| format!("counter at {}", before.count))
            .await?;
        let resumed = self.timed("resume it", self.api.connect(id, SANDBOX_SECONDS, Keep::All), |_| "running".to_owned()).await?;
        ensure!(resumed.1, "the sandbox was not paused");
        let after =
            self.timed("ask the counter", count(self.api, sandbox), |after| format!("went on to {}", after.count)).await?;
        ensure!(after == before.next(), "the counter was {before:?} and went on as {after:?}");
        Ok(())
    }

    async fn fork(&mut self, sandbox: &rest::Sandbox) -> anyhow::Result<()> {
        let before = count(self.api, sandbox).await?;
        let fork = self.api.fork(&sandbox.sandbox_id, FORKS, SANDBOX_SECONDS);
        let results = self.timed("fork it", fork, |forks| format!("{} copies", forks.len())).await?;
        let mut copies = Vec::new();
        for result in results {
            match (result.sandbox, result.error) {
                (Some(copy), _) => copies.push(copy),
                (None, Some(error)) => bail!("cannot fork: {}", error.message),
                (None, None) => bail!("a fork is neither a sandbox nor an error"),
            }
        }
        self.sandboxes.extend(copies.iter().cloned());
        ensure!(copies.len() == usize::try_from(FORKS)?, "asked for {FORKS} copies, got {}", copies.len());
        let api = self.api;
        let prove = async {
            let mut random = Vec::new();
            // All go on from the same number, and none sees the steps of the others.
            for member in std::iter::once(sandbox).chain(&copies) {
                let after = count(api, member).await?;
                ensure!(after == before.next(), "`{}` went on as {after:?} from {before:?}", member.sandbox_id);
                random.push(processes(api, member)?.output("head -c 16 /dev/urandom | od -An -tx1").await?);
            }
            for (index, bytes) in random.iter().enumerate() {
                ensure!(!random[..index].contains(bytes), "two forks drew the same random bytes");
            }
            anyhow::Ok(())
        };
        let next = before.count + 1;
        self.timed("prove them independent", prove, |()| format!("each counts {next} itself, random bytes differ")).await
    }

    async fn speed(&mut self, sandbox: &rest::Sandbox, processes: &Processes) -> anyhow::Result<Speed> {
        let measure = async {
            self.api.write_file(sandbox, "/home/user/speed.py", Bytes::from_static(speed::PROGRAM.as_bytes())).await?;
            let said = processes.output(&format!("{} -I /home/user/speed.py", speed::PYTHON)).await?;
            // One after the other: they would take each other's time.
            anyhow::Ok(Speed { sandbox: Times::parse(&said)?, host: speed::of_host().await })
        };
        self.timed("measure its processor", measure, Speed::to_string).await
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        let sandboxes = std::mem::take(&mut self.sandboxes);
        let kill = async {
            for sandbox in &sandboxes {
                self.api.kill(&sandbox.sandbox_id).await?;
            }
            anyhow::Ok(sandboxes.len())
        };
        self.timed("kill all of them", kill, |count| format!("{count} sandboxes ended")).await.map(drop)
    }

    /// Takes one step: shows it, times it, remembers it.
    async fn timed<T>(
        &mut self,
        step: &'static str,
        work: impl Future<Output = anyhow::Result<T>>,
        result: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<T> {
        let shown = self.progress.step(step);
        let begun = Instant::now();
        let value = work.await.with_context(|| format!("step \"{step}\" failed"))?;
        let took = begun.elapsed();
        shown.done(step);
        self.taken.push(Taken { step, result: result(&value), ms: took.as_millis() });
        Ok(value)
    }
}

fn processes(api: &Api, sandbox: &rest::Sandbox) -> anyhow::Result<Processes> {
    let token = sandbox.envd_access_token.as_deref();
    Processes::new(api.target(), &Access { sandbox_id: &sandbox.sandbox_id, token, user: Some(DEFAULT_USER) })
}

/// The counter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Count {
    token: String,
    count: u64,
}

impl Count {
    /// The answer that must come next if this is the same process with the same memory.
    fn next(&self) -> Self {
        Self { token: self.token.clone(), count: self.count + 1 }
    }
}

async fn count(api: &Api, sandbox: &rest::Sandbox) -> anyhow::Result<Count> {
    let answer = api.get_port(sandbox, COUNTER_PORT).await.context("cannot ask the counter")?;
    let answer = String::from_utf8_lossy(&answer);
    let (token, count) = answer.split_once(' ').with_context(|| format!("the counter answered `{answer}`"))?;
    Ok(Count { token: token.to_owned(), count: count.parse().with_context(|| format!("the counter answered `{answer}`"))? })
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(&["step", "result", ">ms"]);
    for taken in &report.steps {
        table.row([taken.step.to_owned(), taken.result.clone(), taken.ms.to_string()]);
    }
    let total: u128 = report.steps.iter().map(|taken| taken.ms).sum();
    table.row(["all".to_owned(), format!("acceleration: {}", report.acceleration), total.to_string()]);
    table
}

/// How to go on: lines to paste.
fn farewell(settings: &Settings, acceleration: &str) -> String {
    let firkin = hosting::program();
    let options = settings.state_option();
    format!(
        "\nEvery step works on this host (acceleration: {acceleration}). Nothing is left running.\n\
         \n\
         To use it, start the server in one terminal:\n\
         \n    {firkin} up{options}{serve}\n\
         \n\
         and point the E2B SDK at it in another:\n\
         \n    eval \"$({firkin} env{options})\"\n    \
             pip install e2b\n    \
             python3 -c 'from e2b import Sandbox; s = Sandbox.create(); print(s.commands.run(\"uname -a\").stdout); s.kill()'\n",
        serve = settings.serve_options(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ends_with_the_sum_and_the_acceleration() {
        let step = |step, result: &str, ms| Taken { step, result: result.to_owned(), ms };
        let report = Report {
            acceleration: "kvm".to_owned(),
            steps: vec![step("create a sandbox", "i1", 120), step("fork it", "2 copies", 30)],
            speed: Speed { sandbox: Times::parse(r#"{"loop_ms":40,"digest_ms":2,"python":"3"}"#).unwrap(), host: None },
        };
        assert_eq!(serde_json::to_value(&report).unwrap()["speed"]["sandbox"]["loop_ms"], 40.0);
        assert_eq!(
            table(&report).render(),
            "STEP              RESULT              MS\n\
             create a sandbox  i1                 120\n\
             fork it           2 copies            30\n\
             all               acceleration: kvm  150\n"
        );
    }

    #[test]
    fn a_counter_that_goes_on_is_one_further() {
        let before = Count { token: "ab".to_owned(), count: 3 };
        assert_eq!(before.next(), Count { token: "ab".to_owned(), count: 4 });
    }
}
