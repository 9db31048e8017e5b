//! A shared directory through the kernel's own client: what programs find, several at once, across restarts, and what they do not.
//!
//! Needs root and `/dev/fuse`; where they are missing it says so.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot be set up fails, and one that is skipped says so"
)]

mod mount;

use std::{
    io::{Read, Seek, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

use fs_err::{self as fs, os::unix::fs::OpenOptionsExt};

use self::mount::Bench;

#[test]
fn files_are_made_written_read_renamed_and_removed() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let at = bench.mount("one");
    let dir = at.path().join("a/b");
    fs::create_dir_all(&dir).unwrap();
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(dir.join("large"), &content).unwrap();
    assert!(fs::read(dir.join("large")).unwrap() == content);
    fs::rename(dir.join("large"), at.path().join("moved")).unwrap();
    assert!(fs::read(bench.dir().join("moved")).unwrap() == content);
    symlink("moved", at.path().join("link")).unwrap();
    assert_eq!(fs::read_link(at.path().join("link")).unwrap().to_str(), Some("moved"));
    assert_eq!(fs::metadata(at.path().join("link")).unwrap().len(), 12_000_000);
    fs::hard_link(at.path().join("moved"), dir.join("hard")).unwrap();
    assert_eq!(fs::metadata(dir.join("hard")).unwrap().nlink(), 2);
    let file = fs::OpenOptions::new().write(true).open(dir.join("hard")).unwrap();
    file.set_len(5).unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::metadata(at.path().join("moved")).unwrap().len(), 5);
    assert_eq!(fs::remove_dir(&dir).unwrap_err().kind(), std::io::ErrorKind::DirectoryNotEmpty);
    fs::remove_file(dir.join("hard")).unwrap();
    fs::remove_dir(&dir).unwrap();
    let mut names: Vec<_> = fs::read_dir(at.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "link", "moved"]);
}

#[test]
fn a_long_directory_is_listed_whole_and_once() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let at = bench.mount("one");
    let expected: std::collections::BTreeSet<_> = (0..3000).map(|n| format!("{}{n}", "x".repeat(100))).collect();
    for name in &expected {
        fs::write(at.path().join(name), name).unwrap();
    }
    let listed: Vec<_> =
        fs::read_dir(at.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed.len(), expected.len());
    assert_eq!(listed.into_iter().collect::<std::collections::BTreeSet<_>>(), expected);
}

#[test]
fn what_one_closes_the_other_opens() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let (one, two) = (bench.mount("one"), bench.mount("two"));
    for round in 0..50 {
        let text = "x".repeat(round);
        // Known to the other before, and trusted.
        drop(fs::metadata(two.path().join("file")));
        fs::write(one.path().join("file"), &text).unwrap();
        assert_eq!(fs::read_to_string(two.path().join("file")).unwrap(), text);
    }
    fs::rename(one.path().join("file"), one.path().join("other")).unwrap();
    assert_eq!(fs::read_to_string(two.path().join("other")).unwrap().len(), 49);
}

