//! How an error is told together with what caused it.
//!
//! Libraries keep a cause apart from the text of its error, and only who logs or answers joins them, once. A crate of its own,
//! because host and guest both do that, and the engine, which must not know the wire, does it too.

use std::error::Error;

/// An error and its causes on one line, outermost first: `cannot open the book: permission denied`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What stands in a path's place.
const HIDDEN: &str = "<path>";

/// A message without the absolute paths that it names: for who has no business with this host's files.
pub fn without_paths(message: &str) -> String {
    let mut shown = String::with_capacity(message.len());
    let (mut rest, mut before) = (message, ' ');
    while let Some(next) = rest.chars().next() {
        // Two are a URL's.
        let begins = next == '/' && !rest.starts_with("//") && " \t\n`'\"(=:[".contains(before);
        let length =
            if begins { rest.find(|c: char| c.is_whitespace() || "`'\"()[],;:".contains(c)).unwrap_or(rest.len()) } else { 0 };
        // A slash alone divides words.
        if length > 1 {
            shown.push_str(HIDDEN);
            rest = &rest[length..];
            before = '/';
        } else {
            shown.push(next);
            rest = &rest[next.len_utf8()..];
            before = next;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{chain, without_paths};

    #[test]
    fn paths_are_hidden_wherever_they_stand_and_nothing_else_is() {
        for (message, shown) in [
            ("cannot open `/var/lib/firkin/firkin.db`: denied", "cannot open `<path>`: denied"),
            ("failed to read /a/b: no such file", "failed to read <path>: no such file"),
            ("file:/a, (/b) '/c d' and=/e/f", "file:<path>, (<path>) '<path> d' and=<path>"),
        ] {
            assert_eq!(without_paths(message), shown);
        }
        for message in ["", "text/html", "1 / 2", "the host has 3 MiB; `x` is full", "http://registry.example/v2"] {
            assert_eq!(without_paths(message), message);
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn causes_follow_the_error_that_they_explain() {
        let links = ["disk full", "cannot write `/x`", "cannot pause `i1`"];
        let error = links.into_iter().fold(None, |source, text| Some(Box::new(Link { text, source })));
        assert_eq!(chain(&*error.unwrap()), "cannot pause `i1`: cannot write `/x`: disk full");
        assert_eq!(chain(&Link { text: "no cause", source: None }), "no cause");
    }

    #[test]
    fn a_transparent_error_is_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error(transparent)]
        struct Outer(#[from] Link);
        assert_eq!(chain(&Outer(Link { text: "once", source: None })), "once");
    }
}
