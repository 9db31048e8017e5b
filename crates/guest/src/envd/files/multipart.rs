//! Reading `multipart/form-data` (RFC 7578), piece by piece as it arrives.
//!
//! File names are paths here and may hold any byte of UTF-8 but a line's end, so a part's head is not read as HTTP's headers are, which
//! refuse some. A quoted name is read as Go's `mime` does, which is what E2B's agent is written in: a backslash is one, unless it
//! stands before a sign that a client may have had to escape.

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use memchr::memmem::Finder;

/// Bytes of one part's head: a path is at most 4 KiB, every byte of it escaped perhaps.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// The longest boundary: more than the 70 signs that RFC 2046 allows.
const MAX_BOUNDARY_BYTES: usize = 256;

/// Signs that a backslash hides in a quoted string (`tspecials` of RFC 2045).
const SPECIAL: &str = "()<>@,;:\\\"/[]?=";

/// Why a form cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FormError {
    /// The content type names none, or one that is too long.
    #[error("cannot find a usable boundary in the content type")]
    Boundary,
    /// It ends before its last delimiter.
    #[error("the form ends too early")]
    Incomplete,
    /// A part's head does not end.
    #[error("the head of a part is longer than {MAX_HEAD_BYTES} bytes")]
    Head,
    /// A part's head is no text.
    #[error("the head of a part is not UTF-8")]
    Text,
    /// The body itself breaks.
    #[error("{0}")]
    Body(std::io::Error),
}

/// The head of a part.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// The field.
    pub(super) name: Option<String>,
    /// The file's name, or path.
    pub(super) file_name: Option<String>,
}

/// A form that is being read.
#[derive(Debug)]
pub(super) struct Form<S> {
    body: S,
    /// Bytes that have arrived and are not yet passed on.
    buffer: BytesMut,
    /// The delimiter before each part and after the last.
    delimiter: Finder<'static>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a part's content, or in what stands before the first part.
    Content,
    /// A delimiter is what the buffer begins with.
    Delimiter,
    /// After the last.
    Ended,
}

impl<S: Stream<Item = std::io::Result<Bytes>> + Unpin> Form<S> {
    pub(super) fn new(content_type: &str, body: S) -> Result<Self, FormError> {
        let boundary = parameters(content_type).into_iter().find(|(name, _)| name == "boundary").map(|(_, value)| value);
        let boundary = boundary.filter(|text| (1..=MAX_BOUNDARY_BYTES).contains(&text.len())).ok_or(FormError::Boundary)?;
        let delimiter = Finder::new(format!("\r\n--{boundary}").as_bytes()).into_owned();
        // The first delimiter may stand at the very beginning, where no line has ended.
        Ok(Self { body, buffer: BytesMut::from("\r\n"), delimiter, state: State::Content })
    }

    /// The next part; what was not read of the last one is passed over.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, FormError> {
        while self.chunk().await?.is_some() {}
        if self.state == State::Ended {
            return Ok(None);
        }
        self.buffer.advance(self.delimiter.needle().len());
        while self.buffer.len() < 2 {
            self.fill().await?;
        }
        if self.buffer.starts_with(b"--") {
            self.state = State::Ended;
            return Ok(None);
        }
        let part = Part::read(&self.head().await?)?;
        self.state = State::Content;
        Ok(Some(part))
    }

    /// More of the part's content; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, FormError> {
        let length = self.delimiter.needle().len();
        while self.state == State::Content {
            match self.delimiter.find(&self.buffer) {
                Some(0) => {
                    while self.buffer.len() < length + 2 {
                        self.fill().await?;
                    }
                    if matches!(&self.buffer[length..length + 2], b"--" | b"\r\n" | [b' ' | b'\t', _]) {
                        self.state = State::Delimiter;
                    } else {
                        // The boundary is only the beginning of something longer, which is content.
                        return Ok(Some(self.buffer.split_to(length).freeze()));
                    }
                }
                Some(at) => return Ok(Some(self.buffer.split_to(at).freeze())),
                // What may be the beginning of a delimiter stays.
                None if self.buffer.len() > length => {
                    let sure = self.buffer.len() - length;
                    return Ok(Some(self.buffer.split_to(sure).freeze()));
                }
                None => self.fill().await?,
            }
        }
        Ok(None)
    }

    /// The head of a part, without the rest of the delimiter's line.
    async fn head(&mut self) -> Result<Bytes, FormError> {
        loop {
            if let Some(at) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") {
                let head = self.buffer.split_to(at + 4).freeze();
                return Ok(head.slice(..at + 2));
            }
            if self.buffer.len() > MAX_HEAD_BYTES {
                return Err(FormError::Head);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), FormError> {
        match self.body.next().await {
            Some(Ok(bytes)) => self.buffer.extend_from_slice(&bytes),
            Some(Err(error)) => return Err(FormError::Body(error)),
            None => return Err(FormError::Incomplete),
        }
        Ok(())
    }
}

impl Part {
    fn read(head: &[u8]) -> Result<Self, FormError> {
        let text = std::str::from_utf8(head).map_err(|_| FormError::Text)?;
        let lines = text.split("\r\n").filter_map(|line| line.split_once(':'));
        let disposition =
            lines.filter(|(name, _)| name.trim().eq_ignore_ascii_case("content-disposition")).map(|(_, value)| value);
        let mut part = Self::default();
        let mut extended = None;
        for (name, value) in disposition.flat_map(parameters) {
            match name.as_str() {
                "name" => part.name = Some(value),
                "filename" => part.file_name = Some(value),
                "filename*" => extended = decode(&value),
                _ => {}
            }
        }
        part.file_name = extended.or(part.file_name);
        Ok(part)
    }
}

