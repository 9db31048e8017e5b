//! Which headers are put into requests to which hosts.
//!
//! A value goes to the hosts that are named for it and to no other. A client that sends a placeholder itself, since a program wants a
//! value in a variable of its environment, gets it replaced where the rule of the host says so; to any other host it sends the
//! placeholder, which is worth nothing.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use zeroize::Zeroizing;

use super::template::{Reference, Template, TemplateError};
use crate::{
    name::HostName,
    rule::{Names, Rule, RuleError},
};

/// Hosts, by E2B's contract.
pub const MAX_HOSTS: usize = 10;
/// Headers of one host, likewise.
pub const MAX_HEADERS: usize = 20;
/// What says where a request ends and where it goes: with one of these put in, what we read and what a server reads would differ.
const FRAMING: [HeaderName; 9] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];

/// Bytes that all headers of a request may have with what is put into them: more than servers take, and no more than was read.
pub(crate) const MAX_FILLED_BYTES: usize = 64 << 10;

/// Values by what they are called.
pub(crate) type Filled = BTreeMap<Reference, Zeroizing<String>>;

/// What is put into requests to one set of hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transform {
    headers: Vec<(HeaderName, Template)>,
    replaced: Vec<Reference>,
}

/// What is put into requests, by host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transforms(Vec<(Names, Transform)>);

/// Why something describes no transform. Texts of headers are not repeated: people write values into them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformError {
    /// More than [`MAX_HOSTS`].
    #[error("headers are put in for at most {MAX_HOSTS} hosts, not {0}")]
    Hosts(usize),
    /// More than [`MAX_HEADERS`].
    #[error("at most {MAX_HEADERS} headers are put in for one host, not {0}")]
    Headers(usize),
    /// Neither a name nor all names below one.
    #[error("headers are put in for a name of hosts, with or without `*.` before it")]
    Host(#[source] Option<RuleError>),
    /// The same set of hosts again.
    #[error("`{0}` is there twice")]
    Twice(Names),
    /// No header has this name, or none that may be put in.
    #[error("`{0}` is not a header that can be put in")]
    Header(String),
    /// The text of a header.
    #[error("cannot put `{0}` in")]
    Template(HeaderName, #[source] TemplateError),
}

impl Transform {
    /// These headers in the place of the client's, and these placeholders replaced wherever a client sends them in a header.
    pub fn new<'a>(
        headers: impl ExactSizeIterator<Item = (&'a str, &'a str)>,
        replaced: Vec<Reference>,
    ) -> Result<Self, TransformError> {
        if headers.len() > MAX_HEADERS {
            return Err(TransformError::Headers(headers.len()));
        }
        let parse = |(name, text): (&str, &str)| {
            let unfit = || TransformError::Header(name.chars().take(100).collect());
            let name: HeaderName = name.parse().map_err(|_| unfit())?;
            if FRAMING.contains(&name) {
                return Err(unfit());
            }
            let template = text.parse().map_err(|source| TransformError::Template(name.clone(), source))?;
            Ok((name, template))
        };
        Ok(Self { headers: headers.map(parse).collect::<Result<_, _>>()?, replaced })
    }

    /// All that has to be known to do so.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.headers.iter().flat_map(|(_, template)| template.references()).chain(&self.replaced)
    }

    /// What has to be known for a request with these headers.
    pub(crate) fn wanted<'a>(&'a self, headers: &HeaderMap) -> Vec<&'a Reference> {
        let put = self.headers.iter().flat_map(|(_, template)| template.references());
        let sent = self.replaced.iter().filter(|reference| {
            let placeholder = reference.placeholder();
            headers.values().any(|value| spelled(value).is_some_and(|text| text.contains(&placeholder)))
        });
        put.chain(sent).collect()
    }

    /// Puts everything in. What a value makes of a header that no header can be is told.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, values: &Filled) -> Result<(), Reference> {
        for reference in &self.replaced {
            if let Some(value) = values.get(reference) {
                // A client may send a placeholder thousands of times.
                let placeholder = reference.placeholder();
                if filled_bytes(headers, &placeholder, value) > MAX_FILLED_BYTES {
                    return Err(reference.clone());
                }
                replace(headers, &placeholder, value).ok_or_else(|| reference.clone())?;
            }
        }
        // The client's own go first: two headers of one name may both be there.
        for (name, _) in &self.headers {
            headers.remove(name);
        }
        for (name, template) in &self.headers {
            let text = template.filled(|reference| values.get(reference).map(|value| value.as_str()))?;
            let value = secret(&text)
                .ok_or_else(|| template.references().next().cloned())
                .map_err(|reference| reference.expect("a template without places was looked at when it was made"))?;
            headers.append(name, value);
        }
        Ok(())
    }
}