#[test]
fn two_who_append_lose_nothing() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let (one, two) = (bench.mount("one"), bench.mount("two"));
    std::thread::scope(|scope| {
        for at in [one.path(), two.path()] {
            scope.spawn(move || {
                let mut file = fs::OpenOptions::new().append(true).create(true).open(at.join("log")).unwrap();
                for n in 0..200 {
                    file.write_all(format!("{n}\n").as_bytes()).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(bench.dir().join("log")).unwrap();
    let mut lines: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, (0..200).flat_map(|n| [n, n]).collect::<Vec<_>>());
}

#[test]
fn who_answers_may_be_another_and_files_stay_open() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let at = bench.mount("one");
    fs::create_dir_all(at.path().join("a/b")).unwrap();
    let mut file =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(at.path().join("a/b/c")).unwrap();
    file.write_all(b"before").unwrap();
    // With nothing that the last one knew, and after somebody else has moved what was open.
    fs::rename(bench.dir().join("a"), bench.dir().join("z")).unwrap();
    at.serve_anew();
    file.write_all(b" and after").unwrap();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(fs::read_to_string(bench.dir().join("z/b/c")).unwrap(), text);
    assert_eq!(fs::read_to_string(at.path().join("z/b/c")).unwrap(), text);
}

#[test]
fn what_was_removed_is_there_for_who_has_it_open() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let (one, two) = (bench.mount("one"), bench.mount("two"));
    fs::write(one.path().join("file"), vec![1; 1 << 20]).unwrap();
    let mut file = fs::File::open(two.path().join("file")).unwrap();
    let used = bench.used();
    fs::remove_file(one.path().join("file")).unwrap();
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!((content.len(), bench.used()), (1 << 20, used), "and counts as long");
    drop(file);
    bench.wait_until(|| bench.used() == bench.counted());
    // Another file has its inode, and is not taken for it.
    fs::write(one.path().join("file"), "new").unwrap();
    assert_eq!(fs::read_to_string(two.path().join("file")).unwrap(), "new");
}

#[test]
fn a_full_directory_takes_no_more_and_gives_back() {
    let Some(bench) = Bench::new(1 << 20) else { return };
    let at = bench.mount("one");
    let mut large = fs::File::create(at.path().join("large")).unwrap();
    let error = large.file_mut().write_all(&vec![1; 2 << 20]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EDQUOT as i32));
    drop(large);
    assert!(bench.counted() <= 1 << 20);
    assert_eq!(bench.used(), bench.counted());
    fs::remove_file(at.path().join("large")).unwrap();
    // The kernel tells of the end of an open file when it likes, and of the removal of its name at once.
    bench.wait_until(|| bench.used() == bench.counted());
    for n in 0..40 {
        fs::write(at.path().join(format!("{n}")), "small").unwrap();
    }
    fs::rename(at.path().join("1"), at.path().join("2")).unwrap();
    fs::create_dir(at.path().join("sub")).unwrap();
    fs::rename(at.path().join("3"), at.path().join("sub/3")).unwrap();
    bench.wait_until(|| bench.used() == bench.counted());
    let free = nix::sys::statvfs::statvfs(at.path()).unwrap();
    assert_eq!(free.blocks(), (1 << 20) / 4096);
    assert!(free.blocks_free() < free.blocks());
}

#[test]
fn links_are_not_followed_and_nothing_runs_as_another() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let at = bench.mount("one");
    symlink(bench.outside(), at.path().join("out")).unwrap();
    // In this test the guest and the host are one: who follows the link is the client, and the directory has none of it.
    assert!(fs::symlink_metadata(bench.dir().join("out")).unwrap().is_symlink());
    fs::remove_file(at.path().join("out")).unwrap();
    assert!(bench.outside().join("secret").exists());

    fs::write(at.path().join("program"), "").unwrap();
    let mode = |mode| fs::set_permissions(at.path().join("program"), std::fs::Permissions::from_mode(mode));
    assert_eq!(mode(0o4755).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    mode(0o711).unwrap();
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o6777).open(at.path().join("made")).unwrap();
    assert_eq!(made.metadata().unwrap().mode() & 0o7000, 0);
    let pipe = nix::unistd::mkfifo(&at.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU);
    assert_eq!(pipe, Err(nix::errno::Errno::EPERM));
    nix::unistd::chown(&at.path().join("made"), Some(1000.into()), Some(1001.into())).unwrap();
    let stat = fs::metadata(bench.dir().join("made")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (1000, 1001));
}

#[test]
fn who_may_only_read_changes_nothing() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    fs::write(bench.dir().join("file"), "text").unwrap();
    let at = bench.mount_read_only("one");
    assert_eq!(fs::read_to_string(at.path().join("file")).unwrap(), "text");
    for refused in [
        fs::write(at.path().join("file"), "other"),
        fs::write(at.path().join("new"), "other"),
        fs::remove_file(at.path().join("file")),
        fs::create_dir(at.path().join("dir")),
    ] {
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn what_has_no_number_of_ours_is_gone() {
    let Some(bench) = Bench::new(1 << 30) else { return };
    let at = bench.mount("one");
    let file = fs::File::create(at.path().join("file")).unwrap();
    fs::remove_file(bench.dir().join("file")).unwrap();
    at.serve_anew();
    assert_eq!(file.file().sync_all().unwrap_err().raw_os_error(), Some(nix::errno::Errno::ESTALE as i32));
}
