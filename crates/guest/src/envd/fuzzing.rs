//! Bodies of fuzz targets for envd's routes. Nothing that they send is carried out: no user of theirs exists.

use std::sync::OnceLock;

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode, header},
};
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

pub use super::files::fuzzing::{form_upload, url_signature};
use super::{
    routes,
    state::{EnvdState, Settings},
};
use crate::reaper::Reaper;

/// The most of an answer that is read: there is no output, so answers are errors.
const MAX_ANSWER_BYTES: usize = 1 << 20;
const METHODS: [&str; 15] = [
    "process.Process/List",
    "process.Process/Connect",
    "process.Process/Start",
    "process.Process/Update",
    "process.Process/StreamInput",
    "process.Process/SendInput",
    "process.Process/SendSignal",
    "process.Process/CloseStdin",
    "filesystem.Filesystem/Stat",
    "filesystem.Filesystem/Move",
    "filesystem.Filesystem/ListDir",
    "filesystem.Filesystem/WatchDir",
    "filesystem.Filesystem/CreateWatcher",
    "filesystem.Filesystem/GetWatcherEvents",
    "filesystem.Filesystem/RemoveWatcher",
];
const TYPES: [&str; 6] = [
    "application/connect+proto",
    "application/connect+json",
    "application/proto",
    "application/json",
    "application/grpc",
    "application/grpc-web+proto",
];

/// A Connect request of any body: it is answered, and nobody but an unknown user has asked. The first two bytes choose method,
/// encoding and compression.
pub fn connect_frames(data: &[u8]) {
    let [method, encoding, body @ ..] = data else { return };
    let mut request = Request::post(format!("/{}", METHODS[usize::from(*method) % METHODS.len()]));
    request = request.header(header::CONTENT_TYPE, TYPES[usize::from(*encoding) % TYPES.len()]);
    request = request.header("connect-protocol-version", "1");
    if *encoding >= 128 {
        request = request.header("connect-content-encoding", "gzip").header(header::CONTENT_ENCODING, "gzip");
    }
    let request = request.body(Body::from(body.to_vec())).expect("a request of constant parts is one");
    runtime().block_on(async {
        let answer = envd().clone().oneshot(request).await.unwrap_or_else(|never| match never {});
        let status = answer.status();
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "a request is not a fault of ours");
        let answer = axum::body::to_bytes(Body::new(answer.into_body()), MAX_ANSWER_BYTES).await;
        answer.expect("an answer has an end");
    });
}

pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().expect("a runtime can be had"))
}

fn envd() -> &'static Router {
    static ENVD: OnceLock<Router> = OnceLock::new();
    ENVD.get_or_init(|| {
        let state = EnvdState::default();
        state.set(Settings { default_user: Some("nobody of this name".to_owned()), ..Settings::default() });
        routes(&state, Reaper::of_process().expect("a thread can be had"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn any_frames_are_answered(
            method in any::<u8>(),
            encoding in any::<u8>(),
            frames in vec((0_u8..4, prop_oneof![Just(None), any::<u32>().prop_map(Some)], vec(any::<u8>(), 0..40)), 0..5),
        ) {
            let mut data = vec![method, encoding];
            for (flags, length, payload) in frames {
                data.push(flags);
                data.extend(length.unwrap_or(u32::try_from(payload.len()).unwrap()).to_be_bytes());
                data.extend(payload);
            }
            connect_frames(&data);
        }
    }
}
