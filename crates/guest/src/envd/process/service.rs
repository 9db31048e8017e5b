//! The `process.Process` service: requests in, events out. Conversions only; commands live in the parent module.

use std::{sync::Arc, time::Duration};

use connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use firkin_causes::chain;
use firkin_wire::envd::process::{
    __buffa::oneof::{
        process_event::Event, process_event::data_event::Output as WireOutput, process_input::Input as WireInput,
        process_selector::Selector, stream_input_request::Event as InputEvent,
    },
    CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse, ListRequest, ListResponse, PTY,
    Process as ProcessRpc, ProcessConfig, ProcessEvent, ProcessInfo, ProcessInput, ProcessSelector, SendInputRequest,
    SendInputResponse, SendSignalRequest, SendSignalResponse, Signal as WireSignal, StartRequest, StartResponse,
    StreamInputRequest, StreamInputResponse, UpdateRequest, UpdateResponse,
    process_event::{DataEvent, EndEvent, KeepAlive, StartEvent},
};
use firkin_wire::headers::ENDS_WITH_STREAM;
use futures::{Stream, StreamExt, stream};
use nix::sys::signal::Signal;
use tokio::time::Instant;

use super::{
    Described, InputError, Launch, Process, Processes, Size, StartError, Streams,
    output::{Chunk, Next, Subscription},
    tied::Tie,
};
use crate::envd::{auth, keepalive, paths, state::EnvdState, users::UserDb};

/// Serves commands.
#[derive(Debug)]
pub(crate) struct ProcessService {
    state: EnvdState,
    processes: Processes,
}

impl ProcessService {
    pub(crate) fn new(state: EnvdState, processes: Processes) -> Self {
        Self { state, processes }
    }

    fn find(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        match selector.and_then(|selector| selector.selector.as_ref()) {
            Some(Selector::Pid(pid)) => {
                self.processes.by_pid(*pid).ok_or_else(|| ConnectError::not_found(format!("process with pid {pid} not found")))
            }
            Some(Selector::Tag(tag)) => {
                self.processes.by_tag(tag).ok_or_else(|| ConnectError::not_found(format!("process with tag {tag} not found")))
            }
            None => Err(ConnectError::invalid_argument("a process must be selected by pid or tag")),
        }
    }

    /// As [`Self::find`], for what only a running process can take.
    fn find_running(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        let process = self.find(selector)?;
        if process.is_running() {
            return Ok(process);
        }
        Err(ConnectError::not_found(format!("process with pid {} not found", process.pid)))
    }

    fn describe(&self, ctx: &RequestContext, request: StartRequest) -> Result<Described, ConnectError> {
        let settings = self.state.settings();
        let user = auth::user_of(ctx.headers(), &settings, &UserDb::load()?)?;
        let config = request.process.into_option().unwrap_or_default();
        if config.cmd.is_empty() {
            return Err(ConnectError::invalid_argument("a command must be given"));
        }
        let cwd = paths::resolve(config.cwd.as_deref().unwrap_or_default(), &user, settings.default_workdir.as_deref())
            .map_err(|error| ConnectError::invalid_argument(error.to_string()))?;
        if !fs_err::metadata(&cwd).is_ok_and(|found| found.is_dir()) {
            return Err(ConnectError::invalid_argument(format!("cwd '{}' does not exist", cwd.display())));
        }
        let streams = match request.pty.as_option() {
            Some(pty) => Streams::Terminal(size_of(pty)),
            None => Streams::Pipes { stdin: request.stdin.unwrap_or(true) },
        };
        let launch = Launch {
            program: config.cmd.clone(),
            args: config.args.clone(),
            request_env: config.envs.clone().into_iter().collect(),
            sandbox_env: settings.env.clone(),
            cwd,
            user,
            streams,
        };
        Ok(Described { config, tag: request.tag, launch })
    }
}

impl From<StartError> for ConnectError {
    fn from(error: StartError) -> Self {
        let text = chain(&error);
        match error {
            StartError::TooMany => Self::failed_precondition(text),
            StartError::Spawn { .. } => Self::invalid_argument(text),
        }
    }
}

impl From<InputError> for ConnectError {
    fn from(error: InputError) -> Self {
        let text = chain(&error);
        match error {
            InputError::WrongKind { .. } | InputError::Closed | InputError::TerminalClose => Self::failed_precondition(text),
            InputError::Write(_) => Self::internal(text),
        }
    }
}

