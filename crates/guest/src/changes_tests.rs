//! A tree stands for a sandbox's root. What is written of it is read as whoever makes the next image reads it.

use std::os::unix::fs::{PermissionsExt, symlink};

use rustix::fs::{XattrFlags, lsetxattr};

use super::*;

/// An image's root, with the list that it brings.
fn image(root: &Path) -> Vec<Listed> {
    for directory in ["etc/kept", "usr/lib/firkin", "var/old/deep", "opt/replaced/below", "tmp"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for file in
        ["etc/same", "etc/edited", "etc/mode", "etc/gone", "usr/lib/firkin/guest", "var/old/deep/file", "opt/replaced/below/file"]
    {
        fs::write(root.join(file), "as it was").unwrap();
    }
    symlink("same", root.join("etc/link")).unwrap();
    let mut listed = Vec::new();
    let mut each = |path, metadata: &Metadata| {
        listed.push(Listed::of(root, path, metadata)?);
        Ok(())
    };
    walk(root, &mut each).unwrap();
    listed
}

/// What an archive has, by paths: type, mode, content or target, extended attributes.
type Entries = Vec<(String, EntryType, u32, String, Vec<(String, String)>)>;

fn layer(root: &Path, before: Vec<Listed>) -> Entries {
    let mut bytes = Vec::new();
    write_layer(root, before, Times::Content, &mut bytes).unwrap();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let extended = entry.pax_extensions().unwrap().map_or_else(Vec::new, |extensions| {
            let pair =
                |extension: tar::PaxExtension<'_>| (extension.key().unwrap().to_owned(), extension.value().unwrap().to_owned());
            extensions.map(|extension| pair(extension.unwrap())).collect()
        });
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        let content = entry.link_name().unwrap().map_or(content, |target| target.to_str().unwrap().to_owned());
        found.push((path, entry.header().entry_type(), entry.header().mode().unwrap(), content, extended));
    }
    found
}

fn paths(entries: &Entries) -> Vec<&str> {
    entries.iter().map(|(path, ..)| path.trim_end_matches('/')).collect()
}

#[test]
fn what_is_as_it_was_is_not_in_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let before = image(dir.path());
    assert_eq!(paths(&layer(dir.path(), before)), ["."], "the root stands for itself");
}

#[test]
fn what_is_new_changed_or_gone_is_in_the_layer_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let before = image(root);
    fs::write(root.join("etc/edited"), "otherwise, and longer").unwrap();
    fs::set_permissions(root.join("etc/mode"), std::fs::Permissions::from_mode(0o4711)).unwrap();
    fs::remove_file(root.join("etc/gone")).unwrap();
    fs::remove_file(root.join("etc/link")).unwrap();
    symlink("/else/where", root.join("etc/link")).unwrap();
    fs::remove_dir_all(root.join("var/old")).unwrap();
    fs::remove_dir_all(root.join("opt/replaced")).unwrap();
    fs::write(root.join("opt/replaced"), "a file").unwrap();
    fs::create_dir_all(root.join("new/below")).unwrap();
    fs::write(root.join("new/below/one"), "twice").unwrap();
    fs::hard_link(root.join("new/below/one"), root.join("new/two")).unwrap();
    fs::write(root.join("usr/lib/firkin/guest"), "another agent").unwrap();
    fs::write(root.join("etc/.wh.odd"), "cannot be said").unwrap();
    nix::unistd::mkfifo(&root.join("etc/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let long = format!("new/{}/{}", "a".repeat(200), "b".repeat(200));
    fs::create_dir_all(root.join(&long)).unwrap();
    let marked = lsetxattr(root.join("new/below/one"), "user.mark", b"kept", XattrFlags::empty()).is_ok();

    let entries = layer(root, before);
    let above = format!("new/{}", "a".repeat(200));
    let wanted = [
        ".",
        "etc",
        "etc/edited",
        "etc/link",
        "etc/mode",
        "new",
        above.as_str(),
        long.as_str(),
        "new/below",
        "new/below/one",
        "new/two",
        "opt",
        "opt/replaced",
        "etc/.wh.gone",
        "var",
        "var/.wh.old",
    ];
    assert_eq!(paths(&entries), wanted);
    let of = |path: &str| entries.iter().find(|(found, ..)| found.trim_end_matches('/') == path).unwrap();
    let (_, kind, mode, content, _) = of("etc/edited");
    assert_eq!((*kind, *mode, content.as_str()), (EntryType::Regular, 0o644, "otherwise, and longer"));
    assert_eq!(of("etc/mode").2, 0o4711);
    assert_eq!((of("etc/link").1, of("etc/link").3.as_str()), (EntryType::Symlink, "/else/where"));
    assert_eq!((of("new/two").1, of("new/two").3.as_str()), (EntryType::Link, "new/below/one"));
    assert_eq!(of("etc/.wh.gone").3, "");
    if marked {
        assert_eq!(of("new/below/one").4, [("SCHILY.xattr.user.mark".to_owned(), "kept".to_owned())]);
    }
}

#[test]
fn a_change_that_hides_is_seen_where_files_have_one_time() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "one").unwrap();
    let time = fs::metadata(&file).unwrap().modified().unwrap();
    let listed = |path: &Path| Listed::of(dir.path(), "file".into(), &fs::symlink_metadata(path).unwrap()).unwrap();
    let before = listed(&file);
    let written = |times| {
        let mut bytes = Vec::new();
        write_layer(dir.path(), vec![before.clone()], times, &mut bytes).unwrap();
        tar::Archive::new(&bytes[..]).entries().unwrap().count()
    };
    assert_eq!(written(Times::One), 1, "it has one time, and so is as it was: only the root is told");
    fs::write(&file, "two").unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().into_parts().0.set_modified(time).unwrap();
    assert!(!before.differs(&listed(&file)), "size and time are as they were");
    assert_eq!((written(Times::Content), written(Times::One)), (1, 2));
}
