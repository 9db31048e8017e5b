//! What a machine's process says on its standard error, of which a bounded part is kept.
//!
//! A guest can make its engine complain at will, and who has taken that over writes what it likes. A file that the process writes to itself
//! grows for as long as nobody looks, and nobody looks while the server is away. So the process writes to a pipe, whose size the
//! kernel bounds: when it is full, what is said further is lost and nobody waits. Whoever watches the machine moves what has come to
//! the log now and then, a bounded piece each time, and empties the log before it would grow too long.
//!
//! The pipe has a name in the instance directory, by which the next server finds it, with what was said meanwhile.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use fs_err::os::unix::fs::OpenOptionsExt;
use nix::{fcntl::OFlag, sys::stat::Mode, unistd::mkfifo};

/// The log is emptied before it is longer.
const MAX_LOG_BYTES: u64 = 256 << 10;
/// What is moved to it at a time: all that a pipe holds (`pipe(7)`), unless the process has made it larger.
const LOOK_BYTES: u64 = 64 << 10;
/// What [`Log::tail`] gives at most.
const TAIL_BYTES: u64 = 4 << 10;

/// The reader's side.
#[derive(Debug)]
pub(crate) struct Log {
    /// Absent where the process writes to the file itself.
    pipe: Option<File>,
    file: File,
}

impl Log {
    /// A new one, by these names, and what the process is given to write to.
    pub(crate) fn create(file: &Path, pipe: &Path) -> io::Result<(Self, File)> {
        let file = fs_err::OpenOptions::new().read(true).append(true).create_new(true).mode(0o600).open(file)?;
        mkfifo(pipe, Mode::S_IRUSR | Mode::S_IWUSR)?;
        // Also to be read: a pipe without a reader, as after our end, would be an error to who writes. And opened apart from
        // ours, since the process may change the flags of what it has.
        let theirs = fs_err::OpenOptions::new().read(true).write(true).custom_flags(flags()).open(pipe)?;
        let log = Self { pipe: Some(read_end(pipe)?), file: file.into_parts().0 };
        Ok((log, theirs.into_parts().0))
    }

    /// That of a machine which an earlier process of ours started.
    pub(crate) fn open(file: &Path, pipe: &Path) -> io::Result<Self> {
        let file = fs_err::OpenOptions::new().read(true).append(true).custom_flags(flags()).open(file)?;
        let pipe = match read_end(pipe) {
            Ok(pipe) => Some(pipe),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self { pipe, file: file.into_parts().0 })
    }

    /// A file that its writers append to themselves.
    pub(crate) fn of_file(file: File) -> Self {
        Self { pipe: None, file }
    }

    /// Moves what has come to the log, and bounds that.
    pub(crate) fn look(&self) -> io::Result<()> {
        let mut said = Vec::new();
        match self.pipe.as_ref().map(|pipe| pipe.take(LOOK_BYTES).read_to_end(&mut said)) {
            None | Some(Ok(_)) => {}
            // There is no more for now.
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(Err(error)) => return Err(error),
        }
        if self.file.metadata()?.len() + said.len() as u64 > MAX_LOG_BYTES {
            self.file.set_len(0)?;
        }
        (&self.file).write_all(&said)
    }

    /// The end of what has come.
    pub(crate) fn tail(&self) -> String {
        let read = || {
            self.look()?;
            let length = self.file.metadata()?.len();
            let start = length.saturating_sub(TAIL_BYTES);
            let mut bytes = vec![0; usize::try_from(length - start).unwrap_or_default()];
            self.file.read_exact_at(&mut bytes, start)?;
            Ok::<_, io::Error>(bytes)
        };
        match read() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            Err(error) => format!("(the log cannot be read: {error})"),
        }
    }
}

fn read_end(path: &Path) -> io::Result<File> {
    Ok(fs_err::OpenOptions::new().read(true).custom_flags(flags()).open(path)?.into_parts().0)
}

fn flags() -> i32 {
    (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than all that is kept, many times over.
    const FLOOD_BYTES: usize = 16 << 20;

    /// Says it until all of it is said or lost.
    fn say(mut process: &File, text: &[u8]) {
        match process.write(text) {
            // `pipe(7)`: all of it or nothing, up to so many bytes.
            Ok(written) => assert_eq!(written, text.len()),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nobody waits and nothing fails"),
        }
    }

    fn flood(process: &File) {
        let line = [b'x'; 4096];
        (0..FLOOD_BYTES / line.len()).for_each(|_| say(process, &line));
    }

    fn names(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
        (dir.join("log"), dir.join("stderr"))
    }

    fn create(dir: &Path) -> (Log, File) {
        let (file, pipe) = names(dir);
        Log::create(&file, &pipe).unwrap()
    }

    fn open(dir: &Path) -> Log {
        let (file, pipe) = names(dir);
        Log::open(&file, &pipe).unwrap()
    }

    fn on_disk(dir: &Path) -> u64 {
        fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    }

    #[test]
    fn a_flood_fills_neither_disk_nor_memory_and_the_last_words_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (log, process) = create(dir.path());
        say(&process, b"first words\n");
        assert_eq!(log.tail(), "first words");
        for _ in 0..10 {
            flood(&process);
            log.look().unwrap();
            assert!(on_disk(dir.path()) <= MAX_LOG_BYTES, "{}", on_disk(dir.path()));
        }
        say(&process, b"\nlast words\n");
        assert!(log.tail().ends_with("x\nlast words"), "{}", log.tail());
    }

    #[test]
    fn while_nobody_looks_a_flood_is_bounded_too_and_the_next_server_finds_it() {
        let dir = tempfile::tempdir().unwrap();
        let (log, process) = create(dir.path());
        drop(log);
        say(&process, b"said to nobody\n");
        assert_eq!(open(dir.path()).tail(), "said to nobody");
        flood(&process);
        assert_eq!(on_disk(dir.path()), "said to nobody\n".len() as u64);
        let log = open(dir.path());
        assert!(log.tail().ends_with("xxx"));
        assert!(on_disk(dir.path()) <= MAX_LOG_BYTES);
    }

    #[test]
    fn a_process_that_waits_for_us_does_not_make_us_wait() {
        let dir = tempfile::tempdir().unwrap();
        let (log, process) = create(dir.path());
        // It has made its side wait.
        nix::fcntl::fcntl(&process, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        assert_eq!(log.tail(), "");
    }

    #[test]
    fn the_log_of_an_earlier_build_is_bounded_as_before() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(names(dir.path()).0, vec![b'x'; 1 << 20]).unwrap();
        let log = open(dir.path());
        log.look().unwrap();
        assert_eq!(on_disk(dir.path()), 0);
    }
}
