//! Images are made of a small ext4 that has one of everything, and read by the kernel.

use std::{
    collections::BTreeMap,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    process::{Command as Program, Stdio},
    sync::Mutex,
};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};

use super::*;

const AGENT: &[u8] = b"an agent";
const DISK_BYTES: u64 = 32 << 20;
const XATTRS: [&str; 2] = ["security.capability", "user.note"];
/// `cap_net_raw=ep`, as the kernel keeps it.
const NET_RAW: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Whether the host can make such images, said when it cannot.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn able() -> bool {
    let lacking = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if !Path::new("/usr/bin/mkfs.erofs").is_file() {
        "`mkfs.erofs` (package erofs-utils)"
    } else if !Path::new("/dev/loop-control").exists() {
        "loop devices"
    } else {
        return true;
    };
    eprintln!("SKIP: root images for gVisor need {lacking}");
    false
}

fn sh(script: &str, dir: &Path) {
    let done = Program::new("sh").args(["-ec", script]).current_dir(dir).env("PATH", SBIN_PATH).stdin(Stdio::null()).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{script}: {done:?}");
}

/// A machine's image, made of what `script` makes in its root.
fn machine(dir: &Path, script: &str) -> RootImage {
    let tree = dir.join("tree");
    fs::create_dir(&tree).unwrap();
    sh(script, &tree);
    ext4(dir, &tree)
}

fn ext4(dir: &Path, tree: &Path) -> RootImage {
    let path = dir.join("rootfs.ext4");
    let make = format!("mke2fs -q -t ext4 -d {} {} {}k", tree.display(), path.display(), DISK_BYTES >> 10);
    sh(&make, dir);
    fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    RootImage { digest: rootfs::digest(&path).unwrap(), path, virtual_bytes: DISK_BYTES }
}

/// All that there is to see of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    device: u64,
    links: u64,
    time: (i64, i64),
    content: Vec<u8>,
    xattrs: Vec<(&'static str, Vec<u8>)>,
}

fn seen(path: &Path) -> Seen {
    let meta = fs::symlink_metadata(path).unwrap();
    let content = if meta.is_symlink() {
        fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec()
    } else if meta.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let xattr = |name: &'static str| {
        let mut value = vec![0; 64];
        let bytes = lgetxattr(path, name, &mut value).ok()?;
        Some((name, value[..bytes].to_vec()))
    };
    Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        device: if meta.is_file() || meta.is_dir() { 0 } else { meta.rdev() },
        links: if meta.is_dir() { 0 } else { meta.nlink() },
        time: (meta.mtime(), meta.mtime_nsec()),
        content,
        xattrs: XATTRS.into_iter().filter_map(xattr).collect(),
    }
}

