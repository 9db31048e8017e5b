//! The page by which a server tells the warden until when: 64 bytes with a version and a checksum, written and read whole.
//!
//! ```text
//!   0 magic · 8 version · 12 CRC-32 of all that follows · 16 boot of the host · 32 deadline · 40 generation · 48 changes of the list
//!   56 pid of the server · 60 order        and, from 64, when the server was started: 72 bytes in all, numbers with the lowest byte first
//! ```

use std::{
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use rustix::fs::{FlockOperation, flock};

use crate::{ProcessId, clock, list};

const MAGIC: [u8; 8] = *b"firkward";

/// Rises when the form is changed. A warden and a server of different versions do not understand each other, and say so.
const VERSION: u32 = 1;

const BYTES: usize = 72;

/// Names in the directory.
pub(crate) const PAGE: &str = "page";
pub(crate) const LOCK: &str = "lock";
pub(crate) const STOPPED: &str = "stopped";

/// Why a page cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// The file or directory cannot be used.
    #[error("cannot use the warden's `{}`", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was torn, or is something else.
    #[error("cannot read the warden's page `{}`: it is not whole", path.display())]
    Torn {
        /// Where.
        path: PathBuf,
    },
    /// It was written by another version.
    #[error("cannot read the warden's page `{}`: its version is {found}, and {VERSION} is known", path.display())]
    Version {
        /// Where.
        path: PathBuf,
        /// The version.
        found: u32,
    },
    /// It was written before the host was started.
    #[error("cannot use the warden's page `{}`: it is from before the host was started", path.display())]
    OtherBoot {
        /// Where.
        path: PathBuf,
    },
}

/// What came of a deadline that was put off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "machines may have been stopped"]
pub enum Renewal {
    /// It came before the last one had passed: nothing was stopped.
    InTime,
    /// The last one had passed: machines are stopped, or may be at any moment, whatever the deadline is now. See [`Page::regain`].
    TooLate,
}

/// What there is for the warden to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Watch,
    End,
}

/// What the page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) boot: u128,
    pub(crate) deadline: Duration,
    pub(crate) generation: u64,
    pub(crate) listings: u64,
    pub(crate) server: ProcessId,
    pub(crate) order: Order,
}

/// How bytes are not a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unread {
    Torn,
    Version(u32),
}

impl Entry {
    fn encode(&self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.boot.to_le_bytes());
        put(32, &nanos(self.deadline).to_le_bytes());
        put(40, &self.generation.to_le_bytes());
        put(48, &self.listings.to_le_bytes());
        put(56, &self.server.pid.to_le_bytes());
        put(60, &u32::from(self.order == Order::End).to_le_bytes());
        put(64, &self.server.start_ticks.to_le_bytes());
        let sum = crc32fast::hash(&bytes[16..]);
        bytes[12..16].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Unread> {
        let at =
            |at: usize| bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map(u64::from_le_bytes).ok_or(Unread::Torn);
        let half =
            |at: usize| bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map(u32::from_le_bytes).ok_or(Unread::Torn);
        if bytes.get(..8) != Some(MAGIC.as_slice()) {
            return Err(Unread::Torn);
        }
        let version = half(8)?;
        if version != VERSION {
            return Err(Unread::Version(version));
        }
        if bytes.len() != BYTES || crc32fast::hash(&bytes[16..]) != half(12)? {
            return Err(Unread::Torn);
        }
        Ok(Self {
            boot: u128::from(at(16)?) | u128::from(at(24)?) << 64,
            deadline: Duration::from_nanos(at(32)?),
            generation: at(40)?,
            listings: at(48)?,
            server: ProcessId { pid: half(56)?, start_ticks: at(64)? },
            order: if half(60)? == 0 { Order::Watch } else { Order::End },
        })
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Which start of the host this is.
fn boot() -> Result<u128, PageError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|source| PageError::File { path: path.to_owned(), source })?;
    let digits = text.trim().replace('-', "");
    u128::from_str_radix(&digits, 16).map_err(|_| PageError::Torn { path: path.to_owned() })
}

