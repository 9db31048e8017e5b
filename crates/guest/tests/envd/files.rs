//! File contents through `/files`.

use std::io::{Read, Write};

use base64::Engine;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use sha2::{Digest, Sha256};

use crate::harness::{Answer, Envd};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn form(parts: &[(&str, &str)]) -> String {
    let parts = parts.iter().map(|(name, content)| {
        format!("--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n{content}\r\n")
    });
    parts.collect::<String>() + "--b--\r\n"
}

async fn post_form(envd: &Envd, query: &str, parts: &[(&str, &str)]) -> Answer {
    envd.send("POST", &format!("/files{query}"), &[("content-type", "multipart/form-data; boundary=b")], form(parts)).await
}

#[tokio::test]
async fn a_form_holds_several_files_and_parents_are_made() {
    let envd = Envd::start();
    let (one, two) = (envd.path("x/one.txt"), envd.path("x/y/zw\u{f6}i.txt"));
    let answer = post_form(&envd, "", &[(&one, "first"), (&two, "second")]).await;
    assert_eq!(answer.status, 200);
    let expected = serde_json::json!([
        {"path": one, "name": "one.txt", "type": "file"},
        {"path": two, "name": "zw\u{f6}i.txt", "type": "file"},
    ]);
    assert_eq!(answer.json(), expected);
    assert_eq!(fs_err::read_to_string(two).unwrap(), "second");

    let place = envd.path("named");
    assert_eq!(post_form(&envd, &format!("?path={place}"), &[("ignored", "here")]).await.status, 200);
    assert_eq!(fs_err::read_to_string(place).unwrap(), "here");

    let twice = post_form(&envd, "", &[(&one, "a"), (&one, "b")]).await;
    assert_eq!(twice.status, 400);
    assert!(twice.json()["message"].as_str().unwrap().contains("multiple files to the same path"));
    assert_eq!(post_form(&envd, "", &[(&envd.path("x"), "over a directory")]).await.status, 400);
}

