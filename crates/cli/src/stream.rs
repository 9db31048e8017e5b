//! The server's event stream as a client: it comes back by itself where it was, and says what it missed.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::Value;

use crate::{api::Api, interrupts::Interrupts};

/// The largest event that is read: a snapshot of thousands of sandboxes.
const MAX_EVENT_BYTES: usize = 16 << 20;

/// A server says something every 15 s; one that is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(45);

/// The pause before a connection that broke off is made again.
const PAUSE: Duration = Duration::from_secs(2);

/// Attempts to come back that fail one after the other, before it is an error: a restart takes less.
const ATTEMPTS: u32 = 15;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// What it is about: a topic, `snapshot` or `missed`.
    pub(crate) name: String,
    /// What it says.
    pub(crate) data: Value,
}

/// The stream.
pub(crate) struct Events {
    api: Api,
    topics: Vec<String>,
    body: Option<Incoming>,
    reader: Reader,
    /// The place that was reached.
    last: Option<String>,
    interrupts: Interrupts,
}

impl Events {
    /// Begins; an error where the server cannot be reached or refuses.
    pub(crate) async fn open(api: &Api, topics: &[String]) -> anyhow::Result<Self> {
        let mut events = Self {
            api: api.clone(),
            topics: topics.to_vec(),
            body: None,
            reader: Reader::default(),
            last: None,
            interrupts: Interrupts::default(),
        };
        events.connect().await?;
        Ok(events)
    }

    async fn connect(&mut self) -> anyhow::Result<()> {
        self.reader = Reader::default();
        let topics = (!self.topics.is_empty()).then(|| self.topics.join(","));
        self.body = Some(self.api.events(topics.as_deref(), self.last.as_deref()).await?);
        Ok(())
    }

    /// As [`Self::next`]; none once Ctrl-C was pressed.
    pub(crate) async fn next_unless_interrupted(&mut self) -> anyhow::Result<Option<Event>> {
        // Both of them want `self`.
        let mut interrupts = std::mem::take(&mut self.interrupts);
        let event = tokio::select! {
            event = self.next() => event.map(Some),
            interrupted = interrupts.next() => interrupted.map(|()| None),
        };
        self.interrupts = interrupts;
        event
    }

    /// The next event, also after the connection was lost in between. Cancel-safe: what was read stays.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Event> {
        let mut failed = 0;
        loop {
            while let Some((id, event)) = self.reader.next()? {
                if id.is_some() {
                    self.last = id;
                }
                if let Some(event) = event {
                    return Ok(event);
                }
            }
            match &mut self.body {
                Some(body) => match tokio::time::timeout(SILENCE, body.frame()).await {
                    Ok(Some(Ok(frame))) => self.reader.push(&frame.into_data().unwrap_or_default())?,
                    // Broken off, ended, or silent: all the same.
                    Ok(Some(Err(_)) | None) | Err(_) => self.body = None,
                },
                None => {
                    tokio::time::sleep(PAUSE).await;
                    if let Err(error) = self.connect().await {
                        failed += 1;
                        if failed >= ATTEMPTS {
                            return Err(error).context("the event stream was lost");
                        }
                    }
                }
            }
        }
    }
}

/// Makes events of bytes.
#[derive(Debug, Default)]
struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    fn push(&mut self, piece: &Bytes) -> anyhow::Result<()> {
        if self.bytes.len() + piece.len() > MAX_EVENT_BYTES {
            bail!("the server sent an event of more than {MAX_EVENT_BYTES} bytes");
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole block: its id, and what it says unless it is a comment.
    fn next(&mut self) -> anyhow::Result<Option<(Option<String>, Option<Event>)>> {
        let Some(end) = self.bytes.windows(2).position(|pair| pair == b"\n\n") else { return Ok(None) };
        let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
        let block = String::from_utf8(block).map_err(|_| anyhow!("the server sent an event that is no text"))?;
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let event = match (field("event: "), field("data: ")) {
            (Some(name), Some(data)) => {
                Some(Event { name, data: serde_json::from_str(&data).context("cannot understand an event")? })
            }
            _ => None,
        };
        Ok(Some((field("id: "), event)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_wherever_the_pieces_are_cut() {
        let text = "retry: 2000\n\nid: a-1\nevent: sandbox\ndata: {\"event\":\"created\"}\n\nid: a-2\n: still here\n\n";
        for cut in 0..text.len() {
            let mut reader = Reader::default();
            let mut found = Vec::new();
            for piece in [&text[..cut], &text[cut..]] {
                reader.push(&Bytes::copy_from_slice(piece.as_bytes())).unwrap();
                while let Some(block) = reader.next().unwrap() {
                    found.push(block);
                }
            }
            let event = Event { name: "sandbox".into(), data: serde_json::json!({"event": "created"}) };
            assert_eq!(found, [(None, None), (Some("a-1".into()), Some(event)), (Some("a-2".into()), None)], "{cut}");
        }
        assert!(Reader::default().push(&Bytes::from(vec![0; MAX_EVENT_BYTES + 1])).is_err());
    }
}
