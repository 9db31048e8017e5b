//! Who changed what, when, from where and with which outcome: one line of JSON for each request that may change something, in files that
//! outlive sandboxes, templates, teams and keys.
//!
//! ```text
//!   answer ──► line ──► queue (bounded) ──► one thread: append, sync once a second ──► audit.jsonl
//!                                            └ at 16 MiB: ──► audit.1.jsonl ──► … ──► audit.8.jsonl ──► gone
//! ```
//!
//! A line has what was asked for by method and path, and nothing of a query or a body: no secret can get into it. It is written once the
//! answer is known, and without a status once nobody waits for the answer any more, who hung up: what was asked for may be done all the
//! same. Nobody waits for the disk; a power failure may take the last second's. Where the disk is slower than requests come,
//! lines are dropped, and how many is said by the next one. Who brought no key that is good is nobody, and not written down: strangers
//! would write the history out of the files.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use axum::{
    extract::{ConnectInfo, MatchedPath, Request},
    response::Response,
};
use fs_err::{self as fs, os::unix::fs::OpenOptionsExt as _};
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde::Serialize;

use crate::{auth::Caller, error::ErrorKind, latency::FirstAnswer, requests::RequestId};

/// The file that is written to, in the directory of the audit log.
pub const FILE: &str = "audit.jsonl";

/// Bytes of one file: some fifty thousand requests.
const MAX_BYTES: u64 = 16 << 20;

/// Files before the one that is written to.
pub const MAX_FILES: u32 = 8;

/// Lines that wait for the disk: a second of more requests than a host serves.
const QUEUE: usize = 4096;

/// Between two syncs of what was written.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The route that asks for nothing but an upgrade, and begins a shell by that.
const TERMINAL: &str = "/ui/sandboxes/{id}/terminal/socket";

/// Bytes of a path that are written down. No route of ours has a longer one that means anything.
const MAX_PATH_BYTES: usize = 512;

/// One request as it is written down.
#[derive(Debug, Clone, Serialize)]
struct Line {
    at: Timestamp,
    request: String,
    /// Absent for who has the admin token, or a secret of the thing itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    team: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The route.
    action: String,
    /// What of it: the path as it was asked for.
    object: String,
    /// What came of it, if that has an id of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    made: Option<String>,
    /// Absent where nobody was there to be answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
    /// Lines before this one that were dropped.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

impl Line {
    fn is_of(&mut self, caller: &Caller) {
        self.team = Some(caller.team.to_string());
        self.key = caller.key.as_ref().map(ToString::to_string);
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The log. Dropped, it has written and synced what it was given.
#[derive(Debug)]
pub(crate) struct Audit {
    lines: Option<SyncSender<Line>>,
    writer: Option<JoinHandle<()>>,
    dropped: AtomicU64,
}

/// Part of an answer: what was done with each of several things, each of which has a line of its own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Each(pub(crate) Vec<Done>);

/// What was done with one thing.
#[derive(Debug, Clone)]
pub(crate) struct Done {
    /// The thing, as a path.
    pub(crate) object: String,
    /// What alone would have been answered.
    pub(crate) status: StatusCode,
}

/// Part of an answer: who asked, where only the answer shows it, as of who signs in.
#[derive(Debug, Clone)]
pub(crate) struct By(pub(crate) Caller);

/// What is written in the place of an error where whoever asked did not wait for the answer.
const GONE: &str = "gone";

/// A request that is under way. Dropped before its end, it was given up by whoever asked.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    audit: &'a Audit,
    line: Option<Line>,
    /// Whether one is told of who hangs up.
    is_known: bool,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take().filter(|_| self.is_known) {
            self.audit.write(Line { error: Some(GONE), ..line });
        }
    }
}

impl Entry<'_> {
    /// Writes down what came of it: for who is nobody, only of what succeeded, as signing in does by leading on.
    pub(crate) fn end(mut self, response: &Response) {
        let Some(mut line) =
            self.line.take().filter(|_| self.is_known || response.status().is_success() || response.status().is_redirection())
        else {
            return;
        };
        line.status = Some(response.status().as_u16());
        line.error = response.extensions().get::<ErrorKind>().map(|ErrorKind(kind)| *kind);
        line.made = response.extensions().get::<FirstAnswer>().map(|FirstAnswer(id)| id.to_string());
        if let Some(By(caller)) = response.extensions().get() {
            line.is_of(caller);
        }
        match response.extensions().get::<Each>() {
            Some(Each(all)) if !all.is_empty() => {
                for Done { object, status } in all {
                    self.audit.write(Line { object: object.clone(), status: Some(status.as_u16()), ..line.clone() });
                }
            }
            _ => self.audit.write(line),
        }
    }
}