/// A header that is printed nowhere.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The beginning of a header whose rest is in Base64.
const BASIC: &str = "Basic ";

/// A header as its client meant it.
fn spelled(value: &HeaderValue) -> Option<Zeroizing<String>> {
    let text = value.to_str().ok()?;
    match text.strip_prefix(BASIC).map(|rest| BASE64_STANDARD.decode(rest.trim())) {
        Some(Ok(bytes)) => String::from_utf8(bytes).ok().map(Zeroizing::new),
        Some(Err(_)) | None => Some(Zeroizing::new(text.to_owned())),
    }
}

/// Bytes of all headers, were a placeholder replaced in them.
fn filled_bytes(headers: &HeaderMap, placeholder: &str, value: &str) -> usize {
    let bytes = |sent: &HeaderValue| {
        let count = spelled(sent).map_or(0, |text| text.matches(placeholder).count());
        // Base64 takes a third more.
        sent.len() + count * value.len() * 4 / 3
    };
    headers.values().map(bytes).sum()
}

/// Replaces a placeholder in all headers; `None` where that makes something that no header can be.
fn replace(headers: &mut HeaderMap, placeholder: &str, value: &str) -> Option<()> {
    for sent in headers.values_mut() {
        let Some(text) = spelled(sent).filter(|text| text.contains(placeholder)) else { continue };
        let text = Zeroizing::new(text.replace(placeholder, value));
        let basic = sent.as_bytes().starts_with(BASIC.as_bytes()) && !text.starts_with(BASIC);
        let text = if basic { Zeroizing::new(format!("{BASIC}{}", BASE64_STANDARD.encode(text.as_bytes()))) } else { text };
        *sent = secret(&text)?;
    }
    Some(())
}

