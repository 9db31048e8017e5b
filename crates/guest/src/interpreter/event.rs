//! Events of a kernel, one JSON object a line, and the handling of lines that are none.
//!
//! Values are passed on as the text that they came as. A number that went through a type of ours would end as another one, or
//! not at all: JSON's have any number of digits. Nor is anything here as deep as what a line holds.
//!
//! A line that cannot be read is not passed over: its cell is told of the loss, and of what stood before the fault.

use std::{collections::BTreeMap, fmt, io};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeSeed, MapAccess, Visitor},
};
use serde_json::value::{RawValue, to_raw_value};
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// The longest line of a kernel: the kernels' own limit of an event, 24 MiB, and room for its frame.
pub(super) const MAX_LINE_BYTES: usize = 25 << 20;

/// How much of a lost line is shown.
const SHOWN_CHARS: usize = 200;

/// The values of an event by their names.
pub(super) type Fields = BTreeMap<String, Box<RawValue>>;

/// An event of a kernel.
#[derive(Debug, Clone)]
pub(super) struct Event {
    /// The cell it belongs to.
    pub(super) cell: Option<u64>,
    /// Its kind.
    pub(super) kind: Kind,
    /// Its content.
    pub(super) fields: Fields,
}

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    /// The kernel takes cells.
    Ready,
    /// The number of the cell that begins.
    Count,
    /// Output.
    Stdout,
    /// Output about trouble.
    Stderr,
    /// A value, or something displayed.
    Result,
    /// The error that the cell ended with.
    Error,
    /// The cell is over.
    Done,
}

/// Why a line is no event.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    /// No JSON object.
    #[error("cannot read the kernel's event, a line of {bytes} bytes that begins with `{start}`")]
    Json {
        /// Its length.
        bytes: usize,
        /// Its beginning.
        start: String,
        /// Where the fault is.
        #[source]
        source: serde_json::Error,
    },
    /// Nobody knows its type.
    #[error("cannot understand the kernel's event, a line of {bytes} bytes that begins with `{start}`: its type is not known")]
    Type {
        /// Its length.
        bytes: usize,
        /// Its beginning.
        start: String,
    },
    /// Too long to be kept.
    #[error("cannot take the kernel's event, a line of {bytes} bytes that begins with `{start}`: the limit is {} MiB", MAX_LINE_BYTES >> 20)]
    Length {
        /// Its length.
        bytes: usize,
        /// Its beginning.
        start: String,
    },
}

/// A line that is no event, and the event of what stood before the fault if that says what it is.
#[derive(Debug)]
pub(super) struct Lost {
    /// Why.
    pub(super) error: LineError,
    /// What could be read.
    pub(super) rest: Option<Event>,
}

/// A line as it was written, or how it was too long.
#[derive(Debug)]
pub(super) enum Line {
    /// All of it, without its end.
    Whole(String),
    /// Its length and its beginning; it is read to its end and not kept.
    TooLong(usize, String),
}

impl Event {
    /// An error of this cell, in words of ours.
    pub(super) fn error(cell: Option<u64>, name: &str, value: &str) -> Self {
        let fields = [("name", name), ("value", value), ("traceback", value)];
        let fields = fields.map(|(field, text)| (field.to_owned(), raw(text)));
        Self { cell, kind: Kind::Error, fields: BTreeMap::from(fields) }
    }

    /// The event of a line.
    pub(super) fn read(line: &Line) -> Result<Self, Lost> {
        let text = match line {
            Line::Whole(text) => text,
            Line::TooLong(bytes, start) => {
                return Err(Lost { error: LineError::Length { bytes: *bytes, start: shown(start) }, rest: None });
            }
        };
        let mut fields = Fields::new();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = Collect(&mut fields).deserialize(&mut json).and_then(|()| json.end());
        let event = Self::of(fields);
        let (bytes, start) = (text.len(), shown(text));
        match (read, event) {
            (Ok(()), Some(event)) => Ok(event),
            (Ok(()), None) => Err(Lost { error: LineError::Type { bytes, start }, rest: None }),
            (Err(source), rest) => Err(Lost { error: LineError::Json { bytes, start, source }, rest }),
        }
    }

