//! What a guest may still ask for, of more entries than memory remembers, across restarts, and what it costs when something is not there.

use std::{io::Read, path::Path};

use fs_err as fs;

use super::*;
use crate::{
    answer::{Access, Guest},
    message::{Head, Name, Operation, Reply, read},
    opened::OpenHere,
    room::Figures,
};

#[derive(Debug, Default)]
struct Unlimited(Mutex<()>);

impl Room for Unlimited {
    fn size(&self, allocated: u64) -> u64 {
        allocated
    }
    fn change(&self, _: u64, change: &mut dyn FnMut() -> Result<Sizes, Errno>) -> Result<(), Errno> {
        let _changing = self.0.lock().unwrap();
        change().map(drop)
    }
    fn figures(&self) -> Figures {
        Figures { used: 0, quota: 1 << 30 }
    }
}

fn share(dir: &Path) -> Share {
    let content = dir.join("content");
    fs::create_dir_all(&content).unwrap();
    let root = OwnedFd::from(fs::File::open(&content).unwrap().into_parts().0);
    Share::new(root, &dir.join("places"), Arc::new(Unlimited::default()))
}

impl Share {
    /// What a guest is told of the path.
    fn look_up(&self, path: &str) -> u64 {
        let mut at = ROOT;
        for name in path.split('/') {
            let stat = stat_at(&self.directory(at).unwrap().fd, name.as_ref()).unwrap();
            at = self.learn(at, name.as_ref(), &stat);
        }
        at
    }

    fn content_of(&self, node: u64) -> Result<String, Errno> {
        let file = std::fs::File::from(self.open(node, OFlags::RDONLY)?.fd);
        Ok(std::io::read_to_string(file).unwrap())
    }

    fn times_looked_through(&self) -> u64 {
        self.looked_through.load(Relaxed)
    }

    fn names(&self, act: impl FnOnce(Name<'_>, Name<'_>) -> Result<(), Errno>, (one, two): (&str, &str)) {
        let message = |name: &str| [&[0; 40], name.as_bytes(), &[0]].concat();
        let (one, two) = (message(one), message(two));
        let name = |message: &'static [u8]| match read(message).unwrap().1.unwrap() {
            Operation::Lookup(name) => name,
            other => panic!("{other:?}"),
        };
        let leaked = |mut message: Vec<u8>| -> &'static [u8] {
            message[4] = 1;
            message.leak()
        };
        act(name(leaked(one)), name(leaked(two))).unwrap();
    }
}

/// What a kernel does that does not look again: it opens what it was told of, by the number.
#[test]
fn what_was_replaced_or_removed_since_it_was_looked_up_is_opened_as_on_a_local_disk() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest { share: Arc::new(share(dir.path())), access: Access::Write, here: OpenHere::default() };
    let write = |name: &str, text: &str| fs::write(dir.path().join("content").join(name), text).unwrap();
    let content = |node: u64| {
        let mut text = String::new();
        std::fs::File::from(guest.share.file(node).unwrap().try_clone().unwrap()).read_to_string(&mut text).unwrap();
        text
    };
    write("current", "one");
    write("next", "two");
    let (one, two) = (guest.share.look_up("current"), guest.share.look_up("next"));
    guest.share.names(|next, current| guest.share.rename((ROOT, next), (ROOT, current), 0), ("next", "current"));
    guest.open(one, 0, &mut Reply::to(1)).unwrap();
    guest.share.attributes_of(one, &mut Reply::to(1)).unwrap();
    assert_eq!(content(one), "two");
    // It is open under both numbers, and closed with the one that the guest knows.
    guest.share.names(|current, _| guest.share.unlink(ROOT, current), ("current", "x"));
    assert!(guest.share.opened.holds(two));
    guest.close(one).unwrap();
    assert!(!guest.share.opened.holds(one) && !guest.share.opened.holds(two));
    // By now nothing has the name, as whoever looks it up would be told.
    assert_eq!(guest.open(two, 0, &mut Reply::to(1)).unwrap_err(), Errno::NOENT);
    assert_eq!(guest.share.attributes_of(two, &mut Reply::to(1)).unwrap_err(), Errno::NOENT);
    write("current", "three");
    guest.open(two, 0, &mut Reply::to(1)).unwrap();
    assert_eq!(content(two), "three");
    assert_eq!(guest.open(4711, 0, &mut Reply::to(1)).unwrap_err(), Errno::STALE, "what was never there has no place");
}

#[test]
fn what_is_replaced_again_and_again_is_opened_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let guest = Guest { share: Arc::new(share(dir.path())), access: Access::Write, here: OpenHere::default() };
    let content = dir.path().join("content");
    fs::write(content.join("current"), "0").unwrap();
    let is_over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in ["one", "two", "three"] {
            let (share, content, is_over) = (Arc::clone(&guest.share), &content, &is_over);
            scope.spawn(move || {
                while !is_over.load(Relaxed) {
                    fs::write(content.join(writer), "more").unwrap();
                    share.look_up(writer);
                    share.names(|next, current| share.rename((ROOT, next), (ROOT, current), 0), (writer, "current"));
                }
            });
        }
        for n in 0..2000 {
            let node = guest.share.look_up("current");
            let opened = guest.open(node, 0, &mut Reply::to(1)).and_then(|()| guest.close(node));
            if opened.is_err() {
                is_over.store(true, Relaxed);
            }
            opened.unwrap_or_else(|error| panic!("{n}: {error}"));
        }
        is_over.store(true, Relaxed);
    });
}