impl Transforms {
    /// Reads the hosts as rules are read.
    pub fn parse<'a>(rules: impl ExactSizeIterator<Item = (&'a str, Transform)>) -> Result<Self, TransformError> {
        if rules.len() > MAX_HOSTS {
            return Err(TransformError::Hosts(rules.len()));
        }
        let mut all: Vec<(Names, Transform)> = Vec::with_capacity(rules.len());
        for (text, transform) in rules {
            let names = match text.parse() {
                Ok(Rule::Name(names)) if names != Names::Every => names,
                Ok(_) => return Err(TransformError::Host(None)),
                Err(error) => return Err(TransformError::Host(Some(error))),
            };
            if all.iter().any(|(there, _)| *there == names) {
                return Err(TransformError::Twice(names));
            }
            all.push((names, transform));
        }
        Ok(Self(all))
    }

    /// What is put into requests to `name`: what is said of itself, or of the nearest name above it.
    pub fn of(&self, name: &HostName) -> Option<&Transform> {
        let weight = |names: &Names| match names {
            Names::One(_) => usize::MAX,
            Names::Below(parent) => parent.as_str().len(),
            Names::Every => 0,
        };
        let fitting = self.0.iter().filter(|(names, _)| names.contain(name));
        fitting.max_by_key(|(names, _)| weight(names)).map(|(_, transform)| transform)
    }

    /// Whether there is nothing to put in.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All that has to be known to do so.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().flat_map(|(_, transform)| transform.references())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "${e2b.secrets.key}";

    fn transform(headers: &[(&str, &str)], replaced: &[&str]) -> Result<Transform, TransformError> {
        let replaced = replaced.iter().map(|name| Reference::Secret((*name).to_owned())).collect();
        Transform::new(headers.iter().copied(), replaced)
    }

    fn values() -> Filled {
        [(Reference::Secret("key".to_owned()), Zeroizing::new("VALUE".to_owned()))].into()
    }

    fn headers(sent: &[(&str, &str)]) -> HeaderMap {
        sent.iter().map(|(name, text)| (name.parse::<HeaderName>().unwrap(), text.parse().unwrap())).collect()
    }

    #[test]
    fn headers_take_the_place_of_the_clients() {
        let put = transform(&[("Authorization", &format!("Bearer {KEY}")), ("x-a", "1"), ("X-A", "2")], &[]).unwrap();
        let mut sent = headers(&[("authorization", "mine"), ("x-a", "0"), ("accept", "*/*")]);
        assert_eq!(put.wanted(&sent).len(), 1);
        put.apply(&mut sent, &values()).unwrap();
        assert_eq!(sent, headers(&[("accept", "*/*"), ("authorization", "Bearer VALUE"), ("x-a", "1"), ("x-a", "2")]));
        assert!(!format!("{sent:?}").contains("VALUE"));
    }

    #[test]
    fn a_placeholder_is_replaced_where_the_rule_says_so() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        let put = transform(&[], &["key"]).unwrap();
        let sent =
            [("x", format!("a {KEY} b {KEY}")), ("authorization", basic(&format!("user:{KEY}"))), ("y", "Basic !".to_owned())];
        let sent: Vec<_> = sent.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let mut sent = headers(&sent);
        assert_eq!(put.wanted(&sent).len(), 1);
        put.apply(&mut sent, &values()).unwrap();
        assert_eq!(sent, headers(&[("x", "a VALUE b VALUE"), ("authorization", &basic("user:VALUE")), ("y", "Basic !")]));

        let mut without = headers(&[("x", "a")]);
        assert!(put.wanted(&without).is_empty(), "nothing is asked for that nobody sent");
        put.apply(&mut without, &Filled::new()).unwrap();
        let other = transform(&[], &["other"]).unwrap();
        assert!(other.wanted(&headers(&[("x", KEY)])).is_empty());
    }

    #[test]
    fn a_value_that_no_header_can_have_is_told_by_its_name() {
        let put = transform(&[("x", KEY)], &["key"]).unwrap();
        let broken: Filled = [(Reference::Secret("key".to_owned()), Zeroizing::new("a\r\nb: c".to_owned()))].into();
        for mut sent in [headers(&[]), headers(&[("y", KEY)])] {
            assert_eq!(put.apply(&mut sent, &broken).unwrap_err(), Reference::Secret("key".to_owned()));
        }
        assert_eq!(put.apply(&mut headers(&[]), &Filled::new()).unwrap_err(), Reference::Secret("key".to_owned()));
    }

    #[test]
    fn a_placeholder_that_is_sent_many_times_makes_no_request_of_any_size() {
        let put = transform(&[], &["key"]).unwrap();
        let long: Filled = [(Reference::Secret("key".to_owned()), Zeroizing::new("v".repeat(16 << 10)))].into();
        let mut sent = headers(&[("x", &KEY.repeat(1000))]);
        assert_eq!(put.apply(&mut sent, &long).unwrap_err(), Reference::Secret("key".to_owned()));
        let mut twice = headers(&[("x", &KEY.repeat(2))]);
        put.apply(&mut twice, &long).unwrap();
    }

    #[test]
    fn what_is_no_transform_is_refused() {
        for name in ["host", "Content-Length", "transfer-encoding", "Connection", "a b", "", "x:"] {
            assert!(matches!(transform(&[(name, "x")], &[]).unwrap_err(), TransformError::Header(_)), "{name}");
        }
        assert!(matches!(transform(&[("x", "a\nb")], &[]).unwrap_err(), TransformError::Template(..)));
        let many = vec![("x", "y"); MAX_HEADERS + 1];
        assert_eq!(transform(&many, &[]).unwrap_err(), TransformError::Headers(MAX_HEADERS + 1));
        let hosts = |texts: &[&'static str]| Transforms::parse(texts.iter().map(|text| (*text, Transform::default())));
        for text in ["*", "1.2.3.4", "0.0.0.0/0", "", "a b"] {
            assert!(matches!(hosts(&[text]).unwrap_err(), TransformError::Host(_)), "{text}");
        }
        assert!(matches!(hosts(&["a.test", "A.test."]).unwrap_err(), TransformError::Twice(_)));
        assert_eq!(hosts(&["a.test"; MAX_HOSTS + 1]).unwrap_err(), TransformError::Hosts(MAX_HOSTS + 1));
    }

    #[test]
    fn the_nearest_name_counts() {
        let put = |text: &str| transform(&[("x", text)], &[]).unwrap();
        let rules = [("*.test", put("far")), ("*.a.test", put("near")), ("b.a.test", put("own"))];
        let rules = Transforms::parse(rules.into_iter()).unwrap();
        let of = |name: &str| rules.of(&name.parse().unwrap()).cloned();
        assert_eq!(of("b.a.test"), Some(put("own")));
        assert_eq!(of("c.b.a.test"), Some(put("near")));
        assert_eq!(of("a.test"), Some(put("far")));
        assert_eq!(of("test"), None);
    }
}
