//! Commands through `process.Process`.

use std::{collections::HashMap, time::Duration};

use connectrpc::{
    ConnectError, ErrorCode,
    client::{CallOptions, HttpClient},
};
use firkin_wire::envd::process::{
    __buffa::oneof::{
        process_event::{Event, data_event::Output},
        process_input::Input,
        process_selector::Selector,
        stream_input_request::Event as InputEvent,
    },
    CloseStdinRequest, ConnectRequest, ConnectResponse, ListRequest, PTY, ProcessClient, ProcessConfig, ProcessInput,
    ProcessSelector, SendInputRequest, SendSignalRequest, Signal, StartRequest, StartResponse, StreamInputRequest, UpdateRequest,
    process_event::EndEvent,
    pty::Size,
    stream_input_request::{DataEvent, StartEvent},
};
use firkin_wire::headers::ENDS_WITH_STREAM;

use crate::harness::{Envd, user};

fn shell(script: &str) -> StartRequest {
    let process =
        ProcessConfig { cmd: "/bin/sh".to_owned(), args: vec!["-c".to_owned(), script.to_owned()], ..Default::default() };
    StartRequest { process: process.into(), stdin: Some(false), ..Default::default() }
}

fn select(pid: u32) -> ProcessSelector {
    ProcessSelector { selector: Some(Selector::Pid(pid)), ..Default::default() }
}

/// A started command, read event by event.
struct Running {
    stream: connectrpc::client::ServerStream<
        <HttpClient as connectrpc::client::ClientTransport>::ResponseBody,
        firkin_wire::envd::process::StartResponseView<'static>,
    >,
    pid: u32,
}

#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    pty: Vec<u8>,
    keepalives: usize,
    end: Option<EndEvent>,
    error: Option<ConnectError>,
}

impl Outcome {
    fn stdout(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// Takes one event; false after the last.
    fn take(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Data(data)) => match data.output {
                Some(Output::Stdout(bytes)) => self.stdout.extend_from_slice(&bytes),
                Some(Output::Stderr(bytes)) => self.stderr.extend_from_slice(&bytes),
                Some(Output::Pty(bytes)) => self.pty.extend_from_slice(&bytes),
                None => panic!("data without bytes"),
            },
            Some(Event::Keepalive(_)) => self.keepalives += 1,
            Some(Event::End(end)) => self.end = Some(*end),
            other => panic!("unexpected {other:?}"),
        }
    }
}

async fn start(client: &ProcessClient<HttpClient>, request: StartRequest, options: CallOptions) -> Result<Running, ConnectError> {
    let mut stream = client.start_with_options(request, options).await?;
    let Some(first) = stream.message::<StartResponse>().await? else {
        return Err(stream.error().cloned().expect("a stream without events ends with an error"));
    };
    match first.to_owned_message().event.into_option().unwrap().event {
        Some(Event::Start(event)) => Ok(Running { stream, pid: event.pid }),
        other => panic!("the first event is {other:?}"),
    }
}

impl Running {
    /// Reads until `done` says so or the stream ends.
    async fn read_until(&mut self, outcome: &mut Outcome, done: impl Fn(&Outcome) -> bool) {
        while !done(outcome) {
            match self.stream.message::<StartResponse>().await {
                Ok(Some(message)) => outcome.take(message.to_owned_message().event.into_option().unwrap().event),
                Ok(None) => {
                    outcome.error = self.stream.error().cloned();
                    return;
                }
                Err(error) => {
                    outcome.error = Some(error);
                    return;
                }
            }
        }
    }

    async fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.read_until(&mut outcome, |_| false).await;
        outcome
    }
}

async fn run(client: &ProcessClient<HttpClient>, script: &str) -> Outcome {
    start(client, shell(script), CallOptions::default()).await.unwrap().finish().await
}

#[tokio::test]
async fn output_and_exit_arrive_in_both_codecs() {
    let envd = Envd::start();
    for config in [envd.config(), envd.config().json()] {
        let client = ProcessClient::new(HttpClient::plaintext(), config);
        let outcome = run(&client, "printf out; printf err >&2; exit 3").await;
        assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (&b"out"[..], &b"err"[..]));
        let end = outcome.end.unwrap();
        assert_eq!((end.exit_code, end.exited, end.status.as_str()), (3, true, "exit status 3"));
        assert_eq!(end.error.as_deref(), Some("exit status 3"));
    }
}

