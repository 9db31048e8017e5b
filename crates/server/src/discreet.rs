//! What a failure of ours tells of this host: none of its paths.
//!
//! Causes name files, which is what an operator needs and nobody else's affair. Clients get the sentence without them, and a
//! reference under which the log has all of it.

use std::{
    hash::{BuildHasher, RandomState},
    time::Instant,
};

/// The message without paths, and what refers to it in the log. `None` for a message that has no path.
pub(crate) fn without_paths(message: &str) -> Option<(String, String)> {
    let shown = firkin_causes::without_paths(message);
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
    fn what_is_hidden_is_found_in_the_log_by_its_reference() {
        let (found, reference) = without_paths("cannot open `/var/lib/firkin/firkin.db`: denied").unwrap();
        assert_eq!(found, format!("cannot open `<path>`: denied (the server's log has more under {reference})"));
        assert_eq!(without_paths("the host has 3 MiB; `x` is full"), None);
    }
}
