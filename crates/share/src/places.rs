//! Where entries lie, by their numbers: as many as a volume has, and not in memory.
//!
//! A guest may ask for whatever it was ever told of, for as long as it lives, and it is not known what it has forgotten: guests are
//! copied, put away for months, and go on. So nothing may be dropped here, and a volume may have more entries than memory has room for.
//! Places are kept in a file beside the directory (SQLite: a few microseconds each), the latest of them in memory too.
//!
//! A place is a hint: what is opened by it is compared with its number. An entry has several where it has several names, and may have
//! wrong ones for a while; whoever uses them tries all, and forgets what turned out wrong while nobody changes anything.
//!
//! The file is *complete* once the whole directory was looked through, and stays so: whatever comes, moves or goes is written to it.
//! Then what is not in it is nowhere. After a crash, or without the file, it is not complete until it was looked through again, which
//! the first miss does. It is only written aside, never trusted, and may be removed at any time while nobody has the directory.
//! Whatever may make a look through the directory miss something raises the *generation*; one that sees another at its end than it began
//! with was disturbed, and says nothing about what it has not found.
//!
//! It has a bound, whatever guests do. Each entry that counts has room for its name several times over, so only what is gone goes
//! beyond it, or a multitude of names of the same files: then it is begun anew, and is not complete.
//!
//! Handles of the kernel (`open_by_handle_at`) would need no file. But they open whatever has the inode, also outside of the directory,
//! and a guest chooses the numbers that it asks for.

use std::{
    any::Any,
    collections::{HashMap, hash_map::Entry},
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use rusqlite::{Connection, ErrorCode, params};
use rustix::io::Errno;
use tokio::runtime::Handle;

/// Version of the file. One of another is begun anew.
const FORMAT: i64 = 1;

/// Places in memory: some megabytes a directory. With more, all are forgotten, and taken from the file again.
const MAX_REMEMBERED: usize = 1 << 14;

/// The file's size, whatever the directory may hold. Beyond what [`bound`] says it has mostly places of what is gone, and is begun anew.
const LEAST_BOUND_BYTES: u64 = 8 << 20;

/// An entry counts as 16 KiB at least, so the file has a KiB for each that there may be: a place takes 600 bytes at most, with the longest
/// name in pages that are half full.
const PART_OF_QUOTA: u64 = 16;

/// Where no file can be used: some hundred thousand places. A full disk is not to become a full memory.
const MEMORY_BOUND_BYTES: u64 = 8 << 20;

/// The size at which the database itself refuses to grow, in terms of its bound: directories are remembered beyond that.
const REFUSED_BEYOND: u64 = 2;

/// A page of the database.
const PAGE_BYTES: u64 = 4096;

/// The size is looked at after so many places.
const MEASURE_EVERY: u32 = 4096;

/// Pages that are written twice at a time, and synced then: 16 MiB.
const CHECKPOINT_PAGES: u32 = 4096;

/// What is beside the file is cut to this.
const JOURNAL_BYTES: u64 = CHECKPOINT_PAGES as u64 * PAGE_BYTES;

/// For a program of the operator's that has the file. Whoever shares the directory waits for the last one elsewhere.
const BUSY: Duration = Duration::from_secs(1);

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) parent: u64,
    pub(crate) name: OsString,
}

/// All that is known of where entries lie.
#[derive(Debug)]
pub(crate) struct Places {
    remembered: Mutex<HashMap<u64, Place>>,
    /// There until it is closed.
    index: Mutex<Option<Index>>,
    /// Dropped once the file is closed.
    until_closed: Option<Box<dyn Any + Send + Sync>>,
}

#[derive(Debug)]
struct Index {
    connection: Connection,
    is_complete: bool,
    /// Rises with whatever may make a look through the directory miss something.
    generation: u64,
    /// While everything is looked through.
    is_walked: bool,
    /// Meanwhile the bound was reached: only what is needed for going on is added.
    is_full: bool,
    bound_bytes: u64,
    unmeasured: u32,
}

