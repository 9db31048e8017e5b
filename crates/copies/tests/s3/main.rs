//! Copies in S3, as `moto` of PyPI speaks it on loopback, and what becomes of them when it breaks off, refuses or is away.
//!
//! `MOTO_SERVER` names the program; `cargo xtask test` makes it. Without it these tests are a printed skip.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, time::Duration};

use firkin_copies::{Access, Blob, Copies, CopyError, Destination, Digest, Limits, Name, OpenError, Put, Record};
use fs_err as fs;
use futures::TryStreamExt as _;

mod breaking;
mod moto;

use breaking::{Breaking, Fault};
use moto::Moto;

/// A key's id, which no error repeats.
const KEY: &str = "AKIAOFATEST";

fn access(endpoint: &str) -> Access {
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", "secret-of-a-test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint),
    ];
    Access::of(variables.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

fn open(endpoint: &str, url: &str) -> Copies {
    let limits = Limits { repeats: 3, longest_wait: Duration::from_millis(300), ..Limits::default() };
    Copies::open(&url.parse::<Destination>().unwrap(), &access(endpoint), &limits).unwrap()
}

/// Bytes that cannot be packed.
fn noise(seed: u8, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut noise);
    noise
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> (PathBuf, Blob) {
        fs::write(self.path(name), content).unwrap();
        (self.path(name), Blob { blake3: Digest::of(content), bytes: content.len() as u64 })
    }
}

/// One test, one server: it takes a second to come up.
#[tokio::test(flavor = "multi_thread")]
async fn copies_in_s3() {
    let Some(moto) = Moto::start() else { return };
    moto.make_bucket("bucket");
    let between = Breaking::before(moto.port()).await;
    let endpoint = format!("http://127.0.0.1:{}", between.port());
    let copies = open(&endpoint, "s3://bucket/hosts/one");
    round_trips(&copies).await;
    between_prefixes(&endpoint).await;
    broken_off(&copies, &between).await;
    away_and_back(&copies, &between).await;
    refused(&copies, &between, &endpoint).await;
}

async fn round_trips(copies: &Copies) {
    let files = Files::new();
    for (name, content) in [("parts", noise(1, 20 << 20)), ("small", b"small".to_vec()), ("empty", Vec::new())] {
        let (path, blob) = files.file(name, &content);
        assert!(matches!(copies.put(&blob, &path).await.unwrap(), Put::Copied { .. }), "{name}");
        assert_eq!(copies.put(&blob, &path).await.unwrap(), Put::Present, "{name}");
        copies.get(&blob, &files.path("back")).await.unwrap();
        assert_eq!(fs::read(files.path("back")).unwrap(), content, "{name}");
    }
    // What is there and damaged is replaced, and comes packed as it is.
    let (path, blob) = files.file("anew", &noise(2, 12 << 20));
    for _ in 0..2 {
        let content = path.clone();
        let open = Box::new(move || Ok(Box::new(std::fs::File::open(content).unwrap()) as Box<dyn std::io::Read>));
        assert!(matches!(copies.put_read(&blob, &path, open).await.unwrap(), Put::Copied { .. }));
    }
    let packed = copies.packed(&blob).await.unwrap().try_collect::<Vec<_>>().await.unwrap().concat();
    assert_eq!(zstd::decode_all(&packed[..]).unwrap(), fs::read(&path).unwrap());
    copies.remove_blob(&blob.blake3).await.unwrap();
    // What is not right to its end is not visible, in parts or in one.
    for bytes in [20 << 20, 5] {
        let (path, blob) = files.file("wrong", &noise(9, bytes));
        let other = Blob { blake3: Digest::of(b"other"), ..blob };
        assert!(matches!(copies.put(&other, &path).await, Err(CopyError::Damaged { .. })));
        assert!(!copies.has(&other.blake3).await.unwrap());
    }
    let missing = Blob { blake3: Digest::of(b"missing"), bytes: 7 };
    assert!(matches!(copies.get(&missing, &files.path("missing")).await, Err(CopyError::Absent { .. })));
}

async fn between_prefixes(endpoint: &str) {
    let name: Name = "one".parse().unwrap();
    let (one, other) = (open(endpoint, "s3://bucket/hosts/one"), open(endpoint, "s3://bucket/hosts/other"));
    one.put_record(&Record::Manifest(name.clone()), b"{}".to_vec()).await.unwrap();
    one.put_record(&Record::Catalogue("20260101T000000000Z".parse().unwrap()), b"{}".to_vec()).await.unwrap();
    assert_eq!(one.artifacts().await.unwrap(), std::slice::from_ref(&name));
    one.put_record(&Record::Archive(name.clone()), b"{}".to_vec()).await.unwrap();
    let archives: Vec<Name> = one.archives().await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(archives, std::slice::from_ref(&name));
    assert_eq!((one.catalogues().await.unwrap().len(), one.blobs().await.unwrap().len()), (1, 3));
    assert_eq!((other.artifacts().await.unwrap().len(), other.blobs().await.unwrap().len()), (0, 0));
    assert!(matches!(other.record(&Record::Manifest(name.clone())).await, Err(CopyError::Absent { .. })));
    for _ in 0..2 {
        one.remove_record(&Record::Manifest(name.clone())).await.unwrap();
    }
    assert_eq!((one.artifacts().await.unwrap().len(), one.archives().await.unwrap().len()), (0, 1));
    one.remove_record(&Record::Archive(name)).await.unwrap();
    assert_eq!(one.artifacts().await.unwrap(), []);
}