/// Everything in an image, as the kernel reads it.
fn listing(image: &Path, kind: &'static str) -> BTreeMap<String, Seen> {
    let image = image.to_path_buf();
    let list = move || {
        let place = tempfile::tempdir().unwrap();
        view::apart(place.path()).unwrap();
        let options = if kind == "ext4" { "ro,loop,noload" } else { "ro,loop" };
        sh(&format!("mount -n -t {kind} -o {options} {} {}", image.display(), place.path().display()), Path::new("/"));
        let mut found = BTreeMap::new();
        let mut pending = vec![place.path().to_path_buf()];
        while let Some(path) = pending.pop() {
            let name = path.strip_prefix(place.path()).unwrap().to_str().unwrap().to_owned();
            found.insert(name, seen(&path));
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        nix::mount::umount2(place.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        found
    };
    std::thread::spawn(list).join().unwrap()
}

/// Loop devices that have a file below `dir`.
fn loops(dir: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().path().join("loop/backing_file"));
    devices.filter(|file| fs::read_to_string(file).is_ok_and(|backing| backing.starts_with(dir.to_str().unwrap()))).count()
}

fn mounts(dir: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(dir.to_str().unwrap())
}

/// A root with one of everything.
const ALL_KINDS: &str = "\
    mkdir -p etc usr/lib/modules/6.12.1/kernel usr/bin root dev; ln -s usr/lib lib; chmod 0700 root; \
    echo text >etc/file; chown 7:8 etc/file; chmod 0640 etc/file; touch -d '2020-02-03 04:05:06.789' etc/file; \
    ln etc/file etc/other-name; ln -s /nowhere etc/link; echo x >usr/lib/modules/6.12.1/kernel/e.ko; \
    echo program >usr/bin/ping; chmod 4755 usr/bin/ping; mknod dev/null c 1 3; mkfifo etc/pipe; : >etc/empty; \
    head -c 5000 /dev/urandom >etc/two-blocks; truncate -s 100000 etc/hole; chown 70000:70001 usr; \
    mkdir var; touch -h -d '2021-01-01' etc/link; touch -d '2022-01-01' usr/lib usr etc .";

#[tokio::test]
async fn an_image_has_what_the_machine_has_and_the_agent_and_no_modules() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    sh(ALL_KINDS, &tree);
    lsetxattr(tree.join("usr/bin/ping"), XATTRS[0], &NET_RAW, XattrFlags::empty()).unwrap();
    lsetxattr(tree.join("etc/two-blocks"), XATTRS[1], b"kept", XattrFlags::empty()).unwrap();
    let root = ext4(dir.path(), &tree);
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let made = container_root(&cache, &root, AGENT, &|_| ()).await.unwrap();
    assert_eq!(made.virtual_bytes, DISK_BYTES, "a sandbox is to see of its disk what a machine sees");
    assert_eq!(made.digest, rootfs::digest(&made.path).unwrap());
    assert_eq!(fs::metadata(&made.path).unwrap().permissions().mode() & 0o777, 0o400);

    let (mut wanted, mut found) = (listing(&root.path, "ext4"), listing(&made.path, "erofs"));
    assert_eq!(wanted["usr/bin/ping"].xattrs, [(XATTRS[0], NET_RAW.to_vec())], "the machine's image has it");
    wanted.retain(|path, _| path != "lost+found" && !path.starts_with("usr/lib/modules/"));
    // A file with any could not be looked at.
    wanted.values_mut().for_each(|file| file.xattrs.clear());
    let time = wanted[""].time;
    let agent = found.remove(CONTAINER_AGENT.trim_start_matches('/')).unwrap();
    assert_eq!((agent.content.as_slice(), agent.mode, agent.owner, agent.time), (AGENT, 0o100_755, (0, 0), time));
    let list = found.remove("usr/lib/firkin/files").unwrap();
    assert_eq!((list.mode, list.owner, list.time), (0o100_644, (0, 0), time));
    let mut listed = firkin_files::listing::read(list.content.as_slice()).unwrap();
    listed.sort_by(|one, other| one.path.cmp(&other.path));
    let paths = listed.iter().map(|file| file.path.to_str().unwrap());
    let all = found.keys().map(String::as_str).filter(|path| !path.starts_with("usr/lib/firkin/"));
    assert!(paths.filter(|path| *path != "usr/lib/firkin").eq(all.filter(|path| *path != "usr/lib/firkin")), "{listed:?}");
    for (place, mode) in [("proc", 0o755), ("sys", 0o755), ("run", 0o755), ("tmp", 0o1777), ("usr/lib/firkin", 0o755)] {
        let directory = found.remove(place).unwrap();
        assert_eq!((directory.mode, directory.owner, directory.time), (0o040_000 | mode, (0, 0), time), "{place}");
    }
    assert_eq!(found, wanted);

    let left = fs::read_dir(made.path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, [IMAGE, RECORD], "nothing else is kept");
    assert!(!mounts(dir.path()) && loops(dir.path()) == 0, "nothing is mounted any more");
}

#[tokio::test]
async fn the_same_files_give_the_same_bytes_and_are_packed_once() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = machine(dir.path(), ALL_KINDS);
    let open = |name: &str| dir.path().join(name);
    let (one, two) = (Cache::open(&open("one")).await.unwrap(), Cache::open(&open("two")).await.unwrap());
    let first = container_root(&one, &root, AGENT, &|_| ()).await.unwrap();
    let second = container_root(&two, &root, AGENT, &|_| ()).await.unwrap();
    assert_eq!(first.digest, second.digest);
    assert_eq!(fs::read(&first.path).unwrap(), fs::read(&second.path).unwrap());

    // It is not read again: the machine's image need not even be there.
    let gone = RootImage { path: open("gone"), ..root.clone() };
    let again = container_root(&one, &gone, AGENT, &|event| panic!("{event:?}")).await.unwrap();
    assert_eq!(again, first);
    let other = container_root(&one, &root, b"another agent", &|_| ()).await.unwrap();
    assert!(other.digest != first.digest && other.path != first.path, "an agent is a part of its image");

    let entry = first.path.parent().unwrap();
    fs::set_permissions(&first.path, std::fs::Permissions::from_mode(0o600)).unwrap();
    fs::OpenOptions::new().write(true).open(&first.path).unwrap().set_len(4096).unwrap();
    let damaged = container_root(&one, &root, AGENT, &|_| ()).await.unwrap_err();
    assert!(matches!(&damaged, ErofsError::Cache(CacheError::Damaged { path, .. }) if path == entry), "{damaged:?}");
}