#[tokio::test]
async fn a_large_output_is_whole_and_in_order() {
    let envd = Envd::start();
    let outcome = run(&envd.processes(), "seq 1 300000").await;
    let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
    assert!(outcome.stdout() == expected, "{} bytes", outcome.stdout.len());
}

#[tokio::test]
async fn commands_have_identity_environment_and_directory() {
    let envd = Envd::start_with(&["--default-workdir", "/usr"]);
    let client = envd.processes();
    let outcome =
        run(&client, "id -un; pwd; echo $FROM_SANDBOX $E2B_SANDBOX $E2B_SANDBOX_ID; ps -o sid=,pgid= -p $$; echo $$").await;
    let lines: Vec<&str> = outcome.stdout().lines().collect();
    assert_eq!(lines[..3], [user().as_str(), "/usr", "yes true standalone"]);
    assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), [lines[4], lines[4]], "own session and group");

    let mut request = shell("echo $FROM_SANDBOX; pwd");
    let process = request.process.get_or_insert_default();
    process.envs = HashMap::from_iter([("FROM_SANDBOX".to_owned(), "no".to_owned())]);
    process.cwd = Some("/etc".to_owned());
    let outcome = start(&client, request.clone(), CallOptions::default()).await.unwrap().finish().await;
    assert_eq!(outcome.stdout(), "no\n/etc\n");

    request.process.get_or_insert_default().cwd = Some("/not/here".to_owned());
    let error = start(&client, request, CallOptions::default()).await.err().unwrap();
    assert_eq!((error.code, error.message.as_deref()), (ErrorCode::InvalidArgument, Some("cwd '/not/here' does not exist")));

    let wrong = CallOptions::default().with_header("authorization", "Basic bm8tc3VjaDo=");
    let error = start(&client, shell("true"), wrong).await.err().unwrap();
    assert_eq!((error.code, error.message.as_deref()), (ErrorCode::Unauthenticated, Some("invalid username: 'no-such'")));

    let mut absent = shell("");
    absent.process.get_or_insert_default().cmd = "/no/such/program".to_owned();
    assert_eq!(start(&client, absent, CallOptions::default()).await.err().unwrap().code, ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_time_limit_kills_the_whole_group() {
    let envd = Envd::start();
    // The header alone: a limit that the client keeps itself would end the stream before the server does.
    let options = CallOptions::default().with_header("connect-timeout-ms", "5000");
    let outcome = start(&envd.processes(), shell("sleep 60 & echo $!; wait"), options).await.unwrap().finish().await;
    assert_eq!(outcome.error.as_ref().unwrap().code, ErrorCode::DeadlineExceeded);
    let child: u32 = outcome.stdout().trim().parse().expect("it was told before the end");
    let stat = format!("/proc/{child}/stat");
    let dead = || fs_err::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z") || stat.contains(") X"));
    until("the child is dead", dead).await;
}

/// Waits for a level, for at most two minutes.
async fn until(level: &str, mut reached: impl FnMut() -> bool) {
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for _ in 0..6_000 {
        if reached() {
            return;
        }
        ticks.tick().await;
    }
    panic!("it did not come to this: {level}");
}