#[tokio::test]
async fn file_names_of_a_form_may_hold_what_paths_may() {
    let envd = Envd::start();
    let (escaped, plain, odd) = (envd.path("a\\b"), envd.path("c\\d"), envd.path("e\u{7f}\u{1}f"));
    let answer = post_form(&envd, "", &[(&escaped.replace('\\', "\\\\"), "1"), (&plain, "2"), (&odd, "3")]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (path, content) in [(escaped, "1"), (plain, "2"), (odd, "3")] {
        assert_eq!(fs_err::read_to_string(path).unwrap(), content);
    }
}

#[tokio::test]
async fn a_signed_url_tells_a_head_without_the_body() {
    let envd = Envd::start_with(&["--token", "secret"]);
    let path = envd.path("f");
    fs_err::write(&path, "12345").unwrap();
    let digest = base64::engine::general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(format!("{path}:read::secret")));
    let signature: String = digest.replace('+', "%2B").replace('/', "%2F");
    let url = format!("/files?path={path}&signature=v1_{signature}");
    let head = envd.send("HEAD", &url, &[], "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], "5");
    assert_eq!(head.headers["content-disposition"], "inline; filename=f");
    assert_eq!(envd.send("HEAD", &format!("/files?path={path}"), &[], "").await.status, 401);
    assert_eq!(envd.send("HEAD", &url.replace("/f&", "/g&"), &[], "").await.status, 401);
}

#[tokio::test]
async fn special_files_give_codes_of_their_own() {
    let envd = Envd::start();
    let socket = std::os::unix::net::UnixListener::bind(envd.path("socket")).unwrap();
    nix::unistd::mkfifo(envd.path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs_err::os::unix::fs::symlink(envd.path("loop"), envd.path("loop")).unwrap();
    fs_err::create_dir(envd.path("dir")).unwrap();
    fs_err::write(envd.path("file"), "").unwrap();
    let long = format!("{}/{}", envd.path("dir"), "x".repeat(300));
    for (name, read, written) in [
        (envd.path("socket"), 400, 400),
        (envd.path("pipe"), 400, 400),
        (envd.path("loop"), 400, 400),
        (envd.path("loop/x"), 400, 400),
        (envd.path("dir"), 400, 400),
        (envd.path("file/x"), 404, 400),
        (long, 400, 400),
        ("/dev/full".to_owned(), 400, 400),
    ] {
        let answer = envd.get(&format!("/files?path={name}"), &[]).await;
        assert_eq!((answer.status.as_u16(), answer.json()["code"].as_u64()), (read, Some(u64::from(read))), "read {name}");
        let answer = envd.send("POST", &format!("/files?path={name}"), &[OCTETS], "x").await;
        assert_eq!(answer.status, written, "write {name}: {}", answer.text());
    }
    drop(socket);
}

#[tokio::test]
async fn raw_bodies_replace_and_may_be_compressed() {
    let envd = Envd::start();
    let path = envd.path("f");
    let url = format!("/files?path={path}");
    assert_eq!(envd.send("POST", &url, &[OCTETS], "a long first content").await.status, 200);
    let body = gzip(&vec![b'z'; 3 << 20]);
    assert_eq!(envd.send("POST", &url, &[OCTETS, ("content-encoding", "gzip")], body.clone()).await.status, 200);
    assert_eq!(fs_err::read(&path).unwrap(), vec![b'z'; 3 << 20]);

    let fresh = envd.path("fresh");
    let cut = body[..body.len() / 2].to_vec();
    let answer = envd.send("POST", &format!("/files?path={fresh}"), &[OCTETS, ("content-encoding", "gzip")], cut).await;
    assert_eq!(answer.status, 400);
    assert!(fs_err::metadata(&fresh).is_err(), "half an upload was left behind");

    assert_eq!(envd.send("POST", "/files", &[OCTETS], "").await.status, 400);
    assert_eq!(envd.send("POST", &url, &[OCTETS, ("content-encoding", "br")], "x").await.status, 400);
    assert_eq!(envd.send("POST", &url, &[("content-type", "text/plain")], "x").await.status, 400);
}

#[tokio::test]
async fn downloads_come_whole_in_part_or_compressed() {
    let envd = Envd::start();
    let path = envd.path("a b.txt");
    let content: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs_err::write(&path, &content).unwrap();
    let url = format!("/files?path={}", path.replace(' ', "%20"));
    let whole = envd.get(&url, &[("accept-encoding", "gzip, zstd, br")]).await;
    assert_eq!(whole.body, content);
    assert_eq!(whole.headers["content-length"], content.len().to_string());
    assert_eq!(whole.headers["content-disposition"], "inline; filename=\"a b.txt\"");
    assert!(!whole.headers.contains_key("content-encoding"));

    let part = envd.get(&url, &[("range", "bytes=10-19")]).await;
    assert_eq!((part.status.as_u16(), part.body.as_ref()), (206, &content[10..20]));
    assert_eq!(part.headers["content-range"], format!("bytes 10-19/{}", content.len()));
    assert_eq!(envd.get(&url, &[("range", "bytes=99999999-")]).await.status, 416);

    let packed = envd.get(&url, &[("accept-encoding", "gzip")]).await;
    assert_eq!(packed.headers["content-encoding"], "gzip");
    let mut unpacked = Vec::new();
    GzDecoder::new(packed.body.as_ref()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == content);

    let since = whole.headers["last-modified"].to_str().unwrap().to_owned();
    assert_eq!(envd.get(&url, &[("if-modified-since", &since)]).await.status, 304);
    assert_eq!(envd.get(&url, &[("accept-encoding", "identity;q=0")]).await.status, 406);
}

#[tokio::test]
async fn what_cannot_be_downloaded_says_why() {
    let envd = Envd::start();
    let missing = envd.get(&format!("/files?path={}", envd.path("none")), &[]).await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["message"], format!("path '{}' does not exist", envd.path("none")));
    assert_eq!(envd.get(&format!("/files?path={}", envd.path("")), &[]).await.status, 400);
    nix::unistd::mkfifo(envd.path("pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [envd.path("pipe"), "/dev/zero".to_owned()] {
        assert_eq!(envd.get(&format!("/files?path={path}"), &[]).await.status, 400, "{path}");
    }
}

#[tokio::test]
async fn files_without_a_size_have_their_content() {
    let envd = Envd::start();
    let boot_id = fs_err::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for headers in [&[][..], &[("accept-encoding", "gzip, br")]] {
        let answer = envd.get("/files?path=/proc/sys/kernel/random/boot_id", headers).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, boot_id.as_str()));
    }
}

