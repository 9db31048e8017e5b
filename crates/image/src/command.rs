//! External programs, bounded in time and in what they may say.
//!
//! A program gets no input, runs in its own process group, and dies with the future that waits for it. Its output goes line
//! by line to a log file (which errors name) and to the caller, who makes progress of it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// What a log may hold. A build of the root file system writes half a megabyte.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// What is taken of one line; the rest is dropped.
const MAX_LINE_BYTES: u64 = 8 << 10;
/// What [`capture`] takes: the largest answer, the package lists of a kernel's versions, is a hundredth of this.
const MAX_CAPTURE_BYTES: u64 = 8 << 20;
/// How many of the last lines an error repeats.
const LAST_LINES: usize = 3;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed, or cannot be executed.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("`{program}` failed with {status}: {last}{}", log_hint(log))]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        last: String,
        /// The whole of its output.
        log: Option<PathBuf>,
    },
    /// It ran longer than it may, and was killed.
    #[error("`{program}` did not end within {seconds} s and was killed: {last}{}", log_hint(log))]
    Deadline {
        /// The program.
        program: String,
        /// What it had.
        seconds: u64,
        /// The end of its output.
        last: String,
        /// The whole of its output.
        log: Option<PathBuf>,
    },
    /// Its output cannot be read, or not be written to the log.
    #[error("cannot follow `{program}`{}", log_hint(log))]
    Follow {
        /// The program.
        program: String,
        /// Where its output was to go.
        log: Option<PathBuf>,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

fn log_hint(log: &Option<PathBuf>) -> String {
    log.as_ref().map(|log| format!(" (log: `{}`)", log.display())).unwrap_or_default()
}

/// What happens to a program whose future is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenDropped {
    /// Its process group is killed.
    Kill,
    /// It goes on to its own end. For programs that change the host: a package manager cut in half leaves the host broken.
    Finish,
}

/// A command whose output is text in the C locale and that asks no question.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").env_remove("LANGUAGE");
    command
}

/// Runs a program to its end, appending its output to `log`, each line also given to `on_line`.
pub async fn run(
    mut command: Command,
    deadline: Duration,
    log: &Path,
    when_dropped: WhenDropped,
    on_line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), CommandError> {
    let program = name(&command);
    let follow = |source| CommandError::Follow { program: program.clone(), log: Some(log.to_path_buf()), source };
    let mut sink = Sink::open(log, &command).await.map_err(follow)?;
    let mut running = Running::start(&mut command, &program, when_dropped)?;
    let ended = tokio::time::timeout(deadline, running.follow(&mut sink, on_line)).await;
    sink.file.flush().await.map_err(follow)?;
    let (last, log) = (sink.last(), Some(log.to_path_buf()));
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(CommandError::Failed { program, status, last, log }),
        Ok(Err(source)) => Err(CommandError::Follow { program, log, source }),
        Err(_) => {
            running.kill();
            Err(CommandError::Deadline { program, seconds: deadline.as_secs(), last, log })
        }
    }
}

/// Runs a program that answers a question, and gives its standard output. Killed when the future is dropped.
pub async fn capture(mut command: Command, deadline: Duration) -> Result<String, CommandError> {
    let program = name(&command);
    let mut running = Running::start(&mut command, &program, WhenDropped::Kill)?;
    let answer = tokio::time::timeout(deadline, running.answer()).await;
    let (status, stdout, stderr) = match answer {
        Ok(answer) => answer.map_err(|source| CommandError::Follow { program: program.clone(), log: None, source })?,
        Err(_) => {
            running.kill();
            return Err(CommandError::Deadline { program, seconds: deadline.as_secs(), last: String::new(), log: None });
        }
    };
    if status.success() {
        return Ok(stdout);
    }
    let last = if stderr.trim().is_empty() { stdout } else { stderr };
    Err(CommandError::Failed { program, status, last: tail(last.lines().map(str::to_owned)), log: None })
}

fn name(command: &Command) -> String {
    command.as_std().get_program().to_string_lossy().into_owned()
}

fn tail(lines: impl Iterator<Item = String>) -> String {
    let lines: Vec<String> = lines.filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join(" / ")
}

/// Where the lines go.
struct Sink {
    file: tokio::fs::File,
    room: u64,
    last: std::collections::VecDeque<String>,
}

impl Sink {
    async fn open(log: &Path, command: &Command) -> std::io::Result<Sink> {
        let file = fs_err::tokio::OpenOptions::new().create(true).append(true).open(log).await?;
        let mut sink = Sink { file: file.into_parts().0, room: MAX_LOG_BYTES, last: Default::default() };
        sink.write(&format!("$ {:?}", command.as_std())).await?;
        Ok(sink)
    }

    async fn take(&mut self, line: &str) -> std::io::Result<()> {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        self.write(line).await
    }

    async fn write(&mut self, line: &str) -> std::io::Result<()> {
        let bytes = line.len() as u64 + 1;
        if self.room < bytes {
            return Ok(());
        }
        self.room -= bytes;
        self.file.write_all(line.as_bytes()).await?;
        self.file.write_all(b"\n").await
    }