/// An extended value (RFC 8187), in the only encoding that must be understood.
fn decode(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_, text) = rest.split_once('\'')?;
    let text = percent_encoding::percent_decode_str(text).decode_utf8().ok()?;
    charset.eq_ignore_ascii_case("utf-8").then(|| text.into_owned())
}

/// The parameters after a header's value, their names in lower case. It ends where it makes no sense.
fn parameters(value: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = value.split_once(';').map_or("", |(_, rest)| rest);
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', '\t', ';']).to_ascii_lowercase();
        let after = after.trim_start();
        let (value, remaining) = match after.strip_prefix('"') {
            Some(quoted) => match unquote(quoted) {
                Some(both) => both,
                None => return found,
            },
            None => {
                let (token, remaining) = after.split_once(';').unwrap_or((after, ""));
                (token.trim().to_owned(), remaining)
            }
        };
        found.push((name, value));
        rest = remaining;
    }
    found
}

/// Splits at the closing quote: the text before it, and the rest.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut signs = text.char_indices().peekable();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match signs.next_if(|&(_, next)| SPECIAL.contains(next)) {
                Some((_, hidden)) => value.push(hidden),
                None => value.push('\\'),
            },
            other => value.push(other),
        }
    }
    // Browsers do not escape a backslash, so one at the end of a name seems to hide the quote that closes it.
    let name = text.trim_end().strip_suffix("\\\"")?;
    unquote(&format!("{name}\"")).map(|(value, _)| (value + "\\", ""))
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn file_name(quoted: &str) -> Option<String> {
        Part::read(format!("\r\nContent-Disposition: form-data; name=\"file\"; filename={quoted}\r\n").as_bytes())
            .unwrap()
            .file_name
    }

    #[test]
    fn file_names_are_what_clients_meant() {
        for (quoted, expected) in [
            (r#""a.txt""#, "a.txt"),
            // Escaped, as httpx and Go do it; and not, as browsers do it.
            (r#""a\\b""#, r"a\b"),
            (r#""a\b""#, r"a\b"),
            (r#""a\"b""#, "a\"b"),
            (r#""a;b=c""#, "a;b=c"),
            ("\"a\u{7f}\u{1}b\tc\"", "a\u{7f}\u{1}b\tc"),
            (r#""/home/user/zwöi; x""#, "/home/user/zwöi; x"),
            (r#""dir\""#, "dir\\"),
            ("plain; other=1", "plain"),
            ("x; filename*=UTF-8''%e2%82%ac.txt", "€.txt"),
            ("x; filename*=latin1''%80", "x"),
        ] {
            assert_eq!(file_name(quoted).as_deref(), Some(expected), "{quoted}");
        }
        assert_eq!(file_name("\"open"), None);
        assert!(matches!(Part::read(b"\r\na: \xff\r\n"), Err(FormError::Text)));
    }

    async fn read(text: &str, piece_bytes: usize) -> Result<Vec<(Part, String)>, FormError> {
        let pieces = text.as_bytes().chunks(piece_bytes).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>();
        let mut form = Form::new("multipart/form-data; boundary=\"b\"", stream::iter(pieces))?;
        let mut parts = Vec::new();
        while let Some(part) = form.next().await? {
            let mut content = Vec::new();
            while let Some(chunk) = form.chunk().await? {
                content.extend_from_slice(&chunk);
            }
            parts.push((part, String::from_utf8(content).unwrap()));
        }
        Ok(parts)
    }

    #[tokio::test]
    async fn parts_are_the_same_however_they_are_cut() {
        let text = "preamble\r\n--b \r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\none\r\n--bc\r\n-\r\n\
                    --b\r\n\r\n\r\n--b\r\ncontent-disposition: form-data; name=x\r\n\r\n\r\n--b--\r\nepilogue";
        let part =
            |name: Option<&str>, file: Option<&str>| Part { name: name.map(str::to_owned), file_name: file.map(str::to_owned) };
        let expected = [
            (part(Some("file"), Some("a")), "one\r\n--bc\r\n-".to_owned()),
            (part(None, None), String::new()),
            (part(Some("x"), None), String::new()),
        ];
        for piece_bytes in [1, 2, 3, 7, 1000] {
            assert_eq!(read(text, piece_bytes).await.unwrap(), expected, "{piece_bytes}");
        }
    }

    #[tokio::test]
    async fn what_is_no_form_is_refused() {
        assert!(matches!(Form::new("multipart/form-data", stream::empty()), Err(FormError::Boundary)));
        for text in ["", "--b", "--b\r\n", "--b\r\na: b\r\n\r\ncontent", "--b\r\na: b\r\n\r\ncontent\r\n--b"] {
            assert!(matches!(read(text, 5).await, Err(FormError::Incomplete)), "{text:?}");
        }
        let endless = format!("--b\r\n{}", "a".repeat(MAX_HEAD_BYTES + 1));
        assert!(matches!(read(&endless, 4096).await, Err(FormError::Head)));
    }
}
