//! Texts of headers with places for values that clients must not hold: `Bearer ${e2b.secrets.NAME}`.
//!
//! The notation is E2B's: a name is everything from the prefix to the next brace that closes. A value is put in once and its text is
//! not looked at again, so that no value can name another. What begins with `${` and is neither of the two is text.

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

/// Names a secret.
const SECRET: &str = "${e2b.secrets.";
/// Names a token of the workload's identity.
const TOKEN: &str = "${e2b.identity.tokens.";
/// Bytes of a text with its places, as it is written. Servers take 8 to 16 KiB of headers.
pub(crate) const MAX_TEMPLATE_BYTES: usize = 8 << 10;
/// Bytes of a name.
const MAX_NAME_BYTES: usize = 128;

/// A value that is put in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// A secret.
    Secret(String),
    /// A token that is made for the request.
    Token(String),
}

/// A text with places.
#[derive(Clone, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Place(Reference),
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Longer than any header.
    #[error("the text of a header has at most {MAX_TEMPLATE_BYTES} bytes, not {0}")]
    TooLong(usize),
    /// A place without an end, without a name, or with a name that none has.
    #[error("a place for a value in the text of a header has no name of 1 to {MAX_NAME_BYTES} characters, or no end")]
    Place,
    /// What cannot stand in a header.
    #[error("the text of a header has characters that no header can have")]
    Character,
}

impl Template {
    /// What it has places for.
    pub fn references(&self) -> impl Iterator<Item = &Reference> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Place(reference) => Some(reference),
            Piece::Text(_) => None,
        })
    }

    /// The text with a value in each place. `value` says nothing for what has none, which is told.
    pub(crate) fn filled<'a>(
        &'a self,
        mut value: impl FnMut(&Reference) -> Option<&'a str>,
    ) -> Result<Zeroizing<String>, Reference> {
        let mut pieces = Vec::with_capacity(self.0.len());
        for piece in &self.0 {
            pieces.push(match piece {
                Piece::Text(text) => text,
                Piece::Place(reference) => value(reference).ok_or_else(|| reference.clone())?,
            });
        }
        // In one piece: a text that grows leaves its beginnings behind in memory.
        Ok(Zeroizing::new(pieces.concat()))
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong(text.len()));
        }
        if text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(TemplateError::Character);
        }
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, reference, after)) = place(rest)? {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            pieces.push(Piece::Place(reference));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self(pieces))
    }
}

/// The first place of a text, with what is before and after it.
fn place(text: &str) -> Result<Option<(&str, Reference, &str)>, TemplateError> {
    type Kind = fn(String) -> Reference;
    let kinds: [(&str, Kind); 2] = [(SECRET, Reference::Secret), (TOKEN, Reference::Token)];
    let found = kinds.into_iter().filter_map(|(prefix, kind)| text.find(prefix).map(|at| (at, prefix, kind)));
    let Some((at, prefix, kind)) = found.min_by_key(|(at, ..)| *at) else {
        return Ok(None);
    };
    let (name, after) = text[at + prefix.len()..].split_once('}').ok_or(TemplateError::Place)?;
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('{') {
        return Err(TemplateError::Place);
    }
    Ok(Some((&text[..at], kind(name.to_owned()), after)))
}

impl Reference {
    /// As it is written where a value belongs.
    pub fn placeholder(&self) -> String {
        match self {
            Self::Secret(name) => format!("{SECRET}{name}}}"),
            Self::Token(name) => format!("{TOKEN}{name}}}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "secret `{name}`"),
            Self::Token(name) => write!(f, "identity token `{name}`"),
        }
    }
}

/// Not the text: people write values into it.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.references()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Template {
        text.parse().unwrap()
    }

    fn filled(text: &str) -> String {
        let template = parsed(text);
        let value = |reference: &Reference| match reference {
            Reference::Secret(name) if name == "key" => Some("VALUE"),
            Reference::Secret(name) if name == "sly" => Some("${e2b.secrets.key}"),
            Reference::Token(name) if name == "aws" => Some("JWT"),
            _ => None,
        };
        match template.filled(value) {
            Ok(text) => text.to_string(),
            Err(reference) => reference.to_string(),
        }
    }

    #[test]
    fn values_go_where_their_places_are() {
        for (text, expected) in [
            ("", ""),
            ("plain $ { } ${HOME} ${e2b.other.key}", "plain $ { } ${HOME} ${e2b.other.key}"),
            ("Bearer ${e2b.secrets.key}", "Bearer VALUE"),
            ("${e2b.secrets.key}${e2b.identity.tokens.aws}!", "VALUEJWT!"),
            ("${e2b.identity.tokens.aws}:${e2b.secrets.key}", "JWT:VALUE"),
            // A value is not looked at again.
            ("${e2b.secrets.sly}", "${e2b.secrets.key}"),
            ("a ${e2b.secrets.none} b", "secret `none`"),
            ("${e2b.identity.tokens.key}", "identity token `key`"),
        ] {
            assert_eq!(filled(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for text in ["${e2b.secrets.", "${e2b.secrets.}", "${e2b.secrets.a{b}", "${e2b.identity.tokens.x"] {
            assert_eq!(text.parse::<Template>().unwrap_err(), TemplateError::Place, "{text}");
        }
        let long = format!("${{e2b.secrets.{}}}", "n".repeat(MAX_NAME_BYTES + 1));
        assert_eq!(long.parse::<Template>().unwrap_err(), TemplateError::Place);
        for text in ["a\r\nb: c", "a\0", "\u{7f}"] {
            assert_eq!(text.parse::<Template>().unwrap_err(), TemplateError::Character, "{text:?}");
        }
        let long = "x".repeat(MAX_TEMPLATE_BYTES + 1);
        assert_eq!(long.parse::<Template>().unwrap_err(), TemplateError::TooLong(MAX_TEMPLATE_BYTES + 1));
    }

    #[test]
    fn a_placeholder_is_read_as_what_it_stands_for() {
        for reference in [Reference::Secret("a b".to_owned()), Reference::Token("t".to_owned())] {
            assert_eq!(parsed(&reference.placeholder()).references().collect::<Vec<_>>(), [&reference]);
        }
    }

    #[test]
    fn texts_are_not_printed() {
        assert_eq!(format!("{:?}", parsed("Bearer hunter2 ${e2b.secrets.k}")), "[Secret(\"k\")]");
    }
}
