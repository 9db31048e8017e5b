//! Hears a peer out whose request is refused before all of it has come: who is hung up on while it sends finds a broken connection, and not the
//! answer that its client waits for.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

/// How long at most. A peer that sends for longer is hung up on.
const HEAR_OUT: Duration = Duration::from_secs(60);

/// A body that two may read: who answers, and after that who hears the rest.
struct Heard(Arc<Mutex<Body>>);

/// The rest of a request, for after it was answered.
pub(crate) struct Rest(Option<Arc<Mutex<Body>>>);

/// Takes part in what comes of a request.
pub(crate) fn listen(request: &mut Request) -> Rest {
    if request.body().is_end_stream() {
        return Rest(None);
    }
    let body = Arc::new(Mutex::new(std::mem::take(request.body_mut())));
    *request.body_mut() = Body::new(Heard(Arc::clone(&body)));
    Rest(Some(body))
}

impl Rest {
    /// Hears the rest if the answer is a refusal, and throws it away.
    pub(crate) fn hear(self, response: &Response) {
        let Some(body) = self.0.filter(|_| response.status().is_client_error() || response.status().is_server_error()) else {
            return;
        };
        tokio::spawn(timeout(HEAR_OUT, async move {
            let mut rest = Heard(body);
            while let Some(Ok(_)) = rest.frame().await {}
        }));
    }
}

impl http_body::Body for Heard {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Held for one poll, by one of them at a time.
        Pin::new(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