impl Audit {
    /// Opens the log of a directory, and begins to write to it.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let mut file = Log::open(dir)?;
        let (lines, queue) = sync_channel(QUEUE);
        let write = move || file.write_all(&queue);
        let writer = std::thread::Builder::new().name("firkin-audit".into()).spawn(write)?;
        Ok(Self { lines: Some(lines), writer: Some(writer), dropped: AtomicU64::new(0) })
    }

    /// Begins to note a request, if it may change something, as one that becomes a terminal does. `is_known` is whoever came with something good,
    /// with a key or without.
    pub(crate) fn begin(&self, request: &Request, caller: Option<&Caller>, is_known: bool) -> Option<Entry<'_>> {
        let route = request.extensions().get::<MatchedPath>()?.as_str();
        if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) && route != TERMINAL {
            return None;
        }
        let from = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
        let mut object = request.uri().path().to_owned();
        if object.len() > MAX_PATH_BYTES {
            // A path is ASCII here, so any byte is a boundary.
            object.truncate(MAX_PATH_BYTES);
        }
        let mut line = Line {
            at: Timestamp::now(),
            request: request.extensions().get::<RequestId>().map(|RequestId(id)| id.clone()).unwrap_or_default(),
            team: None,
            key: None,
            from: from.map(|from| from.to_string()),
            action: format!("{} {route}", request.method()),
            object,
            made: None,
            status: None,
            error: None,
            dropped: 0,
        };
        if let Some(caller) = caller {
            line.is_of(caller);
        }
        Some(Entry { audit: self, line: Some(line), is_known })
    }

    fn write(&self, mut line: Line) {
        line.dropped = self.dropped.swap(0, Ordering::Relaxed);
        let dropped = line.dropped;
        if self.lines.as_ref().is_some_and(|lines| lines.try_send(line).is_err()) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        // No more lines come, so the writer ends when it has written those that did.
        self.lines = None;
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the audit log broke off");
        }
    }
}

/// The files of the log.
struct Log {
    dir: PathBuf,
    file: fs::File,
    bytes: u64,
    is_dirty: bool,
}

fn numbered(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("audit.{number}.jsonl"))
}

impl Log {
    fn open(dir: &Path) -> io::Result<Self> {
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let path = dir.join(FILE);
        let mut file = fs::OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&path)?;
        let bytes = file.metadata()?.len();
        // A line that a power failure cut off ends where the next begins.
        if bytes > 0 && !ends_line(&mut file, bytes)? {
            file.write_all(b"\n")?;
        }
        Ok(Self { dir: dir.to_owned(), file, bytes, is_dirty: false })
    }

    /// Writes what comes until nothing can come any more.
    fn write_all(&mut self, queue: &Receiver<Line>) {
        let mut synced = Instant::now();
        loop {
            let patience = if self.is_dirty { SYNC_EVERY.saturating_sub(synced.elapsed()) } else { Duration::from_secs(3600) };
            let result = match queue.recv_timeout(patience) {
                Ok(line) => self.append(&line),
                Err(RecvTimeoutError::Timeout) => Ok(()),
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let result = if self.is_dirty && synced.elapsed() >= SYNC_EVERY {
                synced = Instant::now();
                result.and_then(|()| self.sync())
            } else {
                result
            };
            if let Err(error) = result {
                tracing::error!(%error, "cannot write to the audit log");
            }
        }
        if let Err(error) = self.sync() {
            tracing::error!(%error, "cannot write to the audit log");
        }
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        if self.bytes + text.len() as u64 > MAX_BYTES {
            self.rotate()?;
        }
        self.file.write_all(&text)?;
        self.bytes += text.len() as u64;
        self.is_dirty = true;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.is_dirty = false;
        self.file.sync_data()
    }

    /// Begins a new file; the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync()?;
        for number in (1..MAX_FILES).rev() {
            rename_if_there(&numbered(&self.dir, number), &numbered(&self.dir, number + 1))?;
        }
        rename_if_there(&self.dir.join(FILE), &numbered(&self.dir, 1))?;
        fs::File::open(&self.dir)?.sync_all()?;
        *self = Self::open(&self.dir)?;
        Ok(())
    }
}

fn ends_line(file: &mut fs::File, bytes: u64) -> io::Result<bool> {
    use io::{Read as _, Seek as _};
    file.seek(io::SeekFrom::Start(bytes - 1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files of a log that are there, oldest first.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let older = (1..=MAX_FILES).rev().map(|number| numbered(dir, number));
    older.chain([dir.join(FILE)]).filter(|path| path.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(object: &str) -> Line {
        Line {
            at: Timestamp::UNIX_EPOCH,
            request: "r-1".into(),
            team: Some("b".into()),
            key: None,
            from: None,
            action: "DELETE /sandboxes/{id}".into(),
            object: object.into(),
            made: None,
            status: Some(204),
            error: None,
            dropped: 0,
        }
    }

    #[test]
    fn files_are_bounded_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("audit");
        let mut log = Log::open(&dir).unwrap();
        let long = "x".repeat(1 << 20);
        for number in 0..(u64::from(MAX_FILES) + 3) * (MAX_BYTES >> 20) {
            log.append(&line(&format!("{number} {long}"))).unwrap();
        }
        let found = files(&dir);
        assert_eq!(found.len(), MAX_FILES as usize + 1);
        assert!(found.iter().all(|path| fs::metadata(path).unwrap().len() <= MAX_BYTES));
        assert!(!fs::read_to_string(&found[0]).unwrap().contains("\"0 x"), "the oldest is gone");
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "{\"at\":\"19").unwrap();
        let mut log = Log::open(dir.path()).unwrap();
        log.append(&line("whole")).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert!(serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap()["object"] == "whole");
    }
}