#[test]
fn of_more_entries_than_memory_has_room_for_none_is_lost_and_none_is_searched_for() {
    let dir = tempfile::tempdir().unwrap();
    let made = share(dir.path());
    let (directories, files) = (17, 1000);
    let mut known = Vec::new();
    for directory in 0..directories {
        fs::create_dir_all(dir.path().join(format!("content/deep/{directory}"))).unwrap();
        for file in 0..files {
            let path = format!("deep/{directory}/{file}");
            fs::write(dir.path().join("content").join(&path), &path).unwrap();
            known.push((made.look_up(&path), path));
        }
    }
    let all_there = |share: &Share| {
        for (node, path) in known.iter().step_by(97).chain(known.iter().rev().step_by(1013)) {
            assert_eq!(share.content_of(*node).as_ref(), Ok(path));
        }
    };
    all_there(&made);
    // Of what never was, nothing is known either: the first that is missed has everything looked through, and no other.
    for number in 0..1000 {
        assert_eq!(made.open(number * 4 + 2, OFlags::PATH).unwrap_err(), Errno::STALE);
    }
    assert_eq!(made.times_looked_through(), 1);
    all_there(&made);
    drop(made);
    // What was closed is known to be complete.
    let next = share(dir.path());
    all_there(&next);
    assert_eq!(next.open(6, OFlags::PATH).unwrap_err(), Errno::STALE);
    assert_eq!(next.times_looked_through(), 0);
}

#[test]
fn a_file_of_places_that_was_lost_or_is_none_is_made_anew_and_nothing_is_stale() {
    let dir = tempfile::tempdir().unwrap();
    let made = share(dir.path());
    fs::create_dir_all(dir.path().join("content/a/b")).unwrap();
    fs::write(dir.path().join("content/a/b/c"), "text").unwrap();
    let node = made.look_up("a/b/c");
    drop(made);
    for content in [None, Some("no database at all, and longer than a head of one would be".repeat(100))] {
        fs::remove_file(dir.path().join("places")).unwrap();
        if let Some(content) = content {
            fs::write(dir.path().join("places"), content).unwrap();
        }
        let next = share(dir.path());
        assert_eq!(next.content_of(node).as_deref(), Ok("text"));
        assert_eq!(next.times_looked_through(), 1);
        // Where no file can be made, in memory.
        let root = next.root.try_clone().unwrap();
        let nowhere = Share::new(root, Path::new("/nowhere/at/all"), Arc::new(Unlimited::default()));
        assert_eq!(nowhere.content_of(node).as_deref(), Ok("text"));
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(dir.path().join("places")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_moves_and_has_several_names_is_found_by_those_that_are_left() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    share.look_through(ROOT).unwrap();
    for name in ["a", "b", "b/c"] {
        fs::create_dir(dir.path().join("content").join(name)).unwrap();
    }
    fs::write(dir.path().join("content/b/c/one"), "text").unwrap();
    let (a, c, file) = (share.look_up("a"), share.look_up("b/c"), share.look_up("b/c/one"));
    let head = Head { unique: 0, node: a, uid: 0, gid: 0 };
    share.names(|two, _| share.link(head.node, file, two, &mut Reply::to(1)), ("two", "x"));
    let b = share.look_up("b");
    share.names(|name, new| share.rename((b, name), (a, new), 0), ("c", "moved"));
    assert_eq!(fs::read_to_string(dir.path().join("content/a/moved/one")).unwrap(), "text");
    // Of the file, nothing was said: what it is in has moved.
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    share.names(|one, _| share.unlink(c, one), ("one", "x"));
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    share.names(|one, two| share.rename((a, one), (ROOT, two), 0), ("two", "last"));
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    // What somebody believes who looked just before it moved: a directory within itself.
    let stat = share.open(a, OFlags::PATH).unwrap().stat;
    share.learn(c, "a".as_ref(), &stat);
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    share.directory(c).unwrap();
    share.names(|last, _| share.unlink(ROOT, last), ("last", "x"));
    assert_eq!(share.content_of(file), Err(Errno::STALE));
    assert_eq!(share.times_looked_through(), 2, "at first, and for the ring");
}

#[test]
fn what_the_database_refuses_while_all_is_looked_through_is_found_in_another_turn() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    fs::create_dir_all(dir.path().join("content/a")).unwrap();
    let mut known = Vec::new();
    for number in 0..2000 {
        let path = format!("a/{number:0>200}");
        fs::write(dir.path().join("content").join(&path), &path).unwrap();
        known.push((share.look_up(&path), path));
    }
    share.places.lose_all();
    share.places.refuse_beyond(20);
    assert_eq!(share.open(6, OFlags::PATH).unwrap_err(), Errno::STALE);
    assert_eq!(share.times_looked_through(), 2, "in a file that was full, and in memory");
    for (node, path) in known {
        assert_eq!(share.content_of(node), Ok(path));
    }
    assert_eq!(share.times_looked_through(), 2);
}

#[test]
fn a_directory_that_moves_behind_who_looks_through_all_is_not_taken_for_gone() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    for name in ["a/d/e", "b/other/e"] {
        fs::create_dir_all(dir.path().join("content").join(name)).unwrap();
    }
    fs::write(dir.path().join("content/a/d/e/file"), "text").unwrap();
    let (a, b, d, file) = (share.look_up("a"), share.look_up("b"), share.look_up("a/d"), share.look_up("a/d/e/file"));
    for (source, target) in [((a, "d"), (b, "d")), ((b, "d"), (a, "d"))] {
        share.places.lose_all();
        let began = share.places.begin_walk();
        let mut found = Vec::new();
        share.look_into(ROOT, file, &mut found).unwrap();
        share.look_into(target.0, file, &mut found).unwrap();
        share.names(|one, two| share.rename((source.0, one), (target.0, two), 0), (source.1, target.1));
        share.look_into(source.0, file, &mut found).unwrap();
        assert!(!found.contains(&d), "nobody has seen it");
        assert_eq!(share.places.end_walk(began, true), Walked::Disturbed);
        assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    }
    // A file is learnt of by who moves it, and disturbs nobody.
    let began = share.places.begin_walk();
    let e = share.look_up("a/d/e");
    share.names(|one, two| share.rename((e, one), (b, two), 0), ("file", "file"));
    assert_eq!(share.places.end_walk(began, true), Walked::Whole);
}

