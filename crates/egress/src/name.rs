//! Names of hosts, in the one form in which they are compared.
//!
//! A rule, a question of the DNS, a TLS greeting and a request tell the same name in many ways: in capitals, with a final dot, in
//! Unicode or in Punycode. Whoever compares texts is talked round, so nothing else of this crate does: there is one type, and
//! it can only be made in the normal form (UTS 46, lower case, Punycode, no final dot).
//!
//! What the resolvers of some systems take for an address (`127.1`, `0x7f000001`) is no name, or a rule for names would let it
//! through to where no rule for addresses looks.

use std::{fmt, str::FromStr};

use idna::{
    AsciiDenyList,
    uts46::{DnsLength, Hyphens, Uts46},
};

/// Longest name of a host without its final dot (RFC 1035, 2.3.4).
pub const MAX_NAME_BYTES: usize = 253;
/// Longest text that is looked at: a name in Unicode may be longer than its Punycode, by no more than four bytes for one.
const MAX_TEXT_BYTES: usize = 4 * MAX_NAME_BYTES;

/// A name of a host in its normal form: at least one label of letters, digits, hyphens and underscores, joined by dots.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// Why a text is no name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or nothing but a dot.
    #[error("a name of a host is not empty")]
    Empty,
    /// Longer than the DNS takes, as a whole or in one label.
    #[error("a name of a host has at most {MAX_NAME_BYTES} bytes, and 63 in each label")]
    TooLong,
    /// A character that no name has, an empty label, or Punycode of nothing.
    #[error("not a name of a host")]
    Malformed,
    /// What is read as an address somewhere.
    #[error("an address, not a name of a host")]
    Address,
}

impl HostName {
    /// The name in its normal form.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name is below `parent`: `a.b.c` is below `b.c` and `c`, and not below itself.
    pub fn is_below(&self, parent: &Self) -> bool {
        self.0.strip_suffix(&parent.0).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for HostName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(NameError::TooLong);
        }
        // UTS 46 takes other full stops for dots too: what is left of the final one is looked at once they are all the same.
        let ascii = Uts46::new()
            .to_ascii(text.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
            .map_err(|_| NameError::Malformed)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
        let mut last = "";
        for label in name.split('.') {
            if label.is_empty() || !label.bytes().all(allowed) {
                return Err(NameError::Malformed);
            }
            if label.len() > 63 {
                return Err(NameError::TooLong);
            }
            last = label;
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        // What WHATWG's URL standard calls "ends in a number": C libraries read such texts as an address.
        let hexadecimal = last.strip_prefix("0x").is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(NameError::Address);
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_has_one_form() {
        let long = format!("{}.{}.{}.{}", "a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61));
        for (text, expected) in [
            ("example.com", Ok("example.com")),
            ("EXAMPLE.com.", Ok("example.com")),
            ("bücher.example", Ok("xn--bcher-kva.example")),
            ("BÜCHER.example", Ok("xn--bcher-kva.example")),
            ("xn--bcher-kva.example", Ok("xn--bcher-kva.example")),
            ("example。com", Ok("example.com")),
            ("ｅｘａｍｐｌｅ.com", Ok("example.com")),
            ("_acme.r3---sn-a-.example.com", Ok("_acme.r3---sn-a-.example.com")),
            ("localhost", Ok("localhost")),
            ("1.example", Ok("1.example")),
            (long.as_str(), Ok(long.as_str())),
            ("", Err(NameError::Empty)),
            (".", Err(NameError::Empty)),
            ("a..b", Err(NameError::Malformed)),
            (".a", Err(NameError::Malformed)),
            ("a.b..", Err(NameError::Malformed)),
            ("a b", Err(NameError::Malformed)),
            ("a/b", Err(NameError::Malformed)),
            ("a@b", Err(NameError::Malformed)),
            ("a:443", Err(NameError::Malformed)),
            ("a\0b", Err(NameError::Malformed)),
            ("*.a", Err(NameError::Malformed)),
            ("xn--a", Err(NameError::Malformed)),
            ("[::1]", Err(NameError::Malformed)),
            ("1.2.3.4", Err(NameError::Address)),
            ("1.2.3.4.", Err(NameError::Address)),
            ("127.1", Err(NameError::Address)),
            ("a.0x7f", Err(NameError::Address)),
            ("0x", Err(NameError::Address)),
            ("１２７.1", Err(NameError::Address)),
            (&format!("e{long}"), Err(NameError::TooLong)),
            (&"a".repeat(64), Err(NameError::TooLong)),
            (&"a.".repeat(2000), Err(NameError::TooLong)),
        ] {
            let name = text.parse::<HostName>();
            assert_eq!(name.as_ref().map(HostName::as_str), expected.as_ref().map(|name| *name), "{text}");
        }
    }

    #[test]
    fn below_is_by_labels() {
        let name = |text: &str| text.parse::<HostName>().unwrap();
        assert!(name("a.example.com").is_below(&name("example.com")));
        assert!(name("b.a.example.com").is_below(&name("example.com")));
        assert!(!name("example.com").is_below(&name("example.com")));
        assert!(!name("badexample.com").is_below(&name("example.com")));
        assert!(!name("com").is_below(&name("example.com")));
    }

    proptest! {
        #[test]
        fn a_normal_form_is_its_own(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<HostName>() {
                prop_assert_eq!(name.as_str().parse::<HostName>(), Ok(name.clone()));
                prop_assert!(name.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }
    }
}
