//! Request bodies that nobody reads to their end, because the answer was clear before.
//!
//! HTTP/1.1 can go on with a connection only behind the end of a body; hyper closes the connection otherwise, without having
//! said so, and a client that took it for reusable loses its next request. So a little is read and thrown away, and where that
//! does not reach the end, the answer announces that the connection closes. Server and guest both do so: `axum::middleware::from_fn(settle)`.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http::{HeaderValue, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

/// Read and thrown away at most: an SDK's message fits, an upload does not.
const MAX_DRAIN_BYTES: usize = 256 << 10;

/// How long an answer may wait for that.
const DRAIN_DEADLINE: Duration = Duration::from_millis(250);

/// Deals with what is left of a request's body when its answer is there.
pub async fn settle(request: Request, next: Next) -> Response {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let left = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&left);
    let mut response = next.run(request.map(|body| Body::new(Tracked { body: Some(body), slot }))).await;
    let rest = left.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(rest) = rest
        && !drain(rest).await
    {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether the end was reached.
async fn drain(mut body: Body) -> bool {
    let to_the_end = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, Bytes::len);
            if read > MAX_DRAIN_BYTES {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_DEADLINE, to_the_end).await.unwrap_or(false)
}

/// A body that leaves itself behind when it is dropped before its end.
struct Tracked {
    body: Option<Body>,
    slot: Arc<Mutex<Option<Body>>>,
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