/// Reads what a page of this start of the host says.
pub(crate) fn read(path: &Path) -> Result<Entry, PageError> {
    let file = fs::File::open(path).map_err(|source| PageError::File { path: path.to_owned(), source })?;
    // One more than there are, so that a longer file is seen.
    let mut bytes = [0; BYTES + 1];
    let mut read = 0;
    while read < bytes.len() {
        match file.file().read_at(&mut bytes[read..], read as u64) {
            Ok(0) => break,
            Ok(more) => read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(PageError::File { path: path.to_owned(), source }),
        }
    }
    let entry = Entry::decode(&bytes[..read]).map_err(|unread| match unread {
        Unread::Torn => PageError::Torn { path: path.to_owned() },
        Unread::Version(found) => PageError::Version { path: path.to_owned(), found },
    })?;
    if entry.boot == boot()? { Ok(entry) } else { Err(PageError::OtherBoot { path: path.to_owned() }) }
}

/// The server's side of the directory. One server has it at a time, as it has its state directory.
#[derive(Debug)]
pub struct Page {
    dir: PathBuf,
    file: fs::File,
    entry: Entry,
}

impl Page {
    /// Makes a page in `dir`, which is made too, in the place of whatever page is there: the lease is until `deadline`, and what a warden
    /// has stopped goes on. What was listed since the host was started still is.
    pub fn create(dir: &Path, deadline: Duration) -> Result<Self, PageError> {
        let at = |source| PageError::File { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(at)?;
        let boot = boot()?;
        list::tidy(dir, boot).map_err(at)?;
        let server = ProcessId::own().map_err(at)?;
        // Above that of any page before it, so that a warden which has stopped takes it for one that was regained.
        let generation = nanos(clock::now());
        let entry = Entry { boot, deadline, generation, listings: generation, server, order: Order::Watch };
        let (path, new) = (dir.join(PAGE), dir.join("page.new"));
        fs::write(&new, entry.encode()).and_then(|()| fs::rename(&new, &path)).map_err(at)?;
        let file = writable(&path)?;
        Ok(Self { dir: dir.to_owned(), file, entry })
    }

    /// Takes over the page of an earlier server in `dir`, with its list, deadline and generation. The lease is then what it was.
    ///
    /// Where this fails for anything but a missing file, the page says nothing, and a warden that knew it stops what it watches; what to
    /// do is to make another ([`Page::create`]).
    pub fn open(dir: &Path) -> Result<Self, PageError> {
        let path = dir.join(PAGE);
        let entry = read(&path)?;
        let server = ProcessId::own().map_err(|source| PageError::File { path: path.clone(), source })?;
        let mut page = Self { dir: dir.to_owned(), file: writable(&path)?, entry };
        page.write(Entry { server, order: Order::Watch, ..entry })?;
        Ok(page)
    }

    /// Where it is: what the warden is told.
    pub fn path(&self) -> PathBuf {
        self.dir.join(PAGE)
    }

    /// Until when the lease is, on [`clock::now`].
    pub fn deadline(&self) -> Duration {
        self.entry.deadline
    }

    /// Rises each time that the lease was regained.
    pub fn generation(&self) -> u64 {
        self.entry.generation
    }

    /// Puts the deadline off. It may not be brought forward: the lease was promised until then, and is until then in any case.
    pub fn set_deadline(&mut self, deadline: Duration) -> Result<Renewal, PageError> {
        let before = self.entry.deadline;
        self.write(Entry { deadline: deadline.max(before), ..self.entry })?;
        // Whoever reads the page at the old deadline or later reads the new one, unless that has passed now.
        let is_late = clock::now() >= before || self.stopped_in() == Some(self.entry.generation);
        Ok(if is_late { Renewal::TooLate } else { Renewal::InTime })
    }

    /// The lease is held again, until `deadline`, after it had been over: everything that is listed goes on. To be called once what is
    /// no longer this node's was ended and taken off the list.
    pub fn regain(&mut self, deadline: Duration) -> Result<(), PageError> {
        self.write(Entry { deadline, generation: self.entry.generation + 1, ..self.entry })
    }

    /// There is nothing more to watch: the warden ends, and lets nothing go on that it has stopped.
    pub fn end(&mut self) -> Result<(), PageError> {
        self.write(Entry { order: Order::End, ..self.entry })
    }

    /// Has the warden stop these processes too, when the lease is over. Replaces what was listed by this name.
    ///
    /// To be called before anybody may learn that the sandbox can be claimed; the warden sees it within [`crate::run`]'s look.
    pub fn list(&mut self, name: &str, processes: &[ProcessId]) -> Result<(), PageError> {
        list::put(&self.dir, self.entry.boot, name, processes)
            .map_err(|source| PageError::File { path: self.dir.join(list::DIR).join(name), source })?;
        self.write(Entry { listings: self.entry.listings + 1, ..self.entry })
    }

    /// Has it forget what was listed by this name: whatever is stopped of it stays so.
    pub fn unlist(&mut self, name: &str) -> Result<(), PageError> {
        list::remove(&self.dir, name).map_err(|source| PageError::File { path: self.dir.join(list::DIR).join(name), source })?;
        self.write(Entry { listings: self.entry.listings + 1, ..self.entry })
    }

    /// Kills what is listed by this name, whether it stands still or not, and has the warden forget it.
    pub fn kill(&mut self, name: &str) -> Result<(), PageError> {
        let at = |source| PageError::File { path: self.dir.join(list::DIR).join(name), source };
        for process in list::get(&self.dir, self.entry.boot, name).map_err(at)?.unwrap_or_default() {
            if let Some(held) = process.hold().map_err(at)? {
                held.kill().map_err(at)?;
            }
        }
        self.unlist(name)
    }

    /// Whether anything that is listed stands still.
    pub fn stands_still(&self) -> Result<bool, PageError> {
        for name in self.listed()? {
            let listed = list::get(&self.dir, self.entry.boot, &name);
            let listed = listed.map_err(|source| PageError::File { path: self.dir.join(list::DIR).join(&name), source })?;
            if listed.unwrap_or_default().into_iter().any(ProcessId::is_stopped) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The lease is over as of now, because it was taken away: everything that is listed is stopped at the warden's next look.
    pub fn lose(&mut self) -> Result<(), PageError> {
        self.write(Entry { deadline: self.entry.deadline.min(clock::now()), ..self.entry })
    }

    /// Names in the list.
    pub fn listed(&self) -> Result<Vec<String>, PageError> {
        list::names(&self.dir).map_err(|source| PageError::File { path: self.dir.join(list::DIR), source })
    }

    /// Whether a warden watches, which has read page and list. To be asked before anything can be claimed, and at each renewal.
    pub fn is_watched(&self) -> Result<bool, PageError> {
        is_watched(&self.dir)
    }

    /// The generation in which the warden has stopped what is listed, if it has and nothing was regained since.
    pub fn stopped_in(&self) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(STOPPED)).ok()?;
        text.trim().parse().ok().filter(|generation| *generation >= self.entry.generation)
    }

    fn write(&mut self, entry: Entry) -> Result<(), PageError> {
        let written = self.file.file().write_all_at(&entry.encode(), 0);
        written.map_err(|source| PageError::File { path: self.path(), source })?;
        self.entry = entry;
        Ok(())
    }
}

fn writable(path: &Path) -> Result<fs::File, PageError> {
    fs::OpenOptions::new().write(true).open(path).map_err(|source| PageError::File { path: path.to_owned(), source })
}

pub(crate) fn is_watched(dir: &Path) -> Result<bool, PageError> {
    let path = dir.join(LOCK);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(PageError::File { path, source }),
    };
    // Shared, so that two who ask do not take each other for the warden.
    match flock(file.file(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(PageError::File { path, source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let server = ProcessId { pid: 7, start_ticks: 99 };
        Entry { boot: 1 << 100, deadline: Duration::from_millis(1500), generation: 3, listings: 4, server, order: Order::End }
    }

    #[test]
    fn a_page_says_what_was_written() {
        assert_eq!(Entry::decode(&entry().encode()), Ok(entry()));
    }

    #[test]
    fn no_torn_page_is_taken_for_one() {
        let (old, new) = (entry().encode(), Entry { deadline: Duration::from_secs(1 << 33), ..entry() }.encode());
        for cut in 0..BYTES {
            assert_eq!(Entry::decode(&old[..cut]).err(), Some(Unread::Torn), "cut at {cut}");
            // Half of one and half of another is one of the two, or none.
            let mixed = [&new[..cut], &old[cut..]].concat();
            if mixed != old && mixed != new {
                assert_eq!(Entry::decode(&mixed), Err(Unread::Torn), "mixed at {cut}");
            }
        }
        let mut other = old;
        other[8] = 9;
        assert_eq!(Entry::decode(&other), Err(Unread::Version(9)));
        assert_eq!(Entry::decode(&[old.as_slice(), b"x"].concat()), Err(Unread::Torn));
    }

    #[test]
    fn a_deadline_is_put_off_in_time_or_too_late() {
        let dir = tempfile::tempdir().unwrap();
        let far = clock::now() + Duration::from_secs(3600);
        let mut page = Page::create(dir.path(), far).unwrap();
        assert_eq!(page.set_deadline(far + Duration::from_secs(1)).unwrap(), Renewal::InTime);
        assert_eq!(page.set_deadline(far).unwrap(), Renewal::InTime);
        assert_eq!(page.deadline(), far + Duration::from_secs(1), "it is never brought forward");
        let mut page = Page::create(dir.path(), clock::now()).unwrap();
        assert_eq!(page.set_deadline(far).unwrap(), Renewal::TooLate);
        page.regain(far).unwrap();
        assert_eq!(page.set_deadline(far).unwrap(), Renewal::InTime);
    }

    #[test]
    fn what_is_another_hosts_by_now_is_killed_though_it_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let mut page = Page::create(dir.path(), clock::now() + Duration::from_secs(3600)).unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = ProcessId::of(child.id()).unwrap();
        page.list("a", &[process]).unwrap();
        assert!(!page.stands_still().unwrap());
        process.hold().unwrap().unwrap().stop().unwrap();
        while !process.is_stopped() {
            std::thread::yield_now();
        }
        assert!(page.stands_still().unwrap());
        page.kill("a").unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(!process.is_stopped() && page.listed().unwrap().is_empty());
        page.lose().unwrap();
        assert!(page.deadline() <= clock::now());
    }

    #[test]
    fn the_next_server_finds_what_the_last_one_wrote() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Page::open(dir.path()), Err(PageError::File { .. })));
        let far = clock::now() + Duration::from_secs(3600);
        let mut page = Page::create(dir.path(), far).unwrap();
        page.list("a", &[ProcessId::own().unwrap()]).unwrap();
        let next = Page::open(dir.path()).unwrap();
        assert_eq!((next.deadline(), next.generation(), next.listed().unwrap()), (far, page.generation(), vec!["a".to_owned()]));
        assert!(!next.is_watched().unwrap());
        // Of another start of the host: its times and pids mean nothing.
        let other = Entry { boot: next.entry.boot ^ 1, ..next.entry };
        fs::write(next.path(), other.encode()).unwrap();
        list::put(dir.path(), other.boot, "b", &[]).unwrap();
        assert!(matches!(Page::open(dir.path()), Err(PageError::OtherBoot { .. })));
        let anew = Page::create(dir.path(), far).unwrap();
        assert_eq!(anew.listed().unwrap(), ["a"]);
        assert!(anew.generation() > next.generation());
    }
}
