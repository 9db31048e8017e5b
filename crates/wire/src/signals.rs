//! How the end of a process by a signal is worded: as Go does it, in which E2B's envd is written.

/// Stands before the words.
pub const PREFIX: &str = "signal: ";

/// Linux' numbers on x86-64 with Go's words. Go knows more signals; these are the ones that end a process unless it says otherwise.
const WORDS: [(i32, &str); 15] = [
    (1, "hangup"),
    (2, "interrupt"),
    (3, "quit"),
    (4, "illegal instruction"),
    (5, "trace/breakpoint trap"),
    (6, "aborted"),
    (7, "bus error"),
    (8, "floating point exception"),
    (9, "killed"),
    (10, "user defined signal 1"),
    (11, "segmentation fault"),
    (12, "user defined signal 2"),
    (13, "broken pipe"),
    (14, "alarm clock"),
    (15, "terminated"),
];

/// `signal: killed` for 9; a signal without words by its number, `signal: signal 40`.
pub fn status(signal: i32) -> String {
    match WORDS.iter().find(|(number, _)| *number == signal) {
        Some((_, words)) => format!("{PREFIX}{words}"),
        None => format!("{PREFIX}signal {signal}"),
    }
}

/// The signal of a status that tells of one. E2B's envd says of some that they left a core, ours of none.
pub fn number(status: &str) -> Option<i32> {
    let words = status.strip_prefix(PREFIX)?.trim_end_matches(" (core dumped)");
    match words.strip_prefix("signal ") {
        Some(number) => number.parse().ok(),
        None => WORDS.iter().find(|(_, known)| *known == words).map(|(number, _)| *number),
    }
}

#[cfg(test)]
mod tests {
    use super::{number, status};

    #[test]
    fn every_status_is_read_as_it_was_written() {
        for signal in 1..65 {
            assert_eq!(number(&status(signal)), Some(signal));
        }
        assert_eq!(status(9), "signal: killed");
        assert_eq!(status(40), "signal: signal 40");
        assert_eq!(number("signal: segmentation fault (core dumped)"), Some(11));
        for other in ["signal: real-time 9", "exit status 9", ""] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
