//! Where copies go: `s3://bucket/prefix` or `file:///directory`.

use std::{fmt, path::PathBuf, str::FromStr};

use url::Url;

/// A place for copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A bucket of something that speaks S3.
    S3 {
        /// The bucket.
        bucket: String,
        /// What the names of all objects begin with; empty for none. No slash at either end.
        prefix: String,
    },
    /// A directory, as of a file system that another host exports.
    Directory(PathBuf),
}

/// Why a text names no place for copies.
#[derive(Debug, thiserror::Error)]
pub enum DestinationError {
    /// It is no URL.
    #[error("copies go to `s3://bucket/prefix` or `file:///directory`")]
    Url(#[source] url::ParseError),
    /// It is one of another kind.
    #[error("copies go to `s3://bucket/prefix` or `file:///directory`, not to `{0}:`")]
    Scheme(String),
    /// It has credentials in it, which would be in lists of processes and in logs.
    #[error("the URL must not have credentials in it: they come from the environment (`AWS_ACCESS_KEY_ID`) or a file")]
    Credentials,
    /// It has a query, a fragment or a port.
    #[error("the URL must have nothing but a bucket or directory, and a prefix")]
    Extra,
    /// There is no bucket in it.
    #[error("the URL names no bucket")]
    NoBucket,
    /// Its directory is not an absolute path of this host.
    #[error("the URL must be `file://` and an absolute path of this host")]
    Directory,
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let url = Url::parse(text).map_err(DestinationError::Url)?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(DestinationError::Credentials);
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return Err(DestinationError::Extra);
        }
        match url.scheme() {
            "s3" => {
                let bucket = url.host_str().filter(|host| !host.is_empty()).ok_or(DestinationError::NoBucket)?;
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: url.path().trim_matches('/').to_owned() })
            }
            "file" => {
                let path = url.to_file_path().map_err(|()| DestinationError::Directory)?;
                if path.parent().is_none() { Err(DestinationError::Directory) } else { Ok(Self::Directory(path)) }
            }
            other => Err(DestinationError::Scheme(other.to_owned())),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_a_bucket_or_a_directory() {
        for (text, shown) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            ("s3://bucket/hosts/one/", "s3://bucket/hosts/one"),
            ("file:///srv/copies", "file:///srv/copies"),
        ] {
            let destination: Destination = text.parse().unwrap();
            assert_eq!(destination.to_string(), shown);
            assert_eq!(shown.parse::<Destination>().unwrap(), destination);
        }
        for (text, begins) in [
            ("bucket/prefix", "copies go to"),
            ("https://bucket/prefix", "copies go to"),
            ("s3://key:secret@bucket/prefix", "the URL must not have credentials"),
            ("s3://key@bucket", "the URL must not have credentials"),
            ("s3://bucket/prefix?region=x", "the URL must have nothing"),
            ("s3://bucket:9000/x", "the URL must have nothing"),
            ("s3:///prefix", "the URL names no bucket"),
            ("file:///", "the URL must be `file://`"),
            ("file://other/srv", "the URL must be `file://`"),
        ] {
            let error = text.parse::<Destination>().unwrap_err().to_string();
            assert!(error.starts_with(begins) && !error.contains("secret"), "{text}: {error}");
        }
    }
}
