//! What the file of places may take, and when it may be called complete.

use std::sync::{Arc, atomic::AtomicBool, atomic::Ordering::SeqCst};

use fs_err as fs;

use super::*;

impl Places {
    /// As after a crash, with nothing in memory either.
    pub(crate) fn lose_all(&self) {
        locked(&self.remembered).clear();
        self.with(|index| index.clear().unwrap());
    }

    pub(crate) fn bound_to(&self, bytes: u64) {
        self.with(|index| index.bound_bytes = bytes);
    }

    /// The database is full with so many pages.
    pub(crate) fn refuse_beyond(&self, pages: u32) {
        self.with(|index| index.connection.execute_batch(&format!("PRAGMA max_page_count = {pages}")).unwrap());
    }

    fn bytes(&self) -> u64 {
        self.with(|index| index.bytes().unwrap())
    }
}

fn place(number: u64) -> (u64, Place) {
    (number, Place { parent: 2, name: format!("{number:0>250}").into() })
}

/// As a guest that makes and forgets what the API removes.
fn fill(places: &Places, numbers: std::ops::Range<u64>) {
    let numbers: Vec<_> = numbers.collect();
    numbers.chunks(1000).for_each(|chunk| places.learn_all(&chunk.iter().copied().map(place).collect::<Vec<_>>()));
}

#[test]
fn places_of_what_is_gone_take_no_more_than_their_bound_complete_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("places");
    let places = Places::open(&file, 0);
    fill(&places, 10..60_000);
    assert!(places.bytes() <= bound(0) + (4 << 20), "{}", places.bytes());
    assert!(!places.is_complete());
    // What is there when all was looked through allows no more.
    let began = places.begin_walk();
    fill(&places, 10..20_000);
    assert_eq!(places.end_walk(began, true), Walked::Whole);
    assert!(places.is_complete());
    fill(&places, 20_000..60_000);
    assert!(!places.is_complete());
    assert!(places.bytes() <= bound(0) + (4 << 20), "{}", places.bytes());
    drop(places);
    let on_disk = fs::metadata(&file).unwrap().len();
    assert!(on_disk <= REFUSED_BEYOND * bound(0), "{on_disk}");
}

#[test]
fn in_memory_there_is_a_bound_whatever_the_directory_may_hold() {
    let places = Places::open(Path::new("/nowhere/at/all"), 1 << 50);
    fill(&places, 10..60_000);
    assert!(places.bytes() <= REFUSED_BEYOND * MEMORY_BOUND_BYTES, "{}", places.bytes());
    let dir = tempfile::tempdir().unwrap();
    let failing = Places::open(&dir.path().join("places"), 1 << 50);
    failing.refuse_beyond(20);
    fill(&failing, 10..60_000);
    assert!(failing.bytes() <= REFUSED_BEYOND * MEMORY_BOUND_BYTES, "{}", failing.bytes());
}

#[test]
fn a_file_that_somebody_has_is_not_complete_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("places");
    let first = Places::open(&file, 0);
    let began = first.begin_walk();
    assert_eq!(first.end_walk(began, true), Walked::Whole);
    // It goes on in memory, and the first says that all is known when it ends.
    let second = Places::open(&file, 0);
    second.learn(6, place(6).1);
    drop(first);
    drop(second);
    let third = Places::open(&file, 0);
    assert!(!third.is_complete());
}

#[test]
fn an_error_a_doubt_and_a_directory_that_moves_disturb_who_looks_through_all() {
    let dir = tempfile::tempdir().unwrap();
    let places = Places::open(&dir.path().join("places"), 0);
    let walk = |meanwhile: &dyn Fn()| {
        let began = places.begin_walk();
        meanwhile();
        let walked = places.end_walk(began, true);
        assert_eq!(places.is_complete(), walked == Walked::Whole);
        walked
    };
    assert_eq!(walk(&|| places.learn(6, place(6).1)), Walked::Whole);
    assert_eq!(walk(&|| places.moved(false)), Walked::Whole);
    assert_eq!(walk(&|| places.moved(true)), Walked::Disturbed);
    assert_eq!(walk(&|| places.doubt()), Walked::Disturbed);
    assert_eq!(walk(&|| places.with(|index| index.fail(&rusqlite::Error::InvalidQuery))), Walked::Disturbed);
    assert_eq!(walk(&|| {}), Walked::Whole);
}

#[tokio::test]
async fn who_waits_for_the_file_goes_on_once_it_is_closed() {
    #[derive(Debug)]
    struct Held(
        PathBuf,
        Arc<AtomicBool>,
        #[expect(dead_code, reason = "held: it tells that this is gone")] tokio::sync::mpsc::Sender<()>,
    );
    impl Drop for Held {
        fn drop(&mut self) {
            let places = Connection::open(&self.0).unwrap();
            let complete: bool = places.query_row("SELECT complete FROM state", [], |row| row.get(0)).unwrap();
            self.1.store(complete, SeqCst);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("places");
    let (is_complete, (told, mut closed)) = (Arc::new(AtomicBool::new(false)), tokio::sync::mpsc::channel(1));
    let mut places = Places::open(&file, 0);
    places.hold_until_closed(Held(file, Arc::clone(&is_complete), told));
    let began = places.begin_walk();
    assert_eq!(places.end_walk(began, true), Walked::Whole);
    drop(places);
    assert_eq!(closed.recv().await, None);
    assert!(is_complete.load(SeqCst), "it was written before");
}
