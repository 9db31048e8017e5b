//! How a client learns that it was refused: in its own protocol, so that its user sees a reason and not a broken connection.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::made::NotMade;
use crate::{decision::Refusal, sniff::Protocol};

/// How long a client may take for the answer, and for closing.
const GOODBYE: Duration = Duration::from_secs(2);
/// What is read of a client that goes on sending. Bytes that are not read when a socket closes reset it, and the answer is lost.
const MAX_UNREAD_BYTES: u64 = 64 << 10;

/// Tells the client, and closes.
pub(super) async fn refuse(mut client: TcpStream, protocol: Protocol, why: &NotMade) {
    let answer = answer(protocol, why);
    if answer.is_empty() {
        // No protocol in which anything could be said.
        return;
    }
    let goodbye = async {
        client.write_all(&answer).await?;
        client.shutdown().await?;
        tokio::io::copy(&mut client.take(MAX_UNREAD_BYTES), &mut tokio::io::sink()).await
    };
    if !matches!(timeout(GOODBYE, goodbye).await, Ok(Ok(_))) {
        tracing::debug!("a client that was refused did not wait for the reason");
    }
}

/// What the client is told.
fn answer(protocol: Protocol, why: &NotMade) -> Vec<u8> {
    match protocol {
        Protocol::Tls => alert(why),
        Protocol::Http1 => response(why),
        Protocol::Http2 => goaway(why),
        Protocol::Unknown => Vec::new(),
    }
}

/// A fatal alert in clear text, which a client expects until it has heard from the server (RFC 8446, 6).
fn alert(why: &NotMade) -> Vec<u8> {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    const ACCESS_DENIED: u8 = 49;
    const INTERNAL_ERROR: u8 = 80;
    let description = match why {
        NotMade::Denied { .. } => ACCESS_DENIED,
        NotMade::Unreachable => INTERNAL_ERROR,
    };
    vec![ALERT, 3, 3, 0, 2, FATAL, description]
}

fn response(why: &NotMade) -> Vec<u8> {
    let status = match why {
        NotMade::Denied { .. } => "403 Forbidden",
        NotMade::Unreachable => "502 Bad Gateway",
    };
    let body = format!("{}\n", text(why));
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        .into_bytes()
}

/// Settings, which come first, and the end of the connection with its reason (RFC 9113, 6.8).
fn goaway(why: &NotMade) -> Vec<u8> {
    const SETTINGS: u8 = 4;
    const GOAWAY: u8 = 7;
    const HTTP_1_1_REQUIRED: u32 = 13;
    const INTERNAL_ERROR: u32 = 2;
    let code = match why {
        NotMade::Denied { .. } => HTTP_1_1_REQUIRED,
        NotMade::Unreachable => INTERNAL_ERROR,
    };
    let content = [&[0; 4], &code.to_be_bytes()[..], text(why).as_bytes()].concat();
    let length = u32::try_from(content.len()).expect("a reason is short").to_be_bytes();
    [&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0], &length[1..], &[GOAWAY, 0, 0, 0, 0, 0], &content[..]].concat()
}

/// The reason, with what it comes from.
fn text(why: &NotMade) -> String {
    match why {
        NotMade::Denied { refusal: Refusal::Unnamed(unnamed), .. } => {
            format!("blocked by the network rules of this sandbox: {unnamed}")
        }
        NotMade::Denied { refusal, .. } => format!("blocked by the network rules of this sandbox: {refusal}"),
        NotMade::Unreachable => "the host is allowed and cannot be reached".to_owned(),
    }
}
