//! Requests passed on, one by one, with what is put in.

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::{Either, Full};
use hyper::{
    body::{Bytes, Incoming},
    client, server,
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Mutex, watch};

use super::{
    ClientSide, Current, HTTP2, HostSide, Termination, ValueError,
    tasks::{Owned, Tasks},
    template::Reference,
    transform::Filled,
};
use crate::name::HostName;

/// Headers of one message. Servers take about as many.
const MAX_HEADERS: usize = 100;
/// Bytes of them: more than servers take.
const MAX_HEADER_BYTES: usize = 64 << 10;
/// Requests at a time on one connection of HTTP/2.
const MAX_STREAMS: u32 = 32;
/// What is kept of one of them for a side that does not read, and of all that a host sends on one connection.
const STREAM_BYTES: usize = 64 << 10;
const CONNECTION_BYTES: u32 = 1 << 20;
/// How long a client may take for the headers of a request, also between two.
const HEADERS_WITHIN: Duration = Duration::from_secs(300);

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// One connection whose requests are passed on.
pub(super) struct Forward {
    name: HostName,
    current: Current,
    /// Requests that have no answer yet, and those whose connection speaks another protocol from then on.
    asked: watch::Sender<usize>,
}

/// Where requests go.
#[derive(Clone)]
enum Sender {
    Http1(Arc<Mutex<client::conn::http1::SendRequest<Incoming>>>),
    Http2(client::conn::http2::SendRequest<Incoming>),
}

/// Why a request gets an answer of ours.
#[derive(Debug, thiserror::Error)]
enum NotPassed {
    #[error("a connection to `{0}` takes requests to `{0}` and to no other host")]
    Host(HostName),
    #[error("no tunnel leads through a connection in which headers are put in")]
    Tunnel,
    #[error("a host that is asked for what it got would tell the values that are put in")]
    Repeated,
    #[error("cannot put {0} in, which the network rules of this sandbox ask for")]
    Value(Reference, #[source] ValueError),
    #[error("{0} is nothing that a header can have")]
    Unfit(Reference),
    #[error("no headers are put in for this host any more")]
    Changed,
}

impl Forward {
    pub(super) fn new(name: HostName, current: Current) -> Self {
        Self { name, current, asked: watch::Sender::new(0) }
    }

    /// Until one side has closed.
    pub(super) async fn pass(self, client: ClientSide, host: HostSide) -> hyper::Result<()> {
        let tasks = Owned(Tasks::default());
        let agreed = client.get_ref().1.alpn_protocol() == Some(HTTP2);
        let passed =
            if agreed { self.pass_http2(client, host, &tasks.0).await } else { self.pass_http1(client, host, &tasks.0).await };
        // What became of requests that ask for another protocol goes on.
        tasks.0.all_ended().await;
        passed
    }

    async fn pass_http1(self, client: ClientSide, host: HostSide, tasks: &Tasks) -> hyper::Result<()> {
        let mut connect = client::conn::http1::Builder::new();
        connect.preserve_header_case(true).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
        let (sender, host) = connect.handshake(TokioIo::new(host)).await?;
        let (sender, this) = (Sender::Http1(Arc::new(Mutex::new(sender))), Arc::new(self));
        let mut asked = this.asked.subscribe();
        let upgraded = tasks.clone();
        let service = service_fn(move |request| Arc::clone(&this).answer(request, sender.clone(), upgraded.clone()));
        let mut serve = server::conn::http1::Builder::new();
        serve.preserve_header_case(true).max_headers(MAX_HEADERS).max_buf_size(MAX_HEADER_BYTES);
        serve.auto_date_header(false).timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN);
        let client = serve.serve_connection(TokioIo::new(client), service).with_upgrades();
        let (mut client, mut host) = (std::pin::pin!(client), std::pin::pin!(host.with_upgrades()));
        tokio::select! {
            ended = &mut client => ended,
            ended = &mut host => {
                // Nothing more is taken; what was asked is still answered.
                tokio::select! {
                    ended = &mut client => return ended,
                    none = asked.wait_for(|asked| *asked == 0) => drop(none),
                }
                client.as_mut().graceful_shutdown();
                client.await.and(ended)
            }
        }
    }

