//! External programs, bounded in time and in what they may say.
//!
//! A program gets no input and runs in its own process group. Its output goes line by line to a log file, which errors name,
//! and to the caller, who makes progress of it. [`run`] and [`capture`] kill their program when their future is dropped.
//! [`run_to_end`] is for programs that change the host: a package manager that is cut in half leaves the host broken, so it
//! goes on whatever becomes of us, and writes to the log file itself, since a pipe to us would end it with us.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// Largest log. A build of the root file system writes half a megabyte.
const MAX_LOG_BYTES: u64 = 16 << 20;
/// Longest line that is kept; the rest is dropped.
const MAX_LINE_BYTES: usize = 8 << 10;
/// Largest output that [`capture`] takes: the largest answer, the package lists of a kernel's versions, is a hundredth of this.
const MAX_CAPTURE_BYTES: u64 = 8 << 20;
/// How many of the last lines an error repeats.
const LAST_LINES: usize = 3;
/// Where the system's tools are, which a service's `PATH` may lack.
pub(crate) const SBIN_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed, or cannot be executed.
    #[error("cannot start `{program}`")]
    Start {
        /// The program.
        program: String,
        /// Why.
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
        /// The deadline.
        seconds: u64,
        /// The end of its output.
        last: String,
        /// The whole of its output.
        log: Option<PathBuf>,
    },
    /// It runs longer than it should, and was left to run.
    #[error("`{program}` still runs after {seconds} s; see its log `{}`", log.display())]
    StillRuns {
        /// The program.
        program: String,
        /// The deadline.
        seconds: u64,
        /// Its output so far.
        log: PathBuf,
    },
    /// Its output cannot be read, or not be written to the log.
    #[error("cannot follow `{program}`{}", log_hint(log))]
    Follow {
        /// The program.
        program: String,
        /// Where its output was to go.
        log: Option<PathBuf>,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn log_hint(log: &Option<PathBuf>) -> String {
    log.as_ref().map(|log| format!(" (log: `{}`)", log.display())).unwrap_or_default()
}

/// A command whose output is text in the C locale and that asks no question.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // Programs that change the host or make a root file system decide by theirs which files others may read; a server's own is
    // stricter than either wants.
    #[expect(unsafe_code, reason = "code between fork and exec is unsafe by its nature")]
    // SAFETY: the closure makes one system call that takes no lock, allocates nothing and cannot fail.
    unsafe {
        command.pre_exec(|| {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            Ok(())
        })
    };
    command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive").env_remove("LANGUAGE");
    command
}

/// Runs a program to its end, appending its output to `log`, each line also given to `on_line`.
pub async fn run(
    mut command: Command,
    deadline: Duration,
    log: &Path,
    on_line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), CommandError> {
    let program = name(&command);
    let follow = |source| CommandError::Follow { program: program.clone(), log: Some(log.to_path_buf()), source };
    let mut sink = Sink::open(log, &command).await.map_err(follow)?;
    let mut running = Running::start(&mut command, &program)?;
    let ended = tokio::time::timeout(deadline, running.follow(&mut sink, on_line)).await;
    sink.file.flush().await.map_err(follow)?;
    let (last, log) = (sink.last(), Some(log.to_path_buf()));
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(CommandError::Failed { program, status, last, log }),
        Ok(Err(source)) => Err(CommandError::Follow { program, log, source }),
        Err(_) => Err(CommandError::Deadline { program, seconds: deadline.as_secs(), last, log }),
    }
}

/// How often the log of a program is looked at for new lines, for progress only.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs a program that must not be cut off: as [`run`], but it goes on when the future is dropped, and past the deadline.
pub async fn run_to_end(
    mut command: Command,
    deadline: Duration,
    log: &Path,
    on_line: &mut (dyn FnMut(&str) + Send),
) -> Result<(), CommandError> {
    let program = name(&command);
    let named = Some(log.to_path_buf());
    let follow = |source| CommandError::Follow { program: program.clone(), log: named.clone(), source };
    let mut sink = Sink::open(log, &command).await.map_err(follow)?;
    sink.file.flush().await.map_err(follow)?;
    let mut reader = fs_err::tokio::File::open(log).await.map_err(follow)?;
    reader.seek(std::io::SeekFrom::End(0)).await.map_err(follow)?;
    let output = sink.file.into_std().await;
    let errors = output.try_clone().map_err(follow)?;
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    let mut child = command.spawn().map_err(|source| CommandError::Start { program: program.clone(), source })?;
    // No one else holds the log's write end by name, so the lines end where the file does.
    let mut lines = Lines::new(reader);
    let mut last = VecDeque::new();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let following = async {
        loop {
            let status = tokio::select! {
                status = child.wait() => Some(status?),
                _ = look.tick() => None,
            };
            while let Some(line) = lines.whole().await? {
                on_line(&line);
                remember(&mut last, &line);
            }
            if let Some(status) = status {
                return Ok::<_, std::io::Error>(status);
            }
        }
    };
    let ended = tokio::time::timeout(deadline, following).await;
    let last = tail(last.into_iter());
    match ended {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(CommandError::Failed { program, status, last, log: named }),
        Ok(Err(source)) => Err(CommandError::Follow { program, log: named, source }),
        Err(_) => Err(CommandError::StillRuns { program, seconds: deadline.as_secs(), log: log.to_path_buf() }),
    }
}

