//! What a failure of ours tells of this host: none of its paths.
//!
//! Causes name files, which is what an operator needs and nobody else's affair. Clients get the sentence without them, and a
//! reference under which the log has all of it.

use std::{
    hash::{BuildHasher, RandomState},
    time::Instant,
};

/// What stands in a path's place.
const HIDDEN: &str = "<path>";

/// The message without paths, and what refers to it in the log. `None` for a message that has no path.
pub(crate) fn without_paths(message: &str) -> Option<(String, String)> {
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
    (shown != message).then(|| {
        // Keyed anew each time, so no two are alike.
        let reference = format!("{:016x}", RandomState::new().hash_one(Instant::now()));
        (format!("{shown} (the server's log has more under {reference})"), reference)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_hidden_wherever_they_stand_and_nothing_else_is() {
        for (message, shown) in [
            ("cannot open `/var/lib/firkin/firkin.db`: denied", "cannot open `<path>`: denied"),
            ("failed to read /a/b: no such file", "failed to read <path>: no such file"),
            ("file:/a, (/b) '/c d' and=/e/f", "file:<path>, (<path>) '<path> d' and=<path>"),
        ] {
            let (found, reference) = without_paths(message).unwrap();
            assert_eq!(found, format!("{shown} (the server's log has more under {reference})"));
        }
        for message in ["", "text/html", "1 / 2", "the host has 3 MiB; `x` is full", "http://registry.example/v2"] {
            assert_eq!(without_paths(message).map(|(shown, _)| shown), None, "{message}");
        }
    }
}
