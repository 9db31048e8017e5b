//! The host's side of a guest's network, for tests that hold a machine and no network slot.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use anyhow::{Context, ensure};
use firkin_network::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_PREFIX, open_tap};
use firkin_wire::{ENVD_PORT, control::GuestNetwork};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::LinkUnspec;

/// For a connection, a request and an answer of a guest that translates its code anew on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a guest is told about this network.
pub fn guest_network() -> GuestNetwork {
    GuestNetwork {
        address: GUEST_ADDRESS,
        prefix: GUEST_PREFIX,
        gateway: GATEWAY_ADDRESS,
        gateway_mac: GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":"),
        dns: Vec::new(),
    }
}

/// A namespace of its own, and the guest's end of a tap in it that is up and has the gateway's addresses.
pub fn namespace() -> anyhow::Result<(OwnedFd, OwnedFd)> {
    let prepare = || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let tap = open_tap("tap0")?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(bring_up())?;
        Ok((fs_err::File::open("/proc/thread-self/ns/net")?.into_parts().0.into(), tap))
    };
    std::thread::spawn(prepare).join().expect("no panic")
}

async fn bring_up() -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let connection = tokio::spawn(connection);
    let index = nix::net::if_::if_nametoindex("tap0")?;
    let up = LinkUnspec::new_with_index(index).up().address(GATEWAY_MAC.to_vec());
    handle.link().change(up.build()).execute().await?;
    handle.address().add(index, GATEWAY_ADDRESS.into(), GUEST_PREFIX).execute().await?;
    connection.abort();
    Ok(())
}

/// Has the guest's envd write a file, over the network of `namespace`.
pub fn write_file(namespace: &OwnedFd, path: &str, content: &[u8]) -> anyhow::Result<()> {
    let exchange = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((GUEST_ADDRESS, ENVD_PORT)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let head = format!(
            "POST /files?username=root&path={path} HTTP/1.1\r\nhost: guest\r\ncontent-type: application/octet-stream\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            content.len()
        );
        stream.write_all(&[head.as_bytes(), content].concat())?;
        let mut answer = String::new();
        stream.take(64 << 10).read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "envd answers {answer}");
        Ok(())
    };
    // A thread of its own: the namespace is a thread's, and this one goes back to nobody.
    std::thread::scope(|scope| scope.spawn(exchange).join().expect("no panic")).context("cannot write a file in the guest")
}