/// A connection that breaks in the middle of a part costs that part, not the file.
async fn broken_off(copies: &Copies, between: &Breaking) {
    let files = Files::new();
    let content = noise(3, 20 << 20);
    let (path, blob) = files.file("file", &content);
    between.fault(Fault::CutAfter { sent: 3 << 20, times: 2 });
    let put = copies.put(&blob, &path).await;
    assert!(matches!(put, Ok(Put::Copied { .. })), "{put:?}");
    assert_eq!(between.cuts(), 2);
    let sent = between.sent();
    assert!(sent < 38 << 20, "{sent} bytes were sent, so not everything was sent again");
    copies.get(&blob, &files.path("back")).await.unwrap();
    assert_eq!(fs::read(files.path("back")).unwrap(), content);

    // More breaks than there are repeats end it, with nothing visible, until the next attempt.
    let (path, blob) = files.file("file", &noise(4, 20 << 20));
    between.fault(Fault::CutAfter { sent: 1 << 20, times: 100 });
    let put = copies.put(&blob, &path).await;
    assert!(put.as_ref().is_err_and(CopyError::is_away), "{put:?}");
    between.fault(Fault::None);
    assert!(!copies.has(&blob.blake3).await.unwrap());
    assert!(matches!(copies.put(&blob, &path).await.unwrap(), Put::Copied { .. }));

    // The same on the way back: nothing that was not right gets a name.
    between.fault(Fault::CutReceived { received: 1 << 20 });
    let got = copies.get(&blob, &files.path("half")).await;
    assert!(got.as_ref().is_err_and(CopyError::is_away), "{got:?}");
    assert!(!files.path("half").exists() && !files.path("half.part").exists());
    between.fault(Fault::None);
    copies.get(&blob, &files.path("half")).await.unwrap();
}

async fn away_and_back(copies: &Copies, between: &Breaking) {
    let files = Files::new();
    let (path, blob) = files.file("file", b"while it was away");
    for fault in [Fault::Refuse, Fault::Answer("503 Slow Down", "<Error><Code>SlowDown</Code></Error>")] {
        between.fault(fault);
        let put = copies.put(&blob, &path).await;
        assert!(put.as_ref().is_err_and(CopyError::is_away), "{put:?}");
        assert!(copies.artifacts().await.is_err_and(|error| error.is_away()));
    }
    between.fault(Fault::None);
    assert!(matches!(copies.put(&blob, &path).await.unwrap(), Put::Copied { .. }));
}

async fn refused(copies: &Copies, between: &Breaking, endpoint: &str) {
    let files = Files::new();
    let (path, blob) = files.file("file", b"that nobody wants");
    let no_bucket = open(endpoint, "s3://no-such-bucket").put(&blob, &path).await.unwrap_err();
    assert_eq!(no_bucket.kind(), "refused", "{no_bucket:?}");

    between.fault(Fault::Answer(
        "403 Forbidden",
        "<Error><Code>InvalidAccessKeyId</Code><AWSAccessKeyId>AKIAOFATEST</AWSAccessKeyId></Error>",
    ));
    let record = copies.put_record(&Record::Installation, b"{}".to_vec()).await;
    for refused in [copies.put(&blob, &path).await.unwrap_err(), record.unwrap_err()] {
        assert_eq!(refused.kind(), "refused", "{refused:?}");
        let told = format!("{refused:?} {refused} {}", std::error::Error::source(&refused).unwrap());
        assert!(!told.contains(KEY) && !told.contains("secret-of-a-test"), "{told}");
    }
    between.fault(Fault::Answer("507 Insufficient Storage", "<Error><Code>XMinioStorageFull</Code></Error>"));
    let full = copies.put_record(&Record::Installation, b"{}".to_vec()).await.unwrap_err();
    assert_eq!(full.kind(), "full", "{full:?}");
    between.fault(Fault::None);
}

#[test]
fn a_store_does_not_show_who_may_reach_it() {
    let limits = Limits::default();
    let copies = Copies::open(&"s3://bucket".parse().unwrap(), &access("http://127.0.0.1:1"), &limits).unwrap();
    let shown = format!("{copies:?} {:?}", access("http://127.0.0.1:1"));
    assert!(shown.contains("Copies") && !shown.contains(KEY) && !shown.contains("secret-of-a-test"), "{shown}");
}

#[test]
fn an_address_with_credentials_is_refused() {
    let destination: Destination = "s3://bucket".parse().unwrap();
    let opened = Copies::open(&destination, &access("http://key:secret@127.0.0.1:1"), &Limits::default());
    assert!(matches!(opened, Err(OpenError::Credentials)), "{opened:?}");
}
