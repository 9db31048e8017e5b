//! Bodies of fuzz targets for `/files`: forms, and signatures.

use std::path::Path;

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use bytes::Bytes;
use nix::unistd::{Gid, Uid};

use super::{
    FilesQuery,
    signature::{self, Operation},
    upload::{self, Target},
};
use crate::envd::{fuzzing::runtime, state::Settings, users::User};

const TOKEN: &str = "ea_token";

/// A form of any content, in pieces of any length: it is answered, and nothing is written but the one file that the request
/// names. The first byte says how long the pieces are. The form's boundary is `b`.
pub fn form_upload(data: &[u8]) {
    let Some((&piece_bytes, body)) = data.split_first() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let place = dir.path().join("file");
    let pieces: Vec<std::io::Result<Bytes>> =
        body.chunks(usize::from(piece_bytes).max(1)).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let request = Request::post("/files").header(header::CONTENT_TYPE, "multipart/form-data; boundary=b");
    let request = request.body(Body::from_stream(futures::stream::iter(pieces))).expect("a request of constant parts is one");
    let target = Target { user: own(dir.path()), default_workdir: None, path: Some(place.to_string_lossy().into_owned()) };
    let answer = runtime().block_on(upload::receive(target, request));
    let found: Vec<_> = fs_err::read_dir(dir.path())
        .expect("a directory can be read")
        .map(|entry| entry.expect("a directory can be read").path())
        .collect();
    match answer {
        Ok(_) => assert!(found.is_empty() || found == [place], "{found:?}"),
        Err(error) => {
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{}", error.message);
            assert!(found.is_empty() || found == [place], "{found:?}");
        }
    }
}

fn own(home: &Path) -> User {
    let gid = Gid::current();
    let (name, shell) = ("own".to_owned(), "/bin/sh".to_owned());
    User { name, uid: Uid::current(), gid, groups: vec![gid], home: home.to_owned(), shell }
}

/// A query of any parameters: it is admitted with the signature of its own path, operation and user, and with no other.
pub fn url_signature(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(uri) = format!("/files?{}", text.replace(['#', ' '], "+")).parse() else { return };
    let Ok(axum::extract::Query(mut query)) = axum::extract::Query::<FilesQuery>::try_from_uri(&uri) else { return };
    let settings = Settings { access_token: Some(TOKEN.to_owned()), ..Settings::default() };
    let headers = HeaderMap::new();
    for operation in [Operation::Read, Operation::Write] {
        let own = signature::sign(&query, operation, TOKEN);
        let given = query.signature.replace(own.clone());
        let late = query.signature_expiration.is_some_and(|expiration| expiration < jiff::Timestamp::now().as_second());
        assert_eq!(signature::authorise(&headers, &query, operation, &settings).is_ok(), !late, "{query:?}");
        query.signature = given;
        if query.signature.as_deref() != Some(&own) {
            assert!(signature::authorise(&headers, &query, operation, &settings).is_err(), "{query:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const PARTS: [&str; 10] = [
        "--b",
        "--b--",
        "\r\n",
        "\n",
        "Content-Disposition: form-data; name=\"file\"; filename=\"/etc/x\"\r\n",
        "Content-Disposition: form-data; name=\"file\"\r\n",
        "Content-Disposition: form-data; name=\"other\"\r\n",
        "Content-Type: text/plain; charset=utf-16\r\n",
        "content",
        ": \"",
    ];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_form_writes_nothing_but_its_file(piece_bytes in any::<u8>(), parts in vec(0..PARTS.len(), 0..24)) {
            let mut data = vec![piece_bytes];
            data.extend(b"--b\r\n");
            data.extend(parts.into_iter().flat_map(|part| PARTS[part].bytes()));
            form_upload(&data);
        }

        #[test]
        fn no_signature_but_its_own_admits_a_query(
            path in "[a-z/%:.]{0,9}",
            user in "[a-z:]{0,4}",
            expires in "|-?[0-9]{1,19}",
            signature in "(v1_[A-Za-z0-9+/]{0,43})?",
        ) {
            url_signature(format!("path={path}&username={user}&signature_expiration={expires}&signature={signature}").as_bytes());
            url_signature(format!("path={path}&username={user}&signature={signature}").as_bytes());
        }
    }
}