    fn of(mut fields: Fields) -> Option<Self> {
        let cell = fields.remove("cell").and_then(|cell| serde_json::from_str(cell.get()).ok()?);
        let kind = serde_json::from_str(fields.remove("type")?.get()).ok()?;
        Some(Self { cell, kind, fields })
    }
}

/// A value as its JSON.
pub(super) fn raw(value: &(impl Serialize + ?Sized)) -> Box<RawValue> {
    to_raw_value(value).expect("strings, numbers and lists of them serialise")
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

/// Keeps the fields of an object, up to a fault too.
struct Collect<'a>(&'a mut Fields);

impl<'de> DeserializeSeed<'de> for Collect<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Collect<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry()? {
            self.0.insert(name, value);
        }
        Ok(())
    }
}

/// Reads a line; none at the end.
pub(super) async fn next_line(output: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Line>> {
    let (mut kept, mut bytes) = (Vec::new(), 0);
    loop {
        let part = output.fill_buf().await?;
        if part.is_empty() && bytes == 0 {
            return Ok(None);
        }
        let end = part.iter().position(|byte| *byte == b'\n');
        let (taken, used) = end.map_or((part.len(), part.len()), |at| (at, at + 1));
        let room = MAX_LINE_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(&part[..taken.min(room)]);
        let over = end.is_some() || part.is_empty();
        bytes += taken;
        output.consume(used);
        if over {
            let whole = bytes <= MAX_LINE_BYTES;
            kept.truncate(if whole { kept.len() } else { SHOWN_CHARS });
            let text = String::from_utf8_lossy(&kept).into_owned();
            return Ok(Some(if whole { Line::Whole(text) } else { Line::TooLong(bytes, text) }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Event, Lost> {
        Event::read(&Line::Whole(text.to_owned()))
    }

    #[test]
    fn values_stay_the_text_that_they_were() {
        let (number, deep) = ("9".repeat(400), format!("{}{}", "[".repeat(3000), "]".repeat(3000)));
        let text = format!(r#"{{"cell":7,"type":"result","json":[{number},1.10],"data":{deep}}}"#);
        let event = read(&text).unwrap();
        assert_eq!((event.cell, event.kind), (Some(7), Kind::Result));
        assert_eq!(event.fields["json"].get(), format!("[{number},1.10]"));
        assert_eq!(event.fields["data"].get(), deep);
    }

    #[test]
    fn a_line_that_is_no_event_is_lost_but_for_what_stands_before_the_fault() {
        let lost = read(r#"{"cell":3,"type":"result","text":"[nan]","json":[NaN],"html":""}"#).unwrap_err();
        assert!(lost.error.to_string().contains("64 bytes that begins with `{\"cell\":3"), "{}", lost.error);
        let rest = lost.rest.unwrap();
        assert_eq!((rest.cell, rest.kind, rest.fields["text"].get()), (Some(3), Kind::Result, "\"[nan]\""));
        assert!(!rest.fields.contains_key("json") && !rest.fields.contains_key("html"));
        for text in ["", "[]", "null", "{", r#"{"cell":1}"#, r#"{"type":"what"}"#, r#"{"type":"done"} {}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_told_and_the_next_is_read() {
        let text = format!("a\n{}\n\u{e9}\n\nlast", "x".repeat(MAX_LINE_BYTES + 1));
        let mut output = text.as_bytes();
        let mut lines = Vec::new();
        while let Some(line) = next_line(&mut output).await.unwrap() {
            lines.push(match line {
                Line::Whole(text) => text,
                Line::TooLong(bytes, start) => format!("{bytes} of {}", start.len()),
            });
        }
        assert_eq!(lines, ["a", "26214401 of 200", "\u{e9}", "", "last"]);
    }
}
