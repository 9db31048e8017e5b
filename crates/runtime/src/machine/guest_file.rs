//! Files that a template build puts into its machine, through envd like any upload.

use std::{io, time::Duration};

use bytes::Bytes;
use firkin_wire::ENVD_PORT;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper_util::rt::TokioIo;
use serde::{Serialize, Serializer};

use crate::machine::network::Connector;

/// A program of some megabytes into an emulated guest.
const PUT_DEADLINE: Duration = Duration::from_secs(120);

/// The most of an answer that is read. It is a line.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// A file for a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestFile {
    /// Where, from the root.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Its content. A recipe names it by its digest.
    #[serde(serialize_with = "digest")]
    pub content: &'static [u8],
}

impl GuestFile {
    /// The command that gives it its permissions.
    pub(crate) fn permit(&self) -> String {
        format!("chmod {:o} '{}'", self.mode, self.path.replace('\'', r"'\''"))
    }
}

fn digest<S: Serializer>(content: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&blake3::hash(content).to_hex())
}

/// Why a file is not in the guest.
#[derive(Debug, thiserror::Error)]
#[error("cannot write `{path}` in the guest")]
pub struct PutError {
    /// The file.
    pub path: String,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Writes a file of a template as root, over what is there.
pub(crate) async fn put(connector: &Connector, file: &GuestFile) -> Result<(), PutError> {
    let upload = GuestUpload { path: &file.path, length: file.content.len() as u64, deadline: PUT_DEADLINE };
    let sent = upload.send(connector, Full::new(Bytes::from_static(file.content))).await;
    sent.map_err(|source| PutError { path: file.path.clone(), source })
}

/// A file on its way into the guest, where it will be root's.
#[derive(Debug)]
pub(crate) struct GuestUpload<'a> {
    /// Where it goes.
    pub(crate) path: &'a str,
    /// How long it is.
    pub(crate) length: u64,
    /// How long that may take.
    pub(crate) deadline: Duration,
}

impl GuestUpload<'_> {
    /// Sends the content to envd.
    pub(crate) async fn send<B>(&self, connector: &Connector, content: B) -> io::Result<()>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let stream = connector.connect(ENVD_PORT).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let path: String = form_urlencoded::byte_serialize(self.path.as_bytes()).collect();
        let request = Request::post(format!("/files?path={path}&username=root"))
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, self.length)
            .body(content)
            .map_err(io::Error::other)?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(io::Error::other)?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(io::Error::other)?.to_bytes();
            if status.is_success() {
                return Ok(());
            }
            Err(io::Error::other(format!("envd answered {status}: {}", String::from_utf8_lossy(&body).trim())))
        };
        tokio::select! {
            result = tokio::time::timeout(self.deadline, exchange) => result.map_err(io::Error::other)?,
            // It ends first only when it breaks: the sender is still held.
            result = connection => match result {
                Ok(()) => Err(io::Error::other("envd closed the connection")),
                Err(error) => Err(io::Error::other(error)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_follows_the_content_and_not_its_size() {
        let json = |content| serde_json::to_string(&GuestFile { path: "/x".to_owned(), mode: 0o755, content }).unwrap();
        assert_ne!(json(b"a"), json(b"b"));
        assert_eq!(json(&[0; 4096]).len(), json(b"a").len());
    }

    #[test]
    fn a_path_is_one_word_of_its_command() {
        let file = GuestFile { path: "/a b'c".to_owned(), mode: 0o644, content: b"" };
        assert_eq!(file.permit(), r"chmod 644 '/a b'\''c'");
    }
}
