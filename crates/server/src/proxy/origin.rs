//! Answers of guests under the control plane's own name.
//!
//! A signed URL may name no sandbox, and routing headers may come with any host: then a guest's bytes answer under the origin of
//! the control plane. A browser must not take them for the control plane's. What a link can open is confined: shown as of no
//! origin, never sniffed, saved and not run, and silent about the origin as a whole. What needs the headers cannot be opened by a
//! link, and must not be found by one either: a cache has to know that the headers were part of the question.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::target::{SANDBOX_ID, SANDBOX_PORT};

/// Headers by which an answer speaks for its whole origin.
const OF_THE_ORIGIN: [HeaderName; 8] = [
    header::SET_COOKIE,
    header::STRICT_TRANSPORT_SECURITY,
    header::ALT_SVC,
    HeaderName::from_static("clear-site-data"),
    HeaderName::from_static("service-worker-allowed"),
    HeaderName::from_static("report-to"),
    HeaderName::from_static("reporting-endpoints"),
    HeaderName::from_static("nel"),
];

/// For an answer that a link alone can lead to.
pub(crate) fn confine(headers: &mut HeaderMap) {
    for name in &OF_THE_ORIGIN {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    never_sniffed(headers);
    let saved = headers.get(header::CONTENT_DISPOSITION).map_or_else(|| HeaderValue::from_static("attachment"), attachment);
    headers.insert(header::CONTENT_DISPOSITION, saved);
}

/// For an answer to a request that was routed by its headers.
pub(crate) fn vary(headers: &mut HeaderMap) {
    for name in [&*SANDBOX_ID, &*SANDBOX_PORT] {
        headers.append(header::VARY, HeaderValue::from(name.clone()));
    }
}

/// For every answer of the control plane itself.
pub(crate) fn never_sniffed(headers: &mut HeaderMap) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The same file name, to be saved under.
fn attachment(disposition: &HeaderValue) -> HeaderValue {
    let bytes = disposition.as_bytes();
    let parameters = bytes.iter().position(|&byte| byte == b';').map_or(&[][..], |at| &bytes[at..]);
    HeaderValue::from_bytes(&[b"attachment", parameters].concat()).unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_link_opens_is_confined_whatever_the_guest_says() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/html"),
            ("content-security-policy", "default-src *"),
            ("x-content-type-options", "no"),
            ("content-disposition", "inline; filename=\"x.html\""),
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("clear-site-data", "\"*\""),
            ("service-worker-allowed", "/"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        confine(&mut headers);
        let mut shown: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        shown.sort_unstable();
        assert_eq!(
            shown,
            [
                ("content-disposition", "attachment; filename=\"x.html\""),
                ("content-security-policy", "sandbox"),
                ("content-type", "text/html"),
                ("x-content-type-options", "nosniff"),
            ]
        );
        for (given, saved) in [("inline", "attachment"), ("attachment; filename*=utf-8''%E2", "attachment; filename*=utf-8''%E2")]
        {
            assert_eq!(attachment(&HeaderValue::from_static(given)), saved);
        }
    }
}