    async fn pass_http2(self, client: ClientSide, host: HostSide, tasks: &Tasks) -> hyper::Result<()> {
        let mut connect = client::conn::http2::Builder::new(tasks.clone());
        connect.max_send_buf_size(STREAM_BYTES).initial_connection_window_size(CONNECTION_BYTES);
        connect.timer(TokioTimer::new()).max_header_list_size(u32::try_from(MAX_HEADER_BYTES).expect("it is small"));
        let (sender, host) = connect.handshake(TokioIo::new(host)).await?;
        let (sender, this) = (Sender::Http2(sender), Arc::new(self));
        let upgraded = tasks.clone();
        let service = service_fn(move |request| Arc::clone(&this).answer(request, sender.clone(), upgraded.clone()));
        let mut serve = server::conn::http2::Builder::new(tasks.clone());
        serve.timer(TokioTimer::new()).auto_date_header(false).max_concurrent_streams(MAX_STREAMS);
        serve.max_send_buf_size(STREAM_BYTES);
        serve.max_header_list_size(u32::try_from(MAX_HEADER_BYTES).expect("it is small"));
        let client = serve.serve_connection(TokioIo::new(client), service);
        let (mut client, mut host) = (std::pin::pin!(client), std::pin::pin!(host));
        tokio::select! {
            ended = &mut client => ended,
            ended = &mut host => {
                client.as_mut().graceful_shutdown();
                client.await.and(ended)
            }
        }
    }

    async fn answer(self: Arc<Self>, mut request: Request<Incoming>, sender: Sender, tasks: Tasks) -> hyper::Result<Answer> {
        if let Err(not) = self.fill(&mut request).await {
            tracing::debug!(host = %self.name, error = &not as &dyn std::error::Error, "a request is not passed on");
            return Ok(told(&not));
        }
        self.asked.send_modify(|asked| *asked += 1);
        let asker = hyper::upgrade::on(&mut request);
        let mut response = match sender {
            Sender::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Http2(mut sender) => sender.send_request(request).await?,
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let answerer = hyper::upgrade::on(&mut response);
            tasks.spawn(relay(asker, answerer));
        } else {
            self.asked.send_modify(|asked| *asked -= 1);
        }
        Ok(response.map(Either::Left))
    }

    /// Puts everything in that the way of this moment says.
    async fn fill(&self, request: &mut Request<Incoming>) -> Result<(), NotPassed> {
        match request.method().as_str() {
            "CONNECT" => return Err(NotPassed::Tunnel),
            // The host would answer with the headers that it got (RFC 9110, 9.3.8).
            "TRACE" | "TRACK" => return Err(NotPassed::Repeated),
            _ => {}
        }
        if !self.is_of_host(request) {
            return Err(NotPassed::Host(self.name.clone()));
        }
        let Some(Termination { transforms, values, .. }) = (self.current)() else { return Err(NotPassed::Changed) };
        let transform = transforms.of(&self.name).ok_or(NotPassed::Changed)?;
        let mut filled = Filled::new();
        for reference in transform.wanted(request.headers()) {
            let value = values.value(reference, &self.name).await;
            filled.insert(reference.clone(), value.map_err(|error| NotPassed::Value(reference.clone(), error))?);
        }
        transform.apply(request.headers_mut(), &filled).map_err(NotPassed::Unfit)
    }

    /// Whether all that tells where a request goes tells this host.
    fn is_of_host(&self, request: &Request<Incoming>) -> bool {
        let is_ours = |authority: &Authority| {
            // Two readers could take what is before the sign for two things.
            let port = &authority.as_str()[authority.host().len().min(authority.as_str().len())..];
            let plain =
                port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
            let whole = !authority.as_str().contains('@') && plain;
            whole && authority.host().parse().is_ok_and(|name: HostName| name == self.name)
        };
        let told = |value: &HeaderValue| value.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
        let hosts = request.headers().get_all(header::HOST).iter().collect::<Vec<_>>();
        let target = request.uri().authority();
        hosts.len() <= 1
            && (target.is_some() || !hosts.is_empty())
            && target.is_none_or(is_ours)
            && hosts.iter().all(|value| told(value).as_ref().is_some_and(is_ours))
    }
}

/// What a client is told whose request is not passed on.
fn told(not: &NotPassed) -> Answer {
    let status = match not {
        NotPassed::Host(_) => StatusCode::MISDIRECTED_REQUEST,
        NotPassed::Tunnel | NotPassed::Repeated => StatusCode::METHOD_NOT_ALLOWED,
        NotPassed::Value(..) | NotPassed::Unfit(_) | NotPassed::Changed => StatusCode::BAD_GATEWAY,
    };
    let mut answer = Response::new(Either::Right(Full::new(format!("{not}\n").into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    answer
}

/// Bytes in both directions, of a protocol that we do not know.
async fn relay(asker: OnUpgrade, answerer: OnUpgrade) {
    let passed = async {
        let (asker, answerer) = tokio::try_join!(asker, answerer)?;
        let (mut asker, mut answerer) = (TokioIo::new(asker), TokioIo::new(answerer));
        Ok::<_, hyper::Error>(tokio::io::copy_bidirectional(&mut asker, &mut answerer).await)
    };
    match passed.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection was cut by one side"),
        Err(error) => tracing::debug!(%error, "a connection does not change its protocol"),
    }
}
