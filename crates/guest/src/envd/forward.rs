//! The way to programs that listen on the loopback only, which is where most development servers do.
//!
//! The host asks for a port when nothing answers on the outer address, and gets a connection that this agent has made from
//! inside: a program sees a peer of its own machine. Nothing is watched, polled or listened on in a program's place, so a
//! program is reached from its first moment on, no port is taken, and one that listens on the outer address too is not shadowed.

use std::{
    io::{self, BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, LazyLock},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use firkin_wire::forward::PROTOCOL;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{error::ApiError, state::EnvdState};

/// Forwarded connections at once; each holds two sockets and 16 KiB.
const MAX_FORWARDED: usize = 1024;

/// On the loopback a connection is made at once, or the program's queue is full: then it has this long to accept.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Sockets that are looked at for one that listens.
const MAX_SOCKETS: usize = 65_536;

/// Marks a listening socket (`TCP_LISTEN` of `net/tcp_states.h`).
const LISTENING: &str = "0A";

static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_FORWARDED)));

/// Where a request wants to go.
#[derive(Debug, Deserialize)]
pub(super) struct ForwardQuery {
    port: u16,
}

/// `GET /forward`: becomes a connection to a port of the loopback.
pub(super) async fn forward(
    State(state): State<EnvdState>,
    query: Result<Query<ForwardQuery>, QueryRejection>,
    mut request: Request<Body>,
) -> Response {
    let answer = async {
        let Query(ForwardQuery { port }) = query?;
        let asked = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
        if !asked {
            return Err(ApiError::new(StatusCode::UPGRADE_REQUIRED, format!("cannot forward without `Upgrade: {PROTOCOL}`")));
        }
        // What this agent serves is on the outer address, and says there to whom.
        if matches!(port, 0 | firkin_wire::ENVD_PORT | firkin_wire::INTERPRETER_PORT) {
            return Err(ApiError::bad_request(format!("cannot forward port {port}")));
        }
        let place = Arc::clone(&PLACES).try_acquire_owned().map_err(|_| {
            let text = format!("cannot forward more than {MAX_FORWARDED} connections at once");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text)
        })?;
        let program = connect(port).await.map_err(|error| {
            ApiError::new(StatusCode::BAD_GATEWAY, format!("cannot connect to port {port} of the loopback: {error}"))
        })?;
        let host = hyper::upgrade::on(&mut request);
        // Not joined: it ends with either side, or with the era.
        tokio::spawn(join(host, program, state, place));
        Ok((StatusCode::SWITCHING_PROTOCOLS, [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)]).into_response())
    };
    answer.await.unwrap_or_else(ApiError::into_response)
}

async fn join(host: OnUpgrade, mut program: TcpStream, state: EnvdState, place: OwnedSemaphorePermit) {
    let era = state.era();
    let copy = async {
        let mut host = TokioIo::new(host.await.map_err(io::Error::other)?);
        copy_bidirectional(&mut host, &mut program).await
    };
    tokio::select! {
        result = copy => if let Err(error) = result {
            tracing::debug!(%error, "a forwarded connection broke");
        },
        () = era.cancelled() => {}
    }
    drop(place);
}

/// Connects to whoever listens on the port of a loopback address: the two usual ones first, then whichever there is.
async fn connect(port: u16) -> io::Result<TcpStream> {
    let usual = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let mut refusal = io::Error::from(io::ErrorKind::ConnectionRefused);
    for address in usual {
        match open(SocketAddr::new(address, port)).await {
            Err(error) if address.is_ipv4() => refusal = error,
            // A guest may have no IPv6.
            Err(_) => {}
            opened => return opened,
        }
    }
    let other = tokio::task::spawn_blocking(move || listener_on_loopback(port)).await.map_err(io::Error::other)??;
    match other {
        Some(address) => open(SocketAddr::new(address, port)).await,
        None => Err(refusal),
    }
}

async fn open(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT_DEADLINE, TcpStream::connect(address)).await??;
    stream.set_nodelay(true)?;
    // Where nothing listens, a socket that happens to be given the port as its own connects to itself.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// An address of 127.0.0.0/8 on which something listens at this port, such as the one of the machine's own name.
fn listener_on_loopback(port: u16) -> io::Result<Option<IpAddr>> {
    let table = BufReader::new(fs_err::File::open("/proc/net/tcp")?);
    for line in table.lines().skip(1).take(MAX_SOCKETS) {
        if let Some(address) = listener(&line?).filter(|found| found.port() == port && found.ip().is_loopback()) {
            return Ok(Some(address.ip()));
        }
    }
    Ok(None)
}

/// The local address of a line of `/proc/net/tcp` (proc_net_tcp.rst), if it listens. The address is a number of the machine's
/// byte order, in hex.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    if fields.nth(1)? != LISTENING {
        return None;
    }
    let address = Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?.to_ne_bytes());
    Some(SocketAddr::from((address, u16::from_str_radix(port, 16).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_lines_are_listeners() {
        let line =
            |state: &str| format!("   7: 0101007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000");
        let expected = u32::from_ne_bytes([127, 0, 1, 1]);
        let own = line("0A").replace("0101007F", &format!("{expected:08X}"));
        assert_eq!(listener(&own), Some("127.0.1.1:8080".parse().unwrap()));
        for other in [line("01"), String::new(), "  sl  local_address rem_address   st".to_owned(), "0: zz:1 0:0 0A".to_owned()] {
            assert_eq!(listener(&other), None, "{other}");
        }
    }
}
