//! `firkin sandbox port-forward`: a port here is one of a sandbox, for whatever speaks TCP.
//!
//! The server leads HTTP into sandboxes and nothing else. So each connection is a process in there that copies between the port and its
//! own input and output. It needs `bash`, which every template has, and ends with the connection: it is asked to where there is time for that,
//! and killed by the sandbox where this program or its network is gone.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::Api,
    args::watching::{ForwardArgs, Ports},
    command::exec::processes,
    envd::{CommandLine, Output, Processes},
    failure::ExitStatus,
    output,
    settings::{Format, Settings},
};

/// Opens the port and copies both ways. A connection that is over in there ends it. One that is over here is given some seconds for what is
/// still said, because `bash` cannot close half of one.
const SCRIPT: &str = r#"exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 97; exec 4<&0; cat <&3 & reader=$!
(cat <&4 >&3; sleep 5; kill "$reader") & writer=$!; wait "$reader"; kill "$writer" 2>/dev/null; exit 0"#;

/// The status of a script that found the port closed.
const CLOSED: u8 = 97;

/// Connections at once: each is a process in the sandbox.
const MAX_CONNECTIONS: usize = 64;

/// How long the ends of all connections may take when this one is told to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// What is sent in one message.
const CHUNK: usize = 32 << 10;

/// Runs the command.
pub(super) async fn run(api: &Api, settings: &Settings, args: &ForwardArgs) -> anyhow::Result<ExitStatus> {
    let Ports { here, there } = args.ports;
    let processes = processes(api, &args.id, &args.user).await?;
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, here))).await;
    let listener = listener.with_context(|| format!("cannot listen on port {here} of this host"))?;
    let address = listener.local_addr().context("the listener has no address")?;
    match settings.format {
        Format::Json => output::text(&format!("{}\n", serde_json::json!({"address": address, "port": there})))?,
        Format::Table => output::text(&format!("{address} is port {there} of {}; Ctrl-C ends it\n", args.id))?,
    }
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut told_to_end = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut hung_up = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let stop = CancellationToken::new();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                let (stream, peer) = accepted.context("cannot accept connections")?;
                let (processes, stop) = (processes.clone(), stop.clone());
                connections.spawn(async move {
                    if let Err(error) = carry(&processes, stream, there, &stop).await {
                        output::note(&format!("a connection of {peer} broke: {error:#}"));
                    }
                });
            }
            // It has said what went wrong.
            Some(_) = connections.join_next() => {}
            _ = interrupted.recv() => break,
            _ = told_to_end.recv() => break,
            _ = hung_up.recv() => break,
        }
    }
    stop.cancel();
    if timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        output::note("the sandbox did not answer when its ends of the connections were to be closed");
    }
    Ok(ExitStatus::Success)
}

/// Copies one connection both ways until either end is over, or until there is to be none any more.
async fn carry(processes: &Processes, stream: TcpStream, port: u16, stop: &CancellationToken) -> anyhow::Result<()> {
    let words = ["/bin/bash", "-c", SCRIPT, "bash", &port.to_string()].map(str::to_owned);
    let command = CommandLine { stdin: true, ends_with_stream: true, ..CommandLine::words(&words) };
    let Some(started) = stop.run_until_cancelled(processes.start(&command)).await else { return Ok(()) };
    let mut process = started?;
    let input = process.input();
    let (mut from, mut to) = stream.into_split();
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let n = from.read(&mut buffer).await.context("cannot read from the connection")?;
            if n == 0 {
                return input.close().await;
            }
            input.send(buffer[..n].to_vec()).await?;
        }
    };
    let down = async {
        loop {
            match process.next().await? {
                Output::Stdout(bytes) => to.write_all(&bytes).await.context("cannot write to the connection")?,
                Output::Stderr(_) => {}
                Output::End(CLOSED) => return Err(anyhow::anyhow!("port {port} of the sandbox is not open")),
                Output::End(_) => return Ok(()),
            }
        }
    };
    tokio::pin!(up, down);
    let ended = tokio::select! {
        // What the sandbox still says is for whoever has only stopped to speak.
        sent = &mut up => match sent {
            Ok(()) => stop.run_until_cancelled(down).await.unwrap_or(Ok(())),
            Err(error) => Err(error),
        },
        ended = &mut down => ended,
        () = stop.cancelled() => Ok(()),
    };
    // It has ended, or nobody hears it.
    drop(input.terminate().await);
    ended
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use tokio::{net::TcpSocket, process::Command};

    use super::*;

    #[tokio::test]
    async fn the_script_carries_a_connection_and_says_when_there_is_none() {
        // Bound for as long as the test runs: a port that was given back might be another test's by now.
        let held = TcpSocket::new_v4().unwrap();
        held.set_reuseaddr(true).unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = held.local_addr().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let port = address.port().to_string();
        let run = || {
            let mut bash = Command::new("bash");
            bash.args(["-c", SCRIPT, "bash", &port]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
            bash.kill_on_drop(true).spawn().unwrap()
        };
        let mut script = run();
        script.stdin.as_mut().unwrap().write_all(b"ping\n").await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"pong\n").await.unwrap();
        // Over in there, it is over here.
        drop(stream);
        let mut said = Vec::new();
        script.stdout.take().unwrap().read_to_end(&mut said).await.unwrap();
        assert_eq!((&heard, said.as_slice()), (b"ping\n", &b"pong\n"[..]));
        assert!(script.wait().await.unwrap().success());
        drop(listener);
        assert_eq!(run().wait().await.unwrap().code(), Some(CLOSED.into()));
    }
}
