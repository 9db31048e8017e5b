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

#[cfg(test)]
mod tests {
    use super::chain;

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