    fn last(&self) -> String {
        tail(self.last.iter().cloned())
    }
}

/// A program and its process group.
struct Running {
    child: Child,
    when_dropped: WhenDropped,
}

impl Running {
    fn start(command: &mut Command, program: &str, when_dropped: WhenDropped) -> Result<Running, CommandError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
        Ok(Running { child, when_dropped })
    }

    async fn follow(&mut self, sink: &mut Sink, on_line: &mut (dyn FnMut(&str) + Send)) -> std::io::Result<ExitStatus> {
        let mut stdout = self.child.stdout.take().map(Lines::new);
        let mut stderr = self.child.stderr.take().map(Lines::new);
        while stdout.is_some() || stderr.is_some() {
            let line = tokio::select! {
                line = next(&mut stdout), if stdout.is_some() => line?,
                line = next(&mut stderr), if stderr.is_some() => line?,
            };
            if let Some(line) = line {
                on_line(&line);
                sink.take(&line).await?;
            }
        }
        self.child.wait().await
    }

    async fn answer(&mut self) -> std::io::Result<(ExitStatus, String, String)> {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let (stdout, stderr) = tokio::try_join!(text(stdout), text(stderr))?;
        Ok((self.child.wait().await?, stdout, stderr))
    }

    /// Kills the group, while its leader is not yet waited for: its id cannot have passed to another process.
    fn kill(&mut self) {
        let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) else { return };
        if let Err(errno) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
            tracing::warn!(group, %errno, "cannot kill a program's process group");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.when_dropped == WhenDropped::Kill {
            self.kill();
        }
    }
}

async fn text(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MAX_CAPTURE_BYTES).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The lines of one stream. Reading the next one may be cut off and loses nothing.
struct Lines<R> {
    stream: BufReader<R>,
    partial: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    fn new(stream: R) -> Self {
        Lines { stream: BufReader::new(stream), partial: Vec::new() }
    }

    /// `None` at the end of the stream.
    async fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return Ok(if self.partial.is_empty() { None } else { Some(self.cut()) });
            }
            let end = available.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let part = &available[..end.unwrap_or(available.len())];
            let room = usize::try_from(MAX_LINE_BYTES).unwrap_or(usize::MAX).saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&part[..part.len().min(room)]);
            let used = end.map_or(available.len(), |end| end + 1);
            self.stream.consume(used);
            if end.is_some() {
                return Ok(Some(self.cut()));
            }
        }
    }

    fn cut(&mut self) -> String {
        let line = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        line
    }
}

/// The next line; a stream that ended becomes `None`.
async fn next<R: AsyncRead + Unpin>(stream: &mut Option<Lines<R>>) -> std::io::Result<Option<String>> {
    let Some(lines) = stream else { return Ok(None) };
    let line = lines.next().await?;
    if line.is_none() {
        *stream = None;
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut shell = command("sh");
        shell.args(["-c", script]);
        shell
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn lines_of_both_streams_arrive_and_are_logged() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut lines = Vec::new();
        let script = "echo out; echo err >&2; printf tail";
        run(shell(script), SOON, &log, WhenDropped::Kill, &mut |line| lines.push(line.to_owned())).await.unwrap();
        lines.sort();
        assert_eq!(lines, ["err", "out", "tail"]);
        let text = fs_err::read_to_string(&log).unwrap();
        assert!(text.starts_with("$ ") && text.contains("\nerr\n"), "{text}");
    }

    #[tokio::test]
    async fn a_failure_says_the_last_lines_and_names_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = run(shell("echo a; echo E: no; exit 3"), SOON, &log, WhenDropped::Kill, &mut |_| ()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("E: no") && text.contains("log: `"), "{text}");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = capture(command("firkin-no-such-program"), SOON).await.unwrap_err();
        assert!(matches!(&error, CommandError::Start { program, .. } if program == "firkin-no-such-program"));
    }

    #[tokio::test]
    async fn the_deadline_kills_the_whole_group() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        // The child of the child holds the pipe open: only its death ends the follower of a `sh` that is gone.
        let fifo = dir.path().join("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("exec 3<>{}; sh -c 'exec sleep 1000' & wait", fifo.display());
        let error = run(shell(&script), Duration::from_millis(300), &log, WhenDropped::Kill, &mut |_| ()).await.unwrap_err();
        assert!(matches!(error, CommandError::Deadline { .. }), "{error}");
        // Every holder of the fifo is dead: opening it for writing alone finds no reader.
        let open = || {
            nix::fcntl::open(&fifo, nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_NONBLOCK, nix::sys::stat::Mode::empty())
        };
        let deadline = tokio::time::Instant::now() + SOON;
        while open().is_ok() {
            assert!(tokio::time::Instant::now() < deadline, "a child of the killed program lives");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_cut() {
        let mut lines = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after";
        run(shell(script), SOON, &dir.path().join("log"), WhenDropped::Kill, &mut |line| lines.push(line.len())).await.unwrap();
        assert_eq!(lines, [usize::try_from(MAX_LINE_BYTES).unwrap(), 5]);
    }
}
