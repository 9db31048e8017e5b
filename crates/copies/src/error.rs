//! What can go wrong with a store, by what is to be done about it: wait, ask the operator, believe nothing, make room.

use std::{error::Error, fmt, io, path::PathBuf};

use crate::name::{Digest, NameError};

/// Why something was not copied, or not fetched.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The store does not answer, or not as a store does. Later it may.
    #[error("the store is away, and cannot {doing}")]
    Away {
        /// What was tried.
        doing: String,
        /// Why.
        #[source]
        source: Reason,
    },
    /// The store does not want us: credentials, or its bucket or directory. Somebody has to change that.
    #[error("the store refuses to {doing}")]
    Refused {
        /// What was tried.
        doing: String,
        /// Why.
        #[source]
        source: Reason,
    },
    /// The store has no room.
    #[error("the store is full, and cannot {doing}")]
    Full {
        /// What was tried.
        doing: String,
        /// Why.
        #[source]
        source: Reason,
    },
    /// The store does not have it.
    #[error("the store does not have `{name}`")]
    Absent {
        /// What.
        name: String,
    },
    /// What was read is not what it must be. Nothing of it is kept.
    #[error("`{name}` is damaged")]
    Damaged {
        /// Which file or copy.
        name: String,
        /// How.
        #[source]
        source: Damage,
    },
    /// A file of this host cannot be used.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CopyError {
    /// Whether another attempt may do it without anybody changing anything.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// In metrics: `away`, `refused`, `full`, `absent`, `damaged` or `file`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Away { .. } => "away",
            Self::Refused { .. } => "refused",
            Self::Full { .. } => "full",
            Self::Absent { .. } => "absent",
            Self::Damaged { .. } => "damaged",
            Self::File { .. } => "file",
        }
    }
}

/// How something differs from what it must be.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// It has another length.
    #[error("{expected} bytes were recorded, it has {found}")]
    Size {
        /// Recorded.
        expected: u64,
        /// Found.
        found: u64,
    },
    /// It has more bytes than were recorded, and was not read further.
    #[error("{expected} bytes were recorded, it has more")]
    Longer {
        /// Recorded.
        expected: u64,
    },
    /// It has other content.
    #[error("its digest is `{found}`, `{expected}` was recorded")]
    Digest {
        /// Recorded.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// It cannot be unpacked.
    #[error("it cannot be unpacked")]
    Packing(#[source] io::Error),
    /// Its name is none that copies have.
    #[error("its name is none of a copy")]
    Name(#[from] NameError),
}

/// What a store said, without what of us it repeats: an answer that refuses a request may have the key's id and the signed text in it.
#[derive(Debug)]
pub struct Reason(String);

/// The longest reason: answers of strangers are not believed to be short.
const MAX_REASON_BYTES: usize = 500;

impl Reason {
    pub(crate) fn new(text: &str) -> Self {
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
        let code = code.filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        // What a server wrote begins with its markup.
        let mut said: String = text.split('<').next().unwrap_or_default().trim_end_matches([' ', ':', '-']).to_owned();
        if let Some(code) = code {
            said = format!("{said} ({code})");
        }
        let mut end = said.len().min(MAX_REASON_BYTES);
        while !said.is_char_boundary(end) {
            end -= 1;
        }
        said.truncate(end);
        Self(said.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Reason {}

/// Whether a missing thing is the thing that was asked for, or the bucket that it would go into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// For what should be there.
    Read,
    /// To keep something.
    Write,
}

/// Sorts an error of the client by what is to be done about it.
pub(crate) fn sorted(error: &object_store::Error, asked: Asked, doing: &str, name: &str) -> CopyError {
    let text = error.to_string();
    let (doing, source) = (doing.to_owned(), Reason::new(&text));
    let no_bucket = asked == Asked::Write || text.contains("NoSuchBucket");
    match error {
        object_store::Error::NotFound { .. } if !no_bucket => CopyError::Absent { name: name.to_owned() },
        object_store::Error::NotFound { .. }
        | object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. }
        | object_store::Error::UnknownConfigurationKey { .. }
        | object_store::Error::InvalidPath { .. }
        | object_store::Error::NotSupported { .. } => CopyError::Refused { doing, source },
        _ => match io_kind(error) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => CopyError::Full { doing, source },
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::NotADirectory) => {
                CopyError::Refused { doing, source }
            }
            _ if FULL.iter().any(|full| text.contains(full)) => CopyError::Full { doing, source },
            _ if REFUSED.iter().any(|refused| text.contains(refused)) => CopyError::Refused { doing, source },
            _ => CopyError::Away { doing, source },
        },
    }
}

/// How servers of S3 say that there is no room: by HTTP's status, as Ceph does, or by MinIO's word.
const FULL: [&str; 3] = ["507 Insufficient Storage", "<Code>QuotaExceeded</Code>", "<Code>XMinioStorageFull</Code>"];

/// What is answered with 400 and is about who asks all the same.
const REFUSED: [&str; 4] =
    ["<Code>ExpiredToken</Code>", "<Code>InvalidToken</Code>", "<Code>AuthorizationHeaderMalformed</Code>", "without LOCATION"];

fn io_kind(error: &(dyn Error + 'static)) -> Option<io::ErrorKind> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_repeats_nothing_of_us() {
        let answer = "Error performing PUT http://s3/b/x in 1ms - Server returned non-2xx status code: 403 Forbidden: \
                      <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>AKIASECRET</AWSAccessKeyId></Error>";
        let said = Reason::new(answer).to_string();
        assert_eq!(
            said,
            "Error performing PUT http://s3/b/x in 1ms - Server returned non-2xx status code: 403 Forbidden (SignatureDoesNotMatch)"
        );
        assert_eq!(Reason::new("a\nb\u{1b}[31m").to_string(), "a b [31m");
        assert_eq!(Reason::new(&"ä".repeat(400)).to_string().len(), 500);
        assert_eq!(Reason::new("x<Code>AKIA SECRET</Code>").to_string(), "x");
    }

    #[test]
    fn errors_are_sorted_by_what_helps() {
        let generic = |source: Box<dyn Error + Send + Sync>| object_store::Error::Generic { store: "S3", source };
        let kind = |error: &object_store::Error, asked| sorted(error, asked, "copy", "x").kind();
        let io = |kind: io::ErrorKind| generic(Box::new(io::Error::from(kind)));
        assert_eq!(kind(&io(io::ErrorKind::StorageFull), Asked::Write), "full");
        assert_eq!(kind(&io(io::ErrorKind::ReadOnlyFilesystem), Asked::Write), "refused");
        assert_eq!(kind(&io(io::ErrorKind::ConnectionReset), Asked::Write), "away");
        let text = |text: &'static str| generic(text.into());
        assert_eq!(kind(&text("status code: 503 Service Unavailable"), Asked::Read), "away");
        assert_eq!(kind(&text("status code: 507 Insufficient Storage"), Asked::Write), "full");
        assert_eq!(kind(&text("400 Bad Request: <Code>ExpiredToken</Code>"), Asked::Write), "refused");
        let missing = |text: &'static str| object_store::Error::NotFound { path: "x".into(), source: text.into() };
        assert_eq!(kind(&missing("<Code>NoSuchKey</Code>"), Asked::Read), "absent");
        assert_eq!(kind(&missing("<Code>NoSuchBucket</Code>"), Asked::Read), "refused");
        assert_eq!(kind(&missing("404"), Asked::Write), "refused");
    }
}