#[test]
fn with_more_names_than_there_is_room_for_each_is_found_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    fs::create_dir_all(dir.path().join("content/a")).unwrap();
    for number in 0..9000 {
        fs::write(dir.path().join(format!("content/a/{number:0>100}")), number.to_string()).unwrap();
    }
    fs::create_dir_all(dir.path().join("content/a/last/of/all")).unwrap();
    fs::write(dir.path().join("content/a/last/of/all/file"), "text").unwrap();
    let known = ["0", "17", "8999"].map(|name| (share.look_up(&format!("a/{name:0>100}")), name));
    let file = share.look_up("a/last/of/all/file");
    share.places.bound_to(100 << 10);
    for _ in 0..2 {
        for (node, name) in known {
            share.places.lose_all();
            assert_eq!(share.content_of(node).as_deref(), Ok(name));
            assert_eq!(share.content_of(file).as_deref(), Ok("text"));
            assert!(!share.places.is_complete());
        }
    }
    assert_eq!(share.open(6, OFlags::PATH).unwrap_err(), Errno::STALE);
}

#[test]
fn what_lies_deeper_than_any_path_is_opened_step_by_step_and_nothing_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let deep = |top: &str| format!("{top}/{}", vec!["d".repeat(200); 18].join("/"));
    for top in ["one", "two"] {
        fs::create_dir_all(dir.path().join("content").join(deep(top))).unwrap();
    }
    let at = dir.path().join("content").join(deep("two")).join("file");
    fs::write(at, "text").unwrap();
    let (bottom, file) = (share.look_up(&deep("one")), share.look_up(&format!("{}/file", deep("two"))));
    share.look_through(ROOT).unwrap();
    share.names(|two, moved| share.rename((ROOT, two), (bottom, moved), 0), ("two", "two"));
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    // Of what is there, the system is asked what it is.
    assert_eq!(share.directory(file).unwrap_err(), Errno::NOTDIR);
    assert!(share.places.is_complete());
    assert_eq!(share.times_looked_through(), 1);
    share.places.lose_all();
    assert_eq!(share.content_of(file).as_deref(), Ok("text"));
    assert!(share.places.is_complete(), "who looks through all comes there too");
}

#[test]
fn only_what_is_said_not_to_be_there_is_taken_for_gone() {
    for gone in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP] {
        assert_eq!(unless_absent::<()>(Err(gone)), Ok(None));
    }
    for passing in [Errno::MFILE, Errno::NFILE, Errno::IO, Errno::NOMEM, Errno::ACCESS] {
        assert_eq!(unless_absent::<()>(Err(passing)), Err(passing));
    }
    // A hint that cannot be judged stays: of this name the system says that it is none, and of the one below that it is not there.
    let dir = tempfile::tempdir().unwrap();
    let share = share(dir.path());
    let odd = Place { parent: ROOT, name: "o\0d".into() };
    share.places.learn(6, odd.clone());
    let chain = vec![(6, odd.clone())];
    assert_eq!(share.forget_first_wrong(&chain), Err(Errno::INVAL));
    assert_eq!(share.places.likely(6).unwrap(), Some(odd));
}