/// Runs a program that answers a question, and gives its standard output. Killed when the future is dropped.
pub async fn capture(mut command: Command, deadline: Duration) -> Result<String, CommandError> {
    let program = name(&command);
    let mut running = Running::start(&mut command, &program)?;
    let answer = tokio::time::timeout(deadline, running.answer()).await;
    let (status, stdout, stderr) = match answer {
        Ok(answer) => answer.map_err(|source| CommandError::Follow { program: program.clone(), log: None, source })?,
        Err(_) => return Err(CommandError::Deadline { program, seconds: deadline.as_secs(), last: String::new(), log: None }),
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

/// Keeps the last lines.
fn remember(last: &mut VecDeque<String>, line: &str) {
    if last.len() == LAST_LINES {
        last.pop_front();
    }
    last.push_back(line.to_owned());
}

/// Where the lines go.
struct Sink {
    file: tokio::fs::File,
    room: u64,
    last: VecDeque<String>,
}

impl Sink {
    async fn open(log: &Path, command: &Command) -> std::io::Result<Sink> {
        let file = fs_err::tokio::OpenOptions::new().create(true).append(true).open(log).await?;
        let mut sink = Sink { file: file.into_parts().0, room: MAX_LOG_BYTES, last: VecDeque::new() };
        sink.write(&format!("$ {:?}", command.as_std())).await?;
        Ok(sink)
    }

    async fn take(&mut self, line: &str) -> std::io::Result<()> {
        remember(&mut self.last, line);
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

/// A program and its process group, which is killed on drop.
struct Running {
    child: Child,
}

impl Running {
    fn start(command: &mut Command, program: &str) -> Result<Running, CommandError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let child = command.spawn().map_err(|source| CommandError::Start { program: program.to_owned(), source })?;
        Ok(Running { child })
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
}

impl Drop for Running {
    /// The leader is not yet waited for if it has an id: the id cannot have passed to another process.
    fn drop(&mut self) {
        let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) else { return };
        if let Err(errno) = killpg(Pid::from_raw(group), Signal::SIGKILL) {
            tracing::warn!(group, %errno, "cannot kill a program's process group");
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

    /// The next line that is ended; `None` where the stream ends for now.
    async fn whole(&mut self) -> std::io::Result<Option<String>> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return Ok(None);
            }
            if self.take_part() {
                return Ok(Some(self.cut()));
            }
        }
    }

    /// `None` at the end of the stream.
    async fn next(&mut self) -> std::io::Result<Option<String>> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return Ok(if self.partial.is_empty() { None } else { Some(self.cut()) });
            }
            if self.take_part() {
                return Ok(Some(self.cut()));
            }
        }
    }

    /// Moves what is buffered to the partial line, up to the line's end: was there one?
    fn take_part(&mut self) -> bool {
        let available = self.stream.buffer();
        let end = available.iter().position(|&byte| byte == b'\n' || byte == b'\r');
        let part = &available[..end.unwrap_or(available.len())];
        let room = MAX_LINE_BYTES.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&part[..part.len().min(room)]);
        let used = end.map_or(available.len(), |end| end + 1);
        self.stream.consume(used);
        end.is_some()
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
        run(shell(script), SOON, &log, &mut |line| lines.push(line.to_owned())).await.unwrap();
        lines.sort();
        assert_eq!(lines, ["err", "out", "tail"]);
        let text = fs_err::read_to_string(&log).unwrap();
        assert!(text.starts_with("$ ") && text.contains("\nerr\n"), "{text}");
    }

    #[tokio::test]
    async fn a_failure_says_the_last_lines_and_names_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let error = run(shell("echo a; echo E: no; exit 3"), SOON, &log, &mut |_| ()).await.unwrap_err();
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
        let error = run(shell(&script), Duration::from_millis(300), &log, &mut |_| ()).await.unwrap_err();
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
    async fn a_program_that_must_not_be_cut_off_outlives_its_future() {
        let dir = tempfile::tempdir().unwrap();
        let (log, go, done) = (dir.path().join("log"), dir.path().join("go"), dir.path().join("done"));
        for fifo in [&go, &done] {
            nix::unistd::mkfifo(fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        let script = format!("echo begun; read x <{}; echo much; echo written; echo end >{}", go.display(), done.display());
        let (sender, begun) = tokio::sync::oneshot::channel();
        let mut sender = Some(sender);
        let mut on_line = |line: &str| {
            assert_eq!(line, "begun");
            sender.take().unwrap().send(()).unwrap();
        };
        tokio::select! {
            ended = run_to_end(shell(&script), SOON, &log, &mut on_line) => panic!("{ended:?}"),
            begun = begun => begun.unwrap(),
        }
        fs_err::tokio::write(&go, "go\n").await.unwrap();
        assert_eq!(fs_err::tokio::read_to_string(&done).await.unwrap(), "end\n");
        assert!(fs_err::read_to_string(&log).unwrap().ends_with("begun\nmuch\nwritten\n"));
    }

    #[tokio::test]
    async fn the_end_of_a_program_that_must_not_be_cut_off_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut lines = Vec::new();
        run_to_end(shell("echo a; echo b >&2"), SOON, &log, &mut |line| lines.push(line.to_owned())).await.unwrap();
        assert_eq!(lines, ["a", "b"]);
        let error = run_to_end(shell("echo E: no; exit 1"), SOON, &log, &mut |_| ()).await.unwrap_err();
        assert!(error.to_string().contains("E: no"), "{error}");
    }

    #[tokio::test]
    async fn an_endless_line_is_cut() {
        let mut lines = Vec::new();
        let dir = tempfile::tempdir().unwrap();
        let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo after";
        run(shell(script), SOON, &dir.path().join("log"), &mut |line| lines.push(line.len())).await.unwrap();
        assert_eq!(lines, [MAX_LINE_BYTES, 5]);
    }
}
