//! The `firkin` binary against a scripted server: what it sends, what it prints, how it ends.
#![expect(clippy::unwrap_used, reason = "a helper that cannot help ends the test")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use buffa::Message as _;
use bytes::Bytes;
use firkin_wire::envd::process::{
    ProcessEvent, StartRequest, StartResponse,
    process_event::{DataEvent, EndEvent, Event, StartEvent, data_event},
};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// A request as the server saw it.
#[derive(Debug, Clone)]
struct Seen {
    line: String,
    headers: http::HeaderMap,
    body: Bytes,
}

/// What to answer: status, headers, body.
type Answer = (u16, Vec<(&'static str, &'static str)>, Bytes);

fn json(status: u16, body: &'static str) -> Answer {
    (status, vec![("content-type", "application/json")], Bytes::from_static(body.as_bytes()))
}

/// A server that gives scripted answers to `METHOD path` and remembers what it was asked.
struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _runtime: tokio::runtime::Runtime,
    state_dir: tempfile::TempDir,
}

impl Server {
    fn start(script: impl IntoIterator<Item = (&'static str, Answer)>) -> Self {
        let script: Vec<(&'static str, Answer)> = script.into_iter().collect();
        let script = Arc::new(Mutex::new(VecDeque::from(script)));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&seen);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (script, seen) = (Arc::clone(&script), Arc::clone(&shared));
                let service = hyper::service::service_fn(move |request| answer(request, Arc::clone(&script), Arc::clone(&seen)));
                tokio::spawn(async move {
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    // A client that hangs up is no failure of the server.
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        let state_dir = tempfile::tempdir().unwrap();
        let server = Self { address, seen, _runtime: runtime, state_dir };
        fs_err::write(server.state_dir.path().join("server.json"), format!(r#"{{"url":"http://{address}","pid":1}}"#)).unwrap();
        fs_err::write(server.state_dir.path().join("api-key"), "e2b_0123\n").unwrap();
        server
    }

    fn run(&self, args: &[&str]) -> Output {
        firkin(self.state_dir.path(), args, b"")
    }

    fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|seen| seen.line.clone()).collect()
    }
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Mutex<VecDeque<(&'static str, Answer)>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri().path_and_query().unwrap());
    let headers = request.headers().clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    seen.lock().unwrap().push(Seen { line: line.clone(), headers, body });
    let found = {
        let mut script = script.lock().unwrap();
        script.iter().position(|(expected, _)| *expected == line).and_then(|index| script.remove(index))
    };
    let (status, headers, body) = match found {
        Some((_, answer)) => answer,
        None => json(404, r#"{"code":404,"message":"not in the script"}"#),
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::new(body)).unwrap())
}

fn firkin(state_dir: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_firkin"))
        .args(args)
        .env("FIRKIN_STATE_DIR", state_dir)
        .env_remove("E2B_API_KEY")
        .env_remove("E2B_API_URL")
        .env_remove("E2B_SANDBOX_URL")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

#[test]
fn the_key_comes_from_a_file_that_is_nobody_elses() {
    use std::os::unix::fs::PermissionsExt as _;
    let listing = ("GET /v2/sandboxes", json(200, "[]"));
    let server = Server::start([listing.clone(), listing.clone(), listing]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("api-key");
    // As systemd would have it for any program of a unit that has such a credential.
    let ambient = tempfile::tempdir().unwrap();
    fs_err::write(ambient.path().join("api-key"), "of another service").unwrap();
    let shown = |mode: u32, args: &[&str], credentials: &Path| {
        fs_err::write(&file, "e2b_4567\n").unwrap();
        fs_err::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_firkin"));
        command.args(["sandbox", "ls"]).args(args).env("FIRKIN_STATE_DIR", server.state_dir.path());
        command.env("E2B_API_KEY", "e2b_89ab").env_remove("E2B_API_URL").env("CREDENTIALS_DIRECTORY", credentials);
        let output = command.output().unwrap();
        let seen =
            server.seen.lock().unwrap().drain(..).map(|seen| seen.headers["x-api-key"].to_str().unwrap().to_owned()).next();
        (seen, stderr(&output).to_owned())
    };
    let named = ["--api-key-file", file.to_str().unwrap()];
    for (mode, args, credentials, key) in [
        (0o600, &named[..], ambient.path(), "e2b_4567"),
        (0o440, &named, dir.path(), "e2b_4567"),
        (0o600, &[], ambient.path(), "e2b_0123"),
    ] {
        assert_eq!(shown(mode, args, credentials).0.as_deref(), Some(key), "{mode:o}");
    }
    for (mode, credentials) in [(0o640, ambient.path()), (0o604, ambient.path()), (0o444, dir.path())] {
        let (seen, said) = shown(mode, &named, credentials);
        assert!(seen.is_none() && said.contains("lets other users in") && said.contains("hint: `chmod 600"), "{said}");
        assert!(!said.contains("4567"), "{said}");
    }
}

const ONE: &str = r#"[{"templateID":"t","sandboxID":"i1","clientID":"c","startedAt":"2026-01-01T00:00:00Z",
    "endAt":"2026-01-01T00:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"state":"running","envdVersion":"0.6.13"}]"#;
const DETAIL: &str = r#"{"templateID":"t","sandboxID":"i1","clientID":"c","startedAt":"2026-01-01T00:00:00Z",
    "endAt":"2026-01-01T00:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"state":"running","envdVersion":"0.6.13",
    "envdAccessToken":"secret","domain":null}"#;
const PAUSED: &str = r#"{"templateID":"t","sandboxID":"i1","clientID":"c","startedAt":"2026-01-01T00:00:00Z",
    "endAt":"2026-01-01T00:05:00Z","cpuCount":2,"memoryMB":512,"diskSizeMB":1024,"state":"paused","envdVersion":"0.6.13",
    "domain":null}"#;
const SANDBOX: &str =
    r#"{"templateID":"t","sandboxID":"i9","clientID":"c","envdVersion":"0.6.13","envdAccessToken":"secret","domain":null}"#;

#[test]
fn a_list_follows_every_page_with_the_key() {
    let mut first = json(200, ONE);
    first.1.push(("x-next-token", "p/2"));
    let server = Server::start([
        ("GET /v2/sandboxes?state=running", first),
        ("GET /v2/sandboxes?state=running&nextToken=p%2F2", json(200, ONE)),
    ]);
    let output = server.run(&["sandbox", "ls", "--state", "running"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(server.seen.lock().unwrap()[1].headers["x-api-key"], "e2b_0123");
}

#[test]
fn create_sends_what_was_asked_and_nothing_else() {
    let server = Server::start([("POST /v2/sandboxes", json(201, SANDBOX))]);
    let output = server.run(&["sandbox", "create", "py", "--timeout", "60", "--env", "A=1", "--metadata", "k=v"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let body: serde_json::Value = serde_json::from_slice(&server.seen.lock().unwrap()[0].body).unwrap();
    assert_eq!(body, serde_json::json!({"templateID": "py", "timeout": 60, "envVars": {"A": "1"}, "metadata": {"k": "v"}}));
}

#[test]
fn a_refresh_has_the_server_renew_the_templates_that_are_there_and_keeps_their_size() {
    const TEMPLATES: &str = r#"[{"templateID":"t1","buildID":"b0","cpuCount":2,"memoryMB":768,"diskSizeMB":1024,"public":false,
        "aliases":["base"],"names":["local/base"],"createdAt":"2026-01-01T00:00:00Z","updatedAt":"2026-01-01T00:00:00Z",
        "lastSpawnedAt":null,"spawnCount":0,"buildCount":1,"envdVersion":"0.6.13","buildStatus":"ready","createdBy":null}]"#;
    const PLACE: &str =
        r#"{"templateID":"t1","buildID":"b1","public":false,"names":["local/base"],"tags":[],"aliases":["base"]}"#;
    const READY: &str = r#"{"logs":[],"logEntries":[{"timestamp":"2026-01-01T00:00:00Z","level":"info","step":"base","message":"made"}],
        "templateID":"t1","buildID":"b1","status":"ready"}"#;
    let server = Server::start([
        ("GET /v2/sandboxes", json(200, "[]")),
        ("GET /templates", json(200, TEMPLATES)),
        ("POST /v3/templates", json(202, PLACE)),
        ("POST /v2/templates/t1/builds/b1", json(202, "")),
        ("GET /templates/t1/builds/b1/status?logsOffset=0", json(200, READY)),
    ]);
    let output = server.run(&["template", "refresh", "--json", "--cache-dir", "/nowhere/firkin"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report[0]["template_id"], "t1");
    assert_eq!((report[0]["built"].as_bool(), report.as_array().unwrap().len()), (Some(true), 1), "{report}");
    let seen = server.seen.lock().unwrap();
    let body = |at: usize| serde_json::from_slice::<serde_json::Value>(&seen[at].body).unwrap();
    assert_eq!(body(2), serde_json::json!({"name": "base", "cpuCount": 2, "memoryMB": 768}));
    assert_eq!(body(3)["fromImage"], "firkin.local/base:renewed");
    assert_eq!(body(3)["force"], false, "what is fresh already is not made again");
}

#[test]
fn a_refusal_is_told_in_the_servers_words_with_a_next_step() {
    let server = Server::start([("POST /v2/sandboxes", json(401, r#"{"code":401,"message":"invalid API key"}"#))]);
    let output = server.run(&["sandbox", "create"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        stderr(&output),
        "error: cannot create a sandbox\n  \
         cause: invalid API key\n\
         hint: the API key is not this server's; `firkin env` prints the right one\n"
    );
}

#[test]
fn several_sandboxes_fail_one_by_one() {
    let server = Server::start([("POST /sandboxes/i1/pause", (204, vec![], Bytes::new()))]);
    let output = server.run(&["sandbox", "pause", "i1", "i2"]);
    assert_eq!(output.status.code(), Some(1));
    let outcomes: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        outcomes,
        serde_json::json!([{"id": "i1", "result": "paused"}, {"id": "i2", "result": "error: not in the script"}])
    );
}

#[test]
fn killing_everything_needs_consent() {
    let server = Server::start([
        ("GET /v2/sandboxes", json(200, ONE)),
        ("GET /v2/sandboxes", json(200, ONE)),
        ("DELETE /sandboxes/i1", (204, vec![], Bytes::new())),
    ]);
    let refused = server.run(&["sandbox", "kill", "--all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).ends_with("hint: repeat the command with `--yes` to agree\n"), "{}", stderr(&refused));
    assert_eq!(server.lines().len(), 1);
    let agreed = server.run(&["sandbox", "kill", "--all", "--yes"]);
    assert_eq!((agreed.status.code(), stderr(&agreed)), (Some(0), ""));
    assert_eq!(server.lines()[2], "DELETE /sandboxes/i1");
}

#[test]
fn a_sandbox_that_ended_meanwhile_is_no_failure_of_killing_everything() {
    let server = Server::start([("GET /v2/sandboxes", json(200, ONE))]);
    let output = server.run(&["sandbox", "kill", "--all", "--yes"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    assert!(stdout(&output).contains("already gone"));
}

#[test]
fn no_server_is_its_own_exit_status() {
    let server = Server::start([]);
    // Nobody listens on the port of a listener that is gone.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fs_err::write(server.state_dir.path().join("server.json"), format!(r#"{{"url":"http://{free}","pid":1}}"#)).unwrap();
    let output = server.run(&["sandbox", "ls"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains(&format!("cannot reach a server at `http://{free}`")), "{}", stderr(&output));
    assert!(stderr(&output).ends_with("hint: start one with `firkin up`\n"), "{}", stderr(&output));
}

#[test]
fn a_server_that_never_was_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let output = firkin(dir.path(), &["sandbox", "ls"], b"");
    assert_eq!(output.status.code(), Some(3));
    let dir = dir.path().display();
    assert_eq!(
        stderr(&output),
        format!("error: no server runs with state directory `{dir}`\nhint: start a server with `firkin up --state-dir {dir}`\n")
    );
}

#[test]
fn a_template_is_not_begun_in_a_state_directory_that_a_server_uses() {
    let dir = tempfile::tempdir().unwrap();
    let lock = fs_err::File::create(dir.path().join("lock")).unwrap().into_file();
    lock.try_lock().unwrap();
    for name in ["base", "code-interpreter-v1"] {
        let output = firkin(dir.path(), &["template", "build", name], b"");
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let told = stderr(&output);
        assert!(
            told.starts_with(&format!("error: another server uses the state directory `{}`", dir.path().display())),
            "{told}"
        );
        assert!(told.contains("hint: stop that server first"), "{told}");
    }
}

#[test]
fn the_quickstart_changes_nothing_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let output = firkin(&dir.path().join("state"), &["quickstart"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: cannot set a host up without a terminal to ask at\n"), "{}", stderr(&output));
    assert!(!dir.path().join("state").exists());
}

#[test]
fn env_prints_lines_for_a_shell_and_json_on_demand() {
    let server = Server::start([]);
    let output = server.run(&["env"]);
    let url = format!("http://{}", server.address);
    assert_eq!(
        stdout(&output),
        format!(
            "export E2B_API_KEY=e2b_0123\nexport E2B_API_URL={url}\nexport E2B_SANDBOX_URL={url}\nexport E2B_VOLUME_API_URL={url}\n"
        )
    );
    let output = server.run(&["env", "--json"]);
    assert_eq!(
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap(),
        serde_json::json!({"E2B_API_KEY": "e2b_0123", "E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_VOLUME_API_URL": url})
    );
}

/// A Connect stream: an envelope for each event, then the envelope of a clean end.
fn stream(events: impl IntoIterator<Item = Event>) -> Answer {
    let mut body = Vec::new();
    for event in events {
        let event = ProcessEvent { event: Some(event), ..Default::default() };
        let message = StartResponse { event: event.into(), ..Default::default() }.encode_to_vec();
        body.push(0);
        body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        body.extend(message);
    }
    body.extend([2, 0, 0, 0, 2]);
    body.extend(b"{}");
    (200, vec![("content-type", "application/connect+proto")], body.into())
}

fn data(output: data_event::Output) -> Event {
    DataEvent { output: Some(output), ..Default::default() }.into()
}

fn end(event: EndEvent) -> Event {
    event.into()
}

#[test]
fn exec_joins_the_streams_and_passes_the_status_on() {
    let server = Server::start([
        ("GET /sandboxes/i1", json(200, DETAIL)),
        (
            "POST /process.Process/Start",
            stream([
                StartEvent { pid: 42, ..Default::default() }.into(),
                data(data_event::Output::Stdout(b"out\xff\n".to_vec())),
                data(data_event::Output::Stderr(b"err\n".to_vec())),
                end(EndEvent { exit_code: 7, exited: true, status: "exit status 7".to_owned(), ..Default::default() }),
            ]),
        ),
    ]);
    let output = server.run(&["sandbox", "exec", "i1", "--user", "root", "--env", "A=b", "--", "printf", "%s", "a b"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\xff\n"[..], &b"err\n"[..]));

    let seen = server.seen.lock().unwrap();
    let start = &seen[1];
    let header = |name: &str| start.headers[name].to_str().unwrap();
    assert_eq!((header("e2b-sandbox-id"), header("e2b-sandbox-port")), ("i1", "49983"));
    assert_eq!((header("x-access-token"), header("authorization")), ("secret", "Basic cm9vdDo="));
    let request = StartRequest::decode_from_slice(&start.body[5..]).unwrap();
    assert_eq!(request.process.args[3..], ["bash", "printf", "%s", "a b"]);
    assert_eq!(request.process.envs.get("A").map(String::as_str), Some("b"));
}

#[test]
fn what_was_copied_is_what_is_told() {
    // A file that has more in it than it says.
    let file = "/proc/version";
    let size = fs_err::read(file).unwrap().len();
    assert_eq!(fs_err::metadata(file).unwrap().len(), 0);
    let stored = ("POST /files?path=%2Fv&username=user", json(200, "[]"));
    let server = Server::start([("GET /sandboxes/i1", json(200, DETAIL)), stored]);
    let output = server.run(&["--json", "sandbox", "cp", file, "i1:/v"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "{:?}", server.lines());
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((told["bytes"].as_u64(), server.seen.lock().unwrap()[1].body.len()), (Some(size as u64), size));
}

#[test]
fn a_killed_command_ends_like_in_a_shell() {
    let server = Server::start([
        ("GET /sandboxes/i1", json(200, DETAIL)),
        (
            "POST /process.Process/Start",
            stream([
                StartEvent { pid: 42, ..Default::default() }.into(),
                end(EndEvent { exit_code: -1, exited: false, status: "signal: killed".to_owned(), ..Default::default() }),
            ]),
        ),
    ]);
    assert_eq!(server.run(&["sandbox", "exec", "i1", "--", "sleep", "9"]).status.code(), Some(137));
}

#[test]
fn a_paused_sandbox_runs_nothing() {
    let server = Server::start([("GET /sandboxes/i1", json(200, PAUSED))]);
    let output = server.run(&["sandbox", "exec", "i1", "--", "true"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: sandbox `i1` is paused\nhint: `firkin sandbox resume i1` continues it\n");
}

#[test]
fn a_key_is_rotated_by_the_server_that_runs() {
    let answer = r#"{"key":"b2","former":"a1","key_file":"/s/encryption.key","rewrapped":4,"unreadable":[]}"#;
    let server = Server::start([("GET /v2/sandboxes", json(200, "[]")), ("POST /encryption/rotate", json(200, answer))]);
    let output = server.run(&["key", "rotate"]);
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((told["key"].as_str(), told["rewrapped"].as_u64()), (Some("b2"), Some(4)));
}

#[test]
fn there_is_no_key_to_rotate_in_a_state_directory_of_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = firkin(dir.path(), &["key", "rotate"], b"");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("hint: `--state-dir`"), "{}", stderr(&output));
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "nothing is made where nothing is");
}

#[test]
fn help_names_every_command() {
    let output = firkin(Path::new("/nonexistent"), &["--help"], b"");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        stdout(&output),
        "Sandboxes for AI agents, each a virtual machine restored from a snapshot\n\
         \n\
         Usage: firkin [OPTIONS] <COMMAND>\n\
         \n\
         Commands:\n  \
           up             Serve in the foreground until Ctrl-C\n  \
           quickstart     Set up this host, try every part of the product once, say how to go on\n  \
           doctor         Say whether this host is ready, and what is missing\n  \
           env            Print the export lines that point the E2B SDKs at the server: eval \"$(firkin env)\"\n  \
           bench          Measure creates, pauses, forks and density\n  \
           verify         Read every template and snapshot, and say what is damaged and who needs it\n  \
           restore-from   Make a state directory anew of what `firkin up --copy-to` has copied, and say what is lost\n  \
           sandbox        Create, use and end sandboxes [alias: sbx]\n  \
           template       Build, list and remove templates\n  \
           snapshot       Move snapshots between hosts\n  \
           events         Tell what happened to sandboxes, or with --follow what happens to everything\n  \
           top            Watch sandboxes and the host live, on this terminal\n  \
           webhook        Send events of sandboxes to URLs, signed\n  \
           upgrade-check  Say whether this program can go on with what the server left or still runs, before it is replaced\n  \
           cluster        Have what is on record in a database, back it up, and say how a cluster is\n  \
          node           Look at the nodes of a cluster, and say that one is off\n  \
           config         Check and show the configuration of `up`\n  \
           completions    Print a script that completes commands and options in a shell\n  \
           man            Print the manual page, or write one of each command\n  \
           log-level      Show what the server logs, or change it while it runs\n  \
           audit          Say who changed what, when, from where and with which outcome\n  \
           team           Make and list teams, and say what each may have\n  \
           key            Make, list and end API keys, and work on the key that paused sandboxes are encrypted with\n\
         \n\
         Options:\n      \
               --state-dir <DIR>      Where the server keeps its state, and where other commands find it \
                                     [default: /var/lib/firkin] [env: FIRKIN_STATE_DIR]\n      \
               --api-key-file <FILE>  The API key, in a file that is nobody else's: servers accept it, other commands show it \
                                     [default: for `up` systemd's credential `api-key`; for others the key in the state directory, else E2B_API_KEY] [env: FIRKIN_API_KEY_FILE]\n      \
               --config <FILE>        File that says what options do, for what is neither typed nor set by a variable \
                                     [default: /etc/firkin/firkin.toml, if it is there] [env: FIRKIN_CONFIG]\n      \
               --json                 Print JSON even on a terminal\n  \
           -y, --yes                  Answer every question with yes\n  \
           -h, --help                 Print help\n  \
           -V, --version              Print version\n"
    );
}

#[test]
fn a_wrong_command_line_is_status_2() {
    assert_eq!(firkin(Path::new("/nonexistent"), &["sandbox", "kill"], b"").status.code(), Some(2));
}

fn bench_report(p50: f64) -> String {
    let host = r#"{"cpu":"c","cpus":2,"memory_mib":1,"kernel":"6"}"#;
    let row = format!(r#"{{"name":"create, ms","samples":100,"failed":0,"min":1,"p50":{p50},"p95":{p50},"p99":null,"max":9}}"#);
    format!(r#"{{"firkin":"0 a","acceleration":"kvm","server":"s","host":{host},"template":"base","burst":20,"rows":[{row}]}}"#)
}

#[test]
fn bench_compares_two_reports_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs_err::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (a, b) = (file("a.json", &bench_report(40.0)), file("b.json", &bench_report(10.0)));
    let output = firkin(dir.path(), &["bench", "--compare", &a, &b], b"");
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));
    let compared: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&compared[0]["p50_ratio"], &compared[0]["p95_ratio"]), (&0.25.into(), &0.25.into()));
    let output = firkin(dir.path(), &["bench", "--compare", &a, &file("c.json", "{}")], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).ends_with("hint: `firkin bench --json` writes such files\n"), "{}", stderr(&output));
}

#[test]
fn a_bench_that_fails_leaves_no_sandbox() {
    let server = Server::start([
        ("GET /v2/sandboxes", json(200, "[]")),
        ("POST /v2/sandboxes", json(201, SANDBOX)),
        // The command cannot be started; what the run made is ended all the same.
        ("DELETE /sandboxes/i9", (204, vec![], Bytes::new())),
    ]);
    let output = server.run(&["bench", "--quick"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = server.lines();
    assert!(lines.iter().any(|line| line == "POST /process.Process/Start"), "{lines:?}");
    assert!(lines.iter().any(|line| line == "DELETE /sandboxes/i9"), "{lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("GET /v2/sandboxes?metadata=firkin-bench")), "{lines:?}");
}

#[test]
fn an_option_goes_before_a_variable_before_the_file_before_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("firkin.toml");
    fs_err::write(&path, "listen = \"127.0.0.1:4000\"\nengine = \"gvisor\"\non-exit = \"leave\"\nstate-dir = \"/f\"\n").unwrap();
    fs_err::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let firkin = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firkin"));
        command.args(args).env_remove("FIRKIN_STATE_DIR").env("FIRKIN_CONFIG", &path).envs(variables.iter().copied());
        command.output().unwrap()
    };
    let shown =
        firkin(&["config", "show", "--engine", "kvm"], &[("FIRKIN_LISTEN", "127.0.0.1:5"), ("FIRKIN_ENGINE", "emulated")]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let row = |key: &str| {
        let row = shown["settings"].as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        (row["value"].clone(), row["source"].as_str().unwrap().to_owned(), row["from"].clone())
    };
    let at = |line: usize| serde_json::json!(format!("{}:{line}", path.display()));
    assert_eq!(row("engine"), (serde_json::json!(["kvm"]), "option".to_owned(), serde_json::Value::Null));
    assert_eq!(row("listen"), ("127.0.0.1:5".into(), "environment".to_owned(), "FIRKIN_LISTEN".into()));
    assert_eq!(row("on-exit"), ("leave".into(), "file".to_owned(), at(3)));
    assert_eq!(row("state-dir"), ("/f".into(), "file".to_owned(), at(4)));
    assert_eq!(row("jail"), ("best".into(), "default".to_owned(), serde_json::Value::Null));
    assert_eq!(row("allow-emulation"), (false.into(), "default".to_owned(), serde_json::Value::Null));

    assert_eq!(firkin(&["config", "check"], &[]).status.code(), Some(0));
    fs_err::write(&path, "listen = \"127.0.0.1:4000\"\nlistn = \"127.0.0.1:4000\"\n").unwrap();
    let checked = firkin(&["config", "check"], &[]);
    assert_eq!(checked.status.code(), Some(1));
    let faults: serde_json::Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(faults["faults"][0], serde_json::json!({"line": 2, "error": "there is no key `listn`: `listen` may be meant"}));
    let refused = firkin(&["up"], &[]);
    let told = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{told}");
    assert!(
        told.contains("line 2: there is no key `listn`: `listen` may be meant") && told.contains("hint: `firkin config check"),
        "{told}"
    );
}

#[test]
fn a_configuration_whose_secrets_others_can_read_is_faulty() {
    let dir = tempfile::tempdir().unwrap();
    let (path, key) = (dir.path().join("firkin.toml"), dir.path().join("key"));
    fs_err::write(&key, "e2b_0123456789\n").unwrap();
    fs_err::write(&path, format!("api-key-file = \"{}\"\nlisten = \"0.0.0.0:3000\"\n", key.display())).unwrap();
    for path in [&path, &key] {
        fs_err::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    }
    let checked = Command::new(env!("CARGO_BIN_EXE_firkin")).args(["config", "check"]).arg(&path).output().unwrap();
    let told = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(1), "{told}");
    assert!(told.contains("its mode 644 lets other users in") && told.contains("keys would pass in the clear"), "{told}");
    assert!(!told.contains("e2b_0123456789"), "{told}");
}
