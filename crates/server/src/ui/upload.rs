//! Files of a form, stored in a sandbox as they come, whatever their size.
//!
//! A file goes through in pieces, so nothing bounds it but the sandbox's disk. What stands between files is bounded instead: the reader of
//! forms keeps all that it was sent until the head of the next part is whole, and its sender decides when that is.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request, State, multipart::Field},
    response::Response,
};
use futures::TryStreamExt as _;
use http_body::{Frame, SizeHint};
use tokio::time::timeout;

use super::{
    Visitor,
    envd::Envd,
    files::{back, envd, path, store},
    form,
};
use crate::{App, error::ApiError, extract::Sandbox};

/// Files of one upload.
const MAX_FILES: usize = 100;

/// Longest value of a field that is not a file.
const MAX_FIELD_BYTES: usize = 8 << 10;

/// Bytes that may come before the form's reader gives something out: more than one piece of a body has, and far more than a part's head.
const MAX_UNREAD_BYTES: usize = 1 << 20;

/// Pieces of an upload that wait for the sandbox.
const QUEUE: usize = 4;

/// `POST /ui/sandboxes/{id}/files/upload`: files of a form, each to its place as it comes. The token is the first field: before it nothing is
/// taken.
pub(super) async fn upload(
    State(app): State<Arc<App>>,
    visitor: Visitor,
    Sandbox(id): Sandbox,
    request: Request,
) -> Result<Response, ApiError> {
    let mut form = Form::of(request, app.config.upload_silence).await?;
    let token = form.field(form::TOKEN).await?;
    form::demand_token(&visitor, Some(&token))?;
    let (_, envd) = envd(&app, &visitor, &id)?;
    let directory = path(Some(&form.field("path").await?))?;
    let mut stored = Vec::new();
    match store_all(&mut form, &envd, &directory, &mut stored).await {
        Ok(()) => Ok(back(&app, &visitor, (&id, &directory), stored)),
        Err(error) => {
            // Those before it are there, which its page does not say and the next one does.
            app.sessions.tell(&visitor.ticket, stored);
            Err(error)
        }
    }
}

async fn store_all(form: &mut Form, envd: &Envd, directory: &str, stored: &mut Vec<String>) -> Result<(), ApiError> {
    loop {
        let (silence, unread) = (form.silence, Arc::clone(&form.unread));
        let Some(file) = form.next().await? else { return Ok(()) };
        let name = file.file_name().unwrap_or_default().rsplit(['/', '\\']).next().unwrap_or_default().to_owned();
        if name.is_empty() {
            continue;
        }
        if stored.len() >= MAX_FILES {
            return Err(ApiError::bad_request(format!("one upload has {MAX_FILES} files at most")));
        }
        let place = path(Some(&format!("{}/{name}", directory.trim_end_matches('/'))))?;
        store_field((envd, &place), file, silence, &unread).await?;
        stored.push(format!("{place} is stored."));
    }
}

/// A form of parts, read as it comes.
struct Form {
    parts: Multipart,
    /// How long nothing may come.
    silence: Duration,
    unread: Arc<AtomicUsize>,
}

impl Form {
    async fn of(request: Request, silence: Duration) -> Result<Self, ApiError> {
        let unread = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&unread);
        let mut request = request.map(|body| Body::new(Counted { body, unread: counted, is_due: true }));
        DefaultBodyLimit::disable().apply(&mut request);
        // Without a form there is no token either.
        let parts = Multipart::from_request(request, &()).await.map_err(|error| ApiError::forbidden(error.body_text()))?;
        Ok(Self { parts, silence, unread })
    }

    /// The next part, whose head has to come in time as a whole.
    async fn next(&mut self) -> Result<Option<Field<'_>>, ApiError> {
        let field = timeout(self.silence, self.parts.next_field()).await.map_err(|_| ApiError::request_timeout())?;
        self.unread.store(0, Ordering::Relaxed);
        field.map_err(|error| ApiError::bad_request(error.body_text()))
    }

    /// The next part, which has to be this field.
    async fn field(&mut self, name: &str) -> Result<String, ApiError> {
        let missing = || ApiError::forbidden(format!("the form does not have `{name}` where a form of ours has it"));
        let silence = self.silence;
        let mut field = self.next().await?.filter(|field| field.name() == Some(name)).ok_or_else(missing)?;
        let mut bytes = Vec::new();
        let read = async {
            while let Some(piece) = field.chunk().await.map_err(|error| ApiError::bad_request(error.body_text()))? {
                if bytes.len() + piece.len() > MAX_FIELD_BYTES {
                    return Err(ApiError::too_large(MAX_FIELD_BYTES));
                }
                bytes.extend_from_slice(&piece);
            }
            Ok(())
        };
        timeout(silence, read).await.map_err(|_| ApiError::request_timeout())??;
        String::from_utf8(bytes).map_err(|_| missing())
    }
}

/// A field borrows its form, and a request's body borrows nothing: a short queue stands between them.
async fn store_field(
    (envd, path): (&Envd, &str),
    field: Field<'_>,
    silence: Duration,
    unread: &AtomicUsize,
) -> Result<(), ApiError> {
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(QUEUE);
    let pieces = futures::stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|piece| (piece, receiver)));
    let feed = async move {
        let mut field = field.map_err(|error| error.body_text());
        loop {
            let piece = timeout(silence, field.try_next()).await;
            unread.store(0, Ordering::Relaxed);
            let failed = match piece {
                Ok(Ok(Some(piece))) => {
                    if sender.send(Ok(piece)).await.is_ok() {
                        continue;
                    }
                    // Whoever takes it has ended, and says why.
                    return Ok(());
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => ApiError::bad_request(format!("the upload did not arrive whole: {error}")),
                Err(_) => ApiError::request_timeout(),
            };
            // Half a file is none.
            drop(sender.send(Err(std::io::Error::other("the upload broke off"))).await);
            return Err(failed);
        }
    };
    let (fed, stored) = tokio::join!(feed, store(envd, path, Body::from_stream(pieces)));
    fed.and(stored)
}

/// A body that ends with an error once more of it was read than is looked at.
struct Counted {
    body: Body,
    unread: Arc<AtomicUsize>,
    /// The form's reader would take all that is there at once: it is given one piece, and has to ask again for the next.
    is_due: bool,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if !self.is_due {
            self.is_due = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        self.is_due = false;
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        if self.unread.fetch_add(bytes, Ordering::Relaxed) + bytes > MAX_UNREAD_BYTES {
            return Poll::Ready(Some(Err(axum::Error::new("a part of the form does not begin"))));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