/// What a look through the directory was worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    /// What it has not found is nowhere.
    Whole,
    /// Something may have been missed.
    Disturbed,
}

/// The last of a file: closing it writes, and waits for the disk. In this order.
struct Closing {
    #[expect(dead_code, reason = "held: dropped first, it is closed")]
    index: Option<Index>,
    #[expect(dead_code, reason = "held: whoever waits for the file goes on")]
    until_closed: Option<Box<dyn Any + Send + Sync>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each holder makes one change, so a poisoned value is a whole one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Places {
    /// Those in the file, of a directory that may hold so many bytes. A file that cannot be used is replaced; where none can be made,
    /// places are in memory.
    pub(crate) fn open(file: &Path, quota: u64) -> Self {
        let index = Index::open(file, bound(quota)).unwrap_or_else(|error| {
            tracing::error!(file = %file.display(), error = firkin_causes::chain(&error), "places of a directory are kept in memory");
            Index::in_memory()
        });
        Self { remembered: Mutex::default(), index: Mutex::new(Some(index)), until_closed: None }
    }

    /// Drops `held` once the file is closed, and not before.
    pub(crate) fn hold_until_closed(&mut self, held: impl Any + Send + Sync) {
        self.until_closed = Some(Box::new(held));
    }

    fn with<T>(&self, act: impl FnOnce(&mut Index) -> T) -> T {
        act(locked(&self.index).as_mut().expect("it is there until it is closed"))
    }

    /// Remembers a place of an entry.
    pub(crate) fn learn(&self, number: u64, place: Place) {
        if self.remember(number, &place) {
            self.write(|index| index.learn(&[(number, place.clone())]));
        }
    }

    /// Many, which nobody is about to ask for.
    pub(crate) fn learn_all(&self, places: &[(u64, Place)]) {
        self.write(|index| index.learn(places));
    }

    /// What a look through the directory has found and needs.
    pub(crate) fn learn_found(&self, places: &[(u64, Place)]) {
        self.write(|index| index.add(places));
    }

    /// Where an entry is likely to be. It was there when this was last said of it.
    pub(crate) fn likely(&self, number: u64) -> Result<Option<Place>, Errno> {
        if let Some(place) = locked(&self.remembered).get(&number) {
            return Ok(Some(place.clone()));
        }
        let first = self.read(|index| index.first(number))?;
        if let Some(place) = &first {
            self.remember(number, place);
        }
        Ok(first)
    }

    /// An entry is not there, or not any more.
    pub(crate) fn forget(&self, number: u64, place: &Place) {
        if let Entry::Occupied(there) = locked(&self.remembered).entry(number)
            && there.get() == place
        {
            there.remove();
        }
        self.write(|index| index.remove(number, place));
    }

    /// Whether what is not known here is nowhere.
    pub(crate) fn is_complete(&self) -> bool {
        self.with(|index| index.is_complete)
    }

    /// What is not known may be somewhere.
    pub(crate) fn doubt(&self) {
        self.with(Index::doubt);
    }

    /// Something got another place, and what is below it with it. To be said after that was learnt, and before any other change.
    pub(crate) fn moved(&self, is_directory: bool) {
        self.with(|index| {
            // What is no directory is learnt of by who moves it, where there is room for it.
            if is_directory || index.is_full {
                index.generation += 1;
            }
        });
    }

    /// Everything is looked through from now on. What is in memory is kept: it serves those who ask meanwhile. Returns the generation.
    pub(crate) fn begin_walk(&self) -> u64 {
        self.with(|index| {
            if let Err(error) = index.clear() {
                index.fail(&error);
            }
            (index.is_walked, index.is_full) = (true, false);
            index.generation
        })
    }

    /// Whether only directories are to be learnt, and what is sought: there are more names than there is room for.
    pub(crate) fn is_full(&self) -> bool {
        self.with(|index| index.is_full)
    }

    /// Everything was looked through since the generation `began`; `is_all` where nothing was left out. To be said while nothing changes.
    pub(crate) fn end_walk(&self, began: u64, is_all: bool) -> Walked {
        self.with(|index| {
            let has_all = is_all && !index.is_full;
            (index.is_walked, index.is_full) = (false, false);
            if index.generation != began {
                return Walked::Disturbed;
            }
            index.is_complete = has_all;
            Walked::Whole
        })
    }

    /// Whether that was news.
    fn remember(&self, number: u64, place: &Place) -> bool {
        let mut remembered = locked(&self.remembered);
        if remembered.get(&number) == Some(place) {
            return false;
        }
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(number, place.clone());
        true
    }

    fn read<T>(&self, read: impl Fn(&Index) -> rusqlite::Result<T>) -> Result<T, Errno> {
        self.with(|index| {
            read(index).or_else(|error| {
                index.fail(&error);
                read(index).map_err(|_| Errno::IO)
            })
        })
    }

    /// What cannot be written is found again, by looking through the directory.
    fn write(&self, write: impl Fn(&mut Index) -> rusqlite::Result<()>) {
        self.with(|index| {
            if let Err(error) = write(index) {
                index.fail(&error);
                if let Err(error) = write(index) {
                    index.doubt();
                    tracing::error!(error = firkin_causes::chain(&error), "a place is not remembered");
                }
            }
        });
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let closing = Closing { index: locked(&self.index).take(), until_closed: self.until_closed.take() };
        // Wherever the last one lets go of it, which may be a thread that all others need. One that is refused is closed here.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(closing)));
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // Until then the file says that it is not.
        if self.is_complete
            && let Err(error) = self.connection.execute("UPDATE state SET complete = 1", [])
        {
            tracing::warn!(error = firkin_causes::chain(&error), "a directory is looked through again after a restart");
        }
    }
}

/// Why places cannot be kept in a file.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("cannot make or replace `{}`", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot use the file of places")]
    Database(#[from] rusqlite::Error),
}

/// How large the file may be of a directory that may hold so many bytes.
fn bound(quota: u64) -> u64 {
    LEAST_BOUND_BYTES + quota / PART_OF_QUOTA
}

impl Index {
    fn open(path: &Path, bound_bytes: u64) -> Result<Self, OpenError> {
        make(path)?;
        match Self::of(Connection::open(path)?, bound_bytes) {
            // Whoever has it may call it complete when he is done, and would not know what happens meanwhile.
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                remove(path)?;
                Err(error.into())
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), error = firkin_causes::chain(&error), "places are begun anew");
                remove(path)?;
                make(path)?;
                Ok(Self::of(Connection::open(path)?, bound_bytes)?)
            }
            opened => Ok(opened?),
        }
    }

    fn in_memory() -> Self {
        let opened = Connection::open_in_memory().and_then(|connection| Self::of(connection, MEMORY_BOUND_BYTES));
        opened.expect("a database in memory needs nothing but memory")
    }

    /// One owner, no other process. That it may be incomplete is durable before anything is done with it.
    fn of(connection: Connection, bound_bytes: u64) -> rusqlite::Result<Self> {
        connection.busy_timeout(BUSY)?;
        connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")?;
        let most = bound_bytes * REFUSED_BEYOND / PAGE_BYTES;
        connection.execute_batch(&format!("PRAGMA max_page_count = {most}; PRAGMA journal_size_limit = {JOURNAL_BYTES}"))?;
        let format: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if format != FORMAT {
            connection.execute_batch(&format!(
                "BEGIN;
                 DROP TABLE IF EXISTS places;
                 DROP TABLE IF EXISTS state;
                 CREATE TABLE places (number INTEGER NOT NULL, parent INTEGER NOT NULL, name BLOB NOT NULL,
                     PRIMARY KEY (number, parent, name)) WITHOUT ROWID;
                 CREATE TABLE state (complete INTEGER NOT NULL);
                 INSERT INTO state VALUES (0);
                 PRAGMA user_version = {FORMAT};
                 COMMIT"
            ))?;
        }
        let is_complete = connection.query_row("SELECT complete FROM state", [], |row| row.get(0))?;
        connection.execute("UPDATE state SET complete = 0", [])?;
        // Whole after a power failure, and without what came last: then it is incomplete, as was just said.
        connection.execute_batch(&format!("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}"))?;
        Ok(Self { connection, is_complete, generation: 0, is_walked: false, is_full: false, bound_bytes, unmeasured: 0 })
    }

    /// Goes on in memory.
    fn fail(&mut self, error: &rusqlite::Error) {
        tracing::error!(error = firkin_causes::chain(error), "places of a directory are kept in memory from now on");
        self.doubt();
        let generation = self.generation;
        *self = Self::in_memory();
        self.generation = generation;
    }

    fn doubt(&mut self) {
        self.is_complete = false;
        self.generation += 1;
    }

    /// Forgets all.
    fn clear(&mut self) -> rusqlite::Result<()> {
        self.doubt();
        self.unmeasured = 0;
        self.connection.execute_batch("DELETE FROM places; VACUUM")
    }

    fn bytes(&self) -> rusqlite::Result<u64> {
        let pragma = |name: &str| self.connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, u32>(0));
        Ok(u64::from(pragma("page_count")?) * u64::from(pragma("page_size")?))
    }

    /// What guests are told. With too many names it is found again, where it is asked for.
    fn learn(&mut self, places: &[(u64, Place)]) -> rusqlite::Result<()> {
        if self.is_full { Ok(()) } else { self.add(places) }
    }

    fn add(&mut self, places: &[(u64, Place)]) -> rusqlite::Result<()> {
        let adding = self.connection.transaction()?;
        {
            let mut add = adding.prepare_cached("INSERT OR IGNORE INTO places VALUES (?1, ?2, ?3)")?;
            for (number, Place { parent, name }) in places {
                add.execute(params![number.cast_signed(), parent.cast_signed(), name.as_bytes()])?;
            }
        }
        adding.commit()?;
        self.unmeasured = self.unmeasured.saturating_add(u32::try_from(places.len()).unwrap_or(u32::MAX));
        if self.unmeasured >= MEASURE_EVERY {
            self.unmeasured = 0;
            if self.bytes()? > self.bound_bytes {
                if self.is_walked {
                    self.is_full = true;
                } else {
                    self.clear()?;
                }
            }
        }
        Ok(())
    }

    fn first(&self, number: u64) -> rusqlite::Result<Option<Place>> {
        let mut query = self.connection.prepare_cached("SELECT parent, name FROM places WHERE number = ?1 LIMIT 1")?;
        let mut rows = query.query([number.cast_signed()])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let (parent, name): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
        Ok(Some(Place { parent: parent.cast_unsigned(), name: OsString::from_vec(name) }))
    }

    fn remove(&mut self, number: u64, Place { parent, name }: &Place) -> rusqlite::Result<()> {
        let name: &OsStr = name;
        let mut remove = self.connection.prepare_cached("DELETE FROM places WHERE number = ?1 AND parent = ?2 AND name = ?3")?;
        remove.execute(params![number.cast_signed(), parent.cast_signed(), name.as_bytes()])?;
        Ok(())
    }
}

/// Its owner's alone, which SQLite gives to the file beside it too. One that is there is not opened beside SQLite: closing it would give
/// up the locks of whoever has it.
fn make(path: &Path) -> Result<(), OpenError> {
    match fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(OpenError::File { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Durable when this returns.
fn remove(path: &Path) -> Result<(), OpenError> {
    let file = |source| OpenError::File { path: path.to_owned(), source };
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs_err::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(error)),
            _ => {}
        }
    }
    let beside = path.parent().unwrap_or(Path::new("."));
    fs_err::File::open(beside).and_then(|dir| dir.sync_all()).map_err(file)
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