#[tokio::test]
async fn input_reaches_the_command_until_it_is_closed() {
    let envd = Envd::start();
    let client = envd.processes();
    let request = StartRequest { stdin: Some(true), ..shell("cat") };
    let running = start(&client, request, CallOptions::default()).await.unwrap();
    let pid = running.pid;
    let stdin = |text: &str| ProcessInput { input: Some(Input::Stdin(text.as_bytes().to_vec())), ..Default::default() };
    let send = SendInputRequest { process: select(pid).into(), input: stdin("one\n").into(), ..Default::default() };
    client.send_input(send).await.unwrap();

    let streamed = [
        InputEvent::from(StartEvent { process: select(pid).into(), ..Default::default() }),
        InputEvent::from(DataEvent { input: stdin("two\n").into(), ..Default::default() }),
        InputEvent::from(DataEvent { input: stdin("three\n").into(), ..Default::default() }),
    ];
    let streamed: Vec<_> =
        streamed.into_iter().map(|event| StreamInputRequest { event: Some(event), ..Default::default() }).collect();
    client.stream_input(futures::stream::iter(streamed)).await.unwrap();
    client.close_stdin(CloseStdinRequest { process: select(pid).into(), ..Default::default() }).await.unwrap();
    assert_eq!(running.finish().await.stdout(), "one\ntwo\nthree\n");

    let late = SendInputRequest { process: select(pid).into(), input: stdin("x").into(), ..Default::default() };
    assert_eq!(client.send_input(late).await.err().unwrap().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_command_outlives_its_client_and_its_end_is_kept() {
    let envd = Envd::start();
    let client = envd.processes();
    let fifo = envd.path("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let request = StartRequest { tag: Some("job".to_owned()), ..shell(&format!("cat {fifo}; echo done; exit 5")) };
    let running = start(&client, request, CallOptions::default()).await.unwrap();
    let pid = running.pid;
    drop(running);
    let listed = client.list(ListRequest::default()).await.unwrap().into_owned();
    assert_eq!(
        listed.processes.iter().map(|process| (process.pid, process.tag.as_deref())).collect::<Vec<_>>(),
        [(pid, Some("job"))]
    );

    let connect = |selector| ConnectRequest {
        process: ProcessSelector { selector: Some(selector), ..Default::default() }.into(),
        ..Default::default()
    };
    let mut first = client.connect(connect(Selector::Pid(pid))).await.unwrap();
    let mut second = client.connect(connect(Selector::Tag("job".to_owned()))).await.unwrap();
    for stream in [&mut first, &mut second] {
        // The start event says that the subscription is in place.
        assert!(stream.message::<ConnectResponse>().await.unwrap().is_some());
    }
    fs_err::write(&fifo, "hello\n").unwrap();
    for stream in [&mut first, &mut second] {
        let mut outcome = Outcome::default();
        while let Some(message) = stream.message::<ConnectResponse>().await.unwrap() {
            outcome.take(message.to_owned_message().event.into_option().unwrap().event);
        }
        assert_eq!(outcome.stdout(), "hello\ndone\n");
        assert_eq!(outcome.end.unwrap().exit_code, 5);
    }
    assert!(client.list(ListRequest::default()).await.unwrap().into_owned().processes.is_empty());
    let mut late = client.connect(connect(Selector::Pid(pid))).await.unwrap();
    late.message::<ConnectResponse>().await.unwrap().unwrap();
    let end = late.message::<ConnectResponse>().await.unwrap().unwrap().to_owned_message();
    assert!(matches!(end.event.into_option().unwrap().event, Some(Event::End(end)) if end.exit_code == 5));
}

#[tokio::test]
async fn a_command_ends_with_its_stream_where_its_client_ties_them() {
    let envd = Envd::start();
    let client = envd.processes();
    let tied = || CallOptions::default().with_header(ENDS_WITH_STREAM, "1");
    // Nothing is written after the first line, so that only the end of the stream can tell.
    for pty in [None, Some(PTY { size: Size { cols: 80, rows: 24, ..Default::default() }.into(), ..Default::default() })] {
        let request = StartRequest { pty: pty.into(), stdin: Some(true), ..shell("sleep 600 & echo $!; wait") };
        let mut running = start(&client, request, tied()).await.unwrap();
        let mut outcome = Outcome::default();
        running
            .read_until(&mut outcome, |outcome| [&outcome.stdout, &outcome.pty].iter().any(|said| said.ends_with(b"\n")))
            .await;
        let said = String::from_utf8([outcome.stdout, outcome.pty].concat()).unwrap();
        let child = said.trim().to_owned();
        assert!(fs_err::exists(format!("/proc/{child}")).unwrap());
        drop(running);
        let dead = |pid: &str| {
            fs_err::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z") || stat.contains(") X"))
        };
        until("the command and its child are dead", || dead(&child)).await;
    }
    // One that ends by itself is heard to its end.
    let outcome = start(&client, shell("echo whole; exit 3"), tied()).await.unwrap().finish().await;
    assert_eq!((outcome.stdout(), outcome.end.as_ref().unwrap().exit_code), ("whole\n", 3));
}

#[tokio::test]
async fn a_signal_ends_the_group_even_while_children_hold_the_output() {
    let envd = Envd::start();
    let client = envd.processes();
    // The grandchild leaves the group and keeps the pipe open.
    let mut running =
        start(&client, shell("setsid sh -c 'echo $$; exec sleep 20' & wait"), CallOptions::default()).await.unwrap();
    let mut outcome = Outcome::default();
    running.read_until(&mut outcome, |outcome| outcome.stdout.ends_with(b"\n")).await;
    let signal =
        SendSignalRequest { process: select(running.pid).into(), signal: Signal::SIGNAL_SIGKILL.into(), ..Default::default() };
    client.send_signal(signal).await.unwrap();
    let end = running.finish().await.end.unwrap();
    assert_eq!((end.exit_code, end.exited, end.status.as_str()), (-1, false, "signal: killed"));
    let grandchild: i32 = outcome.stdout().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(grandchild), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_terminal_has_a_size_that_can_change() {
    let envd = Envd::start();
    let client = envd.processes();
    let size = |cols, rows| PTY { size: Size { cols, rows, ..Default::default() }.into(), ..Default::default() };
    let request = StartRequest { pty: size(80, 24).into(), ..shell("stty size; read line; stty size; tty") };
    let mut running = start(&client, request, CallOptions::default()).await.unwrap();
    let mut outcome = Outcome::default();
    running.read_until(&mut outcome, |outcome| outcome.pty.ends_with(b"24 80\r\n")).await;
    let update = UpdateRequest { process: select(running.pid).into(), pty: size(120, 40).into(), ..Default::default() };
    client.update(update).await.unwrap();
    let close = CloseStdinRequest { process: select(running.pid).into(), ..Default::default() };
    assert_eq!(client.close_stdin(close).await.err().unwrap().code, ErrorCode::FailedPrecondition);
    let key = ProcessInput { input: Some(Input::Pty(b"\n".to_vec())), ..Default::default() };
    let send = SendInputRequest { process: select(running.pid).into(), input: key.into(), ..Default::default() };
    client.send_input(send).await.unwrap();
    running.read_until(&mut outcome, |_| false).await;
    let text = String::from_utf8(outcome.pty).unwrap();
    assert!(text.contains("40 120\r\n") && text.contains("/dev/pts/"), "{text}");
    assert_eq!(outcome.end.unwrap().exit_code, 0);
}

#[tokio::test]
async fn an_idle_stream_says_that_it_lives() {
    let envd = Envd::start();
    let options = CallOptions::default().with_header("keepalive-ping-interval", "1");
    let mut running = start(&envd.processes(), shell("sleep 30"), options).await.unwrap();
    let mut outcome = Outcome::default();
    running.read_until(&mut outcome, |outcome| outcome.keepalives == 1).await;
    assert_eq!(outcome.keepalives, 1);
    let signal =
        SendSignalRequest { process: select(running.pid).into(), signal: Signal::SIGNAL_SIGTERM.into(), ..Default::default() };
    envd.processes().send_signal(signal).await.unwrap();
    assert_eq!(running.finish().await.end.unwrap().status, "signal: terminated");
}

#[tokio::test]
async fn a_slow_reader_holds_the_command_back_instead_of_losing_output() {
    let envd = Envd::start();
    // Far more than all queues and socket buffers together hold.
    let total = 64 << 20;
    let request = shell(&format!("exec head -c {total} /dev/zero"));
    let mut running = start(&envd.processes(), request, CallOptions::default()).await.unwrap();
    // Nobody reads. The command is held back when what it has written no longer grows.
    let io = format!("/proc/{}/io", running.pid);
    let mut steady = Vec::new();
    until("the command is held back", || {
        let io = fs_err::read_to_string(&io).unwrap();
        let written: usize = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap();
        if steady.last() != Some(&written) {
            steady.clear();
        }
        steady.push(written);
        written > 0 && steady.len() >= 10
    })
    .await;
    assert!(steady[0] < total / 2, "{} bytes were taken with nobody reading", steady[0]);
    let mut outcome = Outcome::default();
    running.read_until(&mut outcome, |_| false).await;
    assert_eq!(outcome.stdout.len(), total);
}
