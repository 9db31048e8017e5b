//! Where spans are sent: the URL of a collector, as others take it too (`OTEL_EXPORTER_OTLP_ENDPOINT`), to which the path of traces is added.

use std::{fmt, str::FromStr};

use http::Uri;

/// The path of traces below what is given.
const PATH: &str = "/v1/traces";

/// A collector's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector(String);

/// It is no URL of a collector.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCollector {
    /// It is no URL.
    #[error("it is not a URL")]
    Url(#[from] http::uri::InvalidUri),
    /// It is of another kind.
    #[error("it is not `http://HOST[:PORT]` or `https://HOST[:PORT]`, with or without a path")]
    Form,
    /// What is secret would be shown with the settings.
    #[error("it has a name and password in it; put them into a header, with `OTEL_EXPORTER_OTLP_HEADERS`")]
    Credentials,
}

impl FromStr for Collector {
    type Err = InvalidCollector;

    fn from_str(text: &str) -> Result<Self, InvalidCollector> {
        let url: Uri = text.parse()?;
        let authority = url.authority().ok_or(InvalidCollector::Form)?;
        if authority.as_str().contains('@') {
            return Err(InvalidCollector::Credentials);
        }
        if !matches!(url.scheme_str(), Some("http" | "https")) || url.query().is_some() || text.contains('#') {
            return Err(InvalidCollector::Form);
        }
        let base = text.trim_end_matches('/');
        Ok(Self(if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") }))
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_where_it_is() {
        for (given, url) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("https://collector.example/", "https://collector.example/v1/traces"),
            ("http://collector:4318/otlp/", "http://collector:4318/otlp/v1/traces"),
            ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ] {
            assert_eq!(given.parse::<Collector>().unwrap().to_string(), url);
        }
        for bad in ["", "collector:4318", "/v1/traces", "grpc://collector:4317", "http://c/?key=x", "http://c/#x"] {
            assert!(bad.parse::<Collector>().is_err(), "{bad}");
        }
        let error = "http://me:secret@collector:4318".parse::<Collector>().unwrap_err();
        assert!(matches!(error, InvalidCollector::Credentials) && !error.to_string().contains("secret"));
    }
}
