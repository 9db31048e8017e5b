//! Copies in a directory: what comes back is what went there, holes included, and what is not what it must be is nowhere.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Write as _,
    num::NonZeroU64,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use firkin_copies::{Access, Blob, Copies, CopyError, Damage, Destination, Digest, Limits, Name, Put, Record};
use fs_err as fs;

struct Place {
    dir: tempfile::TempDir,
    copies: Copies,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let destination = Destination::Directory(dir.path().join("there"));
        let copies = Copies::open(&destination, &Access::default(), &Limits::default()).unwrap();
        Self { dir, copies }
    }

    fn here(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn stored(&self, blob: &Blob) -> PathBuf {
        self.here("there/blobs").join(blob.blake3.to_string())
    }

    fn file(&self, name: &str, content: &[u8]) -> (PathBuf, Blob) {
        fs::write(self.here(name), content).unwrap();
        (self.here(name), Blob { blake3: Digest::of(content), bytes: content.len() as u64 })
    }

    /// Puts a blob there that says of itself what it is not.
    fn plant(&self, blob: &Blob, packed: &[u8]) {
        fs::write(self.stored(blob), packed).unwrap();
    }

    /// Everything that is in the store, by its path below it.
    fn objects(&self) -> Vec<String> {
        fn below(dir: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { below(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        below(&self.here("there"), &mut found);
        let top = self.here("there");
        let mut names: Vec<String> = found.iter().map(|path| path.strip_prefix(&top).unwrap().display().to_string()).collect();
        names.sort();
        names
    }
}

/// Bytes that cannot be packed, the same for the same seed.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    noise
}

fn packed(content: &[u8]) -> Vec<u8> {
    zstd::encode_all(content, 1).unwrap()
}

#[tokio::test]
async fn what_was_copied_comes_back_with_its_holes() {
    let place = Place::new();
    let path = place.here("memory");
    let file = fs::File::create(&path).unwrap();
    // Pages among holes, one of them cut by the end of what is read at once, and a last one that is no whole page.
    for (at, page) in [(4096, 1), (1 << 20, 2), ((3 << 20) - 2048, 3), (32 << 20, 4)] {
        file.file().write_all_at(&noise(page, 5000), at).unwrap();
    }
    file.set_len((40 << 20) + 100).unwrap();
    let content = fs::read(&path).unwrap();
    let blob = Blob { blake3: Digest::of(&content), bytes: content.len() as u64 };

    assert!(!place.copies.has(&blob.blake3).await.unwrap());
    let Put::Copied { stored } = place.copies.put(&blob, &path).await.unwrap() else { panic!("it was not there") };
    assert!((20_000..40_000).contains(&stored), "{stored}");
    assert!(place.copies.has(&blob.blake3).await.unwrap());
    assert_eq!(place.copies.put(&blob, &path).await.unwrap(), Put::Present);
    assert_eq!(place.objects(), [format!("blobs/{}", blob.blake3)]);
    for private in ["there/blobs", "there/artifacts", "there/catalogue"] {
        assert_eq!(fs::metadata(place.here(private)).unwrap().permissions().mode() & 0o777, 0o700);
    }

    let back = place.here("back");
    place.copies.get(&blob, &back).await.unwrap();
    assert_eq!(fs::read(&back).unwrap(), content);
    let metadata = fs::metadata(&back).unwrap();
    assert!(metadata.blocks() * 512 < 128 << 10, "{} blocks", metadata.blocks());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(!place.here("back.part").exists());
}

#[tokio::test]
async fn a_file_of_several_parts_and_an_empty_one_are_copied() {
    let place = Place::new();
    for (name, content) in [("large", noise(1, 20 << 20)), ("exact", noise(2, 8 << 20)), ("empty", Vec::new())] {
        let (path, blob) = place.file(name, &content);
        assert!(matches!(place.copies.put(&blob, &path).await.unwrap(), Put::Copied { stored } if stored > 0));
        place.copies.get(&blob, &place.here("back")).await.unwrap();
        assert_eq!(fs::read(place.here("back")).unwrap(), content, "{name}");
    }
}

#[tokio::test]
async fn a_file_that_is_not_what_it_is_said_to_be_is_not_copied() {
    let place = Place::new();
    // One that would be sent in parts, whose end only says that it is another.
    let (path, blob) = place.file("large", &noise(1, 20 << 20));
    let other = Blob { blake3: Digest::of(b"other"), ..blob };
    let longer = Blob { bytes: blob.bytes + 1, ..blob };
    let refused = place.copies.put(&other, &path).await;
    assert!(matches!(refused, Err(CopyError::Damaged { source: Damage::Digest { .. }, .. })), "{refused:?}");
    let refused = place.copies.put(&longer, &path).await;
    assert!(matches!(refused, Err(CopyError::Damaged { source: Damage::Size { .. }, .. })), "{refused:?}");
    let missing = place.copies.put(&blob, &place.here("missing")).await;
    assert!(matches!(missing, Err(CopyError::File { .. })), "{missing:?}");
    std::os::unix::fs::symlink(&path, place.here("link")).unwrap();
    let link = place.copies.put(&blob, &place.here("link")).await;
    assert!(matches!(link, Err(CopyError::File { .. } | CopyError::Damaged { .. })), "{link:?}");
    assert_eq!(place.objects(), Vec::<String>::new(), "nothing is visible, and nothing else is left");
}

#[tokio::test]
async fn a_damaged_copy_makes_no_file() {
    let place = Place::new();
    let content = noise(1, 3 << 20);
    let (path, blob) = place.file("file", &content);
    place.copies.put(&blob, &path).await.unwrap();
    let good = fs::read(place.stored(&blob)).unwrap();
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    let bomb = packed(&vec![0; 64 << 20]);
    let mut twice = good.clone();
    twice.extend(packed(b"more"));
    for (name, there) in [
        ("flipped", flipped),
        ("cut", good[..good.len() - 100].to_vec()),
        ("empty", Vec::new()),
        ("no archive", b"no archive".to_vec()),
        ("another", packed(&noise(2, 3 << 20))),
        ("shorter", packed(b"short")),
        ("a bomb", bomb),
        ("followed by more", twice),
        ("far too long", vec![0; 8 << 20]),
    ] {
        place.plant(&blob, &there);
        let got = place.copies.get(&blob, &place.here("back")).await;
        assert!(matches!(got, Err(CopyError::Damaged { .. })), "{name}: {got:?}");
        assert!(!place.here("back").exists() && !place.here("back.part").exists(), "{name}");
    }
    fs::remove_file(place.stored(&blob)).unwrap();
    assert!(matches!(place.copies.get(&blob, &place.here("back")).await, Err(CopyError::Absent { .. })));

    // What a crash left is written over.
    place.plant(&blob, &good);
    fs::write(place.here("back.part"), noise(3, 5 << 20)).unwrap();
    place.copies.get(&blob, &place.here("back")).await.unwrap();
    assert_eq!(fs::read(place.here("back")).unwrap(), content);
}

#[tokio::test]
async fn a_window_that_takes_all_memory_is_refused() {
    let place = Place::new();
    let content = noise(1, 1 << 20);
    let (_, blob) = place.file("file", &content);
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    packer.window_log(27).unwrap();
    packer.write_all(&content).unwrap();
    place.plant(&blob, &packer.finish().unwrap());
    let got = place.copies.get(&blob, &place.here("back")).await;
    assert!(matches!(got, Err(CopyError::Damaged { source: Damage::Packing(_), .. })), "{got:?}");
}

#[tokio::test]
async fn records_are_listed_by_names_that_are_ours_and_read_within_a_bound() {
    let place = Place::new();
    let name = |text: &str| text.parse::<Name>().unwrap();
    let copies = &place.copies;
    copies.put_record(&Record::Integrity(name("half")), b"{}".to_vec()).await.unwrap();
    for id in ["one", "two"] {
        copies.put_record(&Record::Manifest(name(id)), id.as_bytes().to_vec()).await.unwrap();
    }
    for time in ["20260102T000000000Z", "20260101T000000000Z"] {
        copies.put_record(&Record::Catalogue(name(time)), b"{}".to_vec()).await.unwrap();
    }
    let (path, blob) = place.file("file", b"content");
    copies.put(&blob, &path).await.unwrap();
    for stranger in ["artifacts/three/other/manifest.json", "artifacts/manifest.json", "catalogue/x y.json", "blobs/README"] {
        let path = place.here("there").join(stranger);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }
    let mut artifacts = copies.artifacts().await.unwrap();
    artifacts.sort();
    assert_eq!(artifacts, [name("one"), name("two")], "what has no manifest is not there whole");
    assert_eq!(copies.catalogues().await.unwrap(), [name("20260101T000000000Z"), name("20260102T000000000Z")]);
    let blobs = copies.blobs().await.unwrap();
    assert_eq!(blobs.iter().map(|(digest, _)| *digest).collect::<Vec<_>>(), [blob.blake3]);

    assert_eq!(copies.record(&Record::Manifest(name("two"))).await.unwrap(), b"two");
    copies.put_record(&Record::Manifest(name("two")), b"other".to_vec()).await.unwrap();
    assert_eq!(copies.record(&Record::Manifest(name("two"))).await.unwrap(), b"other");
    assert!(matches!(copies.record(&Record::Files(name("two"))).await, Err(CopyError::Absent { .. })));
    fs::write(place.here("there/artifacts/two/manifest.json"), vec![b' '; (4 << 20) + 1]).unwrap();
    let long = copies.record(&Record::Manifest(name("two"))).await;
    assert!(matches!(long, Err(CopyError::Damaged { source: Damage::Longer { .. }, .. })), "{long:?}");

    for _ in 0..2 {
        copies.remove_record(&Record::Manifest(name("two"))).await.unwrap();
        copies.remove_blob(&blob.blake3).await.unwrap();
    }
    assert!(!copies.has(&blob.blake3).await.unwrap());
}

/// A full disk of this thread alone: a small tmpfs in a mount namespace of its own.
#[tokio::test]
#[expect(clippy::print_stderr, reason = "a skip is printed")]
async fn a_full_store_is_told_from_one_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "full"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: a small file system needs root");
        return;
    }
    let copies = Copies::open(&Destination::Directory(dir.path().join("there")), &Access::default(), &Limits::default());
    let source = tempfile::tempdir().unwrap();
    let content = noise(1, 20 << 20);
    fs::write(source.path().join("file"), &content).unwrap();
    let blob = Blob { blake3: Digest::of(&content), bytes: content.len() as u64 };
    let put = match &copies {
        Ok(copies) => copies.put(&blob, &source.path().join("file")).await.map_err(|error| error.kind()),
        Err(_) => Err("not opened"),
    };
    let left = fs::read_dir(dir.path().join("there/blobs")).map(|entries| entries.count());
    drop(copies);
    let unmounted = std::process::Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(put, Err("full"));
    assert_eq!(left.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_copy_keeps_to_its_bandwidth() {
    let place = Place::new();
    let limits = Limits { bytes_per_second: NonZeroU64::new(1 << 20), ..Limits::default() };
    let destination = Destination::Directory(place.here("there"));
    let copies = Copies::open(&destination, &Access::default(), &limits).unwrap();
    let (path, blob) = place.file("large", &noise(1, 20 << 20));
    let begun = tokio::time::Instant::now();
    copies.put(&blob, &path).await.unwrap();
    let took = begun.elapsed().as_secs();
    assert!((15..=21).contains(&took), "20 MiB at one MiB a second: {took} s, of which the last part is owed to what follows");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_no_store() {
    let place = Place::new();
    fs::write(place.here("file"), "x").unwrap();
    let destination = Destination::Directory(place.here("file/there"));
    let opened = Copies::open(&destination, &Access::default(), &Limits::default());
    assert!(matches!(opened, Err(firkin_copies::OpenError::Directory { .. })), "{opened:?}");
}
