//! Requests to a server of this host, one a connection: enough for checks, and nothing to pool, to negotiate or to run beside.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};

/// The largest answer that is read.
const MAX_ANSWER: u64 = 64 << 20;

/// A request.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// With its query.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// What it says, as far as that is text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks, and gives the answer of whatever status. Fails where the server is silent for as long as `patience`.
pub(crate) fn ask(address: SocketAddr, request: &Request<'_>, patience: Duration) -> anyhow::Result<Answer> {
    let Request { method, path, headers, body } = request;
    let mut head =
        format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in *headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut stream = TcpStream::connect_timeout(&address, patience).context("cannot connect")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    stream
        .write_all(format!("{head}\r\n").as_bytes())
        .and_then(|()| stream.write_all(body))
        .context("cannot send the request")?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).context("cannot read the answer")?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> anyhow::Result<Answer> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").context("the answer broke off")?;
    let (head, body) = (std::str::from_utf8(&answer[..end]).context("the answer's head is no text")?, &answer[end + 4..]);
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.context("the answer has no status")?;
    let header = |wanted: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, v)| v.trim())
    };
    let body = if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        joined(body)?
    } else {
        let length = header("content-length").map(str::parse::<usize>).transpose().context("the answer's length is no number")?;
        ensure!(length.is_none_or(|length| length == body.len()), "the answer broke off");
        body.to_vec()
    };
    Ok(Answer { status, body })
}

/// The pieces of a body that was sent in pieces.
fn joined(mut body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").context("the answer broke off")?;
        let size =
            std::str::from_utf8(&body[..end]).ok().and_then(|text| usize::from_str_radix(text.split(';').next()?, 16).ok());
        let (size, rest) = (size.context("a piece of the answer has no size")?, &body[end + 2..]);
        if size == 0 {
            return Ok(whole);
        }
        ensure!(rest.len() >= size + 2, "the answer broke off");
        whole.extend_from_slice(&rest[..size]);
        body = &rest[size + 2..];
    }
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead as _, net::TcpListener, thread};

    use super::*;

    fn answered(text: &str) -> anyhow::Result<Answer> {
        parse(text.as_bytes())
    }

    #[test]
    fn answers_are_read_in_both_forms_and_whole_or_not_at_all() {
        let expected = |body: &str| Answer { status: 201, body: body.as_bytes().to_vec() };
        let one = answered("HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabc").unwrap();
        assert_eq!(one, expected("abc"));
        let pieces = "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(answered(pieces).unwrap(), expected("abc0123456789"));
        for broken in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc\r\n0\r\n\r\n",
            "SSH-2.0\r\n\r\n",
        ] {
            assert!(answered(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_request_arrives_as_it_was_meant() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = Vec::new();
            let mut input = std::io::BufReader::new(stream.try_clone().unwrap());
            while lines.last().is_none_or(|line: &String| line != "\r\n") {
                let mut line = String::new();
                input.read_line(&mut line).unwrap();
                lines.push(line);
            }
            let mut body = [0; 2];
            input.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            (lines.concat(), body)
        });
        let request = Request { method: "POST", path: "/x?y=1", headers: &[("X-Z", "w")], body: b"hi" };
        assert_eq!(ask(address, &request, Duration::from_secs(10)).unwrap(), Answer { status: 204, body: Vec::new() });
        let (head, body) = server.join().unwrap();
        assert!(head.starts_with("POST /x?y=1 HTTP/1.1\r\n") && head.contains("X-Z: w\r\n"), "{head}");
        assert_eq!(&body, b"hi");
    }
}