impl ProcessRpc for ProcessService {
    async fn list<'a>(
        &'a self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let processes = self.processes.running().iter().map(|process| info_of(process)).collect();
        Response::ok(ListResponse { processes, ..Default::default() })
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let process = self.find(request.to_owned_message().process.as_option())?;
        let subscription = process.subscribe();
        let events = events((process.pid, None), subscription, keepalive::interval(ctx.headers()), Ending::Reported);
        Response::stream_ok(events.map(|event| event.map(|event| ConnectResponse { event: event.into(), ..Default::default() })))
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let deadline = ctx.deadline().map(Instant::from_std);
        let described = self.describe(&ctx, request.to_owned_message())?;
        let processes = self.processes.clone();
        let is_tied = ctx.headers().contains_key(ENDS_WITH_STREAM);
        // A fork and an exec block; the task also completes when the client leaves now, so nothing is half started.
        let started = tokio::task::spawn_blocking(move || {
            let (process, subscription) = processes.start(described, deadline)?;
            Ok::<_, StartError>((process.pid, is_tied.then(|| Tie::of(process)), subscription))
        });
        let (pid, tie, subscription) = started.await.map_err(|error| ConnectError::internal(error.to_string()))??;
        let events = events((pid, tie), subscription, keepalive::interval(ctx.headers()), Ending::Limited);
        Response::stream_ok(events.map(|event| event.map(|event| StartResponse { event: event.into(), ..Default::default() })))
    }

    async fn update<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        if let Some(pty) = request.pty.as_option() {
            process.resize(size_of(pty))?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input<'a>(
        &'a self,
        _ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'a>> {
        let mut process = None;
        while let Some(request) = requests.next().await {
            match request?.to_owned_message().event {
                Some(InputEvent::Start(start)) => process = Some(self.find_running(start.process.as_option())?),
                Some(InputEvent::Data(data)) => {
                    let process = process.as_ref().ok_or_else(|| {
                        ConnectError::invalid_argument("the first message of an input stream must select a process")
                    })?;
                    deliver(process, data.input.into_option()).await?;
                }
                Some(InputEvent::Keepalive(_)) => {}
                None => return Err(ConnectError::invalid_argument("an input stream message must hold an event")),
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        deliver(&process, request.input.into_option()).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.find_running(request.process.as_option())?;
        let signal = match request.signal.as_known() {
            Some(WireSignal::SIGNAL_SIGKILL) => Signal::SIGKILL,
            Some(WireSignal::SIGNAL_SIGTERM) => Signal::SIGTERM,
            Some(WireSignal::SIGNAL_UNSPECIFIED) | None => {
                return Err(ConnectError::unimplemented(format!("invalid signal: {}", request.signal.to_i32())));
            }
        };
        process
            .signal(signal)
            .map_err(|error| ConnectError::internal(format!("cannot signal process {}: {error}", process.pid)))?;
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        self.find_running(request.to_owned_message().process.as_option())?.close_stdin().await?;
        Response::ok(CloseStdinResponse::default())
    }
}

async fn deliver(process: &Process, input: Option<ProcessInput>) -> Result<(), ConnectError> {
    match input.and_then(|input| input.input) {
        Some(WireInput::Stdin(data)) => process.write_stdin(&data).await?,
        Some(WireInput::Pty(data)) => process.write_terminal(&data).await?,
        None => return Err(ConnectError::invalid_argument("input must be for stdin or for a terminal")),
    }
    Ok(())
}

fn info_of(process: &Process) -> ProcessInfo {
    let config: ProcessConfig = process.config.clone();
    ProcessInfo { config: config.into(), pid: process.pid, tag: process.tag.clone(), ..Default::default() }
}

/// Terminal sizes are 16 bits wide in the kernel; a larger wish is the largest size.
fn size_of(pty: &PTY) -> Size {
    let narrow = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
    let (cols, rows) = pty.size.as_option().map_or((0, 0), |size| (size.cols, size.rows));
    Size { cols: narrow(cols), rows: narrow(rows) }
}

/// How a command that its time limit killed ends for this client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// With an error: the limit was this request's own.
    Limited,
    /// With the end event, as any other.
    Reported,
}

/// The events of one client: start, then output and keep-alives, then the end. What ties the command to them goes with them.
fn events(
    (pid, tie): (u32, Option<Tie>),
    subscription: Subscription,
    keepalive: Duration,
    ending: Ending,
) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + use<> {
    let start = event(StartEvent { pid, ..Default::default() });
    let rest = stream::unfold(Some((subscription, tie)), move |reader| async move {
        let (mut subscription, tie) = reader?;
        let Ok(next) = tokio::time::timeout(keepalive, subscription.next()).await else {
            return Some((Ok(event(KeepAlive::default())), Some((subscription, tie))));
        };
        Some(match next {
            Next::Chunk(chunk) => (Ok(event(data_of(chunk))), Some((subscription, tie))),
            Next::End(end) if end.timed_out && ending == Ending::Limited => {
                (Err(ConnectError::deadline_exceeded("the process was killed when its time limit passed")), None)
            }
            Next::End(end) => {
                let end = EndEvent {
                    exit_code: end.exit_code,
                    exited: end.exited,
                    status: end.status.clone(),
                    error: end.error.clone(),
                    ..Default::default()
                };
                (Ok(event(end)), None)
            }
            Next::Cut => {
                // For the sake of those who read on.
                if let Some(tie) = tie {
                    tie.release();
                }
                (Err(ConnectError::aborted("output was read too slowly and held back other readers")), None)
            }
        })
    });
    stream::once(async { Ok(start) }).chain(rest)
}

fn event(event: impl Into<Event>) -> ProcessEvent {
    ProcessEvent { event: Some(event.into()), ..Default::default() }
}

fn data_of(chunk: Chunk) -> DataEvent {
    let output = match chunk {
        Chunk::Stdout(data) => WireOutput::Stdout(data.into()),
        Chunk::Stderr(data) => WireOutput::Stderr(data.into()),
        Chunk::Pty(data) => WireOutput::Pty(data.into()),
    };
    DataEvent { output: Some(output), ..Default::default() }
}