#[tokio::test]
async fn metadata_is_kept_shown_and_replaced() {
    let envd = Envd::start();
    let url = format!("/files?path={}", envd.path("f"));
    let answer = envd.send("POST", &url, &[OCTETS, ("x-metadata-Author", "me")], "x").await;
    assert_eq!(answer.status, 200);
    if answer.json()[0].get("metadata").is_none() {
        // The file system of the temporary directory keeps no user attributes.
        return;
    }
    assert_eq!(answer.json()[0]["metadata"], serde_json::json!({"author": "me"}));
    let answer = envd.send("POST", &url, &[OCTETS], "y").await;
    assert!(answer.json()[0].get("metadata").is_none());
    let bad = envd.send("POST", &url, &[OCTETS, ("x-metadata-a", &"v".repeat(5000))], "y").await;
    assert_eq!(bad.status, 400);
}

#[tokio::test]
async fn composition_joins_and_removes_its_sources() {
    let envd = Envd::start();
    fs_err::write(envd.path("1"), "one ").unwrap();
    fs_err::write(envd.path("2"), "two").unwrap();
    let json = [("content-type", "application/json")];
    let wish = |sources: &[&str], destination: &str| {
        let sources: Vec<String> = sources.iter().map(|name| envd.path(name)).collect();
        serde_json::json!({"source_paths": sources, "destination": envd.path(destination)}).to_string()
    };
    assert_eq!(envd.send("POST", "/files/compose", &json, wish(&["1", "none"], "out")).await.status, 404);
    assert_eq!(envd.send("POST", "/files/compose", &json, wish(&["1"], "1")).await.status, 400);
    assert_eq!(envd.send("POST", "/files/compose", &json, wish(&[], "out")).await.status, 400);
    assert_eq!(envd.send("POST", "/files/compose", &json, "{").await.status, 400);
    let answer = envd.send("POST", "/files/compose", &json, wish(&["1", "2"], "deep/out")).await;
    assert_eq!(answer.json(), serde_json::json!({"path": envd.path("deep/out"), "name": "out", "type": "file"}));
    assert_eq!(fs_err::read_to_string(envd.path("deep/out")).unwrap(), "one two");
    assert!(fs_err::metadata(envd.path("1")).is_err());
}

#[tokio::test]
async fn a_signature_opens_one_file() {
    use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
    use sha2::{Digest, Sha256};
    let envd = Envd::start_with(&["--token", "secret"]);
    let path = envd.path("f");
    fs_err::write(&path, "signed").unwrap();
    let sign = |text: String| STANDARD_NO_PAD.encode(Sha256::digest(text)).replace('+', "%2B").replace('/', "%2F");
    let read = sign(format!("{path}:read::secret"));
    assert_eq!(envd.get(&format!("/files?path={path}&signature=v1_{read}"), &[]).await.text(), "signed");
    let wrong = envd.get(&format!("/files?path=/etc/hostname&signature=v1_{read}"), &[]).await;
    assert_eq!((wrong.status.as_u16(), wrong.json()["message"].as_str()), (401, Some("invalid signature")));
    let old = sign(format!("{path}:read::secret:1"));
    let expired = envd.get(&format!("/files?path={path}&signature=v1_{old}&signature_expiration=1"), &[]).await;
    assert_eq!(expired.json()["message"], "signature is already expired");
}
