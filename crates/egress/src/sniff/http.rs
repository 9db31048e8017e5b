//! The host of a request of HTTP/1.

use super::{Heard, Unnamed};
use crate::name::{HostName, NameError};

/// Headers of a request. Servers take about as many.
const MAX_HEADERS: usize = 100;
/// A request whose line is not whole yet, or whose headers are not, is looked at again from here on: the end is four bytes.
const OVERLAP_BYTES: usize = 3;

#[derive(Default)]
pub(super) struct Reader {
    seen: usize,
    line_known: bool,
}

impl Reader {
    /// Takes all bytes so far.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Heard {
        let from = self.seen.saturating_sub(OVERLAP_BYTES);
        let fresh = &bytes[from..];
        self.seen = bytes.len();
        if !self.line_known
            && let Some(end) = fresh.iter().position(|byte| *byte == b'\n')
        {
            // Other protocols begin with a line too (SSH): nobody waits for the end of their headers.
            let line = bytes[..from + end].trim_ascii_end();
            if !line.ends_with(b" HTTP/1.1") && !line.ends_with(b" HTTP/1.0") {
                return Some(Err(Unnamed::Unknown));
            }
            self.line_known = true;
        }
        let ends = |end: &[u8]| fresh.windows(end.len()).any(|window| window == end);
        (self.line_known && (ends(b"\n\r\n") || ends(b"\n\n"))).then(|| host(bytes))
    }
}

/// The host of a request whose headers are whole.
fn host(bytes: &[u8]) -> Result<HostName, Unnamed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    if !matches!(request.parse(bytes), Ok(httparse::Status::Complete(_))) {
        return Err(Unnamed::Malformed);
    }
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => return Err(Unnamed::NoName),
        (Some(_), Some(_)) => return Err(Unnamed::Several),
        (Some(host), None) => str::from_utf8(host.value).map_err(|_| Unnamed::Malformed)?,
    };
    let name = authority(host)?;
    let target = request.path.unwrap_or_default();
    if target.starts_with('/') || target == "*" {
        return Ok(name);
    }
    // The absolute form, in which requests are sent to proxies. Servers take it and believe it (RFC 9112, 3.2.2).
    let (_, rest) = target.split_once("://").ok_or(Unnamed::Tunnel)?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    if authority(&rest[..end])? == name { Ok(name) } else { Err(Unnamed::Several) }
}

/// The name in `name` or `name:port`.
fn authority(text: &str) -> Result<HostName, Unnamed> {
    if text.starts_with('[') {
        return Err(Unnamed::Literal);
    }
    let name = match text.split_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        Some(_) => return Err(Unnamed::Malformed),
        None => text,
    };
    name.parse().map_err(|error| match error {
        NameError::Address => Unnamed::Literal,
        NameError::Empty => Unnamed::NoName,
        NameError::Malformed | NameError::TooLong => Unnamed::Malformed,
    })
}