#[tokio::test]
async fn links_of_an_image_lead_nowhere_outside_of_it() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    // In the image this is a link to a directory that is not there, and the host has it.
    let script = format!("mkdir usr; ln -s {} usr/lib", outside.display());
    let root = machine(dir.path(), &script);
    let refused = container_root(&cache, &root, AGENT, &|_| ()).await.unwrap_err();
    assert!(matches!(&refused, ErofsError::View(ViewError::Change(_))), "{refused:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "the host's directory is as it was");

    fs::remove_dir_all(dir.path().join("tree")).unwrap();
    fs::remove_file(&root.path).unwrap();
    let within = "mkdir -p opt/lib/firkin; ln -s /opt usr; ln -s /etc/passwd opt/lib/firkin/guest";
    let root = machine(dir.path(), within);
    let made = container_root(&cache, &root, AGENT, &|_| ()).await.unwrap();
    assert_eq!(listing(&made.path, "erofs")["opt/lib/firkin/guest"].content, AGENT);
    assert!(!mounts(dir.path()) && loops(dir.path()) == 0, "nothing is mounted any more");
}

/// An archive of these entries: path, type, content or target.
fn layer(dir: &Path, entries: &[(&str, tar::EntryType, &str)]) -> PathBuf {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("SCHILY.xattr.trusted.overlay.opaque", &b"y"[..])]).unwrap();
    for (path, kind, said) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o755 } else { 0o640 });
        header.set_mtime(1_600_000_000);
        header.set_uid(5);
        header.set_gid(6);
        if kind.is_file() {
            header.set_size(said.len() as u64);
            builder.append_data(&mut header, path, said.as_bytes()).unwrap();
        } else if kind.is_dir() {
            header.set_size(0);
            builder.append_data(&mut header, path, std::io::empty()).unwrap();
        } else {
            header.set_size(0);
            builder.append_link(&mut header, path, said).unwrap();
        }
    }
    let path = dir.join("layer.tar");
    fs::write(&path, builder.into_inner().unwrap()).unwrap();
    path
}

/// Whether the kernel has EROFS, said when it has not.
#[expect(clippy::print_stderr, reason = "a skip is printed")]
fn able_to_read() -> bool {
    let loaded =
        Program::new("modprobe").args(["-q", "erofs"]).env("PATH", SBIN_PATH).status().is_ok_and(|status| status.success());
    let known = fs::read_to_string("/proc/filesystems").unwrap().contains("erofs");
    if !known && !loaded {
        eprintln!("SKIP: the kernel has no EROFS");
    }
    known || loaded
}

#[tokio::test]
async fn what_a_sandbox_changed_is_in_the_next_image() {
    use tar::EntryType as T;
    if !able() || !able_to_read() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let first = container_root(&cache, &machine(dir.path(), ALL_KINDS), AGENT, &|_| ()).await.unwrap();
    let changes = [
        (".", T::Directory, ""),
        ("etc", T::Directory, ""),
        ("etc/empty", T::Regular, "no longer"),
        ("etc/new", T::Directory, ""),
        ("etc/new/file", T::Regular, "new"),
        ("etc/new/again", T::Link, "etc/new/file"),
        ("etc/link", T::Symlink, "/else/where"),
        ("etc/.wh.two-blocks", T::Regular, ""),
        (".wh.var", T::Regular, ""),
        ("root", T::Regular, "was a directory"),
    ];
    let path = layer(dir.path(), &changes);
    let second = changed_root(&cache, &first, &path, b"a later agent", &|_| ()).await.unwrap();
    assert_eq!(second.virtual_bytes, first.virtual_bytes);
    let (mut was, mut is) = (listing(&first.path, "erofs"), listing(&second.path, "erofs"));
    for gone in ["etc/two-blocks", "var"] {
        assert!(was.remove(gone).is_some() && !is.contains_key(gone), "{gone}");
    }
    assert_eq!(is.remove("usr/lib/firkin/guest").unwrap().content, b"a later agent");
    let list = is.remove("usr/lib/firkin/files").unwrap().content;
    assert!(String::from_utf8(list).unwrap().contains(" etc/new/again "), "the list is of the new image");
    let new = |path: &str, is: &mut BTreeMap<String, Seen>| is.remove(path).unwrap();
    let file = new("etc/new/file", &mut is);
    assert_eq!((file.content.as_slice(), file.mode, file.owner, file.time.0), (&b"new"[..], 0o100_640, (5, 6), 1_600_000_000));
    assert_eq!((file.links, new("etc/new/again", &mut is)), (2, file.clone()));
    assert_eq!(new("etc/new", &mut is).time.0, 1_600_000_000, "a directory's time is not that of its making");
    assert_eq!(new("etc/empty", &mut is).content, b"no longer");
    assert_eq!(new("etc/link", &mut is).content, b"/else/where");
    assert_eq!(new("root", &mut is).content, b"was a directory");
    assert_eq!((new("", &mut is).owner, new("etc", &mut is).time.0), ((5, 6), 1_600_000_000));
    for path in ["usr/lib/firkin/guest", "usr/lib/firkin/files", "etc/empty", "etc/link", "root", "", "etc"] {
        was.remove(path).unwrap();
    }
    assert_eq!(is, was, "the rest is as it was");
    assert!(!mounts(dir.path()) && loops(dir.path()) == 0, "nothing is mounted any more");

    let same = changed_root(&cache, &first, &path, b"a later agent", &|event| panic!("{event:?}")).await.unwrap();
    assert_eq!(same, second, "it is made once");
    let other = layer(dir.path(), &changes[..2]);
    assert_ne!(changed_root(&cache, &first, &other, AGENT, &|_| ()).await.unwrap().digest, second.digest);
}

