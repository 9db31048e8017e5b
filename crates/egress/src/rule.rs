//! One rule: a network, an address, a name, all names below one, or all names.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};

use crate::name::{HostName, NameError};

/// What an entry of a list of destinations stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The addresses of a network; a single address is the network of that one.
    Network(Ipv4Net),
    /// The hosts of a name.
    Name(Names),
}

/// A set of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// `*`: every name.
    Every,
    /// `*.example.com`: all names below one, at any depth, and not itself.
    Below(HostName),
    /// `example.com`: itself.
    One(HostName),
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A prefix that is longer than an address, or a network whose address is none.
    #[error("`{0}` is not a network: it takes an address, `/`, and a length of 0 to 32")]
    Network(String),
    /// Sandboxes have no IPv6.
    #[error("`{0}` is a destination of IPv6, which sandboxes do not have")]
    Ipv6(String),
    /// Neither an address nor a name.
    #[error("`{text}` is neither a network, an address nor a name of hosts, with or without `*.` before it")]
    Name {
        /// What was written, its beginning if it is long.
        text: String,
        /// What is wrong with it as a name.
        #[source]
        source: NameError,
    },
}

/// Characters of a text that errors repeat.
const MAX_SHOWN: usize = 300;

impl Names {
    /// Whether `name` is one of them.
    pub fn contain(&self, name: &HostName) -> bool {
        match self {
            Self::Every => true,
            Self::Below(parent) => name.is_below(parent),
            Self::One(one) => name == one,
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let shown = || text.chars().take(MAX_SHOWN).collect::<String>();
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Network(address.into()));
        }
        match text.parse::<IpNet>() {
            Ok(IpNet::V4(net)) => return Ok(Self::Network(net.trunc())),
            Ok(IpNet::V6(_)) => return Err(RuleError::Ipv6(shown())),
            Err(_) if text.parse::<IpAddr>().is_ok() => return Err(RuleError::Ipv6(shown())),
            Err(_) if text.contains('/') => return Err(RuleError::Network(shown())),
            Err(_) => {}
        }
        if text == "*" {
            return Ok(Self::Name(Names::Every));
        }
        let (name, below) = text.strip_prefix("*.").map_or((text, false), |name| (name, true));
        let name = name.parse().map_err(|source| RuleError::Name { text: shown(), source })?;
        Ok(Self::Name(if below { Names::Below(name) } else { Names::One(name) }))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(net) if net.prefix_len() == net.max_prefix_len() => net.addr().fmt(f),
            Self::Network(net) => net.fmt(f),
            Self::Name(names) => names.fmt(f),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Every => f.write_str("*"),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::One(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_as_they_are_written() {
        for (text, normal) in [
            ("1.1.1.1", "1.1.1.1"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("*", "*"),
            ("Example.COM.", "example.com"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), normal, "{text}");
            assert_eq!(normal.parse::<Rule>().unwrap(), rule, "{text}");
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_the_reason() {
        let name = |text: &str, source| RuleError::Name { text: text.to_owned(), source };
        for (text, expected) in [
            ("8.8.8.8/33", RuleError::Network("8.8.8.8/33".to_owned())),
            ("example.com/8", RuleError::Network("example.com/8".to_owned())),
            ("2606:4700::1", RuleError::Ipv6("2606:4700::1".to_owned())),
            ("::/0", RuleError::Ipv6("::/0".to_owned())),
            ("", name("", NameError::Empty)),
            ("*.", name("*.", NameError::Empty)),
            ("a.*.com", name("a.*.com", NameError::Malformed)),
            ("*a.com", name("*a.com", NameError::Malformed)),
            ("**", name("**", NameError::Malformed)),
            (" a.com", name(" a.com", NameError::Malformed)),
            ("https:a.com", name("https:a.com", NameError::Malformed)),
            ("a.com:443", name("a.com:443", NameError::Malformed)),
            ("127.1", name("127.1", NameError::Address)),
            ("*.127.1", name("*.127.1", NameError::Address)),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap_err(), expected, "{text}");
        }
    }

    #[test]
    fn names_contain_what_they_say() {
        let contain = |rule: &str, name: &str| match rule.parse::<Rule>().unwrap() {
            Rule::Name(names) => names.contain(&name.parse().unwrap()),
            Rule::Network(_) => panic!("{rule} is a name"),
        };
        assert!(contain("example.com", "EXAMPLE.com."));
        assert!(!contain("example.com", "a.example.com"));
        assert!(contain("*.example.com", "a.b.example.com"));
        assert!(!contain("*.example.com", "example.com"));
        assert!(!contain("*.example.com", "notexample.com"));
        assert!(contain("*", "anything.test"));
    }
}