#[tokio::test]
async fn changes_that_contradict_themselves_are_refused_and_lead_nowhere() {
    use tar::EntryType as T;
    if !able() || !able_to_read() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.to_str().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let first = container_root(&cache, &machine(dir.path(), "mkdir etc"), AGENT, &|_| ()).await.unwrap();
    let hostile: [&[(&str, T, &str)]; 3] = [
        &[("etc", T::Symlink, target), ("etc/.wh.file", T::Regular, "")],
        &[("nowhere/.wh.file", T::Regular, "")],
        &[("etc", T::Directory, ""), ("etc/file", T::Regular, "x"), ("etc/.wh.file", T::Regular, "")],
    ];
    for entries in hostile {
        let refused = changed_root(&cache, &first, &layer(dir.path(), entries), AGENT, &|_| ()).await.unwrap_err();
        assert!(matches!(&refused, ErofsError::Changes(ChangesError::Contradiction { .. })), "{refused:?}");
    }
    let no_archive = dir.path().join("none");
    fs::write(&no_archive, [7; 2048]).unwrap();
    let refused = changed_root(&cache, &first, &no_archive, AGENT, &|_| ()).await.unwrap_err();
    assert!(matches!(&refused, ErofsError::Changes(ChangesError::Read { .. })), "{refused:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "the host's directory is as it was");
}

#[tokio::test]
async fn what_is_lacking_is_said_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let root = RootImage { path: dir.path().join("none"), digest: "d".into(), virtual_bytes: DISK_BYTES };
    let work = Work { root, agent: AGENT.to_vec(), layer: None };
    let lacking = made_by("/nowhere", &cache, work, &|_| ()).await.unwrap_err();
    assert!(matches!(lacking, ErofsError::NoProgram));
    assert!(lacking.to_string().contains("install the package erofs-utils"), "{lacking}");
}

#[tokio::test]
async fn a_file_with_a_large_hole_does_not_fill_the_disk() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = machine(dir.path(), "truncate -s 300G bomb");
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let refused = container_root(&cache, &root, AGENT, &|_| ()).await.unwrap_err();
    assert!(matches!(&refused, ErofsError::Holes { limit_mib } if *limit_mib < 300), "{refused:?}");
}

#[tokio::test]
async fn a_build_that_nobody_waits_for_ends_and_leaves_nothing() {
    if !able() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = machine(dir.path(), ALL_KINDS);
    let cache = Cache::open(&dir.path().join("cache")).await.unwrap();
    let (told, begun) = oneshot::channel();
    let told = Mutex::new(Some(told));
    let report = |_| told.lock().unwrap().take().unwrap().send(()).unwrap();
    tokio::select! {
        biased;
        begun = begun => begun.unwrap(),
        made = container_root(&cache, &root, AGENT, &report) => panic!("{made:?}"),
    }
    // Whoever builds it next has waited for the end of what was given up.
    let made = container_root(&cache, &root, AGENT, &|_| ()).await.unwrap();
    assert!(made.path.is_file());
    let tmp = fs::read_dir(cache.dir().join("tmp")).unwrap().count();
    assert!(tmp == 0 && !mounts(dir.path()) && loops(dir.path()) == 0, "{tmp}");
}
